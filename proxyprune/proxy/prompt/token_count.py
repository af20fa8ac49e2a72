"""The number of tokens of a text, estimated without any tokenizer.

Tokenizers are fetched over the network or belong to one model. Descriptions of networks are mostly figures and punctuation, which are
dense: 1,541 characters were measured as 706 and 733 tokens, 2.1 to 2.2 characters each, where prose has four.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

CHARACTERS_PER_TOKEN = 2.1


CUT_CHARACTERS_PER_TOKEN = 6.0
"""From this on a prompt was cut: no tokenizer packs our prompts so densely, whose sentences have four to five characters a token."""


def was_cut(characters: int, reported_tokens: int) -> bool:
    """Return True if a server reports so few tokens of a prompt that it cannot have read all of it; 0 says that it reports none."""
    return 0 < reported_tokens * CUT_CHARACTERS_PER_TOKEN < characters


def tokens_of(text: str) -> int:
    """Estimated tokens of a text."""
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def tokens_of_prompt(system: str, user: str, schema: Mapping[str, Any]) -> int:
    """Return the estimated tokens of a request, schema included."""
    return tokens_of(system) + tokens_of(user) + tokens_of_schema(schema)


def tokens_of_schema(schema: Mapping[str, Any]) -> int:
    """Estimated tokens of a schema, which services count as part of the prompt."""
    return tokens_of(json.dumps(schema, separators=(",", ":")))
