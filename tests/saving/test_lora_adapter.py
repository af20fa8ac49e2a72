"""LoRA adapters over a cut: cutting the merged dense network equals merging the carried adapter into the pruned network."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import zoo
from commands import fail, succeed
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import proxyprune as pp
from proxyprune.errors import InputError, PlanMismatchError, StorageError

RANK = 3
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, Conv1D)
Key = Callable[[str, str], str]


def peft_key(module: str, part: str) -> str:
    """Return a key as PEFT saves it; part is A, B, embedding_A or embedding_B."""
    return f"base_model.model.{module}.lora_{part}" + ("" if "embedding" in part else ".weight")


def peft_live_key(module: str, part: str) -> str:
    """Return a key as the state dict of a PEFT model has it, with the adapter's name."""
    return f"base_model.model.{module}.lora_{part}.default" + ("" if "embedding" in part else ".weight")


def diffusers_key(module: str, part: str) -> str:
    """Return a key of diffusers' pipelines."""
    return f"unet.{module}.lora_{part}.weight"


def down_up_key(module: str, part: str) -> str:
    """Return a key of older adapters for diffusers."""
    return f"{module}.lora.{'down' if part == 'A' else 'up'}.weight"


def kohya_key(module: str, part: str) -> str:
    """Return a key of kohya's scripts: dots of the module are underscores."""
    return f"lora_unet_{module.replace('.', '_')}.lora_{'down' if part == 'A' else 'up'}.weight"


def adapted(model: nn.Module, *, without: tuple[type[nn.Module], ...] = ()) -> dict[str, nn.Module]:
    """Return the layers that the tests put adapters on: all that LoRA is defined on, but for convolutions in groups."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS) and not isinstance(module, without)}
    return {name: module for name, module in found.items() if getattr(module, "groups", 1) == 1}


def parts_of(module: nn.Module) -> tuple[str, str]:
    """Return the names of an adapter's two parts in PEFT."""
    return ("embedding_A", "embedding_B") if isinstance(module, nn.Embedding) else ("A", "B")


def made_adapter(model: nn.Module, key: Key, names: Any = None) -> dict[str, Tensor]:
    """Return an adapter with random entries for the given layers, or all."""
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, module in adapted(model).items():
        if names is not None and name not in names:
            continue
        weight = module.weight
        outputs, inputs = weight.shape[:2] if not isinstance(module, nn.Embedding | Conv1D) else reversed(weight.shape)
        down, up = parts_of(module)
        state[key(name, down)] = torch.randn(RANK, inputs, *weight.shape[2:], generator=generator) * 0.1
        state[key(name, up)] = torch.randn(outputs, RANK, *(1 for _ in weight.shape[2:]), generator=generator) * 0.1
    return state


def merged(model: nn.Module, state: dict[str, Tensor], key: Key) -> nn.Module:
    """Return a copy of a network with an adapter added to its weights, at scale 1."""
    model = copy.deepcopy(model)
    used = set()
    with torch.no_grad():
        for name, module in adapted(model).items():
            down, up = (key(name, part) for part in parts_of(module))
            if down in state:
                used |= {down, up}
                delta = (state[up].flatten(1) @ state[down].flatten(1)).unflatten(1, state[down].shape[1:])
                module.weight += delta.T if isinstance(module, nn.Embedding | Conv1D) else delta
    assert used == set(state)
    return model


