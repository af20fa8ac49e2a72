"""One HTTP exchange with one service."""
