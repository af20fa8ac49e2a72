"""What counts as an answer, and that nothing else than our own errors comes out of whatever a model writes."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import example, given, settings, strategies as st

from proxyprune.errors import LLMInvalidAnswerError
from proxyprune.proxy.answers.answer import answer_schema, read_answer

LABELS = ("b00", "b01", "b02", "b03")
SIX = tuple(f"b{i:02d}" for i in range(6))
GOOD = {"scores": dict(zip(LABELS, (3, 0, 10, 3), strict=True))}

FRAGMENTS = (
    '{"scores": {', '"scores"', '"b00": 1', '"b01": 9', '"b02": 0', '"b03": 10', '"b04": 2', '"b00"', ": ", ", ", "{", "}", "[", "]",
    "}}", "7", "-1", "1e9", "NaN", "true", "null", '"', "\\", "\n", "```json", "Sure! ", "\ud800", "\x00",
)  # fmt: skip

values = st.one_of(st.integers(-3, 13), st.booleans(), st.floats(), st.none(), st.text(max_size=3), st.just([]))
maps = st.dictionaries(st.sampled_from((*LABELS, "b04", "")), values)
whole = st.builds(lambda scores: json.dumps({"scores": scores}), maps)
pieces = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)


def scrambled(seed: int) -> str:
    """Return a valid answer after up to four random edits: characters and fragments inserted, deleted, repeated."""
    rng = random.Random(seed)
    text = json.dumps({"scores": {label: rng.randint(-1, 11) for label in LABELS}})
    for _ in range(rng.randint(0, 4)):
        start, end = sorted(rng.choices(range(len(text) + 1), k=2))
        piece = rng.choice((*FRAGMENTS, "", text[start:end], chr(rng.randint(0, 0xD7FF))))
        text = text[:start] + piece + text[rng.choice((start, end)) :]
    return text


@given(st.one_of(whole, pieces, st.text(max_size=20)), st.booleans())
@settings(max_examples=1_000)
@example('{"scores": {"b00": 1e400, "b01": 2, "b02": 3, "b03": 4}}', False)
@example('{"scores": {"b00": ' + "9" * 5000 + "}}", False)
@example("[" * 50_000, True)
@example('{"scores": {"\\ud800": 1}}', False)
def test_any_reply_is_an_answer_or_our_error(reply, wrapped):
    """A returned map has every label once, integers 0..10, and three levels; everything else is LLMInvalidAnswerError."""
    check(f"<think>{{}}</think>\n```json\n{reply}\n```" if wrapped else reply)


@given(st.integers(0, 2**48))
@settings(max_examples=10_000)
def test_ten_thousand_scrambled_answers(seed):
    """The same for valid answers that were damaged in random places."""
    check(scrambled(seed))


def check(reply: str) -> None:
    try:
        scores = read_answer(reply, LABELS)
    except LLMInvalidAnswerError as error:
        problems = error.problems
    else:
        problems = ()
        assert tuple(scores) == LABELS
        assert all(type(value) is int and 0 <= value <= 10 for value in scores.values())
        assert len(set(scores.values())) >= 3
    assert not any("\n" in problem for problem in problems)


def test_a_good_answer():
    """Its scores come in the order of the list, whatever order the model wrote them in."""
    text = json.dumps({"scores": dict(reversed(GOOD["scores"].items()))})
    assert read_answer(text, LABELS) == GOOD["scores"]
    assert tuple(read_answer(text, LABELS)) == LABELS


def test_all_problems_at_once():
    """A model that is told everything can mend everything."""
    with pytest.raises(LLMInvalidAnswerError) as caught:
        read_answer('{"scores": {"b00": 11, "b01": 2.0, "b07": 1}}', LABELS)
    text = " ".join(caught.value.problems)
    assert all(part in text for part in ("2 of 4 labels are missing", '"b02"', '"b07"', "b00: 11", "b01: 2.0"))


@pytest.mark.parametrize(
    ("scores", "fits"),
    [
        ((0, 2, 4, 6, 8, 10), False),
        ((10, 8, 6, 4, 2, 0), False),
        ((0, 0, 4, 6, 8, 10), False),
        ((2, 0, 4, 6, 10, 8), True),
        ((5, 0, 9, 1, 7, 3), True),
    ],
)
def test_copies_of_the_list(scores, fits):
    """From six blocks on, scores that run along the list, up or down, are no judgement."""
    text = json.dumps({"scores": dict(zip(SIX, scores, strict=True))})
    if fits:
        assert read_answer(text, SIX)
    else:
        with pytest.raises(LLMInvalidAnswerError, match="order of the list"):
            read_answer(text, SIX)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_few_blocks_may_run_along_the_list(count):
    """With few blocks chance alone does that too often to conclude anything."""
    labels = SIX[:count]
    assert read_answer(json.dumps({"scores": dict(zip(labels, (1, 3, 5, 7, 9), strict=False))}), labels)


def test_the_schema_is_closed():
    """Every label is required, nothing else is allowed, and the range is an enumeration."""
    schema = answer_schema(LABELS)
    inner = schema["properties"]["scores"]
    assert inner["required"] == list(LABELS) == list(inner["properties"])
    assert inner["additionalProperties"] is schema["additionalProperties"] is False
    assert schema["$defs"]["score"]["enum"] == list(range(11))
