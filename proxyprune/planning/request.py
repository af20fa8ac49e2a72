"""The request for a plan, as one value, and the keyword arguments that public functions take for it.

`PlanKeywords` is the one place that documents these keywords and their types, `PlanRequest` the one place that checks them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict, Unpack

from proxyprune.errors import InputError
from proxyprune.planning.budget import METRICS, SingleTarget, Target, targets_of
from proxyprune.planning.limits import AUTO, Bound, Limits
from proxyprune.scoring.brief import Brief
from proxyprune.support.keywords import check_keywords

MODES = ("width", "depth", "both")
ALLOCATIONS = ("auto", "blocks", "channels")
KINDS = ("config", "layers")
"""Named ways to keep widths equal."""

_LATER = ("accept_uncosted", "uniform", "remove")

Uniform = bool | str | tuple[str, ...]
"""False, True, one of `KINDS`, or patterns."""


class CutKeywords(TypedDict, total=False):
    """Keyword arguments of a plan besides its target and mode: all that holds for every case of a comparison.

    Attributes:
        metric: "macs" (default), "params", or "time" on this machine: what the target budgets. Targets by metric do not need it.
        round_to: Channels of each cut group become a multiple of this (default 1). A group without such a width stays whole unless the
            target needs it. "auto" takes for each group the multiple that pays on this machine; it is the default for budgets of time.
        keep: Names, dotted prefixes or fnmatch patterns of blocks, groups, modules or parameters that must stay exactly as they are.
        floors: Least that stays, by pattern: a fraction (float) or channels (int). Without a floor, a group keeps a tenth of its atoms
            unless the target cannot be reached otherwise.
        ceilings: Most that stays, by pattern, in the same units. Not used in mode "depth".
        remove: Names or patterns of removable blocks that leave as a whole, whatever the mode and the scores.
        allocation: Where widths come from. "blocks": from the importance of the blocks that a group lies in. "channels": the channels
            that lose least for what they save leave first, wherever they are; needs channel scores that are in one unit for the whole
            network. "auto" (default): channels where the ranking has such scores, blocks otherwise.
        uniform: Groups that keep equal widths, each with its own best channels. True: what the network's config can express ("config"), or
            without a config the same widths in repeated layers ("layers"). Patterns: the groups whose first parameter one pattern matches
            share a width.
            With a config, mode "depth" and "both" remove whole layers that the config counts.
        accept_uncosted: Plan for a target of MACs although the MACs of some ops are unknown. The target is then one of what is counted,
            and the plan's notes name the ops.
    """

    metric: str
    round_to: int | str
    keep: Iterable[str]
    floors: Mapping[str, Bound] | None
    ceilings: Mapping[str, Bound] | None
    remove: Iterable[str]
    allocation: str
    uniform: Uniform | Iterable[str]
    accept_uncosted: bool


class PlanKeywords(CutKeywords, total=False):
    """Keyword arguments of a plan besides its target: those of `CutKeywords`, and two more.

    Attributes:
        mode: "width" (default) narrows channel groups. "depth" removes whole blocks: lowest score first until the budget is met, then
            the best removed ones come back as far as they fit. "both" removes blocks, lowest score first, for at most half of the
            reduction, and narrows what is left to the exact target; more blocks leave only when the widths alone do not reach it.
        accept_unreliable: Plan although the ranking is marked unreliable; the plan's notes say so. `search` and `compare` measure what
            they plan, so they accept every ranking.
    """

    mode: str
    accept_unreliable: bool


@dataclass(frozen=True)
class PlanRequest:
    """The request for a plan.

    Attributes:
        target: Fraction of the base (0 < t < 1), an absolute number ("3.4G", "5ms"), or several by metric ({"macs": 0.7, "time": 0.6}).
        mode: "width", "depth" or "both"; see `PlanKeywords`.
        metric: What one target budgets: "macs", "params" or "time"; of several targets their metrics, joined by commas.
        allocation: "auto", "blocks" or "channels"; see `CutKeywords`.
        limits: What must stay, and the multiples that widths should have.
        accept_unreliable: Whether a ranking that is marked unreliable may be planned from.
        accept_uncosted: Whether a target of MACs may leave out ops whose MACs are unknown.
        uniform: Which groups keep equal widths; see `CutKeywords`.

    Raises:
        TargetError: If the target cannot be read, or the metric is unknown.
        InputError: If the mode or the allocation is unknown, or a limit has the wrong type or range.
    """

    target: Target
    mode: str = "width"
    metric: str = "macs"
    allocation: str = "auto"
    limits: Limits = field(default_factory=Limits)
    accept_unreliable: bool = False
    accept_uncosted: bool = False
    uniform: Uniform = False

    def __post_init__(self) -> None:
        for name, value, known in (("mode", self.mode, MODES), ("allocation", self.allocation, ALLOCATIONS)):
            if value not in known:
                raise InputError(f"Unknown {name} {value!r}; expected one of {', '.join(known)}.")
        if isinstance(self.uniform, str) and self.uniform not in KINDS:
            raise InputError(
                f"Unknown uniform {self.uniform!r}; expected True, False, {', '.join(map(repr, KINDS))}, or a list of patterns."
            )
        targets = targets_of(self.target, self.metric)
        if isinstance(self.target, Mapping):
            object.__setattr__(self, "metric", ",".join(targets))

    @property
    def targets(self) -> dict[str, SingleTarget]:
        """The targets by metric, in the order of `BUDGETED`."""
        return targets_of(self.target, self.metric)

    @property
    def needs_times(self) -> bool:
        """True if a plan needs the cost table of this machine."""
        return "time" in self.targets or self.limits.round_to == AUTO

    @classmethod
    def of(cls, target: Target, **keywords: Unpack[PlanKeywords]) -> PlanRequest:
        """Build a request from the keyword arguments of a public function."""
        check_keywords(PlanRequest.of, keywords, PlanKeywords)
        keep, remove, uniform = keywords.get("keep", ()), keywords.get("remove", ()), keywords.get("uniform", cls.uniform)
        timed = "time" in targets_of(target, keywords.get("metric", cls.metric))
        return cls(
            target,
            mode=keywords.get("mode", cls.mode),
            metric=keywords.get("metric", cls.metric),
            allocation=keywords.get("allocation", cls.allocation),
            limits=Limits(
                keep=(keep,) if isinstance(keep, str) else tuple(keep),
                floors=dict(keywords.get("floors") or {}),
                ceilings=dict(keywords.get("ceilings") or {}),
                round_to=keywords.get("round_to", AUTO if timed else Limits.round_to),
                remove=(remove,) if isinstance(remove, str) else tuple(remove),
            ),
            accept_unreliable=keywords.get("accept_unreliable", cls.accept_unreliable),
            accept_uncosted=keywords.get("accept_uncosted", cls.accept_uncosted),
            uniform=uniform if isinstance(uniform, bool | str) else tuple(uniform),
        )

    def cut_keywords(self) -> CutKeywords:
        """Return what holds whatever the target and the mode, as plain JSON types."""
        return {
            "metric": self.metric,
            "round_to": self.limits.round_to,
            "keep": list(self.limits.keep),
            "floors": dict(self.limits.floors),
            "ceilings": dict(self.limits.ceilings),
            "remove": list(self.limits.remove),
            "allocation": self.allocation,
            "uniform": list(self.uniform) if isinstance(self.uniform, tuple) else self.uniform,
            "accept_uncosted": self.accept_uncosted,
        }

    def keywords(self) -> PlanKeywords:
        """Return the keyword arguments of `of`, which make the same request with the same target."""
        return {**self.cut_keywords(), "mode": self.mode, "accept_unreliable": self.accept_unreliable}

    def recorded(self) -> dict[str, Any]:
        """Return `cut_keywords` for files that go on; a file written before one of `_LATER` existed is one without it."""
        return {name: value for name, value in self.cut_keywords().items() if name not in _LATER or value}

    def keeping(self, name: str) -> PlanRequest:
        """Return the same request with one more keep pattern."""
        return replace(self, limits=replace(self.limits, keep=(*self.limits.keep, name)))

    def within_time(self, nanoseconds: int) -> PlanRequest:
        """Return the same request with another limit of predicted time."""
        return replace(self, target={**self.targets, "time": f"{nanoseconds}ns"})

    def brief(self, given: Brief | None = None) -> Brief:
        """Return a brief for a scorer, with the goal of this request filled in.

        Of several targets it has the first; a share of time stands there as one of MACs.
        """
        metric, target = next(iter(self.targets.items()))
        if metric in METRICS:
            return replace(given or Brief(), target=target, metric=metric, mode=self.mode)
        share = target if not isinstance(target, str) or not target.strip().endswith("s") else None
        return replace(given or Brief(), target=share, metric="macs", mode=self.mode)
