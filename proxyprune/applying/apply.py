"""Apply a plan: work out the surgery on a skeleton, verify it there, cut the real model, run it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.errors import VerificationError
from proxyprune.graph.build import trace_like
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.plan import PrunePlan
from proxyprune.support.nested import tensors_of
from proxyprune.surgery.comparison import predicted_calls
from proxyprune.surgery.find_surgery import find_surgery, has_no_values, obvious_surgery
from proxyprune.surgery.observer import Observer
from proxyprune.surgery.perform import perform, pruned_copy
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import Surgery
from proxyprune.tracing.dispatch import RunAborted
from proxyprune.tracing.model_call import ExampleInputs, call_arguments, evaluation, on_device_of


@dataclass(frozen=True)
class Applied:
    """A pruned model and the record of what was done to it."""

    model: nn.Module
    surgery: Surgery


def apply_plan(
    model: nn.Module, plan: PrunePlan, example_inputs: ExampleInputs, *, inplace: bool = False, graph: ModelGraph | None = None
) -> nn.Module:
    """Cut a model as planned and verify the result.

    Before anything is cut, the pruned forward is run without data and compared op by op with the prediction. Afterwards the pruned
    model is run on the example inputs and its output shapes are checked. On failure the caller's model is as it was.

    Args:
        model: The model that the plan was made for, unpruned.
        plan: From `make_plan` or `PrunePlan.from_json`.
        example_inputs: As for `trace`.
        inplace: Change `model` itself instead of a copy.
        graph: The trace of `model`, when at hand; it is traced again otherwise.

    Returns:
        The pruned module, of the same class and in the same mode (`model` itself when inplace).

    Raises:
        PlanMismatchError: If the plan is for another structure.
        VerificationError: If the pruned model would not run or would do something else than planned.
    """
    return apply(model, plan, example_inputs, inplace=inplace, graph=graph).model


def apply(
    model: nn.Module, plan: PrunePlan, example_inputs: ExampleInputs, *, inplace: bool = False, graph: ModelGraph | None = None
) -> Applied:
    """`apply_plan`, with the record of the surgery."""
    if graph is None:
        graph = trace_like(model, example_inputs, plan.options)
    plan.check(graph)
    prediction = predict(graph, plan)
    at_once = _at_once(model, prediction, example_inputs, inplace=inplace)
    if at_once is not None:
        return at_once
    surgery = find_surgery(model, prediction, example_inputs).verified()
    return Applied(_cut(model, surgery, lambda pruned: _run(pruned, prediction, example_inputs), inplace=inplace), surgery)


def predict(graph: ModelGraph, plan: PrunePlan) -> Prediction:
    """Predict the pruned program of a plan that fits the graph."""
    kept = []
    for group in graph.prunable:
        mask = np.ones(group.atoms, dtype=bool)
        if group.id in plan.kept:
            mask[:] = False
            mask[list(plan.kept[group.id])] = True
        kept.append(mask)
    return Prediction(graph, kept, frozenset(plan.removed_blocks))


def _cut(model: nn.Module, surgery: Surgery, check: Callable[[nn.Module], None], *, inplace: bool) -> nn.Module:
    """The model after a surgery that passed a check; what the check raises leaves the caller's model as it was."""
    if inplace:
        with _restored_on_error(model):
            perform(model, surgery)
            check(model)
        return model
    pruned = pruned_copy(model, surgery)
    check(pruned)
    return pruned


def _at_once(model: nn.Module, prediction: Prediction, example_inputs: ExampleInputs, *, inplace: bool) -> Applied | None:
    """Cut with the obvious attribute changes, and verify while the result runs; None if they do not suffice and a search is needed."""
    if prediction.removed or has_no_values(model):
        return None
    surgery = obvious_surgery(model, prediction)

    def observed(pruned: nn.Module) -> None:
        observer = Observer(predicted_calls(prediction))
        _run(pruned, prediction, example_inputs, observer)
        if observer.ended() is not None:
            raise RunAborted

    try:
        return Applied(_cut(model, surgery, observed, inplace=inplace), surgery)
    except (RunAborted, VerificationError):
        return None


def _run(model: nn.Module, prediction: Prediction, example_inputs: ExampleInputs, observer: Observer | None = None) -> None:
    """Run the pruned model, inside an observer if one is given, and check the shapes of its outputs."""
    if has_no_values(model):
        return
    args, kwargs = call_arguments(on_device_of(model, example_inputs))
    generators = torch.random.get_rng_state()
    try:
        with evaluation(model), observer or contextlib.nullcontext():
            outputs = tuple(tensors_of(model(*args, **kwargs)))
    except Exception as error:
        raise VerificationError(
            f"The pruned model raises on the example inputs ({type(error).__name__}: {error}), although its forward was verified without "
            "data. The model is unchanged. Something in it depends on values; leave the blocks named in the traceback whole (keep=...)."
        ) from error
    finally:
        torch.random.set_rng_state(generators)
    expected = _output_shapes(prediction)
    found = [tuple(output.shape) for output in outputs]
    if found != expected:
        raise VerificationError(f"The pruned model returns shapes {found}, expected {expected}. The model is unchanged.")


def _output_shapes(prediction: Prediction) -> list[tuple[int, ...]]:
    (output,) = (node for node in prediction.graph.program.graph.nodes if node.op == "output")
    results = output.args[0]
    assert isinstance(results, list | tuple)
    return [tuple(int(size) for size in item.meta["val"].shape) for item in results if isinstance(item.meta.get("val"), Tensor)]


@contextlib.contextmanager
def _restored_on_error(model: nn.Module) -> Iterator[None]:
    """Put every module back as it was if the body raises."""
    modules = list(model.modules())
    states = [
        {key: dict(value) if key in ("_parameters", "_buffers", "_modules") else value for key, value in vars(module).items()}
        for module in modules
    ]
    try:
        yield
    except BaseException:
        for module, state in zip(modules, states, strict=True):
            module.__dict__.clear()
            module.__dict__.update(state)
        raise
