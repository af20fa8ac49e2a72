"""Advice in an answer: limits of a plan, each with a reason, and a note on calibration data.

A wrong shape makes the answer invalid, and it is returned once with the problems. An entry about an unknown label, or about something that
its kind does not allow, is dropped and recorded: the rest of the answer still counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxyprune.proxy.answers.answer import closed_object, document, invalid, one_line
from proxyprune.support.checks import is_count, listed

KEEP, FLOOR, SAME_WIDTH, REMOVE = KINDS = ("keep", "floor", "same_width", "remove")
WANTED = "advice"
MOST = 8
"""Entries that are read from one answer; each of them costs a cut, a refit and a measurement."""

_PERCENT = tuple(range(0, 101, 10))
_KEYS = frozenset(("kind", "targets", "least_percent", "reason"))


@dataclass(frozen=True)
class ProposedLimit:
    """One limit.

    Attributes:
        kind: One of `KINDS`.
        targets: Blocks and channel groups, by their keys.
        least: For a floor: the share that stays at least, in (0, 1].
        reason: One sentence of the model.
    """

    kind: str
    targets: tuple[str, ...]
    least: float | None
    reason: str


@dataclass(frozen=True)
class ProposedAdvice:
    """The content of an answer.

    Attributes:
        limits: In the order of the answer.
        data: The model's sentence on calibration data, or "".
        dropped: A sentence for each entry, or part of one, that does not fit the network.
    """

    limits: tuple[ProposedLimit, ...] = ()
    data: str = ""
    dropped: tuple[str, ...] = ()


def advice_schema(labels: Sequence[str]) -> dict[str, Any]:
    """JSON schema of an answer; labels and percentages are enumerations, as in `answer_schema`."""
    entry = closed_object(
        {
            "kind": {"type": "string", "enum": list(KINDS)},
            "targets": {"type": "array", "items": {"type": "string", "enum": list(labels)}},
            "least_percent": {"type": "integer", "enum": list(_PERCENT)},
            "reason": {"type": "string"},
        }
    )
    return closed_object({"advice": {"type": "array", "items": entry}, "data": {"type": "string"}})


def read_advice(text: str, keys: Mapping[str, str], permitted: Mapping[str, frozenset[str]]) -> ProposedAdvice:
    """Return the advice of a valid answer.

    Args:
        text: The answer of the model.
        keys: What each label stands for.
        permitted: Labels that each kind may name.

    Raises:
        LLMInvalidAnswerError: If the shape is wrong; with all problems.
    """
    data = document(text, WANTED)
    if problems := _shape_problems(data):
        raise invalid(problems, WANTED)
    limits: list[ProposedLimit] = []
    dropped: list[str] = []
    for number, entry in enumerate(data["advice"], 1):
        limit, problem = _limit(entry, keys, permitted)
        dropped += [f"entry {number} ({entry['kind']}): {problem}"] if problem else []
        if limit is None or limit in limits:
            continue
        if len(limits) == MOST:
            dropped.append(f"entry {number} ({limit.kind}): more than {MOST} entries")
            continue
        limits.append(limit)
    return ProposedAdvice(tuple(limits), one_line(data["data"]), tuple(dropped))


def _limit(entry: Mapping[str, Any], keys: Mapping[str, str], permitted: Mapping[str, frozenset[str]]) -> tuple[ProposedLimit | None, str]:
    """Return the limit of an entry, or None, and what had to be left out."""
    kind, named = str(entry["kind"]), tuple(dict.fromkeys(map(str, entry["targets"])))
    unknown = [label for label in named if label not in keys]
    unfit = [label for label in named if label in keys and label not in permitted[kind]]
    problems = [f"unknown labels {_shown(unknown)}"] if unknown else []
    problems += [f"not possible for {_shown(unfit)}"] if unfit else []
    targets = tuple(keys[label] for label in named if label in permitted[kind])
    if len(targets) < (2 if kind == SAME_WIDTH else 1):
        return None, "; ".join([*problems, "too few targets are left"])
    least = entry["least_percent"] / 100
    if kind == FLOOR and not least:
        return None, "; ".join([*problems, "a floor of 0 % is none"])
    return ProposedLimit(kind, targets, least if kind == FLOOR else None, one_line(entry["reason"])), "; ".join(problems)


def _shape_problems(data: Any) -> list[str]:
    if not isinstance(data, Mapping) or set(data) != {"advice", "data"}:
        return ["It must be an object with exactly the keys 'advice' and 'data'."]
    if not isinstance(data["advice"], list) or not isinstance(data["data"], str):
        return ["'advice' must be a list, and 'data' must be text."]
    return [problem for number, entry in enumerate(data["advice"], 1) for problem in _entry_problems(entry, f"Entry {number}")]


def _entry_problems(entry: Any, name: str) -> list[str]:
    if not isinstance(entry, Mapping) or set(entry) != _KEYS:
        return [f"{name} must be an object with exactly the keys {', '.join(sorted(_KEYS))}."]
    found = [] if entry["kind"] in KINDS else [f"{name}: 'kind' must be one of {', '.join(KINDS)}."]
    if not isinstance(entry["targets"], list) or not all(isinstance(label, str) for label in entry["targets"]):
        found.append(f"{name}: 'targets' must be a list of labels.")
    if not (is_count(entry["least_percent"]) and entry["least_percent"] <= 100):
        found.append(f"{name}: 'least_percent' must be an integer from 0 to 100.")
    return found + ([] if isinstance(entry["reason"], str) else [f"{name}: 'reason' must be text."])


def _shown(labels: Sequence[str]) -> str:
    return listed((one_line(label)[:20] for label in labels), 5)
