"""Committed data of the benchmarks: weights are what was committed, and recorded answers fit the networks that they are about."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import proxyprune as pp
from proxyprune.searching import History

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import fashion  # noqa: E402  a script's neighbour, found through the path above
import recorded_llm  # noqa: E402


@pytest.mark.parametrize("subject", fashion.SUBJECTS, ids=lambda subject: subject.name)
def test_committed_networks_are_used(subject):
    """`trained` loads the committed weights, all of them, without training."""
    model = fashion.trained(subject)
    assert not model.training
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    untrained = subject.build()
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, untrained.state_dict()[name])]
    assert len(changed) > 20


def test_changed_weights_are_rejected(tmp_path):
    """A file with another hash, or none, ends the benchmark."""
    with pytest.raises(SystemExit, match="no file"):
        fashion.committed("cnn", tmp_path)
    (tmp_path / "cnn.safetensors").write_bytes(b"other")
    with pytest.raises(SystemExit, match="not what was committed"):
        fashion.committed("cnn", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("subject", fashion.SUBJECTS, ids=lambda subject: subject.name)
def test_recorded_answers_fit_the_networks(subject):
    """Five answers a question agree as their README says, and name no model; the control has the same scores in another order."""
    graph = pp.trace(fashion.trained(subject), subject.example_inputs, probe=False)
    arms = recorded_llm.recorded_arms(subject.name)
    assert len(arms) == 4
    assert all("recorded, model not named" in name for name in arms)
    found = [pp.score(graph, arm, seed=1) for arm in arms.values()]
    for ranking, control in (found[:2], found[2:]):
        assert 0.795 < ranking.confidence < 0.935
        assert ranking.unreliable is None
        assert sorted(ranking.scores.values()) == pytest.approx(sorted(control.scores.values()))
        assert abs(stats.kendalltau(list(ranking.scores.values()), list(control.scores.values())).statistic) < 0.5


def test_every_recorded_answer_is_complete():
    """Each prompt has an answer with a score from 0 to 10 for each of its labels."""
    prompts = sorted(recorded_llm.FRONTIER.rglob("*.prompt.txt"))
    assert len(prompts) == 30 + 22
    for path in prompts:
        labels = re.findall(r"^(b\d+) at \d+/\d+ ", path.read_text(encoding="utf-8"), re.MULTILINE)
        scores = json.loads(path.with_name(path.name.replace(".prompt.txt", ".answer.json")).read_text(encoding="utf-8"))["scores"]
        assert sorted(scores) == sorted(labels)
        assert np.isin(list(scores.values()), range(11)).all()


@pytest.mark.parametrize("control", [False, True])
def test_a_recorded_search_is_replayed_round_by_round(control):
    """Eleven answers a seed, in the order of their rounds; the control hands the same scores to other blocks, and repeats."""
    subject = next(subject for subject in fashion.SUBJECTS if subject.name == "unet")
    graph = pp.trace(fashion.trained(subject), subject.example_inputs, probe=False)
    start = pp.score(graph, "random")
    answers = [values for values, _ in recorded_llm.searched(0)]
    assert len(answers) == len(recorded_llm.searched(1)) == 11
    assert answers != [values for values, _ in recorded_llm.searched(1)]
    proposer = recorded_llm.RecordedProposer(0, control=control)
    for number, wanted in enumerate(answers, 1):
        history = History(graph, pp.ScoringContext(), "width", start, (None,) * number)
        proposed = list(proposer.propose(history).scores.values())
        assert sorted(proposed) == pytest.approx(sorted(wanted))
        assert (proposed == pytest.approx(wanted)) != control
        assert proposed == list(proposer.propose(history).scores.values())


def test_the_page_has_the_figures_of_the_file():
    """Every table of recorded answers shows what compare_recorded.json has: tau, mean, best and worst seed."""
    rows = json.loads((BENCHMARKS / "results" / "compare_recorded.json").read_text(encoding="utf-8"))["rows"]
    page = (BENCHMARKS.parent / "docs" / "benchmarks" / "compare-scorers.md").read_text(encoding="utf-8")
    section = page.partition("## A frontier language model")[2].partition("### Where a language model is good")[0]
    shown = [line for line in section.splitlines() if re.match(r"\| .* \| −?\d\.\d\d \|", line)]
    wanted = []
    for network in ("unet", "dit", "cnn"):
        own = [row for row in rows if row["network"] == network and row["arm"] != "(unpruned)"]
        for arm in dict.fromkeys(row["arm"] for row in own):
            cells = [row for row in own if row["arm"] == arm and row["recovered"] is not None]
            figures = [f"{row['recovered']:.4f} ({row['low']:.4f}–{row['high']:.4f})" for row in cells]
            wanted.append([f"{cells[0]['tau']:.2f}".replace("-", "−"), *figures])
    assert [[cell.strip() for cell in line.strip("|").split("|")[1:]] for line in shown] == wanted
