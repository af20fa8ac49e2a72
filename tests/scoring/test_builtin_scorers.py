"""Scorers: the contract, the registry, the scoring stage, the built-in scorers, and the suite for authors of scorers."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import itertools
import json
import math
import os
import random
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies as st
from torch import Tensor, nn

import proxyprune as pp
from proxyprune import ChannelGroup, Member, ModelGraph, ProxyPruneError, ScoringContext, score, scorers, trace
from proxyprune.errors import InputError, InvalidScoreError, MissingNeedError, ScorerLoadError, ScoringError, UnknownNameError, WeightsError
from proxyprune.scoring import NEEDS, Ranking, find, group_importance, half_saturation, parameters_by_block, parameters_of
from proxyprune.scoring.registry import BUILT_IN, GROUP
from proxyprune.scoring.tools.weights import check_weights
from proxyprune.support.seeds import derived_seed
from proxyprune.testing import Network, ScorerContractError, attention_network, check_scorer, residual_network

ROOT = Path(__file__).parents[2]


# Networks


class Adders(nn.Module):
    """y = 1 * x + 2 + 3 - 4: each block's contribution to the mean output is its number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.stem.weight)
        self.two, self.three, self.four = Branch(2.0), Branch(3.0), Branch(-4.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.four(self.three(self.two(self.stem(x))))


class Branch(nn.Module):
    """x + value, by way of a hidden layer of two channels, one of which carries three quarters."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.up = nn.Linear(4, 2, bias=False)
        self.down = nn.Linear(2, 4, bias=False)
        with torch.no_grad():
            self.up.weight.copy_(torch.tensor([[0.25] * 4, [0.25] * 4]))  # on inputs of mean 1, both hidden channels are 1
            self.down.weight.copy_(torch.tensor([[0.25 * value, 0.75 * value]] * 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(torch.ones_like(x)))


def mean_output(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean()


@cache
def graph_of(kind: str) -> ModelGraph:
    network = {"residual": residual_network, "attention": attention_network}.get(kind)
    if network is not None:
        return trace(network().model, network().example_inputs, probe=False)
    return trace(Adders(), torch.ones(1, 4), probe=False)


def adders(**given: Any) -> dict[str, Any]:
    return {"model": Adders(), "batches": [torch.ones(2, 4)], "loss_fn": mean_output, **given}


def residual(**given: Any) -> dict[str, Any]:
    network = residual_network()
    return {"model": network.model, "batches": network.batches, "loss_fn": network.loss_fn, **given}


# Scorers


@dataclasses.dataclass
class Fixed:
    """Returns what it was made with, once for each call."""

    answers: list[Any]
    name: str = "fixed"
    needs: frozenset[str] = frozenset()

    def score(self, graph: ModelGraph, context: ScoringContext) -> Any:
        """Hand out the next answer."""
        answer = self.answers.pop(0)
        return answer(graph, context) if callable(answer) else answer


def uniform(graph: ModelGraph, **changed: Any) -> Ranking:
    return Ranking(**{"scores": {block.id: 0.5 for block in graph.blocks}, "scorer": "fixed", **changed})


# The contract


ASKING = ("openai", "anthropic", "local")
"""Built-in scorers that ask a language model: they need a model's name, and tests/proxy/test_faults.py has them."""

COMPUTING = [name for name in BUILT_IN if name not in ASKING]


@pytest.mark.parametrize("name", COMPUTING)
def test_built_in_scorers_keep_the_contract_that_they_ask_of_others(name: str) -> None:
    """Every built-in scorer passes the suite for plug-ins on both networks."""
    report = check_scorer(name)
    assert report.scorer == name
    assert not report.broken
    assert {result.network for result in report.results} == {"", "residual", "attention"}


REPEATED = """
import json, torch
from proxyprune import score, trace
from proxyprune.testing import attention_network
torch.set_num_threads(1)
n = attention_network()
graph = trace(n.model, n.example_inputs, probe=False)
given = dict(model=n.model, batches=n.batches, loss_fn=n.loss_fn, seed=3)
rankings = [score(graph, name, **given).to_dict() for name in ("random", "magnitude", "taylor", "ablation")]
"""


def test_built_in_scorers_repeat_in_a_fresh_process() -> None:
    """A second process, with another hash seed, gives the same rankings byte for byte."""
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    program = f"{REPEATED}print(json.dumps(rankings))"
    there = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=_environment(seed), capture_output=True, check=True, text=True, timeout=600
    )
    here: dict[str, Any] = {}
    exec(REPEATED, here)
    assert there.stdout == f"{json.dumps(here['rankings'])}\n"


def _environment(hash_seed: str) -> dict[str, str]:
    return {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}


# The registry


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Put real distributions on the path: a dist-info folder with entry points, and modules."""
    known = set(sys.modules)

    def put(distribution: str, entry_points: str, **modules: str) -> Path:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(entry_points if entry_points.startswith("[") else f"[{GROUP}]\n{entry_points}\n")
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
        return tmp_path

    yield put
    for name in set(sys.modules) - known:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


WORKING = '''
from proxyprune.scoring.ranking import Ranking

class FlatScorer:
    """Gives every block the same score.

    More about it.
    """
    name = "flat"
    needs = frozenset()

    def __init__(self, level=0.5):
        self.level = level

    def score(self, graph, context):
        return Ranking({block.id: self.level for block in graph.blocks}, self.name)
'''


def listed(name: str) -> list[Any]:
    return [info for info in scorers() if info.name == name]


def test_the_built_in_scorers_are_listed_first_and_work() -> None:
    """All are there, from the distribution proxyprune, without an error, with a summary and their needs."""
    first = scorers()[: len(BUILT_IN)]
    assert [info.name for info in first] == list(BUILT_IN)
    assert all(info.origin.startswith("proxyprune") and info.error is None and info.summary.endswith(".") for info in first)
    assert {info.name: info.needs for info in first} == {
        "magnitude": ("weights",),
        "magnitude_l1": ("weights",),
        "magnitude_l2": ("weights",),
        "taylor": ("gradients",),
        "ablation": ("loss",),
        "obs": ("batches",),
        "formula": ("gradients",),
        "random": (),
        **dict.fromkeys(("tp_magnitude", "tp_lamp", "tp_fpgm", "tp_bn_scale", "tp_random"), ("weights",)),
        **dict.fromkeys(("tp_taylor", "tp_hessian"), ("gradients",)),
        "tp_activation": ("loss",),
        "openai": ("network",),
        "anthropic": ("network",),
        "local": ("network",),
    }


def test_the_fallback_table_is_what_pyproject_registers() -> None:
    """A source tree and an installed package have the same scorers."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["entry-points"][GROUP] == dict(BUILT_IN)


