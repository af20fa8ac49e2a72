"""Run a skeleton's own forward without data, and compare it with a prediction.

A network that was cut wrongly often still runs: a head count written as a constant gives a view of the right size and other factors. So the
calls must be the predicted ones, in the same order, with the same settings and with results of the same shapes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from proxyprune.support.nested import tensors_of
from proxyprune.surgery.comparison import (
    Difference,
    PredictedCall,
    difference_of_arguments,
    difference_of_results,
    is_bookkeeping,
    named_arguments,
)
from proxyprune.surgery.observer import Observer
from proxyprune.surgery.prediction import Prediction
from proxyprune.tracing.dispatch import NumbersWritten, ReportedDevice, RunAborted, WholeOps
from proxyprune.tracing.empty_ops import EmptyOps
from proxyprune.tracing.model_call import Call, TrainingCall, as_if_exporting, call_arguments, evaluation, failing_module
from proxyprune.tracing.module_stack import ModuleStack, module_stack
from proxyprune.tracing.nodes import output_shapes
from proxyprune.tracing.program import Program
from proxyprune.tracing.skeleton import EmptyTensors, empty_inputs
from proxyprune.tracing.values import Decisions, RepeatedValues, read_values


@dataclass(frozen=True)
class DryRun:
    """A way to call a skeleton: the example inputs, and how empty tensors are made.

    Attributes:
        example_inputs: What is passed.
        empty: How empty tensors are made.
        known_ops: Ops that earlier runs on the meta device made. A later run of a network of many equal layers makes few new ones.
    """

    example_inputs: Call
    empty: EmptyTensors
    known_ops: EmptyOps = field(default_factory=EmptyOps, compare=False)

    @property
    def _device(self) -> torch.device | None:
        """The device of the example inputs; None when they hold no tensor."""
        return next((tensor.device for tensor in tensors_of(call_arguments(self.example_inputs))), None)

    def compare(
        self, model: nn.Module, calls: Sequence[PredictedCall], extra: frozenset[int] = frozenset(), modules: ModuleStack | None = None
    ) -> Difference | None:
        """Return the first difference between a skeleton's forward and the predicted calls, or None.

        Args:
            model: The skeleton, pruned.
            calls: What it must do.
            extra: As for `Observer`.
            modules: A stack that tracks the skeleton's modules, for many runs of one skeleton.
        """
        if modules is None:
            with module_stack(model) as modules:
                return self.compare(model, calls, extra, modules)
        modules.restart()
        observer = Observer(calls, modules, extra)
        try:
            self.call(model, observer, calls)
        except RunAborted:
            return observer.difference
        except Exception as error:  # noqa: BLE001  any exception of the user's forward is a difference, reported by the caller
            observer.failed(failing_module(model, error), error)
        return observer.ended()

    def line_up(self, model: nn.Module, calls: Sequence[PredictedCall]) -> LinedUp:
        """Match the calls of an unpruned skeleton's forward with the traced ones.

        The forward may make calls that the traced program lacks (results that nobody reads, which torch.export leaves out).
        """
        lined_up = LinedUp(calls)
        try:
            self.call(model, lined_up, calls)
        except Exception:  # noqa: BLE001  the unpruned forward cannot run without data: the caller reads that from `complete`
            return lined_up
        lined_up.complete = lined_up.progress == len(calls)
        return lined_up

    def call(self, model: nn.Module, mode: WholeOps | None, calls: Sequence[PredictedCall]) -> None:
        """Run a skeleton, inside a dispatch mode if one is given.

        Where the program was recorded on real tensors, values that were read, and sizes that data decided, are as they were then.

        Args:
            model: The skeleton.
            mode: Sees every op.
            calls: What the run is expected to do.
        """
        args, kwargs = call_arguments(self.example_inputs)
        args, kwargs = empty_inputs(args, self.empty), empty_inputs(kwargs, self.empty)
        training = isinstance(self.example_inputs, TrainingCall)
        with evaluation(model, training=training), self.empty.by_default(), self._as_when_traced(mode, calls):
            model(*args, **kwargs)

    @contextlib.contextmanager
    def _as_when_traced(self, mode: WholeOps | None, calls: Sequence[PredictedCall]) -> Iterator[None]:
        """Enter the mode, and let the run take the branches that the traced one took."""
        prediction = calls[0].prediction if calls else None
        if mode is not None and self.empty.mode is None:
            mode.known_ops = self.known_ops
        if prediction is None or prediction.graph.program.exporting:
            with as_if_exporting(), self._ops_of_device(prediction), mode or contextlib.nullcontext():
                yield
            return
        mode = mode or WholeOps()
        if not prediction.graph.program.on_values:
            with self._ops_of_device(prediction), mode:
                yield
            return
        on_meta = self.empty.mode is None
        reported = ReportedDevice(self._device) if on_meta and self._device is not None else contextlib.nullcontext()
        mode.decisions = Decisions(((call.node, call.shapes or output_shapes(call.node)) for call in calls), on_meta=on_meta)
        reads = (node for node in prediction.graph.program.calls if node.target is read_values and not prediction.is_removed(node))
        with RepeatedValues(reads), reported, mode:
            yield

    def _ops_of_device(self, prediction: Prediction | None) -> contextlib.AbstractContextManager[object]:
        """Let tensors on the meta device take the ops of the device that they stand for, if the traced forward writes numbers into any."""
        on_cpu = self._device is None or self._device.type == "cpu"
        needed = self.empty.mode is None and on_cpu and prediction is not None and _writes_numbers(prediction.graph.program)
        return NumbersWritten() if needed else contextlib.nullcontext()


def _writes_numbers(program: Program) -> bool:
    return bool(program.graph.find_nodes(op="call_function", target=torch.ops.aten.fill_.Tensor, sort=False))


@dataclass
class _Makers:
    """The traced op that made a tensor, by the tensor's id; `alive` keeps these tensors, so that no id is used twice."""

    nodes: dict[int, Node] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)


