"""Networks of transformers and diffusers after uniform plans: the config follows, and a plain folder gives the same outputs elsewhere."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from standard_networks import STANDARD
from torch import nn

import proxyprune as pp
from proxyprune.errors import ConfigError, InputError, ProxyPruneError, StorageError
from proxyprune.saving.plain_folder import differences_elsewhere, write_plain
from proxyprune.standard.blueprint import find_blueprint
from proxyprune.standard.follow_config import SavingRaises
from proxyprune.support.nested import tensors_of

TARGETS = (0.8, 0.6)
CASES = [(name, target) for name in STANDARD for target in TARGETS]


@dataclass(frozen=True)
class Outcome:
    """Result of pruning one network: a plan, its folder and what differs elsewhere, or an error."""

    plan: pp.PrunePlan | None = None
    folder: Path | None = None
    difference: str | None = None
    error: ProxyPruneError | None = None


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, float], Outcome]:
    """Every network at every target, and one in a wrapper; all folders are loaded in one process that cannot import proxyprune."""
    folder = tmp_path_factory.mktemp("plain")
    found, written = {}, {}
    for name, target in CASES:
        network = STANDARD[name]
        try:
            result = pp.prune(network.build(), network.inputs(), target, mode=network.mode, uniform=True)
            written[name, target] = (result.plan, write_plain(result, folder / f"{name}-{target}"))
        except ProxyPruneError as error:
            found[name, target] = Outcome(error=error)
    wrapped = pp.prune(Wrapped().eval(), STANDARD["CLIP"].inputs(), 0.6, uniform=True)
    written["wrapped CLIP", 0.6] = (wrapped.plan, write_plain(wrapped, folder / "wrapped"))
    differences = differences_elsewhere([plain for _, plain in written.values()])
    for (case, (plan, plain)), difference in zip(written.items(), differences, strict=True):
        found[case] = Outcome(plan, plain.folder, difference)
    return found


@pytest.mark.parametrize(("name", "target"), CASES)
def test_uniform_plans_load_elsewhere_bit_for_bit(outcomes: dict[tuple[str, float], Outcome], name: str, target: float) -> None:
    """The folder gives the pruned network's outputs in a process without proxyprune, within 1 % of the budget; or the refusal names why."""
    outcome, network = outcomes[name, target], STANDARD[name]
    refused = (network.refused or {}).get(target)
    if refused is not None:
        assert outcome.plan is None
        assert refused in str(outcome.error)
        return
    assert outcome.error is None
    assert outcome.plan is not None
    assert outcome.difference is None
    assert outcome.plan.macs <= outcome.plan.target_macs
    if not network.coarse:
        assert outcome.plan.target_macs - outcome.plan.macs <= 0.01 * outcome.plan.base_macs
    else:
        assert any("The smallest step back takes" in note for note in outcome.plan.notes)


def pruned(name: str, **keywords: Any) -> pp.PruneResult:
    """One of the networks, pruned to 0.6."""
    network = STANDARD[name]
    return pp.prune(network.build(), network.inputs(), keywords.pop("target", 0.6), **keywords)


def outputs(model: nn.Module, name: str) -> list[torch.Tensor]:
    """Return what a model gives on a network's inputs."""
    with torch.no_grad():
        return list(tensors_of(model(**STANDARD[name].inputs())))


@pytest.mark.parametrize("name", ["Llama", "ConvNeXt", "UNet2DModel"])
def test_the_config_of_a_pruned_model_is_right_for_its_own_save_pretrained(name: str, tmp_path: Path) -> None:
    """`model.save_pretrained` writes the new sizes, and from_pretrained gives the same network; so does a copy of the model."""
    result = pruned(name, uniform=True)
    model: Any = copy.deepcopy(result.model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(outputs(loaded.eval(), name), outputs(result.model, name), strict=True))


def test_free_widths_raise_and_say_what_uniform_gives(tmp_path: Path) -> None:
    """Both ways to save raise, the message names the number of the config and the layers, and no folder is left."""
    result = pruned("Llama")
    with pytest.raises(ConfigError, match=r"model\.layers\.\d.*uniform=True"):
        result.model.save_pretrained(tmp_path / "direct")  # type: ignore[operator]
    with pytest.raises(ConfigError, match=r"intermediate_size would be \d+ for 'model\.layers\.0.*With uniform=True the same target gives"):
        pp.save_pretrained(result, tmp_path / "plain")
    assert not list(tmp_path.iterdir())
    assert any("cannot express" in note for note in result.report.notes)
    again = pickle.loads(pickle.dumps(result.model))
    with pytest.raises(ConfigError):
        again.save_pretrained(tmp_path / "direct")


