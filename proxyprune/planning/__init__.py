"""Ranking and budget -> `PrunePlan`. Touches no module."""
