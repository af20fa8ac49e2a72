"""Compare scorers: every scorer makes the same cuts, on the same data, with the same recovery."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
