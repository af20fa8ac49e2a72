"""Distance of generated images from real ones."""
