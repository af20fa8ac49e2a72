"""The answer: its JSON schema, and the checks that every answer has to pass in our own code.

No service's schema mode is relied on: some do not enforce ranges, some enforce nothing. Valid scores are read after <think>...</think> too,
in a fence or between other text. Nothing is repaired and nothing is filled in; an answer with a problem is returned to the model once, with
the problems, and then dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from proxyprune.errors import LLMInvalidAnswerError
from proxyprune.proxy.answers.agreement import kendall_tau
from proxyprune.support.checks import is_count, listed
from proxyprune.support.strict_json import loads

LOWEST, HIGHEST = 0, 10
LEVELS = 3
"""Different scores that an answer needs: with fewer it does not rank."""

COPIED_TAU = 0.9
"""|Kendall tau| with the order of the list from which an answer counts as a copy of it."""

FEWEST_FOR_COPY = 6
"""Below this many blocks chance alone copies the list too often (5 blocks: 1 answer in 60; 6: 1 in 360), so nothing can be concluded."""

_LONGEST_REPLY = 1_000_000
_LONGEST_TEXT = 300
_LISTED = 8
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
_FENCED = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)


def closed_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON schema of an object with exactly these properties."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def answer_schema(labels: Sequence[str]) -> dict[str, Any]:
    """JSON schema of an answer: every label required, every score one of the integers 0..10.

    The range is an enumeration because grammars and strict modes enforce enumerations, and not all enforce minimum and maximum. It stands
    in one place and is referred to, because services limit the number of enumerated values in a schema.
    """
    score = {"$ref": "#/$defs/score"}
    return {
        **closed_object({"scores": closed_object(dict.fromkeys(labels, score))}),
        "$defs": {"score": {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))}},
    }


def read_answer(text: str, labels: Sequence[str], *, levels: int = LEVELS) -> dict[str, int]:
    """Return the scores of a valid answer.

    Args:
        text: What the model wrote.
        labels: All labels, in the order of the list.
        levels: Different scores that are needed, where there are as many labels.

    Returns:
        Score by label, in the order of the list.

    Raises:
        LLMInvalidAnswerError: With all problems at once.
    """
    data = document(text)
    problems = _shape_problems(data)
    if not problems:
        problems = _label_problems(data["scores"], labels) + _value_problems(data["scores"], labels)
    if problems:
        raise invalid(problems)
    scores = {label: int(data["scores"][label]) for label in labels}
    if problems := _ranking_problems(list(scores.values()), levels):
        raise invalid(problems)
    return scores


def document(text: str, wanted: str = "score map") -> Any:
    """Return the one JSON document of an answer.

    Args:
        text: The answer; reasoning, fences and prose around the document are left out.
        wanted: The answer in words, for messages.

    Raises:
        LLMInvalidAnswerError: If there is none.
    """
    if len(text) > _LONGEST_REPLY:
        raise invalid([f"It has {len(text):,} characters."], wanted, is_json=False)
    if not text.strip():
        raise invalid(["It is empty."], wanted, is_json=False)
    problem = ""
    for candidate in _candidates(text):
        try:
            return loads(candidate)
        except RecursionError:
            problem = "It is nested too deeply."
        except ValueError as error:
            problem = f"It is not one JSON document ({error})."
    raise invalid([problem], wanted, is_json=False)


def _candidates(text: str) -> list[str]:
    """Return where the one JSON document may be: the whole text, after the reasoning, in the only fence, between the outermost braces."""
    said = _THOUGHT.sub("", text, count=1)
    fenced = _FENCED.findall(said)
    start, end = said.find("{"), said.rfind("}")
    found = [text, said, *(fenced if len(fenced) == 1 else []), *([said[start : end + 1]] if 0 <= start < end else [])]
    return list(dict.fromkeys(found))


def _shape_problems(data: Any) -> list[str]:
    if not isinstance(data, Mapping):
        return [f"It is a JSON {_kind(data)}, and must be an object."]
    if set(data) != {"scores"}:
        return [f"Its keys must be exactly 'scores', found {_named([str(key) for key in data]) or 'none'}."]
    if not isinstance(data["scores"], Mapping):
        return [f"'scores' is a JSON {_kind(data['scores'])}, and must be an object with a score for each label."]
    return []


def _label_problems(scores: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    wanted = set(labels)
    missing = [label for label in labels if label not in scores]
    unknown = [label for label in scores if label not in wanted]
    problems = [f"{len(missing)} of {len(labels)} labels are missing: {_named(missing)}."] if missing else []
    return problems + ([f"{len(unknown)} labels are not in the list: {_named(unknown)}."] if unknown else [])


def _value_problems(scores: Mapping[str, Any], labels: Sequence[str]) -> list[str]:
    wrong = [label for label in labels if label in scores and not _is_score(scores[label])]
    if not wrong:
        return []
    shown = listed((f"{label}: {_short(scores[label])}" for label in wrong), _LISTED)
    return [f"These scores are no integers from {LOWEST} to {HIGHEST}: {shown}."]


def _ranking_problems(scores: Sequence[int], levels: int) -> list[str]:
    count = len(scores)
    found = len(set(scores))
    if count >= levels > found:
        return [f"It has {found} different score{'s' if found > 1 else ''}, which ranks nothing; use at least {levels}."]
    if count >= FEWEST_FOR_COPY and abs(kendall_tau(scores, range(count))) >= COPIED_TAU:
        return ["The scores only follow the order of the list, which is random. Judge the blocks."]
    return []


def _is_score(value: Any) -> bool:
    return is_count(value, LOWEST) and value <= HIGHEST


def invalid(problems: Sequence[str], wanted: str = "score map", *, is_json: bool = True) -> LLMInvalidAnswerError:
    """Return the error for an answer with problems."""
    return LLMInvalidAnswerError(f"The answer is no valid {wanted}: {' '.join(problems)}", problems=tuple(problems), is_json=is_json)


def one_line(text: str) -> str:
    """Return text of a model as one short printable line."""
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _LONGEST_TEXT else line[:_LONGEST_TEXT] + "..."


def _named(names: Sequence[str]) -> str:
    return listed(map(_short, names), _LISTED)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else text[:40] + "..."


def _kind(value: Any) -> str:
    names = {"list": "array", "str": "string", "int": "number", "float": "number", "bool": "boolean", "NoneType": "null", "dict": "object"}
    return names.get(type(value).__name__, type(value).__name__)
