"""Pilots of the step-adaptive experiment: other settings, fewer images, one seed that is none of the experiment's.

    python benchmarks/step_adaptive_ideas.py --idea epsilon --folder FOLDER --arms base formula_80

Every evaluation is one line of FOLDER/IDEA/evaluations.jsonl; all of them go into the results' JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, save
from step_adaptive import ARMS, NETWORK, Bench, Experiment


@dataclass(frozen=True)
class Idea:
    """What is different from the experiment.

    Attributes:
        changes: Settings.
        channels: Of the network's levels.
        steps: Optimizer steps of the full base.
        batch_size: Images of a step.
        base_share: Share of the compute for the base that the experts start from.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[int, ...] = (8, 16, 32)
    steps: int = 8000
    batch_size: int = 64
    base_share: float = 0.4


_V = {"noise.prediction": "v_prediction"}
IDEAS: Mapping[str, Idea] = {
    "epsilon": Idea(),
    "v_prediction": Idea(_V),
    "decayed_base": Idea({**_V, "base.decay": "cosine", "experts.learning_rate": 1e-3}),
    "early_experts": Idea(_V, base_share=0.2),
    "long": Idea(_V, steps=20000),
    "narrow": Idea(_V, channels=(8, 8, 16)),
    "noisy_training": Idea({"compute.expert_weights": (0.1, 0.15, 0.3, 0.45)}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idea", choices=list(IDEAS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["base", "formula_80"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = bench_of(arguments.idea, arguments.folder)
    for arm in arguments.arms:
        bench.arm(arm, arguments.seed)
    found = {idea: {**asdict(IDEAS[idea]), "runs": bench_of(idea, arguments.folder).lines()} for idea in IDEAS}
    save("step_adaptive_ideas", {"environment": environment(), "ideas": _of_earlier_samplers() | found})


def _of_earlier_samplers() -> dict[str, Any]:
    """What was measured before the samplers were mended; kept for the comparison, never measured again."""
    path = RESULTS / "step_adaptive_ideas.json"
    before = json.loads(path.read_text(encoding="utf-8"))["ideas"] if path.is_file() else {}
    return {name: idea for name, idea in before.items() if name not in IDEAS}


def bench_of(name: str, folder: Path) -> Bench:
    """The experiment with an idea's settings, in a folder of its own."""
    idea, plain = IDEAS[name], Experiment()
    experiment = replace(
        plain,
        steps=idea.steps,
        batch_size=idea.batch_size,
        base_share=idea.base_share,
        images=5000,
        common=dict(plain.common) | {"budgets.trial_steps": 2560 // idea.batch_size} | dict(idea.changes),
    )
    bench = Bench(experiment, folder / name)
    bench.folder.mkdir(parents=True, exist_ok=True)
    network = dict(NETWORK) | {"block_out_channels": list(idea.channels)}
    (bench.folder / "network.json").write_text(json.dumps(network), encoding="utf-8")
    (bench.folder / "experiment.json").write_text(json.dumps(asdict(experiment), indent=1), encoding="utf-8")
    return bench


if __name__ == "__main__":
    main()
