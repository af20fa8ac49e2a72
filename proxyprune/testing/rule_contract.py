"""The contract suite for rules of custom ops.

    import proxyprune as pp
    from proxyprune.testing import check_rule

    def test_swish():
        with pp.register_rule("mylib::swish", "pointwise", keeps_zero=True):
            check_rule("mylib::swish", model, example_inputs)

`check_rule` prunes a network that contains the op and compares the result with the promises of the package. All failures are reported
at once.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from proxyprune.api import trace
from proxyprune.coupling.rules.register import op_name_of, registered_rules
from proxyprune.errors import ProxyPruneError, RuleError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.pruning.prune import prune
from proxyprune.result import PruneResult
from proxyprune.support.nested import tensors_of
from proxyprune.testing.scorer_contract import CheckResult
from proxyprune.tracing.model_call import ExampleInputs, call_arguments, evaluation
from proxyprune.tracing.nodes import op_name

_RULE = "The op has a rule, and nothing is pinned for lack of one."
_CUT = "A channel group that passes the op can be cut."
_RUNS = "The network is pruned to the target, and the result runs."
_EXACT = "Planned MACs equal counted MACs, before and after."
_MASKING = "Pruning equals masking: the original with the dropped slices zeroed gives the same output."
_REPEATS = "A second trace gives the same text and the same plan."

_NORMS_OVER_CHANNELS = frozenset({"aten.layer_norm", "aten.rms_norm", "aten.group_norm"})
_TOLERANCE = 1e-5
"""Largest difference from the masked original, in double precision, as a share of the output's largest magnitude."""


@dataclass(frozen=True)
class RuleReport:
    """Everything that was checked about one registered rule."""

    op: str
    results: tuple[CheckResult, ...]

    @property
    def broken(self) -> tuple[CheckResult, ...]:
        """The promises that do not hold."""
        return tuple(result for result in self.results if result.problems)

    def __str__(self) -> str:
        return "\n".join([f"Rule of {self.op}: {len(self.broken)} of {len(self.results)} promises broken", *map(str, self.results)])


class RuleContractError(ProxyPruneError, AssertionError):
    """A registered rule breaks a promise; the message lists all of them.

    Attributes:
        report: What was checked, kept promises included.
    """

    def __init__(self, report: RuleReport) -> None:
        super().__init__("\n".join([f"The rule of {report.op} breaks its contract:", *map(str, report.broken)]))
        self.report = report


def check_rule(
    op: Any,
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    target: float = 0.6,
    flops: Callable[..., int] | None = None,
    macs: int | None = None,
    masking: bool = True,
) -> RuleReport:
    """Check that a registered rule keeps the promises of the package, on a network that contains the op.

    The weights of `model` should be random, so that no part of it is silent. It should not normalise over channels that can be cut, for
    pruning changes such statistics; use batch norm or none.

    Args:
        op: The op, as for `register_rule`.
        model: A small network in evaluation mode that calls the op; it is not changed.
        example_inputs: As for `trace`.
        target: Share of the MACs that the pruned network may spend.
        flops: FLOP formula of the op, as for `torch.utils.flop_counter.register_flop_formula`: called with the shapes of the arguments
            and `out_shape=`, it returns operations (two for each multiply-accumulate). Needed if the op multiplies matrices, unless
            a formula is registered with torch.
        macs: Multiply-accumulates of the whole unpruned network, as an independent number to compare with.
        masking: False for an op that computes a statistic over the channels that are cut, as a norm does.

    Returns:
        The report; every promise in it is kept.

    Raises:
        RuleContractError: If a promise is broken; all of them at once.
        RuleError: If the op does not exist, has no registered rule, or is not called by the model.
    """
    name = op_name_of(op)
    if name not in registered_rules():
        raise RuleError(f"No rule is registered for {name}. Call proxyprune.register_rule first.")
    graph = trace(model, example_inputs)
    if name not in graph.coupling.registered_ops:
        raise RuleError(f"The model does not call {name}, so its rule cannot be checked on it.")
    results = [
        CheckResult(promise, type(model).__name__, tuple(problems))
        for promise, problems in _checks(name, graph, model, example_inputs, _Asked(target, _formulas(name, flops), macs, masking))
    ]
    report = RuleReport(name, tuple(results))
    if report.broken:
        raise RuleContractError(report)
    return report


@dataclass(frozen=True)
class _Asked:
    """The request of the caller of `check_rule`."""

    target: float
    formulas: Mapping[Any, Callable[..., int]]
    macs: int | None
    masking: bool


def _formulas(name: str, flops: Callable[..., int] | None) -> dict[Any, Callable[..., int]]:
    namespace, _, op = name.partition(".")
    return {} if flops is None else {getattr(getattr(torch.ops, namespace), op): flops}


