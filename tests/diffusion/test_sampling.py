"""What a pipeline refuses before it draws, where its experts come from, and what saving keeps: with networks that were never trained."""

from __future__ import annotations

import itertools
import re

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusion_pipelines import COSINE, LINEAR, pipeline
from diffusion_runs import NETWORK

from proxyprune.cli import main
from proxyprune.diffusion import NoiseConfig, NoiseSchedule, StepAdaptivePipeline
from proxyprune.diffusion.process.noise_schedule import snr_of_steps, training_scheduler
from proxyprune.diffusion.sampling.scheduler_check import rehearse
from proxyprune.diffusion.sampling.schedulers import sampler
from proxyprune.errors import InputError, ModelFileError, StorageError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, at every step of some schedulers of diffusers


@pytest.mark.parametrize("noise", [COSINE, LINEAR, NoiseConfig(schedule="squaredcos_cap_v2", prediction="v_prediction")])
@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpm++", "euler", "heun", "unipc"])
@pytest.mark.parametrize("steps", [10, 100, 900])
def test_samplers_that_fit_pass_the_rehearsal(noise, name, steps):
    """From ten steps to nearly all, whatever the process; nothing of torch's global generator is used up."""
    trained = training_scheduler(noise)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    rehearse(sampler(name, trained), trained, steps)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("scheduler", "steps", "said"),
    [
        (lambda trained: sampler("dpm++", trained), 1000, "values that are not finite"),  # timesteps that repeat, 0 / 0
        (lambda trained: sampler("ddim", trained), 1, "times the noise"),  # one step, at the clean end
        (lambda trained: sampler("UnCLIPScheduler", trained), 10, "times the noise"),  # has the alphas, steps by one of them
        (lambda _: diffusers.FlowMatchEulerDiscreteScheduler(), 10, "another process"),
        (lambda _: diffusers.EDMEulerScheduler(), 10, "another process"),
        (lambda _: diffusers.DDIMScheduler(), 10, "another process"),  # other betas
        (lambda trained: diffusers.DDIMScheduler.from_config(trained.config, prediction_type="v_prediction"), 10, "predicts epsilon"),
    ],
)
def test_a_scheduler_that_cannot_end_at_images_is_refused(scheduler, steps, said):
    """However it came to the pipeline: they all ran to the end before, and drew black or random images."""
    found = pipeline()
    found.scheduler = scheduler(found._trained_with)
    with pytest.raises(InputError, match=said):
        found.generate(1, steps=steps, progress=False)


@pytest.mark.parametrize("spacing", ["use_karras_sigmas", "use_exponential_sigmas"])
@pytest.mark.parametrize("name", ["dpm++", "unipc", "DEISMultistepScheduler", "DPMSolverSinglestepScheduler"])
def test_other_spacings_work_where_timesteps_repeat(name, spacing):
    """At the noisy end of a cosine schedule several sigmas have one timestep, by which diffusers would look up where to begin."""
    found = pipeline().use(name)
    found.scheduler = type(found.scheduler).from_config(found.scheduler.config, **{spacing: True})
    assert len(set(found._sampler().route(20))) == 2
    assert found.generate(2, steps=20, progress=False).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("name", ["KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
@pytest.mark.parametrize("steps", [6, 10, 50])
def test_midpoint_calls_have_the_noise_of_the_midpoint(name, steps):
    """The SNR of each call is that of the timestep which the network is told."""
    scheduler = sampler(name, training_scheduler(LINEAR))
    scheduler.set_timesteps(steps)
    times = np.asarray(scheduler.timesteps.double())
    expected = np.interp(times, np.arange(1000), NoiseSchedule.of(LINEAR).snr_db)
    np.testing.assert_allclose(snr_of_steps(scheduler), expected, atol=1e-3)
    assert all(a < b for a, b in itertools.pairwise(snr_of_steps(scheduler)[::2]))


def test_numbers_that_are_none_are_no_images():
    """A network that gives NaN ends in an error, not in a black picture."""
    found = pipeline()
    with torch.no_grad():
        next(found.experts[1].parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="NaN or infinite"):
        found.generate(1, steps=4, progress=False)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0, 1], "one label or embedding for each of 3 images, found 2"),
        (torch.tensor(1), "found a single one"),
        ([0, 1, 10], "labels from 0 to 9, found 10"),
        ([0, 1, -1], "whole numbers from 0 up"),
        ([0.0, 1.0, 2.0], "whole numbers from 0 up"),
    ],
)
def test_labels_are_checked(labels, said):
    """Before anything is drawn, in a call and for many images."""
    found = pipeline(classes=10)
    for draw in (lambda: found.generate(3, steps=2, condition=labels, progress=False), lambda: found(3, 2, condition=labels)):
        with pytest.raises(InputError, match=said):
            draw()
    assert found.generate(3, steps=2, condition=[9, 0, 9], progress=False).shape[0] == 3


