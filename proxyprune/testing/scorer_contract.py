"""The contract suite for authors of scorers.

    from proxyprune.testing import check_scorer

    def test_contract():
        check_scorer(MyScorer())

`check_scorer` runs a scorer on two small networks, gives it exactly what it declares in `needs`, and looks at what it returns and at what
it leaves behind. All failures are reported at once.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxyprune.api import trace
from proxyprune.errors import ProxyPruneError, ScorerLoadError
from proxyprune.scoring.contract import NEEDS, LossFunction, Scorer, ScoringContext, check_contract
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.registry import find
from proxyprune.scoring.run_scorer import check_ranking, score

if TYPE_CHECKING:
    from proxyprune.graph.model_graph import ModelGraph
    from proxyprune.tracing.model_call import ExampleInputs


@dataclass(frozen=True)
class Network:
    """A network to check scorers on.

    Attributes:
        name: For the report.
        model: The network, in the mode in which it is to be scored.
        example_inputs: What it is traced on.
        batches: Calibration batches, at least two.
        loss_fn: Scalar loss of the model on one batch.
    """

    name: str
    model: nn.Module
    example_inputs: ExampleInputs
    batches: Sequence[Any]
    loss_fn: LossFunction


@dataclass(frozen=True)
class CheckResult:
    """One promise of the contract, on one network, and how it is broken (nothing when it is kept)."""

    promise: str
    network: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'broken' if self.problems else 'kept':6}  {self.network:9}  {self.promise}" + "".join(
            f"\n          {p}" for p in self.problems
        )


@dataclass(frozen=True)
class ContractReport:
    """Everything that was checked."""

    scorer: str
    results: tuple[CheckResult, ...]

    @property
    def broken(self) -> tuple[CheckResult, ...]:
        """The promises that do not hold."""
        return tuple(result for result in self.results if result.problems)

    def __str__(self) -> str:
        return "\n".join([f"Scorer '{self.scorer}': {len(self.broken)} of {len(self.results)} promises broken", *map(str, self.results)])


class ScorerContractError(ProxyPruneError, AssertionError):
    """A scorer breaks its contract; the message lists all broken promises.

    Attributes:
        report: What was checked, kept promises included.
    """

    def __init__(self, report: ContractReport) -> None:
        super().__init__("\n".join([f"Scorer '{report.scorer}' breaks its contract:", *map(str, report.broken)]))
        self.report = report


def check_scorer(scorer: str | Scorer, *, network: Network | None = None) -> ContractReport:
    """Check that a scorer keeps the contract.

    Args:
        scorer: The scorer, or its registered name.
        network: Check on this network instead of the two built-in ones.

    Returns:
        The report; every promise in it is kept.

    Raises:
        ScorerContractError: If a promise is broken; all of them at once.
        UnknownNameError: If no scorer has that name.
    """
    name = scorer if isinstance(scorer, str) else str(getattr(scorer, "name", type(scorer).__name__))
    try:
        judge = find(scorer, {}) if isinstance(scorer, str) else check_contract(scorer, f"The object {type(scorer).__name__}")
    except ScorerLoadError as error:
        raise ScorerContractError(ContractReport(name, (CheckResult(_SHAPE, "", (str(error),)),))) from error
    results = [CheckResult(_SHAPE, "", ())]
    for subject in (network,) if network is not None else (residual_network(), attention_network()):
        results += _check_on(judge, subject)
    report = ContractReport(name, tuple(results))
    if report.broken:
        raise ScorerContractError(report)
    return report


# What is checked


@dataclass(frozen=True)
class _Run:
    """One call of the scorer and what it left behind."""

    ranking: Ranking | None
    error: Exception | None
    traces: Mapping[str, tuple[str, ...]]

    @property
    def text(self) -> str:
        return "" if self.ranking is None else json.dumps(self.ranking.to_dict())


@dataclass
class _Watched:
    """Calls a scorer, and keeps the state that it leaves behind; `score` restores the network afterwards."""

    scorer: Scorer
    model: nn.Module
    left_behind: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The scorer's name."""
        return self.scorer.name

    @property
    def needs(self) -> frozenset[str]:
        """The scorer's needs."""
        return self.scorer.needs

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Call the scorer."""
        try:
            return self.scorer.score(graph, context)
        finally:
            self.left_behind = _state(self.model, graph)


@dataclass(frozen=True)
class _Case:
    scorer: Scorer
    network: Network
    graph: ModelGraph

    @property
    def declared(self) -> dict[str, Any]:
        """The arguments that the scorer's needs stand for, and no others."""
        given = {"model": self.network.model, "batches": self.network.batches, "loss_fn": self.network.loss_fn}
        wanted = {argument for need in self.scorer.needs for argument in NEEDS[need]}
        return {name: value for name, value in given.items() if name in wanted}

    def run(self, seed: int = 0, **changed: Any) -> _Run:
        """Score with exactly what is declared."""
        arguments = {"example_inputs": self.network.example_inputs, **self.declared, **changed}
        watched = _Watched(self.scorer, self.network.model)
        return self._observed(lambda: score(self.graph, watched, seed=seed, **arguments), watched)

    def run_bare(self) -> _Run:
        """Call the scorer itself, past the checks of `score`, with nothing at all."""
        return self._observed(lambda: check_ranking(self.graph, self.scorer.score(self.graph, ScoringContext()), self.scorer.name))

    def _observed(self, call: Callable[[], Ranking], watched: _Watched | None = None) -> _Run:
        before = _state(self.network.model, self.graph)
        ranking, error, printed = None, None, io.StringIO()
        with contextlib.redirect_stdout(printed):
            try:
                ranking = call()
            except Exception as raised:  # noqa: BLE001  whatever a scorer raises is what the report is about
                error = raised
        left = watched.left_behind if watched is not None else None
        after = _state(self.network.model, self.graph) if left is None else left
        traces = {what: tuple(_differences(before[what], after[what])) for what in before}
        traces["output"] = (f"printed {printed.getvalue()[:60]!r}",) if printed.getvalue() else ()
        return _Run(ranking, error, traces)


