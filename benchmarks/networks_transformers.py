"""x."""
def candidates():
    return iter(())
