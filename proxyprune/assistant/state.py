"""The results of a session so far. They follow from the events in the log, so a killed session goes on where it stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxyprune.assistant.folder import SessionFolder
from proxyprune.errors import CallLimitError, UnknownNameError
from proxyprune.measuring.held_out import PairedDifference
from proxyprune.planning.plan import PrunePlan
from proxyprune.scoring.ranking import Ranking
from proxyprune.searching.round import key_of

BASE = "base"
"""Name of the unpruned network among the plans."""
ONE_SHOT = "p0"
"""Name of the plan that every other one is compared with."""

Event = Mapping[str, Any]


@dataclass
class State:
    """Rankings, plans, measurements and saved networks, by name.

    Attributes:
        folder: Where rankings and plans are kept.
        rankings: By name: "r0" is the one-shot ranking.
        plans: By name: "p0" is the one-shot plan.
        ranking_of: Plan -> the ranking that it was made from.
        measured: (plan, label of the treatment) -> values: "loss", "quality" or "seconds" -> a number, a pair of seconds (before, after),
            or None if it is not finite.
        batch_losses: (plan, label of the treatment) -> loss of each held-out batch, if all are finite.
        networks: Saved network -> its plan.
        measurements: Networks that were built and measured.
    """

    folder: SessionFolder
    rankings: dict[str, Ranking] = field(default_factory=dict)
    plans: dict[str, PrunePlan] = field(default_factory=dict)
    ranking_of: dict[str, str] = field(default_factory=dict)
    measured: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    batch_losses: dict[tuple[str, str], Sequence[float]] = field(default_factory=dict)
    networks: dict[str, str] = field(default_factory=dict)
    measurements: int = 0
    _events: list[Event] = field(default_factory=list)

    def new_ranking(self, ranking: Ranking) -> str:
        """Keep a ranking and return its name."""
        name = f"r{len(self.rankings)}"
        self.folder.write_ranking(name, ranking)
        self.rankings[name] = ranking
        self._events.append({"event": "ranking", "name": name})
        return name

    def new_plan(self, plan: PrunePlan, ranking: str) -> tuple[str, bool]:
        """Keep a plan and return its name; one that keeps the same channels has a name already.

        Returns:
            The name, and whether the plan is new.
        """
        key = key_of(plan)
        for name, known in self.plans.items():
            if key_of(known) == key:
                return name, False
        name = f"p{len(self.plans)}"
        self.folder.write_plan(name, plan)
        self.plans[name] = plan
        self.ranking_of[name] = ranking
        self._events.append({"event": "plan", "name": name, "ranking": ranking})
        return name, True

    def note_measured(self, plan: str, treatment: str, values: Mapping[str, Any], batch_losses: Sequence[float] | None = None) -> None:
        """Keep what was measured of a plan."""
        losses = {} if batch_losses is None else {"batch_losses": list(batch_losses)}
        self._note({"event": "measured", "plan": plan, "treatment": treatment, "values": dict(values)} | losses)

    def note_spent(self) -> None:
        """Count one measurement."""
        self._note({"event": "spent"})

    def note_network(self, name: str, plan: str) -> None:
        """Keep that a network was saved."""
        self._note({"event": "network", "name": name, "plan": plan})

    def taken_events(self) -> list[Event]:
        """Return the events since the last time, for the log."""
        taken, self._events = self._events, []
        return taken

    def repeat(self, event: Event) -> None:
        """Take over an event from the log."""
        match event["event"]:
            case "ranking":
                self.rankings[event["name"]] = self.folder.ranking(event["name"])
            case "plan":
                self.plans[event["name"]] = self.folder.plan(event["name"])
                self.ranking_of[event["name"]] = event["ranking"]
            case _:
                self._take(event)

    def ranking(self, name: str) -> Ranking:
        """Return a ranking by name.

        Raises:
            UnknownNameError: If there is none.
        """
        if name not in self.rankings:
            raise UnknownNameError(f"No ranking is named {name!r}. There are {_some(self.rankings)}; the tool score makes another.")
        return self.rankings[name]

    def plan(self, name: str) -> PrunePlan:
        """Return a plan by name.

        Raises:
            UnknownNameError: If there is none.
        """
        if name not in self.plans:
            raise UnknownNameError(f"No plan is named {name!r}. There are {_some(self.plans)}; the tool plan makes another.")
        return self.plans[name]

    def difference(self, plan: str, treatment: str) -> PairedDifference | None:
        """Compare the loss of a plan with that of the one-shot plan after the same treatment, or return None if one is not known."""
        losses, others = (self.batch_losses.get((name, treatment)) for name in (plan, ONE_SHOT))
        return None if losses is None or others is None else PairedDifference.of(losses, others)

    def check_measurements(self, limit: int) -> None:
        """Raise if no measurement is left.

        Raises:
            CallLimitError: If so.
        """
        if self.measurements >= limit:
            raise CallLimitError(
                f"All {limit} measurements of this session are used up. Apply the best plan; history lists what was measured."
            )

    def _note(self, event: Event) -> None:
        self._take(event)
        self._events.append(event)

    def _take(self, event: Event) -> None:
        match event["event"]:
            case "measured":
                key = event["plan"], event["treatment"]
                self.measured.setdefault(key, {}).update(event["values"])
                if "batch_losses" in event:
                    self.batch_losses[key] = event["batch_losses"]
            case "spent":
                self.measurements += 1
            case "network":
                self.networks[event["name"]] = event["plan"]


def _some(names: Mapping[str, Any]) -> str:
    listed = list(names)
    return ", ".join(listed) if len(listed) <= 6 else f"{listed[0]} to {listed[-1]}"
