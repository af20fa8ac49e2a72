"""Arguments of the tools, as frozen values, and their JSON schemas."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from proxyprune.assistant.treatment import Treatment
from proxyprune.errors import InputError
from proxyprune.planning.request import ALLOCATIONS, MODES
from proxyprune.support.checks import is_number, listed
from proxyprune.support.dataclass_json import from_plain

T = TypeVar("T")

KINDS = ("loss", "quality", "seconds")
"""Names of the figures that `measure` takes."""


def _field(description: str, default: Any, **schema: Any) -> Any:
    metadata = {"description": description, **schema}
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


_REQUIRED = dataclasses.MISSING


@dataclass(frozen=True)
class DescribeArguments:
    """Arguments of `describe`."""

    block: str | None = _field("Id of one block, for its channel groups in full. Without it: the text of the whole network.", None)
    offset: int = _field("Character at which the text begins, for text longer than one answer.", 0, minimum=0)


@dataclass(frozen=True)
class SourceArguments:
    """Arguments of `source`."""

    block: str = _field("Id of a block.", _REQUIRED)
    offset: int = _field("Character at which the text begins.", 0, minimum=0)


@dataclass(frozen=True)
class ScoreArguments:
    """Arguments of `score`."""

    scorer: str | None = _field("A scorer to run; describe lists those of this session.", None)
    scores: Mapping[str, float] = _field("Your own importance of blocks, in [0, 1]; larger means keep. Give this or scorer.", {})
    base: str = _field("With scores: the ranking that provides the channels and the score of blocks that you leave out.", "r0")
    strength: float = _field(
        "With scores: weight b of your scores on the base's channels, which are multiplied by exp(b z), z your standardised score.",
        0.5,
        minimum=0,
        maximum=5,
    )


@dataclass(frozen=True)
class PriceArguments:
    """Arguments of `price`."""

    widths: Mapping[str, float | int] = _field(
        "Channel group or block id -> what stays: a fraction such as 0.5, or a number of channels. A block stands for its own groups.", {}
    )
    remove: tuple[str, ...] = _field("Ids of removable blocks that would be removed.", ())


@dataclass(frozen=True)
class PlanArguments:
    """Arguments of `plan`."""

    ranking: str = _field("Name of a ranking.", "r0")
    target: float | int | str | None = _field(
        "A budget below the session's: a fraction such as 0.5, or an amount. Default: the session's.", None
    )
    mode: str | None = _field("What may be cut. Default: the session's.", None, enum=list(MODES))
    keep: tuple[str, ...] = _field("Names or patterns of blocks, groups, modules or parameters that must stay as they are.", ())
    floors: Mapping[str, float | int] = _field("Pattern -> least that stays: a fraction (0.5) or a number of channels (32).", {})
    ceilings: Mapping[str, float | int] = _field("Pattern -> most that stays, in the same units.", {})
    uniform: bool = _field("Keep equal widths in repeated layers, so that the config of a transformers or diffusers class fits.", False)
    round_to: int | None = _field("Widths become a multiple of this.", None, minimum=1)
    allocation: str | None = _field("Where widths come from: channels, blocks, or auto.", None, enum=list(ALLOCATIONS))


@dataclass(frozen=True)
class MeasureArguments:
    """Arguments of `measure`."""

    plan: str = _field('Name of a plan, or "base" for the unpruned network.', _REQUIRED)
    what: tuple[str, ...] = _field("What to measure: loss and quality on held-out data, seconds of one run.", ("loss",), values=list(KINDS))
    compensate: bool = _field("Refit the remaining weights in closed form before measuring.", False)
    recovery: bool = _field("Fine-tune shortly before measuring.", False)

    @property
    def treatment(self) -> Treatment:
        """The treatment of the network after the cut."""
        return Treatment(self.compensate, self.recovery)


@dataclass(frozen=True)
class CompareArguments:
    """Arguments of `compare`."""

    plans: tuple[str, ...] = _field("Names of two or more plans.", _REQUIRED)


@dataclass(frozen=True)
class HistoryArguments:
    """Arguments of `history`."""

    last: int = _field("How many plans and rankings to list, newest last.", 20, minimum=1)


@dataclass(frozen=True)
class ApplyArguments:
    """Arguments of `apply`."""

    plan: str = _field("Name of the plan.", _REQUIRED)
    name: str = _field("Name for the saved network: letters, digits, '-' and '_'.", _REQUIRED)
    compensate: bool = _field("Refit the remaining weights in closed form before saving.", False)
    recovery: bool = _field("Fine-tune shortly before saving.", False)

    @property
    def treatment(self) -> Treatment:
        """The treatment of the network after the cut."""
        return Treatment(self.compensate, self.recovery)


def parsed(kind: type[T], arguments: Any) -> T:
    """Return the arguments of a tool from plain JSON values.

    Raises:
        InputError: If a name is missing or unknown, or a value has the wrong type or range; all mistakes are listed.
    """
    names = [entry.name for entry in dataclasses.fields(kind)]  # type: ignore[arg-type]  # `kind` is a dataclass; a type variable cannot say so
    found = from_plain(
        kind,
        {} if arguments is None else arguments,
        _malformed,
        unknown=lambda name: f"{name[:80]} is unknown; expected {', '.join(names)}",
    )
    problems = [problem for entry in dataclasses.fields(kind) for problem in _out_of_range(entry, getattr(found, entry.name))]  # type: ignore[arg-type]  # a class whose instances are dataclasses
    if problems:
        raise _malformed(problems)
    return found


def schema_of(kind: type) -> dict[str, Any]:
    """Return the JSON schema of a tool's arguments."""
    hints = typing.get_type_hints(kind)
    entries = dataclasses.fields(kind)
    missing = dataclasses.MISSING
    required = [entry.name for entry in entries if entry.default is missing and entry.default_factory is missing]
    return {
        "type": "object",
        "properties": {entry.name: _property(hints[entry.name], entry.metadata) for entry in entries},
        "required": required,
        "additionalProperties": False,
    }


