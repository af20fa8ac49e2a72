"""Layers that compute their weight (weight standardisation, spectral normalisation, parametrisations), made plain ones.

A mean, a variance or a spectral norm over all inputs of a layer changes when inputs leave, and with it the weights that are kept. Such a
layer keeps its inputs, and so does everything that it reads. A plain layer with the computed weight gives the same outputs and can be
cut on both sides. It is not the same layer in training: its weight is no longer computed anew after each step.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from proxyprune.tracing.model_call import evaluation

_Transposed = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
_Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | _Transposed | nn.Embedding
_KINDS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PRODUCTS = frozenset({F.linear, F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.embedding})
_LONGER = (1, 2, 5)
"""Entries by which the inputs of the check are longer than the kernel: with strides, odd and even ones differ."""

_SEED = 0
_TOLERANCE = 1e-4
_ROUNDINGS = 4


@dataclass(frozen=True)
class PlainWeights:
    """A network whose layers have their weights as parameters.

    Attributes:
        model: The network.
        layers: Names of the layers that were replaced; "" is the model itself.
        kept: Names of layers that stayed although they compute their weight, or could not be examined, with the reason.
    """

    model: nn.Module
    layers: tuple[str, ...]
    kept: Mapping[str, str]


def plain_weights(model: nn.Module, layers: str = "*", *, inplace: bool = False) -> PlainWeights:
    """Replace layers that compute their weight by plain ones with the weight that they compute.

    These layers are replaced: `nn.Linear`, `nn.Conv1d` to `nn.Conv3d`, `nn.ConvTranspose1d` to `nn.ConvTranspose3d` and subclasses of
    them, whether a parametrisation, a hook of `torch.nn.utils` or their own forward computes the weight; and `nn.Embedding` (without
    `max_norm`), if a parametrisation or a hook computes it. Any other layer with parametrisations or such hooks stays and is listed in
    `kept`. The same holds for layers with hooks of the caller, layers with a weight of zero, layers that share a parameter with another
    layer, layers whose outputs a plain layer does not give, and layers that fail when they are run alone. Modules of other classes whose
    own forward computes a weight are not examined.

    Outputs in evaluation mode stay the same up to rounding. In training, the weights of the new layers are ordinary parameters: they are
    no longer standardised or normalised after each step. To load a pruned network, build the unpruned one in the same way:
    `pp.load(folder, lambda: pp.plain_weights(build()).model)`.

    Args:
        model: Any network.
        layers: Pattern of the names of the layers to replace; `*` matches everything.
        inplace: Replace in `model` itself. Networks with the hooks of `torch.nn.utils.weight_norm` cannot be copied.

    Returns:
        The network, the names of the layers that were replaced, and those that stayed with the reason.
    """
    result = model if inplace else copy.deepcopy(model)
    holders = Counter(id(tensor) for _, tensor in result.named_parameters(remove_duplicate=False))
    places: dict[nn.Module, list[str]] = {}
    for name, module in result.named_modules(remove_duplicate=False):
        if fnmatchcase(name, layers):
            places.setdefault(module, []).append(name)
    done: list[str] = []
    kept: dict[str, str] = {}
    for module, names in places.items():
        if any(not outer or name.startswith(f"{outer}.") for outer in done for name in names):
            continue  # a part of a layer that was replaced
        plain = _replacement(module)
        if plain is None:
            continue
        if isinstance(plain, str):
            kept[names[0]] = plain
        elif any(holders[id(parameter)] > len(names) for parameter in module.parameters()):
            kept[names[0]] = "shares a parameter with another layer"
        elif not names[0] and inplace:
            kept[""] = "is the model itself, which cannot be replaced in place; use inplace=False"
        else:
            result = _replaced(result, names, plain.train(module.training))
            done.append(names[0])
    return PlainWeights(result, tuple(done), kept)


def _replaced(model: nn.Module, names: list[str], plain: nn.Module) -> nn.Module:
    """Put a layer in each of its places and return the model, which is the layer itself if its name is ""."""
    if not names[0]:
        return plain
    for name in names:
        model.set_submodule(name, plain)
    return model


def _replacement(module: nn.Module) -> _Layer | str | None:
    """Return a plain layer, or the reason why there is none; None if the module does not compute its weight."""
    if not _is_examined(module):
        computes = parametrize.is_parametrized(module) or any(_is_of_torch(hook) for hook in module._forward_pre_hooks.values())
        return f"{type(module).__name__} is not among the layers that are replaced" if computes else None
    assert isinstance(module, _Layer)
    try:
        with evaluation(module):
            weight = _computed_weight(module)
            return _plain_layer(module, weight) if isinstance(weight, Tensor) else weight
    except Exception as error:  # noqa: BLE001 - foreign forwards fail in any way: further arguments, assertions, meta weights
        return f"cannot be run alone ({type(error).__name__}: {error})"


def _is_examined(module: nn.Module) -> bool:
    """Return True if a module is run; embeddings only with torch's forward, because another one may read rows that do not exist."""
    if isinstance(module, nn.Embedding):
        return type(module).forward is nn.Embedding.forward and module.max_norm is None  # with max_norm, a call changes the weight
    return isinstance(module, _Layer)


