"""Images and conditions, in and out."""