def compare(dense: nn.Module, inputs: Any, result: pp.PruneResult, state: dict[str, Tensor], key: Key) -> pp.CarriedLora:
    """Carry an adapter, and compare both ways to the pruned network with it."""
    carried = pp.carry_lora(state, result)
    expected = pp.apply_plan(merged(dense, state, key), result.plan, inputs, graph=result.graph)
    found = merged(result.model, dict(carried.state), key)
    with torch.no_grad():
        outputs = [zoo.to_tensors(zoo.run(model, inputs)) for model in (expected, found, result.model)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
    assert any(not torch.allclose(one, other, atol=1e-3) for one, other in zip(outputs[1], outputs[2], strict=True))
    return carried


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("plain_cnn", peft_key),
        ("depthwise_separable", peft_key),
        ("conv1d", peft_key),
        ("conv3d", down_up_key),
        ("fused_qkv_vit", peft_live_key),
        ("vit", peft_key),
        ("gpt2", peft_key),
        ("qwen2", peft_key),
        ("llama_gqa", peft_key),
        ("llama_gqa", peft_live_key),
        ("sd_unet", diffusers_key),
        ("sd_unet", down_up_key),
        ("sd_unet", kohya_key),
        ("fused_qkv_vit", kohya_key),
        ("conv3d", kohya_key),
    ],
)
def test_merging_and_cutting_commute(name: str, key: Key) -> None:
    """Dense network with adapter merged, then cut, equals the pruned network with the carried adapter merged; ranks stay."""
    network = zoo.NETWORKS[name]
    model, inputs = network.build(), network.inputs()
    result = pp.prune(model, inputs, 0.6)
    state = made_adapter(model, key)
    if name == "qwen2":  # the head is the embedding: an adapter on both would be added to one tensor twice
        state = {entry: tensor for entry, tensor in state.items() if "lm_head" not in entry}
    carried = compare(model, inputs, result, state, key)
    assert list(carried.state) == list(state)
    assert any(carried.state[entry].shape != state[entry].shape for entry in state)
    for entry, tensor in carried.state.items():
        rank = 0 if state[entry].shape[0] == RANK else 1
        assert tensor.shape[rank] == RANK


def test_a_tied_head_is_cut_like_the_embedding() -> None:
    """An adapter on the head of a network with tied weights loses the columns that the embedding loses."""
    network = zoo.NETWORKS["qwen2"]
    model = network.build()
    result = pp.prune(model, network.inputs(), 0.5)
    carried = pp.carry_lora(made_adapter(model, peft_key, {"lm_head"}), result)
    kept = result.model.lm_head.weight.shape
    assert carried.state[peft_key("lm_head", "A")].shape == (RANK, kept[1])
    assert carried.state[peft_key("lm_head", "B")].shape == (kept[0], RANK)


@pytest.mark.parametrize("plain", [False, True])
def test_entries_of_removed_layers_are_dropped(plain: bool) -> None:
    """A layer that left takes its entries along; others keep their numbers, or move up with the names of the plain network."""
    model, inputs = llama()
    result = pp.prune(model, inputs, 0.7, mode="depth")
    gone = [block for block in result.plan.removed_blocks if "layers" in block]
    assert gone
    state = made_adapter(model, peft_key)
    carried = pp.carry_lora(state, result, plain=plain)
    assert set(carried.dropped) == {entry for entry in state if any(f".{block}." in entry for block in gone)}
    if not plain:
        assert sorted([*carried.state, *carried.dropped]) == sorted(state)
        compare(model, inputs, result, state, peft_key)
        return
    numbers = sorted({int(entry.split(".layers.")[1].split(".")[0]) for entry in carried.state if ".layers." in entry})
    assert numbers == list(range(4 - len(gone)))


