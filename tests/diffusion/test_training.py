"""Training, resuming, cutting, saving and sampling: real runs of small networks."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusion_runs import launch, logged, losses, small_config, start, weights

from proxyprune.cli import main
from proxyprune.diffusion import (
    Intervals,
    Ledger,
    NoiseConfig,
    NoiseSchedule,
    StepAdaptiveConfig,
    StepAdaptivePipeline,
    StepAdaptiveTrainer,
)
from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.intervals import equal_db
from proxyprune.diffusion.process.noise_schedule import training_scheduler
from proxyprune.diffusion.process.objective import Objective, Process
from proxyprune.diffusion.sampling.denoise import ExpertSampler, image_generators, initial_noise
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.sampling.schedulers import sampler
from proxyprune.diffusion.stages.layout import decide
from proxyprune.diffusion.stages.trials import trial_macs
from proxyprune.diffusion.training.batches import fixed_batches
from proxyprune.diffusion.training.checkpoint import Checkpoint
from proxyprune.diffusion.training.ledger import split_allowance
from proxyprune.diffusion.training.loop import Loop, learning_rate
from proxyprune.diffusion.training.state import Phase, Training
from proxyprune.errors import ComputeError, DivergedError, InputError, StorageError, TargetError, TrainingError
from proxyprune.reporting import read_result, render


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a finished run with a teacher and two cuts, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    config = small_config(folder, pruning__rounds=2, experts__teacher="base", run__sample_every=8, compute__reference_steps=160)
    trainer = StepAdaptiveTrainer(config, folder / "run")
    return trainer, trainer.train(), folder / "run"


def test_run_ends_within_its_compute(finished):
    """Base, teacher, scoring, grids and training together cost at most what one full-size model would, and nearly as much."""
    trainer, _, run = finished
    ledger = trainer.ledger()
    assert 0.9 < ledger.share <= 1.0
    assert {"base training", "base samples", "expert 1 scoring", "expert 1 teacher", "expert 1 training"} <= ledger.by_stage().keys()
    assert json.loads((run / "ledger.json").read_text())["spent_macs"] == ledger.spent_macs
    for stage in ("base", "expert-0", "expert-1"):
        assert list((run / stage / "samples").glob("*.png")), stage


def test_ledger_entries_are_what_was_computed(finished):
    """Training entries are 3 * MACs * images of the steps that were logged, network by network."""
    trainer, _, run = finished
    (entry,) = [e for e in trainer.ledger().entries if e.stage == "base" and e.what == "training"]
    assert entry.macs == 3 * trainer.setup.base_macs * 16 * len(losses(run, "base"))
    expert = [e for e in trainer.ledger().entries if e.interval == 1 and e.what == "training"]
    assert sum(e.images for e in expert) == 16 * len(losses(run, "expert-1"))


def test_without_recovery_a_smaller_expert_trains_as_long_as_a_whole_one(tmp_path):
    """Two cuts: its steps are those that the whole network could take after the scoring, however much the cuts save."""
    config = small_config(
        tmp_path, pruning__rounds=2, compute__saved_to_recovery=False, compute__reference_steps=80, compute__between_share=0.9
    )
    trainer = StepAdaptiveTrainer(config, tmp_path / "run")
    trainer.train()
    layout = trainer.layout()
    for index in range(2):
        record = json.loads((tmp_path / "run" / f"expert-{index}" / "result.json").read_text())
        scoring = sum(e.macs for e in trainer.ledger().entries if e.interval == index and e.what == "scoring")
        whole = (split_allowance(trainer.expert_macs(layout), (1.0, 1.0))[index] - scoring) // (16 * 3 * trainer.setup.base_macs)
        assert whole - 1 <= record["steps"] <= whole  # one step may be lost at the end of a phase
    assert trainer.ledger().share < 0.97


def test_sampling_cost_is_within_the_target(finished):
    """The mean MACs over the sampler's steps are at most the target, and within 2 % of it."""
    trainer, pipeline, _ = finished
    assert trainer.config.budgets.target - 0.02 < pipeline.relative_macs(20) <= trainer.config.budgets.target
    assert pipeline.blueprint.macs[0] == trainer.setup.base_macs
    assert pipeline.blueprint.macs[1] < trainer.setup.base_macs


