"""llama.cpp's diffusion example beside unmask: build it, convert a model for it, run both in turn."""
