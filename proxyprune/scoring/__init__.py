"""Scorers: what judges the blocks of a network, and how one is found by name."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
