"""An attribute changes only if the forward uses it as a size, whatever number it equals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from zoo import NETWORKS

import proxyprune as pp
from proxyprune.surgery.attribute_evidence import evidence_for


def llama(key_value_heads: int) -> nn.Module:
    """Return a Llama whose layer 9 has an index that equals its number of heads."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=36,
        intermediate_size=80,
        num_hidden_layers=11,
        num_attention_heads=9,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("key_value_heads", [9, 3])
@pytest.mark.parametrize("use_cache", [False, True])
def test_the_index_of_a_layer_is_no_head_count(key_value_heads: int, use_cache: bool) -> None:
    """Heads are cut, every layer keeps its index, and generation with a cache equals generation without one."""
    tokens = torch.randint(3, 64, (1, 8), generator=torch.Generator().manual_seed(1))
    result = pp.prune(llama(key_value_heads), {"input_ids": tokens, "use_cache": use_cache}, 0.6)
    attention = [layer.self_attn for layer in result.model.model.layers]
    assert [module.layer_idx for module in attention] == list(range(11))
    assert not any("layer_idx" in change.path for change in result.surgery.attributes)
    assert any(module.q_proj.out_features < 36 for module in attention)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    cached = result.model.generate(tokens, use_cache=True, **options)
    assert torch.equal(cached, result.model.generate(tokens, use_cache=False, **options))


class Heads(nn.Module):
    """Attention with 6 heads, beside attributes that are 6 as well."""

    def __init__(self, index: int = 6) -> None:
        super().__init__()
        self.heads = 6
        self.index = index
        self.stride = 6
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        if self.index < 0:
            raise ValueError("no such layer")
        q, k, v = (part.view(batch, length, self.heads, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


def test_only_the_attribute_that_moves_a_size_changes_and_the_others_are_listed() -> None:
    """`heads` is used in a view and follows; a number that is only compared, and one that is never read, stay and are reported."""
    result = pp.prune(nn.Sequential(Heads()), torch.randn(1, 5, 24), 0.6)
    module = result.model[0]
    assert module.heads < 6
    assert (module.index, module.stride) == (6, 6)
    assert [change.path for change in result.surgery.attributes if change.module == "0"] == [("heads",)]
    assert set(result.report.not_followed) == {"0.index", "0.stride"}
    assert "6" in result.report.not_followed["0.stride"]


@pytest.mark.parametrize(
    ("name", "unread"), [("gpt2", "vocab_size"), ("whisper_encoder", "decoder_layers"), ("mobilenet_v2", "image_size")]
)
def test_settings_that_equal_a_width_stay(name: str, unread: str) -> None:
    """Settings of a configuration that the forward does not use as a size keep their value."""
    network = NETWORKS[name]
    result = pp.prune(network.build(), network.inputs(), 0.6)
    assert not any(unread in change.path for change in result.surgery.attributes)


class Described(nn.Module):
    """Holds a width that only `describe` reads, and not as a size of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = 16
        self.inner, self.outer = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(x)))

    def describe(self) -> str:
        return f"{self.channels} channels"


def test_a_width_that_only_another_method_reads_is_listed() -> None:
    """The traced forward says nothing about it, so it stays, and the report names it with its value and the new width."""
    result = pp.prune(nn.Sequential(Described()), torch.randn(1, 3, 8, 8), 0.6)
    assert result.model[0].channels == 16
    assert set(result.report.not_followed) == {"0.channels"}


class LooksItselfUp(nn.Module):
    """Keeps what its layers computed, by the name of its class, as the output capture of transformers does; a config holds its sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.PretrainedConfig(heads=6, unread=6, width=24)
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        if str(self.__class__) != str(LooksItselfUp):
            raise LookupError(str(self.__class__))
        batch, length, _ = x.shape
        q, k, v = (part.view(batch, length, self.config.heads, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_a_class_that_is_looked_up_by_its_name_gives_evidence() -> None:
    """Reads are noted under the name of the class, and inside a config too: a number that nobody reads there is never tried."""
    model, x = nn.Sequential(LooksItselfUp()), torch.randn(1, 5, 24)
    (evidence,) = evidence_for(model, pp.trace(model, x, probe=False), x)
    assert [evidence.may_be_read("0", ("config", name)) for name in ("heads", "unread", "width")] == [True, False, False]
    result = pp.prune(model, x, 0.6)
    assert result.model[0].config.heads < 6
    assert result.model[0].config.unread == 6


class Uncopyable:
    """Sizes in an object that no copy of the model can have; it lists the classes that it had when it was read."""

    def __init__(self) -> None:
        self.heads, self.classes = 6, []

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    @property
    def seen_heads(self) -> int:
        """Return the number of heads."""
        self.classes.append(type(self))
        return self.heads


class SharedSizes(nn.Module):
    """A layer whose object of sizes is the caller's in every copy."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.linear = Uncopyable(), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(-1, (self.sizes.seen_heads, -1)).flatten(-2)


def test_an_object_that_copies_share_with_the_caller_keeps_its_class() -> None:
    """Reads inside an object of the caller's model are not recorded, so that it has its class during every run."""
    model, x = nn.Sequential(SharedSizes()), torch.randn(1, 5, 24)
    (evidence,) = evidence_for(model, pp.trace(model, x, probe=False), x)
    assert [evidence.may_be_read("0", ("sizes", name)) for name in ("heads", "unread")] == [True, True]
    assert set(model[0].sizes.classes) == {Uncopyable}