def test_pipeline_survives_the_disk(finished, tmp_path):
    """Loaded pipelines give the same images bit for bit, resident or one expert at a time; so does a copy saved elsewhere."""
    _, pipeline, run = finished
    images = pipeline.generate(6, steps=6, progress=False)
    one = StepAdaptivePipeline.from_pretrained(run / "pipeline", resident=False)
    assert torch.equal(one.generate(6, steps=6, progress=False), images)
    assert one.experts.in_memory == 1
    one.save_pretrained(tmp_path / "copy")
    one.save_pretrained(tmp_path / "copy")  # over an earlier one
    copied = StepAdaptivePipeline.from_pretrained(tmp_path / "copy")
    assert torch.equal(copied.generate(6, steps=6, progress=False), images)
    with pytest.raises(StorageError, match="something else"):
        one.save_pretrained(run)


def test_images_depend_on_seed_and_place_only(finished):
    """Another batch size gives the same images; another seed does not; the call and `generate` agree."""
    _, pipeline, _ = finished
    images = pipeline.generate(7, steps=5, batch_size=7, seed=3, progress=False)
    parts = pipeline.generate(7, steps=5, batch_size=3, seed=3, progress=False)
    assert (images.int() - parts.int()).abs().max() <= 1
    floats = pipeline(batch_size=7, num_inference_steps=5, seed=3, output_type="pt").images
    assert torch.equal((255.0 * floats).round().to(torch.uint8), images)
    assert not torch.equal(pipeline.generate(7, steps=5, seed=4, progress=False), images)


class Oracle(torch.nn.Module):
    """Knows the clean image, so its prediction of the noise is exact at every timestep, whole or not."""

    def __init__(self, schedule, image):
        super().__init__()
        self.signal, self.noise = torch.from_numpy(schedule.signal), torch.from_numpy(schedule.noise)
        self.image = image

    def forward(self, sample, timestep):
        low = timestep.double().floor().long().clamp(0, 999)
        high, part = (low + 1).clamp(max=999), (timestep.double() - low)[:, None, None, None]
        ratio = [(self.noise / self.signal)[t].log()[:, None, None, None] for t in (low, high)]
        sigma = torch.lerp(*ratio, part).exp()
        signal = 1 / (1 + sigma**2).sqrt()
        return ((sample - signal * self.image) / (sigma * signal)).to(sample.dtype)


NAMES = ["ddim", "ddpm", "dpm++", "euler", "heun", "unipc", "EulerAncestralDiscreteScheduler", "PNDMScheduler", "LMSDiscreteScheduler"]


@pytest.mark.parametrize("name", NAMES)
def test_any_scheduler_samples(name):
    """With networks that know the clean image, every scheduler of the process ends at that image."""
    config = NoiseConfig(schedule="linear")
    schedule = NoiseSchedule.of(config)
    image = torch.linspace(-0.9, 0.9, 16).view(1, 1, 4, 4)
    experts = Experts.of([Oracle(schedule, image) for _ in range(3)], [1, 1, 1])
    source = ExpertSampler(experts, equal_db(schedule, 3), Calling("sample", "timestep", None), sampler(name, training_scheduler(config)))
    generators = image_generators(0, 0, 2)
    found = source.denoise(initial_noise(generators, (1, 4, 4), torch.device("cpu")), 40, None, generators)
    assert (found - image).abs().max() < 0.05
    assert set(source.route(40)) == {0, 1, 2}


