"""The settings of a run, their checks and presets. Imports nothing of `diffusion`."""
