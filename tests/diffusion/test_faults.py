"""What goes wrong around a training run: too little compute, gradients that explode, files that change or break, jobs that meet."""

from __future__ import annotations

import gc
import json
import threading
import time
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusion_runs import NETWORK, losses, small_config, start
from PIL import Image

from proxyprune.cli import main
from proxyprune.diffusion import DataConfig, StepAdaptiveConfig, StepAdaptiveTrainer, load_features
from proxyprune.diffusion.data.image_data import load_data
from proxyprune.diffusion.process.objective import Objective
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.diffusion.stages.layout import choose_intervals
from proxyprune.diffusion.stages.trials import try_sizes
from proxyprune.diffusion.training.averaged_weights import AveragedWeights
from proxyprune.diffusion.training.checkpoint import Checkpoint
from proxyprune.diffusion.training.ledger import Ledger
from proxyprune.diffusion.training.stage_lock import claimed
from proxyprune.diffusion.training.state import Training
from proxyprune.diffusion.training.step import TrainingStep
from proxyprune.errors import ComputeError, DataError, DivergedError, InputError, MissingNeedError, StorageError, TrainingError

EXPLODES = """
import torch
from diffusers import UNet2DModel

class Spoiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * float("inf")

class Own(torch.nn.Module):
    '''The loss stays finite; at its fifth training step the gradient does not.'''

    def __init__(self):
        super().__init__()
        self.inner = UNet2DModel(**%s)
        self.calls = 0

    def forward(self, sample, timestep):
        found = self.inner(sample, timestep).sample
        self.calls += self.training
        return Spoiled.apply(found) if self.calls == 5 and self.training else found

def build_model():
    return Own()
"""


def exploding(folder) -> str:
    """Return a model file whose gradient is infinite once."""
    record = {key: value for key, value in NETWORK.items() if key != "_class_name"}
    (folder / "own.py").write_text(EXPLODES % record)
    return str(folder / "own.py")


@pytest.mark.parametrize("clip", [1.0, None])
def test_an_infinite_gradient_reaches_no_weight(tmp_path, clip):
    """The run stops before the step, and the checkpoint that it names holds numbers."""
    config = small_config(tmp_path, base__clip=clip, run__checkpoint_every=2).with_values({"model": exploding(tmp_path)})
    with pytest.raises(DivergedError, match=r"gradient has the norm (inf|nan).*written right before"):
        StepAdaptiveTrainer(config, tmp_path / "run").train_base()
    found = Checkpoint.read(tmp_path / "run" / "base")
    assert found.record["step"] == 4
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.model.values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compute.reference_steps": 1}, "less than one step of the base"),
        ({"compute.reference_steps": 6}, "Expert 1 would not be trained for a single step"),
        ({"budgets.method": "measured", "budgets.trial_steps": 50}, "Measuring would cost"),
        ({"intervals.method": "measured", "intervals.images": 100}, "Measuring would cost"),
        ({"pruning.scorer": "ablation", "pruning.calibration_batches": 8}, "scoring channels takes"),
    ],
)
def test_compute_that_does_not_suffice_is_told_before_anything_is_spent(tmp_path, changes, said):
    """All of it follows from the settings."""
    with pytest.raises(ComputeError, match=said):
        StepAdaptiveTrainer(small_config(tmp_path).with_values(changes), tmp_path / "run")
    assert not (tmp_path / "run" / "base").exists()


def test_trials_take_little_unless_told_otherwise():
    """So that measured budgets work with every preset."""
    for name in ("digits", "digits-small", "fashion16"):
        config = StepAdaptiveConfig.preset(name).with_values({"budgets.method": "measured"})
        trials = config.intervals.count * (1 + len(config.budgets.sizes))
        assert config.trial_steps * trials <= 0.06 * config.compute.reference_steps
    long = StepAdaptiveConfig().with_values({"compute.reference_steps": 120_000})
    assert long.trial_steps * long.intervals.count * (1 + len(long.budgets.sizes)) == 0.02 * 120_000
    assert long.with_values({"compute.reference_steps": 6000}).trial_steps == 20
    assert long.with_values({"budgets.trial_steps": 7}).trial_steps == 7


