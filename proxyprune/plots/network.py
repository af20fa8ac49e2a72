"""Pictures of a ranking and of a plan, as PNG, SVG or PDF.

Figures are drawn on their own canvas, so that no global state of matplotlib is touched and no display is needed. One row a block (in
execution order) or a channel group (in the model's own order); the picture grows with the network, so that hundreds of names can be read.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from proxyprune.plots.figure import ROW_FONT, Rows, add_title, check_plot_path, label_rows, new_canvas, write_figure
from proxyprune.support.summary import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from proxyprune.coupling.groups import ChannelGroup
    from proxyprune.graph.model_graph import ModelGraph
    from proxyprune.planning.plan import PrunePlan
    from proxyprune.scoring.ranking import Ranking


_LONGEST_NAME = 52

# Okabe and Ito's colours, which stay apart for colour-blind readers; kinds that are not named share the last one.
_KIND_COLOURS = {
    "residual": "#0072B2",
    "attention": "#D55E00",
    "transformer": "#CC79A7",
    "feedforward": "#009E73",
    "resample": "#E69F00",
    "stem": "#56B4E9",
    "head": "#56B4E9",
    "conv": "#0072B2",
    "linear": "#009E73",
}
_OTHER_COLOUR = "#7F7F7F"
_BEFORE_COLOUR = "#D9D9D9"
_AFTER_COLOUR = "#0072B2"


def plot_ranking(graph: ModelGraph, ranking: Ranking, path: str | Path) -> None:
    """Draw every block with its share of the MACs and its importance.

    A long bar on the left beside a short one on the right is where pruning pays.

    Args:
        graph: The traced model.
        ranking: Importances for its blocks.
        path: Where to write; the suffix (.png, .svg, .pdf) chooses the format.

    Raises:
        StorageError: If the format is unknown or the file cannot be written.
    """
    path = check_plot_path(path)
    rows = Rows([shortened(block.id, _LONGEST_NAME) for block in graph.blocks])
    figure, (left, right) = new_canvas(rows, panels=2)
    places = range(len(graph.blocks))
    colours = [_KIND_COLOURS.get(block.kind, _OTHER_COLOUR) for block in graph.blocks]
    shares = [100.0 * block.macs / graph.macs if graph.macs else 0.0 for block in graph.blocks]
    scores = [ranking.scores[block.id] for block in graph.blocks]

    left.barh(places, shares, color=colours, height=0.72)
    right.barh(places, scores, color=colours, height=0.72)
    label_rows(left, rows)
    label_rows(right, rows, names=False)
    for axes, values, form in ((left, shares, "{:.1f} %"), (right, scores, "{:.2f}")):
        axes.set_xlim(0.0, 1.16 * max([*values, 1e-9]) if axes is left else 1.16)
        for place, value in zip(places, values, strict=True):
            axes.text(value, place, " " + form.format(value), va="center", ha="left", fontsize=0.85 * rows.font, color="#404040")
    right.set_xticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    left.set_xlabel("share of the MACs, %")
    right.set_xlabel("importance (larger = keep)")

    confidence = "" if ranking.confidence is None else f", confidence {ranking.confidence:.2f}"
    add_title(
        figure, f"{graph.model_class}: {len(graph.blocks)} blocks, {_quantity(graph.macs)} MACs, scored by {ranking.scorer}{confidence}"
    )
    _legend(figure, {block.kind: _KIND_COLOURS.get(block.kind, _OTHER_COLOUR) for block in graph.blocks})
    write_figure(figure, path)


def plot_widths(graph: ModelGraph, plan: PrunePlan, path: str | Path, *, ids: bool = False) -> None:
    """Draw the width of every prunable channel group before and after.

    Args:
        graph: The traced model.
        plan: A plan for it.
        ids: Write the ids of the groups instead of block and role.
        path: Where to write; the suffix (.png, .svg, .pdf) chooses the format.

    Raises:
        StorageError: If the format is unknown or the file cannot be written.
    """
    from proxyprune.graph.group_names import group_names

    path = check_plot_path(path)
    groups = graph.prunable
    names = {group.id: group.id for group in groups} if ids else group_names(graph)
    rows = Rows([shortened(names[group.id], _LONGEST_NAME) for group in groups])
    figure, (axes,) = new_canvas(rows, panels=1)
    places = range(len(groups))
    removed = set(plan.removed_blocks)
    before = [group.width for group in groups]
    after = [0 if _gone(group, removed) else plan.widths.get(group.id, (group.width, group.width))[1] for group in groups]

    axes.barh(places, before, color=_BEFORE_COLOUR, height=0.78)
    axes.barh(places, after, color=_AFTER_COLOUR, height=0.78)
    label_rows(axes, rows)
    axes.set_xlim(0.0, 1.22 * max(before, default=1))
    for place, (old, new) in enumerate(zip(before, after, strict=True)):
        text = f" {old}" if old == new else f" {old} → {new}  ({new / old:.0%})" if new else f" {old}, block removed"
        axes.text(old, place, text, va="center", ha="left", fontsize=0.85 * rows.font, color="#404040")
    axes.set_xlabel("channels")

    base, spent = (plan.base_params, plan.params) if plan.metric == "params" else (plan.base_macs, plan.macs)
    unit = "parameters" if plan.metric == "params" else "MACs"
    gone = f", {len(removed)} block{'s' if len(removed) > 1 else ''} removed" if removed else ""
    share = f" ({spent / base:.1%})" if base else ""
    add_title(
        figure,
        f"{graph.model_class}: {_quantity(base)} → {_quantity(spent)} {unit}{share}, {len(plan.widths)} of {len(groups)} groups cut{gone}",
    )
    _legend(figure, {"before": _BEFORE_COLOUR, "after": _AFTER_COLOUR})
    write_figure(figure, path)


def _legend(figure: Figure, colours: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    by_colour: dict[str, list[str]] = {}
    for name, colour in colours.items():
        by_colour.setdefault(colour, []).append(name)
    figure.legend(
        handles=[Patch(color=colour, label=", ".join(names)) for colour, names in by_colour.items()],
        loc="upper left",
        bbox_to_anchor=(0.006, 1.0 - 0.36 / figure.get_figheight()),
        ncols=max(1, len(by_colour)),
        fontsize=ROW_FONT,
        frameon=False,
        handlelength=1.0,
        columnspacing=1.4,
    )


def _gone(group: ChannelGroup, removed: set[str]) -> bool:
    return bool(group.blocks) and removed.issuperset(group.blocks)


def _quantity(amount: int) -> str:
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if amount >= size:
            return f"{amount / size:.4g} {unit}"
    return str(amount)