def _checks(
    name: str, graph: ModelGraph, model: nn.Module, example_inputs: ExampleInputs, asked: _Asked
) -> Iterator[tuple[str, Iterable[str]]]:
    """Every promise with the ways in which it is broken."""
    yield _RULE, [f"{other} has no rule" for other in graph.unsupported_ops]
    yield _CUT, _out_of_reach(name, graph)
    try:
        result = prune(model, example_inputs, asked.target)
    except ProxyPruneError as error:
        yield _RUNS, [f"{type(error).__name__}: {error}"]
        return
    yield _RUNS, ()
    yield _EXACT, _wrong_counts(model, result, example_inputs, asked)
    if asked.masking:
        yield _MASKING, _unlike_masking(model, result, example_inputs)
    yield _REPEATS, _unlike_again(model, result, example_inputs, asked.target)


def _out_of_reach(name: str, graph: ModelGraph) -> list[str]:
    """Return the reason why no axis that goes into the op or comes out of it can shrink; nothing if one can."""
    outcomes = graph.coupling.outcomes
    for node in (node for node in graph.program.calls if op_name(node) == name):
        near = list(outcomes[node].outputs)
        near += [axes for source in node.all_input_nodes if source in outcomes for axes in outcomes[source].outputs]
        if any(graph.coupling.count(axis)[1] for axes in near for axis in axes if axis is not None):
            return []
    reasons = dict.fromkeys(f"{group.id} {group.pinned}" for group in graph.groups if group.pinned is not None)
    return ["no dimension of its inputs and outputs can shrink", *list(reasons)[:4]]


def _wrong_counts(model: nn.Module, result: PruneResult, example_inputs: ExampleInputs, asked: _Asked) -> Iterator[str]:
    graph, plan = result.graph, result.plan
    if asked.macs is not None and graph.macs != asked.macs:
        yield f"the network has {asked.macs} MACs, the rule counts {graph.macs}"
    for what, planned, network in (("unpruned", graph.macs, model), ("pruned", plan.macs, result.model)):
        counted = _counted_macs(network, example_inputs, asked.formulas)
        if planned != counted:
            yield f"{what}: {planned} MACs planned, FlopCounterMode counts {counted} (nothing for an op without a formula; see flops=)"
    if graph.uncosted_ops:
        yield f"no cost is known for {', '.join(graph.uncosted_ops)}"


def _counted_macs(model: nn.Module, example_inputs: ExampleInputs, formulas: Mapping[Any, Callable[..., int]]) -> int:
    """Half the operations that torch counts, with attention as separate products."""
    args, kwargs = call_arguments(example_inputs)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False, custom_mapping=dict(formulas))
        with warnings.catch_warnings(), evaluation(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            warnings.simplefilter("ignore")  # an op without a formula is reported by the comparison
            model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def _unlike_masking(model: nn.Module, result: PruneResult, example_inputs: ExampleInputs) -> Iterator[str]:
    graph = result.graph
    norms = {op_name(node) for node in graph.program.calls} & _NORMS_OVER_CHANNELS
    if norms:
        yield (
            f"cannot be compared: the network contains {', '.join(sorted(norms))}, whose statistics change when channels leave. "
            "Use a network without norms over channels, or masking=False if the op itself is a norm"
        )
        return
    original = copy.deepcopy(model).double()
    masked = copy.deepcopy(original)
    _zero_dropped(masked, graph, result.plan.kept)
    expected, found, unmasked = (_outputs(network, example_inputs) for network in (masked, copy.deepcopy(result.model).double(), original))
    for index, (one, other, before) in enumerate(zip(expected, found, unmasked, strict=True)):
        scale = float(before.abs().max().clamp_min(1e-12))
        worst = float((one - other).abs().max()) / scale
        if not worst <= _TOLERANCE:
            yield f"output {index} differs by {worst:.1e} of its magnitude"
    if all(torch.equal(one, before) for one, before in zip(expected, unmasked, strict=True)):
        yield "masking changes no output, so the comparison proves nothing; give the network random weights"


@torch.no_grad()
def _zero_dropped(model: nn.Module, graph: ModelGraph, kept: Mapping[str, tuple[int, ...]]) -> None:
    tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    for group_id, atoms in kept.items():
        group = graph.by_id[group_id]
        dropped = sorted(set(range(group.atoms)) - set(atoms))
        for member in group.members:
            positions = torch.tensor(member.positions[dropped].reshape(-1))
            tensors[member.parameter].index_fill_(member.dim, positions, 0.0)


@torch.no_grad()
def _outputs(model: nn.Module, example_inputs: ExampleInputs) -> list[Tensor]:
    args, kwargs = call_arguments(example_inputs)
    args, kwargs = torch.utils._pytree.tree_map(_double, (args, kwargs))
    with evaluation(model):
        return [tensor.double() for tensor in tensors_of(model(*args, **kwargs))]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _unlike_again(model: nn.Module, result: PruneResult, example_inputs: ExampleInputs, target: float) -> Iterator[str]:
    again = prune(model, example_inputs, target)
    if again.graph.to_text() != result.graph.to_text():
        yield "the text of the graph differs"
    if again.plan.to_dict() != result.plan.to_dict():
        yield "the plan differs"
