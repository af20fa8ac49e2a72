"""Apply a plan: work out the surgery on a skeleton, verify it there, cut the real model, run it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from proxyprune.applying.mismatch import check_plan
from proxyprune.errors import VerificationError
from proxyprune.graph.build import calls_of, cost_of_run, trace_like
from proxyprune.graph.cost import CostModel
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.plan import PrunePlan
from proxyprune.standard.follow_config import follow_config
from proxyprune.standard.rebuild import InnerCall, inner_call
from proxyprune.support.nested import tensors_of
from proxyprune.surgery.attribute_evidence import AttributeEvidence, evidence_for
from proxyprune.surgery.attribute_proposals import AttributeProposals
from proxyprune.surgery.comparison import predicted_calls
from proxyprune.surgery.decoding import Decoding, find_decoding
from proxyprune.surgery.feature_sizes import FeatureSizes
from proxyprune.surgery.find_attributes import attributes_not_followed
from proxyprune.surgery.find_surgery import find_surgery, has_no_values, obvious_surgery
from proxyprune.surgery.method_sizes import followed_by_methods
from proxyprune.surgery.observer import Observer
from proxyprune.surgery.perform import perform, pruned_copy, set_attribute
from proxyprune.surgery.prediction import Prediction
from proxyprune.surgery.shared_heads import shared_heads
from proxyprune.surgery.stack_positions import position_changes
from proxyprune.surgery.surgery import AttributeChange, Surgery, joined
from proxyprune.tracing.capture import capture_on_values
from proxyprune.tracing.dispatch import RunAborted
from proxyprune.tracing.model_call import Call, ExampleInputs, TrainingCall, call_arguments, evaluation, on_device_of
from proxyprune.tracing.module_state import unchanged
from proxyprune.tracing.program import Program


@dataclass(frozen=True)
class _ExampleCall:
    """One example call, the sizes that it must have in the pruned model, and how it uses attributes."""

    prediction: Prediction
    inputs: Call
    evidence: AttributeEvidence


@dataclass(frozen=True)
class Applied:
    """A pruned model and the record of what was done to it.

    Attributes:
        model: The pruned model.
        surgery: Slices, attribute changes and removed blocks.
        not_followed: Attribute -> why it kept its value although it equals a size that changed.
        cost: Cost of the pruned model's own run, if values decide its sizes and they are not those of the unpruned run.
        config_note: Why the model's config cannot express the pruned network, or None.
    """

    model: nn.Module
    surgery: Surgery
    not_followed: Mapping[str, str] = field(default_factory=dict)
    cost: CostModel | None = None
    config_note: str | None = None


def apply_plan(
    model: nn.Module,
    plan: PrunePlan,
    example_inputs: ExampleInputs,
    *,
    also: Sequence[Call] = (),
    inplace: bool = False,
    graph: ModelGraph | None = None,
) -> nn.Module:
    """Cut a model as planned and verify the result.

    Before anything is cut, the pruned forward is run without data and compared op by op with the prediction. Afterwards the pruned
    model is run on the example inputs and its output shapes are checked. On failure the caller's model is as it was.

    Args:
        model: The model that the plan was made for, unpruned.
        plan: From `make_plan` or `PrunePlan.from_json`.
        example_inputs: As for `trace`.
        also: Further example calls, as for `trace`; `graph` has its own.
        inplace: Change `model` itself instead of a copy.
        graph: The trace of `model`, when at hand; it is traced again otherwise.

    Returns:
        The pruned module, of the same class and in the same mode (`model` itself when inplace).

    Raises:
        PlanMismatchError: If the plan is for another structure.
        VerificationError: If the pruned model would not run or would do something else than planned.
    """
    if graph is None:
        graph = trace_like(model, example_inputs, plan.options, also)
    return apply(model, plan, example_inputs, inplace=inplace, graph=graph).model


def apply(
    model: nn.Module,
    plan: PrunePlan,
    example_inputs: ExampleInputs,
    *,
    inplace: bool = False,
    graph: ModelGraph | None = None,
    evidence: Sequence[AttributeEvidence] | None = None,
) -> Applied:
    """`apply_plan`, with the record of the surgery.

    `evidence` has one entry for each example call, from an earlier plan or probe of the same model; it is gathered again otherwise.
    """
    if graph is None:
        graph = trace_like(model, example_inputs, plan.options)
    check_plan(plan, graph, model, example_inputs)
    views = calls_of(graph, example_inputs)
    known = evidence or evidence_for(model, graph, example_inputs)
    calls = [_ExampleCall(predict(view, plan), inputs, own) for (view, inputs), own in zip(views, known, strict=True)]
    features = None if has_no_values(model) else FeatureSizes.of(model, calls[0].inputs)
    applied = _cut_and_verified(model, calls, inplace=inplace)
    if features is not None:
        applied = _with_features(applied, features, calls[0].inputs)
    return replace(applied, config_note=_config_note(applied.model, graph, plan, example_inputs))


def _with_features(applied: Applied, before: FeatureSizes, inputs: Call) -> Applied:
    """Let the sizes that a network states about its features follow the cut."""
    after = FeatureSizes.of(applied.model, inputs, before.module)
    assert after is not None
    known = {(change.module, change.path) for change in applied.surgery.attributes}
    changes = [change for change in before.changes(after) if (change.module, change.path) not in known]
    for change in changes:
        set_attribute(applied.model.get_submodule(change.module), change.path, change.after)
    settled = {".".join((before.module, *path)).removeprefix(".") for path in before.stated}
    stay = {name: why for name, why in applied.not_followed.items() if name not in settled} | before.stay(after)
    surgery = replace(applied.surgery, attributes=(*applied.surgery.attributes, *changes))
    return replace(applied, surgery=surgery, not_followed=stay)


def _cut_and_verified(model: nn.Module, calls: Sequence[_ExampleCall], *, inplace: bool) -> Applied:
    """Cut with the obvious attribute changes, or with those that a search finds and verifies."""
    decoding = _decoding(model, calls)
    at_once = _at_once(model, calls, decoding, inplace=inplace)
    if at_once is not None:
        return at_once
    failure: VerificationError | None = None
    for wanted in _wanted_changes(model, calls[0].prediction, decoding):
        try:
            return _searched(model, calls, decoding, wanted, inplace=inplace)
        except VerificationError as error:
            failure = error
    assert failure is not None
    raise failure


def _searched(
    model: nn.Module, calls: Sequence[_ExampleCall], decoding: Decoding | None, wanted: Sequence[AttributeChange], *, inplace: bool
) -> Applied:
    """Search for the attributes that must change, cut, and verify."""
    wanted = (*wanted, *_followed(model, calls))

    runs: list[Program] = []

    def check(pruned: nn.Module) -> None:
        runs[:] = _run_all(pruned, calls)
        _decodes(pruned, decoding, calls[0].prediction)

    surgery = joined([find_surgery(model, call.prediction, call.inputs, call.evidence, wanted).verified() for call in calls])
    not_followed = _not_followed(model, surgery, calls)
    pruned = _cut(model, surgery, check, inplace=inplace)
    return Applied(pruned, surgery, not_followed, cost_of_run(pruned, runs[0], calls[0].prediction.graph) if runs else None)


def _followed(model: nn.Module, calls: Sequence[_ExampleCall]) -> tuple[AttributeChange, ...]:
    """Return changes of attributes that only other methods of their modules, or calls with a mask, use as sizes."""
    methods = followed_by_methods(model, AttributeProposals(calls[0].prediction, model), [call.evidence for call in calls])
    heads = {(change.module, change.path): change for change in shared_heads(model, calls[0].prediction)}
    return (*(change for change in methods if (change.module, change.path) not in heads), *heads.values())


def _decoding(model: nn.Module, calls: Sequence[_ExampleCall]) -> Decoding | None:
    """Return how the unpruned model decodes with a cache, if one of its example calls shows that."""
    if has_no_values(model):
        return None
    return next((found for call in calls if (found := find_decoding(model, call.inputs)) is not None), None)


def _wanted_changes(model: nn.Module, prediction: Prediction, decoding: Decoding | None) -> Iterator[Sequence[AttributeChange]]:
    """Yield attribute changes to try, in this order: layers that stay get the free slots of the cache, or keep theirs."""
    if decoding is not None and prediction.removed and (changes := position_changes(model, prediction.removed, decoding)):
        yield changes
    yield ()


def _decodes(pruned: nn.Module, decoding: Decoding | None, prediction: Prediction) -> None:
    """Raise VerificationError if a cached step of the pruned model differs from a whole pass; names the first removed block."""
    difference = None if decoding is None else decoding.difference(pruned)
    if difference is None:
        return
    order = [block.id for block in prediction.graph.blocks if block.id in prediction.removed]
    named = f" without block '{order[0]}'" if order else ""
    advice = f"Keep that block (keep=['{order[0]}'])" if order else "Leave the attention layers whole (keep=...)"
    raise VerificationError(
        f"The pruned model{named} decodes wrongly with a cache: {difference}. The unpruned model gives the same with and without a cache. "
        f"The model is unchanged. {advice}.",
        module=order[0] if order else "",
    )


def _config_note(pruned: nn.Module, graph: ModelGraph, plan: PrunePlan, example_inputs: ExampleInputs) -> str | None:
    """Let the config of a pruned model follow; why it cannot, or None."""
    if graph.blueprint is None or has_no_values(pruned) or not (plan.kept or plan.removed_blocks):
        return None
    blueprint = graph.blueprint
    args, kwargs = call_arguments(on_device_of(pruned, example_inputs))

    def call() -> InnerCall:
        with unchanged(pruned, keep_resized=True), evaluation(pruned):
            return inner_call(pruned, blueprint.module, tuple(args), kwargs)

    shapes = {**graph.program.shapes, **{alias: graph.program.shapes[name] for alias, name in graph.program.aliases.items()}}
    return follow_config(pruned, blueprint, shapes, call, uniform=bool(plan.options.get("uniform")))


def _not_followed(model: nn.Module, surgery: Surgery, calls: Sequence[_ExampleCall]) -> dict[str, str]:
    """Return the attributes that no example call uses although they equal a size that changed."""
    evidence = [call.evidence for call in calls]
    found: dict[str, str] = {}
    for call in calls:
        found |= attributes_not_followed(AttributeProposals(call.prediction, model), surgery, evidence)
    return found


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
    """Return the model after a surgery that passed a check; what the check raises leaves the caller's model as it was."""
    if inplace:
        with _restored_on_error(model):
            perform(model, surgery)
            check(model)
        return model
    pruned = pruned_copy(model, surgery)
    check(pruned)
    return pruned


