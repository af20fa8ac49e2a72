"""Traces of the zoo's networks, which several test files share: tests of one network run on one worker, one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from masking import randomise
from torch import nn
from zoo import NETWORKS, Inputs, run

import proxyprune as pp


@dataclass(frozen=True)
class Traced:
    """A network with randomised weights, and what the package reads in it. Shared by tests, which must leave it as it is."""

    name: str
    model: nn.Module
    inputs: Inputs
    graph: Any


@lru_cache(maxsize=3)
def traced(name: str) -> Traced:
    """Return a network with randomised weights and its trace; the last few stay in memory."""
    network = NETWORKS[name]
    model, inputs = randomise(network.build()), network.inputs()
    run(model, inputs)  # some models note on themselves that they have run, which is no work of ours
    return Traced(name, model, inputs, pp.trace(model, inputs))
