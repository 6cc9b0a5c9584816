"""Speculative decoding of causal models: a cheap drafter proposes token trees, the target verifies them exactly."""