class Rough(torch.nn.Module):
    """Predicts the noise exactly for pixels that are 1 with a chance of a tenth and -1 otherwise, apart from an error of 0.05."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        super().__init__()
        self.signal, self.noise = torch.from_numpy(schedule.signal), torch.from_numpy(schedule.noise)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """Noise from noisy pixels [pixels, 1, 1, 1]."""
        signal, noise = (values[timestep.long()][:, None, None, None] for values in (self.signal, self.noise))
        clean = 2 * torch.sigmoid(2 * signal * sample / noise**2 + math.log(0.1 / 0.9)) - 1
        error = torch.randn(sample.shape, generator=self.generator)
        return ((sample - signal * clean) / noise + 0.05 * error).to(sample.dtype)


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_clipping_does_not_brighten_dark_images(name):
    """Errors of the noise below the range are clipped; a tenth of the pixels is bright all the same (DDIM's default: 0.14)."""
    schedule = NoiseSchedule.of(NoiseConfig(schedule="linear"))
    chosen = sampler(name, training_scheduler(NoiseConfig(schedule="linear")))
    source = ExpertSampler(Experts.of([Rough(schedule)], [1]), Intervals((), "none"), Calling("sample", "timestep", None), chosen)
    generators = image_generators(0, 0, 4000)
    found = source.denoise(initial_noise(generators, (1, 1, 1), torch.device("cpu")), 50, None, generators)
    assert float((found > 0).float().mean()) == pytest.approx(0.1, abs=0.015)


def test_finished_stages_are_not_repeated(finished):
    """Training again returns the same pipeline without a step."""
    trainer, pipeline, run = finished
    before = (run / "base" / "checkpoint.safetensors").stat().st_mtime_ns
    again = StepAdaptiveTrainer(trainer.config, run).train()
    assert (run / "base" / "checkpoint.safetensors").stat().st_mtime_ns == before
    assert torch.equal(again.generate(2, steps=4, progress=False), pipeline.generate(2, steps=4, progress=False))


def test_a_pipeline_that_was_saved_with_another_sampler_keeps_its_process(finished, tmp_path):
    """What the networks were trained on is saved beside the sampler, so that a third sampler is made from that."""
    _, pipeline, _ = finished
    before = pipeline.scheduler
    pipeline.use("dpm++").save_pretrained(tmp_path / "saved")
    loaded = StepAdaptivePipeline.from_pretrained(tmp_path / "saved")
    assert type(loaded.scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert dict(loaded.use("ddim").scheduler.config) == dict(pipeline.use("ddim").scheduler.config)
    pipeline.scheduler = before


def test_a_cut_expert_that_was_changed_in_memory_is_saved(finished, tmp_path):
    """With the weights that it has now, beside its plan and under a manifest that fits them; the caller's folder stays as it was."""
    _, pipeline, run = finished
    expected = pipeline.generate(2, steps=6, progress=False)
    loaded = StepAdaptivePipeline.from_pretrained(run / "pipeline")
    with torch.no_grad():
        loaded.experts[1].conv_out.bias.add_(0.5)
    loaded.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved/experts/1/manifest.json").is_file()
    again = StepAdaptivePipeline.from_pretrained(tmp_path / "saved").generate(2, steps=6, progress=False)
    assert torch.equal(again, loaded.generate(2, steps=6, progress=False))
    assert not torch.equal(again, expected)
    assert torch.equal(StepAdaptivePipeline.from_pretrained(run / "pipeline").generate(2, steps=6, progress=False), expected)


def test_warmup_never_exceeds_its_peak():
    """However short the warmup is."""
    stage = dataclasses.replace(StepAdaptiveConfig().base, warmup=1e-4)
    assert max(learning_rate(stage, step / 800000) for step in range(200)) <= stage.learning_rate


def test_an_unreachable_target_is_told_before_the_base_is_trained(tmp_path):
    """Nothing is written, so the corrected setting can use the same folder."""
    with pytest.raises(TargetError, match=r"expert would be 0\.4% of the base.*Raise budgets\.target"):
        StepAdaptiveTrainer(small_config(tmp_path, intervals__count=4, budgets__method="formula", budgets__target=0.01), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_process_that_keeps_the_image_is_refused(tmp_path):
    """A hundred timesteps of linear betas made for a thousand end with more than half of the image."""
    with pytest.raises(InputError, match="of the image is left"):
        StepAdaptiveTrainer(small_config(tmp_path, noise__schedule="linear", noise__timesteps=100), tmp_path / "run")


def test_dropout_follows_from_the_seed(tmp_path):
    """The state of torch's global generator, which other code in the process moves on, changes no weight."""
    config = small_config(tmp_path, compute__reference_steps=20)
    network = json.loads(Path(config.model).read_text(encoding="utf-8")) | {"dropout": 0.2}
    (tmp_path / "dropout.json").write_text(json.dumps(network), encoding="utf-8")
    config = config.with_values({"model": str(tmp_path / "dropout.json")})
    found = []
    for number in (1, 2):
        torch.manual_seed(number)
        found.append(StepAdaptiveTrainer(config, tmp_path / f"run-{number}").train_base())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_other_settings_are_refused(finished):
    """A folder of another configuration is refused, naming what differs; how often to log may differ."""
    trainer, _, run = finished
    with pytest.raises(StorageError, match=r"budgets\.target"):
        StepAdaptiveTrainer(trainer.config.with_values({"budgets.target": 0.9}), run)
    StepAdaptiveTrainer(trainer.config.with_values({"run.log_every": 7}), run)


def test_resuming_is_bit_identical(finished, tmp_path):
    """SIGKILL at several moments, from the first steps to the experts: the resumed run's weights equal those of one that ran through."""
    trainer, _, run = finished
    out = tmp_path / "run"
    moments = (("base", 9), ("expert-1", 2))
    for stage, step in moments:
        with start(trainer.config, out) as process:
            logged(out, stage, step, process)
            process.send_signal(signal.SIGKILL)
        assert process.returncode in (-signal.SIGKILL, 0)  # 0 if a busy machine let it end first
    StepAdaptiveTrainer(trainer.config, out).train()
    found, expected = weights(out), weights(run)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    for stage in ("base", "expert-0", "expert-1"):
        assert losses(out, stage) == losses(run, stage)


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    """Two processes that torchrun starts, on gloo, log the losses of one with the same global batch, within 1e-5."""
    config = small_config(tmp_path)
    StepAdaptiveTrainer(config, tmp_path / "one").train()
    process = launch(config, tmp_path / "two", processes=2)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    for stage in ("base", "expert-0", "expert-1"):
        assert losses(tmp_path / "two", stage) == pytest.approx(losses(tmp_path / "one", stage), rel=1e-5)


def test_intervals_can_be_trained_in_jobs_of_their_own(finished, tmp_path):
    """Experts trained one a job, in any order, and merged equal those of one job; merging too early says what is missing."""
    trainer, _, run = finished
    out = tmp_path / "fan"
    StepAdaptiveTrainer(trainer.config, out, base=run).train_expert(1)
    job = StepAdaptiveTrainer(trainer.config, out)
    with pytest.raises(TrainingError, match="expert 0"):
        job.assemble()
    job.train_expert(0)
    job.assemble()
    assert all(torch.equal(weights(out)[name], tensor) for name, tensor in weights(run).items())
    (out / "expert-0" / "network" / "model.safetensors").unlink()
    with pytest.raises(StorageError, match=r"expert-0.*holds no expert"):
        job.assemble()


def test_merging_in_a_new_folder_trains_nothing(tmp_path):
    """It says what is missing at once."""
    with pytest.raises(TrainingError, match="expert 0, 1"):
        StepAdaptiveTrainer(small_config(tmp_path), tmp_path / "run").assemble()
    assert not (tmp_path / "run" / "base").exists()


def test_another_run_can_use_the_base(tmp_path):
    """A base is taken over with its cost; one that was trained otherwise is refused."""
    config = small_config(tmp_path, compute__reference_steps=24)
    StepAdaptiveTrainer(config, tmp_path / "first").train_base()
    second = StepAdaptiveTrainer(config.with_values({"budgets.method": "full"}), tmp_path / "second", base=tmp_path / "first")
    pipeline = second.train()
    assert pipeline.relative_macs(10) == 1.0
    assert second.ledger().by_stage()["base training"] > 0
    other = config.with_values({"base.learning_rate": 1e-4})
    short = config.with_values({"compute.reference_steps": 8})
    for wrong, error in ((other, InputError), (short, ComputeError)):
        with pytest.raises(error, match="base"):
            StepAdaptiveTrainer(wrong, tmp_path / "third", base=tmp_path / "first")
    assert not (tmp_path / "third" / "config.json").exists()  # the corrected settings can use the folder


def test_budgets_are_met_for_the_sampler_that_is_named(tmp_path):
    """Its steps stand elsewhere than DDIM's, and the pipeline begins with it."""
    config = small_config(tmp_path, budgets__sampler="dpm++", budgets__sampler_steps=9, budgets__target=0.7, compute__reference_steps=24)
    trainer = StepAdaptiveTrainer(config, tmp_path / "run")
    pipeline = trainer.train()
    assert type(pipeline.scheduler).__name__ == "DPMSolverMultistepScheduler"
    other = StepAdaptiveTrainer(config.with_values({"budgets.sampler": None}), tmp_path / "other").layout()
    assert trainer.layout().budgets.steps != other.budgets.steps
    assert 0.65 < pipeline.relative_macs(9) <= 0.7


def test_measured_intervals_and_budgets(tmp_path):
    """Both are decided on the base, are in the ledger, and meet the target; a teacher that is the full expert is remembered."""
    config = small_config(
        tmp_path,
        compute__reference_steps=200,
        compute__whole_share=0.3,
        experts__teacher="expert",
        intervals__method="measured",
        intervals__images=8,
        budgets__method="measured",
        budgets__sizes=[0.6],
        budgets__trial_steps=2,
        budgets__trial_images=32,
    )
    trainer = StepAdaptiveTrainer(config, tmp_path / "run")
    decided = decide(trainer.setup, trainer.train_base(), trainer.setup.limit_macs - trainer.ledger().spent_macs)
    pipeline = trainer.train()
    layout = trainer.layout()
    assert layout.measured == decided.measured
    assert layout.budgets == decided.budgets
    assert [[size.fraction for size in tried] for tried in layout.measured.sizes] == [[0.6], [0.6]]
    assert layout.measured.lengths == (1, 2)
    left = 200 * (1 - config.compute.base_share) / 2
    assert all(0.7 * left < steps < left for steps in layout.measured.expert_steps)
    measuring = sum(entry.macs for entry in layout.ledger.entries if entry.stage == "budgets")
    assert 0.6 * trial_macs(trainer.setup) < measuring <= trial_macs(trainer.setup)
    assert layout.budgets.mean <= 0.8
    assert pipeline.relative_macs(20) <= 0.8
    assert {"intervals measuring", "budgets 0 training", "budgets 1 scoring"} <= trainer.ledger().by_stage().keys()
    assert trainer.ledger().share <= 1.0


def test_measured_budgets_follow_the_experts_shares(tmp_path):
    """An expert with three quarters of the compute trains three times as long, where cuts do not get their savings back, too."""
    changes = {"compute.expert_weights": [3.0, 1.0], "compute.saved_to_recovery": False, "compute.reference_steps": 100}
    config = small_config(tmp_path, budgets__method="measured", budgets__sizes=[0.6], budgets__trial_steps=3, budgets__trial_images=8)
    trainer = StepAdaptiveTrainer(config.with_values(changes), tmp_path / "run")
    trainer.train_base()
    layout = trainer.layout()
    assert layout.measured.expert_steps[0] == pytest.approx(3 * layout.measured.expert_steps[1], rel=1e-3)
    trained = [entry.images for entry in layout.ledger.entries if (entry.stage, entry.what) == ("budgets", "training")]
    assert trained == [3 * config.run.batch_size] * 4


def test_one_interval_measures_nothing(tmp_path):
    """There is nothing to share out: its expert gets the target."""
    config = small_config(tmp_path, budgets__method="measured", intervals__count=1, budgets__target=0.77)
    trainer = StepAdaptiveTrainer(config, tmp_path / "run")
    trainer.train_base()
    assert trainer.layout().budgets.fractions == (0.77,)
    assert trainer.layout().measured is None


def test_sizes_that_no_trial_could_reach_are_named(tmp_path):
    """Together with why, where the target is out of reach for that reason."""
    config = small_config(tmp_path, budgets__method="measured", budgets__sizes=[0.7, 0.05], budgets__trial_steps=2, budgets__trial_images=8)
    trainer = StepAdaptiveTrainer(config.with_values({"budgets.target": 0.8, "compute.reference_steps": 120}), tmp_path / "run")
    trainer.train_base()
    notes = [note for note in trainer.layout().budgets.notes if "size 0.05 cannot be reached" in note]
    assert len(notes) == 2
    assert [[size.fraction for size in tried] for tried in trainer.layout().measured.sizes] == [[0.7], [0.7]]
    hopeless = trainer.config.with_values({"budgets.sizes": [0.05]})
    with pytest.raises(TargetError, match=r"the budget is .* Interval 1: size 0\.05 cannot be reached"):
        StepAdaptiveTrainer(hopeless, tmp_path / "hopeless", base=tmp_path / "run").layout()


def test_a_layout_of_an_earlier_version_is_read(tmp_path):
    """Its trials had another form, and a run that has its budgets needs no trials."""
    trainer = StepAdaptiveTrainer(small_config(tmp_path), tmp_path / "run")
    trainer.train_base()
    layout = trainer.layout()
    place = tmp_path / "run" / "layout.json"
    record = json.loads(place.read_text())
    del record["measured"]
    place.write_text(json.dumps(record | {"schema": 1, "trials": [[{"fraction": 1.0, "macs": 3, "damage": 0.0}]] * 2}))
    assert trainer.layout().budgets == layout.budgets


def test_experts_weigh_errors_against_the_base(tmp_path):
    """The base's losses are measured once, kept in the layout and in the ledger, and the experts' batches carry their inverse."""
    config = small_config(tmp_path, compute__reference_steps=60, experts__weighting="relative", budgets__method="measured")
    config = config.with_values({"budgets.sizes": [0.6], "budgets.trial_steps": 3, "budgets.trial_images": 16})
    trainer = StepAdaptiveTrainer(config, tmp_path / "run")
    trainer.train()
    layout = StepAdaptiveTrainer(config, tmp_path / "run").layout()
    times, losses = zip(*layout.base_losses, strict=True)
    assert list(times) == sorted(times)
    assert len(times) == 16
    assert min(losses) > 0.0
    stages = trainer.ledger().by_stage()
    assert stages["weights measuring"] == 16 * 2 * trainer.setup.base_macs
    member = layout.members[0]
    batch = trainer.setup.draws("expert-0", config.experts, member.first, member.last, layout.base_losses).batch(0)
    assert batch.weight.std() > 0.0
    assert trainer.setup.draws("base", config.base, 0, 999, layout.base_losses).batch(0).weight.eq(1.0).all()
    sizes = [entry for entry in layout.ledger.entries if (entry.stage, entry.interval, entry.what) == ("budgets", 0, "training")]
    assert sizes[1].images > sizes[0].images  # the smaller network trains for as much compute, so on more images
    assert sizes[1].macs == pytest.approx(sizes[0].macs, rel=0.2)


def test_plan_and_evaluate_commands(finished, tmp_path):
    """`plan` shows intervals and budgets before anything trains; `evaluate` prints figures with what they depend on."""
    _, _, run = finished
    picture = tmp_path / "plan.svg"
    planned = CliRunner().invoke(main, ["diffusion", "plan", "--config", str(run / "config.json"), "--plot", str(picture)])
    assert planned.exit_code == 0, planned.output
    assert "saved" in planned.output
    assert picture.is_file()
    judged = CliRunner().invoke(main, ["diffusion", "evaluate", "-p", str(run / "pipeline"), "-n", "20", "--steps", "4", "--json"])
    assert judged.exit_code == 0, judged.output
    figures = json.loads(judged.stdout)
    assert figures["features"] == "proxyprune-digits-64"
    assert figures["images"] == 20
    assert figures["frechet"]["low"] <= figures["frechet"]["value"] <= figures["frechet"]["high"]
    assert len(figures["losses"]) == 2
    assert any("too large" in note for note in figures["notes"])  # 20 images for 64 features


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "--run"),
        ("train", "--stage", "merge", "--out"),
        ("train", "--stage", "layout", "--out"),
        ("train", "--interval", "0", "--out"),
    ],
)
def test_a_mistyped_run_is_refused(tmp_path, arguments):
    """What goes on from a run does not begin another one, with the default preset, under a mistyped name."""
    found = CliRunner().invoke(main, ["diffusion", *arguments, str(tmp_path / "typo")])
    assert found.exit_code == 2
    assert "no config.json" in found.output
    assert not (tmp_path / "typo").exists()


