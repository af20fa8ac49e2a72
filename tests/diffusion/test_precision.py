"""Mixed precision, and networks under torch.compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusion_runs import losses, small_config, weights
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from proxyprune.diffusion import NoiseConfig, NoiseSchedule, StepAdaptiveConfig, StepAdaptivePipeline, StepAdaptiveTrainer
from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.intervals import equal_db
from proxyprune.diffusion.process.noise_schedule import training_scheduler
from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.diffusion.sampling.denoise import ExpertSampler, image_generators, initial_noise
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.stages.layout import choose_intervals
from proxyprune.diffusion.stages.trials import try_sizes
from proxyprune.diffusion.training.trackers import JsonLines
from proxyprune.errors import InputError


@pytest.fixture(autouse=True)
def _fresh_state():
    """accelerate keeps one precision for a process: each test is to begin without, and leave none behind."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


class Interrupted(Accelerator):
    """Somebody presses Ctrl-C after a step of an expert."""

    def log(self, values: dict[str, Any], step: int | None = None, log_kwargs: Any = None) -> None:
        super().log(values, step, log_kwargs or {})
        if "expert-1/loss" in values and step == 6:
            raise KeyboardInterrupt


def bf16(folder: Path) -> StepAdaptiveConfig:
    changes = {"pruning__rounds": 2, "compute__whole_share": 0.3, "run__sample_every": 8, "run__loss_bins": 0}
    return small_config(folder, run__mixed_precision="bf16", compute__reference_steps=50, **changes)


def test_bf16_trains_resumes_and_samples(tmp_path):
    """With cuts between steps; an interrupted run ends with the weights of one that ran through, kept in float32."""
    config = bf16(tmp_path)
    pipeline = StepAdaptiveTrainer(config, tmp_path / "run").train()
    for expert in (pipeline.experts[0], pipeline.experts[1]):
        assert "forward" not in vars(expert)
        assert {parameter.dtype for parameter in expert.parameters()} == {torch.float32}
    out = tmp_path / "again"
    accelerator = Interrupted(cpu=True, mixed_precision="bf16", log_with=[JsonLines(RunFolder(out))], project_dir=str(out / "trackers"))
    accelerator.init_trackers("proxyprune")
    with pytest.raises(KeyboardInterrupt):
        StepAdaptiveTrainer(config, out, base=tmp_path / "run", accelerator=accelerator).train()
    StepAdaptiveTrainer(config, out).train()
    found, expected = weights(out), weights(tmp_path / "run")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    images = StepAdaptivePipeline.from_pretrained(out / "pipeline").generate(3, steps=4, progress=False)
    assert torch.equal(images, pipeline.generate(3, steps=4, progress=False))


def test_bf16_computes_in_bf16(tmp_path):
    """Its losses are near those of float32, and are not the same."""
    StepAdaptiveTrainer(bf16(tmp_path), tmp_path / "half").train_base()
    AcceleratorState._reset_state(reset_partial_state=True)
    StepAdaptiveTrainer(bf16(tmp_path).with_values({"run.mixed_precision": "no"}), tmp_path / "whole").train_base()
    half, whole = losses(tmp_path / "half", "base"), losses(tmp_path / "whole", "base")
    assert half != whole
    assert half == pytest.approx(whole, rel=0.05)


def test_trials_train_in_the_precision_of_experts(tmp_path):
    """With bf16, trials of sizes train under autocast, as experts do, and their losses are measured in float32."""
    config = bf16(tmp_path).with_values({"budgets.sizes": [0.6], "budgets.trial_steps": 2, "budgets.trial_images": 8})
    trainer = StepAdaptiveTrainer(config, tmp_path / "run")
    weights, member = trainer.setup.base_model().state_dict(), choose_intervals(trainer.setup, None)[0].over(trainer.setup.schedule)[0]
    seen = set()

    def record(module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            seen.add((module.training, output.dtype))

    handle = register_module_forward_hook(record)
    try:
        trial = try_sizes(trainer.setup, weights, member)
    finally:
        handle.remove()
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert [len(size.damages) for size in trial.sizes] == [2]


def test_precisions_that_cannot_be_had_are_refused(tmp_path):
    """fp16 on a CPU, and another precision than the process began with; before anything is trained."""
    config = bf16(tmp_path)
    with pytest.raises(InputError, match=r"'fp16'.*bf16"):
        StepAdaptiveTrainer(config.with_values({"run.mixed_precision": "fp16"}), tmp_path / "run")
    AcceleratorState._reset_state(reset_partial_state=True)
    StepAdaptiveTrainer(config, tmp_path / "first")
    with pytest.raises(InputError, match="in its own process"):
        StepAdaptiveTrainer(config.with_values({"run.mixed_precision": "no"}), tmp_path / "second")
    assert not (tmp_path / "run" / "base").exists()


class Small(nn.Module):
    """Two convolutions and the time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside, self.outside = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        """Predict the noise."""
        return self.outside(torch.tanh(self.inside(sample) + timestep[:, None, None, None] / 1000))


def small_sampler(compile_options: dict[str, Any] | None) -> ExpertSampler:
    """Three experts of different widths, two of which share their code."""
    torch.manual_seed(0)
    experts = Experts.of([Small(width).eval() for width in (4, 3, 2)], [3, 2, 1])
    experts.compile_options = compile_options
    intervals = equal_db(NoiseSchedule.of(NoiseConfig()), 3)
    return ExpertSampler(experts, intervals, Calling("sample", "timestep", None), training_scheduler(NoiseConfig()))


def draw(source: ExpertSampler) -> Tensor:
    generators = image_generators(0, 0, 2)
    return source.denoise(initial_noise(generators, (1, 8, 8), torch.device("cpu")), 6, None, generators)


def test_compiled_experts_draw_the_same_images(tmp_path, monkeypatch):
    """With torch.compile, images are those of the plain networks within 1e-3."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    plain = draw(small_sampler(None))
    torch.testing.assert_close(draw(small_sampler({})), plain, rtol=0.0, atol=1e-3)


def test_a_machine_without_a_compiler_is_told_so(tmp_path, monkeypatch):
    """The sentence says what is missing and what to do."""
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(InputError, match="C\\+\\+ compiler"):
        draw(small_sampler({}))
