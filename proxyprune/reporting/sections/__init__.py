"""Values -> sections of the page."""