def test_an_installed_plug_in_is_listed_and_scores(install: Callable[..., Path]) -> None:
    """A plug-in is found through its entry point, with origin and summary, and takes options."""
    install("acme-flat", "flat = acme_flat:FlatScorer", acme_flat=WORKING)
    (info,) = listed("flat")
    assert (info.origin, info.target, info.needs, info.error) == ("acme-flat 1.5", "acme_flat:FlatScorer", (), None)
    assert info.summary == "Gives every block the same score."
    graph = graph_of("adders")
    assert set(pp.score(graph, "flat").scores.values()) == {0.5}
    assert set(pp.score(graph, "flat", options={"level": 0.25}).scores.values()) == {0.25}
    assert set(pp.score(graph, "acme-flat:flat").scores.values()) == {0.5}


def test_plug_ins_are_imported_only_when_asked_for(install: Callable[..., Path]) -> None:
    """Using another scorer does not import a plug-in."""
    install("acme-lazy", "flat = acme_lazy:FlatScorer", acme_lazy=WORKING)
    score(graph_of("adders"), "random")
    assert "acme_lazy" not in sys.modules
    find("flat", {})
    assert "acme_lazy" in sys.modules


BROKEN = {
    "import error": ("import a_module_that_is_not_there", "ModuleNotFoundError"),
    "exit": ("import sys; sys.exit(3)", "SystemExit"),
    "no attribute": ("", "AttributeError"),
    "syntax": ("def", "SyntaxError"),
    "raises when made": ("class FlatScorer:\n    def __init__(self):\n        raise RuntimeError('no licence')", "no licence"),
    "no scorer": ("FlatScorer = 3", "no method score"),
    "wrong needs": (WORKING.replace("frozenset()", "frozenset({'gpu'})"), "gpu"),
    "wrong signature": (WORKING.replace("(self, graph, context)", "(self, graph)"), "score must take"),
    "another name": (WORKING.replace('name = "flat"', 'name = "round"'), "'round'"),
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_broken_plug_in_is_listed_with_its_error_and_harms_nobody(kind: str, install: Callable[..., Path]) -> None:
    """Listing names the fault, asking for it raises ScorerLoadError, and other scorers work as before."""
    before = [info.name for info in scorers() if info.error is None]
    assert before[: len(BUILT_IN)] == list(BUILT_IN)
    source, fault = BROKEN[kind]
    install("acme-broken", "flat = acme_broken:FlatScorer", acme_broken=source)
    (info,) = listed("flat")
    assert info.needs is None
    assert fault in info.error
    assert "acme" in info.error
    with pytest.raises(ScorerLoadError, match="flat"):
        find("flat", {})
    assert [info.name for info in scorers() if info.error is None] == before
    assert score(graph_of("adders"), "random").scorer == "random"


def test_a_malformed_entry_points_file_is_listed_and_harms_nobody(install: Callable[..., Path]) -> None:
    """One unreadable distribution does not hide the others."""
    install("acme-garbled", f"[{GROUP}]\nthis is no entry point\n")
    install("acme-flat2", "flat = acme_flat2:FlatScorer", acme_flat2=WORKING)
    (garbled,) = listed("acme-garbled")
    assert "cannot be read" in garbled.error
    assert listed("flat")[0].error is None
    with pytest.raises(ScorerLoadError, match="cannot be read"):
        find("acme-garbled", {})


def test_a_plug_in_cannot_take_the_name_of_a_built_in_scorer(install: Callable[..., Path]) -> None:
    """The built-in one wins; the other is listed as shadowed, and still reachable by its full name."""
    install("acme-random", "random = acme_random:FlatScorer", acme_random=WORKING.replace('"flat"', '"random"'))
    own, other = listed("random")
    assert own.error is None
    assert own.origin.startswith("proxyprune")
    assert "Shadowed" in other.error
    assert "acme-random:random" in other.error
    assert type(find("random", {})).__module__ == "proxyprune.scoring.builtin.random"
    assert type(find("acme-random:random", {})).__module__ == "acme_random"


def test_of_two_plug_ins_with_one_name_the_first_distribution_by_name_wins(install: Callable[..., Path]) -> None:
    """The order of installation does not matter."""
    install("zeta", "flat = zeta_flat:FlatScorer", zeta_flat=WORKING)
    install("alpha", "flat = alpha_flat:FlatScorer", alpha_flat=WORKING)
    assert [(info.origin, info.error is None) for info in listed("flat")] == [("alpha 1.5", True), ("zeta 1.5", False)]


def test_a_plug_in_that_prints_does_not_spoil_standard_output(install: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed at import goes to standard error."""
    install("acme-loud", "flat = acme_loud:FlatScorer", acme_loud="print('hello')\n" + WORKING)
    assert listed("flat")[0].error is None
    assert capsys.readouterr().out == ""


def test_a_scorer_with_a_required_option_is_listed_without_being_made(install: Callable[..., Path]) -> None:
    """A class that cannot be made without options is judged by its class attributes."""
    install("acme-model", "flat = acme_model:FlatScorer", acme_model=WORKING.replace("level=0.5", "level"))
    (info,) = listed("flat")
    assert (info.needs, info.error) == ((), None)
    with pytest.raises(InputError, match="level"):
        find("flat", {})


def test_an_instance_and_a_function_can_be_registered(install: Callable[..., Path]) -> None:
    """An entry point may name a scorer or something that makes one."""
    source = WORKING + "\nREADY = FlatScorer(0.1)\ndef make():\n    return FlatScorer(0.2)\n"
    install("acme-ready", "flat = acme_forms:READY", acme_forms=source)
    assert set(score(graph_of("adders"), "flat").scores.values()) == {0.1}
    with pytest.raises(InputError, match="takes no options"):
        find("flat", {"level": 1})
    install("aardvark", "flat = acme_forms:make")
    assert set(score(graph_of("adders"), "flat").scores.values()) == {0.2}


@pytest.mark.parametrize(("name", "closest"), [("magntude", "magnitude"), ("Taylor", "taylor"), ("ablate", "ablation")])
def test_an_unknown_name_is_answered_with_the_closest_one(name: str, closest: str) -> None:
    """The error is also a LookupError, and lists all names."""
    with pytest.raises(UnknownNameError, match=f"Did you mean '{closest}'") as caught:
        score(graph_of("adders"), name)
    assert isinstance(caught.value, LookupError)
    assert "random" in str(caught.value)


@pytest.mark.parametrize("options", [{"norm": "l3"}, {"nrom": "l1"}])
def test_options_that_a_scorer_does_not_take_are_refused(options: dict[str, str]) -> None:
    """Wrong values and wrong names are input errors."""
    with pytest.raises(InputError, match="norm"):
        score(graph_of("adders"), "magnitude", options=options, **adders())


# The scoring stage


@pytest.mark.parametrize(
    ("name", "given", "missing"),
    [
        ("magnitude", {}, "model"),
        ("taylor", {"model": Adders()}, "batches and no loss_fn"),
        ("taylor", {"model": Adders(), "batches": [torch.ones(1, 4)]}, "loss_fn"),
        ("taylor", {"model": Adders(), "batches": [], "loss_fn": mean_output}, "batches is empty"),
        ("ablation", {"batches": [torch.ones(1, 4)], "loss_fn": mean_output}, "model"),
    ],
)
def test_what_a_scorer_needs_and_did_not_get_is_named(name: str, given: dict[str, Any], missing: str) -> None:
    """The message says what is missing and how to give it."""
    with pytest.raises(MissingNeedError, match=missing) as caught:
        score(graph_of("adders"), name, **given)
    assert "calibration_batches()" in str(caught.value)


@pytest.mark.parametrize("batch", [torch.ones(2, 4), {"x": 1}, "text"])
def test_one_batch_in_the_place_of_a_list_is_refused(batch: Any) -> None:
    """A tensor would otherwise be taken apart row by row."""
    with pytest.raises(MissingNeedError, match=r"batches=\[batch\]"):
        score(graph_of("adders"), "taylor", **adders(batches=batch))


def test_batches_may_come_from_a_generator() -> None:
    """They are read once and kept."""
    once = (torch.ones(2, 4) for _ in range(2))
    assert score(graph_of("adders"), "ablation", **adders(batches=once)) == score(
        graph_of("adders"), "ablation", **adders(batches=[torch.ones(2, 4)] * 2)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scorer", ["magnitude", "random"])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, scorer: str) -> None:
    """One bad element is enough, also for a scorer that does not read weights: nothing good can be pruned from them."""
    model = Adders()
    with torch.no_grad():
        model.three.down.weight[1, 1] = value
    with pytest.raises(WeightsError, match=r"three\.down\.weight"):
        score(graph_of("adders"), scorer, model=model)


def test_the_sum_that_overflows_is_no_fault() -> None:
    """Finite weights whose sum is infinite pass."""
    model = nn.Linear(4, 4).half()
    with torch.no_grad():
        model.weight.fill_(60000.0)
    check_weights(model)


def test_a_buffer_may_hold_infinities_but_no_nan() -> None:
    """Attention masks are full of -inf; NaN in running statistics is a fault."""
    model = nn.BatchNorm2d(2)
    model.register_buffer("mask", torch.tensor([0.0, -math.inf]))
    check_weights(model)
    model.running_var[0] = math.nan  # type: ignore[index]
    with pytest.raises(WeightsError, match="running_var"):
        check_weights(model)


def test_weights_without_values_serve_a_scorer_that_reads_only_the_structure() -> None:
    """On the meta device `random` works and `magnitude` says what is missing."""
    model = residual_network().model.to("meta")
    graph = trace(model, residual_network().example_inputs, probe=False)
    assert score(graph, "random", model=model).scores == score(graph_of("residual"), "random").scores
    with pytest.raises(WeightsError, match=r"stem.weight.*no values"):
        score(graph, "magnitude", model=model)


WRONG: dict[str, tuple[Callable[[ModelGraph], Any], str]] = {
    "a dict": (lambda graph: {"stem": 1.0}, "returned dict"),
    "nothing": (lambda graph: None, "NoneType"),
    "too few": (lambda graph: Ranking({"stem": 0.5}, "fixed"), "'two', 'three', 'four' missing"),
    "unknown": (lambda graph: uniform(graph, scores={**uniform(graph).scores, "five": 0.1}), "'five' not in the graph"),
    "truth": (lambda graph: uniform(graph, scores={**uniform(graph).scores, "two": True}), "True"),
    "confidence": (lambda graph: uniform(graph, confidence=math.nan), "confidence"),
    "unknown group": (lambda graph: uniform(graph, channel_scores={"x": (1.0,)}), "'x', which is not a channel group"),
    "too few channels": (lambda graph: uniform(graph, channel_scores={graph.prunable[0].id: (1.0,)}), "expected [24]"),
    "NaN channel": (lambda graph: uniform(graph, channel_scores={g.id: (math.nan,) * g.atoms for g in graph.groups}), "atom 0"),
}


@pytest.mark.parametrize("kind", list(WRONG))
def test_a_ranking_that_does_not_fit_the_graph_is_refused(kind: str) -> None:
    """The message names the scorer and the fault."""
    answer, fault = WRONG[kind]
    with pytest.raises(InvalidScoreError, match=fault) as caught:
        score(graph_of("adders"), Fixed([answer(graph_of("adders"))]))
    assert "'fixed'" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, 1.1])
def test_scores_out_of_range_are_refused_even_when_the_ranking_was_changed_later(value: float) -> None:
    """A mapping can be changed behind a frozen ranking's back."""
    ranking = uniform(graph_of("adders"))
    ranking.scores["two"] = value  # type: ignore[index]
    with pytest.raises(InvalidScoreError, match="'two'"):
        score(graph_of("adders"), Fixed([ranking]))


def test_scores_come_back_in_graph_order_as_plain_floats() -> None:
    """The order in which a scorer answers leaves no trace."""
    graph = graph_of("adders")
    backwards = {block.id: np.float64(0.5) for block in reversed(graph.blocks)}
    ranking = score(graph, Fixed([uniform(graph, scores=backwards)]))
    assert list(ranking.scores) == [block.id for block in graph.blocks]
    assert {type(value) for value in ranking.scores.values()} == {float}


def test_an_error_of_a_scorer_becomes_a_scoring_error() -> None:
    """The original error is the cause."""

    def fail(graph: ModelGraph, context: ScoringContext) -> Ranking:
        raise KeyError("lost")

    with pytest.raises(ScoringError, match=r"KeyError.*lost") as caught:
        score(graph_of("adders"), Fixed([fail]))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("seed", [None, 0.5, True, "1"])
def test_a_seed_is_an_integer(seed: Any) -> None:
    """Anything else would make a ranking that cannot be made again."""
    with pytest.raises(InputError, match="seed"):
        score(graph_of("adders"), "random", seed=seed)


def test_a_model_in_the_place_of_its_graph_is_refused() -> None:
    """The message says to trace it."""
    with pytest.raises(InputError, match=r"trace\(model"):
        score(Adders(), "random")  # type: ignore[arg-type]


def test_what_is_no_scorer_is_refused() -> None:
    """A class, an object without the contract, and options for an object each get their own error."""
    graph = graph_of("adders")
    with pytest.raises(InputError, match="Pass an instance"):
        score(graph, Fixed)  # type: ignore[arg-type]
    with pytest.raises(ScorerLoadError, match="no method score"):
        score(graph, object())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="by name"):
        score(graph, Fixed([]), options={"norm": "l1"})


def test_the_context_holds_what_was_given() -> None:
    """Batches become a tuple; everything else is passed on."""
    seen: list[ScoringContext] = []

    def look(graph: ModelGraph, context: ScoringContext) -> Ranking:
        seen.append(context)
        return uniform(graph)

    given = adders(seed=5, example_inputs=(torch.ones(1, 4),))
    score(graph_of("adders"), Fixed([look]), **given)
    assert seen[0].model is given["model"]
    assert seen[0].batches == tuple(given["batches"])
    assert (seen[0].loss_fn, seen[0].seed, seen[0].example_inputs) == (given["loss_fn"], 5, given["example_inputs"])


def test_needs_name_arguments_of_score() -> None:
    """Whatever can be declared can be given."""
    assert {argument for arguments in NEEDS.values() for argument in arguments} <= set(inspect.signature(score).parameters)


# Random


def test_a_random_score_depends_on_seed_and_block_alone() -> None:
    """Other blocks do not matter, the global generator does not matter, the seed does."""
    whole = graph_of("residual")
    part = dataclasses.replace(whole, blocks=whole.blocks[::2], groups=whole.groups[1:])
    torch.manual_seed(123)
    ranking, partial, other = score(whole, "random"), score(part, "random"), score(whole, "random", seed=1)
    assert partial.scores.items() <= ranking.scores.items()
    assert partial.channel_scores.items() <= ranking.channel_scores.items()
    assert all(ranking.scores[block] != other.scores[block] for block in ranking.scores)


def test_random_scores_are_uniform() -> None:
    """Over many seeds the mean of a block is 1/2 and its variance 1/12."""
    graph = graph_of("adders")
    drawn = np.array([list(score(graph, "random", seed=seed).scores.values()) for seed in range(300)])
    assert abs(drawn.mean() - 0.5) < 0.03
    assert abs(drawn.var() - 1 / 12) < 0.01


def test_derived_seeds_are_fixed_for_ever() -> None:
    """A published ranking must be reproducible, so this number may not change."""
    assert derived_seed(0, "block", "stem") == 4151569910032778980
    assert 0 <= derived_seed(-5) < 2**63


# Channels


def naive(tensor: Tensor, member: Member, atom: int) -> Tensor:
    """Return the slice of one atom, element by element."""
    return torch.cat([tensor.select(member.dim, int(p)).flatten() for p in member.positions[atom]])


def naive_importance(state: Mapping[str, Tensor], group: ChannelGroup, statistic: str) -> list[float]:
    result = []
    for atom in range(group.atoms):
        slices = [naive(state[m.parameter].double(), m, atom) for m in group.members if m.parameter in state]
        parts = {
            "l1": lambda s: [x.abs().sum() for x in s],
            "l2": lambda s: [x.square().sum() for x in s],
            "net": lambda s: [x.sum().abs() for x in s],
        }[statistic](slices)
        total = float(sum(parts))
        result.append(total**0.5 if statistic == "l2" else total)
    return result


@pytest.mark.parametrize("statistic", ["l1", "l2", "net"])
@pytest.mark.parametrize("kind", ["residual", "attention"])
def test_channel_importance_equals_the_loop_over_every_slice(kind: str, statistic: str) -> None:
    """On every group of both networks, kernels, norms, biases and heads included."""
    graph = graph_of(kind)
    state = parameters_of({"residual": residual_network, "attention": attention_network}[kind]().model)
    found = group_importance(state, graph.groups, statistic)
    assert list(found) == [group.id for group in graph.groups]
    for group in graph.groups:
        np.testing.assert_allclose(found[group.id], naive_importance(state, group, statistic), rtol=1e-5)


def member(parameter: str, dim: int, positions: Any) -> Member:
    return Member(parameter, dim, np.array(positions, dtype=np.int64))


def group(*members: Member) -> ChannelGroup:
    atoms, channels = members[0].positions.shape
    return ChannelGroup("g", atoms * channels, channels, members, None, atoms)


SHAPES: dict[str, tuple[tuple[int, ...], Member]] = {
    "bias": ((6,), member("w", 0, [[0, 3], [1, 4], [2, 5]])),
    "input of a linear": ((4, 6), member("w", 1, [[0, 3], [1, 4], [2, 5]])),
    "middle of a bare parameter": ((2, 6, 3), member("w", 1, [[5], [0]])),
    "last of a bare parameter": ((2, 3, 6), member("w", 2, [[5], [0]])),
    "kernel": ((6, 3, 2, 2), member("w", 0, [[1], [5]])),
    "input of a grouped kernel": ((6, 2, 3, 3), member("w", 1, [[0], [1]])),
    "output of a grouped transposed kernel": ((6, 4, 3), member("w", 1, [[0], [3]])),
    "rows of a grouped kernel": ((6, 2, 3, 3), member("w", 0, [[0, 2, 4], [1, 3, 5]])),
}


@pytest.mark.parametrize("statistic", ["l1", "l2", "net"])
@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_each_kind_of_slice_is_found(kind: str, statistic: str, dtype: torch.dtype) -> None:
    """Every dimension, grouped kernels, several positions an atom, in any precision."""
    shape, one = SHAPES[kind]
    state = {"w": torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)}
    expected = naive_importance(state, group(one), statistic)
    np.testing.assert_allclose(
        group_importance(state, [group(one)], statistic)["g"], expected, rtol=1e-12 if dtype == torch.float64 else 1e-4
    )


