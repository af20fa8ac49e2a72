"""Find the surgery that makes a model do what a prediction says, without a plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from proxyprune.errors import VerificationError
from proxyprune.surgery.attribute_evidence import AttributeEvidence
from proxyprune.surgery.attribute_proposals import AttributeProposals
from proxyprune.surgery.comparison import Difference, predicted_calls
from proxyprune.surgery.dry_run import DryRun
from proxyprune.surgery.find_attributes import AttributeSearch, layer_attributes, obvious_changes
from proxyprune.surgery.find_pass_through import find_pass_through
from proxyprune.surgery.perform import rewire
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.surgery import AttributeChange, Surgery
from proxyprune.surgery.weight_gains import rescaled_gains
from proxyprune.tracing.model_call import Call
from proxyprune.tracing.module_stack import module_stack
from proxyprune.tracing.skeleton import EmptyTensors, skeleton


def obvious_surgery(model: nn.Module, prediction: Prediction, evidence: AttributeEvidence) -> Surgery:
    """Return the surgery with the attribute changes that need no search, for a prediction that removes no block."""
    changes = obvious_changes(AttributeProposals(prediction, model), evidence)
    attributes = (*layer_attributes(model, prediction), *changes)
    return Surgery(prediction.cuts, attributes, rescaled=rescaled_gains(prediction))


def has_no_values(model: nn.Module) -> bool:
    """Return True if some parameter has no data (meta device or fake tensor), so that the model cannot run."""
    return any(tensor.is_meta or isinstance(tensor, FakeTensor) for tensor in model.parameters())


@dataclass(frozen=True)
class FoundSurgery:
    """The best surgery that was found.

    Attributes:
        surgery: Cuts, attribute changes and removed blocks.
        difference: The first difference between the pruned forward and the prediction that no attribute change removes, or None.
        prediction: What the pruned forward must do.
        lined_up: True if the unpruned forward does what was traced, when it runs without data.
    """

    surgery: Surgery
    difference: Difference | None
    prediction: Prediction
    lined_up: bool = True

    def verified(self) -> Surgery:
        """Return the surgery.

        Raises:
            VerificationError: If a difference is left.
        """
        if self.difference is not None:
            raise _failure(self.prediction, self.difference)
        return self.surgery


def find_surgery(
    model: nn.Module,
    prediction: Prediction,
    example_inputs: Call,
    evidence: AttributeEvidence | None = None,
    wanted: Sequence[AttributeChange] = (),
) -> FoundSurgery:
    """Search, on a skeleton, for the surgery that makes `model` do what is predicted.

    Meta tensors are tried first. If even the unpruned forward does something else on them than was traced (a model that makes
    tensors on the CPU, say), fake tensors are used, which keep every tensor's device.

    Args:
        model: The unpruned model.
        prediction: What the pruned forward must do.
        example_inputs: What it was traced on.
        evidence: How the forward uses attributes, when at hand; it remembers which tensors will do.
        wanted: Further attribute changes, which the pruned forward has to agree with.
    """
    evidence = evidence or AttributeEvidence(model, prediction.graph, example_inputs)
    first, *others = evidence.runs.ways
    found = _search(model, prediction, first, evidence, wanted)
    for run in others:
        if found.difference is not None and not found.lined_up:
            found = _search(model, prediction, run, evidence, wanted)
    return found


def _search(
    model: nn.Module, prediction: Prediction, run: DryRun, evidence: AttributeEvidence, wanted: Sequence[AttributeChange]
) -> FoundSurgery:
    removed = find_pass_through(skeleton(model, run.empty), prediction, run) if prediction.removed else ()
    attributes = tuple(layer_attributes(model, prediction))
    base = Surgery(prediction.cuts, attributes, removed, rescaled_gains(prediction))
    proposals, calls = AttributeProposals(prediction, model), predicted_calls(prediction)
    start = (*obvious_changes(proposals, evidence), *wanted)

    def search(extra: frozenset[int]) -> tuple[Surgery, Difference | None]:
        pruned = _pruned_skeleton(model, prediction, base, run.empty)
        with module_stack(pruned) as modules:
            attempt = AttributeSearch(
                proposals, pruned, lambda blank: run.compare(blank, calls, extra, modules), start, evidence.may_be_read
            )
            difference = attempt.run()
        return replace(base, attributes=(*attributes, *attempt.changes)), difference

    known = evidence.runs.extra(run)
    surgery, difference = search(known)
    if difference is None:
        return FoundSurgery(surgery, None, prediction)
    unpruned = evidence.runs.lined_up(run)
    if unpruned.complete and unpruned.extra != known:  # the forward makes calls that were not traced; the rest must agree
        surgery, difference = search(unpruned.extra)
    return FoundSurgery(surgery, difference, prediction, unpruned.complete)


def _pruned_skeleton(model: nn.Module, prediction: Prediction, surgery: Surgery, empty: EmptyTensors) -> nn.Module:
    names = {cut.parameter for cut in surgery.cuts}
    blank = skeleton(model, empty, {name: prediction.shape(name) for name in names})
    rewire(blank, surgery)
    return blank


def blamed_groups(prediction: Prediction, difference: Difference) -> tuple[str, ...]:
    """Return the channel groups whose cut shows at a difference: at the op itself, else inside its module, else all that are cut."""
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
