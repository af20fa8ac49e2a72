"""Functions for authors of scorers. `proxyprune.scoring` exports it."""
