"""What authors of scorers may use. `proxyprune.scoring` exports it."""
