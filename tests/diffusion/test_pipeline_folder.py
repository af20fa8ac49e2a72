"""A pipeline's folder stands on its own: what it records, what else it needs, and how the command line says so."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
import yaml
from click.testing import CliRunner
from diffusion_kinds import CROSS, DIT, OWN, embedded_digits
from diffusion_pipelines import pipeline
from diffusion_runs import NETWORK, small_config
from safetensors.torch import load_file

from proxyprune.cli import main
from proxyprune.cli.commands.diffusion import _choice
from proxyprune.diffusion import StepAdaptiveConfig, StepAdaptivePipeline
from proxyprune.diffusion.networks import from_record, record_of
from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.sampling.pipeline_record import Provenance
from proxyprune.errors import ModelFileError

FILE = "import diffusers\n\n\ndef build_model():\n    model = diffusers.{name}(**{settings})\n    {change}\n    return model\n"


def network_file(network: dict, change: str = "") -> str:
    """Return a model file that builds a network of diffusers and may change it."""
    return FILE.format(name=network["_class_name"], settings={k: v for k, v in network.items() if k != "_class_name"}, change=change)


@pytest.mark.parametrize("network", [NETWORK, NETWORK | {"num_class_embeds": 10}, DIT, CROSS], ids=["unet", "class", "dit", "cross"])
def test_networks_of_diffusers_are_recorded(network):
    """Class and settings build a network with the same names and outputs, through JSON and back."""
    model = getattr(diffusers, network["_class_name"])(**{k: v for k, v in network.items() if k != "_class_name"})
    inputs = {"sample": torch.randn(1, 1, 8, 8), "timestep": torch.ones(1, dtype=torch.long)}
    calling = Calling.of(model, conditional=network is not NETWORK)
    if calling.condition is not None:
        inputs[calling.condition] = torch.randn(1, 3, 6) if network is CROSS else torch.ones(1, dtype=torch.long)
    if network is DIT:
        inputs = {calling.image if name == "sample" else name: value for name, value in inputs.items()}
    record = record_of(model, inputs)
    again = from_record(json.loads(json.dumps(record))).eval()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(**inputs).sample, model.eval()(**inputs).sample)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "conv_act", torch.nn.Tanh()),
        lambda model: setattr(model, "conv_out", torch.nn.Conv2d(8, 1, 1)),
        lambda model: setattr(model, "__class__", type("Own", (diffusers.UNet2DModel,), {})),
        lambda model: model.conv_out.register_forward_hook(lambda *given: given[2] * 2),
    ],
)
def test_a_network_that_its_config_does_not_describe_is_not_recorded(change):
    """Another layer, another width, a subclass, or a hook: the class alone would give something else."""
    model = diffusers.UNet2DModel(**{key: value for key, value in NETWORK.items() if key != "_class_name"})
    change(model)
    assert record_of(model, {"sample": torch.randn(1, 1, 8, 8), "timestep": torch.ones(1, dtype=torch.long)}) is None


@pytest.mark.parametrize("kind", ["own", "embeddings", "diffusers"])
def test_the_printed_command_samples(tmp_path, monkeypatch, kind):
    """It names the model file and the embeddings where the folder does not hold them, with quotes around blanks."""
    (tmp_path / "my files").mkdir()
    file = tmp_path / "my files" / ("own.json" if kind == "embeddings" else "own.py")
    file.write_text({"own": OWN, "embeddings": json.dumps(CROSS), "diffusers": network_file(NETWORK)}[kind])
    changes = {"compute.reference_steps": 24, "run.batch_size": 8, "run.checkpoint_every": 100, "run.loss_bins": 0, "model": str(file)}
    if kind == "embeddings":
        embedded_digits(tmp_path / "digits.npz")
        changes |= {"data.source": str(tmp_path / "digits.npz"), "data.held_out": 40, "data.labels": True}
    (tmp_path / "config.json").write_text(small_config(tmp_path).with_values(changes).to_text())
    run = ["diffusion", "train", "--config", str(tmp_path / "config.json"), "--out", str(tmp_path / "run")]
    trained = CliRunner().invoke(main, run, catch_exceptions=False, env={"COLUMNS": "2000"})
    assert trained.exit_code == 0, trained.output
    printed = next(line for line in trained.stdout.splitlines() if line.startswith("Sample with: "))
    command = shlex.split(printed.removeprefix("Sample with: "))
    assert ("--model" in command, "--condition" in command) == (kind == "own", kind == "embeddings")
    monkeypatch.chdir(tmp_path)
    drawn = CliRunner().invoke(main, [*command[1:], "--steps", "2", "-n", "2"])
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "samples.png").is_file()
    if kind == "own":
        with pytest.raises(ModelFileError, match=r"own\.py.*--model.*factory=build_model"):
            StepAdaptivePipeline.from_pretrained(tmp_path / "run/pipeline")
        return
    card = (tmp_path / "run/pipeline/README.md").read_text()
    assert str(tmp_path) not in card + (tmp_path / "run/pipeline/step_adaptive.json").read_text()
    made = shlex.split(next(line for line in card.splitlines() if line.startswith("$ ")))[1:]
    assert made[:3] == ["proxyprune", "diffusion", "train"]
    choice = _choice(None, None, tuple(word for word in made if "=" in word))
    files = {name: value for name, value in changes.items() if name in ("model", "data.source")}  # the card has no folders
    again = choice.load().with_values(files)
    assert again == StepAdaptiveConfig.from_json(tmp_path / "run/config.json")
    plans = [path.relative_to(tmp_path / "run/pipeline").as_posix() for path in (tmp_path / "run/pipeline/experts").glob("*/plan.json")]
    assert plans
    assert sorted(re.findall(r"\[plan\]\((.*?)\)", card)) == sorted(plans)
    kind_of = diffusers.UNet2DConditionModel if kind == "embeddings" else diffusers.UNet2DModel
    base = kind_of.from_pretrained(tmp_path / "run/base").state_dict()
    saved = load_file(tmp_path / "run/base/base.safetensors")
    assert base.keys() == saved.keys()
    assert all(torch.equal(base[name], value) for name, value in saved.items())
    with pytest.raises(OSError, match=r"config\.json"):
        kind_of.from_pretrained(tmp_path / "run/pipeline" / Path(plans[0]).parent)
    file.unlink()
    assert StepAdaptivePipeline.from_pretrained(tmp_path / "run/pipeline").blueprint.source == file.name


def test_the_card_shows_intervals_experts_and_cost(tmp_path):
    """One row for each expert, the sampler, and a comment where the licence goes; no licence is claimed."""
    found = pipeline(experts=3, classes=10)
    found.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved/README.md").read_text()
    front = card.split("---")[1]
    assert "# license: add" in front
    assert set(yaml.safe_load(front)) == {"library_name", "tags"}
    rows = [line.split("|")[1:-1] for line in card.splitlines() if line.endswith("| whole |")]
    assert [row[0].strip() for row in rows] == ["0", "1", "2"]
    assert [row[2].strip() for row in rows] == ["1,000"] * 3
    assert f"{found.blueprint.intervals.boundaries_db[1]:.1f} to {found.blueprint.intervals.boundaries_db[0]:.1f}" in card
    assert "DDIMScheduler" in card
    assert "10 classes" in card


def test_a_changed_card_is_kept_and_an_unchanged_one_follows(tmp_path):
    """A user adds the licence; until then the card says what the pipeline is now."""
    found = pipeline()
    place = tmp_path / "saved"
    found.save_pretrained(place)
    first = (place / "README.md").read_text()
    found.use("dpm++").save_pretrained(place)
    second = (place / "README.md").read_text()
    assert "DPMSolverMultistepScheduler" in second
    assert second != first
    (place / "README.md").write_text(second.replace("# license: add the licence of the weights here", "license: mit"))
    found.use("euler").save_pretrained(place)
    assert "license: mit" in (place / "README.md").read_text()
    assert not [path for path in tmp_path.iterdir() if path.name != "saved"]


def test_text_from_outside_is_escaped(tmp_path):
    """Notes and commands cannot add rows, HTML, links or the end of a code block."""
    found = pipeline()
    note = "a | b <script>x</script>\n# title [link](http://x) `code`"
    command = "proxyprune diffusion train --set 'model=```\n<b>'"
    found.blueprint = replace(found.blueprint, notes=(note,), provenance=Provenance(command, 3, 20))
    found.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved/README.md").read_text()
    assert "<script>" not in card
    assert "\n# title" not in card
    assert "\\[link\\](http://x)" in card
    assert "\n````console\n$ " in card
    assert "\n````\n" in card
    again = StepAdaptivePipeline.from_pretrained(tmp_path / "saved")
    assert again.blueprint.notes == (note,)
    assert again.blueprint.provenance == Provenance(command, 3, 20)


@pytest.mark.parametrize("network", [NETWORK, DIT, CROSS], ids=["unet", "dit", "cross"])
def test_whole_experts_are_models_of_diffusers(tmp_path, network):
    """Their folder loads with the class of diffusers alone, bit for bit, and with its dtype; also after the pipeline is saved again."""
    settings = {key: value for key, value in network.items() if key != "_class_name"}
    kind = getattr(diffusers, network["_class_name"])
    models = [kind(**settings).eval() for _ in range(2)]
    found = pipeline()
    blueprint = replace(
        found.blueprint, network={"class": kind.__name__, "config": settings}, calling=Calling.of(models[0], conditional=False)
    )
    held = Experts.of(models, [1000, 1000])
    blueprint = replace(blueprint, params=held.params)
    StepAdaptivePipeline(held, blueprint, found.scheduler, trained_with=found._trained_with).save_pretrained(tmp_path / "first")
    StepAdaptivePipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for place, number in itertools.product(("first", "second"), (0, 1)):
        again = kind.from_pretrained(tmp_path / place / "experts" / str(number))
        assert again.state_dict().keys() == models[number].state_dict().keys()
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in models[number].state_dict().items())
        assert {key: again.config[key] for key in settings}.keys() == settings.keys()
    halved = kind.from_pretrained(tmp_path / "first/experts/0", torch_dtype=torch.bfloat16)
    assert {value.dtype for value in halved.parameters()} == {torch.bfloat16}


def test_an_expert_of_an_earlier_version_loads(tmp_path):
    """It has weights alone; saving the pipeline again adds the files for diffusers."""
    found = pipeline()
    found.save_pretrained(tmp_path / "saved")
    for path in (*(tmp_path / "saved/experts").glob("*/config.json"), *(tmp_path / "saved/experts").glob("*/*.index.json")):
        path.unlink()
    old = StepAdaptivePipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(old.generate(2, steps=3, progress=False), found.generate(2, steps=3, progress=False))
    old.save_pretrained(tmp_path / "again")
    diffusers.UNet2DModel.from_pretrained(tmp_path / "again/experts/1")
