"""Samples of one ranking: how many are asked, which count, and when the picture is steady.

Which samples are asked depends on answers alone, never on which of several concurrent answers came first, so a ranking repeats.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from proxyprune.errors import LLMBudgetError, LLMError, LLMInvalidAnswerError
from proxyprune.proxy.answers.agreement import Matrix, kendall_tau
from proxyprune.proxy.answers.centre import borda, kemeny
from proxyprune.proxy.prompt.survey import Prompt, Survey
from proxyprune.proxy.service.exchange import Usage
from proxyprune.proxy.session.ask import Answer, Asker
from proxyprune.proxy.session.cache import digest
from proxyprune.proxy.session.price import most_usage
from proxyprune.proxy.session.settings import LLMSettings

STEADY_TAU = 0.9
"""The centre is steady when leaving out any one sample changes it to one with at least this Kendall tau to it."""

STEP = 2
"""Samples that are added at a time."""

Scores = Answer[dict[str, int]]

_CENTRES: Mapping[str, Callable[[Matrix, Matrix], Matrix]] = {"borda": borda, "kemeny": kemeny}


@dataclass(frozen=True)
class Sample:
    """One complete, valid score map.

    Attributes:
        number: Which shuffle it was an answer to.
        values: Value in [0, 1] for each block, in graph order.
        listed: Place of each block in the list that was shown, NaN where blocks were in several lists.
        usage: Tokens.
        requests: Questions that it took.
        replayed: Those of them that were answered from the cache.
        cut: (characters sent, tokens reported) of a question whose prompt the server cut, or None.
    """

    number: int
    values: tuple[float, ...]
    listed: tuple[float, ...]
    usage: Usage
    requests: int
    replayed: int
    cut: tuple[int, int] | None = None


@dataclass(frozen=True)
class Samples:
    """All samples of one ranking.

    Attributes:
        valid: In the order of their numbers.
        dropped: Number -> why the answer did not count.
        stopped: Why no more were asked, when that was not for steadiness; or "".
    """

    valid: tuple[Sample, ...]
    dropped: Mapping[int, str] = field(default_factory=dict)
    stopped: str = ""

    @property
    def values(self) -> Matrix:
        """[samples, blocks]."""
        return np.array([sample.values for sample in self.valid], dtype=np.float64)

    @property
    def listed(self) -> Matrix:
        """[samples, blocks]."""
        return np.array([sample.listed for sample in self.valid], dtype=np.float64)

    @property
    def cut(self) -> tuple[int, int] | None:
        """A question whose prompt the server cut, if that happened to every sample; a prompt in the server's cache may not be reported."""
        found = [sample.cut for sample in self.valid]
        return found[0] if found and None not in found else None

    @property
    def usage(self) -> Usage:
        """Of the valid samples."""
        return sum((sample.usage for sample in self.valid), Usage())


