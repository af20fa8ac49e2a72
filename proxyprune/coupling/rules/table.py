"""Axis rules by op name. An op that is in no table and is not elementwise has no rule: what it touches is pinned and reported."""

from __future__ import annotations

from proxyprune.coupling.rules import joins, norms, pointwise, products, reductions, shapes
from proxyprune.coupling.rules.walk import Rule

TABLE: dict[str, Rule] = {**pointwise.RULES, **products.RULES, **shapes.RULES, **joins.RULES, **norms.RULES, **reductions.RULES}