def test_labels_for_networks_without_are_refused():
    """They were left out without a word."""
    with pytest.raises(InputError, match="take no labels"):
        pipeline().generate(2, steps=2, condition=[0, 1], progress=False)


@pytest.mark.parametrize("numbers", [{"count": 0}, {"count": 2, "batch_size": 0}, {"count": 2, "steps": 0}])
def test_numbers_below_one_are_named(numbers):
    """Instead of what torch says about them."""
    with pytest.raises(InputError, match=r"at least 1, found 0"):
        pipeline().generate(**{"steps": 2, "progress": False} | numbers)


def test_a_loaded_pipeline_stands_on_its_own(tmp_path, monkeypatch):
    """From a relative path, with the folder gone and another working directory: experts in memory need neither."""
    pipeline().save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    lazy = StepAdaptivePipeline.from_pretrained("saved", resident=False)
    loaded = StepAdaptivePipeline.from_pretrained("saved")
    assert loaded.experts.in_memory == 2
    monkeypatch.chdir("/")
    expected = lazy.generate(2, steps=4, progress=False)
    (tmp_path / "saved").rename(tmp_path / "moved")
    assert torch.equal(loaded.generate(2, steps=4, progress=False), expected)


def test_an_expert_without_weights_is_told_when_the_pipeline_is_loaded(tmp_path):
    """Not in the middle of the first images."""
    pipeline().save_pretrained(tmp_path / "saved")
    (tmp_path / "saved/experts/1/model.safetensors").unlink()
    with pytest.raises(StorageError, match=r"experts.1.*no model\.safetensors"):
        StepAdaptivePipeline.from_pretrained(tmp_path / "saved", resident=False)


def test_what_was_changed_in_memory_is_saved(tmp_path):
    """Whole experts here, cut ones in `test_diffusion_training`; the unchanged one is copied."""
    pipeline().save_pretrained(tmp_path / "first")
    loaded = StepAdaptivePipeline.from_pretrained(tmp_path / "first")
    with torch.no_grad():
        loaded.experts[0].conv_out.bias.add_(0.5)
    loaded.save_pretrained(tmp_path / "second")
    again = StepAdaptivePipeline.from_pretrained(tmp_path / "second")
    assert torch.equal(again.generate(2, steps=4, progress=False), loaded.generate(2, steps=4, progress=False))
    first, second = (tmp_path / name / "experts/1/model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_saving_again_keeps_what_is_not_ours(tmp_path):
    """Notes and samples that a user put beside the pipeline."""
    found = pipeline()
    found.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved/README.md").write_text("mine")
    (tmp_path / "saved/experts/0/model.safetensors").write_bytes(b"damaged")
    found.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/README.md").read_text() == "mine"
    StepAdaptivePipeline.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("option", "path", "said"),
    [
        ("--grid", "picture", "its ending '' is not a picture format"),
        ("--grid", "picture.txt", r"its ending '\.txt' is not a picture format"),
        ("--out", "folder.npz", "it is a folder"),
        ("--out", "file/x.npz", "is not a writable folder"),
    ],
)
def test_places_are_checked_before_images_are_drawn(tmp_path, option, path, said):
    """The pipeline, which does not exist, is not even looked for."""
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(main, ["diffusion", "sample", "--pipeline", str(tmp_path / "none"), option, str(tmp_path / path)])
    assert done.exit_code == 2
    assert re.search(said, " ".join(done.output.split()))


def test_arrays_have_the_name_that_was_asked_for(tmp_path):
    """Numpy would add its own ending."""
    pipeline().save_pretrained(tmp_path / "saved")
    place = tmp_path / "samples.bytes"
    arguments = ["--pipeline", str(tmp_path / "saved"), "--steps", "2", "--count", "2", "--out", str(place)]
    done = CliRunner().invoke(main, ["diffusion", "sample", *arguments])
    assert done.exit_code == 0, done.output
    assert np.load(place)["images"].shape == (2, 8, 8, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["samples.bytes", "saved"]


@pytest.mark.parametrize("given", [[7], [7, 2]])
def test_a_class_on_the_command_line(tmp_path, given):
    """Images are those of the same labels in Python, in turn where several are given."""
    found = pipeline(classes=10)
    found.save_pretrained(tmp_path / "saved")
    options = [word for number in given for word in ("--class", str(number))]
    arguments = ["--pipeline", str(tmp_path / "saved"), "--steps", "2", "-n", "3", "--out", str(tmp_path / "x.npz"), *options]
    done = CliRunner().invoke(main, ["diffusion", "sample", *arguments])
    assert done.exit_code == 0, done.output
    labels = [given[index % len(given)] for index in range(3)]
    expected = found.generate(3, steps=2, condition=labels, progress=False).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["images"], expected)
    assert not torch.equal(expected, found.generate(3, steps=2, condition=[1, 1, 1], progress=False).permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("classes", "options", "said"),
    [
        (10, ["--class", "10"], "labels from 0 to 9, found 10"),
        (0, ["--class", "1"], "take no labels"),
        (10, ["--class", "1", "--condition", "x.npz"], "give one of them"),
        (10, ["--class", "-1"], "is not in the range"),
    ],
)
def test_a_class_that_cannot_be_drawn_is_named(tmp_path, classes, options, said):
    """A number that is none, a pipeline without classes, and two answers to one question."""
    pipeline(classes=classes).save_pretrained(tmp_path / "saved")
    (tmp_path / "x.npz").write_bytes(b"")
    options = [str(tmp_path / word) if word == "x.npz" else word for word in options]
    out = str(tmp_path / "y.npz")
    done = CliRunner().invoke(main, ["diffusion", "sample", "--pipeline", str(tmp_path / "saved"), "--steps", "2", "--out", out, *options])
    assert done.exit_code == 2
    assert said in " ".join(done.output.replace("│", " ").split())