def test_trials_repeat_with_dropout(tmp_path):
    """Whatever state torch's global generator is in."""
    network = tmp_path / "dropout.json"
    network.write_text(json.dumps(NETWORK | {"dropout": 0.3}))
    config = small_config(tmp_path, budgets__sizes=[0.6], budgets__trial_steps=2, budgets__trial_images=8)
    trainer = StepAdaptiveTrainer(config.with_values({"model": str(network)}), tmp_path / "run")
    weights, member = trainer.train_base(), trainer.layout().members[0]
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        trial = try_sizes(trainer.setup, weights, member)
        found.append((trial.sizes, trial.whole_loss))
    assert found[0] == found[1]


def test_trials_that_diverge_are_told(tmp_path):
    """No damage can be read off them; the message says which size, what was seen, and what to do."""
    config = small_config(tmp_path, budgets__method="measured", budgets__sizes=[0.6], budgets__trial_steps=2, experts__learning_rate=1e18)
    with pytest.raises(TrainingError, match=r"Size 1\.0 was tried in interval 0.*learning_rate"):
        StepAdaptiveTrainer(
            config.with_values({"experts.clip": None, "budgets.trial_images": 8, "compute.reference_steps": 60}), tmp_path / "run"
        ).train()


def test_a_trial_stops_at_an_infinite_gradient(tmp_path):
    """At the step, which the message names with the size; not after the trial, whose losses would be no numbers."""
    config = small_config(tmp_path, budgets__sizes=[0.6], budgets__trial_steps=8, budgets__trial_images=8)
    setup = StepAdaptiveTrainer(config.with_values({"model": exploding(tmp_path)}), tmp_path / "run").setup
    member = choose_intervals(setup, None)[0].over(setup.schedule)[0]
    with pytest.raises(TrainingError, match=r"Size 1\.0 was tried in interval 0, and at step 5 of 8 .*gradient has the norm (inf|nan)"):
        try_sizes(setup, setup.base_model().state_dict(), member)


