"""The pipeline of experts and the schedulers that it samples with."""
