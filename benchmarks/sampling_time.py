"""Does sampling time follow MACs? A base U-Net against step-adaptive experts at 80 % and 50 %, batch 64, taking turns in one process.

    python benchmarks/sampling_time.py
    python benchmarks/sampling_time.py --compile             # the same under torch.compile; half a minute more for each network

The last two variants have a budget of time, with default settings (`budgets.metric=time`); their gap is to the time that was asked for.

Times are processor time of the one thread that computes, so that other work on the machine does not count; wall time is in the JSON too.
Weights are random and pruned by magnitude, which changes no time. The profile says where the time of each goes by op.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import environment, print_table, save
from torch import nn
from torch.profiler import ProfilerActivity, profile

import proxyprune as pp
from proxyprune.diffusion import NoiseConfig, NoiseSchedule
from proxyprune.diffusion.networks import MODELS, from_record
from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.intervals import equal_db
from proxyprune.diffusion.process.noise_schedule import training_scheduler
from proxyprune.diffusion.sampling.denoise import ExpertSampler, image_generators, initial_noise
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.sampling.schedulers import sampler

BATCH = 64
COUNT = 4


TIME = 0
"""In place of a multiple of channels: the fraction is one of the time, with default settings."""


def experts(network: nn.Module, inputs: dict[str, torch.Tensor], fraction: float, round_to: int, count: int, *, compiled: bool) -> Experts:
    """Every interval gets the same fraction: the ratio of MACs is then that of each step."""
    if fraction == 1.0:
        return Experts.of([network] * count, [pp.trace(network, inputs).macs] * count)
    if round_to == TIME:
        timing = pp.Timing(batch=BATCH, threads=1, compiled=compiled)
        result = pp.prune(network, inputs, target=fraction, metric="time", timing=timing, accept_missed_time=True)
    else:
        result = pp.prune(network, inputs, target=fraction, round_to=round_to)
    return Experts.of([result.model.eval()] * count, [result.plan.macs] * count)


def profiled(run: Any) -> list[dict[str, Any]]:
    """Return the ops that take most of the time, milliseconds by op."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        run()
    rows = sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)[:10]
    return [{"op": row.key, "ms": row.self_cpu_time_total / 1000, "calls": row.count} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(MODELS), default="fashion16")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch._dynamo.config.recompile_limit = 64  # every network compiles the same forward; beyond the limit of 8 they would run eagerly
    size, build = MODELS[arguments.model]
    kind, settings = build(1, size, 0)
    network = from_record({"class": kind, "config": settings}).eval()
    inputs = {"sample": torch.zeros(1, 1, size, size), "timestep": torch.zeros(1, dtype=torch.long)}
    config = NoiseConfig(schedule="squaredcos_cap_v2")
    variants = {
        "base": (1.0, 1),
        "80 %": (0.8, 1),
        "50 %": (0.5, 1),
        "80 %, widths in eights": (0.8, 8),
        "50 %, widths in eights": (0.5, 8),
        "80 %, widths in sixteens": (0.8, 16),
        "50 %, widths in sixteens": (0.5, 16),
        "80 % of the time": (0.8, TIME),
        "50 % of the time": (0.5, TIME),
    }
    if arguments.compile:
        variants = {name: value for name, value in variants.items() if value[1] != 8}
    count = 1 if arguments.compile else COUNT  # every expert would be compiled for itself
    intervals = equal_db(NoiseSchedule.of(config), count)
    samplers = {}
    for name, (fraction, round_to) in variants.items():
        found = experts(network, inputs, fraction, round_to, count, compiled=arguments.compile)
        found.compile_options = {} if arguments.compile else None
        samplers[name] = ExpertSampler(found, intervals, Calling("sample", "timestep", None), sampler("ddim", training_scheduler(config)))
    generators = image_generators(0, 0, BATCH)
    noise = initial_noise(generators, (1, size, size), torch.device("cpu"))

    def seconds(name: str) -> float:
        started, wall = time.process_time(), time.perf_counter()
        samplers[name].denoise(noise, arguments.steps, None, generators)
        walls[name].append(time.perf_counter() - wall)
        return time.process_time() - started

    walls: dict[str, list[float]] = {name: [] for name in variants}

    for name in variants:
        seconds(name)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name in variants:
            times[name].append(seconds(name))
    rows = []
    for name in variants:
        ratios = [own / base for own, base in zip(times[name], times["base"], strict=True)]
        macs = samplers[name].macs(arguments.steps) / samplers["base"].macs(arguments.steps)
        low, _, high = statistics.quantiles(ratios, n=4)
        asked, multiple = variants[name]
        row = {"network": name, "MACs": macs, "time": statistics.median(ratios), "low": low, "high": high}
        row["gap"] = row["time"] - (asked if multiple == TIME else macs)
        rows.append(row | {"ms/image": 1000 * statistics.median(times[name]) / BATCH})
    print_table(f"{arguments.model}, batch {BATCH}, {arguments.steps} steps of DDIM, one thread", list(rows[0]), rows)
    profiles = {}
    if not arguments.compile:
        for name in ("base", "80 %", "50 %", "80 %, widths in sixteens", "50 %, widths in sixteens"):
            profiles[name] = profiled(lambda name=name: samplers[name].denoise(noise, arguments.steps, None, generators))
    for name, ops in profiles.items():
        print_table(f"{arguments.steps} steps of {name}", ["op", "ms", "calls"], ops)
    suffix = "_compiled" if arguments.compile else ""
    content = {"model": arguments.model, "batch": BATCH, "steps": arguments.steps, "rounds": arguments.rounds, "seed": 0, "threads": 1}
    save(
        f"sampling_time{suffix}",
        {
            "environment": environment(),
            **content,
            "rows": rows,
            "processor_seconds": times,
            "wall_seconds": walls,
            "profile": profiles,
        },
    )


if __name__ == "__main__":
    main()
