"""Pipelines in bfloat16 and float16: the networks run in the dtype, the scheduler in float32, and what fails changes nothing."""

from __future__ import annotations

import diffusers
import pytest
import torch
from diffusion_pipelines import pipeline
from diffusion_runs import NETWORK
from safetensors.torch import load_file

from proxyprune.diffusion import StepAdaptivePipeline
from proxyprune.diffusion.sampling.placement import place_network
from proxyprune.errors import InputError

SETTINGS = {key: value for key, value in NETWORK.items() if key != "_class_name"}


class Full(diffusers.UNet2DModel):
    """A network for which there is no room."""

    def _apply(self, *given, **options):
        raise RuntimeError("out of memory")


class OnlyFloat32(diffusers.UNet2DModel):
    """A network that does not run in another dtype."""

    def forward(self, sample, timestep, class_labels=None):
        return super().forward(sample + self.conv_in(sample.float()).mean(), timestep)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_experts_run_in_the_dtype_and_the_scheduler_in_float32(dtype):
    """Networks see images of the dtype; the callback, which gets the scheduler's images, sees float32; results are close."""
    found = pipeline(classes=10)
    expected = found(2, 4, output_type="pt").images
    seen = []
    for expert in (found.experts[0], found.experts[1]):
        expert.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["sample"].dtype), with_kwargs=True)
    assert found.to("cpu", dtype) is found
    seen.clear()
    steps = []
    images = found(2, 4, output_type="pt", callback_on_step_end=lambda *given: steps.append(given[3]["latents"].dtype)).images
    assert set(seen) == {dtype}
    assert set(steps) == {torch.float32}
    assert found.dtype == dtype
    assert str(dtype) in " ".join(str(found).split())
    assert images.dtype == torch.float32
    assert 0.0 < float((images - expected).abs().max()) < 0.2


@pytest.mark.parametrize("resident", [True, False])
def test_from_pretrained_takes_a_dtype(tmp_path, resident):
    """Also for experts that are loaded later; it equals a move after loading, bit for bit."""
    pipeline().save_pretrained(tmp_path / "saved")
    loaded = StepAdaptivePipeline.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16, resident=resident)
    moved = StepAdaptivePipeline.from_pretrained(tmp_path / "saved").to(torch.bfloat16)
    assert torch.equal(loaded.generate(2, steps=4, progress=False), moved.generate(2, steps=4, progress=False))
    assert {value.dtype for number in (0, 1) for value in loaded.experts[number].parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("network", "given", "said"),
    [
        (Full, (torch.bfloat16,), "out of memory"),
        (OnlyFloat32, ("cpu", torch.float16), "dtype|type"),
        (None, (torch.int8,), "Experts run in torch.float32, torch.bfloat16"),
        (None, (torch.float8_e4m3fn,), "Experts run in torch.float32, torch.bfloat16"),
        (None, ("cuda:99", torch.bfloat16), "cannot move to 'cuda:99' in torch.bfloat16"),
        (None, ("nowhere",), "no device 'nowhere'"),
        (None, ("cpu", "cpu"), "found several"),
        (None, (torch.float16, 1.5), "found 1.5"),
    ],
)
def test_what_fails_leaves_the_pipeline_as_it_was(network, given, said):
    """Weights are not rounded, images are equal, and another move works."""
    found = pipeline()
    if network is not None:  # the one without room is moved last
        torch.manual_seed(1)
        broken = network(**SETTINGS).eval()
        found.experts._held.clear()
        models = [found.experts[0], broken] if network is Full else [broken, found.experts[1]]
        found.experts._held.update(enumerate(models))
    before = [{name: value.clone() for name, value in found.experts[number].state_dict().items()} for number in (0, 1)]
    expected = found.generate(2, steps=3, progress=False)
    with pytest.raises(InputError, match=said):
        found.to(*given)
    for number in (0, 1):
        after = found.experts[number].state_dict()
        assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before[number].items())
    assert found.dtype == torch.float32
    assert torch.equal(found.generate(2, steps=3, progress=False), expected)


def test_layers_that_a_class_keeps_in_float32_stay():
    """As diffusers does in from_pretrained: such a layer is not even rounded."""
    model = diffusers.UNet2DModel(**SETTINGS).eval()
    model._keep_in_fp32_modules = ["time_embedding"]
    before = model.time_embedding.linear_1.weight.clone()
    place_network(model, torch.device("cpu"), torch.bfloat16)
    assert torch.equal(model.time_embedding.linear_1.weight, before)
    assert model.conv_out.weight.dtype == torch.bfloat16


def test_files_keep_their_precision(tmp_path):
    """A pipeline in bfloat16 is copied bit for bit; an expert that was changed is saved with its new weights, as float32."""
    pipeline().save_pretrained(tmp_path / "first")
    loaded = StepAdaptivePipeline.from_pretrained(tmp_path / "first", torch_dtype=torch.bfloat16)
    with torch.no_grad():
        loaded.experts[0].conv_out.bias.add_(0.5)
    loaded.save_pretrained(tmp_path / "second")
    files = [[tmp_path / name / "experts" / number / "model.safetensors" for name in ("first", "second")] for number in "01"]
    assert files[1][0].read_bytes() == files[1][1].read_bytes()
    weights = load_file(files[0][1])
    assert {value.dtype for value in weights.values()} == {torch.float32}
    assert torch.equal(weights["conv_out.bias"], loaded.experts[0].conv_out.bias.float())
