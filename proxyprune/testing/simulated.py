"""A proxy of known skill and known noise: what aggregation and confidence can do is computed, and then checked.

The proxy judges block i in sample j by

    y_ij = skill * t_i + sqrt(1 - skill^2) * b_i + noise * e_ij,

with t the truth, b a mistake that all its samples share, and e fresh noise; t, b and e are standard normal. The mean of k samples then
correlates with the truth by

    rho_k = skill / sqrt(1 + noise^2 / k),

two samples correlate with each other by 1 / (1 + noise^2), and for normal variables Kendall's tau is 2/pi * arcsin(rho).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from proxyprune.proxy.scorer import LLMScorer
from proxyprune.proxy.service.endpoint import Endpoint
from proxyprune.proxy.service.exchange import Provider, Reply, Request, Usage
from proxyprune.support.seeds import derived_seed
from proxyprune.testing.fake_llm.received_request import ReceivedRequest


def predicted_tau(samples: int, noise: float, skill: float = 1.0) -> float:
    """Return the expected Kendall tau between the truth and the centre of k samples; 0 samples: between two samples.

    Args:
        samples: k, or 0.
        noise: Standard deviation of a sample's own noise, in standard deviations of the judgement.
        skill: Correlation of the judgement without noise with the truth.

    Source:
        Kendall 1949, tau = 2/pi * arcsin(rho) for the bivariate normal. Deviations: scores from 0 to 10, and ranks
        instead of values, cost a few hundredths, which the formula leaves out.
    """
    correlation = skill / math.sqrt(1.0 + noise**2 / samples) if samples else 1.0 / (1.0 + noise**2)
    return 2.0 / math.pi * math.asin(correlation)


@dataclass(frozen=True)
class SimulatedProxy:
    """Answers prompts from the truth; usable as `answer` of a `FakeLLMServer`, and as a provider without any server.

    Attributes:
        truth: True importance of each block in the order of execution; only the order and the distances count.
        skill: See the module.
        noise: See the module.
        seed: The shared mistake follows from it, and the noise from it and the prompt.
    """

    truth: Sequence[float] = field(repr=False)
    skill: float = 1.0
    noise: float = 0.0
    seed: int = 0

    def __call__(self, asked: ReceivedRequest) -> str:
        """Return the text of an answer to a request that came over HTTP."""
        return self._answer(asked.places, asked.prompt)

    def send(self, request: Request, timeout_seconds: float) -> Reply:
        """Answer in this process."""
        prompt = request.turns[0].text
        body = {"messages": [{"role": "user", "content": prompt}]}
        return Reply(self._answer(ReceivedRequest("chat", {}, body).places, prompt), Usage(request.characters // 3, 100))

    def close(self) -> None:
        """Nothing is open."""

    def _answer(self, places: Mapping[str, int], prompt: str) -> str:
        truth = _standardised(self.truth)
        shared = np.random.default_rng(derived_seed(self.seed, "mistake")).standard_normal(len(truth))
        fresh = np.random.default_rng(derived_seed(self.seed, "noise", prompt)).standard_normal(len(truth))
        judged = self.skill * truth + math.sqrt(max(0.0, 1.0 - self.skill**2)) * shared + self.noise * fresh
        spread = math.sqrt(1.0 + self.noise**2)
        # A standard deviation is two points, so that the scale from 0 to 10 spans five of them.
        scores = {label: min(10, max(0, round(5.0 + 2.0 * float(judged[place - 1]) / spread))) for label, place in places.items()}
        return json.dumps({"scores": scores})


def _standardised(values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    deviation = float(array.std())
    standard: NDArray[np.float64] = (array - array.mean()) / (deviation or 1.0)
    return standard


@dataclass(frozen=True, kw_only=True)
class SimulatedScorer(LLMScorer):
    """An LLM scorer without an LLM: everything but the model is real.

    Attributes:
        proxy: Who answers.
    """

    proxy: SimulatedProxy
    model: str = "simulated"
    base_url: str | None = field(default="http://127.0.0.1:9", repr=False)
    name: str = field(default="simulated", init=False)

    def provider(self, endpoint: Endpoint) -> Provider:
        """Return the simulated proxy."""
        return self.proxy