def test_an_interval_that_is_not_there_costs_nothing(tmp_path):
    """It is refused before the base is trained."""
    with pytest.raises(InputError, match="2 intervals, 0 to 1; found 9"):
        StepAdaptiveTrainer(small_config(tmp_path), tmp_path / "run").train_expert(9)
    assert not (tmp_path / "run" / "base").exists()


@pytest.mark.parametrize(("seconds", "lines"), [(0.0, 3), (1000.0, 0)])
def test_jobs_without_a_terminal_say_how_far_they_are(tmp_path, capsys, seconds, lines):
    """A line goes to stderr whenever so much time has passed."""
    config = small_config(tmp_path)
    trainer = StepAdaptiveTrainer(config, tmp_path / "run")
    draws, objective = trainer.setup.draws("base", config.base, 0, 999), Objective(trainer.setup.calling)
    training = Training.begin(trainer.setup.base_model(), config.base, Ledger())
    training.phase = Phase(0, 0, 3, (0.0, 1.0))
    stage = (trainer.paths.base, config.base, config.run, draws, objective, trainer.accelerator)
    Loop("base", *stage, seconds_between_lines=seconds).train(training)
    assert len(re.findall(r"base: \d of 3 .*loss", capsys.readouterr().err)) == lines


def test_evaluate_says_which_folder_is_meant(finished, tmp_path):
    """The run's folder in place of its pipeline, and a pipeline that was copied away from its run, are told what to give instead."""
    _, _, run = finished
    whole = CliRunner().invoke(main, ["diffusion", "evaluate", "-p", str(run)])
    assert whole.exit_code == 2
    assert f"Did you mean '{run / 'pipeline'}'?" in " ".join(whole.output.split())
    shutil.copytree(run / "pipeline", tmp_path / "away" / "pipeline")
    copied = CliRunner().invoke(main, ["diffusion", "evaluate", "-p", str(tmp_path / "away" / "pipeline")])
    assert copied.exit_code == 2
    assert "--run" in copied.output


