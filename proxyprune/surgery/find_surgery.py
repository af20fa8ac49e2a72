"""Find the surgery that makes a model do what a prediction says, without a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from proxyprune.errors import VerificationError
from proxyprune.surgery.find_attributes import Follower, confirm, layer_attributes, obvious_changes
from proxyprune.surgery.find_bypass import watch
from proxyprune.surgery.perform import rewire
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import Surgery
from proxyprune.surgery.verify_dry import Difference
from proxyprune.surgery.verify_live import Observer, Parted
from proxyprune.tracing.model_call import Call, TrainingCall, as_if_exporting, call_arguments, evaluation, on_device_of
from proxyprune.tracing.skeleton import Ghost, empty_inputs, skeleton


def runs_as_predicted(model: nn.Module, prediction: Prediction, example_inputs: Call) -> bool:
    """Whether a skeleton, cut with the obvious attributes, does what is predicted; a no only says that a search is needed."""
    if prediction.removed:
        return False
    ghost = Ghost.meta()
    surgery = Surgery(prediction.cuts, (*layer_attributes(model, prediction), *obvious_changes(model, prediction)), ())
    pruned = _pruned_skeleton(model, prediction, surgery, ghost)
    args, kwargs = empty_inputs(call_arguments(on_device_of(model, example_inputs)), ghost)
    observer = Observer(prediction)
    try:
        with evaluation(pruned, training=isinstance(example_inputs, TrainingCall)), ghost.running(), as_if_exporting(), observer:
            pruned(*args, **kwargs)
        observer.ended()
    except (Parted, Exception):  # noqa: BLE001  whatever a forward raises, the search says where
        return False
    return True


def has_no_values(model: nn.Module) -> bool:
    """Return whether some parameter has no data (meta device or fake tensor), so that the model cannot run."""
    return any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in model.parameters())


def plan_surgery(model: nn.Module, prediction: Prediction, example_inputs: Call) -> Surgery:
    """The surgery that makes `model` do what is predicted, found and verified on a skeleton.

    Raises:
        VerificationError: If no change of attributes makes the pruned forward agree with the prediction.
    """
    surgery, difference = attempt_surgery(model, prediction, example_inputs)
    if difference is not None:
        raise _failure(prediction, difference)
    return surgery


def attempt_surgery(model: nn.Module, prediction: Prediction, example_inputs: Call) -> tuple[Surgery, Difference | None]:
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


def _attempt(model: nn.Module, prediction: Prediction, example_inputs: Call, ghost: Ghost) -> _Attempt:
    bypassed = watch(skeleton(model, ghost), prediction, example_inputs, ghost) if prediction.removed else ()
    attributes = tuple(layer_attributes(model, prediction))
    base = Surgery(prediction.cuts, attributes, bypassed, prediction.rescaled)

    def follow(extra: frozenset[int]) -> tuple[Surgery, Difference | None]:
        follower = Follower(prediction, _pruned_skeleton(model, prediction, base, ghost), example_inputs, ghost, extra)
        difference = follower.run()
        return replace(base, attributes=(*attributes, *follower.changes)), difference

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
