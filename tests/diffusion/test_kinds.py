"""Every kind of denoiser and of noise process through the same commands."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusion_kinds import CROSS, DIT, OWN, embedded_digits
from diffusion_runs import NETWORK, small_config

from proxyprune.cli import main
from proxyprune.diffusion import (
    NoiseConfig,
    NoiseSchedule,
    StepAdaptiveConfig,
    StepAdaptivePipeline,
    StepAdaptiveTrainer,
    evaluate,
    load_features,
)
from proxyprune.diffusion.data.image_data import load_data
from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.intervals import equal_db
from proxyprune.diffusion.process.noise_schedule import training_scheduler
from proxyprune.diffusion.process.objective import TARGETS
from proxyprune.diffusion.sampling.denoise import ExpertSampler, image_generators, initial_noise
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.sampling.schedulers import sampler
from proxyprune.errors import InputError, ModelFileError
from proxyprune.modelfile import load_model_file

KINDS = {
    "unconditional": (NETWORK, {}),
    "class": (NETWORK | {"num_class_embeds": 10}, {"data.labels": True, "pruning.mode": "both", "pruning.scorer": "random"}),
    "dit": (DIT, {"data.labels": True, "pruning.scorer": "magnitude"}),
    "embeddings": (CROSS, {"data.labels": True}),
    "model file": (OWN, {}),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_denoiser(tmp_path, kind):
    """Trained, saved, loaded, saved again, sampled and judged by the same commands, and cheaper than its base."""
    network, changes = KINDS[kind]
    file = tmp_path / ("own.py" if isinstance(network, str) else "own.json")
    file.write_text(network if isinstance(network, str) else json.dumps(network))
    if kind == "embeddings":
        embedded_digits(tmp_path / "digits.npz")
        changes = changes | {"data.source": str(tmp_path / "digits.npz"), "data.held_out": 40}
    small = {"model": str(file), "compute.reference_steps": 24, "run.batch_size": 8, "run.checkpoint_every": 100, "budgets.target": 0.85}
    config = tmp_path / "config.json"
    config.write_text(small_config(tmp_path).with_values(small | changes).to_text())
    command("train", "--config", str(config), "--out", str(tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "ledger.json").read_text())["share"] <= 1.0

    folder = tmp_path / "run" / "pipeline"
    own = ("--model", str(file)) if kind == "model file" else ()
    given = ("--condition", str(tmp_path / "digits.npz")) if kind == "embeddings" else ()
    drawn = command("sample", "-p", str(folder), "-n", "3", "--steps", "3", "--out", str(tmp_path / "found.npz"), *own, *given)
    assert drawn["relative_macs"] < 0.9
    factory = load_model_file(file).build_model if own else None
    if own:
        with pytest.raises(ModelFileError, match="--model"):
            StepAdaptivePipeline.from_pretrained(folder)
    loaded = StepAdaptivePipeline.from_pretrained(folder, factory=factory)
    loaded.save_pretrained(tmp_path / "copy")
    again = StepAdaptivePipeline.from_pretrained(tmp_path / "copy", factory=factory, resident=False)
    if given:
        with pytest.raises(InputError, match="--condition"):
            again.generate(3, steps=3, progress=False)
    with np.load(tmp_path / "digits.npz") if given else np.load(tmp_path / "found.npz") as arrays:
        condition = torch.from_numpy(arrays["embeddings"][:3]) if given else None
    with np.load(tmp_path / "found.npz") as arrays:
        found = arrays[arrays.files[0]]
    images = again.generate(3, steps=3, condition=condition, progress=False)
    assert sorted(images.flatten().tolist()) == sorted(found.flatten().tolist())
    judged = command("evaluate", "-p", str(folder), "-n", "8", "--steps", "2", "--features", "digits", *own)
    assert judged["images"] == 8
    assert len(judged["losses"]) == 2
    if kind == "class":
        assert labels_drawn(loaded) == {3}


def labels_drawn(pipeline: StepAdaptivePipeline) -> set[int]:
    """Which classes the network is asked for, when it is judged against images that are all threes: they are as frequent as there."""
    data = load_data(StepAdaptiveConfig.preset("digits-class").data)
    assert data.labels is not None
    threes = data.labels == 3
    seen: set[int] = set()
    embedding = pipeline.experts[0].get_submodule("class_embedding")
    embedding.register_forward_pre_hook(lambda _, inputs: seen.update(inputs[0].tolist()))
    evaluate(pipeline, replace(data, train=data.train[threes], labels=data.labels[threes]), load_features("digits"), images=8, steps=2)
    return seen


def command(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["diffusion", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_condition_that_is_missing_is_told_before_training(tmp_path):
    """A network that needs embeddings, with data that has none."""
    (tmp_path / "own.json").write_text(json.dumps(CROSS))
    with pytest.raises(ModelFileError, match=r"encoder_hidden_states.*data\.labels"):
        StepAdaptiveTrainer(small_config(tmp_path, model=str(tmp_path / "own.json")), tmp_path / "run")


def test_a_network_for_fewer_classes_than_the_data_have_is_told_before_training(tmp_path):
    """Ten digits, an embedding for five: the first batch with a nine would fail inside torch."""
    (tmp_path / "own.json").write_text(json.dumps(NETWORK | {"num_class_embeds": 5}))
    with pytest.raises(ModelFileError, match=r"class_labels.*the last of 10 classes.*out of range"):
        StepAdaptiveTrainer(small_config(tmp_path, model=str(tmp_path / "own.json"), **{"data.labels": True}), tmp_path / "run")


PROCESSES = {
    "x0": (NoiseConfig(schedule="linear", prediction="sample"), ("ddim", "dpm++", "unipc")),
    "v": (NoiseConfig(schedule="squaredcos_cap_v2", prediction="v_prediction"), ("ddim", "dpm++")),
    "zero terminal": (NoiseConfig(schedule="scaled_linear", prediction="v_prediction", zero_terminal_snr=True), ("ddim", "euler", "dpm++")),
    "zero terminal x0": (NoiseConfig(schedule="linear", prediction="sample", zero_terminal_snr=True), ("ddim",)),
    "flow": (NoiseConfig(schedule="flow", prediction="flow"), ("flow", "dpm++", "FlowMatchHeunDiscreteScheduler")),
    "shifted flow": (NoiseConfig(schedule="flow", prediction="flow", shift=3.0), ("flow", "dpm++")),
}
UNFIT = (
    "EulerAncestralDiscreteScheduler",
    "PNDMScheduler",
    "UnCLIPScheduler",
    "RePaintScheduler",
    "VQDiffusionScheduler",
    "IPNDMScheduler",
)
"""Schedulers of diffusers that do not sample a network that predicts the image: each fails in its own way, and at another place."""
SAMPLERS = [(process, name) for process, (_, names) in PROCESSES.items() for name in names]


class Knows(torch.nn.Module):
    """Knows the clean image, so that its prediction, of whatever kind, is exact."""

    def __init__(self, schedule: NoiseSchedule, image: torch.Tensor) -> None:
        super().__init__()
        self.schedule, self.image = schedule, image

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        times = timestep.double().numpy()
        if self.schedule.prediction == "flow":
            s = torch.from_numpy(times / 1000)[:, None, None, None]
            a = 1 - s
        else:
            a, s = (torch.from_numpy(np.interp(times, self.schedule.times, v))[:, None, None, None] for v in self.levels)
        noise = (sample - a * self.image) / s
        return TARGETS[self.schedule.prediction](self.image, noise, a, s).to(sample.dtype)

    @property
    def levels(self) -> tuple[Any, Any]:
        return self.schedule.signal, self.schedule.noise


@pytest.mark.parametrize(("process", "name"), SAMPLERS)
def test_every_prediction_samples(process, name):
    """With networks that know the clean image, samplers of every kind of process end at it."""
    config = PROCESSES[process][0]
    schedule = NoiseSchedule.of(config)
    image = torch.linspace(-0.9, 0.9, 16).view(1, 1, 4, 4)
    experts = Experts.of([Knows(schedule, image) for _ in range(3)], [1, 1, 1])
    source = ExpertSampler(experts, equal_db(schedule, 3), Calling("sample", "timestep", None), sampler(name, training_scheduler(config)))
    generators = image_generators(0, 0, 2)
    found = source.denoise(initial_noise(generators, (1, 4, 4), torch.device("cpu")), 30, None, generators)
    assert (found - image).abs().max() < 0.05
    assert set(source.route(30)) == {0, 1, 2}


@pytest.mark.parametrize("process", ["x0", "zero terminal", "shifted flow"])
def test_every_process_trains_and_samples(tmp_path, process):
    """From training to images, by the saved sampler and by the others that fit; min-SNR weights included."""
    config, names = PROCESSES[process]
    changes = {f"noise.{name}": value for name, value in vars(config).items()}
    small = {"compute.reference_steps": 30, "run.batch_size": 8, "run.checkpoint_every": 100, "experts.min_snr_gamma": 5.0}
    pipeline = StepAdaptiveTrainer(small_config(tmp_path).with_values(changes | small), tmp_path / "run").train()
    loaded = StepAdaptivePipeline.from_pretrained(tmp_path / "run" / "pipeline")
    images = pipeline.generate(2, steps=4, progress=False)
    assert torch.equal(loaded.generate(2, steps=4, progress=False), images)
    for name in names:
        drawn = pipeline.use(name).generate(2, steps=4, progress=False)
        assert drawn.shape == (2, 1, 8, 8)
        assert pipeline.relative_macs(20) < 1.0


@pytest.mark.parametrize("name", UNFIT)
def test_a_scheduler_that_does_not_fit_is_named(name):
    """What diffusers raises in the middle of sampling, or when the scheduler is made, comes out as one sentence with what fits."""
    config = PROCESSES["x0"][0]
    knows = Knows(NoiseSchedule.of(config), torch.zeros(1, 4, 4))
    generators = image_generators(0, 0, 2)
    with pytest.raises(InputError, match=rf"{name}.*ddim, ddpm and dpm\+\+ fit"):
        ExpertSampler(
            Experts.of([knows, knows], (1, 1)),
            equal_db(NoiseSchedule.of(config), 2),
            Calling.of(knows, conditional=False),
            sampler(name, training_scheduler(config)),
        ).denoise(initial_noise(generators, (1, 4, 4), torch.device("cpu")), 8, None, generators)