def test_divergence_names_the_last_good_checkpoint(tmp_path):
    """A learning rate that explodes stops with the checkpoint's path, whose weights are finite."""
    config = small_config(tmp_path, base__learning_rate=1e12, base__warmup=0.0, base__clip=None, compute__reference_steps=60)
    config = config.with_values({"run.checkpoint_every": 1, "base.decay": "constant"})
    with pytest.raises(DivergedError, match=r"checkpoint\.safetensors"):
        StepAdaptiveTrainer(config, tmp_path / "run").train_base()
    found = Checkpoint.read(tmp_path / "run" / "base")
    assert found is not None
    assert found.record["step"] >= 1


def test_damaged_checkpoint_is_named(tmp_path):
    """A truncated checkpoint is an error that names the file, not a fresh start in silence."""
    config = small_config(tmp_path, compute__reference_steps=10)
    StepAdaptiveTrainer(config, tmp_path / "run").train_base()
    (tmp_path / "run" / "base" / "result.json").unlink()
    path = tmp_path / "run" / "base" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StorageError, match=r"checkpoint\.safetensors"):
        StepAdaptiveTrainer(config, tmp_path / "run").train_base()


def test_a_checkpoint_that_another_job_is_writing_is_left_alone(tmp_path):
    """What a kill left an hour ago goes; a file of this minute may be another job's, and taking it away would break that job's rename."""
    old, young = tmp_path / ".checkpoint.a.saving", tmp_path / ".checkpoint.b.saving"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    assert Checkpoint.read(tmp_path) is None
    assert not old.exists()
    assert young.exists()


