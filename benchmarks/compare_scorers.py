"""Which scorer earns its price? Trained networks, the same cuts, the same data, the same recovery.

A residual CNN, a U-Net denoiser and a small DiT denoiser on Fashion-MNIST (see fashion.py), width at 0.8, 0.6 and 0.4, depth at 0.8 and
0.6, three seeds: Kendall's tau to the ablation oracle, held-out loss right after the cut and after an equal recovery, seconds and money.

    OMP_NUM_THREADS=1 python benchmarks/compare_scorers.py                      # about an hour on one core; goes on where it was killed
    OMP_NUM_THREADS=1 python benchmarks/compare_scorers.py --networks cnn --arms magnitude taylor
    OMP_NUM_THREADS=1 python benchmarks/compare_scorers.py --recorded           # a quarter of an hour: a frontier model's answers

With --recorded, the arms are the recorded answers of a frontier language model, their shuffled controls, taylor and the oracle, and the
figures go to compare_recorded.json. The answers with figures are about the weights in benchmarks/networks.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from arms import SimulatedProxy, blocks_only, llm_arms, shuffled, widths_by_block
from common import RESULTS, environment, print_table, save
from fashion import CACHE, SUBJECTS, Subject, batches_of, trained
from matplotlib.figure import Figure
from peer import ARMS as PEERS, peer_cell
from recorded_llm import FIGURES, OnTaylor, RecordedLLM, recorded_arms
from torch import nn

import proxyprune as pp
from proxyprune import Comparison, Recovery, compare
from proxyprune.comparing import Case, Cell, Summary
from proxyprune.comparing.run_comparison import calibration_of
from proxyprune.comparing.values import summarise
from proxyprune.measuring.held_out import Data
from proxyprune.measuring.journal import opened
from proxyprune.scoring import Brief, find

TITLES = {"unet": "U-Net", "dit": "DiT", "cnn": "CNN"}
"""Names of the networks in the plot."""
CASES = (*(Case("width", target) for target in (0.8, 0.6, 0.4)), *(Case("depth", target) for target in (0.8, 0.6)))
RECORDED_CASES = (Case("width", 0.4), Case("depth", 0.8), Case("depth", 0.6))
SEEDS = (0, 1, 2)
BATCH = 32
BATCHES = 24  # for recovery
CALIBRATION = 8  # of them, drawn by seed, for scorers
HELD_OUT = (2, 256)  # batches of images, from the test set
RECOVERY_STEPS = 30

LOCAL = ("magnitude", "taylor", "random", "ablation", "fisher", "block_influence", "wanda", "synflow")
CONTROLS = {
    "random, blocks only": blocks_only(find("random", {})),
    "taylor, widths by block": widths_by_block(find("taylor", {})),
    "taylor, blocks only": blocks_only(find("taylor", {})),
    "simulated proxy 0.8": SimulatedProxy(0.8),
    "simulated proxy 0.4": SimulatedProxy(0.4),
    "magnitude_l1": find("magnitude_l1", {}),
}


@dataclass(frozen=True)
class Setting:
    """A trained network with its data."""

    subject: Subject
    model: nn.Module
    data: Data
    recovery: Recovery

    @classmethod
    def of(cls, subject: Subject) -> Setting:
        """Train the network or take it from the cache."""
        data = Data(
            tuple(batches_of(subject, "train", 50_000, BATCHES, BATCH, seed=1)),
            tuple(batches_of(subject, "t10k", 0, *HELD_OUT, seed=2)),
            subject.loss_fn,
        )
        return cls(subject, trained(subject), data, Recovery(RECOVERY_STEPS, subject.recovery_rate))


def available_arms() -> dict[str, Any]:
    """Every arm that can be measured here; the language model's answers are those in benchmarks/replies."""
    installed = {info.name for info in pp.scorers() if info.error is None}
    return {**{name: find(name, {}) for name in LOCAL if name in installed}, **CONTROLS, **llm_arms(None)}


