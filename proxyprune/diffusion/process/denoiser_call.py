"""One way to call any denoiser: noisy images, times, and a condition in; the predicted tensor out."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.errors import ModelFileError

_TIME_NAMES = ("timestep", "timesteps", "t", "time")
_CONDITION_NAMES = ("class_labels", "encoder_hidden_states", "y", "labels", "label", "context", "condition", "cond", "classes")


@dataclass(frozen=True)
class Calling:
    """The call of a network's forward.

    Attributes:
        image: Name of the argument that takes the noisy images.
        time: Name of the one that takes the times.
        condition: Name of the one that takes class labels or embeddings; None for a network without.
    """

    image: str
    time: str
    condition: str | None

    @classmethod
    def of(cls, model: nn.Module, *, conditional: bool) -> Calling:
        """Read the signature of a network.

        Args:
            model: The network.
            conditional: Whether labels or embeddings are there to be given.

        Raises:
            ModelFileError: If it takes no time, or no condition where one is to be given.
        """
        parameters = {
            name: parameter
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }
        names = list(parameters)
        time = next((name for name in names[1:] if name in _TIME_NAMES), None)
        if time is None:
            raise ModelFileError(
                f"The forward of {type(model).__name__} takes ({', '.join(names)}); a denoiser takes noisy images first and has an "
                f"argument for the time, called one of {', '.join(_TIME_NAMES)}."
            )
        taken = [name for name in _CONDITION_NAMES if name in names[1:]]  # a text-to-image network takes class labels too, if it must
        found = next((name for name in taken if parameters[name].default is inspect.Parameter.empty), next(iter(taken), None))
        if conditional and found is None:
            raise ModelFileError(
                f"Labels or embeddings are to be given, but the forward of {type(model).__name__} takes ({', '.join(names)}): none of "
                f"{', '.join(_CONDITION_NAMES)}. Turn data.labels off, or let it take one."
            )
        return cls(names[0], time, found if conditional else None)

    def check(self, model: nn.Module) -> None:
        """Refuse a network that is called in another way.

        Raises:
            ModelFileError: If its forward lacks an argument.
        """
        parameters = inspect.signature(model.forward).parameters
        named = [name for name in (self.image, self.time, self.condition) if name is not None]
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        if missing := [name for name in named if name not in parameters and not anything]:
            raise ModelFileError(
                f"The network takes ({', '.join(parameters)}); the one that was trained took {', '.join(named)}, so {', '.join(missing)} "
                "is missing. Give the model file that it was trained with (--model)."
            )

    def arguments(self, images: Tensor, times: Tensor, condition: Tensor | None = None) -> dict[str, Tensor]:
        """Keyword arguments of the forward."""
        given = {self.image: images, self.time: times}
        if self.condition is not None and condition is not None:
            given[self.condition] = condition
        return given

    def predict(self, model: nn.Module, images: Tensor, times: Tensor, condition: Tensor | None = None) -> Tensor:
        """Run the network; [images, channels, height, width] in and out.

        A network that returns twice the channels predicts variances as well; they are not used.
        """
        output = output_of(model(**self.arguments(images, times, condition)))
        return output[:, : images.shape[1]] if output.shape[1] == 2 * images.shape[1] else output


def output_of(output: Any) -> Tensor:
    """Return the tensor in whatever a network returns."""
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "sample"):
        return torch.as_tensor(output.sample)
    if isinstance(output, tuple | list) and output:
        return output_of(output[0])
    raise ModelFileError(f"A denoiser returns a tensor, or something with .sample; found {type(output).__name__}.")
