"""`Coupling` -> `ModelGraph`: blocks, exact cost and text. Every later stage reads it."""
