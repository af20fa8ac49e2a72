"""Advice: limits that somebody proposes, each with a reason. It is measured, kept if it helps, and dropped and recorded if it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from proxyprune.errors import InputError, KeepPatternError, ProxyPruneError, StorageError, TargetError, VerificationError
from proxyprune.measuring.channel_choice import no_worse, shown_losses
from proxyprune.measuring.held_out import Data, held_out_loss
from proxyprune.planning.limits import Bound
from proxyprune.planning.request import PlanRequest
from proxyprune.proxy.answers.advice import FLOOR, KEEP, REMOVE, SAME_WIDTH
from proxyprune.support.checks import listed
from proxyprune.support.dataclass_json import from_plain
from proxyprune.support.strict_json import loads

KINDS: Mapping[str, str] = {
    KEEP: "what matches stays as it is",
    FLOOR: "at least `least` of what matches stays: a fraction, or a number of channels",
    SAME_WIDTH: "the groups that match keep equal widths",
    REMOVE: "the removable blocks that match leave as a whole",
}
"""Kind of advice -> its meaning."""

_NO_PLAN = (TargetError, VerificationError, KeepPatternError, InputError)
"""Errors that say that advice cannot be followed."""


@dataclass(frozen=True)
class Advice:
    """One limit that somebody proposes.

    Attributes:
        kind: A key of `KINDS`.
        pattern: Name, dotted prefix or fnmatch pattern of blocks, channel groups, modules or parameters; several are joined by "|".
        reason: Why, in a sentence.
        least: For a floor: a fraction (float) or a number of channels (int).

    Raises:
        InputError: If the kind is unknown, the pattern is empty, or a floor has no bound.
    """

    kind: str
    pattern: str
    reason: str = ""
    least: Bound | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"Unknown kind of advice {self.kind!r}; expected one of {', '.join(KINDS)}.")
        if not isinstance(self.pattern, str) or not self.pattern:
            raise InputError(f"Advice needs a pattern, found {self.pattern!r}.")
        if (self.least is None) == (self.kind == FLOOR):
            raise InputError(f"Advice of kind {FLOOR!r} has `least`, and other kinds have none; found {self.kind!r} with {self.least!r}.")

    def __str__(self) -> str:
        bound = "" if self.least is None else f" of {self.least}"
        return f"{self.kind}{bound} for '{self.pattern}'"

    def followed(self, request: PlanRequest) -> PlanRequest:
        """Return the request with this limit added.

        Raises:
            InputError: If the request decides the same already.
        """
        limits = request.limits
        if self.kind == KEEP:
            return request.keeping(self.pattern)
        if self.kind == REMOVE:
            return replace(request, limits=replace(limits, remove=(*limits.remove, self.pattern)))
        if self.kind == FLOOR and self.least is not None:
            if self.pattern in limits.floors:
                raise InputError(f"The floor of '{self.pattern}' is set already.")
            return replace(request, limits=replace(limits, floors={**limits.floors, self.pattern: self.least}))
        if request.uniform is not False and not isinstance(request.uniform, tuple):
            raise InputError("uniform decides equal widths already.")
        return replace(request, uniform=(*(request.uniform or ()), self.pattern))


@dataclass(frozen=True)
class AdviceTrials:
    """Measures what advice is worth.

    Attributes:
        build: Request -> the network after the cut and after what follows, as in `PriorChoice`.
        data: What to judge with.
        seed: All randomness follows from it.
    """

    build: Callable[[PlanRequest], Iterable[nn.Module]]
    data: Data
    seed: int

    def followed(self, request: PlanRequest, advice: Sequence[Advice]) -> tuple[PlanRequest, tuple[str, ...]]:
        """Try each piece of advice on top of what was kept so far.

        Returns:
            The request with the limits that lowered the last loss and raised none, and a note for each piece of advice.
        """
        losses = self._losses(request)
        notes = []
        for entry in advice:
            try:
                tried = entry.followed(request)
                found = self._losses(tried)
            except _NO_PLAN as error:
                notes.append(_note(entry, f"dropped: {error}"))
                continue
            helps = no_worse(found, losses) and found[-1] < losses[-1]
            change = f"held-out loss {shown_losses(losses)} without it, {shown_losses(found)} with it"
            notes.append(_note(entry, f"{'kept' if helps else 'dropped'}, {change}."))
            if helps:
                request, losses = tried, found
        return request, tuple(notes)

    def _losses(self, request: PlanRequest) -> tuple[float, ...]:
        return tuple(held_out_loss(model, self.data, self.seed) for model in self.build(request))


def read_advice(path: Path) -> tuple[Advice, ...]:
    """Read advice from a JSON file: a list of objects with the fields of `Advice`.

    Raises:
        StorageError: If the file cannot be read.
        InputError: If it is no such list; the message names the first wrong entry.
    """
    try:
        data = loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"The advice {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"The advice {path} is not JSON: {error}") from error
    return advice_of(data, str(path))


def advice_of(data: Any, where: str) -> tuple[Advice, ...]:
    """Return advice from plain JSON values.

    Args:
        data: A list of objects with the fields of `Advice`.
        where: Where it comes from, for messages.

    Raises:
        InputError: If it is no such list.
    """
    if not isinstance(data, list):
        raise InputError(f"{where}: expected a list of advice, found {type(data).__name__}.")
    found = []
    for number, entry in enumerate(data):
        try:
            found.append(from_plain(Advice, entry, _malformed, unknown=lambda name: f"{name[:80]} is unknown"))
        except ProxyPruneError as error:
            raise InputError(f"{where}, entry {number}: {error}") from error
    return tuple(found)


def _malformed(problems: list[str]) -> InputError:
    return InputError(listed(problems, separator="; "))


def _note(advice: Advice, verdict: str) -> str:
    reason = f" ({advice.reason.rstrip('.')})" if advice.reason else ""
    return f"Advice to {advice}{reason} was {verdict}"