_SHAPE = "It has a name, needs that exist, and score(graph, context)."
_SCORES = "Given exactly what it declares in needs, it scores every block once in [0, 1], and channels group by group."
_REPEATS = "The same seed gives the same ranking, byte for byte, whatever the global random generators hold."
_SEEDS = "It accepts another seed."
_NO_GRAD = "It gives the same ranking inside torch.no_grad()."
_JSON = "Its ranking survives JSON."
_MISSING = "Called with nothing, it works or raises a ProxyPruneError."
_FAILING = "When a batch cannot be used, it raises a ProxyPruneError."
_TRACES = {
    "weights": "It leaves parameters and buffers as they were.",
    "gradients": "It leaves gradients and requires_grad as they were.",
    "modules": "It leaves training modes, hooks and attributes as they were.",
    "generators": "It leaves the random generators of torch, NumPy and Python as they were.",
    "graph": "It does not change the graph.",
    "output": "It prints nothing on standard output.",
}


def _check_on(scorer: Scorer, network: Network) -> Iterator[CheckResult]:
    case = _Case(scorer, network, trace(network.model, network.example_inputs, probe=False))
    first = case.run()
    runs = [first]
    yield CheckResult(_SCORES, network.name, _failure(first))
    if first.ranking is not None:
        with _other_generators():
            again = case.run()
        other_seed = case.run(seed=1)
        with torch.no_grad():
            detached = case.run()
        runs += [again, other_seed, detached]
        yield CheckResult(_REPEATS, network.name, _compare(first, again))
        yield CheckResult(_SEEDS, network.name, _failure(other_seed))
        yield CheckResult(_NO_GRAD, network.name, _compare(first, detached))
        yield CheckResult(_JSON, network.name, _round_trip(first.ranking))
    bare = case.run_bare()
    runs.append(bare)
    yield CheckResult(_MISSING, network.name, _foreign(bare))
    if "batches" in case.declared:
        failing = case.run(batches=[*network.batches[:1], _Unusable()])
        runs.append(failing)
        yield CheckResult(_FAILING, network.name, _foreign(failing) or (() if failing.error else ("it returned a ranking",)))
    for what, promise in _TRACES.items():
        yield CheckResult(promise, network.name, tuple(dict.fromkeys(problem for run in runs for problem in run.traces[what])))


class _Unusable:
    """A batch that no model accepts."""


def _failure(run: _Run) -> tuple[str, ...]:
    return () if run.error is None else (f"{type(run.error).__name__}: {run.error}",)


def _foreign(run: _Run) -> tuple[str, ...]:
    return () if isinstance(run.error, ProxyPruneError | None) else _failure(run)


def _compare(first: _Run, second: _Run) -> tuple[str, ...]:
    if second.error is not None or first.ranking is None or second.ranking is None:
        return _failure(second)
    if first.text == second.text:
        return ()
    changed = [block for block, value in first.ranking.scores.items() if second.ranking.scores[block] != value]
    where = f"blocks {', '.join(changed[:3])}" if changed else "channel scores, notes or confidence"
    return (f"the second ranking differs in {where}",)


