"""Findings of `proxyprune doctor`."""
