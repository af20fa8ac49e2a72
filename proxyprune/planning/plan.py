"""A plan of what will be cut. It is a frozen value that can be stored as JSON, compared, checked against a graph, and replayed."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from proxyprune.coupling.groups import ChannelGroup
from proxyprune.errors import PlanFormatError, PlanMismatchError, StorageError
from proxyprune.graph.group_names import group_names, names_of_ids
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.summary import widths_table
from proxyprune.planning.budget import BUDGETED, METRICS, Target
from proxyprune.planning.planned_time import PlannedTime
from proxyprune.planning.request import MODES
from proxyprune.support.checks import is_count, listed
from proxyprune.support.dataclass_json import from_plain, to_plain
from proxyprune.support.files import write_named
from proxyprune.support.ranges import from_ranges, to_ranges
from proxyprune.support.strict_json import loads
from proxyprune.support.summary import Summary, SummaryTable
from proxyprune.support.wording import counted, share

SCHEMA = 1

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_KEYS = (
    "schema",
    "fingerprint",
    "mode",
    "metric",
    "target",
    "base_macs",
    "target_macs",
    "macs",
    "base_params",
    "target_params",
    "params",
    "scorer",
    "seed",
    "options",
    "removed_blocks",
    "groups",
    "notes",
    "sha256",
)
"""Keys in the order of the file, which keeps `kept` and `widths` together as "groups"."""

_OPTIONAL = ("time",)
"""Keys that only some plans have; they stand before the hash."""


@dataclass(frozen=True)
class PrunePlan:
    """The atoms of channel groups that stay, and the blocks that leave.

    The budget that was not asked for has the base as its target, so `macs <= target_macs` and `params <= target_params` always hold.

    Attributes:
        fingerprint: Fingerprint of the structure (names, shapes, wiring) that the plan was made for.
        mode: "width", "depth" or "both".
        metric: What `target` budgets: "macs", "params" or "time"; several are joined by commas.
        target: The target as it was asked for; several by metric.
        base_macs: Multiply-accumulates of the unpruned model, one run on the example inputs.
        target_macs: The most the pruned model may spend.
        macs: What the pruned model will spend, exactly.
        base_params: Parameters of the unpruned model.
        target_params: The most parameters the pruned model may have.
        params: Parameters of the pruned model, exactly.
        kept: Kept atoms by group id, ascending; only groups that are cut, in graph order.
        widths: (channels before, channels after) by group id, for the same groups.
        removed_blocks: Ids of the blocks that are replaced by the identity, in graph order.
        scorer: Name of the scorer whose ranking decided.
        seed: Seed of that ranking.
        options: What else was asked for (round_to, keep, floors ...); plain JSON values.
        notes: Sentences for the reader, such as how far below the budget the plan ends and why.
        time: Predicted time, if the plan was made with the cost table of a machine, or None.
    """

    fingerprint: str
    mode: str
    metric: str
    target: Target
    base_macs: int
    target_macs: int
    macs: int
    base_params: int
    target_params: int
    params: int
    kept: Mapping[str, tuple[int, ...]] = field(repr=False)
    widths: Mapping[str, tuple[int, int]] = field(repr=False)
    removed_blocks: tuple[str, ...] = ()
    scorer: str = ""
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    time: PlannedTime | None = None

    def __post_init__(self) -> None:
        _check_fields(self)

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def summary(self, graph: ModelGraph | None = None, *, ids: bool = False) -> Summary:
        """Return costs and widths before and after on one screen; `print(plan)` shows it.

        Args:
            graph: The trace of the unpruned network, for exact names; without it, names come from the ids of the groups.
            ids: One row for each channel group, with its id instead of block and role.
        """
        names = {group: group for group in self.widths} if ids else names_of_ids(self.widths) if graph is None else group_names(graph)
        costs = SummaryTable(
            ("", "before", "after", "left", "at most"),
            tuple(
                (what, f"{before:,}", f"{after:,}", share(after, before), f"{most:,}" if budgeted else "")
                for what, before, after, most, budgeted in (
                    ("MACs", self.base_macs, self.macs, self.target_macs, "macs" in self.metric.split(",")),
                    ("parameters", self.base_params, self.params, self.target_params, "params" in self.metric.split(",")),
                )
            ),
        )
        removed = f", {counted(len(self.removed_blocks), 'block')} removed" if self.removed_blocks else ""
        title = f"Plan: {counted(len(self.widths), 'channel group')} cut{removed}; {self.scorer or 'no'} scores, mode {self.mode}"
        widths = widths_table(names, self.widths, self.removed_blocks, every=ids)
        return Summary(f"{title}, seed {self.seed}", (costs, widths), self.notes)

    def same_network(self, other: PrunePlan) -> bool:
        """Return True if another plan keeps the same channels and blocks."""
        return self.kept == other.kept and self.removed_blocks == other.removed_blocks

    @property
    def sha256(self) -> str:
        """Hash of the content; the file carries it, so that a changed plan is noticed."""
        return _digest(self._content())

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with schema number and content hash."""
        content = self._content()
        return content | {"sha256": _digest(content)}

    def _content(self) -> dict[str, Any]:
        values = to_plain(self, omit=("kept", "widths")) | {
            "schema": SCHEMA,
            "options": json.loads(json.dumps(self.options)),
            "groups": {group: {"width": list(self.widths[group]), "kept": to_ranges(kept)} for group, kept in self.kept.items()},
        }
        return {key: values[key] for key in (*_KEYS, *_OPTIONAL) if key != "sha256" and not (key in _OPTIONAL and values[key] is None)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PrunePlan:
        """Read what `to_dict` wrote; every field is checked.

        Raises:
            PlanFormatError: If the schema is another one, a field is missing, unknown or malformed, or the hash does not fit the content.
        """
        _check_keys(data)
        groups = data["groups"]
        plan = cls(
            **{key: data[key] for key in _KEYS if key not in ("schema", "groups", "sha256", "removed_blocks", "notes")},
            kept={group: _kept(group, entry) for group, entry in groups.items()},
            widths={group: (entry["width"][0], entry["width"][1]) for group, entry in groups.items()},
            removed_blocks=tuple(data["removed_blocks"]),
            notes=tuple(data["notes"]),
            time=None
            if data.get("time") is None
            else from_plain(
                PlannedTime,
                data["time"],
                lambda found: PlanFormatError(
                    f"This is not a valid plan: in 'time', {'; '.join(found)}. Make the plan again, or restore the original file."
                ),
            ),
        )
        if data["sha256"] != plan.sha256:
            _fail(f"the content hash is {plan.sha256[:12]}…, the file says {str(data['sha256'])[:12]}…: it was changed after it was made")
        return plan

    def to_text(self) -> str:
        """Return the plan as JSON text: stable order, one group a line."""
        lines = []
        for key, value in self.to_dict().items():
            if key in ("groups", "notes", "removed_blocks") and value:
                items = (
                    [f"{_compact(name)}: {_compact(entry)}" for name, entry in value.items()]
                    if isinstance(value, dict)
                    else [_compact(v) for v in value]
                )
                opening, closing = "{}" if isinstance(value, dict) else "[]"
                lines.append(f" {_compact(key)}: {opening}\n  " + ",\n  ".join(items) + f"\n {closing}")
            else:
                lines.append(f" {_compact(key)}: {_compact(value)}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def from_text(cls, text: str, *, where: str = "the plan") -> PrunePlan:
        """Read what `to_text` wrote.

        Raises:
            PlanFormatError: If the text is not a whole, unchanged plan; `where` names its origin in the message.
        """
        try:
            data = loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanFormatError(
                f"Expected a plan as JSON in {where}, found text that does not parse ({error}). Make the plan again."
            ) from error
        try:
            return cls.from_dict(data)
        except PlanFormatError as error:
            raise PlanFormatError(f"In {where}: {error}") from error

    def to_json(self, path: str | Path) -> None:
        """Write `to_text` to a file.

        Raises:
            StorageError: If the file cannot be written.
        """
        write_named(path, self.to_text())

    @classmethod
    def from_json(cls, path: str | Path) -> PrunePlan:
        """Read a plan from a file.

        Raises:
            StorageError: If the file cannot be read.
            PlanFormatError: If it is not a whole, unchanged plan.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise StorageError(f"Cannot read a plan from '{path}': {error}. Check the path.") from error
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise PlanFormatError(f"Expected a plan as JSON in '{path}', found bytes that are not UTF-8. Make the plan again.") from error
        return cls.from_text(text, where=f"'{path}'")

    def check(self, graph: ModelGraph) -> None:
        """Make sure that the plan fits a graph.

        Args:
            graph: Trace of the network that is about to be cut.

        Raises:
            PlanMismatchError: If it was made for another structure, or keeps atoms that the graph's groups do not have.
        """
        differences = [line for group in self.kept for line in _group_differences(self, graph, group)]
        blocks = graph.block_by_id
        differences += [f"the plan removes block '{block}', which is missing here" for block in self.removed_blocks if block not in blocks]
        differences += [
            f"the plan removes block '{block}', which cannot be removed here"
            for block in self.removed_blocks
            if block in blocks and not blocks[block].removable
        ]
        if self.fingerprint == graph.fingerprint and not differences:
            return
        if self.base_macs != graph.macs:
            differences.append(f"the plan's base has {self.base_macs:,} MACs, this model {graph.macs:,}")
        if self.base_params != graph.params:
            differences.append(f"the plan's base has {self.base_params:,} parameters, this model {graph.params:,}")
        if not differences:
            differences.append("the groups that it cuts are the same, so names, shapes or wiring elsewhere, or the example inputs, differ")
        raise PlanMismatchError(
            f"The plan was made for a structure with fingerprint {self.fingerprint[:12]}…, this {graph.model_class} has "
            f"{graph.fingerprint[:12]}…: {listed(differences, 6, '; ')}. Use the model, example inputs and trace options that the plan was "
            "made with, or make a new plan."
        )

    def atoms(self, graph: ModelGraph) -> NDArray[np.int64]:
        """Atoms kept per prunable group, [groups], in the order of `graph.prunable`.

        Args:
            graph: Trace of the unpruned network; groups that the plan does not name stay whole.
        """
        return np.array([len(self.kept[g.id]) if g.id in self.kept else g.atoms for g in graph.prunable], dtype=np.int64)


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _fail(problem: str) -> NoReturn:
    raise PlanFormatError(f"This is not a valid plan: {problem}. Make the plan again, or restore the original file.")


def _kept(group: str, entry: Mapping[str, Any]) -> tuple[int, ...]:
    try:
        return from_ranges(entry["kept"], limit=entry["width"][0])
    except ValueError as error:
        _fail(f"group '{group}': {error}")


def _check_keys(data: object) -> None:
    if not isinstance(data, Mapping):
        _fail(f"expected an object, found {type(data).__name__}")
    if data.get("schema") != SCHEMA or isinstance(data.get("schema"), bool):
        _fail(f"expected schema {SCHEMA}, found {data.get('schema')!r}")
    missing = [key for key in _KEYS if key not in data]
    unknown = sorted(str(key) for key in data if key not in (*_KEYS, *_OPTIONAL))
    if missing or unknown:
        _fail(f"missing keys: {missing}; unknown keys: {unknown}")
    for key in ("removed_blocks", "notes"):
        if not isinstance(data[key], list):
            _fail(f"'{key}' must be a list, found {type(data[key]).__name__}")
    if not isinstance(data["groups"], Mapping):
        _fail(f"'groups' must be an object, found {type(data['groups']).__name__}")
    for group, entry in data["groups"].items():
        if not isinstance(entry, Mapping) or set(entry) != {"width", "kept"}:
            _fail(f"group '{group}': expected the keys width and kept, found {str(entry)[:80]}")
        width = entry["width"]
        if not isinstance(width, list) or len(width) != 2 or not all(is_count(value) for value in width):
            _fail(f"group '{group}': expected width as [before, after], found {str(width)[:80]}")


def _check_fields(plan: PrunePlan) -> None:
    if not isinstance(plan.fingerprint, str) or not _FINGERPRINT.fullmatch(plan.fingerprint):
        _fail(f"the fingerprint must be 64 hexadecimal digits, found {str(plan.fingerprint)[:80]!r}")
    if plan.mode not in MODES:
        _fail(f"'mode' must be one of {', '.join(MODES)}, found {plan.mode!r}")
    _check_goal(plan)
    for metric in METRICS:
        base, target, spent = (getattr(plan, name) for name in (f"base_{metric}", f"target_{metric}", metric))
        if not all(is_count(value) for value in (base, target, spent)):
            _fail(f"base_{metric}, target_{metric} and {metric} must be whole numbers, found {base!r}, {target!r}, {spent!r}")
        if not spent <= target <= base:
            _fail(f"expected {metric} <= target_{metric} <= base_{metric}, found {spent}, {target}, {base}")
    if not isinstance(plan.scorer, str) or isinstance(plan.seed, bool) or not isinstance(plan.seed, int):
        _fail(f"'scorer' must be a string and 'seed' a whole number, found {plan.scorer!r} and {plan.seed!r}")
    for name in ("removed_blocks", "notes"):
        if not all(isinstance(value, str) for value in getattr(plan, name)):
            _fail(f"'{name}' must hold strings only")
    if len(set(plan.removed_blocks)) != len(plan.removed_blocks):
        _fail("a block is removed twice")
    if plan.time is not None and plan.time.problem is not None:
        _fail(f"in 'time', {plan.time.problem}")
    _check_options(plan.options)
    _check_groups(plan)


def _check_goal(plan: PrunePlan) -> None:
    metrics = plan.metric.split(",") if isinstance(plan.metric, str) else []
    if not metrics or not set(metrics) <= set(BUDGETED) or len(set(metrics)) != len(metrics):
        _fail(f"'metric' must be one of {', '.join(BUDGETED)}, or several joined by commas, found {plan.metric!r}")
    if isinstance(plan.target, Mapping):
        if sorted(plan.target) != sorted(metrics):
            _fail(f"'target' must have the metrics {', '.join(metrics)}, found {', '.join(map(str, plan.target))}")
        targets = list(plan.target.values())
    else:
        targets = [plan.target]
    for target in targets:
        if isinstance(target, bool) or not isinstance(target, int | float | str):
            _fail(f"'target' must be a number or a string, found {target!r}")
        if isinstance(target, float) and not math.isfinite(target):
            _fail(f"'target' must be finite, found {target!r}")


def _check_options(options: object) -> None:
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        _fail(f"'options' must be an object, found {str(options)[:80]}")
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        _fail(f"'options' must hold plain JSON values ({error})")


def _check_groups(plan: PrunePlan) -> None:
    if list(plan.kept) != list(plan.widths):
        _fail("'kept' and 'widths' must name the same groups in the same order")
    for group, kept in plan.kept.items():
        before, after = plan.widths[group]
        if not all(is_count(value) for value in (*plan.widths[group], *kept)):
            _fail(f"group '{group}': widths and kept atoms must be whole numbers")
        if not kept or any(b <= a for a, b in itertools.pairwise(kept)):
            _fail(f"group '{group}': kept atoms must be ascending, and at least one")
        if not 0 < after < before:
            _fail(f"group '{group}': the width must shrink and stay above 0, found {before} -> {after}")
        channels, odd = divmod(after, len(kept))
        if odd or before % channels or kept[-1] >= before // channels:
            _fail(f"group '{group}': {len(kept)} kept atoms up to {kept[-1]} do not make {before} -> {after} channels")


def _group_differences(plan: PrunePlan, graph: ModelGraph, group_id: str) -> Iterable[str]:
    group = graph.by_id.get(group_id)
    before, after = plan.widths[group_id]
    kept = plan.kept[group_id]
    if group is None:
        yield f"the plan cuts group '{group_id}', which is missing here"
    elif group.pinned is not None:
        yield f"the plan cuts group '{group_id}', which is pinned here ({group.pinned})"
    elif group.width != before or len(kept) * group.atom_channels != after or kept[-1] >= group.atoms:
        yield f"the plan cuts group '{group_id}' from {before} to {after} channels, here it has {group.width} in {group.atoms} atoms"
    elif not _fits_steps(group, kept):
        yield f"the plan keeps {len(kept)} of {group.atoms} atoms of group '{group_id}', which shrinks in steps of {group.step} here"


def _fits_steps(group: ChannelGroup, kept: Sequence[int]) -> bool:
    if (group.atoms - len(kept)) % group.step or len(kept) < group.floor:
        return False
    if group.bins is None:
        return True
    counts = dict.fromkeys(group.bins, 0)
    for atom in kept:
        counts[group.bins[atom]] += 1
    return len(set(counts.values())) == 1