def _at_once(model: nn.Module, calls: Sequence[_ExampleCall], decoding: Decoding | None, *, inplace: bool) -> Applied | None:
    """Cut with the obvious attribute changes, and verify while the result runs; None if they do not suffice and a search is needed."""
    if calls[0].prediction.removed or has_no_values(model):
        return None

    def observed(pruned: nn.Module) -> None:
        for call in calls:
            observer = Observer(predicted_calls(call.prediction))
            _run(pruned, call.prediction, call.inputs, observer)
            if observer.ended() is not None:
                raise RunAborted
        _decodes(pruned, decoding, calls[0].prediction)

    try:
        surgery = joined([obvious_surgery(model, call.prediction, call.evidence) for call in calls])
        known = {(change.module, change.path) for change in surgery.attributes}
        followed = [change for change in _followed(model, calls) if (change.module, change.path) not in known]
        surgery = replace(surgery, attributes=(*surgery.attributes, *followed))
        not_followed = _not_followed(model, surgery, calls)
        return Applied(_cut(model, surgery, observed, inplace=inplace), surgery, not_followed)
    except (RunAborted, VerificationError):
        return None


def _run_all(model: nn.Module, calls: Sequence[_ExampleCall]) -> Iterator[Program]:
    """Run every example call; with further ones also compare the ops, because each was searched alone.

    Yields:
        What the pruned model does in the first call, if values decide its sizes.
    """
    for call in calls:
        prediction, inputs = call.prediction, call.inputs
        if prediction.graph.program.on_values:  # compared without data alone: values, and with them sizes, are others now
            program = _run_on_values(model, prediction, inputs)
            if call is calls[0]:
                yield program
            continue
        if len(calls) == 1 or prediction.removed or has_no_values(model):
            _run(model, prediction, inputs)
            continue
        observer = Observer(predicted_calls(prediction))
        with contextlib.suppress(RunAborted):
            _run(model, prediction, inputs, observer)
        if observer.ended() is not None:
            raise VerificationError(
                "The attributes that one example call needs do not suit another one, so this plan is valid for some of the calls only. "
                "The model is unchanged. Prune without the further calls (also), or keep the blocks that they share (keep=...)."
            )