@pytest.mark.parametrize("clip", [1.0, None])
def test_a_step_with_an_infinite_gradient_changes_nothing(tmp_path, clip):
    """Neither weights nor averages, and the accelerator does not hold on to either afterwards."""
    config = small_config(tmp_path).with_values({"model": exploding(tmp_path)})
    setup = StepAdaptiveTrainer(config, tmp_path / "run").setup
    model = setup.base_model().train()
    training, draws = Training.begin(model, config.base, Ledger()), setup.draws("base", config.base, 0, 999)
    with TrainingStep.prepared(training, Objective(setup.calling), clip, setup.accelerator) as step:
        assert [step.take(draws.batch(number), 1e-3, seed=number).problem for number in range(4)] == [None] * 4
        before = [value.clone() for value in (*model.state_dict().values(), *training.ema.state.values())]
        assert "its gradient has the norm" in step.take(draws.batch(4), 1e-3, seed=4).problem
        after = (*model.state_dict().values(), *training.ema.state.values())
        assert all(map(torch.equal, after, before))
        assert step.take(draws.batch(5), 1e-3, seed=5).problem is None
        assert not any(map(torch.equal, training.ema.state.values(), before[len(before) // 2 :]))
    kept = weakref.ref(model)
    del model, training, step, before, after
    gc.collect()
    assert kept() is None


def archive(path, images: Any, **arrays: Any) -> str:
    """Return an npz of images."""
    np.savez(path, images=images, **arrays)
    return str(path)


def test_other_images_are_noticed(tmp_path):
    """Held-out images are chosen from all of them, so after adding some, a few would have been trained on."""
    pixels = np.random.default_rng(0).integers(0, 255, (60, 8, 8), np.uint8)
    changes = {"data.source": archive(tmp_path / "data.npz", pixels[:50]), "data.held_out": 8}
    config = small_config(tmp_path).with_values(changes)
    StepAdaptiveTrainer(config, tmp_path / "run").train_base()
    archive(tmp_path / "data.npz", pixels)
    with pytest.raises(StorageError, match=r"42 training and 8 held-out.*\(52 and 8\)"):
        StepAdaptiveTrainer(config, tmp_path / "run")
    with pytest.raises(InputError, match="trained on other images"):
        StepAdaptiveTrainer(config, tmp_path / "second", base=tmp_path / "run").train_base()


@pytest.fixture(scope="module")
def half_done(tmp_path_factory):
    """Return a run with a base and a layout."""
    folder = tmp_path_factory.mktemp("half")
    config = small_config(folder)
    trainer = StepAdaptiveTrainer(config, folder / "run")
    trainer.layout()
    return config, folder / "run"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("base/base.safetensors", b"", r"base\.safetensors cannot be read"),
        ("base/base.safetensors", None, r"base\.safetensors cannot be read"),
        ("base/result.json", b"{}", r"result\.json is damaged: it lacks ledger"),
        ("layout.json", b"{}", r"layout\.json is malformed"),
        ("expert-1/result.json", b"[]", r"result\.json is damaged"),
        ("images.json", b"{", r"images\.json cannot be read"),
    ],
)
def test_damaged_files_of_a_run_are_named(half_done, name, content, said):
    """With what to do about them, not with a traceback."""
    config, run = half_done
    path = run / name
    before = path.read_bytes() if path.is_file() else None
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
    try:
        with pytest.raises(StorageError, match=said):
            StepAdaptiveTrainer(config, run).train()
    finally:
        path.unlink(missing_ok=True) if before is None else path.write_bytes(before)


def test_a_model_file_that_was_changed_is_noticed(half_done):
    """Its network has another shape than the base was trained with."""
    config, run = half_done
    path = run.parent / "network.json"
    before = path.read_text()
    path.write_text(json.dumps(NETWORK | {"block_out_channels": [8, 24]}))
    try:
        with pytest.raises(StorageError, match=r"do not fit the network.*file changed"):
            StepAdaptiveTrainer(config, run).train_expert(1)
    finally:
        path.write_text(before)


def test_a_plan_of_a_run_with_other_settings_is_refused(half_done):
    """It showed the old plan, whatever was asked for."""
    config, run = half_done
    base = ["diffusion", "plan", "--run", str(run)]
    assert CliRunner().invoke(main, base).exit_code == 0
    done = CliRunner().invoke(main, [*base, "--target", "0.9"])
    assert done.exit_code != 0
    assert "budgets.target" in done.output
    assert config.budgets.target != 0.9
    done = CliRunner().invoke(main, ["diffusion", "plan", "--preset", "digits", "--run", str(run.with_name("mistyped"))])
    assert done.exit_code != 0
    assert "is not a run" in done.output


def test_a_second_job_waits(tmp_path):
    """It goes on when the first has let go."""
    order = []

    def second() -> None:
        with claimed(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with claimed(tmp_path):
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(timeout=600)
    assert order == ["first", "second"]


def test_averaged_weights_go_on_where_the_network_is():
    """A checkpoint is read into the memory of the CPU; here the other device is one without values."""
    model = torch.nn.Linear(2, 2, device="meta")
    averaged = AveragedWeights(model, 0.9)
    averaged.load({name: torch.zeros(value.shape) for name, value in model.state_dict().items()}, 3)
    averaged.update(model)
    assert all(value.is_meta for value in averaged.state.values())


def test_sixteen_bits_become_eight(tmp_path):
    """Pillow would cut them off at 255; 32 bits, whose range nobody knows, are refused."""
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    for number in range(3):
        Image.fromarray(ramp).save(tmp_path / f"{number}.png")
    found = load_data(DataConfig(str(tmp_path), size=8, held_out=1, channels=1))
    expected = np.rint(ramp / 257.0)
    assert np.abs(found.train[0, 0].numpy() - expected).max() <= 1
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "3.tiff")
    with pytest.raises(DataError, match=r"3\.tiff has 32 bits"):
        load_data(DataConfig(str(tmp_path), size=8, held_out=1, channels=1))


def test_the_middle_square_of_arrays(tmp_path):
    """Of images that are no squares, as of those in a folder."""
    pixels = np.zeros((4, 8, 16), np.uint8)
    pixels[:, :, 4:12] = 200
    found = load_data(DataConfig(archive(tmp_path / "wide.npz", pixels), size=8, held_out=1))
    assert found.shape == (1, 8, 8)
    assert bool((found.train == 200).all())


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.array([-1, 0, 1, 2]), "from 0 up"),
        (np.eye(4, dtype=np.int64), "whole numbers"),
        (np.array([0.0, 1.0, 2.0, 0.0]), r"embeddings \(finite numbers"),
        (np.full((4, 2), np.nan, np.float32), r"embeddings \(finite numbers"),
        (np.array(["a", "b", "c", "d"]), "must hold labels"),
    ],
)
def test_labels_of_arrays_are_checked(tmp_path, labels, said):
    """Before they reach a network as classes that it does not have, or as embeddings of one number."""
    place = archive(tmp_path / "data.npz", np.zeros((4, 8, 8), np.uint8), labels=labels)
    with pytest.raises(DataError, match=said):
        load_data(DataConfig(place, held_out=1, labels=True))