def _is_of_torch(hook: Any) -> bool:
    """Return True if a hook is one of `torch.nn.utils`, such as `spectral_norm`, which compute a weight before each call."""
    return str(getattr(hook, "__module__", "")).startswith("torch.nn.utils.")


def _has_hooks(layer: nn.Module) -> bool:
    """Return True if a layer has hooks that do more than compute its weight."""
    before = list(layer._forward_pre_hooks.values())
    if layer._forward_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return True
    computes_weight = "weight" in vars(layer) and len(before) == 1  # a weight that is no parameter is set by the only hook
    return not computes_weight and not all(_is_of_torch(hook) for hook in before)


def _computed_weight(layer: _Layer) -> Tensor | str | None:
    """Return the weight that a layer computes, or the reason why it has no single one; None if the weight is its parameter or buffer."""
    hooked = _has_hooks(layer)
    seen = _SeenWeights()
    with seen:
        (layer.forward if hooked else layer)(_input(layer, _LONGER[0]))  # hooks of the caller do not see random inputs
    own = {id(tensor) for tensor in (*layer.parameters(), *layer.buffers())}
    if not seen.weights:
        return "multiplies by its weight in another way than torch's layers"
    if all(id(weight) in own for weight in seen.weights):
        return None
    if hooked:
        return "has hooks, which a plain layer would lose"
    return seen.weights[0] if len(seen.weights) == 1 else "multiplies by more than one weight"


class _SeenWeights(TorchFunctionMode):
    """Note the weights of linear layers, convolutions and embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note the weight if the function multiplies by one, and call the function."""
        if func in _PRODUCTS:
            self.weights.append(args[1] if len(args) > 1 else kwargs["weight"])
        return func(*args, **(kwargs or {}))


def _input(layer: _Layer, longer: int) -> Tensor:
    """Return random numbers that a layer takes, drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(_SEED)
    tensors = [tensor for tensor in (*layer.parameters(), *layer.buffers()) if tensor.is_floating_point()]
    like = tensors[0] if tensors else torch.empty(0)
    if isinstance(layer, nn.Embedding):
        return torch.randint(layer.num_embeddings, (2, longer), generator=generator).to(like.device)
    if isinstance(layer, nn.Linear):
        shape: tuple[int, ...] = (2, layer.in_features)
    else:
        reach = [dilation * (size - 1) for size, dilation in zip(layer.kernel_size, layer.dilation, strict=True)]
        shape = (2, int(layer.in_channels), *(entries + longer for entries in reach))
    return torch.randn(shape, generator=generator).to(like)


def _plain_layer(layer: _Layer, weight: Tensor) -> _Layer | str:
    """Return a plain layer with a weight, or the reason why it does not give the outputs of the layer."""
    if not 0 < float(weight.abs().max()) < float("inf"):
        return "has a weight that is zero or not finite, so its outputs do not show what it does with its input"
    bias = getattr(layer, "bias", None)
    trained = any(parameter.requires_grad for parameter in layer.parameters())
    plain = _empty(layer, bias=isinstance(bias, Tensor))
    plain.weight = nn.Parameter(weight.detach().clone(), requires_grad=trained)
    if isinstance(bias, Tensor):
        plain.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad if isinstance(bias, nn.Parameter) else trained)
    if all(_agree(layer, plain, _input(layer, longer)) for longer in _LONGER):
        return plain
    return "does more with its input than a plain layer, such as padding that depends on its size"


def _empty(layer: _Layer, *, bias: bool) -> _Layer:
    """Return a plain layer of the same kind and sizes, without initial values, which would be drawn."""
    if isinstance(layer, nn.Embedding):
        options: dict[str, Any] = {name: getattr(layer, name) for name in ("padding_idx", "scale_grad_by_freq", "sparse")}
        return nn.Embedding(layer.num_embeddings, layer.embedding_dim, device="meta", **options)
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, layer.out_features, bias=bias, device="meta")
    names = ["stride", "padding", "dilation", "groups", "padding_mode", *(["output_padding"] if isinstance(layer, _Transposed) else [])]
    options = {name: getattr(layer, name) for name in names}
    kind = next(kind for kind in _KINDS if isinstance(layer, kind))
    made: _Layer = kind(layer.in_channels, layer.out_channels, layer.kernel_size, bias=bias, device="meta", **options)
    return made


def _agree(layer: _Layer, plain: _Layer, x: Tensor) -> bool:
    """Compare outputs; the tolerance is a share of the largest product with the weight, however large the bias is."""
    expected, found = layer(x), plain(x)
    if expected.shape != found.shape:
        return False
    bias = getattr(plain, "bias", None)
    products = found if bias is None else found - bias.reshape(-1, *[1] * (found.dim() - 2))
    rounding = _ROUNDINGS * torch.finfo(found.dtype).eps * float(found.abs().max())
    return torch.allclose(expected, found, rtol=0.0, atol=_TOLERANCE * float(products.abs().max()) + rounding)