def llama(layers: int = 4) -> tuple[nn.Module, Any]:
    """Return a Llama of several layers and inputs."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config).eval(), {"input_ids": torch.randint(64, (2, 8))}


def written_folder(folder: Path, state: dict[str, Tensor], **changes: Any) -> Path:
    """Write an adapter folder of PEFT."""
    folder.mkdir()
    safetensors.torch.save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": True}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    return folder


def projections(model: nn.Module) -> list[str]:
    """Return the layers that `written_folder` names."""
    return [name for name, _ in model.named_modules() if name.endswith(("q_proj", "down_proj"))]


def test_a_folder_keeps_its_config_and_its_tokenizer(tmp_path: Path) -> None:
    """A folder of PEFT becomes a folder with the same config and files of tokenizers; its state is what a state dict gives."""
    model, inputs = llama()
    result = pp.prune(model, inputs, 0.6)
    state = made_adapter(model, peft_key, projections(model))
    source = written_folder(tmp_path / "dense", state, rank_pattern={"layers.0.mlp.down_proj": RANK})
    (source / "tokenizer_config.json").write_text("{}")
    (source / "optimizer.pt").write_text("of the dense network")
    carried = pp.carry_lora(source, result, tmp_path / "pruned")
    assert carried.path == tmp_path / "pruned"
    names = {"adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "pruned").iterdir()} == names
    assert json.loads((tmp_path / "pruned" / "adapter_config.json").read_text()) == json.loads((source / "adapter_config.json").read_text())
    read = safetensors.torch.load_file(tmp_path / "pruned" / "adapter_model.safetensors")
    expected = pp.carry_lora(state, result).state
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[key], expected[key]) for key in read)
    pp.carry_lora(source, result, tmp_path / "pruned")  # replaces its own folder
    with pytest.raises(StorageError, match="Choose another place"):
        pp.carry_lora(source, result, source)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(StorageError, match="not of a PEFT adapter"):
        pp.carry_lora(source, result, tmp_path / "mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "mine", "pruned"]


def test_a_file_keeps_its_metadata(tmp_path: Path) -> None:
    """A safetensors file becomes a file with the same metadata."""
    network = zoo.NETWORKS["sd_unet"]
    model = network.build()
    result = pp.prune(model, network.inputs(), 0.6)
    state = made_adapter(model, diffusers_key)
    safetensors.torch.save_file(state, tmp_path / "dense.safetensors", metadata={"format": "pt", "trigger": "a word"})
    carried = pp.carry_lora(tmp_path / "dense.safetensors", result, tmp_path / "out" / "pruned.safetensors")
    with safetensors.safe_open(tmp_path / "out" / "pruned.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "trigger": "a word"}
        assert set(file.keys()) == set(carried.state)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["pruned.safetensors"]
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": RANK, "unet.init_lora_weights": "pissa"})}
    safetensors.torch.save_file(state, tmp_path / "dense.safetensors", metadata=metadata)
    with pytest.raises(InputError, match="init_lora_weights 'pissa'"):
        pp.carry_lora(tmp_path / "dense.safetensors", result, tmp_path / "out" / "other.safetensors")


def test_patterns_of_removed_layers_leave_the_config(tmp_path: Path) -> None:
    """Names and patterns that match removed layers alone are dropped; with plain names, every layer has its rank and scale."""
    model, inputs = llama()
    result = pp.prune(model, inputs, 0.7, mode="depth")
    gone = next(block for block in result.plan.removed_blocks if "layers" in block)
    number = int(gone.rpartition(".")[2])
    last = 3 if number != 3 else 2
    patterns = {f"layers.{number}.self_attn.q_proj": 2, f"layers.{last}.mlp.down_proj": 5}
    source = written_folder(
        tmp_path / "dense", made_adapter(model, peft_key, projections(model)), alpha_pattern=patterns, layers_to_transform=[0, 1, 2, 3]
    )
    kept = pp.carry_lora(source, result, tmp_path / "kept").config
    assert kept["alpha_pattern"] == {f"layers.{last}.mlp.down_proj": 5}
    assert kept["target_modules"] == ["q_proj", "down_proj"]
    plain = pp.carry_lora(source, result, tmp_path / "plain", plain=True)
    removed = sorted(int(block.rpartition(".")[2]) for block in result.plan.removed_blocks)
    new = last - sum(one < last for one in removed)
    assert plain.config["alpha_pattern"] == {rf"model\.layers\.{new}\.mlp\.down_proj": 5}
    assert plain.config["layers_to_transform"] is None
    assert len(plain.config["target_modules"]) == 2 * (4 - len(removed)) == len(plain.state) / 2


def test_peft_loads_the_folder(tmp_path: Path) -> None:
    """PEFT reads the carried folder on the pruned network, and on the plain network with the plain names; both give the same outputs."""
    peft = pytest.importorskip("peft")
    import transformers

    model, inputs = llama()
    base = copy.deepcopy(model)
    layers = ["q_proj", "v_proj", "down_proj", "embed_tokens"]
    config = peft.LoraConfig(r=4, target_modules=layers, rank_pattern={"layers.3.mlp.down_proj": 2})
    wrapped = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    wrapped.save_pretrained(tmp_path / "dense", save_embedding_layers=False)
    for mode in ("width", "depth"):
        result = pp.prune(base, inputs, 0.7, mode=mode, uniform=True)
        pp.carry_lora(tmp_path / "dense", result, tmp_path / mode)
        pp.carry_lora(tmp_path / "dense", result, tmp_path / f"{mode}-plain", plain=True)
        pp.save_pretrained(result, tmp_path / f"{mode}-network")
        expected = pp.apply_plan(wrapped_dense(wrapped), result.plan, inputs, graph=result.graph)
        one = peft.PeftModel.from_pretrained(copy.deepcopy(result.model), tmp_path / mode)
        network = transformers.LlamaForCausalLM.from_pretrained(tmp_path / f"{mode}-network")
        other = peft.PeftModel.from_pretrained(network, tmp_path / f"{mode}-plain")
        with torch.no_grad():
            logits = [net.eval()(**inputs).logits for net in (expected, one, other)]
        torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits[2], logits[0], rtol=1e-5, atol=1e-5)


def wrapped_dense(wrapped: Any) -> nn.Module:
    """Return the network of a PEFT model with its adapter merged."""
    return copy.deepcopy(wrapped).merge_and_unload().eval()


def test_magnitudes_of_dora_are_cut_with_whole_rows_and_rejected_otherwise() -> None:
    """Magnitudes follow the outputs if no input was cut; a row that lost weights has another norm, which is an error."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    result = pp.prune(model, torch.randn(2, 6), 0.5)
    state = made_adapter(model, peft_key)
    first = {key: tensor for key, tensor in state.items() if ".0." in key} | {
        "base_model.model.0.lora_magnitude_vector": torch.arange(16.0)
    }
    carried = pp.carry_lora(first, result).state["base_model.model.0.lora_magnitude_vector"]
    assert carried.tolist() == [float(i) for cut in result.surgery.cuts if cut.parameter == "0.weight" for i in cut.kept]
    with pytest.raises(InputError, match=r"base_model\.model\.2\.lora_magnitude_vector.*DoRA"):
        pp.carry_lora(state | {"base_model.model.2.lora_magnitude_vector": torch.ones(4)}, result)


