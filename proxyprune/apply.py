"""Apply a plan: work out the surgery on a skeleton, verify it there, cut the real model, run it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from proxyprune.bypass import watch
from proxyprune.calling import ExampleInputs, as_if_exporting, call_arguments, evaluation, on_device_of
from proxyprune.errors import VerificationError
from proxyprune.follow import Follower, confirm, layer_attributes, obvious_changes
from proxyprune.graph import ModelGraph
from proxyprune.nested import tensors_of
from proxyprune.observe import Observer, Parted
from proxyprune.plan import PrunePlan
from proxyprune.predict import Prediction
from proxyprune.skeleton import Ghost, empty_inputs, skeleton
from proxyprune.surgery import Surgery, perform, pruned_copy, rewire
from proxyprune.verify import Difference


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
        from proxyprune.read import trace_like

        graph = trace_like(model, example_inputs, plan.options)
    plan.check(graph)
    prediction = Prediction.of(graph, plan)
    at_once = _at_once(model, prediction, example_inputs, inplace=inplace)
    if at_once is not None:
        return at_once
    surgery = plan_surgery(model, prediction, example_inputs)
    return Applied(_cut(model, surgery, lambda pruned: _run(pruned, prediction, example_inputs), inplace=inplace), surgery)


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
    """Cut with the obvious attributes, and verify while the result runs; None where that does not work out and a search is needed."""
    if prediction.removed or _has_no_values(model):
        return None
    changes = obvious_changes(model, prediction)
    surgery = Surgery(prediction.cuts, (*layer_attributes(model, prediction), *changes), ())

    def observed(pruned: nn.Module) -> None:
        observer = Observer(prediction)
        _run(pruned, prediction, example_inputs, observer)
        observer.ended()

    try:
        return Applied(_cut(model, surgery, observed, inplace=inplace), surgery)
    except (Parted, VerificationError):
        return None


def runs_as_predicted(model: nn.Module, prediction: Prediction, example_inputs: ExampleInputs) -> bool:
    """Whether a skeleton, cut with the obvious attributes, does what is predicted; a no only says that a search is needed."""
    if prediction.removed:
        return False
    ghost = Ghost.meta()
    surgery = Surgery(prediction.cuts, (*layer_attributes(model, prediction), *obvious_changes(model, prediction)), ())
    pruned = _pruned_skeleton(model, prediction, surgery, ghost)
    args, kwargs = empty_inputs(call_arguments(on_device_of(model, example_inputs)), ghost)
    observer = Observer(prediction)
    try:
        with evaluation(pruned), ghost.running(), as_if_exporting(), observer:
            pruned(*args, **kwargs)
        observer.ended()
    except (Parted, Exception):  # noqa: BLE001  whatever a forward raises, the search says where
        return False
    return True


def _has_no_values(model: nn.Module) -> bool:
    return any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in model.parameters())


def plan_surgery(model: nn.Module, prediction: Prediction, example_inputs: ExampleInputs) -> Surgery:
    """The surgery that makes `model` do what is predicted, found and verified on a skeleton.

    Raises:
        VerificationError: If no change of attributes makes the pruned forward agree with the prediction.
    """
    surgery, difference = attempt_surgery(model, prediction, example_inputs)
    if difference is not None:
        raise _failure(prediction, difference)
    return surgery


def attempt_surgery(model: nn.Module, prediction: Prediction, example_inputs: ExampleInputs) -> tuple[Surgery, Difference | None]:
    """The best surgery found and the difference that is left.

    Meta tensors are tried first. Where even the unpruned forward does something else on them than was traced (a model that makes
    tensors on the CPU, say), fake tensors are used, which keep every tensor's device.
    """
    example_inputs = on_device_of(model, example_inputs)
    attempt = _attempt(model, prediction, example_inputs, Ghost.meta())
    if attempt.difference is not None and not attempt.lined_up:
        attempt = _attempt(model, prediction, example_inputs, Ghost.fake())
    return attempt.surgery, attempt.difference


@dataclass(frozen=True)
class _Attempt:
    """One try at a surgery; `lined_up` says whether the unpruned forward does what was traced."""

    surgery: Surgery
    difference: Difference | None
    lined_up: bool


def _attempt(model: nn.Module, prediction: Prediction, example_inputs: ExampleInputs, ghost: Ghost) -> _Attempt:
    bypassed = watch(skeleton(model, ghost), prediction, example_inputs, ghost) if prediction.removed else ()
    attributes = tuple(layer_attributes(model, prediction))
    base = Surgery(prediction.cuts, attributes, bypassed)

    def follow(extra: frozenset[int]) -> tuple[Surgery, Difference | None]:
        follower = Follower(prediction, _pruned_skeleton(model, prediction, base, ghost), example_inputs, ghost, extra)
        difference = follower.run()
        return Surgery(base.cuts, (*attributes, *follower.changes), bypassed), difference

    surgery, difference = follow(frozenset())
    if difference is None:
        return _Attempt(surgery, None, lined_up=True)
    extra = confirm(skeleton(model, ghost), prediction, example_inputs, ghost)
    if extra:  # the forward does more than was traced (constants that export folded); the rest must agree
        surgery, difference = follow(extra)
    return _Attempt(surgery, difference, lined_up=extra is not None)


def _pruned_skeleton(model: nn.Module, prediction: Prediction, surgery: Surgery, ghost: Ghost) -> nn.Module:
    names = {cut.parameter for cut in surgery.cuts}
    blank = skeleton(model, ghost, {name: prediction.shape(name) for name in names})
    rewire(blank, surgery)
    return blank


def blamed_groups(prediction: Prediction, difference: Difference) -> tuple[str, ...]:
    """Channel groups whose cut shows at a difference: at the op itself, else inside its module, else all that are cut."""
    if difference.node is not None and (groups := prediction.groups_at(difference.node)):
        return groups
    cut = [group for group, mask in zip(prediction.graph.prunable, prediction.kept, strict=True) if not mask.all()]
    inside = f"{difference.module}."
    local = [group.id for group in cut if any(member.parameter.startswith(inside) for member in group.members)]
    return tuple(local) or tuple(group.id for group in cut)


def _failure(prediction: Prediction, difference: Difference) -> VerificationError:
    groups = blamed_groups(prediction, difference)
    shown = ", ".join(groups[:3]) + (f" and {len(groups) - 3} more" if len(groups) > 3 else "")
    program = prediction.graph.program
    op = f" at {difference.node.target}" if difference.node is not None else ""
    kind = program.classes.get(difference.module, "")
    return VerificationError(
        f"The pruned network would not do what was planned: in module '{difference.module}'{f' ({kind})' if kind else ''}{op}, "
        f"{difference.message}. Channel groups cut there: {shown}. A size is probably written as a constant in that forward. "
        "The model is unchanged. Leave these groups whole (keep=...), or use proxyprune.prune, which pins them and plans again.",
        module=difference.module,
        groups=groups,
    )


def _run(model: nn.Module, prediction: Prediction, example_inputs: ExampleInputs, observer: Observer | None = None) -> None:
    """Run the pruned model, under the eyes of an observer if there is one, and check the shapes of its outputs."""
    if _has_no_values(model):
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