def test_a_tensor_larger_than_the_working_buffer_is_summed_in_parts() -> None:
    """Rows, columns, and atoms of several columns come out right across the seams."""
    big = torch.randn(1030, 1025, generator=torch.Generator().manual_seed(0))
    rows = group_importance({"w": big}, [group(member("w", 0, np.arange(1030)[:, None]))])["g"]
    columns = group_importance({"w": big}, [group(member("w", 1, np.arange(1025)[:, None]))])["g"]
    fives = group_importance({"w": big}, [group(member("w", 1, np.arange(1025).reshape(205, 5)))])["g"]
    np.testing.assert_allclose(rows, big.double().norm(dim=1), rtol=1e-5)
    np.testing.assert_allclose(columns, big.double().norm(dim=0), rtol=1e-5)
    np.testing.assert_allclose(fives, big.double().view(1030, 205, 5).norm(dim=(0, 2)), rtol=1e-5)


def test_memory_layout_does_not_matter() -> None:
    """A channels-last or transposed kernel gives what a contiguous one gives."""
    weight = torch.randn(6, 4, 3, 3, dtype=torch.float64)
    groups = [group(member("w", 0, [[0], [5]])), dataclasses.replace(group(member("w", 1, [[1], [2]])), id="h")]
    expected = group_importance({"w": weight}, groups)
    for laid_out in (weight.to(memory_format=torch.channels_last), weight.transpose(0, 3).contiguous().transpose(0, 3)):
        found = group_importance({"w": laid_out}, groups)
        np.testing.assert_allclose(found["g"], expected["g"])
        np.testing.assert_allclose(found["h"], expected["h"])


