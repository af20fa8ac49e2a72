"""The command line of the LLM scorers: options, dry run, tables, refusal, and what is printed under --json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import MEASURED, NETWORK, fail, succeed

from proxyprune.testing import FakeLLMServer, ReceivedRequest, Refusal, SimulatedProxy
from proxyprune.testing.fake_llm.envelopes import prompt_tokens


@pytest.fixture
def network(tmp_path, monkeypatch) -> Path:
    """Return a model file in an otherwise empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK + MEASURED)
    return Path("net.py")


@pytest.fixture
def server():
    """Answers that all agree."""
    with FakeLLMServer() as running:
        yield running


def asking(server: FakeLLMServer, scorer: str = "openai") -> tuple[str, ...]:
    return ("--scorer", scorer, "--llm-model", "fake-1", "--base-url", server.url_for(scorer))


@pytest.mark.parametrize("scorer", ["openai", "anthropic", "local"])
def test_score(network, server, scorer):
    """The table of blocks, and the table of what was asked."""
    text = succeed("score", "--model", network, *asking(server, scorer), "--samples", 3).stdout
    assert "Requests to fake-1" in text
    assert "unknown" in text  # the price
    assert "UNRELIABLE" not in text
    assert "Confidence" in text


def test_json_holds_the_bill(network, server):
    """Nothing but JSON on stdout; the ranking can be read back and pruned with."""
    data = json.loads(succeed("score", "--model", network, *asking(server), "--samples", 3, "--json", "--price", 1, 2).stdout)
    assert data["asked"]["samples"] == 3
    assert data["asked"]["spent_usd"] == pytest.approx(sum(prompt_tokens(asked.body) * 1 + 20 * 2 for asked in server.requests) / 1e6)
    assert len(server.requests) == 3
    Path("ranking.json").write_text(json.dumps(data))
    succeed("prune", "--model", network, "--ranking", "ranking.json", "--plan-only")


@pytest.mark.parametrize("command", ["score", "prune"])
def test_a_dry_run_sends_nothing(network, server, command):
    """The whole prompt, the estimate, no request, no file."""
    text = succeed(command, "--model", network, *asking(server), "--dry-run", "--price", 1, 2).stdout
    assert "# List of blocks" in text
    assert "b00 at " in text
    assert "at most" in text
    assert "$" in text
    data = json.loads(succeed(command, "--model", network, *asking(server), "--dry-run", "--json").stdout)
    assert data["estimate"]["usd"] is None
    assert data["prompts"][0]["user"].startswith("# Goal")
    assert not server.requests
    assert sorted(path.name for path in Path().iterdir() if path.suffix != ".pyc" and path.name != "__pycache__") == ["net.py"]


def test_the_goal_reaches_the_model(network, server):
    """`prune` tells target and mode."""
    succeed("prune", "--model", network, *asking(server), "--target", "0.55", "--mode", "both", "--plan-only")
    assert "may spend 55.0% of the MACs" in server.requests[0].prompt
    assert "depth and width" in server.requests[0].prompt


def test_prune_and_replay(network, server):
    """The folder of answers makes the same plan again without the server."""
    given = ("--model", network, "--plan-only", "--cache", "answers")
    succeed("prune", *given, *asking(server), "--out", "first.json")
    count = len(server.requests)
    text = succeed("prune", *given, *asking(server), "--cache-mode", "replay-only", "--out", "second.json").stdout
    assert len(server.requests) == count
    assert Path("first.json").read_bytes() == Path("second.json").read_bytes()
    assert "none" in text  # the cost


def test_an_unreliable_ranking_is_refused(network):
    """Shown by score, refused by prune, accepted by name."""

    def noise(asked: ReceivedRequest) -> str:
        return SimulatedProxy(range(len(asked.places)), noise=50.0)(asked)

    with FakeLLMServer(answer=noise) as server:
        given = ("--model", network, *asking(server), "--samples", 2, "--max-samples", 2)
        assert "UNRELIABLE" in succeed("score", *given).stdout
        message = fail("prune", *given, "--plan-only")
        assert "--accept-unreliable" in message
        text = succeed("prune", *given, "--plan-only", "--accept-unreliable").stdout
    assert "unreliable, and was accepted" in text