class LinedUp(WholeOps):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """Follow a run and match its calls with the traced ones, in order.

    Attributes:
        extra: Indices of calls that the traced program lacks.
        progress: Number of traced calls that were found.
        complete: True if the run ended and made every traced call.
    """

    def __init__(self, calls: Sequence[PredictedCall]) -> None:
        super().__init__()
        self.calls = calls
        self.progress = 0
        self.complete = False
        self._made = 0
        self._extra: set[int] = set()
        self._makers = _Makers()

    @property
    def extra(self) -> frozenset[int]:
        """Indices of calls that the traced program lacks."""
        return frozenset(self._extra)

    def maker(self, tensor: Tensor) -> Node | None:
        """Return the traced op that made a tensor of this run."""
        return self._makers.nodes.get(id(tensor))

    def op(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Match one call."""
        result = self.run(func, args, kwargs)
        if is_bookkeeping(func):
            self._pass_on(args, result)
            return result
        if self.progress < len(self.calls) and self._matches(self.calls[self.progress], func, args, kwargs, result):
            self._note(self.calls[self.progress].node, result)
            self.progress += 1
        else:
            self._extra.add(self._made)
        self._made += 1
        return result

    @staticmethod
    def _matches(call: PredictedCall, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> bool:
        found = named_arguments(func, args, kwargs)
        return difference_of_arguments(call, func, found) is None and difference_of_results(call, result) is None

    def _pass_on(self, args: Any, result: Any) -> None:
        """Give the result of a bookkeeping op the maker of its argument."""
        source = next(tensors_of(args), None)
        node = None if source is None else self.maker(source)
        if node is not None:
            self._note(node, result)

    def _note(self, node: Node, result: Any) -> None:
        for item in tensors_of(result):
            self._makers.nodes[id(item)] = node
            self._makers.alive.append(item)
