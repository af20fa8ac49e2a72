"""One question besides the ranking, such as that for advice: its answer, or why there is none."""

from __future__ import annotations

from typing import TypeVar

from proxyprune.errors import LLMInvalidAnswerError, LLMRefusalError, LLMTruncatedError
from proxyprune.proxy.prompt.question import Question
from proxyprune.proxy.session.ask import Answer, Asker
from proxyprune.proxy.session.cache import digest
from proxyprune.proxy.session.price import most_usage

Content = TypeVar("Content")


def answer_or_problem(asker: Asker, question: Question[Content]) -> tuple[Answer[Content] | None, str]:
    """Ask one question, or replay its answer.

    What came of it is recorded, so that a replay of an answer that did not count needs no answer.

    Returns:
        The answer and ""; or None and why there is none: it stayed invalid, the model refused, it was truncated, or it costs too much.

    Raises:
        LLMError: If the model cannot be asked.
    """
    key = digest({question.part: asker.key(question, 0)})
    known: str | None = (asker.cache.load("runs", key) or {}).get("problem")
    if asker.cache.replaying and known is not None:
        return None, known
    if not (asker.recorded(question, 0) or asker.account.affordable([most_usage(asker.request(question))])):
        return None, _unaffordable(asker, question)
    try:
        answer = asker.ask(question, 0)
    except (LLMInvalidAnswerError, LLMRefusalError, LLMTruncatedError) as error:
        problem = f"no answer: {type(error).__name__}: {error}"
        asker.cache.save("runs", key, {"problem": problem})
        return None, problem
    asker.cache.save("runs", key, {"problem": None})
    return answer, ""


def _unaffordable(asker: Asker, question: Question[object]) -> str:
    price, spent = asker.account.price, asker.account.spent_usd or 0.0
    worst = 0.0 if price is None else price.of(most_usage(asker.request(question)))
    needed = f"the question may cost ${worst:.4g}; a limit of ${spent + worst:.4g} is enough"
    return f"not asked: ${spent:.4g} of the limit is spent, and {needed}"
