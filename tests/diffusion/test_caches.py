"""Caches of diffusers on pruned experts: what is not computed again, what never changes, and what does not fit."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig
from diffusion_pipelines import COSINE, pipeline

import proxyprune as pp
from proxyprune.diffusion import NoiseSchedule, StepAdaptivePipeline
from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.intervals import equal_db
from proxyprune.diffusion.process.noise_schedule import training_scheduler
from proxyprune.diffusion.sampling.experts import Experts
from proxyprune.diffusion.sampling.pipeline_record import Blueprint
from proxyprune.diffusion.sampling.schedulers import sampler
from proxyprune.diffusion.sampling.step_cache import enable_cache
from proxyprune.errors import InputError

STEPS = 6
ONLY_ONCE = FirstBlockCacheConfig(threshold=1e9)


def pruned_dit(**options):
    """Return a DiT of four blocks, pruned to 0.6, or as the options say."""
    torch.manual_seed(0)
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=8, in_channels=1, num_layers=4, sample_size=8, patch_size=2, num_embeds_ada_norm=10
    ).eval()
    torch.nn.init.normal_(model.proj_out_2.weight)
    inputs = {"hidden_states": torch.zeros(1, 1, 8, 8), "timestep": torch.tensor([0]), "class_labels": torch.tensor([0])}
    return pp.prune(model, inputs, **({"target": 0.6} | options)).model


def dit_pipeline(model=None):
    """Return a pipeline of two pruned DiTs."""
    models = [pruned_dit() if model is None else model, pruned_dit()]
    held = Experts.of(models, [1000] * 2)
    calling = Calling("hidden_states", "timestep", "class_labels")
    blueprint = Blueprint(equal_db(NoiseSchedule.of(COSINE), 2), calling, (1, 8, 8), 10, held.macs, held.params, 1000, None)
    return StepAdaptivePipeline(held, blueprint, sampler("ddim", training_scheduler(COSINE)))


def images(found):
    """Draw three images."""
    return found.generate(3, steps=STEPS, batch_size=2, progress=False)


def test_a_cache_that_never_applies_changes_nothing_and_one_that_always_does_runs_each_experts_blocks_once():
    """The first step of each expert of each batch computes all blocks; every other step only the first block."""
    found = dit_pipeline()
    whole = images(found)
    calls = {"first": 0, "last": 0}
    for model in (found.experts[0], found.experts[1]):
        for name, block in (("first", model.transformer_blocks[0]), ("last", model.transformer_blocks[-1])):
            block.attn1.register_forward_pre_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    assert torch.equal(images(found.enable_cache(FirstBlockCacheConfig(threshold=-1.0))), whole)
    assert calls == {"first": 2 * STEPS, "last": 2 * STEPS}
    calls.update(first=0, last=0)
    found.disable_cache().enable_cache(ONLY_ONCE)
    cached = images(found)
    assert calls == {"first": 2 * STEPS, "last": 2 * 2}
    assert not torch.equal(cached, whole)
    assert torch.equal(images(found), cached)
    assert torch.equal(images(found.disable_cache()), whole)


def test_experts_that_are_loaded_later_get_the_cache():
    """One expert at a time is in memory, and images are those of experts that all are."""
    resident = dit_pipeline()
    experts = [resident.experts[0], resident.experts[1]]
    late = dit_pipeline()
    late.experts = Experts(resident.experts.macs, resident.experts.params, lambda index: copy.deepcopy(experts[index]), resident=False)
    whole = images(late)
    late.experts._held.clear()
    late.enable_cache(ONLY_ONCE)
    assert not torch.equal(images(late), whole)
    assert late.experts.in_memory == 1


def test_a_second_cache_and_networks_without_known_blocks_are_refused():
    """The first cache stays; a U-Net keeps its forward; a network with removed blocks is named as the reason."""
    found = dit_pipeline().enable_cache(ONLY_ONCE)
    with pytest.raises(InputError, match="enabled already"):
        found.enable_cache(ONLY_ONCE)
    before = images(found)
    with pytest.raises(InputError, match="enabled already"):
        enable_cache(found.experts[0], FirstBlockCacheConfig(threshold=0.1))
    assert torch.equal(images(found), before)
    unet = pipeline()
    before = images(unet)
    for config in (ONLY_ONCE, object()):
        with pytest.raises(InputError, match="cannot be enabled for UNet2DModel"):
            unet.enable_cache(config)
    assert torch.equal(images(unet), before)
    shallow = dit_pipeline(pruned_dit(mode="depth", target=0.8))
    whole = images(shallow)
    with pytest.raises(InputError, match="lost whole blocks"):
        shallow.enable_cache(ONLY_ONCE)
    assert torch.equal(images(shallow), whole)


def test_a_cache_goes_with_another_dtype_and_leaves_the_weights():
    """Networks with a cache are tried in the new dtype as others are, and have the parameters that they had."""
    found = dit_pipeline().enable_cache(ONLY_ONCE)
    expected = images(found).float()
    assert 0.0 < float((images(found.to(torch.bfloat16)).float() - expected).abs().mean()) < 8.0
    assert set(found.experts[0].state_dict()) == set(pruned_dit().state_dict())
