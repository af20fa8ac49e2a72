"""What the tests of LLM scorers share: a small network, and one call with limits that keep the tests fast."""

from __future__ import annotations

from functools import cache
from typing import Any

import proxyprune as pp
from proxyprune import ModelGraph
from proxyprune.scoring import Brief, Ranking, find
from proxyprune.testing import FakeLLMServer, residual_network

SCORERS = ("openai", "anthropic", "local")


@cache
def small_graph() -> ModelGraph:
    """Six blocks."""
    network = residual_network()
    return pp.trace(network.model, network.example_inputs, probe=False)


def options(server: FakeLLMServer, scorer: str, **changed: Any) -> dict[str, Any]:
    """Options that reach the server and wait for nothing."""
    quick = {"model": "fake", "samples": 2, "max_samples": 2, "concurrency": 1, "backoff_seconds": 0.01, "timeout_seconds": 60.0}
    return {**quick, "base_url": server.url_for(scorer), **changed}


def ask(server: FakeLLMServer, scorer: str, *, brief: Brief | None = None, seed: int = 0, **changed: Any) -> Ranking:
    """Score the small network."""
    return pp.score(small_graph(), find(scorer, options(server, scorer, **changed)), brief=brief, seed=seed)
