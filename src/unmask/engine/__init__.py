"""F2: the loop and continuous batching."""
