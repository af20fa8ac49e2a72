"""The scorers that ask a language model: `openai`, `anthropic` and `local`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from proxyprune.errors import (
    InputError,
    LLMError,
    LLMReplayMissError,
    MissingNeedError,
    ProxyPruneError,
)
from proxyprune.proxy.answers.advice import ProposedAdvice
from proxyprune.proxy.answers.agreement import Agreement, measure_agreement
from proxyprune.proxy.answers.formula import ProposedFormula
from proxyprune.proxy.answers.widths import ProposedWidths
from proxyprune.proxy.prompt.advice_question import AdviceQuestion, advice_question
from proxyprune.proxy.prompt.formula_question import FormulaQuestion
from proxyprune.proxy.prompt.measured_figures import NEEDS_OF, measure
from proxyprune.proxy.prompt.question import Question
from proxyprune.proxy.prompt.survey import Survey
from proxyprune.proxy.prompt.templates import VERSION
from proxyprune.proxy.prompt.widths_question import GroupWidths, widths_question
from proxyprune.proxy.service.endpoint import ANTHROPIC, OPENAI, Endpoint, Hosted, endpoint_of
from proxyprune.proxy.service.exchange import Provider, Usage
from proxyprune.proxy.service.response_formats import ResponseFormats
from proxyprune.proxy.session.ask import Asker, cut_prompt
from proxyprune.proxy.session.audit import Audit
from proxyprune.proxy.session.cache import Cache
from proxyprune.proxy.session.deadline import Deadline
from proxyprune.proxy.session.events import Advised, Asked, Event, Finished, Planned
from proxyprune.proxy.session.price import Account, CostEstimate, Price, estimate, price_of, with_question
from proxyprune.proxy.session.sample import AnswerSampler, Samples
from proxyprune.proxy.session.settings import STATISTICS, LLMSettings
from proxyprune.proxy.session.single_question import answer_or_problem
from proxyprune.scoring.contract import ScoringContext, check_needs
from proxyprune.scoring.ranking import Ranking
from proxyprune.scoring.registry import find

if TYPE_CHECKING:
    from proxyprune.graph.model_graph import ModelGraph

_NAMED = 6


@dataclass(frozen=True)
class Preview:
    """The requests that would be sent, and their cost; nothing is sent for it.

    Attributes:
        prompts: All questions of the first sample, and the one for advice if it is asked for.
        estimate: Tokens and money.
        destination: Address.
    """

    prompts: tuple[Question[object], ...]
    estimate: CostEstimate
    destination: str


@dataclass(frozen=True, kw_only=True)
class LLMScorer(LLMSettings):
    """Asks a language model which blocks matter; see `LLMSettings` for the options.

    Every sample is a complete score map, asked with the blocks in another order. The ranking is the centre of the samples, its confidence
    their mean pairwise Kendall tau. Agreement no better than chance marks the ranking unreliable. Confidence measures repetition, not
    truth: answers that share a mistake agree.
    """

    hosted: ClassVar[Hosted | None] = None

    name: str = field(default="", init=False)
    needs: frozenset[str] = field(default=frozenset({"network"}), init=False)
    _endpoint: Endpoint = field(init=False, repr=False, compare=False)
    _formats: ResponseFormats = field(default_factory=ResponseFormats, init=False, repr=False, compare=False)
    _spent: list[Usage] = field(default_factory=list, init=False, repr=False, compare=False)  # by the last ranking

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_endpoint", endpoint_of(self.base_url, self.hosted))
        needs = {"network"} | {NEEDS_OF[name] for name in self.statistics or ()}
        if self.fallback is not None:
            other = find(self.fallback, {})
            if "network" in other.needs:
                raise InputError(
                    f"fallback must be a scorer that uses no language model, found '{self.fallback}'. Use 'taylor' or 'magnitude'."
                )
            needs |= other.needs
        object.__setattr__(self, "needs", frozenset(needs))

    def provider(self, endpoint: Endpoint) -> Provider:
        """Make the client for an address."""
        raise NotImplementedError

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Ask, check, and combine.

        Raises:
            LLMError: If no ranking comes about and there is no fallback.
        """
        check_needs(self, context)
        try:
            ranking = self._asked_or_replayed(graph, context)
        except LLMReplayMissError:
            raise
        except LLMError as error:
            if self.fallback is None:
                raise
            reason = f"{type(error).__name__}: {error}"
        else:
            if ranking.unreliable is None or self.fallback is None:
                return ranking
            reason = ranking.unreliable
        return self._fallen_back(graph, context, reason)

    def preview(self, graph: ModelGraph, context: ScoringContext) -> Preview:
        """Return the prompts of the first sample and the cost of all; needs no key, and sends nothing."""
        check_needs(self, context)
        survey = self._survey(graph, context, self._shown(context))
        questions: tuple[Question[object], ...] = survey.prompts(0)
        advice = self._advice_question(survey, context) if self.ask_advice else None
        questions += () if advice is None else (advice,)
        return Preview(questions, self._estimate(survey, self._asker(context), advice), self._endpoint.url)

    def advise(self, graph: ModelGraph, context: ScoringContext) -> ProposedAdvice:
        """Ask for limits of the plan, after the ranking. The cost limit holds for both together.

        An answer that stays invalid, a refusal or a truncated answer is no advice, with the reason among `dropped`; so is a network
        without a choice. With a fallback, so is every other failure.

        Raises:
            MissingNeedError: If source code is to be shown and there is no model.
            LLMError: If the model cannot be asked and there is no fallback.
        """
        check_needs(self, context)
        if len(graph.blocks) < 2:
            return ProposedAdvice(dropped=("there is nothing to advise on, so nobody was asked",))
        question = self._advice_question(self._survey(graph, context, self._shown(context)), context)
        asker = self._asker(context)
        asker.account.charge(self._spent[0] if self._spent and not asker.cache.replaying else Usage())
        try:
            with contextlib.closing(asker):
                found = self._advice(asker, question)
            self._spent[:] = [asker.account.usage]
            return found
        except LLMReplayMissError:
            raise
        except LLMError as error:
            if self.fallback is None:
                raise
            return ProposedAdvice(dropped=(f"no answer: {type(error).__name__}: {error}",))

    def _advice(self, asker: Asker, question: AdviceQuestion) -> ProposedAdvice:
        """Ask, or replay; an answer that did not count leaves its reason among `dropped`."""
        answer, problem = answer_or_problem(asker, question)
        if answer is None:
            return ProposedAdvice(dropped=(problem,))
        self._tell(Advised(len(answer.content.limits), answer.replayed, answer.usage, asker.account.spent_usd))
        return answer.content

    def propose_widths(self, graph: ModelGraph, context: ScoringContext, groups: Mapping[str, GroupWidths]) -> ProposedWidths:
        """Ask for exact widths, after the ranking. The cost limit holds for both together.

        An answer that stays invalid, a refusal or a truncated answer is no width, with the reason among `dropped`.

        Raises:
            LLMError: If the model cannot be asked.
        """
        question = widths_question(self._survey(graph, context, self._shown(context)), groups)
        if not question.labels.of:
            return ProposedWidths(dropped=("no channel group has a choice, so nobody was asked",))
        asker = self._asker(context)
        asker.account.charge(self._spent[0] if self._spent and not asker.cache.replaying else Usage())
        with contextlib.closing(asker):
            answer, problem = answer_or_problem(asker, question)
        return ProposedWidths(dropped=(problem,)) if answer is None else answer.content

    def write_formula(self, question: FormulaQuestion, context: ScoringContext) -> tuple[ProposedFormula | None, str]:
        """Ask for a formula of channel scores. The cost limit holds for each question.

        Returns:
            The formula and ""; or None and why there is none: an answer that stays invalid, a refusal, or a question that costs too much.

        Raises:
            LLMError: If the model cannot be asked.
        """
        asker = self._asker(context)
        with contextlib.closing(asker):
            answer, problem = answer_or_problem(asker, question)
        return (None, problem) if answer is None else (answer.content, "")

    def _advice_question(self, survey: Survey, context: ScoringContext) -> AdviceQuestion:
        if not self.show_source:
            return advice_question(survey, {})
        if context.model is None:
            raise MissingNeedError("show_source shows the source code of the blocks, and there is no model. Pass model=.")
        from proxyprune.tracing.source_code import class_source  # imports torch

        found = {block.id: class_source(context.model.get_submodule(block.id)) for block in survey.graph.blocks}
        return advice_question(survey, {block: text for block, text in found.items() if text is not None})

    @property
    def data_helps(self) -> bool:
        """True if calibration batches and a loss are not needed and change the question."""
        return self.statistics is None

    def _asked_or_replayed(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Ask; a replay without recorded answers to today's question takes those to the questions of earlier versions.

        These showed no measured figures unless some were named, and the lines of the first release.
        """
        shown = self._shown(context)
        earlier = () if graph.first_reading in ((), graph.blocks) else (replace(graph, blocks=graph.first_reading),)
        figures = [shown, ()] if shown and self.statistics is None else [shown]
        miss: LLMReplayMissError | None = None
        for known, names in ((known, names) for known in (graph, *earlier) for names in figures):
            try:
                return self._asked(known, context, names)
            except LLMReplayMissError as error:
                miss = miss or error  # the first miss names the file that a recording made today would have
        assert miss is not None
        raise miss

    def _shown(self, context: ScoringContext) -> tuple[str, ...]:
        """Return the figures that the prompt shows."""
        if self.statistics is not None:
            return tuple(dict.fromkeys(self.statistics))
        at_hand = context.model is not None and bool(context.batches) and context.loss_fn is not None
        return STATISTICS if at_hand else ()

    def _asked(self, graph: ModelGraph, context: ScoringContext, shown: tuple[str, ...]) -> Ranking:
        if len(graph.blocks) < 2:
            scores = {block.id: 0.5 for block in graph.blocks}
            return Ranking(scores, self.name, seed=context.seed, notes=("There is nothing to rank, so nobody was asked.",))
        survey = self._survey(graph, context, shown)
        asker = self._asker(context)
        sampler = AnswerSampler(survey, asker, self, lambda done, expected, replayed: self._tell(Asked(done, expected, replayed)))
        advice = self._advice_question(survey, context) if self.ask_advice else None
        self._tell(Planned(self._estimate(survey, asker, advice)))
        try:
            with contextlib.closing(asker):
                samples = sampler.run()
        finally:
            self._spent[:] = [asker.account.usage]
        agreement = measure_agreement(samples.values, samples.listed, context.seed) if len(samples.valid) > 1 else None
        self._tell(self._finished(samples, agreement, asker))
        centre = sampler.centre(samples.values)
        return Ranking(
            scores={block.id: float(value) for block, value in zip(graph.blocks, centre, strict=True)},
            scorer=self.name,
            confidence=None if agreement is None else round(float(np.clip(agreement.tau, -1.0, 1.0)), 6),
            seed=context.seed,
            notes=self._notes(survey, samples, agreement),
            unreliable=_verdict(agreement, samples),
        )

    def _survey(self, graph: ModelGraph, context: ScoringContext, shown: tuple[str, ...]) -> Survey:
        times = self._times(graph)
        try:
            measured = measure(shown, self, graph, context)
        except ProxyPruneError as error:
            if self.statistics is not None:
                raise
            return Survey(graph, context.brief, context.seed, self.prompt_tokens, self.real_names, unmeasured=str(error), times=times)
        return Survey(graph, context.brief, context.seed, self.prompt_tokens, self.real_names, measured, times=times)

    def _times(self, graph: ModelGraph) -> Mapping[str, int]:
        """Return nanoseconds by block if they are to be shown."""
        if not self.show_time:
            return {}
        if graph.cost.time is None:
            raise MissingNeedError(
                "show_time shows each block's share of the time, and this graph has no times. Score the graph that "
                "proxyprune.with_times(graph, model, example_inputs) returns."
            )
        return graph.cost.time.by_block(graph.cost.full)

    def _asker(self, context: ScoringContext) -> Asker:
        cache = Cache(None if self.cache is None else Path(self.cache), self.cache_mode)
        limit = None if cache.replaying else self.max_cost_usd
        return Asker(
            name=self.name,
            settings=self,
            endpoint=self._endpoint,
            seed=context.seed,
            make_provider=lambda: self.provider(self._endpoint),
            cache=cache,
            audit=Audit(None if cache.replaying and self.audit is None else self.audit_path, self._endpoint.secrets),
            account=Account(self._price(), limit),
            deadline=Deadline(self.deadline_seconds),
        )

    def _price(self) -> Price | None:
        return price_of(self._endpoint, self.model, self.price_per_million)

    def _estimate(self, survey: Survey, asker: Asker, advice: AdviceQuestion | None) -> CostEstimate:
        requests = tuple(asker.request(prompt) for prompt in survey.prompts(0))
        hosted, price = self._endpoint.hosted is not None, self._price()
        found = estimate(survey, requests, (self.samples, self.most_samples), hosted, price)
        return found if advice is None else with_question(found, advice, asker.request(advice), hosted)

    def _finished(self, samples: Samples, agreement: Agreement | None, asker: Asker) -> Finished:
        return Finished(
            provider=self.name,
            model=self.model,
            samples=len(samples.valid),
            dropped=len(samples.dropped),
            requests=sum(sample.requests for sample in samples.valid),
            replayed=sum(sample.replayed for sample in samples.valid),
            usage=samples.usage,
            spent_usd=asker.account.spent_usd,
            confidence=None if agreement is None else agreement.tau,
            concordance=None if agreement is None else agreement.concordance,
            chance=None if agreement is None else agreement.chance,
        )

    def _notes(self, survey: Survey, samples: Samples, agreement: Agreement | None) -> tuple[str, ...]:
        """Return what a reader has to know; only facts that a replay finds again."""
        count, usage = len(samples.valid), samples.usage
        how = f"in {len(survey.stages)} stages" if survey.stages else "in one list"
        notes = [
            f"Asked {self.model} at {self._endpoint.identity} {count + len(samples.dropped)} times, {how}, blocks shuffled each time; "
            f"{'Borda' if self.centre == 'borda' else 'Kemeny'} centre (wording {VERSION}).",
            f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out{' for the valid answers' if samples.dropped else ''}.",
        ]
        if agreement is not None:
            notes.append(
                f"Kendall's W {agreement.concordance:.2f} (1 is full agreement, {1 / count:.2f} is chance; "
                f"random answers reach it in {agreement.chance:.1%} of cases)."
            )
        if agreement is not None and agreement.follows_the_list:
            notes.append(
                f"The answers lean on the order of the list, which was random (mean Kendall tau {agreement.position:.2f} with it)."
            )
        if samples.dropped:
            shown = "; ".join(f"sample {number}: {reason}" for number, reason in list(samples.dropped.items())[:_NAMED])
            notes.append(f"{len(samples.dropped)} invalid answers were dropped, not mended ({shown}).")
        if samples.stopped:
            notes.append(f"No more answers were asked for: {samples.stopped}.")
        if survey.measured:
            notes.append(f"The prompt showed measured figures: {', '.join(survey.measured)}.")
        if survey.times:
            notes.append("The prompt showed each block's share of the time of a run on this machine.")
        if survey.unmeasured is not None:
            notes.append(f"The prompt showed no measured figures, because they could not be measured. {survey.unmeasured}")
        return tuple(notes)

    def _fallen_back(self, graph: ModelGraph, context: ScoringContext, reason: str) -> Ranking:
        other = find(str(self.fallback), {})
        ranking = other.score(graph, context)
        note = f"NOT the ranking of '{self.name}' ({self.model}): scorer '{other.name}' took its place, as asked for by fallback. {reason}"
        return replace(ranking, scorer=f"{other.name} (fallback of {self.name})", notes=(note, *ranking.notes))

    def _tell(self, event: Event) -> None:
        if self.observer is not None:
            self.observer(event)


def _verdict(agreement: Agreement | None, samples: Samples) -> str | None:
    count = len(samples.valid)
    if samples.cut is not None:
        return cut_prompt(*samples.cut)
    if agreement is None:
        return f"There is {count} valid answer, and nothing says whether another one would agree; ask for at least 2 samples."
    return agreement.verdict(count)


@dataclass(frozen=True, kw_only=True)
class OpenAIScorer(LLMScorer):
    """Asks a GPT model through the OpenAI Responses API.

    Needs `model`, and the key in OPENAI_API_KEY. With `base_url`, another server with that protocol.
    """

    hosted: ClassVar[Hosted | None] = OPENAI
    name: str = field(default="openai", init=False)

    def provider(self, endpoint: Endpoint) -> Provider:
        """Make the client for an address."""
        from proxyprune.proxy.service.openai_responses import OpenAIResponses

        return OpenAIResponses(endpoint)


@dataclass(frozen=True, kw_only=True)
class AnthropicScorer(LLMScorer):
    """Asks a Claude model through the Anthropic Messages API.

    Needs `model`, and the key in ANTHROPIC_API_KEY. With `base_url`, another server with that protocol.
    """

    hosted: ClassVar[Hosted | None] = ANTHROPIC
    name: str = field(default="anthropic", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature is not None:
            raise InputError("Claude models take no temperature; omit it. Samples differ by the order of the blocks.")

    def provider(self, endpoint: Endpoint) -> Provider:
        """Make the client for an address."""
        from proxyprune.proxy.service.anthropic_messages import AnthropicMessages

        return AnthropicMessages(endpoint)


@dataclass(frozen=True, kw_only=True)
class LocalScorer(LLMScorer):
    """Asks a model on a server of your own: llama.cpp, Ollama, vLLM, LM Studio, or anything else with OpenAI's chat protocol.

    Needs `model` and `base_url`. A key, if the server wants one, goes into PROXYPRUNE_LLM_API_KEY.
    """

    name: str = field(default="local", init=False)

    def provider(self, endpoint: Endpoint) -> Provider:
        """Make the client for an address."""
        from proxyprune.proxy.service.openai_chat import OpenAIChat

        return OpenAIChat(endpoint, self._formats)
