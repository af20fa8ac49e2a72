"""For authors of scorers and for tests: the contract suite, a fake LLM server, and a simulated proxy of known skill.

from proxyprune.testing import check_scorer

def test_contract():
    check_scorer(MyScorer())
"""

from __future__ import annotations

from proxyprune.testing.asked import Asked, by_place
from proxyprune.testing.contract import (
    CheckResult,
    ContractReport,
    Network,
    ScorerContractError,
    attention_network,
    check_scorer,
    residual_network,
)
from proxyprune.testing.fake_server import FakeLLMServer
from proxyprune.testing.faults import CutOff, Dribble, Drop, Empty, Html, Refusal, Says, Slow, Status, Truncated
from proxyprune.testing.simulated import SimulatedProxy, SimulatedScorer, predicted_tau

__all__ = [
    "Asked",
    "CheckResult",
    "ContractReport",
    "CutOff",
    "Dribble",
    "Drop",
    "Empty",
    "FakeLLMServer",
    "Html",
    "Network",
    "Refusal",
    "Says",
    "ScorerContractError",
    "SimulatedProxy",
    "SimulatedScorer",
    "Slow",
    "Status",
    "Truncated",
    "attention_network",
    "by_place",
    "check_scorer",
    "predicted_tau",
    "residual_network",
]