def test_removed_layers_are_renumbered_and_lists_follow(tmp_path: Path) -> None:
    """The folder has fewer layers and an entry a layer in layer_types; the pruned model itself raises, because its names have gaps."""
    from transformers import AutoModelForCausalLM

    result = pruned("Gemma 3", mode="depth", target=0.8, uniform=True)
    gone = [int(block.split(".")[2]) for block in result.plan.removed_blocks]
    with pytest.raises(ConfigError, match=r"proxyprune\.save_pretrained"):
        result.model.save_pretrained(tmp_path / "direct")  # type: ignore[operator]
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "tokenizer.json").write_text("{}")
    pp.save_pretrained(result, tmp_path / "plain", processors=tokens, losses={"after": 0.5}, command="proxyprune prune")
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    before: Any = STANDARD["Gemma 3"].build()
    kinds = [kind for index, kind in enumerate(before.config.layer_types) if index not in gone]
    assert gone
    assert config["num_hidden_layers"] == 4 - len(gone)
    assert config["layer_types"] == kinds
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    assert "| after | | 0.5 |" in (tmp_path / "plain" / "README.md").read_text()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    assert [layer.self_attn.layer_idx for layer in loaded.model.layers] == list(range(4 - len(gone)))
    assert torch.allclose(outputs(loaded, "Gemma 3")[0], outputs(result.model, "Gemma 3")[0], atol=1e-6)


_FROM_THE_CACHE = """
import sys, torch, transformers
import proxyprune as pp

model = transformers.LlamaForCausalLM.from_pretrained("someone/tiny")
result = pp.prune(model, {"input_ids": torch.arange(6)[None]}, 0.6, uniform=True)
pp.save_pretrained(result, sys.argv[1], processors="someone/words")
try:
    pp.save_pretrained(result, sys.argv[1], processors="someone/absent")
except OSError as error:
    print(error)
"""


def test_tokenizer_files_come_from_the_cache_of_the_hub(tmp_path: Path) -> None:
    """A network loaded by a hub id keeps the files beside its weights, at its revision; other ids are read from the cache too."""
    import transformers

    def cached(name: str, files: dict[str, str]) -> Path:
        repository = tmp_path / "hub" / f"models--someone--{name}"
        snapshot = repository / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("0" * 40)
        for file, text in files.items():
            (snapshot / file).write_text(text)
        return snapshot

    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    network = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    network.save_pretrained(cached("tiny", {"tokenizer.json": "{}", "tokenizer_config.json": '{"of": "tiny"}', "notes.txt": "mine"}))
    cached("words", {"tokenizer_config.json": "{}", "chat_template.jinja": "words"})
    environment = os.environ | {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(pp.__file__).parents[1]),
    }
    command = [sys.executable, "-c", _FROM_THE_CACHE, str(tmp_path / "plain")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "'someone/absent'" in done.stdout
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert names >= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert "notes.txt" not in names
    assert json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text()) == {"of": "tiny"}


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    """A folder with other files is rejected before anything is written."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="not of a plain network"):
        pp.save_pretrained(pruned("ConvNeXt", uniform=True), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_loaded_model_has_the_config_too(tmp_path: Path) -> None:
    """`pp.load` gives the pruned sizes to the config, or a model whose save_pretrained raises."""
    uniform, free = pruned("Llama", uniform=True), pruned("Llama")
    pp.save(uniform, tmp_path / "uniform")
    pp.save(free, tmp_path / "free")
    model: Any = pp.load(tmp_path / "uniform", STANDARD["Llama"].build)
    assert model.config.intermediate_size == uniform.model.config.intermediate_size < 160  # type: ignore[union-attr,operator]
    assert isinstance(vars(pp.load(tmp_path / "free", STANDARD["Llama"].build))["save_pretrained"], SavingRaises)


class Wrapped(nn.Module):
    """Gives only the logits of the network inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = STANDARD["CLIP"].build()

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits of images and texts."""
        logits: torch.Tensor = self.inner(input_ids=input_ids, pixel_values=pixel_values).logits_per_image
        return logits


def test_a_wrapped_network_is_saved_without_its_wrapper(outcomes: dict[tuple[str, float], Outcome]) -> None:
    """Behind a wrapper that drops hidden states, both towers of CLIP lose width and heads, and nested configs follow."""
    outcome = outcomes["wrapped CLIP", 0.6]
    assert outcome.folder is not None
    config = json.loads((outcome.folder / "config.json").read_text())
    assert config["text_config"]["hidden_size"] < 32 or config["vision_config"]["hidden_size"] < 32
    assert outcome.difference is None


def convolutions() -> nn.Module:
    """Three equal layers without a config."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 16)) for _ in range(3)]
    return nn.Sequential(nn.Linear(4, 16), *layers, nn.Linear(16, 2))


