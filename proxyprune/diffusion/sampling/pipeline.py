"""`StepAdaptivePipeline`: experts, intervals and a scheduler as one diffusers pipeline, saved without pickle."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from safetensors.torch import save_model
from torch import Tensor

from proxyprune.diffusion.data.image_data import to_bytes
from proxyprune.diffusion.process.scheduler import Scheduler
from proxyprune.diffusion.sampling.denoise import ExpertSampler, conditions, image_generators, initial_noise
from proxyprune.diffusion.sampling.experts import WHOLE, Experts, Factory, check_expert, copy_expert, is_whole, load_expert
from proxyprune.diffusion.sampling.hub import local_folder
from proxyprune.diffusion.sampling.pipeline_folder import (
    TRAINED_WITH,
    factory_of,
    read_pipeline,
    read_scheduler,
    replace_pipeline,
    write_card,
    write_description,
)
from proxyprune.diffusion.sampling.pipeline_record import Blueprint
from proxyprune.diffusion.sampling.placement import target_of
from proxyprune.diffusion.sampling.schedulers import sampler
from proxyprune.diffusion.sampling.standard_files import write_standard_files
from proxyprune.diffusion.sampling.step_cache import step_of
from proxyprune.errors import InputError, StorageError
from proxyprune.support.progress import bar
from proxyprune.support.summary import Bar, Summary, SummaryTable
from proxyprune.support.wording import counted, quantity

StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any] | None]


class StepAdaptivePipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers ships no types
    """One denoiser for each interval of noise levels, and any diffusers scheduler to sample with.

    Args:
        experts: The networks.
        blueprint: Everything else about them.
        scheduler: A diffusers scheduler for the process that they were trained on; see `use`.
        folders: Where each expert is saved, or None for one that is whole and only in memory.
        trained_with: The scheduler of the process that the networks were trained on, which other samplers are made from; `scheduler` by
            default.
    """

    def __init__(
        self,
        experts: Experts,
        blueprint: Blueprint,
        scheduler: Scheduler,
        folders: Sequence[Path | None] = (),
        trained_with: Scheduler | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(scheduler=scheduler)
        self.experts = experts
        self.blueprint = blueprint
        self.folders = tuple(folders) or (None,) * len(experts)
        self._trained_with = scheduler if trained_with is None else trained_with
        self._rehearsed: set[str] = set()

    @property
    def device(self) -> torch.device:
        """The device that the experts run on."""
        return self.experts.device

    @property
    def components(self) -> dict[str, Any]:
        """The components of a pipeline, in the sense of diffusers: the scheduler; experts are no part that another pipeline could take."""
        return {"scheduler": self.scheduler}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the experts run in; images and scheduler arithmetic are float32."""
        return torch.float32 if self.experts.dtype is None else self.experts.dtype

    def to(self, *args: Any, **kwargs: Any) -> StepAdaptivePipeline:
        """Move the experts to a device, a dtype, or both. If that fails, they stay as they were.

        Images and the arithmetic of the scheduler stay in float32, and files keep the precision that they were saved in.

        Args:
            args: A device, a dtype, or both.
            kwargs: The same as `device=` and `dtype=` (or `torch_dtype=`).

        Raises:
            InputError: If the device does not take the experts, or they do not run there in this dtype.
        """
        device, dtype = target_of(args, kwargs)
        self.experts.to(device, dtype, None if self.blueprint.takes_embeddings else self._try)
        return self

    @torch.no_grad()
    def _try(self, model: torch.nn.Module) -> None:
        """Run a network on one image of its own device and dtype."""
        like = next(model.parameters())
        labels = conditions(self.blueprint.classes, 0, 1)
        times = self._trained_with.timesteps[-1:].to(like.device)
        image = torch.zeros(1, *self.blueprint.shape, device=like.device, dtype=like.dtype)
        with step_of(model, 0, 1):
            self.blueprint.calling.predict(model, image, times, None if labels is None else labels.to(like.device))

    def __str__(self) -> str:
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()

    def summary(self) -> Summary:
        """Return intervals and experts with their cost on one screen; `print(pipeline)` shows it."""
        blueprint = self.blueprint
        ends = ["", *(f"{boundary:.1f}" for boundary in blueprint.intervals.boundaries_db), ""]
        rows = []
        for index, (macs, params) in enumerate(zip(blueprint.macs, blueprint.params, strict=True)):
            high, low = ends[index], ends[index + 1]
            span = f"{low} to {high}" if low and high else f"above {low}" if low else f"below {high}" if high else "all"
            state = "in memory" if self.experts.held(index) is not None else "on disk"
            left = macs / blueprint.base_macs
            rows.append((f"expert {index}", span, quantity(macs), f"{left:.1%}", quantity(params), state, Bar(left)))
        headings = ("interval", "SNR (dB)", "MACs", "of the base", "parameters", "", "")
        title = (
            f"{type(self).__name__}: {counted(len(rows), 'expert')} for images of {' × '.join(map(str, blueprint.shape))}, "
            f"sampled with {type(self.scheduler).__name__} on {self.device}{'' if self.experts.dtype is None else f' in {self.dtype}'}"
        )
        network = "a model file" if blueprint.network is None else str(blueprint.network["class"])
        facts = f"Base: {network}, {quantity(blueprint.base_macs)} MACs" + (f", {blueprint.classes} classes." if blueprint.classes else ".")
        return Summary(title, (SummaryTable(headings, tuple(rows)),), (facts, *blueprint.notes))

    def use(self, name: str) -> StepAdaptivePipeline:
        """Sample with another scheduler for the same process.

        Args:
            name: "ddim", "ddpm", "dpm++", "euler", "heun", "unipc", "flow", or the name of a class in diffusers.

        Returns:
            This pipeline.

        Raises:
            InputError: If diffusers has none of this name, or it samples another process.
        """
        self.scheduler = sampler(name, self._trained_with)
        return self

    def with_scheduler(self, scheduler: Scheduler) -> StepAdaptivePipeline:
        """Sample with this scheduler.

        Args:
            scheduler: Any of diffusers, for the process that the networks were trained on; sampling checks that.

        Returns:
            This pipeline.
        """
        self.scheduler = scheduler
        return self

    def compile(self, **options: Any) -> StepAdaptivePipeline:
        """Compile every expert with torch.compile when it is first needed.

        Args:
            options: For torch.compile.

        Returns:
            This pipeline.
        """
        self.experts.compile_options = options
        return self

    def enable_cache(self, config: Any) -> StepAdaptivePipeline:
        """Give every expert a cache of diffusers, as `enable_cache` of its models does.

        Each expert has its own, which is empty when an image begins. MACs are counted as without a cache.

        Args:
            config: A configuration of diffusers.hooks, such as `FirstBlockCacheConfig(threshold=0.1)`.

        Returns:
            This pipeline.

        Raises:
            InputError: If a cache is enabled already, or this one does not fit the experts.
        """
        self.experts.enable_cache(config)
        return self

    def disable_cache(self) -> StepAdaptivePipeline:
        """Compute every block in every step again.

        Returns:
            This pipeline.
        """
        self.experts.disable_cache()
        return self

    def sampling_macs(self, steps: int) -> int:
        """Exact MACs of one image: every step of the present scheduler at the cost of the expert that takes it.

        Args:
            steps: Sampling steps.
        """
        return self._sampler().macs(steps)

    def relative_macs(self, steps: int) -> float:
        """Return the same, as a share of what the unpruned network would cost.

        Args:
            steps: Sampling steps.
        """
        sampling = self._sampler()
        return sampling.macs(steps) / (self.blueprint.base_macs * len(sampling.route(steps)))

    def _sampler(self) -> ExpertSampler:
        blueprint = self.blueprint
        return ExpertSampler(self.experts, blueprint.intervals, blueprint.calling, self.scheduler, self._trained_with, self._rehearsed)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        seed: int = 0,
        condition: Tensor | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> Any:
        """Sample one batch.

        Args:
            batch_size: Number of images.
            num_inference_steps: Steps of the scheduler.
            seed: Image i depends on the seed and on i, not on the batch size.
            condition: Labels or embeddings, one for each image; None takes the classes in turn.
            generator: Used instead of the seed: one for each image, or one to draw theirs from.
            output_type: "pil", or floats in [0, 1]: "np" ([images, height, width, channels]) or "pt" ([images, channels, height, width]).
            return_dict: Return diffusers' ImagePipelineOutput instead of a tuple.
            callback_on_step_end: Called after each call of a network as `callback(pipeline, number, timestep, {"latents": images})`, as in
                diffusers; images [images, channels, height, width] that it returns under "latents" replace the present ones.
        """
        if output_type not in ("pil", "np", "pt"):
            raise InputError(f"Expected output_type 'pil', 'np' or 'pt', found {output_type!r}.")
        _at_least_one(batch_size=batch_size, num_inference_steps=num_inference_steps)
        condition = self._checked(condition, batch_size)
        generators = _as_many(generator, batch_size) if generator is not None else image_generators(seed, 0, batch_size)
        images: Any = to_bytes(self._batch(generators, num_inference_steps, condition, 0, callback_on_step_end)).cpu().float() / 255.0
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def generate(
        self, count: int, *, steps: int = 50, batch_size: int = 64, seed: int = 0, condition: Tensor | None = None, progress: bool = True
    ) -> Tensor:
        """Sample many images in batches; bytes [count, channels, height, width]. The batch size does not change what is drawn.

        Args:
            count: Number of images.
            steps: Steps of the scheduler.
            batch_size: Images at a time.
            seed: As in a call.
            condition: Labels or embeddings for all of them, or None.
            progress: Show a bar on a terminal.
        """
        _at_least_one(count=count, steps=steps, batch_size=batch_size)
        condition = self._checked(condition, count)
        parts = []
        with bar("sampling", count, shown=progress) as advance:
            for first in range(0, count, batch_size):
                size = min(batch_size, count - first)
                given = None if condition is None else condition[first : first + size]
                parts.append(to_bytes(self._batch(image_generators(seed, first, size), steps, given, first)).cpu())
                advance(first + size, "images")
        return torch.cat(parts)

    def _checked(self, condition: Any, count: int) -> Tensor | None:
        """Labels or embeddings as a tensor, one for each image.

        Raises:
            InputError: If there are more or fewer, the networks take none, or a label is none of theirs.
        """
        if condition is None:
            return None
        blueprint = self.blueprint
        if blueprint.calling.condition is None:
            raise InputError("The networks of this pipeline take no labels or embeddings; omit the condition.")
        if blueprint.takes_embeddings and isinstance(condition, Tensor) and not condition.is_floating_point():
            raise InputError(f"The networks take embeddings ({blueprint.calling.condition}), not classes; give --condition FILE.npz.")
        found = torch.as_tensor(condition)
        if not found.ndim or len(found) != count:
            raise InputError(
                f"Expected one label or embedding for each of {count} images, found {len(found) if found.ndim else 'a single one'}."
            )
        if blueprint.classes and (found.is_floating_point() or found.ndim != 1 or int(found.min()) < 0):
            raise InputError(f"Expected labels: whole numbers from 0 up, found {found.dtype} of shape {tuple(found.shape)}.")
        if blueprint.classes and int(found.max()) >= blueprint.classes:
            raise InputError(f"Expected labels from 0 to {blueprint.classes - 1}, found {int(found.max())}.")
        return found

    def _batch(
        self,
        generators: Sequence[torch.Generator],
        steps: int,
        condition: Tensor | None,
        first: int,
        callback: StepCallback | None = None,
    ) -> Tensor:
        wanted = self.blueprint.calling.condition
        if wanted is not None and condition is None:
            condition = conditions(self.blueprint.classes, first, len(generators))
            if condition is None:
                raise InputError(
                    f"The networks take {wanted}; give condition=, one embedding for each image (--condition FILE.npz on the command line)."
                )
        if condition is not None:
            condition = condition.to(self.device)
        noise = initial_noise(generators, self.blueprint.shape, self.device)

        def after_step(number: int, time: Tensor, images: Tensor) -> Tensor:
            changed = None if callback is None else callback(self, number, time, {"latents": images})
            return images if not changed else changed.get("latents", images)

        return self._sampler().denoise(noise, steps, condition, generators, after_step if callback is not None else None)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write a folder: model_index.json and scheduler/ as diffusers does, step_adaptive.json, and experts/N with plans and safetensors.

        Written beside its place and moved there when complete; what else lies in an earlier pipeline's folder is kept. Experts that were
        changed in memory are saved as they are now.

        Raises:
            StorageError: If the folder cannot be written, or holds something else.
        """
        if kwargs:
            raise InputError(f"save_pretrained takes a folder only here, found {', '.join(kwargs)}.")
        replace_pipeline(Path(save_directory).expanduser(), self._write)

    def _write(self, folder: Path) -> None:
        write_description(folder, self.blueprint, {"scheduler": self.scheduler, TRAINED_WITH: self._trained_with})
        for index, source in enumerate(self.folders):
            place = folder / "experts" / str(index)
            if source is not None:
                copy_expert(source, place, self.experts.held(index))
            else:
                place.mkdir(parents=True)
                save_model(self.experts[index], str(place / WHOLE))
            if is_whole(place):
                write_standard_files(place / WHOLE, self.blueprint.network)
        write_card(folder, self.blueprint, self.scheduler)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        factory: Factory | None = None,
        resident: bool = True,
        scheduler: Scheduler | None = None,
        device: str | torch.device = "cpu",
        torch_dtype: torch.dtype | None = None,
        subfolder: str = "",
        revision: str | None = None,
        **download: Any,
    ) -> StepAdaptivePipeline:
        """Load what `save_pretrained` wrote; nothing is unpickled and no code of the folder is run.

        Args:
            pretrained_model_name_or_path: The folder, or the id of a repository on the Hugging Face hub, such as "org/name".
            factory: Builds the unpruned network; needed when it came from a model file.
            resident: Keep all experts in memory; otherwise one at a time is.
            scheduler: Another scheduler than the saved one.
            device: Where experts run.
            torch_dtype: Dtype that experts run in, such as torch.bfloat16; by default that of the files.
            subfolder: Folder of the pipeline inside the folder or repository.
            revision: Branch, tag or commit of the repository; "main" by default.
            download: For a repository: `cache_dir`, `token`, `local_files_only`, `force_download`, as in diffusers. `dtype` is another
                name of `torch_dtype`.

        Raises:
            InputError: If experts do not run on this device, or not in this dtype.
            StorageError: If the folder is no pipeline, or the repository cannot be downloaded.
            ModelFileError: If the network cannot be built.
        """
        torch_dtype = download.pop("dtype", None) or torch_dtype
        folder = local_folder(pretrained_model_name_or_path, subfolder, revision, download)
        blueprint, index = read_pipeline(folder)
        build = factory or factory_of(blueprint)
        folders = [folder / "experts" / str(number) for number in range(len(blueprint.macs))]
        for place in folders:
            if not place.is_dir():
                raise StorageError(f"'{folder}' lacks the expert {place.name} of {len(folders)}. Copy the whole folder again.")
            check_expert(place)

        def expert(number: int) -> torch.nn.Module:
            model = load_expert(folders[number], build)
            blueprint.calling.check(model)
            return model

        experts = Experts(blueprint.macs, blueprint.params, expert, resident)
        trained_with = read_scheduler(folder, index, TRAINED_WITH) if TRAINED_WITH in index else None
        found = cls(experts, blueprint, scheduler or read_scheduler(folder, index), folders, trained_with)
        if resident:
            for number in range(len(experts)):
                experts[number]
        return found.to(device, dtype=torch_dtype)


def _at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"Expected {name} of at least 1, found {count}.")


def _as_many(generator: torch.Generator | Sequence[torch.Generator], count: int) -> list[torch.Generator]:
    if isinstance(generator, torch.Generator):
        seeds = torch.randint(0, 2**62, (count,), generator=generator, device=generator.device).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    if len(generator) != count:
        raise InputError(f"Expected {count} generators, one for each image, found {len(generator)}.")
    return list(generator)
