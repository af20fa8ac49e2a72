"""A server on this machine that answers as the hosted services do, faults included."""
