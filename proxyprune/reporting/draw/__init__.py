"""Values -> SVG drawings."""
