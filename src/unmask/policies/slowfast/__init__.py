"""SlowFast Sampling (arXiv 2506.10848): explore slowly until the span to decode is certain, then fill it fast."""

from .policy import SlowFast

__all__ = ["SlowFast"]
