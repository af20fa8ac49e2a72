"""The mathematics: noise schedule, intervals, objective, the call of a denoiser."""
