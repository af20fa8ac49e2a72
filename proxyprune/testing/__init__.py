"""For authors of scorers and for tests: the contract suite, a fake LLM server, and a simulated proxy of known skill.

from proxyprune.testing import check_scorer

def test_contract():
    check_scorer(MyScorer())
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
