"""Axis rules by op name. An op that is in no table and is not elementwise has no rule: what it touches is pinned and reported."""

from __future__ import annotations

from typing import Any

import torch

from proxyprune.coupling.rules import detection, einstein, joins, norms, pointwise, products, recurrent, reductions, selections, shapes
from proxyprune.coupling.rules.walk import Rule

TABLE: dict[str, Rule] = {
    **pointwise.RULES,
    **products.RULES,
    **einstein.RULES,
    **recurrent.RULES,
    **shapes.RULES,
    **joins.RULES,
    **norms.RULES,
    **reductions.RULES,
    **selections.RULES,
    **detection.RULES,
}


def built_in_rule(name: str, target: Any) -> Rule | None:
    """Return the package's own rule for an op; elementwise ops are recognised by torch's tag.

    Args:
        name: As `op_name` writes it, "aten.linear".
        target: The overload that is called.
    """
    tagged = torch.Tag.pointwise in getattr(target, "tags", ())
    return pointwise.pointwise if tagged and "prelu" not in name else TABLE.get(name)