def test_labels_and_embeddings_at_once_are_refused(tmp_path):
    """One of them would go unused in silence."""
    arrays = {"labels": np.arange(4), "embeddings": np.ones((4, 2), np.float32)}
    place = archive(tmp_path / "data.npz", np.zeros((4, 8, 8), np.uint8), **arrays)
    with pytest.raises(DataError, match="'labels' and 'embeddings'"):
        load_data(DataConfig(place, held_out=1, labels=True))


def test_images_that_are_no_bytes_are_not_compared():
    """The same images in [-1, 1] came out 125 apart."""
    images = torch.zeros(4, 1, 8, 8)
    for wrong in (images, images.to(torch.uint8)[0], images.to(torch.uint8).permute(0, 2, 3, 1), images.numpy()):
        with pytest.raises(DataError, match="bytes"):
            load_features("digits").of(wrong)


UNUSED = """
import torch
from diffusers import UNet2DModel

class Own(torch.nn.Module):
    '''Has a layer that no prediction needs.'''

    def __init__(self):
        super().__init__()
        self.inner = UNet2DModel(**%s)
        self.spare = torch.nn.Linear(3, 3)

    def forward(self, sample, timestep):
        return self.inner(sample, timestep).sample

def build_model():
    return Own()
"""


def test_two_processes_train_a_network_with_a_part_that_is_not_used(tmp_path):
    """Torch would wait for the gradients of that part, and stop in the second step."""
    (tmp_path / "own.py").write_text(UNUSED % {key: value for key, value in NETWORK.items() if key != "_class_name"})
    changes = {"model": str(tmp_path / "own.py"), "pruning.options": {"unused": "zero"}}
    config = small_config(tmp_path, compute__reference_steps=20).with_values(changes)
    with start(config, tmp_path / "run", processes=2, extra=("--stage", "base")) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert len(losses(tmp_path / "run", "base")) == 12


DETACHED = """
import torch
from diffusers import UNet2DModel

class Own(torch.nn.Module):
    '''Has channels that the loss learns nothing about.'''

    def __init__(self):
        super().__init__()
        self.inner = UNet2DModel(**%s)
        self.aside = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 1, 1))

    def forward(self, sample, timestep):
        return self.inner(sample, timestep).sample + self.aside(sample).detach()

def build_model():
    return Own()
"""


def test_a_scorer_that_cannot_judge_the_network_says_so_before_a_base_is_trained(tmp_path):
    """Taylor has no gradient for some channels; with the option that its message names, the run begins."""
    (tmp_path / "own.py").write_text(DETACHED % {key: value for key, value in NETWORK.items() if key != "_class_name"})
    config = small_config(tmp_path, model=str(tmp_path / "own.py"), pruning__scorer="taylor")
    with pytest.raises(MissingNeedError, match=r"aside.*pruning\.options"):
        StepAdaptiveTrainer(config, tmp_path / "run")
    assert not (tmp_path / "run" / "base").exists()
    before = torch.get_rng_state()
    StepAdaptiveTrainer(config.with_values({"pruning.options": {"unused": "zero"}}), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_teacher_that_is_gone_is_named_with_the_folder_of_its_expert(tmp_path):
    """An expert that learned from its whole self cannot go on without it."""
    config = small_config(tmp_path, compute__whole_share=0.3, experts__teacher="expert", experts__teacher_weight=0.5)
    folder = RunFolder(tmp_path / "run").expert(1)
    StepAdaptiveTrainer(config, tmp_path / "run").train_expert(1)
    for path in (folder.result, folder.teacher):
        path.unlink()
    with pytest.raises(StorageError, match=rf"{folder.teacher} cannot be read .*Remove {folder.path} to train this expert again"):
        StepAdaptiveTrainer(config, tmp_path / "run").train_expert(1)
