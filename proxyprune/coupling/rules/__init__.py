"""Axis rules, one family of ops a file. `table` maps op names to them, and `walk` is what a rule sees."""
