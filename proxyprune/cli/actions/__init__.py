"""The work of each command, one a file; imported when the command runs, so that these files import at their top like any other."""
