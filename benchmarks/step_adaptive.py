"""The experiment: step-adaptive diffusion against one full-size model at equal training compute, on Fashion-MNIST.

    python benchmarks/step_adaptive.py                       # seed 0, all arms; stop and start it as you like
    python benchmarks/step_adaptive.py --seeds 0 1 2         # the whole experiment
    python benchmarks/step_adaptive.py --arms base formula_80 --seeds 0
    python benchmarks/step_adaptive.py --prediction v_prediction --seeds 0 1 2    # the same with a base that predicts v
    python benchmarks/step_adaptive.py --size 28 --arms base measured_80           # the confirmation at full size
    python benchmarks/step_adaptive.py --tiny                # proves that everything runs, in minutes
    python benchmarks/step_adaptive.py --summary             # table, plots and JSON of what is there

The network predicts noise, as in the published method (arXiv:2312.13307), unless told otherwise; results of another prediction go
into files of their own. Runs lie in benchmarks/.cache/step_adaptive (or --folder). Training resumes from checkpoints, sampling from
chunks of images; every finished evaluation is one line of evaluations.jsonl. Nothing is done twice: a new folder takes over the
evaluations of the committed result file, if that has the same numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, environment, print_table, save
from step_adaptive_plots import draw

from proxyprune.diffusion import StepAdaptiveConfig, StepAdaptivePipeline, StepAdaptiveTrainer, evaluate, load_features
from proxyprune.diffusion.data.image_data import load_data
from proxyprune.diffusion.data.write_images import grid, save_picture
from proxyprune.diffusion.evaluation.metrics import frechet_distance
from proxyprune.diffusion.run_folder import RunFolder

CACHE = Path(__file__).parent / ".cache" / "step_adaptive"
NETWORK: Mapping[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 16,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [4, 8, 16],
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "attention_head_dim": 8,
    "norm_num_groups": 2,
}


@dataclass(frozen=True)
class Experiment:
    """Every number of the experiment; written beside the results.

    Attributes:
        steps: Optimizer steps of the full base; every arm may cost as much.
        batch_size: Images of a step.
        base_share: Share of the compute for the base that the experts start from.
        images: Samples of each evaluation.
        samplers: Name and steps.
        sampling_batch: Images at a time.
        chunk: Images between two saves.
        common: Settings of all arms.
    """

    steps: int = 8000
    batch_size: int = 64
    base_share: float = 0.4
    images: int = 10000
    samplers: tuple[tuple[str, int], ...] = (("dpm++", 20), ("ddim", 50))
    sampling_batch: int = 250
    chunk: int = 1000
    common: Mapping[str, Any] = field(
        default_factory=lambda: {
            "noise.schedule": "squaredcos_cap_v2",
            "noise.prediction": "epsilon",
            "data.source": "fashion-mnist",
            "data.size": 16,
            "intervals.count": 4,
            "intervals.method": "equal-db",
            "base.learning_rate": 1e-2,
            "base.decay": "constant",
            "base.warmup": 0.03,
            "base.ema": 0.999,
            "experts.learning_rate": 1e-2,
            "experts.warmup": 0.03,
            "experts.ema": 0.998,
            "experts.weighting": "relative",
            "pruning.scorer": "taylor",
            "pruning.rounds": 2,
            "pruning.calibration_batches": 8,
            "budgets.sampler_steps": 50,
            "budgets.trial_steps": 33,
            "budgets.trial_images": 1024,
            "budgets.damage": "relative",
            "budgets.damage_per": "step",
            "compute.between_share": 0.3,
            "run.checkpoint_every": 1000,
            "run.log_every": 50,
            "run.loss_bins": 20,
            "run.loss_images": 256,
            "run.cpu": True,
        }
    )


TINY = Experiment(
    steps=150,
    batch_size=16,
    images=40,
    samplers=(("dpm++", 4), ("ddim", 5)),
    sampling_batch=20,
    chunk=20,
    common=dict(Experiment().common)
    | {"pruning.calibration_batches": 1, "pruning.calibration_images": 16}
    | {"intervals.count": 3, "run.checkpoint_every": 20, "run.log_every": 10},
)


TINY_TRIALS: Mapping[str, Any] = {"budgets.trial_steps": 1, "budgets.trial_images": 32}


@dataclass(frozen=True)
class Arm:
    """One way to spend the compute.

    Attributes:
        what: For the table.
        changes: Settings.
        shared: Starts from the base that several arms share.
        compute: Share of the reference's compute that the arm may spend.
    """

    what: str
    changes: Mapping[str, Any]
    shared: bool = True
    compute: float = 1.0


_WHOLE = {"compute.base_share": 1.0, "base.decay": "cosine"}
# Budgets are met for 50 steps of DDIM; one point lower, 20 steps of DPM-Solver++, which stand elsewhere, meet them too.
_MEASURED = {
    "budgets.method": "measured",
    "budgets.trial_images": 512,
    "budgets.sizes": [0.5, 0.35],
    "budgets.damage_per": "interval",
}
_MEASURED_80 = {**_MEASURED, "budgets.target": 0.79}
_FORMULA_80 = {"budgets.method": "formula", "budgets.target": 0.79, "budgets.capacity": "clean"}
_SINGLE_80 = {"intervals.count": 1, "budgets.method": "even", "budgets.target": 0.79}
_ENERGY = {"intervals.method": "complexity", "intervals.monitor": "energy", "intervals.exponent": 0.5}
ARMS: Mapping[str, Arm] = {
    "base": Arm("full base", _WHOLE, shared=False),
    "experts_full": Arm("full-size experts", {"budgets.method": "full"}),
    "formula_80": Arm("formula, 80 %", _FORMULA_80),
    "formula_80_compensated": Arm("formula, 80 %, compensated cuts", {**_FORMULA_80, "pruning.compensate": True}),
    "formula_50_compensated": Arm("formula, 50 %, compensated cuts", {**_FORMULA_80, "budgets.target": 0.49, "pruning.compensate": True}),
    "measured_80": Arm("measured, 80 %", _MEASURED_80),
    "measured_80_step": Arm("measured by sampler step, 80 %", {**_MEASURED_80, "budgets.damage_per": "step"}),
    "measured_50": Arm("measured, 50 %", {**_MEASURED, "budgets.target": 0.49}),
    "formula_50": Arm("formula, 50 %", {**_FORMULA_80, "budgets.target": 0.49}),
    "single_full": Arm("one full-size model, relative weights", {"intervals.count": 1, "budgets.method": "full"}),
    "single_80": Arm("one pruned model, 80 %", _SINGLE_80),
    "single_80_plain": Arm("one pruned model, 80 %, plain weights", {**_SINGLE_80, "experts.weighting": "plain"}),
    "single_50": Arm("one pruned model, 50 %", {**_SINGLE_80, "budgets.target": 0.49}),
    "formula_80_noisy": Arm("formula, 80 %, order reversed", {**_FORMULA_80, "budgets.capacity": "noisy"}),
    "formula_80_random": Arm("formula, 80 %, random scorer", {**_FORMULA_80, "pruning.scorer": "random"}),
    "measured_80_distil": Arm("measured, 80 %, distilled", {**_MEASURED_80, "experts.teacher": "base", "experts.teacher_weight": 0.3}),
    "energy_full": Arm("full-size experts, intervals of equal energy", {"budgets.method": "full", **_ENERGY}),
    "energy_80": Arm("formula, intervals of equal energy, 80 %", {**_FORMULA_80, **_ENERGY}),
    "burden_80": Arm(
        "budgets by energy, equal dB, 80 %", {**_FORMULA_80, **_ENERGY, "intervals.method": "equal-db", "budgets.method": "complexity"}
    ),
    "base_60": Arm("full base, 60 % of the training", _WHOLE, shared=False, compute=0.6),
    "base_125": Arm("full base, 125 % of the training", _WHOLE, shared=False, compute=1.25),
}


FOR_V: Mapping[str, Any] = {"intervals.count": 2, "budgets.trial_steps": 67}
"""Settings of a network that predicts v; found on seed 0, see docs/benchmarks/step-adaptive.md."""
TURNS = 5
"""How often each pipeline is timed."""


@dataclass(frozen=True)
class Bench:
    """Where the experiment lives.

    Attributes:
        experiment: The numbers.
        folder: Runs and results.
        overrides: Settings that take the place of an arm's own.
    """

    experiment: Experiment
    folder: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def network(self) -> dict[str, Any]:
        """Settings of the denoiser, for the size of the images."""
        return dict(NETWORK) | {"sample_size": self.experiment.common["data.size"]}

    def config(self, arm: Arm, seed: int) -> StepAdaptiveConfig:
        network = self.folder / "network.json"
        values = dict(self.experiment.common) | {
            "model": os.path.relpath(network),
            "seed": seed,
            "run.batch_size": self.experiment.batch_size,
            "compute.reference_steps": round(self.experiment.steps * arm.compute),
            "compute.base_share": self.experiment.base_share,
        }
        return StepAdaptiveConfig.preset("fashion16").with_values(
            {"experts.teacher_weight": 0.3} | values | dict(arm.changes) | dict(self.overrides)
        )

    def run(self, name: str, seed: int) -> Path:
        return self.folder / f"seed-{seed}" / name

    def lines(self) -> list[dict[str, Any]]:
        """Return the finished evaluations of the present arms; an arm with other settings is another arm."""
        path = self.folder / "evaluations.jsonl"
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
        now = {name: json.loads(json.dumps(arm.changes)) for name, arm in ARMS.items()}
        return [line | {"what": ARMS[line["arm"]].what} for line in found if line.get("changes") == now.get(line["arm"])]

    def add(self, line: Mapping[str, Any]) -> None:
        with (self.folder / "evaluations.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(line)) + "\n")

    def adopt(self, result: Path) -> None:
        """Take over what a result file has, where nothing is there yet and every number of the experiment is the same."""
        if (self.folder / "evaluations.jsonl").is_file() or not result.is_file():
            return
        found = json.loads(result.read_text(encoding="utf-8"))
        numbers = json.loads(json.dumps({"experiment": asdict(self.experiment), "network": self.network}))
        if all(found[key] == value for key, value in numbers.items()):
            for line in found["runs"]:
                self.add({"commit": found["environment"]["commit"]} | line)
            print(f"{len(found['runs'])} evaluations taken over from {result.name}", flush=True)

    def done(self, name: str, seed: int, sampler: str) -> bool:
        return any((line["arm"], line["seed"], line["sampler_name"]) == (name, seed, sampler) for line in self.lines())

    def arm(self, name: str, seed: int) -> None:
        """Train an arm, as far as that is still to be done, and evaluate it."""
        arm = ARMS[name]
        if all(self.done(name, seed, sampler) for sampler, _ in self.experiment.samplers):
            return
        base = self.shared_base(seed) if arm.shared else None
        started = time.perf_counter()
        trainer = StepAdaptiveTrainer(self.config(arm, seed), self.run(name, seed), base=base)
        pipeline = trainer.train()
        print(f"{name}, seed {seed}: trained in {time.perf_counter() - started:.0f} s", flush=True)
        for sampler, steps in self.experiment.samplers:
            if not self.done(name, seed, sampler):
                self.judge(name, seed, sampler, steps, trainer, pipeline)

    def shared_base(self, seed: int) -> Path:
        """Return the base that experts start from: of the arm with full-size experts, which trains it first."""
        run = self.run("experts_full", seed)
        trainer = StepAdaptiveTrainer(self.config(ARMS["experts_full"], seed), run)
        trainer.train_base()
        return run

    def judge(self, name: str, seed: int, sampler: str, steps: int, trainer: StepAdaptiveTrainer, pipeline: StepAdaptivePipeline) -> None:
        pipeline.use(sampler)
        images, seconds = self.samples(self.run(name, seed) / f"samples-{sampler}", pipeline, steps, seed)
        data, schedule = trainer.setup.data, trainer.setup.schedule
        found = evaluate(
            pipeline,
            data,
            load_features("fashion-mnist"),
            images=len(images),
            steps=steps,
            seed=seed,
            schedule=schedule,
            images_given=images,
            seconds_given=seconds,
        )
        save_picture(grid(images[:64], scale=3), self.run(name, seed) / f"grid-{sampler}.png")
        ledger = trainer.ledger()
        line = {"arm": name, "what": ARMS[name].what, "seed": seed, "sampler_name": sampler, **found.to_dict()}
        line |= {
            "changes": dict(ARMS[name].changes),
            "commit": environment()["commit"],
            "scheduler": dict(pipeline.scheduler.config) | {"class": type(pipeline.scheduler).__name__},
            "brightness": float(images.float().mean()),
            "training_macs": ledger.spent_macs,
            "reference_macs": self.reference(trainer),
            "base_macs": trainer.setup.base_macs,
        }
        line |= {
            "budgets": list(trainer.layout().budgets.fractions),
            "loss_by_snr": loss_by_snr(self.run(name, seed)),
            "ledger": ledger.by_stage(),
        }
        if (measured := trainer.layout().measured) is not None:
            line["measured"] = measured.to_dict()
        self.add(line)
        print(f"{name}, seed {seed}, {sampler}: Frechet {found.frechet.value:.3f} at {found.relative_macs:.1%}", flush=True)

    def reference(self, trainer: StepAdaptiveTrainer) -> int:
        return 3 * trainer.setup.base_macs * self.experiment.steps * self.experiment.batch_size

    def samples(self, folder: Path, pipeline: StepAdaptivePipeline, steps: int, seed: int) -> tuple[torch.Tensor, float]:
        """Images in chunks that are kept; with the seconds that all take at the pace of the median chunk, whatever interrupted others."""
        folder.mkdir(parents=True, exist_ok=True)
        parts, paces, size = [], [], self.experiment.chunk
        for number in range(-(-self.experiment.images // size)):
            path = folder / f"{number:03d}.npz"
            if not path.is_file():
                count = min(size, self.experiment.images - number * size)
                started = time.perf_counter()
                # Chunks differ in their seed; within a chunk, images differ by their place.
                found = pipeline.generate(count, steps=steps, batch_size=self.experiment.sampling_batch, seed=seed * 100000 + number)
                temporary = folder / f".{number:03d}.npz"
                np.savez(temporary, images=found.numpy(), seconds=time.perf_counter() - started)
                temporary.replace(path)
            with np.load(path, allow_pickle=False) as archive:
                parts.append(torch.from_numpy(archive["images"]))
                paces.append(float(archive["seconds"]) / len(parts[-1]))
        return torch.cat(parts), statistics.median(paces) * self.experiment.images


def loss_by_snr(run: Path) -> list[list[float]]:
    """[SNR in dB, held-out loss] of the network at work, in bins of timesteps; the trainer has measured it."""
    bins = json.loads(RunFolder(run).losses.read_text(encoding="utf-8"))["bins"]
    return [[entry["snr_db"][1], entry["base"] if entry["expert"] is None else entry["expert"]] for entry in bins]


def summary(bench: Bench, name: str) -> None:
    """Table, plots and JSON over the seeds that are there."""
    lines = bench.lines()
    if not lines:
        print("Nothing is finished yet.")
        return
    rows, seconds = [], paces(bench, RESULTS / f"{name}.json")
    for arm in ARMS:
        for sampler, steps in bench.experiment.samplers:
            found = [line for line in lines if line["arm"] == arm and line["sampler_name"] == sampler]
            if not found:
                continue
            values = [line["frechet"]["value"] for line in found]
            rows.append(
                {
                    "arm": arm,
                    "sampler": f"{sampler} {steps}",
                    "seeds": len(found),
                    "FD": statistics.mean(values),
                    "spread": max(values) - min(values),
                    "KID": statistics.mean(line["kid"]["value"] for line in found),
                    "brightness": statistics.mean(line["brightness"] for line in found),
                    "sampling": f"{statistics.mean(line['relative_macs'] for line in found):.1%}",
                    "ms/image": 1000 * seconds[arm][sampler] if arm in seconds else None,
                    "training": f"{statistics.mean(line['training_macs'] / line['reference_macs'] for line in found):.1%}",
                    "parameters": found[0]["params"],
                }
            )
    print_table(f"Fashion-MNIST, {bench.network['sample_size']} pixels, equal training compute", list(rows[0]), rows)
    in_order = sorted(lines, key=lambda line: list(ARMS).index(line["arm"]))
    draw(in_order, bench.experiment.samplers, bench.run, RESULTS / name)
    numbers = {"experiment": asdict(bench.experiment), "network": bench.network, "real_images": real_images(bench)}
    numbers["images_of_a_seed"] = f"chunk number k of {bench.experiment.chunk} images is drawn with the seed 100000 * seed + k"
    save(name, {"environment": environment(), **numbers, "rows": rows, "seconds_per_image": seconds, "runs": lines})


def paces(bench: Bench, before: Path) -> dict[str, dict[str, float]]:
    """Seconds an image by arm and sampler, of the seed with most pipelines here; arms take turns, so that they meet the same machine.

    What another machine measured stays until all of its arms are here.
    """
    known = json.loads(before.read_text(encoding="utf-8")).get("seconds_per_image", {}) if before.is_file() else {}
    seeds = sorted({line["seed"] for line in bench.lines()})
    places = [{arm: bench.run(arm, seed) / "pipeline" for arm in ARMS if (bench.run(arm, seed) / "pipeline").is_dir()} for seed in seeds]
    found = max((place for place in places if "base" in place), key=len, default={})
    if not found or len(found) < len(known):
        return known
    pipelines = {arm: StepAdaptivePipeline.from_pretrained(place) for arm, place in found.items()}
    size, result = bench.experiment.sampling_batch, {arm: {} for arm in found}
    for sampler, steps in bench.experiment.samplers:
        times: dict[str, list[float]] = {arm: [] for arm in found}
        for turn in range(TURNS):
            for arm, pipeline in pipelines.items():
                started = time.perf_counter()
                pipeline.use(sampler).generate(size, steps=steps, batch_size=size, seed=turn)
                times[arm].append((time.perf_counter() - started) / size)
        for arm in found:
            result[arm][sampler] = statistics.median(times[arm])
    return result


def real_images(bench: Bench) -> dict[str, float]:
    """Return the same figures of as many real training images in place of samples: what a perfect denoiser would reach."""
    data, features = load_data(bench.config(ARMS["base"], 0).data), load_features("fashion-mnist")
    real = data.train[: bench.experiment.images]
    distance = frechet_distance(features.of(data.held_out), features.of(real))
    return {"frechet": distance, "brightness": float(real.float().mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, help="optimizer steps of the full base")
    parser.add_argument("--images", type=int, help="samples of each evaluation")
    parser.add_argument("--prediction", choices=("epsilon", "v_prediction"), default="epsilon", help="what the network predicts")
    parser.add_argument("--size", type=int, choices=(16, 28), default=16, help="pixels along a side")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--summary", action="store_true", help="only show what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    experiment = TINY if arguments.tiny else Experiment()
    name = "step_adaptive" + ("" if arguments.prediction == "epsilon" else "_v")
    name += ("" if arguments.size == 16 else f"_{arguments.size}") + ("_tiny" if arguments.tiny else "")
    chosen = {key: value for key, value in (("steps", arguments.steps), ("images", arguments.images)) if value is not None}
    common = dict(experiment.common) | {"noise.prediction": arguments.prediction, "data.size": arguments.size}
    common |= FOR_V if arguments.prediction == "v_prediction" else {}
    experiment = replace(experiment, common=common, **chosen)
    bench = Bench(experiment, arguments.folder or CACHE.with_name(name), TINY_TRIALS if arguments.tiny else {})
    bench.folder.mkdir(parents=True, exist_ok=True)
    (bench.folder / "network.json").write_text(json.dumps(bench.network), encoding="utf-8")
    frozen, text = bench.folder / "experiment.json", json.dumps(asdict(experiment), indent=1)
    if frozen.is_file() and frozen.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{bench.folder} holds an experiment with other numbers; choose another --folder.")
    frozen.write_text(text, encoding="utf-8")
    bench.adopt(RESULTS / f"{name}.json")
    if not arguments.summary:
        for seed in arguments.seeds:
            for arm in arguments.arms:
                bench.arm(arm, seed)
    summary(bench, name)


if __name__ == "__main__":
    main()
