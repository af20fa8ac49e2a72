"""Measure a network: held-out loss and wall time, written to a journal as they come."""
