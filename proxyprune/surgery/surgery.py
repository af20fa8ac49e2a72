"""Slices, attribute changes and removed blocks: a surgery as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proxyprune.errors import PlanFormatError, VerificationError
from proxyprune.support.ranges import from_ranges, to_ranges

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """Indices that stay along one dimension of one parameter or buffer, ascending; `size` is the size before."""

    parameter: str
    dim: int
    size: int
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AttributeChange:
    """A new value for an attribute that a forward reads.

    Attributes:
        module: Qualified name.
        path: Attribute names from the module inwards; a config object on the way is copied, so that other modules keep theirs.
        before: Value in the unpruned model.
        after: Value in the pruned model.
    """

    module: str
    path: tuple[str, ...]
    before: int | tuple[int, ...]
    after: int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RemovedBlock:
    """A block that is replaced by a module which returns arguments of the call.

    Attributes:
        module: Qualified name.
        arguments: Positions or names of the returned arguments, one for each hole.
        template: The block's output: {"hole": k} where the k-th argument stands, nested in lists, {"tuple": [...]} and {"dict": {...}}.
    """

    module: str
    arguments: tuple[int | str, ...]
    template: Any


@dataclass(frozen=True, slots=True)
class Rescaled:
    """A gain of weight normalisation that takes the share of the norm that stays, so that the weights that are kept do not grow.

    The weight is gain * direction / norm(direction). When inputs leave, the norm shrinks, and the quotient would grow.

    Attributes:
        parameter: The gain.
        direction: The parameter that is normalised.
        dim: Dimension of the direction that the gain runs along; -1 for a norm over everything.
    """

    parameter: str
    direction: str
    dim: int


@dataclass(frozen=True)
class Surgery:
    """Everything that turns the unpruned model into the pruned one."""

    cuts: tuple[Cut, ...] = ()
    attributes: tuple[AttributeChange, ...] = ()
    removed_blocks: tuple[RemovedBlock, ...] = ()
    rescaled: tuple[Rescaled, ...] = ()
    schema: int = field(default=SCHEMA)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        rescaled = [{"parameter": r.parameter, "direction": r.direction, "dim": r.dim} for r in self.rescaled]
        return ({"rescaled": rescaled} if rescaled else {}) | {
            "schema": self.schema,
            "cuts": [{"parameter": c.parameter, "dim": c.dim, "size": c.size, "kept": to_ranges(c.kept)} for c in self.cuts],
            "attributes": [
                {"module": a.module, "path": list(a.path), "before": _plain(a.before), "after": _plain(a.after)} for a in self.attributes
            ],
            "bypassed": [{"module": b.module, "arguments": list(b.arguments), "template": b.template} for b in self.removed_blocks],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Surgery:
        """Read what `to_dict` wrote.

        Raises:
            PlanFormatError: If the data is not a surgery of this schema.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            found = data.get("schema") if isinstance(data, Mapping) else type(data).__name__
            raise PlanFormatError(f"Expected a surgery record with schema {SCHEMA}, found {found!r}. Prune the model again.")
        try:
            cuts = tuple(
                Cut(
                    str(entry["parameter"]),
                    int(entry["dim"]),
                    int(entry["size"]),
                    from_ranges(entry["kept"], limit=int(entry["size"])),
                )
                for entry in data["cuts"]
            )
            attributes = tuple(
                AttributeChange(str(e["module"]), tuple(str(part) for part in e["path"]), _frozen(e["before"]), _frozen(e["after"]))
                for e in data["attributes"]
            )
            removed = tuple(
                RemovedBlock(str(e["module"]), tuple(_argument(a) for a in e["arguments"]), e["template"]) for e in data["bypassed"]
            )
            rescaled = tuple(Rescaled(str(e["parameter"]), str(e["direction"]), int(e["dim"])) for e in data.get("rescaled", ()))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanFormatError(f"The surgery record is damaged ({type(error).__name__}: {error}). Prune the model again.") from error
        return cls(cuts, attributes, removed, rescaled)


def joined(surgeries: Sequence[Surgery]) -> Surgery:
    """One surgery for several example calls of a model; all of them cut the same parameters.

    Raises:
        VerificationError: If two calls need different values of one attribute, or skip a removed block in different ways.
    """
    first, *others = surgeries
    attributes = {(change.module, change.path): change for change in first.attributes}
    removed = {entry.module: entry for entry in first.removed_blocks}
    for other in others:
        for change in other.attributes:
            if attributes.setdefault((change.module, change.path), change) != change:
                name = ".".join((change.module, *change.path)).lstrip(".")
                raise VerificationError(
                    f"Two example calls need different values of '{name}'. The model is unchanged. Leave its module whole (keep=...)."
                )
        for entry in other.removed_blocks:
            if removed.setdefault(entry.module, entry) != entry:
                raise VerificationError(
                    f"Block '{entry.module}' cannot be removed: two example calls pass it on in different ways. The model is unchanged.",
                    module=entry.module,
                )
    return replace(first, attributes=tuple(attributes.values()), removed_blocks=tuple(removed.values()))


def _argument(value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"expected a position or a name, found {value!r}")
    return value


def _plain(value: int | tuple[int, ...]) -> int | list[int]:
    return list(value) if isinstance(value, tuple) else value


def _frozen(value: Any) -> int | tuple[int, ...]:
    if isinstance(value, bool) or not isinstance(value, int | list):
        raise TypeError(f"expected an integer or a list of integers, found {value!r}")
    return tuple(int(item) for item in value) if isinstance(value, list) else value