def _run(model: nn.Module, prediction: Prediction, example_inputs: Call, observer: Observer | None = None) -> None:
    """Run the pruned model, inside an observer if one is given, and check the shapes of its outputs."""
    if has_no_values(model):
        return
    args, kwargs = call_arguments(on_device_of(model, example_inputs))
    training = isinstance(example_inputs, TrainingCall)
    generators = torch.random.get_rng_state()
    try:
        with unchanged(model, keep_resized=True), evaluation(model, training=training), observer or contextlib.nullcontext():
            outputs = tuple(tensors_of(model(*args, **kwargs)))
    except Exception as error:
        raise _raised(error) from error
    finally:
        torch.random.set_rng_state(generators)
    expected = _output_shapes(prediction.graph.program)
    found = [tuple(output.shape) for output in outputs]
    if found != expected:
        raise VerificationError(f"The pruned model returns shapes {found}, expected {expected}. The model is unchanged.")


def _run_on_values(model: nn.Module, prediction: Prediction, example_inputs: Call) -> Program:
    """Run the pruned model and write down what it does. Outputs must have as many dimensions as before; their sizes may be others."""
    try:
        program = capture_on_values(model, example_inputs)
    except Exception as error:
        raise _raised(error) from error
    expected, found = _output_shapes(prediction.graph.program), _output_shapes(program)
    if [len(shape) for shape in found] != [len(shape) for shape in expected]:
        raise VerificationError(
            f"The pruned model returns shapes {found}, expected {expected} except for sizes that depend on values. The model is unchanged."
        )
    return program


def _raised(error: Exception) -> VerificationError:
    return VerificationError(
        f"The pruned model raises on the example inputs ({type(error).__name__}: {error}), although its forward was verified without "
        "data. The model is unchanged. Something in it depends on values; leave the blocks named in the traceback whole (keep=...)."
    )


def _output_shapes(program: Program) -> list[tuple[int, ...]]:
    (output,) = (node for node in program.graph.nodes if node.op == "output")
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