def test_a_base_of_another_batch_size_is_not_taken_over(tmp_path):
    """It has seen other images a step, so it is not the base that this run would train."""
    StepAdaptiveTrainer(small_config(tmp_path, compute__reference_steps=20), tmp_path / "base").train_base()
    other = small_config(tmp_path, compute__reference_steps=20, run__batch_size=8)
    with pytest.raises(InputError, match=r"another run\.batch_size: 16"):
        StepAdaptiveTrainer(other, tmp_path / "run", base=tmp_path / "base").train_base()


def test_learning_rate_follows_progress():
    """It rises over the warmup, peaks there, and ends at the floor."""
    stage = dataclasses.replace(StepAdaptiveConfig().base, learning_rate=1.0, warmup=0.1, floor=0.02)
    assert learning_rate(stage, 0.05) == pytest.approx(0.5)
    assert learning_rate(stage, 0.1) == pytest.approx(1.0)
    assert learning_rate(stage, 1.0) == pytest.approx(0.02)
    assert learning_rate(dataclasses.replace(stage, decay="linear"), 0.55) == pytest.approx(0.02 + 0.98 * 0.5)
    rates = [learning_rate(stage, p / 100) for p in range(10, 101)]
    assert all(a >= b for a, b in itertools.pairwise(rates))
    assert not math.isnan(rates[0])


