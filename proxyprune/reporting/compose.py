"""From a result to a page: which sections it gets, and its headline."""

from __future__ import annotations

from collections.abc import Iterator

from proxyprune.reporting.draw.charts import share_bar
from proxyprune.reporting.page import Fact, Page, Remarks
from proxyprune.reporting.read.read_result import Result
from proxyprune.reporting.sections.beside import beside
from proxyprune.reporting.sections.evaluated import evaluated
from proxyprune.reporting.sections.measured import comparison, search, time
from proxyprune.reporting.sections.pruned_network import (
    compensation,
    cost,
    graph,
    kept_as_they_are,
    losses,
    pinned,
    provenance,
    ranking,
    remarks,
    trials,
    widths,
)
from proxyprune.reporting.sections.step_adaptive import diffusion
from proxyprune.scoring.ranking import Ranking
from proxyprune.support.wording import counted, figure, quantity, share


def compose(result: Result, other: Result | None = None) -> Page:
    """Return the page for a result of any kind.

    Args:
        result: What was read.
        other: A run of step-adaptive diffusion to set beside this one, or None.
    """
    notes = remarks(result)
    warned = notes is not None and any(part.tone == "warning" for part in notes.parts if isinstance(part, Remarks))
    found = [notes if warned else None, search(result), *comparison(result), evaluated(result)]
    found += [None if other is None else beside(result, other), *diffusion(result)]
    found += [section(result) for section in (graph, ranking, trials, time, cost, widths, losses, compensation, pinned, kept_as_they_are)]
    found += [None if warned else notes, provenance(result)]
    return Page(
        title=result.model_class or result.name,
        kind=result.kind,
        summary=_summary(result),
        facts=tuple(_facts(result)),
        sections=tuple(section for section in found if section is not None),
    )


def _summary(result: Result) -> str:
    """One sentence."""
    plan = result.plan
    if result.comparison is not None:
        return f"{counted(len(result.comparison.scorers), 'scorer')} compared on the same cuts, data and recovery."
    if result.diffusion is not None:
        return f"Step-adaptive diffusion: {counted(len(result.diffusion.ranges), 'interval')}, each with its own denoiser."
    if result.evaluations:
        pipelines = len({entry.pipeline for entry in result.evaluations})
        return f"{counted(pipelines, 'pipeline')} compared by the images that they generate."
    if result.search is not None:
        return f"A search with {result.search.proposer or 'an unnamed proposer'}: {counted(result.search.measured, 'measurement')}."
    if plan is not None:
        what = {"width": "channels", "depth": "whole blocks", "both": "channels and whole blocks"}[plan.mode]
        least = f"{what} that are least important by {plan.scorer}"
        return f"A plan to cut the {least}." if result.kind == "plan" else f"The {least} were cut."
    if result.ranking is not None:
        return f"{counted(len(result.ranking.scores), 'block')}, ranked by {result.ranking.scorer}."
    return "The structure of a network, as it was traced."


def _facts(result: Result) -> Iterator[Fact]:
    yield from _search_facts(result)
    yield from _diffusion_facts(result)
    yield from _comparison_facts(result)
    yield from _evaluation_facts(result)
    plan = result.plan
    if plan is not None:
        for label, before, after, target in (
            ("MACs", plan.base_macs, plan.macs, plan.target_macs),
            ("parameters", plan.base_params, plan.params, plan.target_params),
        ):
            budget = f", budget {quantity(target)}" if (label == "MACs") == (plan.metric == "macs") else ""
            part = after / before if before else 0.0
            yield Fact(f"{label} left", share(after, before) or "–", f"{quantity(before)} → {quantity(after)}{budget}", share_bar(part))
        removed = f", {counted(len(plan.removed_blocks), 'block')} removed" if plan.removed_blocks else ""
        yield Fact("cut", counted(len(plan.widths), "group"), f"mode {plan.mode}{removed}")
    elif result.structure is not None and result.structure.blocks:
        structure = result.structure
        yield Fact("MACs", quantity(structure.macs), "one run on the example inputs")
        yield Fact("blocks", str(len(structure.blocks)), f"{counted(structure.skips, 'skip connection')}")
    if result.ranking is not None and (result.search is None or result.ranking.confidence is not None):
        yield _confidence(result.ranking)
    if result.figures is not None and result.figures.thop_macs is not None:
        before, after = result.figures.thop_macs
        counted_by = f"{quantity(before)} → {quantity(after)}, as papers count: no attention products"
        yield Fact("MACs left, by thop", share(after, before) or "–", counted_by)
    if result.figures is not None and result.figures.seconds is not None:
        before_s, after_s = result.figures.seconds
        yield Fact("measured time left", share(after_s, before_s), "one run on the example inputs")


def _confidence(ranking: Ranking) -> Fact:
    unreliable = "marked unreliable"
    if ranking.confidence is None:
        return Fact("scorer", ranking.scorer, unreliable if ranking.unreliable else "")
    told = unreliable if ranking.unreliable else "agreement of repeated answers"
    return Fact("confidence", f"{ranking.confidence:.2f}", f"{ranking.scorer}: {told}")


def _search_facts(result: Result) -> Iterator[Fact]:
    found = result.search
    if found is None or found.best is None:
        return
    start = found.rounds[0].loss
    detail = (
        "" if start is None else f"one shot {figure(start)}" + ("" if found.base_loss is None else f", unpruned {figure(found.base_loss)}")
    )
    yield Fact("best held-out loss", figure(found.best.loss), detail)
    yield Fact("measurements", str(found.measured), f"best in round {found.best.index}")


def _diffusion_facts(result: Result) -> Iterator[Fact]:
    run = result.diffusion
    if run is None:
        return
    if run.mean_share is not None:
        yield Fact("sampling MACs", share(run.mean_share, 1.0), "mean over the sampler's steps, of the base", share_bar(run.mean_share))
    if run.limit_macs:
        part = run.spent_macs / run.limit_macs
        yield Fact("training MACs", share(part, 1.0), f"{quantity(run.spent_macs)}, of one full-size model", share_bar(part))
    elif run.ledger:
        yield Fact("training MACs", quantity(run.spent_macs), "so far")
    done = sum(entry.macs is not None for entry in run.ranges)
    yield Fact("experts", f"{done} of {len(run.ranges)}" if run.ranges else "none yet", "trained")


def _evaluation_facts(result: Result) -> Iterator[Fact]:
    if result.evaluations:
        best = min(result.evaluations, key=lambda entry: entry.frechet.value)
        where = f"{best.pipeline}, " if best.pipeline else ""
        yield Fact("Fréchet distance", f"{best.frechet.value:.3f}", f"{where}{counted(best.steps, 'step')}, {quantity(best.macs)} MACs")


def _comparison_facts(result: Result) -> Iterator[Fact]:
    found = result.comparison
    if found is None:
        return
    yield Fact("scorers", str(len(found.scorers)), ", ".join(found.scorers[:4]) + ("…" if len(found.scorers) > 4 else ""))
    yield Fact("cases", str(len(found.cases)), ", ".join(found.cases[:4]) + ("…" if len(found.cases) > 4 else ""))
    yield Fact("measurements", str(len(found.cells)), counted(len({cell.seed for cell in found.cells}), "seed"))
    if found.base_macs:
        yield Fact("unpruned", f"{quantity(found.base_macs)}", "MACs")