def test_whole_parameters_scales_and_biases_follow() -> None:
    """Parameters of `modules_to_save` are cut like the network's, the bias of B like its rows; scales are copied."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    result = pp.prune(model, torch.randn(2, 6), 0.5)
    kept = next(list(cut.kept) for cut in result.surgery.cuts if cut.parameter == "0.weight")
    extra = {
        "base_model.model.2.weight": torch.randn(4, 16),
        "base_model.model.0.base_layer.bias": torch.randn(16),
        "base_model.model.2.modules_to_save.bias": torch.randn(4),
        "base_model.model.2.original_module.weight": torch.randn(4, 16),
        "base_model.model.2.modules_to_save.default.weight": torch.randn(4, 16),
        "base_model.model.0.lora_B.bias": torch.randn(16),
        "base_model.model.0.alpha": torch.tensor(4.0),
    }
    carried = pp.carry_lora(made_adapter(model, peft_key, {"0"}) | extra, result).state
    for key in ("2.weight", "2.original_module.weight", "2.modules_to_save.default.weight"):
        assert torch.equal(carried[f"base_model.model.{key}"], extra[f"base_model.model.{key}"][:, kept])
    assert torch.equal(carried["base_model.model.2.modules_to_save.bias"], extra["base_model.model.2.modules_to_save.bias"])
    for key in ("base_model.model.0.base_layer.bias", "base_model.model.0.lora_B.bias"):
        assert torch.equal(carried[key], extra[key][kept])
    assert carried["base_model.model.0.alpha"] == 4


def test_keys_of_attention_processors_are_known() -> None:
    """Adapters of older diffusers name projections through the processor; they are cut like the projections."""
    network = zoo.NETWORKS["sd_unet"]
    model = network.build()
    result = pp.prune(model, network.inputs(), 0.6)
    state = made_adapter(model, down_up_key, [name for name in adapted(model) if ".attn1." in name])

    def older(key: str) -> str:
        key = key.replace("to_out.0.", "to_out.")
        head, _, rest = key.partition(".attn1.")
        layer, _, end = rest.partition(".lora.")
        return f"unet.{head}.attn1.processor.{layer}_lora.{end}"

    scales = {f"{older(key)}.alpha": torch.tensor(2.0) for key in state if ".down." in key}
    carried = pp.carry_lora({older(key): tensor for key, tensor in state.items()} | scales, result)
    assert all(carried.state[key] == scale for key, scale in scales.items())
    expected = pp.carry_lora(state, result)
    assert all(torch.equal(carried.state[older(key)], tensor) for key, tensor in expected.state.items())


def test_names_with_underscores_follow_the_layers(tmp_path: Path) -> None:
    """In a pipeline file of kohya, metadata stay, text encoders are copied, and layers that moved up get new names."""
    model, inputs = llama()
    result = pp.prune(model, inputs, 0.7, mode="depth", uniform=True)
    scales = {kohya_key(name, "alpha").partition(".")[0] + ".alpha": torch.tensor(2.0) for name in projections(model)}
    state = {key.replace("_unet_", "_te_"): tensor for key, tensor in (made_adapter(model, kohya_key, projections(model)) | scales).items()}
    other = {"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.randn(3, 5)}
    safetensors.torch.save_file(state | other, tmp_path / "dense.safetensors", metadata={"ss_network_dim": "3"})
    with pytest.raises(PlanMismatchError, match=r"lora_te2_.*such as 'lora_te_lm_head'.*prefix='lora_te_'"):
        pp.carry_lora(tmp_path / "dense.safetensors", result, tmp_path / "pruned.safetensors")
    carried = pp.carry_lora(tmp_path / "dense.safetensors", result, tmp_path / "pruned.safetensors", prefix="lora_te_", plain=True)
    assert carried.untouched == tuple(other)
    stay = [layer for layer in range(4) if f"model.layers.{layer}" not in result.plan.removed_blocks]
    assert 0 < len(stay) < 4
    expected = {
        key.replace(f"_layers_{old}_", f"_layers_{new}_"): tensor
        for new, old in enumerate(stay)
        for key, tensor in state.items()
        if f"_layers_{old}_" in key
    }
    assert carried.state.keys() == expected.keys() | other.keys()
    assert all(torch.equal(carried.state[key], tensor) for key, tensor in expected.items())
    with safetensors.safe_open(tmp_path / "pruned.safetensors", framework="pt") as file:
        assert file.metadata() == {"ss_network_dim": "3"}


class Names(nn.Module):
    """Two layers whose names differ in a dot and an underscore alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleDict({"b": nn.Linear(6, 16)})
        self.a_b = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Run both."""
        return self.a_b(self.a["b"](x).relu())


def test_names_with_underscores_that_two_layers_have_are_an_error() -> None:
    """The error names the key and both layers."""
    result = pp.prune(Names().eval(), torch.randn(2, 6), 0.5)
    with pytest.raises(PlanMismatchError, match=r"lora_unet_a_b\.lora_down\.weight' can belong to 'a\.b' or 'a_b'"):
        pp.carry_lora({"lora_unet_a_b.lora_down.weight": torch.ones(3, 6), "lora_unet_a_b.lora_up.weight": torch.ones(16, 3)}, result)


def test_kernels_between_and_magnitudes_of_columns() -> None:
    """A kernel between A and B stays; magnitudes of columns follow the inputs of a layer whose outputs are whole."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 4, 3, padding=1)).eval()
    inputs = torch.randn(2, 3, 8, 8)
    result = pp.prune(model, inputs, 0.5)
    kept = next(list(cut.kept) for cut in result.surgery.cuts if cut.parameter == "0.weight")
    state = {
        "lora_unet_2.lora_down.weight": torch.randn(3, 16, 1, 1),
        "lora_unet_2.lora_mid.weight": torch.randn(3, 3, 3, 3),
        "lora_unet_2.lora_up.weight": torch.randn(4, 3, 1, 1),
        "lora_unet_2.dora_scale": torch.randn(1, 16, 1, 1),
    }
    carried = pp.carry_lora(state, result).state
    assert torch.equal(carried["lora_unet_2.lora_mid.weight"], state["lora_unet_2.lora_mid.weight"])
    assert torch.equal(carried["lora_unet_2.lora_down.weight"], state["lora_unet_2.lora_down.weight"][:, kept])
    assert torch.equal(carried["lora_unet_2.dora_scale"], state["lora_unet_2.dora_scale"][:, kept])
    rows = state | {"lora_unet_2.dora_scale": torch.randn(4, 1, 1, 1)}
    with pytest.raises(InputError, match=r"lora_unet_2\.dora_scale' holds magnitudes of DoRA: expected whole rows"):
        pp.carry_lora(rows, result)
    with pytest.raises(InputError, match=r"lora_unet_2\.hada_w1_a' belongs to '2'.*found 'hada_w1_a'"):
        pp.carry_lora(state | {"lora_unet_2.hada_w1_a": torch.ones(4, 3)}, result)


