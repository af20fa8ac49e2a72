"""Does the pruned module do what the plan predicted?

Two programs are run without data and their primitive ops recorded: the predicted one (the traced graph with predicted sizes and pruned
parameters) and the pruned module's own forward. They must be the same ops in the same order with the same output shapes and the same
integers and factors. So a head count written as a constant shows at once, although the module would run: its view has other factors.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._python_dispatch import TorchDispatchMode

from proxyprune.support.nested import tensors_of
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.width_factors import follows_width
from proxyprune.tracing.model_call import Call, TrainingCall, as_if_exporting, call_arguments, evaluation, failing_module
from proxyprune.tracing.skeleton import Ghost, empty_inputs

_BOOKKEEPING = ("aten::detach", "aten::alias", "aten::lift", "aten::_assert", "prim::", "aten::clone", "aten::_to_copy", "aten::copy_")
_SAME = {"aten::_unsafe_view": "aten::view", "aten::_reshape_alias": "aten::view"}  # which one runs depends on strides alone
_SHAPE_ARGUMENTS = tuple("view reshape expand empty zeros ones full repeat split as_strided upsample norm".split())


@dataclass(frozen=True, slots=True)
class PrimitiveOp:
    """One recorded op: its name, the shapes it returned, and the numbers it was given."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    numbers: tuple[int | float, ...]


