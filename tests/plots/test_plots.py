"""Plots: readable at any size, the same file for the same data, and no global state."""

from __future__ import annotations

import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest
import torch
from torch import nn

import proxyprune as pp
from proxyprune.errors import StorageError
from proxyprune.plots import plot_ranking, plot_widths
from proxyprune.plots.figure import DOTS_PER_INCH

ROOT = Path(__file__).parents[2]


def network(layers: int) -> nn.Module:
    stages = [nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(nn.Linear(4, 8), *stages, nn.Linear(8, 3))


@pytest.fixture(scope="module")
def small():
    """Graph, ranking and plan of a network with a handful of blocks."""
    graph = pp.trace(network(3), torch.zeros(1, 4))
    ranking = pp.score(graph, "random")
    return graph, ranking, pp.make_plan(graph, ranking, target=0.6)


def size_of_png(path: Path) -> tuple[int, int]:
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    return width, height


@pytest.mark.parametrize("layers", [1, 70])
def test_every_row_has_room(tmp_path, layers):
    """The picture grows with the network: at least 20 pixels a row, in both plots."""
    graph = pp.trace(network(layers), torch.zeros(1, 4), probe=False)
    ranking = pp.score(graph, "random")
    plot_ranking(graph, ranking, tmp_path / "r.png")
    plot_widths(graph, pp.make_plan(graph, ranking, target=0.6), tmp_path / "w.png")
    assert size_of_png(tmp_path / "r.png")[1] >= 20 * len(graph.blocks)
    assert size_of_png(tmp_path / "w.png")[1] >= 20 * len(graph.prunable)
    assert size_of_png(tmp_path / "r.png")[0] >= 7 * DOTS_PER_INCH


def test_names_and_figures_are_in_the_picture(small, tmp_path):
    """Names, scores and widths can be read in the text of an SVG."""
    graph, ranking, plan = small
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_ranking(graph, replace(ranking, confidence=0.75), tmp_path / "r.svg")
        plot_widths(graph, plan, tmp_path / "w.svg")
    ranking_text, widths_text = (tmp_path / "r.svg").read_text(), (tmp_path / "w.svg").read_text()
    assert all(f">{block.id}<" in ranking_text for block in graph.blocks)
    assert all(f"{score:.2f}" in ranking_text for score in ranking.scores.values())
    assert "confidence 0.75" in ranking_text
    assert all(f"{before} → {after} " in widths_text for before, after in plan.widths.values())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".PNG"])
def test_same_data_same_file(small, tmp_path, suffix):
    """Two runs write the same bytes in every format."""
    graph, ranking, _ = small
    files = [tmp_path / f"{number}{suffix}" for number in range(2)]
    for file in files:
        plot_ranking(graph, ranking, file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_removed_blocks_are_shown(tmp_path):
    """A group that left with its block is marked, not drawn at its full width."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.b(self.a(x).relu())

    model = nn.Sequential(nn.Linear(4, 8), Residual(), Residual(), nn.Linear(8, 3))
    graph = pp.trace(model, torch.zeros(1, 4))
    plan = pp.make_plan(graph, pp.score(graph, "random"), target=0.7, mode="depth")
    assert len(plan.removed_blocks) == 1
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot_widths(graph, plan, tmp_path / "w.svg")
    text = (tmp_path / "w.svg").read_text()
    assert "block removed" in text
    assert "1 block removed" in text


@pytest.mark.parametrize(
    ("name", "said"), [("plot.bmp", ".png, .svg, .pdf"), ("plot", "ends in ''"), ("nowhere/plot.png", "there is no folder")]
)
def test_places_that_cannot_be_written(small, tmp_path, name, said):
    """An unknown format and a missing folder are told apart."""
    graph, ranking, _ = small
    with pytest.raises(StorageError, match=said):
        plot_ranking(graph, ranking, tmp_path / name)


def test_a_single_layer_has_nothing_to_show(tmp_path):
    """A network without blocks gives an empty picture, not an error."""
    graph = pp.trace(nn.Linear(4, 4), torch.zeros(1, 4))
    assert graph.blocks == ()
    plot_ranking(graph, pp.score(graph, "random"), tmp_path / "r.png")
    assert (tmp_path / "r.png").is_file()


def test_no_pyplot(tmp_path):
    """Drawing never imports pyplot, so no global figure and no display are involved."""
    code = (
        "import sys, torch, proxyprune as pp\nfrom proxyprune.plots.network import plot_ranking\n"
        "graph = pp.trace(torch.nn.Linear(4, 4), torch.zeros(1, 4))\n"
        "plot_ranking(graph, pp.score(graph, 'random'), sys.argv[1])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "r.png")], check=True, cwd=ROOT)
