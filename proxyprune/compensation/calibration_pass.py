"""Run the unpruned and the pruned network on the same batches, and pair what each layer did in both."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.compensation.cut_norms import NormOutputs, cut_norms
from proxyprune.compensation.moments import Moments
from proxyprune.compensation.readers import Networks, Reader
from proxyprune.errors import InputError, ProxyPruneError
from proxyprune.scoring.contract import LossFunction
from proxyprune.scoring.tools.calibration import seeded
from proxyprune.scoring.tools.hooks import Hook, hooked
from proxyprune.scoring.tools.input_moments import first_tensor, inverse_square_norms
from proxyprune.scoring.tools.layer_views import computes_its_product
from proxyprune.support.seeds import derived_seed
from proxyprune.tracing.model_call import call_arguments, evaluation, on_device_of
from proxyprune.tracing.module_state import unchanged

Measured = tuple[int, Moments, Moments]


class _Reached(BaseException):
    """Ends a forward after the last layer that is watched; no `except Exception` of a loss catches it."""


@dataclass(frozen=True)
class CalibrationData:
    """Batches, and how a network is run on one.

    Attributes:
        batches: Whatever `loss_fn` understands; without one, example inputs of the network.
        loss_fn: loss_fn(model, batch) -> scalar, or None.
        seed: Randomness of every batch follows from it and from the batch's index.
    """

    batches: Sequence[Any] = field(repr=False)
    loss_fn: LossFunction | None = field(repr=False)
    seed: int

    def run(self, model: nn.Module, index: int) -> Any:
        """Run a network on one batch.

        Returns:
            The loss, or the network's output if there is no loss.

        Raises:
            InputError: If the network or the loss raises.
        """
        batch = self.batches[index]
        with seeded(model, derived_seed(self.seed, "batch", index)), torch.no_grad():
            try:
                if self.loss_fn is not None:
                    return self.loss_fn(model, batch)
                args, kwargs = call_arguments(on_device_of(model, batch))
                return model(*args, **kwargs)
            except ProxyPruneError:
                raise
            except Exception as error:
                called = "loss_fn(model, batch)" if self.loss_fn is not None else "The network"
                advice = "" if self.loss_fn is not None else " Batches that hold more than the network's arguments need loss_fn."
                raise InputError(
                    f"Compensation: {called} raised {type(error).__name__} on calibration batch {index}: {error}.{advice}"
                ) from error


@contextlib.contextmanager
def measuring(*models: nn.Module) -> Iterator[None]:
    """Inside, networks are in evaluation mode; afterwards modes, buffers and attributes are as before."""
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(unchanged(model))
            stack.enter_context(evaluation(model))
        yield


@dataclass(frozen=True)
class Survey:
    """One run of both networks, to see what can be watched.

    Attributes:
        readers: Readers that were called and compute their product, in the order of their first call.
        skipped: Other readers -> the reason.
        once: True if each reader is called once; a run may then end early.
    """

    readers: tuple[Reader, ...]
    skipped: Mapping[str, str]
    once: bool


def survey(networks: Networks, readers: Sequence[Reader], data: CalibrationData) -> Survey:
    """Run both networks on the first batch, and check every reader."""
    calls: dict[str, int] = {}
    foreign: set[str] = set()
    found: dict[str, int] = {}

    def watch(reader: Reader) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            calls[reader.name] = calls.get(reader.name, 0) + 1
            value = first_tensor((args, tuple(kwargs.values())))
            if value is None or not isinstance(output, Tensor) or not computes_its_product(module, reader.view, value, output):
                foreign.add(reader.name)

        return hook

    def count(reader: Reader) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            found[reader.name] = found.get(reader.name, 0) + 1

        return hook

    with hooked((reader.dense, watch(reader)) for reader in readers):
        data.run(networks.dense, 0)
    with hooked((reader.pruned, count(reader)) for reader in readers):
        data.run(networks.pruned, 0)
    by_name = {reader.name: reader for reader in readers}
    skipped = {name: "it is not called as a module" for name in by_name if name not in calls}
    skipped |= dict.fromkeys(foreign, "it computes something else than its class")
    skipped |= {name: "the pruned network calls it another number of times" for name in calls if found.get(name) != calls[name]}
    usable = [by_name[name] for name in calls if name not in skipped]
    return Survey(tuple(usable), skipped, all(calls[reader.name] == 1 for reader in usable))


@dataclass(frozen=True)
class Pass:
    """Settings of one run over the batches that sums moments.

    Attributes:
        from_dense: Take the features from the dense network too, restricted to what stays; the pruned network is not run.
        weighted: Weight positions of linear layers by the inverse of the squared norm of the dense output.
        may_stop: End each run after the last reader.
    """

    from_dense: bool
    weighted: bool
    may_stop: bool


def paired_moments(
    networks: Networks,
    readers: Sequence[Reader],
    data: CalibrationData,
    how: Pass,
    advance: Callable[[int], None],
) -> dict[str, tuple[Moments, Moments]]:
    """Sum the moments of several readers over all batches.

    The features are what the pruned layer reads. The targets are what the dense layer yields at the same positions. Features from the dense
    network are what the pruned layer would read if nothing else were cut; behind a norm over channels, that norm sees what stays only.

    Args:
        networks: Before and after the cut; in the pruned one, the layers before these are refitted already.
        readers: In the order of their calls.
        data: Batches; those of even index are summed apart from those of odd index.
        how: What is taken from where.
        advance: Called with the index of every batch that is done.

    Returns:
        Reader's name -> moments over even batches, and over odd ones.
    """
    sizes = {reader.name: reader.sizes() for reader in readers}
    devices = {reader.name: next(reader.pruned.parameters()).device for reader in readers}
    moments = {name: (Moments(size, devices[name]), Moments(size, devices[name])) for name, size in sizes.items()}
    waiting: dict[str, deque[tuple[Tensor, Tensor | None]]] = {reader.name: deque() for reader in readers}
    norms = NormOutputs(cut_norms(networks) if how.from_dense else ())
    half = 0

    def record(reader: Reader) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = first_tensor((args, tuple(kwargs.values())))
            assert value is not None  # the survey has seen this layer
            linear = reader.view.exact and not hasattr(module, "kernel_size")
            weights = inverse_square_norms(output) if how.weighted and linear else None
            target = reader.target(value, output)
            if how.from_dense:
                behind_norm = norms.features(reader, value)
                features = reader.dense_features(value) if behind_norm is None else behind_norm
                moments[reader.name][half].add(features, target, weights)
            else:
                waiting[reader.name].append((target.clone(), weights))
            if how.may_stop and reader is readers[-1]:
                raise _Reached

        return hook

    def add(reader: Reader) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            value = first_tensor((args, tuple(kwargs.values())))
            if value is not None and waiting[reader.name]:
                target, weights = waiting[reader.name].popleft()
                moments[reader.name][half].add(reader.view.inputs(module, value), target, weights)
            if how.may_stop and reader is readers[-1]:
                raise _Reached

        return hook

    for index in range(len(data.batches)):
        half = index % 2
        with hooked([*norms.hooks(), *((reader.dense, record(reader)) for reader in readers)]), contextlib.suppress(_Reached):
            data.run(networks.dense, index)
        norms.clear()
        if not how.from_dense:
            with hooked((reader.pruned, add(reader)) for reader in readers), contextlib.suppress(_Reached):
                data.run(networks.pruned, index)
        for queue in waiting.values():
            queue.clear()
        advance(index + 1)
    return moments


def run_until(model: nn.Module, last: str, data: CalibrationData, index: int, hooks: Mapping[str, Hook]) -> Tensor | None:
    """Run a network on one batch up to the first call of a module.

    Args:
        model: The network.
        last: The module.
        data: Batches.
        index: Which batch.
        hooks: Forward hooks of other modules.

    Returns:
        The first tensor of the module's output, or None if it is not called.
    """
    found: list[Tensor | None] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found.append(first_tensor(output))
        raise _Reached

    watched = [(model.get_submodule(name), hook) for name, hook in hooks.items()]
    with hooked([*watched, (model.get_submodule(last), stop)]), contextlib.suppress(_Reached):
        data.run(model, index)
    return found[0] if found else None
