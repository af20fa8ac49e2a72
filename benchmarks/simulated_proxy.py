"""What aggregation and confidence are worth, with a proxy whose skill and noise are known.

The real scorer asks a simulated proxy (proxyprune.testing.SimulatedProxy) in place of a model: shuffling, validation, centres and
confidence are those of every LLM ranking. The prediction is a closed form, made before looking:

    tau(k) = 2/pi * arcsin(skill / sqrt(1 + noise^2 / k)),    confidence = 2/pi * arcsin(1 / (1 + noise^2)).

    python benchmarks/simulated_proxy.py     # writes results/simulated_proxy.json and .png
"""

from __future__ import annotations

import statistics
from functools import cache
from typing import Any

import numpy as np
from common import RESULTS, environment, print_table, save

SAMPLES = (1, 2, 3, 5, 9, 17)
NOISES = (0.25, 0.5, 1.0, 2.0, 4.0)
SKILLS = (1.0, 0.7)
SEEDS = 12
BLOCKS = 30


@cache
def network() -> Any:
    """Return a traced chain of residual blocks; only their number matters here."""
    import torch
    from torch import nn

    import proxyprune as pp

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(self.up(x).relu())

    return pp.trace(nn.Sequential(*(Residual() for _ in range(BLOCKS))), torch.zeros(1, 8), probe=False)


def one(skill: float, noise: float, samples: int, centre: str, seed: int) -> dict[str, float | None]:
    """One ranking: tau of its order with the truth, its confidence, and whether it calls itself unreliable."""
    import proxyprune as pp
    from proxyprune.proxy.answers.agreement import kendall_tau
    from proxyprune.testing import SimulatedProxy, SimulatedScorer

    truth = np.random.default_rng(seed).standard_normal(BLOCKS)
    proxy = SimulatedProxy(tuple(truth), skill, noise, seed)
    scorer = SimulatedScorer(proxy=proxy, samples=samples, max_samples=samples, centre=centre, concurrency=1)
    ranking = pp.score(network(), scorer, seed=seed)
    scores = [ranking.scores[block.id] for block in network().blocks]
    return {"tau": kendall_tau(scores, truth), "confidence": ranking.confidence, "refused": float(ranking.unreliable is not None)}


def measure() -> list[dict[str, Any]]:
    """All combinations, each over all seeds."""
    from proxyprune.testing import predicted_tau

    rows = []
    for skill in SKILLS:
        for noise in NOISES:
            for centre in ("borda", "kemeny"):
                for samples in SAMPLES:
                    runs = [one(skill, noise, samples, centre, seed) for seed in range(SEEDS)]
                    taus = [float(run["tau"]) for run in runs]
                    confidences = [float(run["confidence"]) for run in runs if run["confidence"] is not None]
                    rows.append(
                        {
                            "skill": skill,
                            "noise": noise,
                            "centre": centre,
                            "samples": samples,
                            "tau": statistics.fmean(taus),
                            "tau_sd": statistics.stdev(taus),
                            "predicted": predicted_tau(samples, noise, skill),
                            "confidence": statistics.fmean(confidences) if confidences else None,
                            "predicted_confidence": predicted_tau(0, noise),
                            "refused": statistics.fmean(float(run["refused"]) for run in runs),
                        }
                    )
    return rows


def plot(rows: list[dict[str, Any]]) -> None:
    """Left: tau against the number of samples. Right: confidence against tau."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    dense = np.geomspace(1, SAMPLES[-1], 60)
    from proxyprune.testing import predicted_tau

    for index, noise in enumerate(NOISES):
        chosen = [row for row in rows if row["skill"] == 1.0 and row["noise"] == noise and row["centre"] == "borda"]
        color = f"C{index}"
        left.plot(dense, [predicted_tau(k, noise) for k in dense], color=color, lw=1)
        spread = [row["tau_sd"] for row in chosen]
        points = [row["tau"] for row in chosen]
        left.errorbar(SAMPLES, points, yerr=spread, fmt="o", ms=4, capsize=2, color=color, label=f"noise {noise:g}")
    left.set(xscale="log", xlabel="samples k", ylabel="Kendall tau with the truth", ylim=(0, 1), title="More samples, closer to the truth")
    left.set_xticks(SAMPLES, [str(k) for k in SAMPLES])
    left.minorticks_off()
    left.legend(
        title="points: measured, lines: predicted", fontsize=8, title_fontsize=8, ncol=5, loc="upper center", bbox_to_anchor=(0.5, -0.14)
    )
    for skill, marker in zip(SKILLS, "os", strict=True):
        chosen = [row for row in rows if row["skill"] == skill and row["samples"] == 5 and row["centre"] == "borda"]
        right.plot([row["confidence"] for row in chosen], [row["tau"] for row in chosen], marker=marker, label=f"skill {skill:g}, k = 5")
    right.set(xlabel="reported confidence", ylabel="Kendall tau with the truth", xlim=(0, 1), ylim=(0, 1), title="Confidence and truth")
    right.axhline(predicted_tau(10**9, 1.0, SKILLS[1]), color="C1", ls=":", lw=1)
    right.annotate("most that skill 0.7 can reach", (0.63, predicted_tau(10**9, 1.0, SKILLS[1]) - 0.05), color="C1", fontsize=8)
    right.legend(fontsize=8, loc="lower right")
    for path in (RESULTS / "simulated_proxy.png", RESULTS.parent.parent / "docs" / "benchmarks" / "simulated-proxy.png"):
        figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, draw, save."""
    rows = measure()
    shown = [row for row in rows if row["centre"] == "borda"]
    print_table("Simulated proxy, Borda centre", ("skill", "noise", "samples", "tau", "predicted", "confidence", "refused"), shown)
    gaps = {centre: [abs(row["tau"] - row["predicted"]) for row in rows if row["centre"] == centre] for centre in ("borda", "kemeny")}
    summary = {centre: {"mean_gap": statistics.fmean(values), "largest_gap": max(values)} for centre, values in gaps.items()}
    plot(rows)
    save("simulated_proxy", {"blocks": BLOCKS, "seeds": SEEDS, "gap_to_prediction": summary, "rows": rows} | environment())


if __name__ == "__main__":
    main()
