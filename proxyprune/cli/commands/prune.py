"""`proxyprune prune`: from a model file to a smaller network on disk, or to the plan for one."""

from __future__ import annotations

import dataclasses

import click
from click.core import ParameterSource

from proxyprune.cli.command import Command, traceback_option
from proxyprune.cli.options.llm import LLMOptions, llm_options
from proxyprune.cli.options.prune_files import PruneFiles, prune_files
from proxyprune.cli.options.repair_options import RepairOptions, repair_options
from proxyprune.cli.options.shared import (
    PLAN_NAMES,
    ModelOptions,
    channels_option,
    json_option,
    model_options,
    plan_options,
    scorer_option,
)
from proxyprune.cli.options.timing import TimeOptions, time_options
from proxyprune.planning.request import PlanRequest

_DECIDED_BY_A_PLAN = frozenset(PLAN_NAMES) | {
    "scorer",
    "channels",
    "advice",
    "ranking",
    "norm_groups",
    "conv_groups",
    "adapter_ranks",
    "steps",
}


@click.command(cls=Command)
@model_options
@scorer_option
@channels_option
@llm_options
@plan_options
@repair_options
@prune_files
@time_options
@json_option
@traceback_option
@click.pass_context
def prune(
    ctx: click.Context,
    source: ModelOptions,
    scorer: str,
    channels: str,
    llm: LLMOptions,
    request: PlanRequest,
    repair: RepairOptions,
    files: PruneFiles,
    times: TimeOptions,
    as_json: bool,
) -> None:
    """Prune a network to a budget, verify it and save it.

    Writes a folder that `proxyprune.load` reads: plan, weights (safetensors) and report. The budget is never exceeded. For a budget
    of time, the network is measured and the plan corrected until the budget is met.
    """
    _refuse_conflicts(ctx, source, files, repair)
    if files.ranking is not None or files.plan is not None:
        llm.refuse_any("a ranking" if files.ranking is not None else "a plan")
    repair = dataclasses.replace(repair, any_mode=ctx.get_parameter_source("mode") is ParameterSource.DEFAULT)
    from proxyprune.cli.actions.prune_network import NamedScorers, prune_network

    scorers = NamedScorers(scorer, None if channels == "none" else channels)
    prune_network(source, scorers, llm, request, repair, files, times, as_json=as_json)


def _refuse_conflicts(ctx: click.Context, source: ModelOptions, files: PruneFiles, repair: RepairOptions) -> None:
    if files.plan is not None:
        if files.plan_only:
            raise click.UsageError("--plan applies a plan and --plan-only makes one; give one of them.")
        typed = [p for p in ctx.command.params if p.name in _DECIDED_BY_A_PLAN and _was_typed(ctx, p)]
        if typed:
            raise click.UsageError(
                f"A plan already says what is cut, so {', '.join(p.opts[0] for p in typed)} cannot be given with --plan."
            )
    if files.ranking is not None and ctx.get_parameter_source("scorer") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--ranking replaces a scorer; give --ranking or --scorer.")
    if files.timed and files.plan_only:
        raise click.UsageError("--plan-only cuts nothing, so there is no time to measure; omit --time.")
    if repair.asked and files.plan_only:
        named = " and ".join(repair.asked)
        raise click.UsageError(f"--plan-only cuts nothing, so there is nothing to compensate, train or cut in steps; omit {named}.")
    if ctx.params["scorer"] == "auto" and files.plan_only:
        raise click.UsageError("--scorer auto measures cuts, and --plan-only cuts nothing; name a scorer.")
    if repair.steps > 1 and files.ranking is not None:
        raise click.UsageError(
            "--steps scores again before each cut, and --ranking gives the scores of the uncut network; omit one of them."
        )
    if files.save_pretrained is not None and files.plan_only:
        raise click.UsageError("--plan-only cuts nothing, so there is no network for --save-pretrained; omit one of them.")
    if files.onnx is not None and files.plan_only:
        raise click.UsageError("--plan-only cuts nothing, so there is no network for --onnx; omit one of them.")
    if files.lora and files.plan_only:
        raise click.UsageError("--plan-only cuts nothing, so there is no network for the adapter of --lora; omit one of them.")
    if files.lora_prefix is not None and not files.lora:
        raise click.UsageError("--lora-prefix chooses keys of an adapter; give the adapter with --lora.")
    if source.fake_weights and not files.plan_only:
        raise click.UsageError("A network without weights cannot be cut; add --plan-only, or omit --fake-weights.")


def _was_typed(ctx: click.Context, parameter: click.Parameter) -> bool:
    return parameter.name is not None and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