def test_another_network_of_a_pipeline_is_copied_with_a_prefix() -> None:
    """Keys of a text encoder are an error, unless the prefix of the pruned network is named; then they are copied and listed."""
    network = zoo.NETWORKS["sd_unet"]
    model = network.build()
    result = pp.prune(model, network.inputs(), 0.6)
    state = made_adapter(model, diffusers_key) | {"text_encoder.layers.0.q_proj.lora_A.weight": torch.randn(3, 5)}
    with pytest.raises(PlanMismatchError, match=r"text_encoder\.layers\.0.*expected layers such as 'unet\..*prefix"):
        pp.carry_lora(state, result)
    carried = pp.carry_lora(state, result, prefix="unet.")
    assert carried.untouched == ("text_encoder.layers.0.q_proj.lora_A.weight",)
    assert torch.equal(carried.state[carried.untouched[0]], state[carried.untouched[0]])


def test_the_wrong_adapter_is_an_error() -> None:
    """Unknown keys, other shapes, missing halves, two ranks and adapters of the pruned network name key, expected and found."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4), nn.LayerNorm(4)).eval()
    result = pp.prune(model, torch.randn(2, 6), 0.5)
    state = made_adapter(model, peft_key)
    up = peft_key("0", "B")
    with pytest.raises(PlanMismatchError, match=r"expected layers such as '0', '2', '3', found the keys 'base_model\.model\.q\.lora_A"):
        pp.carry_lora({peft_key("q", "A"): torch.ones(3, 4)}, result)
    with pytest.raises(PlanMismatchError, match=r"base_model\.model\.9\.lora_A\.weight' belongs to no layer"):
        pp.carry_lora(state | {peft_key("9", "A"): torch.ones(3, 4)}, result)
    with pytest.raises(PlanMismatchError, match=r"base_model\.model\.0\.lora_B\.weight.*expected shape \(16, 3\), found \(8, 3\)"):
        pp.carry_lora(state | {up: torch.ones(8, 3)}, result)
    with pytest.raises(PlanMismatchError, match=r"expected shape \(3, 6\), found \(3, 5\)"):
        pp.carry_lora(state | {peft_key("0", "A"): torch.ones(3, 5)}, result)
    with pytest.raises(PlanMismatchError, match="expected shape"):
        pp.carry_lora(pp.carry_lora(state, result).state, result)
    with pytest.raises(InputError, match=r"incomplete: expected B \(up\)"):
        pp.carry_lora({key: tensor for key, tensor in state.items() if key != up}, result)
    with pytest.raises(InputError, match=r"no single rank.*\(3, 6\) and \(16, 5\)"):
        pp.carry_lora(state | {up: torch.ones(16, 5)}, result)
    with pytest.raises(InputError, match=r"base_model\.model\.3\.lora_A\.weight.*found LayerNorm"):
        pp.carry_lora(state | {peft_key("3", "A"): torch.ones(3, 4), peft_key("3", "B"): torch.ones(4, 3)}, result)


def test_convolutions_in_groups_are_copied_whole_or_rejected() -> None:
    """A convolution in groups that was not cut keeps its adapter; one that was cut is an error."""
    network = zoo.NETWORKS["grouped_conv"]
    model = network.build()
    grouped = next(name for name, module in model.named_modules() if getattr(module, "groups", 1) > 1)
    weight = model.get_submodule(grouped).weight
    state = {peft_key(grouped, "A"): torch.ones(4, weight.shape[1], 3, 3), peft_key(grouped, "B"): torch.ones(weight.shape[0], 4, 1, 1)}
    cut = pp.prune(model, network.inputs(), 0.4)
    with pytest.raises(InputError, match="convolution in groups whose channels were cut"):
        pp.carry_lora(state, cut)
    whole = pp.prune(model, network.inputs(), 0.9, keep=[grouped.rpartition(".")[0].rpartition(".")[0].rpartition(".")[0]])
    carried = pp.carry_lora(state, whole).state
    assert all(torch.equal(carried[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3: expected LORA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
        ({"layer_replication": [[0, 2], [1, 4]]}, "layer_replication"),
    ],
)
def test_other_adapters_of_peft_are_rejected(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Adapters that are no plain LoRA, or that change the network when they are loaded, are an error before anything is written."""
    model, inputs = llama(layers=1)
    result = pp.prune(model, inputs, 0.7)
    source = written_folder(tmp_path / "dense", made_adapter(model, peft_key, projections(model)), **changes)
    with pytest.raises(InputError, match=message):
        pp.carry_lora(source, result, tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_a_destination_goes_with_files_alone(tmp_path: Path) -> None:
    """A file or folder needs a destination, a state dict has none, and a folder without weights is no adapter."""
    model, inputs = llama(layers=1)
    result = pp.prune(model, inputs, 0.7)
    state = made_adapter(model, peft_key)
    with pytest.raises(InputError, match="omit `to`"):
        pp.carry_lora(state, result, tmp_path / "x")
    with pytest.raises(InputError, match="Expected a place"):
        pp.carry_lora(written_folder(tmp_path / "dense", state), result)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"adapter_config\.json and adapter_model\.safetensors"):
        pp.carry_lora(tmp_path / "empty", result, tmp_path / "x")
    (tmp_path / "bad.safetensors").write_text("no tensors")
    with pytest.raises(StorageError, match="Cannot read the adapter"):
        pp.carry_lora(tmp_path / "bad.safetensors", result, tmp_path / "x")


