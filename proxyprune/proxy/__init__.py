"""The proxy: a language model that stands in for measuring. Answers are validated before they count."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
