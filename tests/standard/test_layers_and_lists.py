"""Layers that leave a network with a config: lists beside their count, layers that cannot leave, and numbers that meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import proxyprune as pp
from proxyprune.errors import InputError, TargetError
from proxyprune.planning.built_plan import without_coincidence
from proxyprune.planning.shared_widths import ties_of
from proxyprune.saving.plain_folder import plain_form

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}


def seeded(kind: Any, config: Any) -> nn.Module:
    """Return a network in eval mode, always with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        return kind(config).eval()


def ids() -> dict[str, Any]:
    """Return token ids."""
    return {"input_ids": torch.arange(3, 15)[None]}


def plain_config(result: pp.PruneResult) -> Any:
    """Return the config of the plain form, which gives the same outputs bit for bit."""
    return plain_form(result, result.example_inputs)[0].network.config


def whisper() -> nn.Module:
    """Return a Whisper whose lists of tokens have as many entries as it has layers."""
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    lengths = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 10}
    config = transformers.WhisperConfig(vocab_size=96, encoder_ffn_dim=64, decoder_ffn_dim=64, **sizes, **tokens, **lengths)
    return seeded(transformers.WhisperForConditionalGeneration, config)


def test_lists_that_have_an_entry_a_layer_by_chance_stay() -> None:
    """Two layers, and two tokens that generation suppresses: a layer leaves and the tokens stay."""
    model: Any = whisper()
    inputs = {"input_features": torch.ones(1, 8, 20), "decoder_input_ids": torch.arange(3, 7)[None]}
    result = pp.prune(model, inputs, 0.9, mode="depth", uniform=True, remove=["model.decoder.layers.0"])
    config = plain_config(result)
    assert config.decoder_layers == 1
    assert list(config.begin_suppress_tokens) == list(model.config.begin_suppress_tokens)
    assert len(config.begin_suppress_tokens) == 2


def test_lists_of_layers_follow() -> None:
    """An entry a layer leaves with it, and indices of layers behind it fall by one."""
    settings = {
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "num_key_value_heads": 2,
    }
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    config = transformers.Qwen2MoeConfig(
        **SIZES, **settings, mlp_only_layers=[0, 2], layer_types=kinds, use_sliding_window=True, sliding_window=4, max_window_layers=0
    )
    model = seeded(transformers.Qwen2MoeForCausalLM, config)
    result = pp.prune(model, ids(), 0.99, mode="depth", uniform=True, remove=["model.layers.1"])
    found = plain_config(result)
    assert found.num_hidden_layers == 3
    assert found.mlp_only_layers == [0, 1]
    assert found.layer_types == ["full_attention", "full_attention", "sliding_attention"]


def modernbert() -> nn.Module:
    """Return a ModernBERT, whose first layer has no norm."""
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    config = transformers.ModernBertConfig(**SIZES, **tokens, local_attention=8)
    return seeded(transformers.ModernBertForSequenceClassification, config)


def test_layers_that_the_class_builds_unlike_the_others_stay() -> None:
    """The first layer of a ModernBERT has no norm, so other layers leave, however it is ranked; removing it by name is an error."""
    result = pp.prune(modernbert(), ids(), 0.4, mode="depth", uniform=True)
    assert "model.layers.0" not in result.plan.removed_blocks
    assert plain_config(result).num_hidden_layers == 4 - len(result.plan.removed_blocks) == 1
    with pytest.raises(InputError, match=r"num_hidden_layers without 'model\.layers\.0' makes the class build other layers differently"):
        pp.prune(modernbert(), ids(), 0.9, mode="depth", uniform=True, remove=["model.layers.0"])


def test_windows_that_alternate_stay_in_step() -> None:
    """Swin shifts every second window by the index of its layer: only the last layer of a stage leaves."""
    config = transformers.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4)
    model = seeded(transformers.SwinForImageClassification, config)
    result = pp.prune(model, {"pixel_values": torch.ones(1, 3, 32, 32)}, 0.8, mode="depth", uniform=True)
    assert all(block.endswith("blocks.1") for block in result.plan.removed_blocks)
    assert sum(plain_config(result).depths) == 4 - len(result.plan.removed_blocks) < 4


def test_layers_that_cannot_leave_are_named() -> None:
    """A BERT layer is no residual path as a whole; the error names the number that counts layers and the part that cannot be skipped."""
    model = seeded(transformers.BertForSequenceClassification, transformers.BertConfig(**SIZES))
    with pytest.raises(
        TargetError, match=r"4 layers stay: num_hidden_layers counts whole layers, and 'bert\.encoder\.layer\.0\.intermediate"
    ):
        pp.prune(model, ids(), 0.8, mode="depth", uniform=True)


