"""Networks by name, from a diffusers config, or from a model file; and whole configurations by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.diffusion.config.run_config import StepAdaptiveConfig
from proxyprune.errors import ModelFileError, StorageError, UnknownNameError
from proxyprune.modelfile import EXAMPLE_INPUTS, load_model_file, load_weights
from proxyprune.support.nested import tensors_of
from proxyprune.support.seeds import derived_seed


@dataclass(frozen=True)
class Source:
    """The origin of a network's structure.

    Attributes:
        build: Makes the unpruned network; the same weights every time.
        record: Class and settings of a diffusers network, from which a saved pipeline builds it again; None for a model file, whose
            factory has to be given when loading.
        label: For the reader.
    """

    build: Callable[[], nn.Module] = field(repr=False)
    record: Mapping[str, Any] | None
    label: str


Arguments = dict[str, Any]


def _unet(
    widths: tuple[int, ...], attention: tuple[int, ...], norm_groups: int = 8, layers: int = 1
) -> Callable[..., tuple[str, Arguments]]:
    """Return a U-Net of diffusers with attention at the given levels."""

    def arguments(channels: int, size: int, classes: int) -> tuple[str, Arguments]:
        down = [("Attn" if level in attention else "") + "DownBlock2D" for level in range(len(widths))]
        up = [("Attn" if level in attention else "") + "UpBlock2D" for level in reversed(range(len(widths)))]
        found: Arguments = {
            "sample_size": size,
            "in_channels": channels,
            "out_channels": channels,
            "layers_per_block": layers,
            "block_out_channels": list(widths),
            "down_block_types": down,
            "up_block_types": up,
            "attention_head_dim": 16,
            "norm_num_groups": norm_groups,
        }
        if classes:
            found["num_class_embeds"] = classes
        return "UNet2DModel", found

    return arguments


def _dit(channels: int, size: int, classes: int) -> tuple[str, Arguments]:
    """Return a small DiT; it always has a class embedding, so it needs data.labels."""
    return "DiTTransformer2DModel", {
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": 4,
        "sample_size": size,
        "patch_size": 2,
        "num_embeds_ada_norm": max(classes, 1),
    }


def _ddpm_cifar10(channels: int, size: int, classes: int) -> tuple[str, Arguments]:
    """Return the network of Ho et al. 2020 for CIFAR-10: 35.7 M parameters, 6.2 GMACs at 32 x 32."""
    name, found = _unet((128, 256, 256, 256), (1,), norm_groups=32, layers=2)(channels, size, classes)
    return name, found | {"attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6}


MODELS: Mapping[str, tuple[int, Callable[..., tuple[str, Arguments]]]] = {
    "digits": (8, _unet((32, 64), (1,), norm_groups=4)),
    "digits-small": (8, _unet((8, 16), (1,), norm_groups=2)),
    "digits-dit": (8, _dit),
    "fashion16": (16, _unet((32, 48, 64), (1, 2))),
    "fashion28": (28, _unet((32, 48, 64), (1, 2))),
    "fashion32": (32, _unet((32, 48, 64, 64), (2, 3))),
    "ddpm-cifar10": (32, _ddpm_cifar10),
}
"""Preset -> pixels along a side, and class and settings for (channels, size, classes)."""


def image_size(config: StepAdaptiveConfig) -> int | None:
    """Return the pixels along a side that a network is made for, or None if it does not say.

    A preset says so, a diffusers config by its `sample_size`, and a model file by the first example input with four dimensions.
    """
    name = config.model
    if name in MODELS:
        return MODELS[name][0]
    place = Path(name).expanduser()
    if (place / "config.json").is_file() or place.suffix == ".json":
        size = _read_record(place / "config.json" if place.is_dir() else place)["config"].get("sample_size")
        return size if isinstance(size, int) else None
    if (place.suffix == ".py" or ".py:" in name) and config.data.size is None:
        file = load_model_file(name, seed=derived_seed(config.seed, "network") % 2**32)
        if callable(getattr(file.module, EXAMPLE_INPUTS, None)):
            return next((int(tensor.shape[-1]) for tensor in tensors_of(file.example_inputs()) if tensor.ndim == 4), None)
    return None


def source_of(config: StepAdaptiveConfig, shape: tuple[int, int, int], classes: int) -> Source:
    """Return the network of a configuration.

    Args:
        config: Names a preset, a diffusers config (a folder or a .json file), or a model file.
        shape: Channels, height and width of the images.
        classes: Number of classes, 0 for none.

    Raises:
        UnknownNameError: If it is none of these.
        ModelFileError: If it cannot be built.
    """
    name = config.model
    weights = None if config.weights is None else Path(config.weights)
    if name in MODELS:
        kind, settings = MODELS[name][1](shape[0], shape[1], classes)
        record: Mapping[str, Any] = {"class": kind, "config": settings}
        return Source(_from_record(record, config.seed, weights), record, name)
    place = Path(name).expanduser()
    if (place / "config.json").is_file() or place.suffix == ".json":
        record = _read_record(place / "config.json" if place.is_dir() else place)
        if weights is None and place.is_dir():
            weights = _weights_in(place)
        return Source(_from_record(record, config.seed, weights), record, str(place))
    if place.suffix == ".py" or ".py:" in name:
        file = load_model_file(name, seed=derived_seed(config.seed, "network") % 2**32)
        return Source(lambda: file.build_model(weights), None, name)
    raise UnknownNameError(
        f"There is no network {name!r}: presets are {', '.join(MODELS)}; a model file ends in .py, a diffusers config in .json "
        "(or is a folder with config.json)."
    )


def _weights_in(folder: Path) -> Path | None:
    """Return the weights of a diffusers folder: those under its usual names, or the only ones there are."""
    found = sorted(folder.glob("*.safetensors"))
    usual = [path for path in found if path.name in ("diffusion_pytorch_model.safetensors", "model.safetensors")]
    if len(usual) == 1 or len(found) <= 1:
        return next(iter(usual or found), None)
    raise ModelFileError(
        f"'{folder}' holds several files of weights ({', '.join(path.name for path in found)}). Name one of them: --set weights=PATH."
    )


def _read_record(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"The network's config {path} cannot be read: {error.strerror}.") from error
    except json.JSONDecodeError as error:
        raise ModelFileError(f"{path} is not JSON: {error}.") from error
    if not isinstance(data, dict) or "_class_name" not in data:
        raise ModelFileError(f"{path} is not a config of a diffusers network: it has no _class_name.")
    return {"class": data["_class_name"], "config": {key: value for key, value in data.items() if not key.startswith("_")}}


def from_record(record: Mapping[str, Any]) -> nn.Module:
    """Build a diffusers network from class and settings; only models of diffusers are built.

    Raises:
        ModelFileError: If there is no such class, or it refuses the settings.
    """
    import diffusers

    kind: Any = getattr(diffusers, str(record.get("class")), None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)
    if not known:
        raise ModelFileError(f"diffusers has no network class {record.get('class')!r}.")
    try:
        model: nn.Module = kind.from_config(dict(record["config"]))
    except Exception as error:
        raise ModelFileError(f"{record['class']} cannot be built from its settings ({type(error).__name__}: {error}).") from error
    return model


def record_of(model: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return class and settings of a network of a model file, if diffusers builds the same network from them.

    The network that diffusers builds gets the same weights and must give the same outputs, bit for bit: a model file may have exchanged
    layers after the class built them.

    Args:
        model: The network.
        inputs: Example inputs by the name of the argument.

    Returns:
        The record, or None if the class is none of diffusers or its config does not describe this network.
    """
    import diffusers

    name = type(model).__name__
    if getattr(diffusers, name, None) is not type(model) or not isinstance(model, diffusers.ModelMixin):
        return None
    config = json.loads(model.to_json_string())
    record = {"class": name, "config": {key: value for key, value in config.items() if not key.startswith("_")}}
    try:
        again = from_record(record).to(next(model.parameters()).device)
        again.load_state_dict(model.state_dict())
    except (ModelFileError, RuntimeError):  # settings or weights that the class alone does not take
        return None
    with torch.no_grad():
        expected, found = (tensors_of(kept.eval()(**inputs)) for kept in (model, again))
        same = all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    return record if same and repr(again) == repr(model) else None


def _from_record(record: Mapping[str, Any], seed: int, weights: Path | None) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, "network"))
            model = from_record(record)
        if weights is not None:
            load_weights(model, weights)
        return model

    return build
