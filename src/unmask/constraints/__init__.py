"""Constraints on the text of a response: automata over tokens, and the most probable text that they accept."""
