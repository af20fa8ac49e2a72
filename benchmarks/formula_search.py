"""Does a formula that was found on one network help on others? The three networks of the scorer benchmark, at 0.4 of their MACs.

On each network in turn, `search --proposer formula` looks for a formula, with three seeds. The arms have equal numbers of measurements, and
begin with the same known formulas: bred formulas, and random ones as the control. Each measurement follows a short recovery and uses a
held-out split of the search. The best formula is then judged on all three networks, on test images that no search used, after a longer
recovery that is the same for all, beside the known formulas, which need no search.

    OMP_NUM_THREADS=1 nice -n 5 python benchmarks/formula_search.py       # goes on where it was killed
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from common import environment, print_table, save
from fashion import CACHE, SUBJECTS, Subject, batches_of, trained

import proxyprune as pp
from proxyprune import Recovery
from proxyprune.comparing.values import Spread
from proxyprune.measuring.held_out import Data, held_out_loss, recovered
from proxyprune.measuring.journal import Journal, opened
from proxyprune.scoring import FormulaScorer
from proxyprune.searching import FormulaProposer
from proxyprune.searching.proposers.formula import KNOWN

TARGET = 0.4
SEEDS = (0, 1, 2)
MEASUREMENTS = 16
SEARCH_STEPS, FINAL_STEPS = 10, 40
CALIBRATION = 8
ARMS = {"bred": FormulaProposer(), "random": FormulaProposer(breed=False)}
BY_NAME = {subject.name: subject for subject in SUBJECTS}
TAYLOR, MAGNITUDE = "wg", "w"


def searched_data(subject: Subject, seed: int) -> Data:
    """Return what a search sees: batches to learn from, and batches to choose by."""
    learning = tuple(batches_of(subject, "train", 50_000 + 1024 * seed, CALIBRATION, 32, seed=10 + seed))
    return Data(learning, tuple(batches_of(subject, "train", 56_000 + 512 * seed, 2, 192, seed=20 + seed)), subject.loss_fn)


def final_data(subject: Subject, seed: int) -> Data:
    """Return what formulas are judged with: the batches of that seed to learn from, and test images."""
    untouched = tuple(batches_of(subject, "t10k", 5_000, 4, 256, seed=30))
    learning = tuple(batches_of(subject, "train", 50_000 + 1024 * seed, 24, 32, seed=10 + seed))
    return Data(learning, untouched, subject.loss_fn)


def search(network: str, arm: str, seed: int) -> dict[str, Any]:
    """Return what one search found."""
    subject, started = BY_NAME[network], time.process_time()
    data = searched_data(subject, seed)
    result = pp.search(
        trained(subject),
        subject.example_inputs,
        TARGET,
        ARMS[arm],
        rounds=MEASUREMENTS,
        start="taylor",
        recovery=Recovery(SEARCH_STEPS, subject.recovery_rate),
        batches=data.batches,
        held_out=data.held_out,
        loss_fn=data.loss_fn,
        seed=seed,
    )
    rounds = [{"formula": entry.formula, "loss": entry.loss, "verdict": entry.verdict} for entry in result.rounds]
    return {
        "what": "search",
        "network": network,
        "arm": arm,
        "seed": seed,
        "formula": result.formula or TAYLOR,
        "measurements": result.measurements,
        "search_loss": result.loss,
        "start_loss": result.start_loss,
        "rounds": rounds,
        "processor_seconds": time.process_time() - started,
    }


def judge(network: str, formula: str, seed: int) -> dict[str, Any]:
    """Return the losses of one formula on one network, on images that no search used."""
    subject, model = BY_NAME[network], trained(BY_NAME[network])
    data, calibration = final_data(subject, seed), searched_data(subject, seed).batches
    result = pp.prune(
        model, subject.example_inputs, TARGET, FormulaScorer(formula), batches=calibration, loss_fn=subject.loss_fn, seed=seed
    )  # fmt: skip
    after = recovered(result.model, data, Recovery(FINAL_STEPS, subject.recovery_rate), seed)
    return {
        "what": "judged",
        "network": network,
        "formula": formula,
        "seed": seed,
        "macs": result.plan.macs,
        "cut_loss": held_out_loss(result.model, data, seed=0),
        "loss": held_out_loss(after, data, seed=0),
    }


def once(journal: Journal, entries: list[dict[str, Any]], key: Mapping[str, Any], make: Any) -> dict[str, Any]:
    """Return an entry that is known, or make and keep it."""
    known = next((entry for entry in entries if all(entry.get(name) == value for name, value in key.items())), None)
    if known is None:
        known = make()
        print({name: value for name, value in known.items() if name != "rounds"}, flush=True)
        journal.append(known)
        entries.append(known)
    return known


def summary(searches: Sequence[Mapping[str, Any]], judged: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each network that is judged and each origin of a formula; gains are paired with taylor at the same seed."""
    losses = {(entry["network"], entry["formula"], entry["seed"]): entry["loss"] for entry in judged}
    rows = []
    for network in BY_NAME:
        origins: dict[tuple[str, str], dict[int, str]] = {("-", name): dict.fromkeys(SEEDS, text) for text in KNOWN for name in [text]}
        for one in searches:
            origins.setdefault((one["network"], one["arm"]), {})[one["seed"]] = one["formula"]
        for (found_on, arm), formulas in origins.items():
            own = [losses[network, text, seed] for seed, text in formulas.items()]
            relative = [1.0 - losses[network, text, seed] / losses[network, TAYLOR, seed] for seed, text in formulas.items()]
            loss, gain = Spread.of(own), Spread.of(relative)
            if loss is not None and gain is not None:
                spread = {"loss": loss.mean, "loss_low": loss.low, "loss_high": loss.high}
                gains = {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
                won = f"{sum(value > 0 for value in relative)} of {len(relative)}"
                rows.append({"judged_on": network, "found_on": found_on, "formulas": arm, **spread, **gains, "seeds_won": won})
    return rows


def transfer(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each origin: mean gain over taylor on the other two networks, and on the same one."""
    found = []
    for found_on, arm in dict.fromkeys((row["found_on"], row["formulas"]) for row in rows):
        own = [row for row in rows if (row["found_on"], row["formulas"]) == (found_on, arm)]
        same = [row["gain"] for row in own if row["judged_on"] == found_on]
        others = [row["gain"] for row in own if row["judged_on"] != found_on]
        found.append(
            {"found_on": found_on, "formulas": arm, "gain_same": same[0] if same else None, "gain_others": statistics.mean(others)}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--networks", nargs="*", choices=tuple(BY_NAME), default=list(BY_NAME), help="search on these")
    chosen = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    header = {"target": TARGET, "measurements": MEASUREMENTS, "search_recovery": SEARCH_STEPS, "final_recovery": FINAL_STEPS}
    CACHE.mkdir(exist_ok=True)
    with opened(CACHE / "formula_search.jsonl", "formula search benchmark", header, resume=True) as journal:
        entries = [dict(entry) for entry in journal.entries]
        searches = []
        for seed, network, arm in itertools.product(SEEDS, chosen.networks, ARMS):
            key = {"what": "search", "network": network, "arm": arm, "seed": seed}
            searches.append(once(journal, entries, key, lambda n=network, a=arm, s=seed: search(n, a, s)))
        judged = []
        for seed in SEEDS:
            formulas = dict.fromkeys([*KNOWN, *(one["formula"] for one in searches if one["seed"] == seed)])
            for network, text in itertools.product(BY_NAME, formulas):
                key = {"what": "judged", "network": network, "formula": text, "seed": seed}
                judged.append(once(journal, entries, key, lambda n=network, t=text, s=seed: judge(n, t, s)))
    rows = summary(searches, judged)
    transfers = transfer(rows)
    print_table("Loss on test images after recovery", tuple(rows[0]), rows)
    print_table("Gain over taylor", tuple(transfers[0]), transfers)
    save("formula_search", {**header, "rows": rows, "transfer": transfers, "searches": searches, "judged": judged} | environment())


if __name__ == "__main__":
    main()