def frontier_arms(network: str) -> dict[str, Any]:
    """Return recorded answers about one network, alone and on Taylor's channels, their controls, and the scorers to compare with."""
    with_figures = RecordedLLM(network, FIGURES)
    on_channels = (OnTaylor(with_figures), OnTaylor(shuffled(with_figures)))
    standard = {name: find(name, {}) for name in ("taylor", "ablation")}
    return {**standard, **recorded_arms(network), **{arm.name: arm for arm in on_channels}}


def record(setting: Setting, url: str) -> None:
    """Ask the language model what the benchmark will replay."""
    graph = pp.trace(setting.model, setting.subject.example_inputs)
    for name, arm in llm_arms(url).items():
        for seed in SEEDS:
            ranking = pp.score(graph, arm, model=setting.model, seed=seed, brief=Brief(metric="macs"))
            print(f"{setting.subject.name}: {name}, seed {seed}: confidence {ranking.confidence}", flush=True)


def measure(
    setting: Setting, arms: Mapping[str, Any], progress: Any, *, cases: Sequence[Case] = CASES, name: str = "compare"
) -> Comparison:
    """Our arms, cell by cell into the journal `name`."""
    subject = setting.subject
    quality = subject.quality
    return compare(
        setting.model,
        subject.example_inputs,
        arms,
        cases=cases,
        batches=setting.data.batches,
        held_out=setting.data.held_out,
        loss_fn=subject.loss_fn,
        recovery=setting.recovery,
        calibration=CALIBRATION,
        seeds=SEEDS,
        quality=None if quality is None else lambda model: quality[1](model, setting.data.held_out),
        journal=CACHE / f"{name}_{subject.name}.jsonl",
        resume=True,
        progress=progress,
    )


def measure_peers(setting: Setting, progress: Any) -> list[Cell]:
    """torch-pruning's cells, with a journal of their own."""
    subject = setting.subject
    header = {"network": subject.name, "recovery_steps": RECOVERY_STEPS}
    with opened(CACHE / f"compare_{subject.name}_peers.jsonl", "peer comparison", header, resume=True) as journal:
        cells = [Cell.from_dict(entry) for entry in journal.entries]
        done = {(cell.scorer, cell.target, cell.seed) for cell in cells}
        for arm in PEERS:
            for case in (case for case in CASES if case.mode == "width"):
                for seed in SEEDS:
                    if (arm, case.target, seed) in done:
                        continue
                    progress(f"{subject.name}: {arm}, {case}, seed {seed}")
                    scored = calibration_of(setting.data.batches, CALIBRATION, seed)
                    cell = peer_cell(arm, subject, setting.model, float(case.target), seed, setting.data, scored, setting.recovery)
                    journal.append(cell.to_dict())
                    cells.append(cell)
    return cells


