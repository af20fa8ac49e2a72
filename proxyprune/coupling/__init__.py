"""`Program` -> `Coupling`: which parameter slices must shrink together."""
