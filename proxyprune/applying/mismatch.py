"""Find the flag that was toggled between a plan and its application, such as `config.use_cache`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import nn

from proxyprune.errors import PlanMismatchError, ProxyPruneError
from proxyprune.graph.build import trace_like
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.planning.plan import PrunePlan
from proxyprune.tracing.model_call import ExampleInputs
from proxyprune.tracing.module_state import plain_attributes

_FLAGS_TRIED = 24
"""Each costs a trace; only a plan that was rejected pays for them."""


def check_plan(plan: PrunePlan, graph: ModelGraph, model: nn.Module, example_inputs: ExampleInputs) -> None:
    """Raise if a plan does not fit a graph; when one flag of the model explains it, the message names it.

    Raises:
        PlanMismatchError: As `PrunePlan.check`.
    """
    try:
        plan.check(graph)
    except PlanMismatchError as error:
        flag = _toggled_flag(plan, graph, model, example_inputs)
        if flag is None:
            raise
        raise PlanMismatchError(f"The plan was made with {flag}. Use the same setting, or make a new plan. {error}") from error


def _toggled_flag(plan: PrunePlan, graph: ModelGraph, model: nn.Module, example_inputs: ExampleInputs) -> str | None:
    """Return a flag with the value for which the plan fits, in words; None when there is none."""
    if plan.base_params != graph.params:
        return None
    for holder, path, name in itertools.islice(_flags(model), _FLAGS_TRIED):
        value = holder[name]
        holder[name] = not value
        try:
            plan.check(trace_like(model, example_inputs, plan.options, [call.inputs for call in graph.program.further]))
        except ProxyPruneError:
            continue
        else:
            return f"{path} = {not value}, and it is {value} now"
        finally:
            holder[name] = value
    return None


def _flags(model: nn.Module) -> Iterator[tuple[dict[str, Any], str, str]]:
    """Attribute tables that hold a flag, its path in words, and its name: the model's own, and those of its config and other objects."""
    tables = [("", vars(model))]
    tables += [
        (f"{name}.", inner)
        for name, value in vars(model).items()
        if not name.startswith("_") and (inner := plain_attributes(value)) is not None
    ]
    for prefix, table in tables:
        for name, value in list(table.items()):
            if isinstance(value, bool) and not name.startswith("_") and name != "training":
                yield table, f"{prefix}{name}", name
