"""Structured pruning of PyTorch networks to a compute budget, with pluggable importance scorers.

import proxyprune as pp

result = pp.prune(model, example_inputs, target=0.6)
pp.save(result, "pruned")

The flow, from the bottom up; each folder or file imports only those before it:

    errors        every deliberate error
    support       files, versions, extras, checks; knows nothing of networks
    modelfile     the model files of users
    tracing       model + example inputs -> Program
    coupling      Program -> Coupling: what must shrink together
    standard      a network's class and config: what the config can express, and the config of a pruned network
    graph         Coupling -> ModelGraph: blocks, exact cost, text
    surgery       how a network is cut, and the proof that it then does what was predicted
    scoring       ModelGraph + scorer -> Ranking
    proxy         scorers that ask a language model
    planning      Ranking + budget -> PrunePlan
    applying      PrunePlan -> smaller module, and training state over the cut
    compensation  closed-form refit of the layers that read what was cut
    result        what pruning returns
    saving        result <-> folder
    measuring     loss and time of a network
    api           trace, cut a ranked network, compensate
    pruning       prune: all of it in one call
    searching     propose, plan, measure, repeat
    comparing     every scorer, the same cuts
    diffusion     step-adaptive diffusion
    assistant     tools with which an assistant drives pruning, and recorded sessions
    reporting     a saved result -> one HTML page
    testing       for authors of scorers
    plots         figures
    cli           the command line
"""

from typing import Any

import lazy_loader

__version__ = "0.1.0"

_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _attribute(name)
    import difflib

    close = difflib.get_close_matches(name, __all__, n=1)
    suggestion = f"; did you mean {close[0]!r}?" if close else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{suggestion}", name=name)
