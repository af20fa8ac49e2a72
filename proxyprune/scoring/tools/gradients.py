"""Gradients of the loss on calibration batches, times the weights: what Taylor and Fisher scores are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from proxyprune.errors import MissingNeedError, ScoringError
from proxyprune.scoring.tools.calibration import Calibration
from proxyprune.scoring.tools.weights import all_finite


def weight_times_gradient(calibration: Calibration, index: int) -> dict[str, Tensor]:
    """Elementwise w * dL/dw on one batch, by every name of each parameter that the loss depends on; errors as of `loss_gradients`."""
    products = {parameter: parameter.detach() * gradient for parameter, gradient in loss_gradients(calibration, index).items()}
    return {name: products[parameter] for name, parameter in differentiable_parameters(calibration.model) if parameter in products}


def loss_gradients(calibration: Calibration, index: int) -> dict[nn.Parameter, Tensor]:
    """dL/dw on one batch, dense, of each parameter that the loss depends on.

    Raises:
        MissingNeedError: If the loss does not depend on the model through autograd.
        ScoringError: If the loss or a gradient is not finite.
    """
    names = dict(differentiable_parameters(calibration.model))
    unique = list({id(parameter): parameter for parameter in names.values()}.values())
    with calibration.untouched(index), torch.inference_mode(mode=False), torch.enable_grad():
        for parameter in unique:
            parameter.requires_grad_(True)  # a frozen layer can be pruned like any other
        loss = calibration.loss(index)
        calibration.finite(loss, index)
        gradients = _gradients(calibration.scorer, loss, unique, index)
    _check_finite(calibration.scorer, names, gradients, index)
    return {parameter: gradient for parameter, gradient in zip(unique, gradients, strict=True) if gradient is not None}


def _gradients(scorer: str, loss: Tensor, parameters: list[nn.Parameter], index: int) -> list[Tensor | None]:
    """dL/dparameter, dense; None where the loss does not depend on it. `.grad` is not written."""
    found: Iterable[Tensor | None] = ()
    if loss.requires_grad:
        try:
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        except RuntimeError as error:
            raise ScoringError(
                f"Scorer '{scorer}': autograd failed on batch {index}: {error}. loss_fn must return a loss that can be differentiated once "
                "and must not call backward() itself; reentrant activation checkpointing has to be off."
            ) from error
    gradients = [gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient for gradient in found]
    if all(gradient is None for gradient in gradients):
        raise MissingNeedError(
            f"Scorer '{scorer}' got no gradients: the loss of batch {index} does not depend on the model's parameters through autograd. "
            "loss_fn must call the model without torch.no_grad() and return the loss without .detach() or .item()."
        )
    return gradients


def _check_finite(scorer: str, names: Mapping[str, nn.Parameter], gradients: Iterable[Tensor | None], index: int) -> None:
    first_name: dict[int, str] = {}
    for name, parameter in names.items():
        first_name.setdefault(id(parameter), name)
    for name, gradient in zip(first_name.values(), gradients, strict=True):
        if gradient is not None and not all_finite(gradient):
            raise ScoringError(
                f"Scorer '{scorer}': the gradient of '{name}' on batch {index} holds NaN or infinite values. "
                "Look at that batch; in half precision, score in float32."
            )


def differentiable_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Differentiable parameters, by every name."""
    return ((name, p) for name, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point())
