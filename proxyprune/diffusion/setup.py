"""The objects that every stage of a run needs: data, network, process, accelerator; built once."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from proxyprune.api import trace
from proxyprune.diffusion.config.run_config import StageConfig, StepAdaptiveConfig
from proxyprune.diffusion.data.image_data import ImageData, load_data
from proxyprune.diffusion.networks import Source, image_size, source_of
from proxyprune.diffusion.process.denoiser_call import Calling
from proxyprune.diffusion.process.noise_schedule import FloatArray, NoiseSchedule, snr_of_steps, training_scheduler
from proxyprune.diffusion.process.objective import Losses, Process, relative_weight
from proxyprune.diffusion.process.scheduler import Scheduler
from proxyprune.diffusion.sampling.schedulers import sampler, unusable_steps
from proxyprune.diffusion.training.accelerator import Accelerator
from proxyprune.diffusion.training.batches import Draws
from proxyprune.diffusion.training.ledger import training_macs
from proxyprune.errors import InputError, ModelFileError, ProxyPruneError, StorageError
from proxyprune.graph.model_graph import ModelGraph
from proxyprune.graph.time_cost import TimeCost
from proxyprune.scoring.registry import find


@dataclass
class Setup:
    """A configuration, brought to life.

    Attributes:
        config: The configuration.
        data: The images.
        source: The network's structure.
        schedule: The noise process.
        calling: How the network is called.
        processes: accelerate's Accelerator, or None for planning alone.
        base_times: Predicted time of the base at any widths, once it is known.
    """

    config: StepAdaptiveConfig
    data: ImageData
    source: Source
    schedule: NoiseSchedule
    calling: Calling
    processes: Accelerator | None = field(default=None, repr=False)
    base_times: TimeCost | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, config: StepAdaptiveConfig, accelerator: Accelerator | None = None) -> Setup:
        """Read the data, build the network and find the scorer once, so that what is wrong with them shows before anything is trained."""
        if config.cuts:
            find(config.pruning.scorer, dict(config.pruning.options))
        data = load_data(config.data, image_size(config))
        source = source_of(config, data.shape, data.classes)
        model = source.build()
        calling = Calling.of(model, conditional=data.labels is not None)
        schedule = NoiseSchedule.of(config.noise)
        _check_end(schedule, config)
        found = cls(config, data, source, schedule, calling, accelerator)
        world = 1 if accelerator is None else accelerator.num_processes
        if config.run.batch_size % world:
            raise InputError(f"run.batch_size is {config.run.batch_size}, which {world} processes cannot share evenly.")
        shape = found._predicted_shape(model)
        if shape[1:] != data.shape:
            raise InputError(f"The network turns images {data.shape} into {shape[1:]}; a denoiser keeps the shape.")
        if accelerator is not None and world > 1 and found._leaves_out(model):
            from accelerate.utils import DistributedDataParallelKwargs

            accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)  # torch would wait for their gradients
        return found

    def _leaves_out(self, model: nn.Module) -> bool:
        """Return True if some parameters of a network have no part in its prediction."""
        output = self.calling.predict(model.eval(), *self._example())
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return any(gradient is None for gradient in torch.autograd.grad(output.square().mean(), parameters, allow_unused=True))

    def _predicted_shape(self, model: nn.Module) -> tuple[int, ...]:
        """Shape of a prediction for one image, at the last timestep and of the last class: embeddings that are too small show here."""
        image, times, condition = self._example()
        times = times + times.new_tensor(float(self.schedule.times.max()))
        if condition is not None and self.data.classes:
            condition = condition + self.data.classes - 1
        try:
            with torch.no_grad():
                return tuple(self.calling.predict(model.eval(), image, times, condition).shape)
        except ProxyPruneError:
            raise
        except Exception as error:  # the network is the user's, so anything may come out of it
            given = "no condition" if condition is None else f"{self.calling.condition} {tuple(condition.shape)} {condition.dtype}"
            given += f", the last of {self.data.classes} classes" if condition is not None and self.data.classes else ""
            raise ModelFileError(
                f"The network {self.source.label} does not run on one image {tuple(image.shape)} with {given}: {type(error).__name__}: "
                f"{error}. Labels and embeddings come from the data, with data.labels=true."
            ) from error

    def _example(self) -> tuple[Tensor, Tensor, Tensor | None]:
        labels = self.data.labels
        dtype = torch.long if self.config.noise.schedule != "flow" else torch.float32
        return torch.zeros(1, *self.data.shape), torch.zeros(1, dtype=dtype), None if labels is None else torch.zeros_like(labels[:1])

    @property
    def example_inputs(self) -> dict[str, Tensor]:
        """The example inputs of a trace: one image."""
        return self.calling.arguments(*self._example())

    def placed_inputs(self) -> dict[str, Tensor]:
        """Return the example inputs on the device of the run."""
        return {name: value.to(self.device) for name, value in self.example_inputs.items()}

    @functools.cached_property
    def graph(self) -> ModelGraph:
        """Trace of the unpruned network."""
        return trace(self.source.build().eval(), self.example_inputs, norm_groups=self.config.pruning.norm_groups, probe=False)

    @property
    def base_macs(self) -> int:
        """MACs of the unpruned network, one image."""
        return self.graph.macs

    @functools.cached_property
    def limit_macs(self) -> int:
        """Training MACs of the full-size reference."""
        return training_macs(self.base_macs, self.config.compute.reference_steps * self.config.run.batch_size)

    @property
    def only_base(self) -> bool:
        """True if the base gets all the compute, so that there are no experts."""
        return self.config.compute.base_share >= 1.0

    @property
    def accelerator(self) -> Accelerator:
        """accelerate's Accelerator.

        Raises:
            InputError: If this setup has none.
        """
        if self.processes is None:
            raise InputError(
                "This setup has no accelerator, so it can only plan. Make it with Setup.of(config, make_accelerator(config, run))."
            )
        return self.processes

    @property
    def device(self) -> torch.device:
        """The device that training runs on."""
        return torch.device("cpu") if self.processes is None else self.processes.device

    def base_model(self, weights: dict[str, Tensor] | None = None) -> nn.Module:
        """Return the unpruned network on the device, with weights when given."""
        model = self.source.build()
        if weights is not None:
            try:
                model.load_state_dict(weights)
            except RuntimeError as error:
                raise StorageError(
                    f"The weights of the base do not fit the network {self.source.label}: {' '.join(str(error).split())[:300]}. Was its "
                    "file changed? Restore it, or train in a new folder."
                ) from error
        return model.to(self.device)

    def process(self, settings: StageConfig, first: int, last: int, base_losses: Losses = ()) -> Process:
        """Return the noise process with the loss weights of a stage; those against the base need the base's losses, (timestep, loss)."""
        if settings.weighting == "relative" and base_losses:
            return Process(self.schedule, weights=relative_weight(base_losses, first, last, len(self.schedule.times)))
        return Process(self.schedule, settings.min_snr_gamma)

    def draws(self, stage: str, settings: StageConfig, first: int, last: int, base_losses: Losses = ()) -> Draws:
        """Batches of a stage."""
        process = self.process(settings, first, last, base_losses)
        rank, world = (0, 1) if self.processes is None else (self.processes.process_index, self.processes.num_processes)
        return Draws(self.data, process, self.config.seed, stage, first, last, self.config.run.batch_size, rank, world)

    def default_sampler(self) -> Scheduler:
        """Return the scheduler of budgets and sample grids: the configured one, or DDIM, or Euler for flow matching."""
        scheduler, name = training_scheduler(self.config.noise), self.config.budgets.sampler
        return scheduler if name is None and self.config.noise.schedule == "flow" else sampler(name or "ddim", scheduler)

    def sampler_snr(self) -> FloatArray:
        """SNR of the steps of that sampler, in dB."""
        scheduler = self.default_sampler()
        scheduler.set_timesteps(self.config.budgets.sampler_steps)
        return snr_of_steps(scheduler)[unusable_steps(scheduler) :]


def _check_end(schedule: NoiseSchedule, config: StepAdaptiveConfig) -> None:
    """Refuse a process that leaves a good part of the image at its last timestep, because sampling begins with noise alone.

    Raises:
        InputError: If it does.
    """
    signal = float(schedule.signal[-1])
    if signal > _MOST_SIGNAL:
        raise InputError(
            f"With noise.schedule {config.noise.schedule!r} and noise.timesteps {config.noise.timesteps}, {signal:.0%} of the image is "
            "left at the last timestep, but sampling begins with pure noise. Use squaredcos_cap_v2, 1,000 timesteps, or "
            "zero_terminal_snr=true."
        )


_MOST_SIGNAL = 0.2