@dataclass
class AnswerSampler:
    """Takes the samples of one ranking."""

    survey: Survey
    asker: Asker
    settings: LLMSettings
    progress: Callable[[int, int, bool], None]
    _done: int = 0
    _expected: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def run(self) -> Samples:
        """Ask until the centre is steady, or a limit is reached; when replaying, read what was asked then.

        Raises:
            LLMInvalidAnswerError: If no answer of the first round was valid.
            LLMBudgetError: If the money does not last for two samples.
            LLMError: If a question cannot be answered.
        """
        if self.asker.cache.replaying:
            return self._replayed()
        samples = self._sampled()
        self.asker.cache.save("runs", self.run_key, _run_record(samples))
        return samples

    def centre(self, values: Matrix) -> Matrix:
        """Return the importance of each block, [blocks]."""
        cost = np.array([block.macs for block in self.survey.graph.blocks], dtype=np.float64)
        return _CENTRES[self.settings.centre](values, cost)

    def steady(self, values: Matrix) -> bool:
        """Return True if the centre hardly depends on any one sample."""
        if len(values) < 3:
            return False
        whole = self.centre(values)
        return all(kendall_tau(self.centre(np.delete(values, left_out, 0)), whole) >= STEADY_TAU for left_out in range(len(values)))

    @property
    def run_key(self) -> str:
        """Name of the run file: everything that decides which samples are asked, limits of money and time aside."""
        first = [self.asker.key(prompt, 0) for prompt in self.survey.prompts(0)]
        settings = self.settings
        return digest({"first": first, "samples": settings.samples, "max_samples": settings.most_samples, "centre": settings.centre})

    def _sampled(self) -> Samples:
        valid: list[Sample] = []
        dropped: dict[int, LLMInvalidAnswerError] = {}
        asked, wanted = 0, self.settings.samples
        while True:
            numbers = range(asked, wanted)
            affordable = self._affordable(numbers)
            for number, found in self._round(numbers[:affordable]).items():
                if isinstance(found, Sample):
                    valid.append(found)
                else:
                    dropped[number] = found
            asked += affordable
            reasons = {number: " ".join(error.problems) for number, error in dropped.items()}
            if not affordable:
                return self._out_of_money(Samples(tuple(valid), reasons))
            if not valid:
                raise dropped[0]
            values = np.array([sample.values for sample in valid])
            if asked >= self.settings.most_samples or (len(valid) >= self.settings.samples and self.steady(values)):
                return Samples(tuple(valid), reasons)
            wanted = min(asked + STEP, self.settings.most_samples)

    def _out_of_money(self, samples: Samples) -> Samples:
        limit = f"the limit of ${self.asker.account.limit_usd:g}"
        if len(samples.valid) < 2:
            spent = self.asker.account.spent_usd or 0.0
            done = len(samples.valid) + len(samples.dropped)
            raise LLMBudgetError(
                f"{limit[0].upper()}{limit[1:]} is too low for two answers, the fewest that can be compared: ${spent:.4g} is spent, "
                f"and another sample may cost ${self._most_usd(done):.4g}. "
                f"A limit of ${self._sufficient_usd(done, 2 - len(samples.valid)):g} is enough for two answers, "
                f"${self._sufficient_usd(done, max(2, self.settings.samples) - len(samples.valid)):g} for all "
                f"{max(2, self.settings.samples)} samples; or lower max_output_tokens."
            )
        return Samples(samples.valid, samples.dropped, f"{limit} was reached")

    def _most_usd(self, number: int) -> float:
        price = self.asker.account.price
        return 0.0 if price is None else sum(price.of(most_usage(self.asker.request(prompt))) for prompt in self.survey.prompts(number))

    def _sufficient_usd(self, done: int, more: int) -> float:
        """Return a limit, rounded up, that certainly suffices for further samples, each of which may be asked twice."""
        exact = (self.asker.account.spent_usd or 0.0) + sum(self._most_usd(number) for number in range(done, done + more))
        digits = 1 - math.floor(math.log10(exact)) if exact > 0 else 0
        return math.ceil(exact * 1.000001 * 10.0**digits) / 10.0**digits

    def _affordable(self, numbers: range) -> int:
        """Return the number of these samples that may be begun; what is in the cache costs nothing."""
        bounds = []
        for number in numbers:
            open_questions = [prompt for prompt in self.survey.prompts(number) if not self._is_recorded(prompt, number)]
            bounds.append(sum((most_usage(self.asker.request(prompt)) for prompt in open_questions), Usage()))
        return self.asker.account.affordable(bounds)

    def _is_recorded(self, prompt: Prompt, number: int) -> bool:
        return self.asker.account.limit_usd is not None and self.asker.recorded(prompt, number) is not None

    def _round(self, numbers: range) -> dict[int, Sample | LLMInvalidAnswerError]:
        """Ask all questions of several samples, some at a time."""
        questions = [(number, prompt) for number in numbers for prompt in self.survey.prompts(number)]
        self._expected += len(questions)
        pool = ThreadPoolExecutor(self.settings.concurrency, thread_name_prefix="proxyprune-samples")
        try:
            futures = [(number, prompt, pool.submit(self._answer, prompt, number)) for number, prompt in questions]
            answers = {(number, prompt.part): self._outcome(future) for number, prompt, future in futures}
        except BaseException as error:
            self.asker.deadline.end(error)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return {number: self._sample(number, answers) for number in numbers}

    def _answer(self, prompt: Prompt, number: int) -> Scores:
        try:
            answer = self.asker.ask(prompt, number)
        except LLMInvalidAnswerError:
            raise
        except BaseException as error:
            self.asker.deadline.end(error)  # no further question is begun
            raise
        with self._lock:
            self._done += 1
            done = self._done
        self.progress(done, self._expected, answer.replayed)
        return answer

    @staticmethod
    def _outcome(future: Future[Scores]) -> Scores | LLMInvalidAnswerError:
        failure: LLMInvalidAnswerError
        try:
            return future.result()
        except LLMInvalidAnswerError as error:
            failure = error
        return failure

    def _sample(self, number: int, answers: Mapping[tuple[int, str], Scores | LLMInvalidAnswerError]) -> Sample | LLMInvalidAnswerError:
        prompts = self.survey.prompts(number)
        found: dict[str, Scores] = {}
        for prompt in prompts:
            answer = answers[number, prompt.part]
            if isinstance(answer, LLMError):
                return answer
            found[prompt.part] = answer
        values = self.survey.combined({part: answer.content for part, answer in found.items()})
        return Sample(
            number,
            tuple(values.values()),
            self._listed(prompts),
            sum((answer.usage for answer in found.values()), Usage()),
            len(found),
            sum(answer.replayed for answer in found.values()),
            next((answer.cut for answer in found.values() if answer.cut is not None), None),
        )

    def _listed(self, prompts: tuple[Prompt, ...]) -> tuple[float, ...]:
        if len(prompts) > 1:
            return (float("nan"),) * len(self.survey.graph.blocks)
        places = {key: float(place) for place, key in enumerate(prompts[0].labels.of)}
        return tuple(places[block.id] for block in self.survey.graph.blocks)

    def _replayed(self) -> Samples:
        record = self.asker.cache.load("runs", self.run_key) or {}
        found = [self._round(range(number, number + 1))[number] for number in record.get("valid", [])]
        valid = tuple(sample for sample in found if isinstance(sample, Sample))
        dropped = {int(number): str(reason) for number, reason in record.get("dropped", {}).items()}
        return Samples(valid, dropped, str(record.get("stopped", "")))


def _run_record(samples: Samples) -> dict[str, Any]:
    return {
        "valid": [sample.number for sample in samples.valid],
        "dropped": {str(number): reason for number, reason in samples.dropped.items()},
        "stopped": samples.stopped,
    }