def test_generators_and_devices():
    """Noise is drawn on a generator's own device; a move to where the experts are gives the same pipeline."""
    found = pipeline()
    assert found.to("cpu") is found
    generator = torch.Generator().manual_seed(1)
    assert len(found(2, 2, generator=generator).images) == 2
    assert set(found.components) == {"scheduler"}


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler", "DDIMScheduler"])
def test_an_assigned_scheduler_of_another_process_is_refused(name):
    """Diffusers' default betas are others than the cosine schedule's, and images come out a little worse, without an error."""
    found = pipeline()
    found.scheduler = getattr(diffusers, name)()
    with pytest.raises(InputError, match="another process"):
        found.generate(1, steps=20, progress=False)


def test_a_network_that_takes_other_arguments_is_refused(tmp_path):
    """Given as the factory of a saved pipeline whose network came from a model file."""

    class Other(diffusers.UNet2DModel):
        def forward(self, sample, level):
            return super().forward(sample, level)

    place = pipeline().save_pretrained(tmp_path / "saved") or tmp_path / "saved"
    record = {key: value for key, value in NETWORK.items() if key != "_class_name"}
    with pytest.raises(ModelFileError, match="so timestep is missing"):
        StepAdaptivePipeline.from_pretrained(place, factory=lambda: Other(**record))


def test_tensors_are_floats_in_the_unit_range():
    """output_type "pt" gives what "np" gives, channels first, as in diffusers."""
    found = pipeline()
    tensors, arrays = (found(2, 3, output_type=kind).images for kind in ("pt", "np"))
    assert tensors.dtype == torch.float32
    assert 0.0 <= float(tensors.min()) < float(tensors.max()) <= 1.0
    np.testing.assert_array_equal(tensors.permute(0, 2, 3, 1).numpy(), arrays)


def test_a_callback_sees_each_step_and_may_change_the_images():
    """It gets the pipeline, the number, the timestep and the images; what it returns goes on, and None changes nothing."""
    found = pipeline()
    seen: list[tuple[int, float]] = []

    def look(pipe, number, timestep, values):
        assert pipe is found
        assert values["latents"].shape == (2, 1, 8, 8)
        seen.append((number, float(timestep)))

    plain = found(2, 4, output_type="pt").images
    assert torch.equal(found(2, 4, output_type="pt", callback_on_step_end=look).images, plain)
    assert [number for number, _ in seen] == list(range(len(seen)))
    assert [time for _, time in seen] == sorted((time for _, time in seen), reverse=True)
    black = found(2, 4, output_type="pt", callback_on_step_end=lambda *given: {"latents": torch.full((2, 1, 8, 8), -1.0)}).images
    assert not black.any()


@pytest.mark.parametrize("device", ["cuda:99", "meta"])
def test_a_device_that_fails_leaves_the_pipeline_usable(device):
    """After an error the experts are where they were, and give the images that they gave."""
    found = pipeline()
    expected = found.generate(1, steps=3, progress=False)
    with pytest.raises(InputError, match=f"cannot move to.*{device}"):
        found.to(device)
    assert found.device == torch.device("cpu")
    assert torch.equal(found.generate(1, steps=3, progress=False), expected)


def test_printing_shows_intervals_experts_and_cost():
    """One row for each expert within 80 columns, with its share of the base, and the scheduler in the title."""
    found = pipeline(experts=3, classes=10)
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert "3 experts for images of 1 × 8 × 8" in " ".join(text.split())
    assert "DDIMScheduler" in text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("expert ")] == ["0", "1", "2"]
    assert f"above {found.blueprint.intervals.boundaries_db[0]:.1f}" in text
    assert f"below {found.blueprint.intervals.boundaries_db[1]:.1f}" in text
    assert "100.0%" in text
    assert "UNet2DModel" in text
    assert "10 classes" in text
    assert found._repr_html_().startswith("<p><strong>StepAdaptivePipeline")
