"""The interface of a question: the text that is sent, and the reading of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from proxyprune.proxy.prompt.block_list import PromptLabels

Content = TypeVar("Content", covariant=True)


class Question(Protocol[Content]):
    """One question to a language model.

    Attributes:
        part: Place among the questions of a sample; a part of the name of the recorded answer.
        system: Static text.
        user: The question.
        labels: What the labels of the list stand for.
        schema: JSON schema of the answer.
        tokens: Estimated length, schema included.
        answer_tokens: Room for the answer, without reasoning.
        wanted: The answer in words, for messages: "score map".
    """

    @property
    def part(self) -> str: ...  # noqa: D102  described under Attributes

    @property
    def system(self) -> str: ...  # noqa: D102  described under Attributes

    @property
    def user(self) -> str: ...  # noqa: D102  described under Attributes

    @property
    def labels(self) -> PromptLabels: ...  # noqa: D102  described under Attributes

    @property
    def schema(self) -> Mapping[str, Any]: ...  # noqa: D102  described under Attributes

    @property
    def tokens(self) -> int: ...  # noqa: D102  described under Attributes

    @property
    def answer_tokens(self) -> int: ...  # noqa: D102  described under Attributes

    @property
    def wanted(self) -> str: ...  # noqa: D102  described under Attributes

    def read(self, text: str) -> Content:
        """Return the content of an answer.

        Raises:
            LLMInvalidAnswerError: If it is not valid; with all problems.
        """
        ...

    def again(self, problems: tuple[str, ...]) -> str:
        """Return the message that follows an invalid answer."""
        ...
