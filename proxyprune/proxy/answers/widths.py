"""Widths of channel groups in an answer.

A wrong shape makes the answer invalid, and so does an answer of which nothing fits. Otherwise an entry about an unknown label or a width
that its group cannot have is dropped and recorded, with the name of the group.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxyprune.proxy.answers.answer import closed_object, document, invalid, one_line
from proxyprune.support.checks import is_count, listed

WANTED = "list of widths"
_KEYS = frozenset(("group", "channels"))


@dataclass(frozen=True)
class ProposedWidths:
    """The content of an answer.

    Attributes:
        widths: Channels by channel group, in the order of the answer.
        reason: One sentence of the model.
        dropped: A sentence for each entry that does not fit the network.
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""
    dropped: tuple[str, ...] = ()


def widths_schema(labels: Sequence[str]) -> dict[str, Any]:
    """JSON schema of an answer; labels are an enumeration, as in `answer_schema`."""
    entry = closed_object({"group": {"type": "string", "enum": list(labels)}, "channels": {"type": "integer"}})
    return closed_object({"widths": {"type": "array", "items": entry}, "reason": {"type": "string"}})


def read_widths(text: str, keys: Mapping[str, str], possible: Mapping[str, Sequence[int]]) -> ProposedWidths:
    """Return the widths of a valid answer.

    Args:
        text: The answer of the model.
        keys: The group that each label stands for.
        possible: Channels that each group may have, ascending.

    Raises:
        LLMInvalidAnswerError: If the shape is wrong, or no entry fits; with all problems.
    """
    data = document(text, WANTED)
    if problems := _shape_problems(data):
        raise invalid(problems, WANTED)
    widths: dict[str, int] = {}
    problems = []
    for number, entry in enumerate(data["widths"], 1):
        label, channels = str(entry["group"]), int(entry["channels"])
        group = keys.get(label)
        if group is None:
            problems.append(f"entry {number}: unknown label {one_line(label)[:20]}")
        elif group in widths:
            problems.append(f"entry {number}: {label} ('{group}') has a width already")
        elif channels not in possible[group]:
            problems.append(
                f"entry {number}: {label} ('{group}') cannot have {channels} channels; possible are {shown_widths(possible[group])}"
            )
        else:
            widths[group] = channels
    if problems and not widths:
        raise invalid([f"{problem[0].upper()}{problem[1:]}." for problem in problems[:8]], WANTED)
    return ProposedWidths(widths, one_line(data["reason"]), tuple(problems))


def shown_widths(possible: Sequence[int]) -> str:
    """Return widths in words: "8 to 64 in steps of 8", or a list."""
    steps = {after - before for before, after in itertools.pairwise(possible)}
    if len(possible) > 3 and len(steps) == 1:
        step = steps.pop()
        return f"{possible[0]} to {possible[-1]}" + (f" in steps of {step}" if step > 1 else "")
    return listed(map(str, possible), 24)


def _shape_problems(data: Any) -> list[str]:
    if not isinstance(data, Mapping) or set(data) != {"widths", "reason"}:
        return ["It must be an object with exactly the keys 'widths' and 'reason'."]
    if not isinstance(data["widths"], list) or not isinstance(data["reason"], str):
        return ["'widths' must be a list, and 'reason' must be text."]
    fits = [
        isinstance(entry, Mapping) and set(entry) == _KEYS and isinstance(entry["group"], str) and is_count(entry["channels"])
        for entry in data["widths"]
    ]
    wrong = [str(number) for number, fit in enumerate(fits, 1) if not fit]
    return [f"Entries {listed(wrong, 8)} must be objects with a label 'group' and a whole number 'channels'."] if wrong else []
