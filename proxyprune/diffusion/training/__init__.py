"""The training loop of one denoiser, and what it keeps."""