def test_members_without_real_values_count_nothing() -> None:
    """Integers, empty tensors and names that are not in the state add zero."""
    state = {"w": torch.ones(2, 3), "index": torch.ones(2, dtype=torch.int64), "empty": torch.ones(2, 0)}
    one = group(*(member(name, 0, [[0], [1]]) for name in ("w", "index", "empty", "elsewhere")))
    np.testing.assert_allclose(group_importance(state, [one], "l1")["g"], [3.0, 3.0])
    np.testing.assert_allclose(group_importance({}, [one])["g"], [0.0, 0.0])


@pytest.mark.parametrize("shape", [(4,), (4, 2), ()])
def test_weights_of_another_shape_than_the_traced_ones_are_refused(shape: tuple[int, ...]) -> None:
    """The message names parameter and group."""
    with pytest.raises(WeightsError, match=r"'w'.*group 'g' cuts dimension 1"):
        group_importance({"w": torch.ones(shape)}, [group(member("w", 1, [[0], [2]]))])


def test_an_unknown_statistic_is_refused() -> None:
    """The known ones are listed."""
    with pytest.raises(InputError, match="l1, l2, net"):
        group_importance({}, [], "l3")


def test_parameters_belong_to_their_block_and_to_the_blocks_around_it() -> None:
    """Names are compared part by part: block "a.b" does not own "a.bc"."""
    names = ["a.b.c.weight", "a.bc.weight", "a.b", "x.weight"]
    assert parameters_by_block(["a", "a.b", "x"], names) == {
        "a": ("a.b.c.weight", "a.bc.weight", "a.b"),
        "a.b": ("a.b.c.weight", "a.b"),
        "x": ("x.weight",),
    }