def test_losses_by_noise_level_are_left_behind(finished):
    """Bins cover every timestep once and cross no boundary, their SNR is exact, and the base's losses are those of measuring by hand."""
    trainer, pipeline, run = finished
    found = json.loads((run / "loss_by_snr.json").read_text())
    bins, schedule = found["bins"], trainer.setup.schedule
    assert [t for entry in bins for t in range(entry["first"], entry["last"] + 1)] == list(range(1000))
    owner = pipeline.blueprint.intervals.interval_of(schedule.snr_db)
    for entry in bins:
        assert {int(index) for index in owner[entry["first"] : entry["last"] + 1]} == {entry["interval"]}
        middle = (entry["first"] + entry["last"]) // 2
        assert entry["snr_db"] == [pytest.approx(schedule.snr_db[t]) for t in (entry["first"], middle, entry["last"])]
    assert found["macs"]["base"] == len(bins) * 8 * trainer.setup.base_macs
    assert 0 < found["macs"]["experts"] < found["macs"]["base"]
    assert not found["in_ledger"]
    last, setup = bins[-1], trainer.setup
    args = {"images": 8, "batch_size": 8, "seed": trainer.config.seed, "held_out": True, "device": setup.device}
    (batch,) = fixed_batches(setup.data, Process(schedule), last["first"], last["last"], **args)
    for model, name in ((setup.base_model(trainer.train_base()).eval(), "base"), (pipeline.experts[1], "expert")):
        with torch.no_grad():
            error = setup.calling.predict(model, batch.noisy, batch.times) - batch.target
        assert last[name] == pytest.approx(float(error.square().mean()), rel=1e-5)
    words = render(read_result(run))
    assert "Loss by noise level" in words
    assert "snr-chart" in words
