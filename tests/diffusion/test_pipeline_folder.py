"""A pipeline's folder stands on its own: what it records, what else it needs, and how the command line says so."""

from __future__ import annotations

import json
import shlex

import diffusers
import pytest
import torch
from click.testing import CliRunner
from diffusion_kinds import CROSS, DIT, OWN, embedded_digits
from diffusion_runs import NETWORK, small_config

from proxyprune.cli import main
from proxyprune.diffusion import StepAdaptivePipeline
from proxyprune.diffusion.networks import from_record, record_of
from proxyprune.diffusion.process.denoiser_call import Calling
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
    file.unlink()
    assert StepAdaptivePipeline.from_pretrained(tmp_path / "run/pipeline").blueprint.source == str(file)
