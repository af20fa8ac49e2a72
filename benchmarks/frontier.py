"""The honest frontier: distance against the compute of sampling, for pipelines and for fewer steps of the full model.

    python benchmarks/frontier.py --scale tiny --seeds 0                 # proves that everything runs, in minutes
    python benchmarks/frontier.py --scale small --seeds 0 1 2 --workers 2        # 16 pixels, 44,000 parameters; hours on two cores
    python benchmarks/frontier.py --scale large --seeds 0 1 2 --workers 12       # 32 pixels, 1.4 million parameters; minutes on a GPU
    python benchmarks/frontier.py --scale large --summary                # table, plot and JSON of what is there

Every arm trains for the same compute. Each is then sampled with 4 to 50 steps of two samplers. An arm is worth its name where its curve
lies below that of the full model with fewer steps. One process trains and samples one arm of one seed; it resumes from its checkpoints, and
each finished evaluation is a line of its own. With --minutes, arms that are not finished in time are left out and counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, environment, print_table, save
from frontier_plot import draw
from step_adaptive import ARMS, FOR_V, NETWORK, TINY, TINY_TRIALS, Bench, Experiment

from proxyprune.diffusion import StepAdaptivePipeline, StepAdaptiveTrainer, load_features
from proxyprune.diffusion.evaluation.metrics import frechet_distance

CACHE = Path(__file__).parent / ".cache"
SHARED = "experts_full"
"""The arm that trains the base from which all experts start."""
COMPARED = ("base", SHARED, "formula_80", "formula_50", "single_80", "single_50", "base_125")
GPU = torch.cuda.is_available()


@dataclass(frozen=True)
class Scale:
    """A size of the experiment.

    Attributes:
        experiment: Data, training and how many images are judged.
        network: Settings of the denoiser, or the name of a preset.
        steps: Sampler to the numbers of steps.
        overrides: Settings that take the place of an arm's own.
    """

    experiment: Experiment
    network: Mapping[str, Any] | str
    steps: Mapping[str, Sequence[int]]
    overrides: Mapping[str, Any]


_V = dict(Experiment().common) | {"noise.prediction": "v_prediction"} | FOR_V
_LARGE = _V | {
    "data.size": 32,
    "base.learning_rate": 2e-3,
    "experts.learning_rate": 2e-3,
    "run.checkpoint_every": 1000,
    "run.cpu": not GPU,
    "run.mixed_precision": "bf16" if GPU else "no",
}
STEPS: Mapping[str, Sequence[int]] = {"dpm++": (4, 6, 8, 10, 12, 16, 20, 25), "ddim": (10, 20, 30, 50)}
SCALES: Mapping[str, Scale] = {
    "tiny": Scale(replace(TINY, common=dict(TINY.common) | {"noise.prediction": "v_prediction"}), NETWORK, {"dpm++": (3, 4)}, TINY_TRIALS),
    "small": Scale(Experiment(images=4000, sampling_batch=250, common=_V), NETWORK, STEPS, {}),
    "large": Scale(Experiment(steps=3000, batch_size=256, images=4000, sampling_batch=1000, common=_LARGE), "fashion32", STEPS, {}),
}


@dataclass(frozen=True)
class Place:
    """The folder of an experiment: runs, results of each arm, and its settings."""

    scale: Scale
    folder: Path

    @property
    def bench(self) -> Bench:
        """The runs of the experiment."""
        return Bench(self.scale.experiment, self.folder, self.scale.overrides)

    def results(self, arm: str, seed: int) -> Path:
        """Return the file with the evaluations of an arm, one a line."""
        return self.folder / f"seed-{seed}" / f"{arm}.jsonl"

    def lines(self) -> list[dict[str, Any]]:
        """Read all evaluations."""
        return [
            json.loads(line)
            for path in sorted(self.folder.glob("seed-*/*.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.endswith("}")
        ]

    def prepare(self) -> None:
        """Write what the experiment is made with.

        Raises:
            SystemExit: If the folder holds an experiment with other numbers.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        network = self.scale.network
        if not isinstance(network, str):
            (self.folder / "network.json").write_text(json.dumps(self.bench.network), encoding="utf-8")
        text = json.dumps({**asdict(self.scale.experiment), "network": network}, indent=1, sort_keys=True)
        frozen = self.folder / "frontier.json"
        if frozen.is_file() and frozen.read_text(encoding="utf-8") != text:
            raise SystemExit(f"{self.folder} holds an experiment with other numbers; choose another --folder.")
        frozen.write_text(text, encoding="utf-8")


def train(place: Place, arm: str, seed: int, *, only_base: bool = False) -> tuple[StepAdaptiveTrainer, StepAdaptivePipeline | None]:
    """Train an arm, or only the base that arms share."""
    bench = place.bench
    config = bench.config(ARMS[arm], seed)
    if isinstance(place.scale.network, str):
        config = config.with_values({"model": place.scale.network})
    shared = bench.run(SHARED, seed) if ARMS[arm].shared and arm != SHARED else None
    trainer = StepAdaptiveTrainer(config, bench.run(arm, seed), base=shared)
    if only_base:
        trainer.train_base()
        return trainer, None
    return trainer, trainer.train()