# Scale

measurements = st.lists(st.just(0.0) | st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6), min_size=1, max_size=12)


@given(measurements, st.floats(1e-3, 1e3))
def test_half_saturation_keeps_order_range_and_forgets_the_unit(values: list[float], unit: float) -> None:
    """Larger never gets less, all is in [0, 1], and another unit of the loss changes nothing."""
    named = {str(index): value for index, value in enumerate(values)}
    scaled = half_saturation(named)
    assert list(scaled) == list(named)
    assert all(0.0 <= value <= 1.0 for value in scaled.values())
    ordered = sorted(named, key=lambda key: named[key])
    assert all(scaled[a] <= scaled[b] for a, b in itertools.pairwise(ordered))
    in_another_unit = half_saturation({key: value * unit for key, value in named.items()})
    assert all(abs(scaled[key] - in_another_unit[key]) <= 2e-6 for key in scaled)


@given(st.dictionaries(st.text(), st.none() | st.floats(allow_nan=False).filter(lambda value: value > -math.inf)))
def test_half_saturation_accepts_any_finite_measurement(values: dict[str, float | None]) -> None:
    """The largest and the smallest floats give scores in [0, 1] as well."""
    assert all(0.0 <= value <= 1.0 for value in half_saturation(values).values())


def test_half_saturation_in_numbers() -> None:
    """The formula v / (v + median); equal values stay equal; infinity is 1; what was not measured is 0.5; negatives lie below 0.1."""
    assert half_saturation({"a": 1.0, "b": 2.0, "c": 6.0}) == {"a": 0.333333, "b": 0.5, "c": 0.75}
    assert half_saturation({"a": 3.0, "b": 3.0}) == {"a": 0.5, "b": 0.5}
    assert half_saturation({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    assert half_saturation({"a": 0.0, "b": 0.0, "c": 0.0, "d": 2.0}) == {"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.5}
    assert half_saturation({"a": 1.0, "b": math.inf, "c": None}) == {"a": 0.5, "b": 1.0, "c": 0.5}
    assert half_saturation({"a": -2.0, "b": 0.0, "c": 2.0}) == {"a": 0.05, "b": 0.1, "c": 0.55}
    assert half_saturation({}) == {}


# Magnitude


def test_magnitude_of_a_channel_is_the_norm_of_all_its_slices() -> None:
    """Two hidden channels: rows of `up` and columns of `down` count together."""
    ranking = score(graph_of("adders"), "magnitude", model=Adders())
    row = 4 * 0.25**2
    expected = [math.sqrt(row + 4 * (0.25 * 2) ** 2), math.sqrt(row + 4 * (0.75 * 2) ** 2)]
    assert ranking.channel_scores["two.up.weight:0"] == pytest.approx(expected, rel=1e-5)
    l1 = score(graph_of("adders"), "magnitude_l1", model=Adders())
    assert l1.channel_scores["two.up.weight:0"] == pytest.approx([1 + 4 * 0.5, 1 + 4 * 1.5], rel=1e-5)


def test_magnitude_of_a_block_is_its_mean_row_norm() -> None:
    """Rows of `up` have norm 0.5, rows of `down` |value| * sqrt(10) / 4, the identity's rows 1."""
    values = {"stem": 1.0} | {name: (0.5 + abs(v) * math.sqrt(10) / 4) / 2 for name, v in (("two", 2), ("three", 3), ("four", -4))}
    median = (values["stem"] + values["two"]) / 2 if values["three"] < values["stem"] else (values["two"] + values["three"]) / 2
    expected = {name: value / (value + median) for name, value in values.items()}
    assert score(graph_of("adders"), "magnitude", model=Adders()).scores == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["magnitude_l1", "magnitude_l2"])
def test_width_and_depth_alone_make_no_block_important(name: str) -> None:
    """At initialisation blocks of very different size score nearly the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 256), nn.Linear(256, 256), nn.Linear(256, 16))
    graph = trace(model, torch.ones(1, 16), probe=False)
    values = score(graph, name, model=model).scores.values()
    assert max(values) - min(values) < 0.05


def test_the_names_and_options_of_magnitude_agree() -> None:
    """`magnitude` is the 2-norm, and norm="l1" is `magnitude_l1`."""
    graph, model = graph_of("residual"), residual_network().model
    assert score(graph, "magnitude", model=model).scores == score(graph, "magnitude_l2", model=model).scores
    assert score(graph, "magnitude", model=model, options={"norm": "l1"}).scores == score(graph, "magnitude_l1", model=model).scores


def test_magnitude_reads_half_precision_in_single() -> None:
    """Squares that overflow float16 do not."""
    model = Adders().half()
    with torch.no_grad():
        model.two.down.weight.fill_(30000.0)
    ranking = score(graph_of("adders"), "magnitude", model=model)
    assert ranking.order[0] == "two"


# Taylor


def test_taylor_is_exact_where_the_loss_is_linear() -> None:
    """Without biases each of the two members of a hidden channel carries the whole change of the loss."""
    ranking = score(graph_of("adders"), "taylor", **adders())
    for name, value in (("two", 2.0), ("three", 3.0), ("four", 4.0)):
        assert ranking.channel_scores[f"{name}.up.weight:0"] == pytest.approx([2 * 0.25 * value, 2 * 0.75 * value], rel=1e-5)
    assert sorted(["two", "three", "four"], key=ranking.scores.__getitem__) == ["two", "three", "four"]


def test_taylor_does_not_let_the_channels_of_a_head_cancel() -> None:
    """A head whose two channels contribute +3 and -3 matters three times as much as one of twice +1; summed up it would be worth 0."""
    weights = {"values.weight": torch.tensor([[3.0], [-3.0], [1.0], [1.0]]), "out.weight": torch.tensor([[3.0, -3.0, 1.0, 1.0]])}
    positions = np.array([[0, 1], [2, 3]])
    members = (Member("values.weight", 0, positions), Member("out.weight", 1, positions))
    group = ChannelGroup("values.weight:0", 4, 2, members, None, 2)
    assert group_importance(weights, [group], "net")["values.weight:0"].tolist() == [0.0, 4.0]
    assert group_importance(weights, [group], "channels")["values.weight:0"].tolist() == [12.0, 4.0]
    one_channel = ChannelGroup("values.weight:0", 4, 2, members[:1], None, 2, 1)
    flattened = dataclasses.replace(one_channel, width=2)
    assert group_importance(weights, [flattened], "channels")["values.weight:0"].tolist() == [0.0, 2.0]


@pytest.mark.parametrize("name", ["taylor", "magnitude", "tp_taylor"])
def test_blocks_leave_by_influence_and_the_ranking_says_so(name: str) -> None:
    """Scorers of channels get removal scores where whole blocks may leave and batches are there, and a note about it."""
    network = attention_network()
    graph = trace(network.model, network.example_inputs)
    brief = pp.scoring.Brief(mode="depth")
    given = {"model": network.model, "batches": network.batches, "loss_fn": network.loss_fn, "brief": brief}
    ranking = score(graph, name, **given)
    influence = score(graph, "block_influence", **given)
    assert ranking.removal_scores == influence.scores
    assert sum("block influence" in note for note in ranking.notes) == 1
    assert Ranking.from_dict(ranking.to_dict()) == ranking


def test_removal_scores_are_left_to_scorers_of_blocks_and_to_chance() -> None:
    """Ablation measures blocks itself, random stays random, and magnitude without batches has none; a width plan costs no extra pass."""
    network = attention_network()
    graph = trace(network.model, network.example_inputs)
    brief = pp.scoring.Brief(mode="depth")
    given = {"model": network.model, "batches": network.batches, "loss_fn": network.loss_fn}
    assert not score(graph, "ablation", **given, brief=brief).removal_scores
    chance = score(graph, "random", **given, brief=brief)
    assert chance.removal_scores == chance.scores
    assert not score(graph, "magnitude", model=network.model, brief=brief).removal_scores
    assert not score(graph, "magnitude", **given).removal_scores


def test_taylor_takes_the_absolute_value_of_each_batch() -> None:
    """Two batches that pull in opposite directions do not cancel."""

    def signed(model: nn.Module, batch: tuple[float, Tensor]) -> Tensor:
        return batch[0] * model(batch[1]).mean()

    one = score(graph_of("adders"), "taylor", **adders(loss_fn=signed, batches=[(1.0, torch.ones(2, 4))]))
    two = score(graph_of("adders"), "taylor", **adders(loss_fn=signed, batches=[(1.0, torch.ones(2, 4)), (-1.0, torch.ones(2, 4))]))
    assert two.scores == one.scores
    assert two.channel_scores == one.channel_scores


def test_taylor_scores_frozen_layers_and_works_without_gradients_outside() -> None:
    """requires_grad and grad modes of the caller do not change the result."""
    expected = score(graph_of("residual"), "taylor", **residual())
    frozen = residual()
    frozen["model"].requires_grad_(False)
    for outside in (contextlib.nullcontext(), torch.no_grad(), torch.inference_mode()):
        with outside:
            assert score(graph_of("residual"), "taylor", **frozen) == expected
    assert not any(parameter.requires_grad for parameter in frozen["model"].parameters())


def _nan_gradient(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean() + torch.sqrt(model.two.down.weight.sum() * 0.0)  # type: ignore[union-attr, operator]


BAD_LOSSES: dict[str, tuple[Any, type[ProxyPruneError], str]] = {
    "detached": (lambda m, b: m(b).mean().detach(), MissingNeedError, "no gradients"),
    "does not use the model": (lambda m, b: torch.ones((), requires_grad=True) * 2, MissingNeedError, "no gradients"),
    "not finite": (lambda m, b: m(b).mean() * (math.nan if float(b[0, 0]) == 2.0 else 1.0), ScoringError, "batch 1 is nan"),
    "gradient not finite": (_nan_gradient, ScoringError, "two.down.weight"),
    "a vector": (lambda m, b: m(b), ScoringError, r"\(2, 4\)"),
    "a number": (lambda m, b: 1.0, ScoringError, "float"),
    "raises": (lambda m, b: m(b, b), ScoringError, "TypeError on batch 0"),
    "calls backward": (lambda m, b: _with_backward(m(b).square().mean()), ScoringError, "must not call backward"),
}


def _with_backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss


@pytest.mark.parametrize("kind", list(BAD_LOSSES))
def test_a_loss_without_usable_gradients_is_refused_and_leaves_no_trace(kind: str) -> None:
    """Each fault has a message that says where; gradients and requires_grad are as before."""
    loss_fn, error, fault = BAD_LOSSES[kind]
    given = adders(loss_fn=loss_fn, batches=[torch.ones(2, 4), torch.full((2, 4), 2.0)])
    given["model"].stem.requires_grad_(False)
    with pytest.raises(error, match=fault):
        score(graph_of("adders"), "taylor", **given)
    assert not given["model"].stem.weight.requires_grad
    assert all(parameter.grad is None for parameter in given["model"].parameters())


class TwoHeads(nn.Module):
    """A trunk with a head that the loss reads and one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.used = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
        self.unused = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.used(x), self.unused(x)


def test_taylor_does_not_let_go_of_what_the_loss_ignores_unless_told_to() -> None:
    """A head outside the loss is an error by default, and scores 0 with unused="zero"."""
    model = TwoHeads()
    graph = trace(model, torch.ones(1, 4), probe=False)
    given = {"model": model, "batches": [torch.ones(2, 4)], "loss_fn": lambda m, b: m(b)[0].square().mean()}
    with pytest.raises(MissingNeedError, match=r"unused.0.weight.*unused"):
        score(graph, "taylor", **given)
    ranking = score(graph, "taylor", options={"unused": "zero"}, **given)
    assert set(ranking.channel_scores["unused.0.weight:0"]) == {0.0}
    assert all(value > 0.0 for value in ranking.channel_scores["used.0.weight:0"])


def test_taylor_reads_sparse_gradients() -> None:
    """An embedding with sparse gradients scores as one with dense gradients."""
    rankings = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 6, sparse=sparse), nn.Linear(6, 8), nn.Linear(8, 2))
        tokens = torch.tensor([[0, 3, 3]])
        graph = trace(model, tokens, probe=False)
        rankings.append(score(graph, "taylor", model=model, batches=[tokens], loss_fn=lambda m, b: m(b).square().mean()))
    assert rankings[0] == rankings[1]