MODEL_FILE = """
import torch, transformers

def build_model():
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)

def example_inputs():
    return {"input_ids": torch.arange(8)[None]}
"""


def test_the_command_writes_adapters_beside_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`prune --lora` writes what `carry_lora` gives for the saved network, and with plain names for the plain folder."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(MODEL_FILE)
    model, _ = llama()
    state = made_adapter(model, peft_key, projections(model))
    written_folder(Path("style"), state)
    safetensors.torch.save_file(state | {"text.key": torch.ones(2)}, "other.safetensors")
    arguments = ("prune", "--model", "net.py", "--target", "0.7", "--mode", "depth", "--uniform", "--json", "--out", "small")
    given = ("--save-pretrained", "plain", "--lora", "style", "--lora", "other.safetensors", "--lora-prefix", "base_model.model.")
    found = json.loads(succeed(*arguments, *given).stdout)
    places = ["small-style", "plain-style", "small-other.safetensors", "plain-other.safetensors"]
    assert [Path(place).name for place in found["lora"]] == places
    loaded = pp.load("small", lambda: llama()[0])
    kept, plain = (safetensors.torch.load_file(f"{place}-style/adapter_model.safetensors") for place in ("small", "plain"))
    names = {name for name, _ in loaded.named_modules()}
    assert {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in kept} <= names
    assert 0 < len(kept) == len(plain) < len(state)
    assert max(int(key.split(".layers.")[1][0]) for key in plain) == len(plain) // 4 - 1
    assert torch.equal(safetensors.torch.load_file("small-other.safetensors")["text.key"], torch.ones(2))
    text = succeed(*(part for part in arguments if part != "--json"), "--lora", "style").stdout
    assert "small-style" in text
    assert "entries of removed blocks" in text


def test_the_command_checks_adapters_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing adapter, another kind of adapter, a place that is taken and one name twice end before the network is built."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("raise RuntimeError('built')")
    written_folder(Path("ia3"), {"a": torch.ones(1)}, peft_type="IA3")
    Path("sub").mkdir()
    for folder in (Path("style"), Path("sub/style")):
        written_folder(folder, {"a": torch.ones(1)})
    assert "cannot" in fail("prune", "--model", "net.py", "--lora", "missing.safetensors").lower()
    assert "peft_type IA3" in fail("prune", "--model", "net.py", "--lora", "ia3")
    assert "called 'style'" in fail("prune", "--model", "net.py", "--lora", "style", "--lora", "sub/style")
    assert "--plan-only" in fail("prune", "--model", "net.py", "--lora", "style", "--plan-only")
    assert "--lora-prefix" in fail("prune", "--model", "net.py", "--lora-prefix", "unet.")
    Path("net-pruned-style").mkdir()
    Path("net-pruned-style/notes").write_text("mine")
    assert "not of a PEFT adapter" in fail("prune", "--model", "net.py", "--lora", "style")
