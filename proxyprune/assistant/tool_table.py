"""The tools by name: description, arguments, and the function that does the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import proxyprune.assistant.arguments as given
from proxyprune.assistant.arguments import parsed, schema_of
from proxyprune.assistant.context import CallContext
from proxyprune.assistant.tools import decide, judge, read_network
from proxyprune.errors import UnknownNameError


@dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes:
        name: Its name.
        description: What an assistant reads about it.
        arguments: Dataclass of its arguments.
        run: Does the work.
    """

    name: str
    description: str
    arguments: type
    run: Callable[[CallContext, Any], dict[str, Any]]

    def answer(self, context: CallContext, arguments: Any) -> dict[str, Any]:
        """Check plain JSON arguments and run the tool."""
        return self.run(context, parsed(self.arguments, arguments))

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the arguments."""
        return schema_of(self.arguments)


_TOOLS = (
    Tool(
        "describe",
        "The network as text (blocks, widths, cost, wiring), the budget and the scorers; or one block with its channel groups.",
        given.DescribeArguments,
        read_network.describe,
    ),
    Tool("source", "The source code of one block's class.", given.SourceArguments, read_network.source),
    Tool(
        "score",
        "Make a ranking of the blocks: with a scorer, or with your own scores in [0, 1] on the channels of another ranking.",
        given.ScoreArguments,
        decide.score,
    ),
    Tool(
        "price",
        "What widths and removed blocks would cost, exactly. Nothing is planned.",
        given.PriceArguments,
        read_network.price,
    ),
    Tool(
        "plan",
        "Turn a ranking into a plan within the budget. Floors, ceilings and keep patterns constrain it.",
        given.PlanArguments,
        decide.plan,
    ),
    Tool(
        "measure",
        "Build the network of a plan and measure its loss, quality or time on held-out data. Measurements are limited.",
        given.MeasureArguments,
        judge.measure,
    ),
    Tool("compare", "Plans side by side: cost, what each block keeps, and what was measured.", given.CompareArguments, judge.compare),
    Tool("history", "Rankings, plans, measurements and saved networks so far, and the limits left.", given.HistoryArguments, judge.history),
    Tool(
        "apply",
        "Save the network of a plan in the workspace. A plan must be better than the one-shot plan on held-out data, beyond chance.",
        given.ApplyArguments,
        judge.apply,
    ),
)

TOOLS: dict[str, Tool] = {tool.name: tool for tool in _TOOLS}
"""Name -> tool."""

INSTRUCTIONS = """\
Prune one network to a budget. Begin with describe. Plan "p0" is the one-shot plan of a standard scorer; beat it.
Blocks get importances in [0, 1] (score), a solver turns a ranking into widths within the budget (plan), and held-out data decide (measure).
You can constrain plans (floors, ceilings, keep), change your scores after a measurement, and look at history. End with apply.
"""
"""Instructions that a client receives when it connects."""


def tool_named(name: str) -> Tool:
    """Return a tool by name.

    Raises:
        UnknownNameError: If there is none.
    """
    if name not in TOOLS:
        raise UnknownNameError(f"No tool is named {name[:80]!r}. There are {', '.join(TOOLS)}.")
    return TOOLS[name]