def rows_of(name: str, comparison: Comparison, peers: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row for each arm and case."""
    summaries = [*comparison.summary(), *summarise((), peers)]
    base = Summary.of("(unpruned)", Case("width", 1.0), (), comparison.base)
    return [_row(name, summary, comparison.base_macs) for summary in (base, *summaries)]


def _row(name: str, summary: Summary, base_macs: int) -> dict[str, Any]:
    def mean(spread: Any) -> float | None:
        return None if spread is None else round(spread.mean, 4)

    recovered = summary.recovered_loss
    return {
        "network": name,
        "case": str(summary.case),
        "arm": summary.scorer,
        "tau": mean(summary.tau),
        "loss": mean(summary.loss),
        "recovered": mean(recovered),
        "low": None if recovered is None else round(recovered.low, 4),
        "high": None if recovered is None else round(recovered.high, 4),
        "quality": mean(summary.quality),
        "macs": None if summary.macs is None else round(summary.macs.mean / base_macs, 4),
        "seconds": mean(summary.scoring_seconds),
        "dollars": summary.dollars,
        "error": "; ".join(summary.errors)[:200] or None,
    }


def plot(rows: Sequence[Mapping[str, Any]]) -> None:
    """Recovered loss of every arm, one panel for each network and case; bars from the best to the worst seed."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    cases = [str(case) for case in CASES]
    arms = [arm for arm in dict.fromkeys(row["arm"] for row in rows) if arm != "(unpruned)"]
    figure = Figure(figsize=(3.0 * len(cases) + 2.2, 0.24 * len(arms) * len(networks) + 1.4), layout="constrained")
    panels = figure.subplots(len(networks), len(cases), squeeze=False, sharey=True)
    for line, network in zip(panels, networks, strict=True):
        base = next(row["recovered"] for row in rows if row["network"] == network and row["arm"] == "(unpruned)")
        for panel, case in zip(line, cases, strict=True):
            found = {row["arm"]: row for row in rows if row["network"] == network and row["case"] == case}
            best = min((row["recovered"] for row in found.values() if row["recovered"] is not None), default=None)
            for place, arm in enumerate(arms):
                row = found.get(arm)
                if row is None:
                    continue
                if row["recovered"] is None:
                    across = panel.get_yaxis_transform()
                    panel.text(0.5, place, "no network", transform=across, fontsize=6, va="center", ha="center", color="0.5")
                    continue
                colour = "#D55E00" if row["recovered"] == best else "#999999" if arm.startswith(("random", "simulated")) else "#0072B2"
                panel.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.5)
                panel.plot([row["recovered"]], [place], "o", color=colour, markersize=4)
            if best is None:
                panel.set_xticks([])
            else:
                panel.axvline(base, color="0.6", linestyle="--", linewidth=0.8)
            panel.set_title(f"{TITLES.get(network, network)}, {case}", fontsize=9)
            panel.tick_params(labelsize=7)
            panel.grid(axis="x", color="0.92")
            panel.set_ylim(len(arms) - 0.5, -0.5)
        line[0].set_yticks(range(len(arms)), arms, fontsize=7)
    figure.supxlabel(
        "held-out loss after recovery (mean and range over seeds; dashed: unpruned, after the same training; orange: best)",
        fontsize=9,
    )
    figure.savefig(RESULTS / "compare_scorers.png", dpi=130)


def measure_recorded(networks: Sequence[str]) -> None:
    """Measure the recorded answers, and save what was found."""
    rows, details = [], {}
    for subject in (subject for subject in SUBJECTS if subject.name in networks):
        setting = Setting.of(subject)
        arms = frontier_arms(subject.name)
        comparison = measure(setting, arms, lambda text: print(text, flush=True), cases=RECORDED_CASES, name="recorded")
        rows += rows_of(subject.name, comparison, ())
        details[subject.name] = {**comparison.to_dict(), "summary": None}
    print_table("Recorded answers, mean over seeds", [key for key in rows[0] if key not in ("low", "high")], rows)
    cases = [str(case) for case in RECORDED_CASES]
    save("compare_recorded", {"cases": cases, "seeds": SEEDS, "rows": rows, "networks": details} | environment())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="*", default=[subject.name for subject in SUBJECTS])
    parser.add_argument("--arms", nargs="*", default=None, help="only these; all that are available otherwise")
    parser.add_argument("--record", metavar="URL", help="ask the local language model there, keep its answers, and measure nothing")
    parser.add_argument("--recorded", action="store_true", help="measure the recorded answers of a frontier model, and nothing else")
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if chosen.recorded:
        measure_recorded(chosen.networks)
        return
    rows, details = [], {}
    for subject in SUBJECTS:
        if subject.name not in chosen.networks:
            continue
        setting = Setting.of(subject)
        if chosen.record:
            record(setting, chosen.record)
            continue
        arms = {name: arm for name, arm in available_arms().items() if chosen.arms is None or name in chosen.arms}
        comparison = measure(setting, arms, lambda text, name=subject.name: print(f"{name}: {text}", flush=True))
        peers = measure_peers(setting, lambda text: print(text, flush=True))
        rows += rows_of(subject.name, comparison, peers)
        details[subject.name] = {**comparison.to_dict(), "summary": None, "peers": [cell.to_dict() for cell in peers]}
    if chosen.record:
        return
    print_table("Scorers, mean over seeds", [key for key in rows[0] if key not in ("low", "high")], rows)
    save("compare_scorers", {"cases": [str(case) for case in CASES], "seeds": SEEDS, "rows": rows, "networks": details} | environment())
    plot(rows)


if __name__ == "__main__":
    main()
