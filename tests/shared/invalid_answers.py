"""Answers that a service gives and that are asked for again."""

from __future__ import annotations

import json
from collections.abc import Callable

from proxyprune.testing import (
    ReceivedRequest,
    Says,
    by_place,
)


def changed(change: Callable[[dict[str, object]], object]) -> Says:
    """Return a valid score map with a defect."""

    def text(asked: ReceivedRequest) -> str:
        scores = json.loads(by_place(asked))["scores"]
        change(scores)
        return json.dumps({"scores": scores})

    return Says(text)


def twice_the_first(asked: ReceivedRequest) -> str:
    first = next(iter(asked.places))
    return by_place(asked)[:-2] + f', "{first}": 3}}}}'


MENDED = {
    "missing label": changed(lambda scores: scores.popitem()),
    "unknown label": changed(lambda scores: scores.update(b99=3)),
    "out of range": changed(lambda scores: scores.update({next(iter(scores)): 11})),
    "negative": changed(lambda scores: scores.update({next(iter(scores)): -1})),
    "float": changed(lambda scores: scores.update({next(iter(scores)): 3.5})),
    "boolean": changed(lambda scores: scores.update({next(iter(scores)): True})),
    "string": changed(lambda scores: scores.update({next(iter(scores)): "7"})),
    "null": changed(lambda scores: scores.update({next(iter(scores)): None})),
    "all the same": changed(lambda scores: scores.update(dict.fromkeys(scores, 5))),
    "copy of the list": changed(lambda scores: scores.update({label: place for place, label in enumerate(scores)})),
    "copy in reverse": changed(lambda scores: scores.update({label: 10 - place for place, label in enumerate(scores)})),
    "duplicate": Says(twice_the_first),
    "list": Says("[1, 2, 3]"),
    "other key": Says('{"ranking": {}}'),
    "scores is a list": Says('{"scores": [1, 2]}'),
    "NaN": Says('{"scores": {"b00": NaN}}'),
    "half a JSON": Says('{"scores": {"b00": 1'),
    "two answers": Says(lambda asked: f"{by_place(asked)}\n{by_place(asked)}"),
    "thinking only": Says(lambda asked: f"<think>{by_place(asked)}</think>"),
    "nothing": Says(" "),
    "half a surrogate pair": Says('{"scores": {"\ud800": 1}}'),
    "control characters": Says("\x00\x1b[31m{}"),
    "deep": Says("[" * 100_000),
}