# Ablation


def test_ablation_measures_what_each_block_adds() -> None:
    """Blocks add 2, 3 and -4 to the loss 2: removing them changes it by -2, -3 and +4, zeroing the stem by -1."""
    ranking = score(graph_of("adders"), "ablation", **adders())
    assert {block.id: block.removable for block in graph_of("adders").blocks} == {"stem": False, "two": True, "three": True, "four": True}
    assert ranking.scores == half_saturation({"stem": -1.0, "two": -2.0, "three": -3.0, "four": 4.0})
    assert ranking.order == ("four", "stem", "two", "three")
    assert "mean loss 2 " in ranking.notes[0]


Pair = namedtuple("Pair", ["hidden", "extra"])


@dataclasses.dataclass
class Output:
    sample: Tensor
    count: int = 3


class Wrapped(nn.Module):
    """x + 1 (and a number that the caller reads too), in a container, by keyword."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(4, 4), wrap
        nn.init.zeros_(self.layer.weight)
        nn.init.ones_(self.layer.bias)

    def forward(self, scale: float, *, hidden: Tensor) -> Any:
        return self.wrap(hidden + scale * self.layer(hidden), torch.tensor([7]))


CONTAINERS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "tensor": (lambda h, e: h, lambda out: out),
    "tuple": (lambda h, e: (h, e), lambda out: out[0] + out[1] * 0),
    "list": (lambda h, e: [h, e], lambda out: out.pop(0)),
    "namedtuple": (Pair, lambda out: out.hidden + out.extra * 0),
    "dict": (lambda h, e: {"sample": h, "extra": e}, lambda out: out["sample"] + out["extra"] * 0),
    "dataclass": (lambda h, e: Output(h), lambda out: out.sample * out.count / 3),
}


class Chain(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        wrap, self.unwrap = CONTAINERS[kind]
        self.first, self.second = Wrapped(wrap), Wrapped(wrap)

    def forward(self, x: Tensor) -> Tensor:
        return self.unwrap(self.second(2.0, hidden=self.unwrap(self.first(1.0, hidden=x))))


@pytest.mark.parametrize("kind", list(CONTAINERS))
def test_ablation_replaces_a_block_inside_any_container(kind: str) -> None:
    """The identity hands the keyword argument on in the block's own container; the loss falls by 1 and by 2."""
    graph = graph_of("adders")
    template = next(block for block in graph.blocks if block.removable)
    blocks = tuple(dataclasses.replace(template, id=name) for name in ("first", "second"))
    ranking = score(
        dataclasses.replace(graph, blocks=blocks),
        "ablation",
        model=Chain(kind),
        batches=[torch.ones(2, 4)],
        loss_fn=lambda m, b: -m(b).mean(),
    )
    assert ranking.scores == half_saturation({"first": 1.0, "second": 2.0})


