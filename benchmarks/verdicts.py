"""Judge one network: build, prune to 0.6 of its MACs, and check everything that the package promises about the result."""

from __future__ import annotations

import copy
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from candidates import BUILD_SEED, INPUT_SEED, Candidate, Inputs
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import proxyprune as pp
from proxyprune.errors import ExampleInputsError, TargetError, TraceError

TARGET = 0.6
NEW_TOKENS = 4
_ERROR_LENGTH = 400
_PLAIN = "pp.plain_weights(model)"
"""Made before pruning where the error about the target names it; noted in the verdict."""

CHECKS = ("built", "traced", "planned", "runs", "exact", "saved", "greedy", "trains")
"""In the order in which they are made; None in a verdict stands for "does not apply" or "not reached"."""


@dataclass(frozen=True)
class Verdict:
    """Outcome for one network.

    Attributes:
        set: Name of its set.
        name: Name within the set.
        network: Class of the module.
        params: Parameters before pruning.
        built: The definition could be instantiated, and runs on the example inputs.
        traced: proxyprune could read it.
        planned: It was pruned to the target.
        runs: The pruned network runs; its outputs are finite where those of the unpruned one are.
        exact: The plan's MACs equal the measured ones, and no op is without a cost rule.
        saved: Saved and loaded again, it gives bit-identical outputs.
        greedy: Greedy tokens agree between cache modes. None if it is no causal language model.
        trains: One training step runs. None if one of the unpruned network does not.
        base_macs: Before pruning.
        macs: Planned.
        measured_macs: Counted while the pruned network runs.
        best_share: The lowest reachable fraction of the MACs, if above the target.
        seconds: Wall time of `pp.prune` on one core.
        stage: The check that is being made, or was being made when it ended.
        error: First line of the first error.
        notes: Further findings.
        peer: torch-pruning runs on it. None if it was not tried.
        peer_seconds: Wall time of that.
        peer_error: First line of its error.
    """

    set: str
    name: str
    network: str = ""
    params: int = 0
    built: bool | None = None
    traced: bool | None = None
    planned: bool | None = None
    runs: bool | None = None
    exact: bool | None = None
    saved: bool | None = None
    greedy: bool | None = None
    trains: bool | None = None
    base_macs: int | None = None
    macs: int | None = None
    measured_macs: int | None = None
    best_share: float | None = None
    seconds: float | None = None
    stage: str = "built"
    error: str | None = None
    notes: tuple[str, ...] = ()
    peer: bool | None = None
    peer_seconds: float | None = None
    peer_error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Verdict:
        """Read what `to_dict` returned."""
        return cls(**{**found, "notes": tuple(found.get("notes", ()))})

    @property
    def failed(self) -> tuple[str, ...]:
        """Checks that failed."""
        return tuple(check for check in CHECKS if getattr(self, check) is False)

    def failing(self, check: str, error: str) -> Verdict:
        """Return the verdict with a failed check; the first error is kept, later ones become notes."""
        if self.error is None:
            return replace(self, **{check: False}, error=error)
        return replace(self, **{check: False}, notes=(*self.notes, f"{check}: {error}"))


@dataclass(frozen=True)
class Trial:
    """A network that was built, the result of pruning it, and notes on how it came about."""

    candidate: Candidate
    model: nn.Module
    inputs: Inputs
    pruned: pp.PruneResult
    notes: tuple[str, ...] = ()


Report = Callable[[Verdict], None]


def judge(candidate: Candidate, report: Report) -> Verdict:
    """Make every check; `report` receives the verdict so far before each, so that it survives a killed process."""
    verdict = Verdict(candidate.set, candidate.name)
    report(verdict)
    try:
        model = candidate.build()
        inputs = candidate.inputs(model)
        verdict = replace(verdict, network=type(model).__name__, params=sum(parameter.numel() for parameter in model.parameters()))
        outputs(model, inputs)
    except Exception as error:  # noqa: BLE001  any failure of a foreign builder is a result
        return verdict.failing("built", first_line(error))
    verdict = replace(verdict, built=True, stage="planned")
    report(verdict)
    before = verdict
    verdict, pruned = _prune(model, inputs, verdict)
    notes: tuple[str, ...] = ()
    if pruned is None and _PLAIN in verdict.notes:
        candidate = replace(candidate, make=lambda make=candidate.make: pp.plain_weights(make().eval()).model)
        model, notes = candidate.build(), (_PLAIN,)
        verdict, pruned = _prune(model, inputs, before)
    if pruned is None:
        return verdict
    trial = Trial(candidate, model, inputs, pruned, notes)
    for check, make in _CHECKS.items():
        verdict = replace(verdict, stage=check)
        report(verdict)
        try:
            verdict = replace(verdict, **make(trial))
            if getattr(verdict, check) is False:
                verdict = verdict.failing(check, _REASONS[check](verdict))
        except Exception as error:  # noqa: BLE001  the reason for a failed check is the result
            verdict = verdict.failing(check, first_line(error))
    return replace(verdict, stage="done")