def unet(**changes: Any) -> nn.Module:
    """Return a U-Net with heads of 16 channels, in which two levels can get equal widths."""
    from diffusers import UNet2DModel

    settings = {"sample_size": 8, "block_out_channels": (16, 32, 64), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 16}
    kinds = {
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        return UNet2DModel(**{**settings, **kinds, **changes}).eval()


def test_widths_that_meet_another_level_are_left_out() -> None:
    """With equal widths the class leaves a projection out: the plan takes the next width, and the class builds it."""
    inputs = {"sample": torch.ones(1, 3, 8, 8), "timestep": torch.tensor([3])}
    # Width 32 in the last level is the one that meets the level before it; a budget between its neighbours has to pass it.
    model = unet()
    graph, ties = pp.trace(model, inputs), ties_of(pp.trace(model, inputs), "config")
    (tie,) = [tie for tie in ties.ties if tie.knob is not None and ("block_out_channels", 2) in tie.knob.numbers]
    assert tie.knob is not None
    fall = tie.knob.numbers["block_out_channels", 2]
    meeting = tie.counts[tie.steps == 32 // fall][0]
    kept = np.array([group.atoms for group in graph.prunable])
    kept[list(tie.groups)] = meeting
    left = without_coincidence(ties, graph, kept, (), ())
    assert left is not None
    levels = [len(other.counts) for other in left.ties]
    assert sum(levels) == sum(len(other.counts) for other in ties.ties) - 1
    assert not any((other.counts == meeting).all(axis=1).any() for other in left.ties if other.groups == tie.groups)
    result = pp.prune(model, inputs, 0.8, uniform=True)
    widths = list(plain_config(result).block_out_channels)
    assert widths[1] != widths[2]


def test_a_plan_far_from_its_budget_names_the_smallest_step() -> None:
    """The note of a coarse uniform plan has the number of the config and the share of the budget that one step takes."""
    inputs = {"sample": torch.ones(1, 3, 8, 8), "timestep": torch.tensor([3])}
    plan = pp.prune(unet(block_out_channels=(16, 32, 128)), inputs, 0.8, uniform=True).plan
    assert plan.target_macs - plan.macs > 0.01 * plan.base_macs
    (note,) = [note for note in plan.notes if "below the target" in note]
    assert "The smallest step back takes " in note
    assert "block_out_channels[" in note
    model = seeded(transformers.LlamaForCausalLM, transformers.LlamaConfig(**SIZES))
    plan = pp.prune(model, ids(), 0.7, mode="depth", uniform=True).plan
    assert any("of the base: 'model.layers." in note for note in plan.notes)


def test_numbers_that_the_class_computes_can_move_alone() -> None:
    """The feed-forward width of a GPT-2 is None in its config; a uniform plan sets it, and meets a budget that whole heads do not."""
    config = transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=8, n_positions=32, bos_token_id=0, eos_token_id=0)
    result = pp.prune(seeded(transformers.GPT2LMHeadModel, config), ids(), 0.8, uniform=True)
    assert config.n_inner is None
    assert plain_config(result).n_inner < 256
    assert result.plan.target_macs - result.plan.macs <= 0.01 * result.plan.base_macs


def test_a_position_bias_reaches_the_layers_behind_a_removed_one() -> None:
    """A T5 hands its position bias from layer to layer; without one in the middle, the next layer still gets it."""
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=3, num_decoder_layers=2, num_heads=4, vocab_size=96)
    inputs = ids() | {"decoder_input_ids": torch.arange(3, 7)[None]}
    result = pp.prune(
        seeded(transformers.T5ForConditionalGeneration, config),
        inputs,
        0.99,
        mode="depth",
        uniform=True,
        remove=["encoder.block.1.layer.*"],
    )
    assert plain_config(result).num_layers == 2


def test_layers_in_several_lists_leave_together() -> None:
    """One number counts the transformer layers of all attentions of a level: a layer leaves each of them."""
    from diffusers import UNet2DConditionModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            transformer_layers_per_block=(1, 3),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=8,
            use_linear_projection=True,
        ).eval()
    inputs = {"sample": torch.ones(1, 4, 8, 8), "timestep": torch.tensor([3]), "encoder_hidden_states": torch.ones(1, 5, 16)}
    result = pp.prune(model, inputs, 0.9, mode="depth", uniform=True)
    assert result.plan.removed_blocks
    assert list(plain_config(result).transformer_layers_per_block) == [1, 2]


