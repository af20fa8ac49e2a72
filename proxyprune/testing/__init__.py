"""For authors of scorers and op rules, and for tests: contract suites, a fake LLM server, and a simulated proxy of known skill.

from proxyprune.testing import check_rule, check_scorer

def test_scorer():
    check_scorer(MyScorer())

def test_rule():
    check_rule("mylib::swish", model, example_inputs)
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