X = torch.ones(1, 4)


@pytest.mark.parametrize("uniform", [True, "layers", ["[123].0.weight"]])
def test_repeated_layers_keep_equal_widths_without_a_config(uniform: Any) -> None:
    """Repeated layers lose as many channels, each its own; a pattern ties what it matches."""
    plan = pp.prune(convolutions(), X, 0.6, uniform=uniform).plan
    inner = [f"{index}.0.weight:0" for index in (1, 2, 3)]
    assert len({plan.widths[group] for group in inner}) == 1
    assert len({plan.kept[group] for group in inner}) > 1
    assert plan.target_macs - plan.macs <= 0.01 * plan.base_macs


def test_limits_hold_for_all_tied_groups() -> None:
    """A floor, a kept group or a multiple of one layer counts for the layers tied to it."""
    network = convolutions()
    plan = pp.prune(network, X, 0.8, uniform=True, floors={"2.0": 0.75}).plan
    assert {len(plan.kept.get(f"{index}.0.weight:0", range(48))) >= 36 for index in (1, 2, 3)} == {True}
    plan = pp.prune(network, X, 0.8, uniform=True, keep=["3.0.weight:0"]).plan
    assert not {f"{index}.0.weight:0" for index in (1, 2, 3)} & set(plan.kept)
    plan = pp.prune(network, X, 0.6, uniform=True, round_to=8).plan
    assert all(after % 8 == 0 for _, after in plan.widths.values())
    with pytest.raises(InputError, match="no common width"):
        pp.prune(network, X, 0.6, uniform=True, keep=["3.0.weight:0"], ceilings={"2.0": 0.5})


@pytest.mark.parametrize(("uniform", "message"), [("both", "Unknown uniform"), ("config", "has no config"), (["1.*"], "different numbers")])
def test_requests_that_mean_nothing_are_rejected(uniform: Any, message: str) -> None:
    """An unknown kind, a config where there is none, and a pattern over groups of two sizes."""
    with pytest.raises(InputError, match=message):
        pp.prune(convolutions(), X, 0.6, uniform=uniform)


def odd() -> nn.Module:
    """Return a class with a config of its own: a list of widths, and a number that another has to divide."""
    from transformers import PreTrainedConfig, PreTrainedModel

    class OddConfig(PreTrainedConfig):  # type: ignore[misc]
        """Sizes under unusual names."""

        model_type = "odd"

        def __init__(self, breadths: tuple[int, ...] = (24, 40), pipes: int = 3, **further: Any) -> None:
            if breadths[0] % pipes:
                raise ValueError("pipes must divide the first breadth")
            super().__init__(**further)
            self.breadths = list(breadths)
            self.pipes = pipes

    class OddModel(PreTrainedModel):  # type: ignore[misc]
        """Two linear layers."""

        config_class = OddConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.first = nn.Linear(8, config.breadths[0])
            self.second = nn.Linear(config.breadths[0], config.breadths[1])
            self.last = nn.Linear(config.breadths[1], 4)
            self.post_init()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Apply the layers."""
            result: torch.Tensor = self.last(self.second(self.first(x).relu()).relu())
            return result

    model: nn.Module = OddModel(OddConfig()).eval()
    return model


@pytest.mark.parametrize("make", [odd])
def test_a_class_with_names_of_its_own_is_understood(make: Callable[[], nn.Module]) -> None:
    """Widths follow the numbers of an unknown config, and one stays divisible by the number that the class divides it by."""
    assert find_blueprint(make()) is not None
    result = pp.prune(make(), torch.randn(1, 8), 0.5, uniform="config")
    config: Any = result.model.config
    assert config.breadths[0] % config.pipes == 0
    assert config.breadths == [result.model.first.out_features, result.model.second.out_features]  # type: ignore[union-attr]
    assert config.breadths[0] < 24