def evaluations(
    place: Place, arm: str, seed: int, samplers: Sequence[str], trainer: StepAdaptiveTrainer, pipeline: StepAdaptivePipeline
) -> Iterator[dict[str, Any]]:
    """Sample an arm with every number of steps of these samplers that is not judged yet."""
    done = {(line["arm"], line["seed"], line["sampler"], line["steps"]) for line in place.lines()}
    experiment, data, features = place.scale.experiment, trainer.setup.data, load_features("fashion-mnist")
    real = features.of(data.held_out)
    pipeline.to(trainer.setup.device)
    ledger = trainer.ledger()
    for name, counts in place.scale.steps.items():
        if name not in samplers:
            continue
        pipeline.use(name)
        for steps in counts:
            if (arm, seed, name, steps) in done:
                continue
            started = time.perf_counter()
            images = pipeline.generate(experiment.images, steps=steps, batch_size=experiment.sampling_batch, seed=seed, progress=False)
            seconds = time.perf_counter() - started
            yield {
                "arm": arm,
                "what": ARMS[arm].what,
                "seed": seed,
                "sampler": name,
                "steps": steps,
                "frechet": frechet_distance(real, features.of(images)),
                "brightness": float(images.float().mean()),
                "macs": pipeline.sampling_macs(steps),
                "passes": pipeline.sampling_macs(steps) / trainer.setup.base_macs,
                "seconds_per_image": seconds / len(images),
                "params": sum(pipeline.blueprint.params),
                "training_share": ledger.spent_macs / place.bench.reference(trainer),
                "base_macs": trainer.setup.base_macs,
            }


def work(place: Place, arm: str, seed: int, samplers: Sequence[str], *, only_base: bool) -> None:
    """Do the work of one process: train an arm and judge it."""
    torch.set_num_threads(1)
    if GPU:
        torch.set_float32_matmul_precision("high")
    trainer, pipeline = train(place, arm, seed, only_base=only_base)
    if pipeline is None:
        return
    path = place.results(arm, seed)
    for line in evaluations(place, arm, seed, samplers, trainer, pipeline):
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def orchestrate(place: Place, arguments: argparse.Namespace) -> list[str]:
    """Run a process for each arm of each seed, the shared bases first; return those that failed or were stopped."""
    end = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    command = [sys.executable, __file__, "--scale", arguments.scale, "--folder", str(place.folder), "--samplers", *arguments.samplers]
    environment_ = os.environ | {"OMP_NUM_THREADS": "1"}
    failed: list[str] = []

    def job(arm: str, seed: int, *more: str) -> None:
        label = " ".join((arm, f"seed {seed}", *more))
        left = None if end is None else end - time.monotonic()
        if left is not None and left < 1:
            failed.append(f"{label}: not started in time")
            return
        log = place.folder / f"seed-{seed}" / f"{arm}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with log.open("ab") as out:
            try:
                found = subprocess.run(
                    [*command, "--arms", arm, "--seeds", str(seed), "--worker", *more],
                    stdout=out,
                    stderr=out,
                    env=environment_,
                    timeout=left,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                failed.append(f"{label}: stopped after {time.perf_counter() - started:.0f} s")
                return
        print(f"{label}: {time.perf_counter() - started:.0f} s, exit {found.returncode}", flush=True)
        if found.returncode:
            failed.append(f"{label}: exit {found.returncode}, see {log.name}: {log.read_text(errors='replace')[-400:]}")

    with ThreadPoolExecutor(arguments.workers) as pool:
        bases = {seed: pool.submit(job, SHARED, seed, "--only-base") for seed in arguments.seeds}
        jobs = [pool.submit(job, arm, seed) for seed in arguments.seeds for arm in arguments.arms if not ARMS[arm].shared]
        for seed, base in bases.items():
            base.result()
            jobs += [pool.submit(job, arm, seed) for arm in arguments.arms if ARMS[arm].shared]
        for done in jobs:
            done.result()
    return failed


def summary(place: Place, name: str, failed: Sequence[str], results: Path) -> list[dict[str, Any]]:
    """Print the table, draw the plot and write the JSON over the seeds that are there."""
    lines = place.lines()
    if not lines:
        print("Nothing is finished yet.", *failed, sep="\n")
        return []
    rows = []
    for arm in COMPARED:
        for sampler, counts in place.scale.steps.items():
            for steps in counts:
                found = [line for line in lines if (line["arm"], line["sampler"], line["steps"]) == (arm, sampler, steps)]
                if found:
                    values = [line["frechet"] for line in found]
                    rows.append(
                        {
                            "arm": arm,
                            "sampler": sampler,
                            "steps": steps,
                            "seeds": len(found),
                            "FD": statistics.mean(values),
                            "spread": max(values) - min(values),
                            "passes": statistics.mean(line["passes"] for line in found),
                            "ms/image": 1000 * statistics.mean(line["seconds_per_image"] for line in found),
                        }
                    )
    print_table(f"frontier, {name}", list(rows[0]), rows)
    content = {"environment": environment(), "device": torch.cuda.get_device_name() if GPU else "cpu"}
    content |= {"experiment": asdict(place.scale.experiment), "network": place.scale.network, "left_out": list(failed)}
    save(name, {**content, "rows": rows, "runs": lines}) if results == RESULTS else (results / f"{name}.json").write_text(
        json.dumps({**content, "rows": rows, "runs": lines}, indent=1) + "\n", encoding="utf-8"
    )
    draw(lines, COMPARED, results / f"{name}.png")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(COMPARED))
    parser.add_argument("--samplers", nargs="+", choices=list(STEPS), default=list(STEPS), help="others can follow in a later call")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where JSON and plot go")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--minutes", type=float, help="stop then; what is not finished is left out")
    parser.add_argument("--summary", action="store_true", help="only show what is there")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--only-base", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    name = f"frontier_{arguments.scale}"
    place = Place(SCALES[arguments.scale], (arguments.folder or CACHE / name).resolve())
    if arguments.worker:
        work(place, arguments.arms[0], arguments.seeds[0], arguments.samplers, only_base=arguments.only_base)
        return
    place.prepare()
    failed = [] if arguments.summary else orchestrate(place, arguments)
    summary(place, name, failed, arguments.results)


if __name__ == "__main__":
    main()