def test_fallback(network):
    """Only when it is asked for, and then it is told."""
    with FakeLLMServer([Refusal()] * 50) as server:
        assert "declined" in fail("score", "--model", network, *asking(server))
        text = succeed("score", "--model", network, *asking(server), "--fallback", "taylor").stdout
    assert "taylor (fallback of openai)" in text
    assert "NOT the ranking of" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--scorer", "magnitude", "--samples", "3", "--real-names"), "--samples, --real-names cannot be given"),
        (("--llm-model", "x"), "'magnitude' uses no language model"),
        (("--scorer", "openai"), "needs --llm-model"),
        (("--scorer", "local", "--llm-model", "x"), "needs base_url"),
        (("--scorer", "local", "--llm-model", "x", "--base-url", "http://example.org/v1"), "Plain http"),
        (("--scorer", "openai", "--llm-model", "x", "--cache-mode", "replay-only"), "needs cache"),
        (("--scorer", "anthropic", "--llm-model", "x", "--temperature", "0.5"), "no temperature"),
        (("--scorer", "openai", "--llm-model", "x", "--samples", "5", "--max-samples", "3"), "must not be smaller"),
    ],
)
def test_options_that_do_not_fit(network, arguments, message):
    """Told at once, before anything is built."""
    assert message in fail("score", "--model", network, *arguments).replace("\n", " ")


def test_options_for_a_model_beside_a_ranking(network, server):
    """A ranking takes the place of a scorer, so there is nobody to ask."""
    Path("ranking.json").write_text(succeed("score", "--model", network, "--json").stdout)
    assert "--llm-model" in fail("prune", "--model", network, "--ranking", "ranking.json", "--llm-model", "x")


def test_a_password_in_the_address_is_not_shown(network, server):
    """Neither in the tables nor in an error."""
    address = server.openai_url.replace("://", "://me:hunter2canary@")
    given = ("--model", network, "--scorer", "openai", "--llm-model", "x", "--base-url", address)
    assert "hunter2canary" not in succeed("score", *given).output
    assert "hunter2canary" not in succeed("score", *given, "--dry-run").output


def test_channels_of_another_scorer(network, server):
    """Taylor's by default where the model file has data; by name for any scorer of blocks; none when told so."""
    given = ("prune", "--model", network, "--plan-only", "--json", "--out", "p.json")
    plans = {
        name: json.loads(succeed(*given, *asking(server), *extra).stdout)["plan"]
        for name, extra in {"auto": (), "named": ("--channels", "taylor"), "none": ("--channels", "none")}.items()
    }
    assert plans["auto"] == plans["named"]
    assert plans["auto"]["scorer"] == "openai on taylor"
    assert "held-out calibration batch" in plans["auto"]["notes"][-1]
    assert plans["none"]["scorer"] == "openai"
    ranking = {"schema": 1, "scorer": "mine", "scores": _scores_of(network)}
    Path("mine.json").write_text(json.dumps({"confidence": None, "seed": 0, "channel_scores": {}, "notes": [], **ranking}))
    assert json.loads(succeed(*given, "--ranking", "mine.json", "--channels", "taylor").stdout)["plan"]["scorer"] == "mine on taylor"
    Path("bare.py").write_text(NETWORK)
    text = succeed("prune", "--model", "bare.py", "--plan-only", *asking(server), "--out", "bare.json").stdout
    assert "rests on the block scores" in " ".join(text.split())
    assert "--channels taylor" in " ".join(text.split())
    assert "channels='taylor' measures" in fail("prune", "--model", "bare.py", "--ranking", "mine.json", "--channels", "taylor")


def _scores_of(network: Path) -> dict[str, float]:
    return json.loads(succeed("score", "--model", network, "--json").stdout)["scores"]


def test_figures_are_shown_if_the_model_file_has_data(network, server):
    """All three by default, some on request, none with --no-statistics, and none without data; both options together are an error."""
    shown = ("--samples", 1, "--max-samples", 1, "--dry-run")
    for extra, figures in (((), "weights taylor similarity"), (("--statistics", "weights"), "weights"), (("--no-statistics",), "")):
        text = succeed("score", "--model", network, *asking(server), *shown, *extra).stdout
        line = next(line for line in text.splitlines() if line.startswith("b00 at "))
        found = line.partition("measured ")[2].partition(";")[0].split()[::2]
        assert " ".join(found) == figures
    assert "give one of them" in fail(
        "score", "--model", network, *asking(server), *shown, "--statistics", "weights", "--no-statistics"
    )  # fmt: skip
    network.write_text(NETWORK)
    assert "b00 at " in succeed("score", "--model", network, *asking(server), *shown).stdout
    assert "; measured" not in succeed("score", "--model", network, *asking(server), *shown).stdout
