"""Prune a network and save it, make the plan for it, or apply a plan."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from proxyprune.applying.apply import apply
from proxyprune.cli.actions.carry_adapters import adapter_line, carry_adapters, check_adapters
from proxyprune.cli.loading import Built, Judge, build, scorer_named
from proxyprune.cli.options.llm import LLMOptions
from proxyprune.cli.options.prune_files import PruneFiles
from proxyprune.cli.options.repair_options import RepairOptions
from proxyprune.cli.options.shared import ModelOptions
from proxyprune.cli.options.timing import TimeOptions
from proxyprune.cli.output.console import Output, output
from proxyprune.cli.output.tables import compensation_table, losses_table, pinned_table, remarks, summary_table, trials_table, widths_table
from proxyprune.errors import InputError, InvalidScoreError, MissingNeedError, PlanFormatError, StorageError
from proxyprune.graph.build import trace_like
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.measuring.held_out import DataKeywords
from proxyprune.measuring.thop_count import thop_macs
from proxyprune.measuring.time_budget import measured_time
from proxyprune.measuring.timed_run import timed_in_turns
from proxyprune.modelfile import split_spec
from proxyprune.planning.plan import PrunePlan
from proxyprune.planning.planner import plan_for
from proxyprune.planning.request import PlanRequest
from proxyprune.plots.figure import check_plot_path
from proxyprune.plots.network import plot_widths
from proxyprune.pruning.advice import read_advice
from proxyprune.pruning.asked_advice import asks_advice
from proxyprune.pruning.automatic import AUTO_SCORER, GivenRanking
from proxyprune.pruning.channels import takes_channels
from proxyprune.pruning.prune import prune, prune_work
from proxyprune.pruning.task import PruneTask
from proxyprune.result import PruneResult, make_report
from proxyprune.saving.destination import check_folder
from proxyprune.saving.manifest import MANIFEST
from proxyprune.saving.network_folder import save
from proxyprune.saving.onnx_file import check_onnx, save_onnx
from proxyprune.saving.plain_folder import check_plain_folder, save_pretrained
from proxyprune.scoring.contract import ScoringContext, shows_time
from proxyprune.scoring.ranking import Ranking

_SCHEMA = 1


@dataclass(frozen=True)
class _Automatic:
    """Stands for `scorer="auto"` until `prune` chooses one."""

    name: str = AUTO_SCORER
    needs: frozenset[str] = frozenset({"batches"})

    def score(self, graph: ModelGraph, context: ScoringContext) -> Ranking:
        """Raise: only a cut can be chosen by measuring."""
        raise InputError(f"Scorer '{AUTO_SCORER}' measures cuts, so it works with `proxyprune prune` alone. Name a scorer.")


@dataclass(frozen=True)
class NamedScorers:
    """The scorers of a plan, by name.

    Attributes:
        blocks: The scorer.
        channels: The scorer of channels, "auto", or None; see `proxyprune.prune`.
    """

    blocks: str
    channels: str | None


def prune_network(
    source: ModelOptions,
    scorers: NamedScorers,
    llm: LLMOptions,
    request: PlanRequest,
    repair: RepairOptions,
    files: PruneFiles,
    times: TimeOptions,
    *,
    as_json: bool,
) -> None:
    """Prune, plan or replay, and print what was done."""
    _check_destinations(files, source)
    with output(as_json) as out:
        given = _read_plan(files.plan)
        advice = () if files.advice is None else read_advice(files.advice)
        judge = replace(_judge(scorers.blocks, llm, files), channels=scorers.channels, advice=advice)
        built = build(source, out)
        if judge.dry_run:
            built.show_dry_run(judge, out, times.timing, request.brief())
            return
        if files.plan_only:
            _only_plan(built, judge, request, files, times, out)
        else:
            chooses = bool(judge.advice) or asks_advice(judge.scorer) or takes_channels(judge.scorer, judge.channels, request)
            data = _data(built, judge, repair, chooses=given is None and chooses)
            made = _replay(built, given, repair, data, out) if given else _prune(built, judge, request, repair, times, data, out)
            _finish(built, made, files, times, out, judge)


def _judge(scorer: str, llm: LLMOptions, files: PruneFiles) -> Judge:
    """Look the scorer up before anything slow happens."""
    if files.ranking is not None:
        return Judge(GivenRanking(_read_ranking(files.ranking)))
    if scorer == AUTO_SCORER:
        llm.refuse_any(f"scorer '{AUTO_SCORER}'")
        return Judge(_Automatic())
    return scorer_named(scorer, llm)


def _prune(
    built: Built, judge: Judge, request: PlanRequest, repair: RepairOptions, times: TimeOptions, data: DataKeywords, out: Output
) -> PruneResult:
    listener, automatic = judge.listener, judge.scorer.name == AUTO_SCORER
    if request.needs_times or shows_time(judge.scorer):  # filled here, where a bar can be shown; pruning then finds every time in the table
        built.timed(built.trace(out), times.timing)
    keywords = request.keywords()
    if automatic and repair.any_mode:
        del keywords["mode"]
    with out.stage(f"Pruning {type(built.model).__name__} to {request.target} with {judge.scorer.name}") as listener.say:
        return prune(
            built.model,
            built.inputs,
            request.target,
            AUTO_SCORER if automatic else judge.scorer,
            also=built.also,
            **built.source.trace_keywords,
            seed=built.source.seed,
            compensate=repair.compensate,
            channels=judge.channels,
            advice=judge.advice,
            steps=repair.steps,
            recover_steps=repair.recover_steps,
            learning_rate=repair.learning_rate,
            timing=times.timing,
            accept_missed_time=times.accept_missed,
            auto_seconds=repair.auto_seconds,
            progress=lambda remark: listener.say(remark),
            **keywords,
            **data,
        )


def _data(built: Built, judge: Judge, repair: RepairOptions, *, chooses: bool) -> DataKeywords:
    """Return batches and losses of the model file, made before anything is cut; none that nobody needs.

    Raises:
        MissingNeedError: If the model file lacks what an option needs.
    """
    file, needed = built.file, built.needed_by(judge.scorer)
    held_out = file.validation_batches() if file.loss_fn is not None else None
    batches = needed["batches"]
    if batches is None and (chooses or repair.compensate or repair.recover_steps or (file.loss_fn is not None and held_out is None)):
        batches = file.calibration_batches()
    if repair.compensate and batches is None:
        raise MissingNeedError(f"--compensate refits on calibration batches, but {file.path} defines no calibration_batches().")
    return {"batches": batches, "loss_fn": file.loss_fn, "held_out": held_out, "training_loss_fn": file.training_loss_fn}


def _replay(built: Built, plan: PrunePlan, repair: RepairOptions, data: DataKeywords, out: Output) -> PruneResult:
    with out.stage(f"Applying the plan to {type(built.model).__name__}") as say:
        graph = trace_like(built.model, built.inputs, plan.options, built.also)
        applied = apply(built.model, plan, built.inputs, graph=graph)
        unknown = Ranking({}, plan.scorer, seed=plan.seed, notes=("The plan was replayed from a file; it does not hold the scores.",))
        report = make_report(graph, plan, applied.not_followed, config_note=applied.config_note)
        result = PruneResult(applied.model, plan, unknown, report, applied.surgery, graph, built.inputs)
        task = PruneTask(
            model=built.model,
            example_inputs=built.inputs,
            also=built.also,
            scorer=GivenRanking(unknown),
            batches=data["batches"],  # type: ignore[arg-type]  # the model file returns a tuple
            loss_fn=data["loss_fn"],
            seed=built.source.seed,
            compensate=repair.compensate,
            say=say,
        )
        work = prune_work(task, data["held_out"], data["training_loss_fn"], repair.recovery)
        return work.finished(result, work.meter.start(built.model), 1)


def _only_plan(built: Built, judge: Judge, request: PlanRequest, files: PruneFiles, times: TimeOptions, out: Output) -> None:
    graph = built.trace(out)
    if request.needs_times or shows_time(judge.scorer):
        graph = built.timed(graph, times.timing)
    with out.stage(f"Scoring {len(graph.blocks)} blocks with {judge.scorer.name}") as judge.listener.say:
        ranked = built.rank_for_plan(graph, judge, request)
    ranking = ranked.ranking
    with out.stage("Planning"):
        plan = plan_for(graph, ranking, ranked.request, model=None if built.source.fake_weights else built.model)
        plan = replace(plan, notes=(*plan.notes, *ranked.plan_notes))
    destination = files.destination(built.file.path)
    plan.to_json(destination)
    plotted = _plot(files, graph, plan)
    report = make_report(graph, plan)
    out.show(
        widths_table(graph, plan, ids=files.ids),
        pinned_table(graph, ids=files.ids),
        summary_table(plan, conventional=report.conventional_macs),
        *remarks(graph, (*judge.notes(ranking), *plan.notes), ranking.confidence),
        None
        if plan.time is None
        else f"• One run is predicted to take {plan.time.ratio:.1%} of the unpruned network's time; it was not measured.",
        judge.listener.table(),
        *plotted,
        f"The plan is in {destination}. Apply it with: proxyprune prune --model {built.source.model} --plan {destination}",
    )
    out.emit({"schema": _SCHEMA, "plan": plan.to_dict(), "report": report.to_dict(), "file": str(destination)})


def _finish(built: Built, result: PruneResult, files: PruneFiles, times: TimeOptions, out: Output, judge: Judge) -> None:
    destination = files.destination(built.file.path)
    if files.timed and result.report.time is None:
        with out.stage("Measuring time"):
            result = _timed(built, result, times)
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
    adapters = []
    if files.lora:
        with out.stage("Carrying LoRA adapters"):
            adapters = list(carry_adapters(files, destination, result))
        plotted = (*plotted, *(adapter_line(copy, carried) for copy, carried in adapters))
    line = f'small = pp.load("{destination}", load_model_file("{built.source.model}").build_model)'
    out.show(
        widths_table(result.graph, result.plan, ids=files.ids),
        pinned_table(result.graph, ids=files.ids),
        summary_table(result.plan, conventional=result.report.conventional_macs, thop=result.report.thop_macs),
        compensation_table(result.report.compensation),
        trials_table(result.report.trials),
        losses_table(result.report.losses),
        *remarks(result.graph, (*judge.notes(result.ranking), *result.report.notes), result.ranking.confidence),
        _attributes_line(result),
        judge.listener.table(),
        _time_line(result),
        *plotted,
    )
    out.text(
        f"\nVerified, and saved to {destination}{', in place of an earlier result' if replaced else ''}. Load it with:\n\n"
        f"    import proxyprune as pp\n    from proxyprune.modelfile import load_model_file\n\n    {line}\n\n"
        f"{_fine_tuning_hint(result)}For a report as an HTML page, run:\n\n"
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
            **({"lora": [str(copy.target) for copy, _ in adapters]} if adapters else {}),
        }
    )


def _fine_tuning_hint(result: PruneResult) -> str:
    trained = result.report.losses is not None and result.report.losses.recover_steps
    return "" if trained else "A short fine-tuning usually recovers most of the lost accuracy. "


def _plain_class(result: PruneResult) -> str:
    return result.graph.model_class if result.graph.blueprint is None else result.graph.blueprint.kind.__name__


def _timed(built: Built, result: PruneResult, times: TimeOptions) -> PruneResult:
    found = measured_time(timed_in_turns(built.model, result.model, built.inputs, times.timing))
    return replace(result, report=replace(result.report, seconds=(found.before[1], found.after[1]), time=found))


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
    measured, planned = result.report.time, result.plan.time
    if measured is None:
        return None if planned is None else f"• One run is predicted to take {planned.ratio:.1%} of the unpruned network's time."
    predicted = "" if planned is None else f" Predicted: {planned.ratio:.1%}"
    if measured.target_ratio is None:
        return f"• {measured.sentence}.{predicted and predicted + '.'}"
    corrected = f", after {measured.corrections} corrections of a first prediction of {measured.first_predicted:.1%}"
    return f"• {measured.sentence}. Target: {measured.target_ratio:.1%}.{predicted}{corrected if measured.corrections else ''}."


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
    check_adapters(files, place)
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
            f"Cannot write the plan to '{place}': that file exists and is not a plan. Choose another name with --out."
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
