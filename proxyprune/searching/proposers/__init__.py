"""Proposers of the search, one a file; `by_name` finds them."""