class Borrowing(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lender, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(self.stem(x), self.lender.weight, self.lender.bias))


def test_ablation_zeroes_the_parameters_of_a_block_that_is_never_called() -> None:
    """The note says so, the loss is that of a zeroed layer, and the weights come back bit for bit."""
    torch.manual_seed(0)
    model = Borrowing()
    graph = graph_of("adders")
    blocks = tuple(dataclasses.replace(graph.blocks[0], id=name) for name in ("stem", "lender", "head"))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = torch.randn(3, 4)
    ranking = score(
        dataclasses.replace(graph, blocks=blocks),
        "ablation",
        model=model,
        batches=[batch],
        loss_fn=lambda m, b: (m(b) - m(b).detach() + 1).mean(),
    )
    assert any("lender" in note for note in ranking.notes)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_block_without_which_the_loss_is_not_finite_matters_most() -> None:
    """Its score is 1, and a note names it."""
    ranking = score(graph_of("adders"), "ablation", **adders(loss_fn=lambda m, b: torch.log(m(b).mean() - 1.5)))
    assert ranking.scores["two"] == 1.0
    assert "not finite" in ranking.notes[1]


def test_ablation_restores_the_model_when_a_run_fails() -> None:
    """An error in the middle leaves no hook, no changed buffer and the caller's random state."""
    given = residual()
    calls: list[int] = []

    def fails_later(model: nn.Module, batch: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise RuntimeError("out of memory")
        return residual_network().loss_fn(model, batch)

    before = {name: tensor.clone() for name, tensor in given["model"].state_dict().items()}
    state = torch.get_rng_state(), random.getstate()
    with pytest.raises(ScoringError, match="out of memory"):
        score(graph_of("residual"), "ablation", **{**given, "loss_fn": fails_later})
    assert all(torch.equal(before[name], tensor) for name, tensor in given["model"].state_dict().items())
    assert not any(module._forward_hooks for module in given["model"].modules())
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1] == random.getstate()