@dataclass
class Recording:
    """The ops of one run, each with the place it came from (a module name, or a node of the traced graph).

    `made` says which op made a tensor, by the tensor's id; `alive` keeps these tensors, so that no id is used twice. `prediction` is set
    where the ops are predicted ones.
    """

    ops: list[PrimitiveOp] = field(default_factory=list)
    places: list[Any] = field(default_factory=list)
    error: BaseException | None = None
    failed_at: str = ""
    made: dict[int, int] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)
    prediction: Prediction | None = None

    def admits(self, position: int, found: PrimitiveOp) -> bool:
        """Return whether an op is the predicted one; a factor may differ where it follows a width."""
        op = self.ops[position]
        if found == op or self.prediction is None:
            return found == op
        if (found.name, found.shapes, len(found.numbers)) != (op.name, op.shapes, len(op.numbers)):
            return False
        place = self.places[position]
        return all(
            one == other or follows_width(self.prediction, place, one, other) for one, other in zip(op.numbers, found.numbers, strict=True)
        )


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    def __init__(self, recording: Recording, predicted: Recording | None = None, extra: frozenset[int] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.recording = recording
        self.predicted = predicted
        self.extra = extra
        self.position = 0
        self.place: Any = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = _SAME.get(func._schema.name, func._schema.name)
        if not name.startswith(_BOOKKEEPING):
            shapes = tuple(tuple(item.shape) for item in tensors_of(result))
            self.recording.ops.append(PrimitiveOp(name, shapes, _numbers(name, args)))
            self.recording.places.append(self.place)
            for item in tensors_of(result):
                self.recording.made[id(item)] = len(self.recording.ops) - 1
                self.recording.alive.append(item)
            self._compare()
        return result

    def _compare(self) -> None:
        if self.predicted is None or len(self.recording.ops) - 1 in self.extra:
            return
        if self.position >= len(self.predicted.ops) or not self.predicted.admits(self.position, self.recording.ops[-1]):
            raise _Parted
        self.position += 1


def _numbers(name: str, args: tuple[Any, ...]) -> tuple[int | float, ...]:
    """Integers that decide which elements are read, and factors; sizes that the output shape shows anyway are left out."""
    base = name.removeprefix("aten::")
    if base == "slice" and args:
        return _slice_bounds(*args)
    if base == "native_group_norm":
        return (int(args[-2]),)
    if base == "convolution":
        return (int(args[8]),)
    if any(part in base for part in _SHAPE_ARGUMENTS):
        return ()
    return tuple(arg for arg in args if isinstance(arg, int | float) and not isinstance(arg, bool))


def _slice_bounds(tensor: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> tuple[int, ...]:
    return slice(start, end, step).indices(tensor.shape[dim])


def record_predicted(prediction: Prediction, ghost: Ghost) -> Recording:
    """Run the predicted program on empty tensors."""
    program = prediction.graph.program
    recording = Recording(prediction=prediction)
    recorder = _Recorder(recording)
    values: dict[Node, Any] = {}
    replaced = {pair.result: pair.source for pairs in prediction.bypasses.values() for pair in pairs}
    with torch.no_grad(), ghost.running():
        for node in program.graph.nodes:
            if node.op == "placeholder":
                value = node.meta.get("val")
                name = program.state.get(node.name)
                values[node] = ghost.empty(value, None if name is None else prediction.shape(name)) if isinstance(value, Tensor) else value
            elif node.op == "get_attr":
                values[node] = ghost.empty(node.meta["val"])
            elif node.op == "call_function":
                if node in replaced:
                    values[node] = values[replaced[node]]
                    continue
                if prediction.is_removed(node):
                    continue
                recorder.place = node
                try:
                    values[node] = _call(node, prediction, values, recorder, ghost)
                except Exception as error:  # noqa: BLE001  an op that does not take the predicted sizes is a finding about them
                    recording.error, recording.failed_at = error, program.owners[node.name]
                    recording.ops.append(PrimitiveOp("not run", (), ()))
                    recording.places.append(node)
                    return recording
    return recording


def _call(node: Node, prediction: Prediction, values: dict[Node, Any], recorder: _Recorder, ghost: Ghost) -> Any:
    args, kwargs = prediction.arguments(node)
    args = torch.fx.node.map_arg(args, lambda n: values[n])
    kwargs = torch.fx.node.map_arg(kwargs, lambda n: values[n])
    if node.target is operator.getitem:
        return args[0][args[1]]
    args = tuple(ghost.device(arg) if isinstance(arg, torch.device) else arg for arg in args)
    kwargs = {key: ghost.device(arg) if isinstance(arg, torch.device) else arg for key, arg in kwargs.items()}
    if "_assert" in str(node.target):
        return None
    with recorder:
        return node.target(*args, **kwargs)  # type: ignore[operator]


class _Parted(BaseException):
    """Ends a run at its first difference; no `except Exception` in a forward swallows it."""


def record_actual(
    model: nn.Module,
    example_inputs: Call,
    ghost: Ghost,
    predicted: Recording | None = None,
    extra: frozenset[int] = frozenset(),
) -> Recording:
    """Run a skeleton's own forward on empty inputs; an exception ends the recording and is kept in it.

    With `predicted`, the run ends at the first op that differs from it.
    """
    recording = Recording()
    recorder = _Recorder(recording, predicted, extra)
    args, kwargs = call_arguments(example_inputs)
    args, kwargs = empty_inputs(args, ghost), empty_inputs(kwargs, ghost)
    with _places(model, recorder), evaluation(model, training=isinstance(example_inputs, TrainingCall)), ghost.running(), as_if_exporting():
        try:
            with recorder:
                model(*args, **kwargs)
        except _Parted:
            pass
        except Exception as error:  # noqa: BLE001  any exception of the user's forward is a finding, reported by the caller
            recording.error = error
            recording.failed_at = failing_module(model, error)
    return recording


@contextlib.contextmanager
def _places(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keep `recorder.place` at the name of the module whose forward is running."""
    stack: list[str] = [""]
    handles = []

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            stack.append(name)
            recorder.place = name

        return hook

    def leave(module: nn.Module, args: Any, result: Any) -> None:
        stack.pop()
        recorder.place = stack[-1]

    recorder.place = ""
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class Difference:
    """The first place where the two programs part.

    Attributes:
        progress: Number of predicted ops that agree.
        module: Module in which it shows.
        node: The traced op that was expected there, or None at the end of the program.
        message: What was expected and what was found.
    """

    progress: int
    module: str
    node: Node | None
    message: str


def compare(predicted: Recording, actual: Recording, extra: frozenset[int] = frozenset()) -> Difference | None:
    """First difference, or None when the pruned module does what was predicted.

    `extra` are indices of actual ops that the traced graph does not hold (constants it folded), found on the unpruned model.
    """
    if predicted.error is not None:
        message = f"the predicted sizes do not fit: {type(predicted.error).__name__}: {str(predicted.error).splitlines()[0][:200]}"
        return Difference(len(predicted.ops) - 1, predicted.failed_at, predicted.places[-1], message)
    mine = [index for index in range(len(actual.ops)) if index not in extra]
    for progress, op in enumerate(predicted.ops):
        if progress >= len(mine):
            return _ended(predicted, actual, progress)
        found = actual.ops[mine[progress]]
        if not predicted.admits(progress, found):
            place, node = str(actual.places[mine[progress]]), predicted.places[progress]
            if found.name == op.name and found.shapes == op.shapes:
                return Difference(progress, place, node, f"{op.name} was predicted with {op.numbers}, the module uses {found.numbers}")
            return Difference(progress, place, node, f"{_shown(op)} was predicted, the module does {_shown(found)}")
    if actual.error is not None:
        return _ended(predicted, actual, len(predicted.ops))
    if len(mine) > len(predicted.ops):
        index = mine[len(predicted.ops)]
        return Difference(len(predicted.ops), str(actual.places[index]), None, f"the module does {_shown(actual.ops[index])} at its end")
    return None


def _ended(predicted: Recording, actual: Recording, progress: int) -> Difference:
    node = predicted.places[progress] if progress < len(predicted.places) else None
    if actual.error is None:
        return Difference(
            progress, str(actual.places[-1]) if actual.places else "", node, "the module ends before the predicted program does"
        )
    lines = str(actual.error).strip().splitlines()
    detail = f"{type(actual.error).__name__}: {lines[0] if lines else 'no message'}"
    return Difference(progress, actual.failed_at, node, f"the module raises {detail}")


def _shown(op: PrimitiveOp) -> str:
    return f"{op.name.removeprefix('aten::')} -> {' '.join(str(list(shape)) for shape in op.shapes)}"


def extra_ops(predicted: Recording, actual: Recording) -> frozenset[int] | None:
    """Actual ops that the traced graph lacks, on the unpruned model; None when the two cannot be lined up."""
    extra, position = set(), 0
    for op in predicted.ops:
        while position < len(actual.ops) and actual.ops[position] != op:
            extra.add(position)
            position += 1
        if position == len(actual.ops):
            return None
        position += 1
    extra.update(range(position, len(actual.ops)))
    return frozenset(extra) if actual.error is None else None
