"""Formulas over features of channels: expressions, their text form, and their values."""