def test_ablation_sees_the_same_noise_with_and_without_a_block() -> None:
    """A loss that is nothing but noise is changed by no block."""

    def noise(model: nn.Module, batch: Tensor) -> Tensor:
        return torch.randn(()) + np.random.rand() + random.random() + 0.0 * model(batch).mean()

    ranking = score(graph_of("adders"), "ablation", **adders(loss_fn=noise))
    assert set(ranking.scores.values()) == {0.5}


def test_a_model_that_was_not_traced_is_refused() -> None:
    """The message names the block that it lacks."""
    with pytest.raises(WeightsError, match="no module 'stem'"):
        score(graph_of("adders"), "ablation", **adders(model=nn.Sequential(nn.Linear(4, 4))))


# The suite for authors


def _train(context: ScoringContext) -> None:
    context.model.train()  # type: ignore[union-attr]
    context.model.layers[1].eval()  # type: ignore[union-attr, index, operator]


def _backward(context: ScoringContext) -> None:
    with torch.enable_grad():
        context.loss_fn(context.model, context.batches[0]).backward()  # type: ignore[misc, index, arg-type]


def _mutate_graph(graph: ModelGraph, context: ScoringContext) -> None:
    graph.groups[0].members[0].positions[:] = 0


SINS: dict[str, tuple[frozenset[str], Callable[[ModelGraph, ScoringContext], object], str]] = {
    "draws from the global generator": (frozenset(), lambda g, c: float(torch.rand(())), "random generators"),
    "seeds NumPy": (frozenset(), lambda g, c: np.random.seed(0), "random generators"),
    "changes weights": (frozenset({"weights"}), lambda g, c: c.model.head.weight.data.mul_(2), "parameters and buffers"),
    "sets the mode": (frozenset({"weights"}), lambda g, c: c.model.train(), "training modes"),
    "leaves a hook": (frozenset({"weights"}), lambda g, c: c.model.register_forward_hook(lambda *a: None), "hooks"),
    "leaves an attribute": (frozenset({"weights"}), lambda g, c: setattr(c.model, "score_", 1), "attributes"),
    "calls backward": (frozenset({"gradients"}), lambda g, c: _backward(c), "gradients"),
    "unfreezes": (frozenset({"weights"}), lambda g, c: c.model.requires_grad_(True), "requires_grad"),
    "changes the graph": (frozenset(), _mutate_graph, "the graph"),
    "prints": (frozenset(), lambda g, c: sys.stdout.write("scoring"), "standard output"),
    "does not declare the model": (frozenset(), lambda g, c: c.model.parameters(), "declares"),
    "raises a foreign error": (frozenset({"batches"}), lambda g, c: c.batches[0], "Called with nothing"),
    "ignores bad batches": (frozenset({"batches"}), lambda g, c: None, "cannot be used"),
}


@dataclasses.dataclass
class Sinner:
    """Does one forbidden thing, and then scores all blocks alike."""

    needs: frozenset[str]
    sin: Callable[[ModelGraph, ScoringContext], object]
    name: str = "sinner"

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Sin, then score."""
        self.sin(graph, context)
        return uniform(graph)


@pytest.mark.parametrize("kind", list(SINS))
def test_the_suite_finds_each_breach(kind: str) -> None:
    """Every promise has a scorer that breaks it, and the report names the promise."""
    needs, sin, promise = SINS[kind]
    with pytest.raises(ScorerContractError, match=promise) as caught:
        check_scorer(Sinner(needs, sin), network=attention_network())
    assert isinstance(caught.value, AssertionError)
    assert isinstance(caught.value, ProxyPruneError)


def test_the_suite_finds_a_scorer_that_does_not_repeat() -> None:
    """Scores that differ from call to call are named by block."""
    ticks = iter(range(1, 1000))
    restless = Fixed([lambda g, c: uniform(g, scores={b.id: 1 / next(ticks) for b in g.blocks})] * 20)
    with pytest.raises(ScorerContractError, match=r"byte for byte.*\n.*blocks embed"):
        check_scorer(restless, network=attention_network())


def test_the_suite_reports_all_breaches_at_once() -> None:
    """One run names the generator, the output and the graph."""

    def everything(graph: ModelGraph, context: ScoringContext) -> None:
        torch.rand(())
        sys.stdout.write("x")
        _mutate_graph(graph, context)

    with pytest.raises(ScorerContractError) as caught:
        check_scorer(Sinner(frozenset(), everything), network=attention_network())
    assert len(caught.value.report.broken) == 3
    assert "3 of" in str(caught.value.report)


def test_the_suite_refuses_what_is_no_scorer() -> None:
    """An object without the contract fails before anything is run."""
    with pytest.raises(ScorerContractError, match="no method score"):
        check_scorer(object())  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError):
        check_scorer("nobody")


def test_the_suite_runs_on_a_network_of_the_author() -> None:
    """The report names that network and no other."""
    own = Network("own", Adders(), torch.ones(1, 4), [torch.ones(2, 4), torch.zeros(2, 4)], mean_output)
    assert {result.network for result in check_scorer("taylor", network=own).results} == {"", "own"}


def test_rankings_of_all_built_in_scorers_are_plain_json() -> None:
    """No NumPy or torch number reaches a file."""
    for name in COMPUTING:
        ranking = score(graph_of("residual"), name, **residual())
        assert Ranking.from_dict(json.loads(json.dumps(ranking.to_dict()))) == ranking