def paired(width: int = 16) -> nn.Module:
    """Return residual layers of which one of two may leave, but not both, and a residual head that no number counts."""
    from transformers import PreTrainedConfig, PreTrainedModel

    class Residual(nn.Module):
        """A residual layer."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.wide, self.back = nn.Linear(8, width), nn.Linear(width, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Add the layer to its input."""
            result: torch.Tensor = x + self.back(self.wide(x).relu())
            return result

    class PairedConfig(PreTrainedConfig):  # type: ignore[misc]  # the class of transformers is not typed
        """A count of layers."""

        model_type = "paired"

        def __init__(self, depth: int = 6, width: int = 16, **further: Any) -> None:
            super().__init__(**further)
            self.depth, self.width = depth, width

    class PairedModel(PreTrainedModel):  # type: ignore[misc]  # the class of transformers is not typed
        """Layers, and a last one that is wider in shallow networks and at widths between 16 and 300."""

        config_class = PairedConfig

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.blocks = nn.ModuleList(Residual(config.width) for _ in range(config.depth))
            self.head = Residual(12)
            self.last = nn.Linear(8, 4 if config.depth > 4 and not 16 < config.width < 300 else 5)
            self.post_init()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Apply the layers."""
            for block in self.blocks:
                x = block(x)
            result: torch.Tensor = self.last(self.head(x))
            return result

    return seeded(PairedModel, PairedConfig(width=width))


def test_removed_layers_that_only_leave_one_by_one_are_an_error() -> None:
    """The class does without one of two layers and not without both: removing both raises, and a free choice takes one."""
    graph = pp.trace(paired(), torch.ones(1, 8))
    ranking = pp.score(graph, "magnitude", model=paired())
    with pytest.raises(InputError, match=r"'blocks\.4', 'blocks\.5' cannot be removed together with uniform='config': PairedModel builds"):
        pp.make_plan(graph, ranking, 0.6, mode="both", uniform="config", remove=["blocks.4", "blocks.5"])
    plan = pp.make_plan(graph, ranking, 0.9, mode="both", uniform="config", remove=["blocks.4"])
    assert plan.removed_blocks == ("blocks.4",)


def test_plans_that_the_config_never_gives_are_an_error() -> None:
    """No plan is returned unchecked if the class builds another network at every width near the budget."""
    graph = pp.trace(paired(width=320), torch.ones(1, 8))
    ranking = pp.score(graph, "magnitude", model=paired(width=320))
    with pytest.raises(TargetError, match="The config cannot express a plan for this target"):
        pp.make_plan(graph, ranking, 0.6, uniform="config")


def test_removed_blocks_that_no_number_counts_are_an_error() -> None:
    """The config counts the layers and not the head, so a uniform plan cannot remove the head."""
    graph = pp.trace(paired(), torch.ones(1, 8))
    ranking = pp.score(graph, "magnitude", model=paired())
    with pytest.raises(InputError, match="head cannot be removed with uniform='config': no number of the config counts"):
        pp.make_plan(graph, ranking, 0.8, mode="both", uniform="config", remove=["head"])
    assert pp.make_plan(graph, ranking, 0.8, mode="both", uniform="layers", remove=["head"]).removed_blocks == ("head",)


@pytest.mark.parametrize("uniform", [False, "layers"])
def test_only_other_plans_are_advised_to_be_uniform(uniform: Any) -> None:
    """Without the head no config fits: saving advises uniform=True after other plans, and not after uniform ones."""
    result = pp.prune(paired(), torch.ones(1, 8), 0.8, mode="both", uniform=uniform, remove=["head"])
    saving = vars(result.model)["save_pretrained"].reason
    assert "Save it with proxyprune.save(result, folder)" in saving
    assert ("uniform=True" in saving) == (uniform is False)


@pytest.mark.parametrize(
    ("limits", "step"),
    [
        ({"round_to": 16}, "11.11% of the base: intermediate_size by 16."),
        # The hidden size of 64 stays, so 8 heads follow the 4 that the plan keeps: 6 do not divide it.
        (
            {"keep": ["model.embed_tokens.weight", "*mlp*"]},
            "25.00% of the base: num_attention_heads by 4 with num_key_value_heads by 2.",
        ),
    ],
)
def test_the_smallest_step_has_the_size_of_the_allowed_level(limits: Any, step: str) -> None:
    """The note counts the channels up to the next allowed level, not those of one step of the config; heads are named as well."""
    config = transformers.LlamaConfig(**{**SIZES, "hidden_size": 64, "num_attention_heads": 8}, num_key_value_heads=4)
    model = seeded(transformers.LlamaForCausalLM, config)
    graph = pp.trace(model, ids())
    plan = pp.make_plan(graph, pp.score(graph, "magnitude", model=model), 0.85, uniform=True, **limits)
    (note,) = [note for note in plan.notes if "below the target" in note]
    assert note.endswith(f"The smallest step back takes {step}")