def _round_trip(ranking: Ranking) -> tuple[str, ...]:
    try:
        back = Ranking.from_dict(json.loads(json.dumps(ranking.to_dict())))
    except (TypeError, ValueError, ProxyPruneError) as error:
        return (f"{type(error).__name__}: {error}",)
    return () if back.to_dict() == ranking.to_dict() else ("it reads back as another ranking",)


# What a scorer could leave behind


def _state(model: nn.Module, graph: ModelGraph) -> dict[str, dict[str, object]]:
    """Everything that has to stay as it is, by area, then by name; values are compared with `_same`."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modules = dict(model.named_modules())
    return {
        "weights": {f"'{name}'": (id(tensor), tensor.detach().clone()) for name, tensor in tensors.items()},
        "gradients": {
            f"{what} of '{name}'": value
            for name, parameter in model.named_parameters()
            for what, value in (("gradient", _copy(parameter.grad)), ("requires_grad", parameter.requires_grad))
        },
        "modules": {
            f"{what} of '{name or type(model).__name__}'": value
            for name, module in modules.items()
            for what, value in (("training", module.training), ("hooks", _hooks(module)), ("attributes", tuple(sorted(vars(module)))))
        },
        "generators": {
            "torch generator": torch.get_rng_state(),
            "NumPy generator": str(np.random.get_state()),
            "Python generator": random.getstate(),
        },
        "graph": {
            "blocks": repr(graph.blocks),
            "groups": repr(graph.groups),
            "positions": b"".join(member.positions.tobytes() for group in graph.groups for member in group.members),
        },
    }


def _hooks(module: nn.Module) -> tuple[tuple[str, int], ...]:
    own = {name: value for name, value in vars(module).items() if name.endswith("_hooks") and isinstance(value, Mapping)}
    return tuple((name, len(hooks)) for name, hooks in sorted(own.items()))


def _copy(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach().clone()


def _differences(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[str]:
    for name in dict.fromkeys([*before, *after]):
        if name not in before or name not in after:
            yield f"{name} {'appeared' if name in after else 'is gone'}"
        elif not _same(before[name], after[name]):
            yield f"{name} changed"


def _same(before: object, after: object) -> bool:
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return torch.equal(before, after)
    if isinstance(before, tuple) and isinstance(after, tuple):
        return len(before) == len(after) and all(_same(a, b) for a, b in zip(before, after, strict=True))
    return type(before) is type(after) and before == after


@contextlib.contextmanager
def _other_generators() -> Iterator[None]:
    """Advance the global random generators for a while."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.rand(3)
    np.random.rand(3)
    random.random()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


# The two networks


class _Residual(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.drop = nn.Dropout(0.1)
        self.conv2 = nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(self.drop(F.silu(self.norm1(self.conv1(x)))))
        return out


class _ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(_Residual(8, 12), _Residual(8, 6))
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.deep = nn.Sequential(_Residual(16, 8))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.down(self.blocks(self.stem(x))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        parts = [layer(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        mixed = F.scaled_dot_product_attention(*parts)
        out: Tensor = x + self.out(mixed.transpose(1, 2).flatten(2))
        return out


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return out


class _AttentionNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layers = nn.ModuleList([_Attention(16, 4), _FeedForward(16, 24), _Attention(16, 4), _FeedForward(16, 40)])
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


def residual_network() -> Network:
    """Return a residual classifier, 3x8x8 -> 5, with batch norm and dropout; in training mode, one block in evaluation mode."""
    with _seeded():
        model = _ResidualNet().train()
        model.deep.eval()
        _give_gradient(model.stem.weight)
        return Network("residual", model, torch.randn(1, 3, 8, 8), _classification((4, 3, 8, 8)), _cross_entropy)


def attention_network() -> Network:
    """Return a pre-norm attention classifier, 7 tokens of 6 -> 5, with 4 heads; in evaluation mode, one layer frozen."""
    with _seeded():
        model = _AttentionNet().eval()
        model.layers[1].requires_grad_(False)
        _give_gradient(model.head.weight)
        return Network("attention", model, torch.randn(1, 7, 6), _classification((4, 7, 6)), _cross_entropy)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def _give_gradient(parameter: Tensor) -> None:
    """Return a gradient that the caller left there; a scorer that calls backward() or zero_grad() would change it."""
    parameter.grad = torch.ones_like(parameter)


def _classification(shape: tuple[int, ...]) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple((torch.randn(shape), torch.randint(0, 5, shape[:1])) for _ in range(2))


def _cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, target = batch
    return F.cross_entropy(model(x), target)
