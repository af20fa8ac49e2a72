"""The scorers that come with the package, one a file; registered as entry points like any plug-in."""