def _prune(model: nn.Module, inputs: Inputs, verdict: Verdict) -> tuple[Verdict, pp.PruneResult | None]:
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruned = pp.prune(model, inputs, target=TARGET, scorer="magnitude")
    except (ExampleInputsError, TraceError) as error:
        return verdict.failing("traced", first_line(error)), None
    except TargetError as error:
        share = re.search(r"MACs, ([01]\.\d+) of the base", str(error))
        notes = (_PLAIN,) if _PLAIN in str(error) else ()
        reached = replace(verdict, traced=True, best_share=float(share[1]) if share else None, notes=notes)
        return replace(reached, seconds=_since(started)).failing("planned", first_line(error)), None
    except Exception as error:  # noqa: BLE001  a failure of any kind is the result
        traced = _traces(model, inputs)
        return replace(verdict, traced=traced).failing("planned" if traced else "traced", first_line(error)), None
    figures = {"base_macs": pruned.plan.base_macs, "macs": pruned.plan.macs, "seconds": _since(started)}
    return replace(verdict, traced=True, planned=True, **figures), pruned


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 2)


def _traces(model: nn.Module, inputs: Inputs) -> bool:
    try:
        pp.trace(model, inputs, probe=False)
    except Exception:  # noqa: BLE001  asked which stage fails; the error itself was reported
        return False
    return True


def _runs(trial: Trial) -> dict[str, Any]:
    before, after = outputs(trial.model, trial.inputs), outputs(trial.pruned.model, trial.inputs)
    return {"runs": all(is_finite(value) for value in after) or not all(is_finite(value) for value in before)}


def _exact(trial: Trial) -> dict[str, Any]:
    measured, report = measured_macs(trial.pruned.model, trial.inputs), trial.pruned.report
    if measured != trial.pruned.plan.macs and any("depend on values" in note for note in report.notes):
        measured = measured_macs(trial.pruned.model, trial.inputs, onednn=True)  # rounding decides how many boxes are kept
    notes = (f"without a cost rule: {', '.join(report.uncosted_ops)}",) if report.uncosted_ops else ()
    announced = [note for note in report.notes if f"own run takes {measured:,} MACs" in note]
    exact = measured == trial.pruned.plan.macs or bool(announced)
    return {"exact": exact and not report.uncosted_ops, "measured_macs": measured, "notes": (*trial.notes, *notes, *announced)}


def _saved(trial: Trial) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        where = pp.save(trial.pruned, f"{folder}/pruned")
        loaded = pp.load(where, lambda: trial.candidate.build(BUILD_SEED + 1))
    return {"saved": same(outputs(trial.pruned.model, trial.inputs), outputs(loaded, trial.inputs))}


def _greedy(trial: Trial) -> dict[str, Any]:
    """Compare those ways of generating in which the unpruned network gives one answer."""
    if not trial.candidate.generates:
        return {}
    prompt = trial.inputs["input_ids"] if isinstance(trial.inputs, dict) else trial.inputs[0]
    before = {way: _attempt(lambda options=options: generate(trial.model, prompt, options)) for way, options in _WAYS.items()}
    agreed = [way for way, tokens in before.items() if isinstance(tokens, Tensor) and torch.equal(tokens, _reference(before))]
    if len(agreed) < 2:
        return {}
    after = [generate(trial.pruned.model, prompt, _WAYS[way]) for way in agreed]
    return {"greedy": all(torch.equal(tokens, after[0]) for tokens in after)}


_WAYS: dict[str, dict[str, Any]] = {
    "no cache": {"use_cache": False},
    "dynamic cache": {"use_cache": True},
    "static cache": {"use_cache": True, "cache_implementation": "static", "disable_compile": True},
}


def _reference(before: Mapping[str, Any]) -> Tensor:
    return next((tokens for tokens in before.values() if isinstance(tokens, Tensor)), torch.empty(0))


def generate(model: nn.Module, prompt: Tensor, options: Mapping[str, Any]) -> Tensor:
    """Return prompt and greedy tokens, [1, length]."""
    limits = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    with torch.no_grad(), quiet():
        return model.generate(prompt, attention_mask=torch.ones_like(prompt), **limits, **options)