def _malformed(problems: list[str]) -> InputError:
    return InputError(f"The arguments cannot be used: {listed(problems, separator='; ')}.")


def _out_of_range(entry: dataclasses.Field[Any], value: Any) -> list[str]:
    if value is None:
        return []
    limits = entry.metadata
    numbers = value.items() if isinstance(value, Mapping) else [("", value)]
    problems = [
        f"{entry.name}{'.' if key else ''}{key[:80]} must be a finite number, found {item!r}"
        for key, item in numbers
        if isinstance(item, float) and not is_number(item)
    ]
    if ("minimum" in limits and value < limits["minimum"]) or ("maximum" in limits and value > limits["maximum"]):
        upper = f" to {limits['maximum']}" if "maximum" in limits else " up"
        problems.append(f"{entry.name} must be from {limits['minimum']}{upper}, found {value!r}"[:200])
    if "enum" in limits and value not in limits["enum"]:
        problems.append(f"{entry.name} must be one of {', '.join(limits['enum'])}, found {value!r}"[:200])
    if "values" in limits and not (value and set(value) <= set(limits["values"])):
        problems.append(f"{entry.name} must list some of {', '.join(limits['values'])}, found {list(value)!r}"[:200])
    return problems


_JSON_TYPES: Mapping[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def _property(hint: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in metadata.items() if key != "values"}
    found = _typed(hint)
    if "values" in metadata:
        found["items"]["enum"] = metadata["values"]
    if "enum" in known and "null" in found.get("type", ()):
        known["enum"] = [*known["enum"], None]
    return {**found, **known}


def _typed(hint: Any) -> dict[str, Any]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"type": list(dict.fromkeys(_JSON_TYPES[option] for option in inner))}
    if origin is tuple:
        return {"type": "array", "items": _typed(inner[0])}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _typed(inner[1])}
    return {"type": _JSON_TYPES[hint]}
