"""The model card of a pruned network: what was pruned, how, and how to load it."""

from __future__ import annotations

from collections.abc import Mapping

from proxyprune.result import PruneResult
from proxyprune.standard.blueprint import written
from proxyprune.standard.rebuild import Standard


def model_card(result: PruneResult, standard: Standard, losses: Mapping[str, float], command: str | None) -> str:
    """Return the text of a model card.

    Args:
        result: The pruned network and its plan.
        standard: Its plain form.
        losses: Measured losses, by name.
        command: How it was made.
    """
    plan, report = result.plan, result.report
    kind = type(standard.network)
    library = kind.__module__.partition(".")[0]
    lines = [
        "---",
        f"library_name: {library}",
        "tags:",
        "- proxyprune",
        "- pruned",
        "---",
        "",
        f"# Pruned {kind.__name__}",
        "",
        "A smaller network, made by structured pruning with [proxyprune](https://pypi.org/project/proxyprune/). It loads without it:",
        "",
        "```python",
        f"from {library} import {kind.__name__}",
        "",
        f'model = {kind.__name__}.from_pretrained("FOLDER")',
        "```",
        "",
        "| | before | after |",
        "|---|---|---|",
        f"| MACs, one run on the example inputs | {plan.base_macs:,} | {plan.macs:,} ({plan.macs / plan.base_macs:.1%}) |",
        f"| parameters | {plan.base_params:,} | {plan.params:,} ({plan.params / max(plan.base_params, 1):.1%}) |",
        *(f"| {name} | | {value:.6g} |" for name, value in losses.items()),
        "",
        "| | |",
        "|---|---|",
        f"| target | {plan.target} of {plan.metric} |",
        f"| mode | {plan.mode} |",
        f"| scorer | {plan.scorer}, seed {plan.seed} |",
        f"| plan | sha256 {plan.sha256} |",
        *([f"| command | `{command}` |"] if command else []),
        *(f"| {package} | {version} |" for package, version in report.made_with.items()),
        "",
        "## Changes of the config",
        "",
        *(f"- `{written(path)}`: {value}" for path, value in standard.config.numbers.items()),
        "",
    ]
    if plan.removed_blocks:
        lines += ["## Removed layers", "", *(f"- `{block}`" for block in plan.removed_blocks), ""]
    if plan.widths:
        lines += ["## Widths", "", "| group | before | after |", "|---|---|---|"]
        lines += [f"| `{group}` | {before} | {after} |" for group, (before, after) in plan.widths.items()] + [""]
    if plan.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in plan.notes), ""]
    return "\n".join(lines)
