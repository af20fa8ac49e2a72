"""Evaluation with several numbers of steps and pipelines, and features that are learned on the images themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner

from proxyprune.cli import main
from proxyprune.diffusion import StepAdaptiveTrainer
from proxyprune.diffusion.config.run_config import DataConfig, StepAdaptiveConfig
from proxyprune.diffusion.data.image_data import load_data
from proxyprune.diffusion.evaluation.metrics import frechet_distance
from proxyprune.diffusion.evaluation.trained_features import train_features
from proxyprune.diffusion.networks import image_size
from tests.shared.diffusion_runs import small_config


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Return the pipeline of a finished run."""
    folder = tmp_path_factory.mktemp("finished")
    StepAdaptiveTrainer(small_config(folder, compute__reference_steps=16), folder / "run").train()
    return folder / "run" / "pipeline"


def invoke(*arguments):
    """Run a command of `diffusion`."""
    return CliRunner().invoke(main, ["diffusion", *map(str, arguments)])


def test_several_steps_and_pipelines_are_compared(pipeline, tmp_path):
    """One row each, in a table and in JSON, and a curve for each pipeline; compute grows with the steps."""
    place, picture = pipeline, tmp_path / "frontier.png"
    found = invoke("evaluate", "-p", place, "--beside", place, "-n", 12, "--steps", "3,2", "--plot", picture, "--json")
    assert found.exit_code == 0, found.output
    entries = json.loads(found.stdout)["evaluations"]
    assert [entry["steps"] for entry in entries] == [2, 3, 2, 3]
    assert entries[0]["sampling_macs"] < entries[1]["sampling_macs"]
    assert entries[0]["frechet"] == entries[2]["frechet"]
    assert picture.stat().st_size > 1000
    table = invoke("evaluate", "-p", place, "-n", 12, "--steps", "2,3")
    assert table.exit_code == 0, table.output
    assert max(len(line) for line in table.output.splitlines() if "to" not in line[:20] and "•" not in line) <= 120


@pytest.mark.parametrize("text", ["8,x", "0", "3,,4", ""])
def test_other_numbers_of_steps_are_refused(pipeline, text):
    """With what is expected."""
    found = invoke("evaluate", "-p", pipeline, "--steps", text)
    assert found.exit_code == 2
    assert "whole numbers of at least 1" in found.output


def test_features_learned_on_images_order_them():
    """They are the same each time, find noise far from the images and other images of the set near, and say what they rest on."""
    data = load_data(DataConfig(source="digits"))
    features = train_features(data, progress=False)
    again = train_features(data, progress=False)
    assert (features.of(data.held_out) == again.of(data.held_out)).all()
    real = features.of(data.train[:1000])
    noise = torch.randint(0, 256, data.held_out.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    near, far = frechet_distance(real, features.of(data.held_out)), frechet_distance(real, features.of(noise))
    assert far > 10 * near
    assert "only with others by these features" in features.note
    colour = replace(data, train=data.train.expand(-1, 3, -1, -1), held_out=data.held_out.expand(-1, 3, -1, -1))
    assert train_features(colour, progress=False).of(colour.held_out).shape == (len(data.held_out), 64)


def test_a_folder_of_images_is_evaluated_out_of_the_box(pipeline, tmp_path):
    """Its features are trained, and the note says so."""
    found = invoke("evaluate", "-p", pipeline, "-n", 12, "--steps", 2, "--features", "trained", "--json")
    assert found.exit_code == 0, found.output
    figures = json.loads(found.stdout)
    assert figures["features"] == "turns of digits"
    assert any("trained on 1,500 images" in note for note in figures["notes"])


def test_a_share_is_held_out_unless_said_otherwise(tmp_path):
    """A tenth of any data, 297 of the digits."""
    from PIL import Image

    for index in range(30):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index:02d}.png")
    data = load_data(DataConfig(source=str(tmp_path), size=8))
    assert (len(data.train), len(data.held_out)) == (27, 3)
    assert len(load_data(DataConfig()).held_out) == 297
    assert len(load_data(DataConfig(source=str(tmp_path), size=8, held_out=10)).held_out) == 10


def test_the_size_of_images_comes_from_the_network(tmp_path):
    """From the settings of a diffusers network, or the example inputs of a model file."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"_class_name": "UNet2DModel", "sample_size": 24}))
    assert image_size(StepAdaptiveConfig(model=str(config))) == 24
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\ndef build_model():\n    return torch.nn.Conv2d(3, 3, 1)\n"
        "def example_inputs():\n    return {'sample': torch.zeros(1, 3, 40, 40), 'timestep': torch.zeros(1)}\n"
    )
    assert image_size(StepAdaptiveConfig(model=str(file))) == 40
    file.write_text("import torch\ndef build_model():\n    return torch.nn.Conv2d(3, 3, 1)\n")
    assert image_size(StepAdaptiveConfig(model=str(file))) is None
