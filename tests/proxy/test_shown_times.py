"""Shares of the time in prompts: on request only, from the graph's cost table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from commands import NETWORK, succeed
from llm import options
from subject import subject
from torch import nn

import proxyprune as pp
from proxyprune import ModelGraph
from proxyprune.errors import InputError, MissingNeedError
from proxyprune.measuring.network_times import CostTable
from proxyprune.proxy.prompt.survey import Survey
from proxyprune.scoring import Brief, ScoringContext, find
from proxyprune.testing import FakeLLMServer
from tests.shared.clockwork import Clockwork

SHARE = re.compile(r" time (\d+\.\d+)%")


@pytest.fixture
def timed(tmp_path: Path) -> ModelGraph:
    """Return a graph whose times are a formula."""
    network = subject()
    graph = pp.trace(network.model, network.example_inputs)
    return pp.with_times(graph, network.model, network.example_inputs, table=CostTable(tmp_path, Clockwork()))


def prompt(graph: ModelGraph, **changed: object) -> str:
    """Return what a first sample asks."""
    with FakeLLMServer() as server:
        scorer = find("local", options(server, "local", **changed))
        return "\n".join(question.user for question in scorer.preview(graph, ScoringContext()).prompts)


def test_each_line_has_the_share_of_its_block(timed: ModelGraph):
    """The shares are those of the cost table, and the prompt explains them once."""
    text = prompt(timed, show_time=True)
    times = timed.cost.time.by_block(timed.cost.full)
    total = sum(times.values())
    expected = sorted(100 * times.get(block.id, 0) / total for block in timed.blocks)
    assert sorted(float(share) for share in SHARE.findall(text)) == pytest.approx(expected, abs=0.06)
    assert text.count("# Time") == 1


def test_without_the_option_a_prompt_is_as_before(timed: ModelGraph):
    """A cost table alone changes no byte, so recorded answers keep replaying."""
    network = subject()
    assert prompt(timed) == prompt(pp.trace(network.model, network.example_inputs))
    assert "# Time" not in prompt(timed)


def test_stages_have_the_share_of_their_blocks():
    """In a network that does not fit one prompt, the shares of the stages add up to the whole, and each line of a block has its own."""
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()) for _ in range(60)]
    graph = pp.trace(nn.Sequential(*layers), torch.randn(1, 8, 4, 4))
    times = {block.id: 1000 + place for place, block in enumerate(graph.blocks)}
    overview, *parts = Survey(graph, Brief(0.6), 0, 2500, times=times).prompts(0)
    assert parts
    listed = overview.user[overview.user.rindex("# List of ") :]
    assert sum(float(share) for share in SHARE.findall(listed)) == pytest.approx(100, abs=0.5)
    for part in parts:
        listed = part.user[part.user.rindex("# List of ") :]
        assert len(SHARE.findall(listed)) == len(part.labels.of)


def test_a_graph_without_times_is_an_error_that_names_the_remedy():
    """Nothing is sent."""
    network = subject()
    with FakeLLMServer() as server:
        with pytest.raises(MissingNeedError, match="with_times"):
            pp.score(pp.trace(network.model, network.example_inputs), find("local", options(server, "local", show_time=True)))
        assert not server.requests
        with pytest.raises(InputError, match="show_time must be True or False"):
            find("local", options(server, "local", show_time=1))


def test_prune_adds_the_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A target of MACs needs no times; a scorer that shows them does, and a note records that they were shown."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network = subject()
    with FakeLLMServer() as server:
        scorer = find("local", options(server, "local", show_time=True))
        result = pp.prune(network.model, network.example_inputs, 0.6, scorer, channels=None)
        assert all("# Time" in request.prompt for request in server.requests)
    assert any("share of the time" in note for note in result.ranking.notes)


def test_the_command_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A dry run prints the shares; without the option it does not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    Path("net.py").write_text(NETWORK)
    given = ("score", "--model", "net.py", "--scorer", "local", "--llm-model", "fake", "--base-url", "http://127.0.0.1:1/v1", "--dry-run")
    assert SHARE.search(succeed(*given, "--show-time", "--time-threads", "1").stdout)
    assert not SHARE.search(succeed(*given).stdout)