def _trains(trial: Trial) -> dict[str, Any]:
    unpruned = _attempt(lambda: training_step(trial.model, trial.inputs))
    if isinstance(unpruned, Exception):
        return {}
    training_step(trial.pruned.model, trial.inputs)
    return {"trains": True}


def _attempt(do: Callable[[], Any]) -> Any:
    """Return the result, or the exception."""
    try:
        return do()
    except Exception as error:  # noqa: BLE001  the caller looks at it
        return error


_CHECKS: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "runs": _runs,
    "exact": _exact,
    "saved": _saved,
    "greedy": _greedy,
    "trains": _trains,
}

_REASONS: dict[str, Callable[[Verdict], str]] = {
    "runs": lambda verdict: "outputs are not finite, although those of the unpruned network are",
    "exact": lambda verdict: (
        "; ".join(verdict.notes) or f"planned {verdict.macs:,} MACs, measured {verdict.measured_macs:,} of a base of {verdict.base_macs:,}"
    ),
    "saved": lambda verdict: "outputs of the loaded network differ",
    "greedy": lambda verdict: "greedy tokens differ between cache modes",
}


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Run the model on copies of its inputs, with the same random numbers every time."""
    torch.manual_seed(INPUT_SEED)
    copied = copy.deepcopy(inputs)
    with quiet():
        return model(**copied) if isinstance(copied, dict) else model(*copied)


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Return all tensors that the model returns, without gradients."""
    with torch.no_grad():
        return tensors_of(call(model, inputs))


def tensors_of(output: Any) -> list[Tensor]:
    """Return the tensors of an output, depth first; values that hold none, such as caches, are skipped."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors_of(value)]
    if is_dataclass(output) and not isinstance(output, type):
        return [tensor for item in fields(output) for tensor in tensors_of(getattr(output, item.name))]
    if isinstance(output, list | tuple):
        return [tensor for value in output for tensor in tensors_of(value)]
    return []


def same(some: list[Tensor], others: list[Tensor]) -> bool:
    """Return True if all tensors are equal bit by bit; NaN equals NaN."""
    return len(some) == len(others) and all(
        one.shape == other.shape and bool(torch.equal(one.nan_to_num(), other.nan_to_num()))
        for one, other in zip(some, others, strict=True)
    )


def is_finite(value: Tensor) -> bool:
    """Return True if no value is NaN or infinite."""
    return not value.is_floating_point() or bool(value.isfinite().all())


def training_step(model: nn.Module, inputs: Inputs) -> None:
    """Run forward and backward once in training mode, on a copy.

    Raises:
        RuntimeError: If no output depends on a parameter, or the backward pass fails.
    """
    trained = copy.deepcopy(model).train()
    found = [value.float().sum() for value in tensors_of(call(trained, inputs)) if value.requires_grad]
    if not found:
        raise RuntimeError("no output depends on a parameter")
    torch.stack(found).sum().backward()


def measured_macs(model: nn.Module, inputs: Inputs, onednn: bool = False) -> int:
    """Return the multiply-accumulates that FlopCounterMode counts, with everything switched off that hides matrix products from it.

    The default attention kernel, the fused path of nn.TransformerEncoder and oneDNN's LSTM are single ops that it counts as nothing.
    Grouped products of experts have no formula in torch; each row is multiplied with the matrix of one expert.

    Args:
        model: The network.
        inputs: Its inputs.
        onednn: Leave oneDNN on, so that values round as in an ordinary run.
    """
    frozen = copy.deepcopy(model).requires_grad_(False)  # the counter fails on a parameter that is passed to a module
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False, custom_mapping=grouped_products())
        with quiet(), sdpa_kernel(SDPBackend.MATH), counter, torch.backends.mkldnn.flags(enabled=onednn):
            outputs(frozen, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2


def grouped_products() -> dict[Any, Callable[..., int]]:
    """Return the formulas of the grouped products that this process has ops for."""
    own = getattr(getattr(torch.ops, "transformers", None), "grouped_mm_fallback", None)  # only once transformers is imported
    return {op: _grouped_flops for op in (torch.ops.aten._grouped_mm, own) if op is not None}


def _grouped_flops(rows: Any, matrices: Any, *others: Any, **options: Any) -> int:
    """Count two operations for each entry of a row [rows, in] and each column of its matrix [experts, in, out]."""
    return int(2 * rows[0] * rows[1] * matrices[2])


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings of libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def first_line(error: BaseException) -> str:
    """Return the error's type and the first line of its message, or the first two if the first only announces the second."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or ["no message"]
    text = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {text}"[:_ERROR_LENGTH]
