"""Any scorer decides what experts lose: plug-ins, and a language model whose answers were recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from diffusion_runs import small_config, start, weights

from proxyprune import scorers
from proxyprune.cli import main
from proxyprune.diffusion import StepAdaptiveConfig, StepAdaptiveTrainer
from proxyprune.diffusion.stages.judging import judge
from proxyprune.diffusion.stages.layout import choose_intervals
from proxyprune.errors import InputError, StorageError, TargetError, UnreliableRankingError
from proxyprune.testing import FakeLLMServer, ReceivedRequest, SimulatedProxy

PLUGIN = '''
import os

from proxyprune.scoring.ranking import Ranking

class HalvesScorer:
    """The loss of each half of every batch decides nothing, but is asked for; blocks are ranked by their place."""
    name = "halves"
    needs = frozenset({"gradients"})

    def score(self, graph, context):
        for batch in context.batches:
            context.loss_fn(context.model, batch).backward()
        context.model.zero_grad()
        low, high = context.brief.interval.low_snr_db, context.brief.interval.high_snr_db
        scores = {block.id: (7 * place % 11) / 11 for place, block in enumerate(graph.blocks)}
        return Ranking(scores, self.name, notes=(f"{low:.1f} to {high:.1f} dB",))

class MoodyScorer(HalvesScorer):
    """Says something else in every process."""
    name = "moody"

    def score(self, graph, context):
        place = os.getpid() % len(graph.blocks)
        return Ranking({block.id: float(index == place) for index, block in enumerate(graph.blocks)}, self.name)
'''


def install(folder: Path) -> None:
    """Return a real distribution with two scorers: a dist-info folder with entry points, and a module."""
    info = folder / "halves-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halves\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[proxyprune.scorers]\nhalves = halves_scorer:HalvesScorer\nmoody = halves_scorer:MoodyScorer\n")
    (folder / "halves_scorer.py").write_text(PLUGIN)


def tiny(folder: Path, **changes: Any) -> StepAdaptiveConfig:
    quick = {"compute__reference_steps": 24, "run__batch_size": 8, "run__checkpoint_every": 100, "run__loss_bins": 0}
    return small_config(folder, **quick | changes)


def train(config: StepAdaptiveConfig, out: Path, *extra: str) -> Result:
    path = out.parent / f"{out.name}.json"
    path.write_text(config.to_text())
    return CliRunner().invoke(main, ["diffusion", "train", "--config", str(path), "--out", str(out), "--json", *extra])


def ranking_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "expert-1" / "cut-1" / "ranking.json").read_text())
    return found


def test_a_plugin_cuts_the_experts(tmp_path, monkeypatch):
    """A scorer of another distribution is asked by name, is told the interval, and what it computes is in the ledger."""
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    done = train(tiny(tmp_path), tmp_path / "run", "--scorer", "halves")
    assert done.exit_code == 0, done.output
    (entry,) = [entry for entry in json.loads(done.stdout)["ledger"]["entries"] if entry["what"] == "scoring"]
    assert entry["images"] == 16
    ranking = ranking_of(tmp_path / "run")
    assert ranking["scorer"] == "halves"
    member = json.loads((tmp_path / "run" / "layout.json").read_text())["members"][1]
    assert ranking["notes"][0].endswith(f" to {member['high_snr_db']:.1f} dB")


@pytest.mark.parametrize("name", [info.name for info in scorers() if info.needs is not None and "network" not in info.needs])
def test_every_scorer_at_hand_can_judge_a_denoiser(tmp_path, name):
    """Plug-ins among them; a run begins with it."""
    StepAdaptiveTrainer(tiny(tmp_path, pruning__scorer=name, compute__reference_steps=400), tmp_path / "run")
    assert (tmp_path / "run" / "config.json").is_file()


@pytest.mark.parametrize("options", [{"pruning.scorer": "halve"}, {"pruning.options": {"norm": "l9"}}, {"pruning.scorer": "local"}])
def test_a_scorer_that_cannot_be_used_is_refused_before_training(tmp_path, options):
    """An unknown name and options that do not fit stop a run at once, not when the base is trained."""
    done = train(tiny(tmp_path).with_values(options), tmp_path / "run")
    assert done.exit_code != 0
    assert not (tmp_path / "run" / "base").exists()


def asking(server: FakeLLMServer, cache: Path, mode: str = "read-write") -> dict[str, Any]:
    quick = {"model": "fake", "samples": 2, "max_samples": 2, "concurrency": 1, "timeout_seconds": 60.0, "price_per_million": [0.0, 0.0]}
    options = quick | {"base_url": server.openai_url, "cache": str(cache), "cache_mode": mode}
    return {"pruning__scorer": "local", "pruning__options": options}


def test_recorded_answers_of_a_language_model_train_the_same_experts(tmp_path):
    """It is told the interval, costs no training compute, and its replayed answers give the same weights without the server."""
    cache = tmp_path / "answers"
    with FakeLLMServer() as server:
        first = StepAdaptiveTrainer(tiny(tmp_path, **asking(server, cache)), tmp_path / "first")
        first.train()
        assert server.requests
        assert all("interval 2 of 2" in asked.prompt for asked in server.requests)
    assert not [entry for entry in first.ledger().entries if entry.what == "scoring"]
    assert ranking_of(tmp_path / "first")["scorer"] == "local"
    StepAdaptiveTrainer(tiny(tmp_path, **asking(server, cache, "replay-only")), tmp_path / "again", base=tmp_path / "first").train()
    found, expected = weights(tmp_path / "again"), weights(tmp_path / "first")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_unreliable_ranking_stops_a_run_that_can_go_on(tmp_path):
    """Answers that contradict each other cut nothing; the same run goes on from its base once that is accepted."""

    def noise(asked: ReceivedRequest) -> str:
        return SimulatedProxy(range(len(asked.places)), noise=50.0)(asked)

    with FakeLLMServer(answer=noise) as server:
        config = tiny(tmp_path, **asking(server, tmp_path / "answers"))
        with pytest.raises(UnreliableRankingError, match="--accept-unreliable"):
            StepAdaptiveTrainer(config, tmp_path / "run").train()
        base = (tmp_path / "run" / "base" / "base.safetensors").stat().st_mtime_ns
        done = train(config, tmp_path / "run", "--accept-unreliable")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run" / "base" / "base.safetensors").stat().st_mtime_ns == base
    assert ranking_of(tmp_path / "run")["unreliable"]
    plan = (tmp_path / "run" / "expert-1" / "network" / "plan.json").read_text()
    assert "was accepted by request" in plan


@pytest.mark.slow
def test_processes_agree_about_a_scorer_that_does_not(tmp_path, monkeypatch):
    """A scorer that answers each process something else is asked once: both processes cut alike, and training ends."""
    install(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    with start(tiny(tmp_path, pruning__scorer="moody"), tmp_path / "run", processes=2) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "pipeline").is_dir()


LIMITED = {"pruning.floors": {"mid_block": 0.9}, "pruning.ceilings": {"up_blocks.0": 24}, "pruning.allocation": "blocks"}


def test_experts_are_cut_within_the_limits_of_the_settings(tmp_path):
    """Floors, ceilings and allocation reach the plan of a cut; sizes that they put out of reach stop a run before it trains."""
    plain, limited = (
        StepAdaptiveTrainer(tiny(tmp_path, compute__reference_steps=400).with_values(changes), tmp_path / name).setup
        for name, changes in (("plain", {}), ("limited", LIMITED))
    )
    interval, macs = choose_intervals(plain, None)[0].over(plain.schedule)[0], int(0.7 * plain.base_macs)
    plans = [judge(s, s.base_model().eval(), interval, macs, "budgets").cut(s, s.base_model(), 0.7)[0].plan for s in (plain, limited)]
    asked = ("floors", "ceilings", "allocation")
    assert [plans[0].options[name] for name in asked] == [{}, {}, "channels"]
    assert [plans[1].options[name] for name in asked] == [LIMITED[f"pruning.{name}"] for name in asked]
    assert plans[0].widths != plans[1].widths
    with pytest.raises(TargetError, match="the floors hold"):
        StepAdaptiveTrainer(tiny(tmp_path).with_values({"pruning.floors": {"*": 1.0}}), tmp_path / "run")
    with pytest.raises(InputError, match="allocation='channels'"):
        StepAdaptiveTrainer(tiny(tmp_path, pruning__scorer="random", pruning__allocation="channels"), tmp_path / "run")
    assert not (tmp_path / "run" / "base").exists()


def test_a_run_from_before_there_were_limits_goes_on(tmp_path):
    """A config.json without floors, ceilings and allocation is the one with none of them."""
    config = tiny(tmp_path, compute__reference_steps=400)
    StepAdaptiveTrainer(config, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    old = json.loads(path.read_text())
    for name in ("floors", "ceilings", "allocation"):
        del old["pruning"][name]
    path.write_text(json.dumps(old))
    assert StepAdaptiveConfig.from_json(path) == config
    StepAdaptiveTrainer(config, tmp_path / "run")
    with pytest.raises(StorageError, match=r"other settings: pruning\.floors"):
        StepAdaptiveTrainer(config.with_values({"pruning.floors": {"mid_block": 0.9}}), tmp_path / "run")


def test_a_run_whose_settings_named_the_default_multiple_goes_on(tmp_path):
    """Before budgets of time, config.json said round_to 1; None means the same for a budget of MACs, and 8 does not."""
    config = tiny(tmp_path, compute__reference_steps=400)
    StepAdaptiveTrainer(config.with_values({"pruning.round_to": 1}), tmp_path / "run")
    StepAdaptiveTrainer(config, tmp_path / "run")
    with pytest.raises(StorageError, match=r"other settings: pruning\.round_to"):
        StepAdaptiveTrainer(config.with_values({"pruning.round_to": 8}), tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("floors", {"mid_block": 1.5}, "floor for 'mid_block'"),
        ("ceilings", {"": 0.5}, "non-empty"),
        ("floors", 0.5, "pruning.floors must be"),
        ("allocation", "fair", "auto, blocks, channels"),
    ],
)
def test_limits_are_checked_with_the_settings(tmp_path, name, value, message):
    """As for any plan, and with the other mistakes of a configuration."""
    with pytest.raises(InputError, match=rf"pruning\.{name}.*{message}" if message[0] != "p" else message):
        tiny(tmp_path).with_values({f"pruning.{name}": value})
