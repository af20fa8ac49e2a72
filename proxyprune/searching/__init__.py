"""Search with memory: propose, plan, measure, remember, until the budget of measurements is spent."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
