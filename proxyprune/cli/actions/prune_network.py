"""Prune a network and save it, make the plan for it, or apply a plan."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from proxyprune.api import compensate, prune
from proxyprune.applying.apply import apply
from proxyprune.cli.loading import Built, Judge, build, scorer_named
from proxyprune.cli.options.llm import LLMOptions
from proxyprune.cli.options.prune_files import PruneFiles
from proxyprune.cli.options.shared import ModelOptions
from proxyprune.cli.output.console import Output, output
from proxyprune.cli.output.tables import compensation_table, pinned_table, remarks, summary_table, widths_table
from proxyprune.errors import InvalidScoreError, MissingNeedError, PlanFormatError, StorageError
from proxyprune.graph.build import trace_like
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.thop_count import thop_macs
from proxyprune.measuring.wall_time import run_seconds
from proxyprune.modelfile import split_spec
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planner import plan_for
from proxyprune.planning.request import PlanRequest
from proxyprune.plots.figure import check_plot_path
from proxyprune.plots.network import plot_widths
from proxyprune.result import PruneResult, make_report
from proxyprune.saving.destination import check_folder
from proxyprune.saving.manifest import MANIFEST
from proxyprune.saving.network_folder import save
from proxyprune.saving.onnx_file import check_onnx, save_onnx
from proxyprune.saving.plain_folder import check_plain_folder, save_pretrained
from proxyprune.scoring.contract import ScoringContext
from proxyprune.scoring.ranking import Ranking

_SCHEMA = 1


@dataclass(frozen=True)
class GivenRanking:
    """A ranking that was made earlier, as a scorer."""

    ranking: Ranking
    needs: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """The scorer that made it."""
        return self.ranking.scorer

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """The ranking; whether it fits the graph is checked by the caller."""
        return self.ranking


def prune_network(source: ModelOptions, scorer: str, llm: LLMOptions, request: PlanRequest, files: PruneFiles, *, as_json: bool) -> None:
    """Prune, plan or replay, and print what was done."""
    _check_destinations(files, source)
    with output(as_json) as out:
        given = _read_plan(files.plan)
        judge = Judge(GivenRanking(_read_ranking(files.ranking))) if files.ranking is not None else scorer_named(scorer, llm)
        built = build(source, out)
        if judge.dry_run:
            built.show_dry_run(judge, out, request.brief())
            return
        if files.plan_only:
            _only_plan(built, judge, request, files, out)
        else:
            batches = _calibration_batches(built) if files.compensate else None
            result = _prune(built, judge, request, out) if given is None else _replay(built, given, out)
            if batches is not None:
                result = compensate(result, built.model, batches, built.file.loss_fn, seed=built.source.seed, inplace=True, progress=True)
            _finish(built, result, files, out, judge)


def _prune(built: Built, judge: Judge, request: PlanRequest, out: Output) -> PruneResult:
    needed = built.needed_by(judge.scorer)
    with out.stage(f"Pruning {type(built.model).__name__} to {request.target} with {judge.scorer.name}") as judge.listener.say:
        return prune(
            built.model,
            built.inputs,
            request.target,
            judge.scorer,
            also=built.also,
            **built.source.trace_keywords,
            seed=built.source.seed,
            **request.keywords(),
            **needed,
        )


def _calibration_batches(built: Built) -> tuple[Any, ...]:
    """Batches for a compensation, looked for before anything is cut.

    Raises:
        MissingNeedError: If the model file has none.
    """
    batches = built.file.calibration_batches()
    if batches is None:
        raise MissingNeedError(f"--compensate refits on calibration batches, but {built.file.path} defines no calibration_batches().")
    return batches


def _replay(built: Built, plan: PrunePlan, out: Output) -> PruneResult:
    with out.stage(f"Applying the plan to {type(built.model).__name__}"):
        graph = trace_like(built.model, built.inputs, plan.options, built.also)
        applied = apply(built.model, plan, built.inputs, graph=graph)
    unknown = Ranking({}, plan.scorer, seed=plan.seed, notes=("The plan was replayed from a file; it does not hold the scores.",))
    report = make_report(graph, plan, applied.not_followed, config_note=applied.config_note)
    return PruneResult(applied.model, plan, unknown, report, applied.surgery, graph, built.inputs)


def _only_plan(built: Built, judge: Judge, request: PlanRequest, files: PruneFiles, out: Output) -> None:
    graph = built.trace(out)
    ranking = built.rank(graph, judge, out, request.brief())
    with out.stage("Planning"):
        plan = plan_for(graph, ranking, request, model=None if built.source.fake_weights else built.model)
    destination = files.destination(built.file.path)
    plan.to_json(destination)
    plotted = _plot(files, graph, plan)
    report = make_report(graph, plan)
    out.show(
        widths_table(graph, plan, ids=files.ids),
        pinned_table(graph, ids=files.ids),
        summary_table(plan, conventional=report.conventional_macs),
        *remarks(graph, (*judge.notes(ranking), *plan.notes), ranking.confidence),
        judge.listener.table(),
        *plotted,
        f"The plan is in {destination}. Apply it with: proxyprune prune --model {built.source.model} --plan {destination}",
    )
    out.emit({"schema": _SCHEMA, "plan": plan.to_dict(), "report": report.to_dict(), "file": str(destination)})


def _finish(built: Built, result: PruneResult, files: PruneFiles, out: Output, judge: Judge) -> None:
    destination = files.destination(built.file.path)
    if files.timed:
        with out.stage("Measuring time"):
            result = _timed(built, result)
    with out.stage("Counting with thop"):
        result = _counted_by_thop(built, result)
    replaced = (destination / MANIFEST).is_file()
    with out.stage(f"Saving to {destination}"):
        save(result, destination)
    plotted = _plot(files, result.graph, result.plan)
    if files.save_pretrained is not None:
        with out.stage(f"Saving to {files.save_pretrained}, and loading it without proxyprune"):
            save_pretrained(result, files.save_pretrained, command=shlex.join(["proxyprune", *sys.argv[1:]]))
        plotted = (*plotted, f"Plain folder: {files.save_pretrained}. Load it with {_plain_class(result)}.from_pretrained.")
    if files.onnx is not None:
        with out.stage(f"Exporting to {files.onnx}, and comparing with torch"):
            save_onnx(result.model, built.inputs, files.onnx)
        plotted = (*plotted, f"ONNX: {files.onnx}, with a dynamic batch; onnxruntime gives the outputs of torch.")
    line = f'small = pp.load("{destination}", load_model_file("{built.source.model}").build_model)'
    out.show(
        widths_table(result.graph, result.plan, ids=files.ids),
        pinned_table(result.graph, ids=files.ids),
        summary_table(result.plan, conventional=result.report.conventional_macs, thop=result.report.thop_macs),
        compensation_table(result.report.compensation),
        *remarks(result.graph, (*judge.notes(result.ranking), *result.report.notes), result.ranking.confidence),
        _attributes_line(result),
        judge.listener.table(),
        _time_line(result),
        *plotted,
    )
    out.text(
        f"\nVerified, and saved to {destination}{', in place of an earlier result' if replaced else ''}. Load it with:\n\n"
        f"    import proxyprune as pp\n    from proxyprune.modelfile import load_model_file\n\n    {line}\n\n"
        "A short fine-tuning brings back most of what the cut cost. To see what was done, as one HTML page:\n\n"
        f"    proxyprune report {shlex.quote(str(destination))}"
    )
    out.emit(
        {
            "schema": _SCHEMA,
            "plan": result.plan.to_dict(),
            "report": result.report.to_dict(),
            "thop_macs": result.report.thop_macs,
            "folder": str(destination),
            **({} if files.save_pretrained is None else {"plain_folder": str(files.save_pretrained)}),
            **({} if files.onnx is None else {"onnx": str(files.onnx)}),
        }
    )


def _plain_class(result: PruneResult) -> str:
    return result.graph.model_class if result.graph.blueprint is None else result.graph.blueprint.kind.__name__


def _timed(built: Built, result: PruneResult) -> PruneResult:
    seconds = run_seconds(built.model, result.model, built.inputs)
    return replace(result, report=replace(result.report, seconds=seconds))


def _counted_by_thop(built: Built, result: PruneResult) -> PruneResult:
    before, after = thop_macs(built.model, built.inputs), thop_macs(result.model, built.inputs)
    if before is None or after is None:
        return result
    return replace(result, report=replace(result.report, thop_macs=(before, after)))


def _attributes_line(result: PruneResult) -> str | None:
    """Return how many attributes kept an old size, with the first of them; there can be several in every module."""
    found = list(result.report.not_followed.items())
    if not found:
        return None
    (name, why), *others = found
    more = f" report.json and the HTML report list {len(others)} more of this kind." if others else ""
    return f"• Attribute '{name}' {why}{more}"


def _time_line(result: PruneResult) -> str | None:
    if result.report.seconds is None:
        return None
    before, after = (1000 * seconds for seconds in result.report.seconds)
    return f"• One run on the example inputs: {before:.2f} ms before, {after:.2f} ms after ({after / before:.0%})."


def _plot(files: PruneFiles, graph: ModelGraph, plan: PrunePlan) -> tuple[str, ...]:
    """Draw the widths when asked to; what to tell the reader."""
    if files.plot is None:
        return ()
    plot_widths(graph, plan, files.plot, ids=files.ids)
    return (f"Plot: {files.plot}",)


def _check_destinations(files: PruneFiles, source: ModelOptions) -> None:
    """Refuse what cannot be written before minutes are spent on it; what goes wrong later is reported when it does."""
    if files.plot is not None:
        check_plot_path(files.plot)
    place = files.destination(split_spec(source.model)[0])
    if files.save_pretrained is not None:
        check_plain_folder(files.save_pretrained)
    if files.onnx is not None:
        check_onnx(files.onnx)
    if not files.plan_only:
        check_folder(place)
    elif place.is_dir():
        raise StorageError(f"With --plan-only, --out is a JSON file, but {place} is a folder. Try {place / 'plan.json'}.")
    elif not place.parent.is_dir():
        raise StorageError(f"The plan cannot be written to {place}: there is no folder {place.parent}. Create it first.")
    elif place.is_file():
        _refuse_foreign_plan(place)


def _refuse_foreign_plan(place: Path) -> None:
    try:
        _read_plan(place)
    except PlanFormatError as error:
        raise StorageError(
            f"Cannot write the plan to '{place}': that file is there and holds no plan. Choose another name with --out."
        ) from error


def _read_plan(path: Path | None) -> PrunePlan | None:
    return None if path is None else PrunePlan.from_json(path)


def _read_ranking(path: Path) -> Ranking:
    try:
        return Ranking.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise StorageError(f"The ranking {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InvalidScoreError):
            raise InvalidScoreError(f"{path}: {error}") from error
        raise InvalidScoreError(
            f"{path} is not a ranking ({type(error).__name__}: {error}). Make one with: proxyprune score --model FILE.py --json > {path}"
        ) from error
