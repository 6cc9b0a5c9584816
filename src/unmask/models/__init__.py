"""F1: one transformer for every family, checkpoints, and the denoiser that answers asks."""
