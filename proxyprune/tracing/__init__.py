"""Model and example inputs -> `Program`: the ops of one forward pass. Knows nothing of channels."""
