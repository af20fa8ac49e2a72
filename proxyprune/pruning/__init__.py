"""Pruning in one call: score, cut in one step or several, compensate, recover and measure."""
