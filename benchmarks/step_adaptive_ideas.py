"""Pilots of the step-adaptive experiment: other settings, fewer images, one seed.

    python benchmarks/step_adaptive_ideas.py --idea wide --folder FOLDER --arms base formula_80

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
        norm_groups: Of its normalisations.
        steps: Optimizer steps of the full base.
        batch_size: Images of a step.
        images: Samples of each evaluation.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    channels: tuple[int, ...] = (4, 8, 16)
    norm_groups: int = 2
    steps: int = 8000
    batch_size: int = 64
    images: int = 5000


_SLOW = {"base.learning_rate": 2e-3, "experts.learning_rate": 2e-3, "experts.weighting": "plain"}
IDEAS: Mapping[str, Idea] = {
    "slow": Idea(_SLOW, steps=16000),
    "wide": Idea(_SLOW, channels=(8, 16, 32), norm_groups=4, steps=16000, batch_size=32, images=10000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idea", choices=list(IDEAS), required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["base", "formula_80"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = bench_of(arguments.idea, arguments.folder)
    for arm in arguments.arms:
        bench.arm(arm, arguments.seed)
    found = {idea: {**asdict(IDEAS[idea]), "runs": lines} for idea in IDEAS if (lines := bench_of(idea, arguments.folder).lines())}
    save("step_adaptive_ideas", {"environment": environment(), "ideas": known_ideas() | found})


def known_ideas() -> dict[str, Any]:
    """Return what was measured before, here or with earlier settings; an idea that is measured again replaces only its own figures."""
    path = RESULTS / "step_adaptive_ideas.json"
    ideas: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["ideas"] if path.is_file() else {}
    return ideas


def bench_of(name: str, folder: Path) -> Bench:
    """Return the experiment with an idea's settings, in a folder of its own."""
    idea, plain = IDEAS[name], Experiment()
    experiment = replace(
        plain, steps=idea.steps, batch_size=idea.batch_size, images=idea.images, common=dict(plain.common) | dict(idea.changes)
    )
    bench = Bench(experiment, folder / name)
    bench.folder.mkdir(parents=True, exist_ok=True)
    network = dict(NETWORK) | {"block_out_channels": list(idea.channels), "norm_num_groups": idea.norm_groups}
    (bench.folder / "network.json").write_text(json.dumps(network), encoding="utf-8")
    (bench.folder / "experiment.json").write_text(json.dumps(asdict(experiment), indent=1), encoding="utf-8")
    return bench


if __name__ == "__main__":
    main()
