"""What `print` shows of graphs, rankings, plans and results, and the names of channel groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from zoo import NETWORKS

import proxyprune as pp
from proxyprune.graph.group_names import families, group_names, names_of_ids

NAMES = ("sd_unet", "llama_gqa", "t5_encoder", "swin", "hf_resnet", "flux")


@pytest.fixture(scope="module", params=NAMES)
def result(request) -> pp.PruneResult:
    """Return a network of the zoo, pruned in width and depth."""
    network = NETWORKS[request.param]
    return pp.prune(network.build(), network.inputs(), 0.6, mode="both", accept_uncosted=True)


def test_printed_values_fit_80_columns_and_one_screen(result):
    """Each value prints lines of at most 80 columns, at most 60 of them, and says the class, the scorer or the share."""
    shown = {name: str(getattr(result, name)) for name in ("graph", "ranking", "plan")} | {"result": str(result)}
    for name, text in shown.items():
        assert max(map(len, text.splitlines())) <= 80, name
        assert len(text.splitlines()) <= 60, name
    assert shown["graph"].startswith(f"{result.graph.model_class}: {len(result.graph.blocks)} blocks")
    assert "by magnitude" in shown["ranking"].splitlines()[0]
    assert f"{result.plan.macs:,}" in shown["plan"]
    assert f"{result.plan.macs:,}" in shown["result"]
    assert f"Pruned {result.graph.model_class}" in shown["result"]


def test_notebooks_show_a_table(result):
    """Each value has HTML with the same title as its text."""
    for value in (result.graph, result.ranking, result.plan, result):
        assert value._repr_html_().startswith("<p><strong>")
        assert "<table>" in value._repr_html_()


def test_ids_are_shown_on_request(result):
    """With ids=True each cut group has a row of its own that holds its id, or both ends of it."""
    text = result.plan.summary(ids=True).text(width=200)
    assert all(group in text for group in result.plan.widths)
    assert all(group.id in result.graph.summary(ids=True).text(width=200) for group in result.graph.prunable)


def test_every_group_has_its_own_name(result):
    """Names tell groups apart, with the graph and from ids alone; families hold every group once."""
    names = group_names(result.graph)
    assert list(names) == [group.id for group in result.graph.groups]
    assert len(set(names.values())) == len(names)
    assert len(set(names_of_ids(names).values())) == len(names)
    assert sorted(group for ids in families(names).values() for group in ids) == sorted(names)


def test_names_say_block_and_role():
    """Attention heads, feed-forward channels and the residual stream of a Llama, with and without the graph."""
    network = NETWORKS["llama_gqa"]
    graph = pp.trace(network.build(), network.inputs())
    names = [group_names(graph)[group.id] for group in graph.prunable]
    assert names == [
        "embed_tokens residual stream",
        "layers.0 attention heads",
        "layers.0 feed-forward",
        "layers.1 attention heads",
        "layers.1 feed-forward",
    ]
    assert set(families(dict(zip(names, names, strict=True)))) == {
        "embed_tokens residual stream",
        "layers.* attention heads",
        "layers.* feed-forward",
    }
    assert names_of_ids(["model.layers.3.mlp.gate_proj.weight:0", "model.layers.3.self_attn.q_proj.weight:0"]) == {
        "model.layers.3.mlp.gate_proj.weight:0": "layers.3 feed-forward",
        "model.layers.3.self_attn.q_proj.weight:0": "layers.3 attention",
    }


def test_outer_names_stay_where_they_tell_towers_apart():
    """Two towers with equal inner names keep the names of the towers."""

    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x) + self.right(x)

    graph = pp.trace(Towers(), torch.zeros(1, 4))
    assert {group_names(graph)[group.id] for group in graph.prunable} == {"left.0 channels", "right.0 channels"}


def test_a_long_ranking_shows_both_ends():
    """The most and the least important blocks are shown, with the number of those between; all on request."""
    ranking = pp.Ranking({f"blocks.{index}": 1.0 - index / 100 for index in range(40)}, "magnitude", confidence=0.5)
    text = str(ranking)
    assert "confidence 0.50" in text
    assert "blocks.0 " in text
    assert "blocks.39 " in text
    assert "blocks.20 " not in text
    assert "and 24 more" in text
    assert "blocks.20 " in str(ranking.summary(every=True))
    assert "Unreliable: by chance." in str(replace(ranking, unreliable="by chance."))


def test_printing_changes_no_value(result):
    """Equality, JSON and the text for scorers are those of the values, whatever was printed."""
    before = result.plan.to_text(), result.graph.to_text()
    str(result)
    assert (result.plan.to_text(), result.graph.to_text()) == before
    assert pp.PrunePlan.from_text(result.plan.to_text()) == result.plan
