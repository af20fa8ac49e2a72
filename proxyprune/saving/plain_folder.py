"""A pruned network as a plain transformers or diffusers folder: config, weights, tokenizer files and a model card, checked elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from proxyprune.errors import ConfigError, InputError, ProxyPruneError, StorageError, VerificationError
from proxyprune.planning.planner import plan_for
from proxyprune.planning.request import PlanRequest
from proxyprune.result import PruneResult
from proxyprune.saving import load_elsewhere
from proxyprune.saving.destination import resolved
from proxyprune.saving.model_card import model_card
from proxyprune.saving.storage_errors import storage_errors
from proxyprune.saving.tokenizer_files import add_files_beside, add_tokenizer
from proxyprune.standard.rebuild import InnerCall, Standard, family_in, inner_call, rebuilt
from proxyprune.support.files import put_folder
from proxyprune.support.nested import mapped
from proxyprune.surgery.feature_sizes import architecture_of
from proxyprune.tracing.model_call import ExampleInputs, call_arguments, evaluation, on_device_of
from proxyprune.tracing.module_state import unchanged

CARD = "README.md"
CONFIG = "config.json"


@dataclass(frozen=True)
class PlainFolder:
    """A folder that was written and not yet checked.

    Attributes:
        folder: Where it is.
        standard: What is in it.
        call: One call of the pruned network.
    """

    folder: Path
    standard: Standard = field(repr=False)
    call: InnerCall = field(repr=False)


def save_pretrained(
    result: PruneResult,
    folder: str | Path,
    *,
    processors: Any = (),
    example_inputs: ExampleInputs | None = None,
    losses: Mapping[str, float] | None = None,
    command: str | None = None,
) -> Path:
    """Write a pruned network as a folder that `from_pretrained` of its class reads, without proxyprune.

    The folder is loaded in a fresh process in which proxyprune cannot be imported, and its outputs on the example inputs must be those of
    the pruned network, bit for bit. Only then does it take its place; on failure a folder that was there is as it was.

    Args:
        result: From `prune`; its model may have been trained since.
        folder: Where to. An earlier folder with a config.json is replaced; any other non-empty folder is rejected.
        processors: A tokenizer or processor (anything with `save_pretrained`), a folder or a cached hub id to copy their files from, or
            several of these. Files beside the weights of the unpruned network are copied without being named, if it was loaded from a
            local folder, or from a hub id with these files in the local cache.
        example_inputs: Inputs to compare outputs on; those of the result if left out.
        losses: Measured losses for the model card, by name ("before", "after").
        command: How the network was made, for the model card.

    Returns:
        The folder.

    Raises:
        ConfigError: If no config of the class expresses the pruned network. The message names the numbers of the config and the groups
            that stand in the way.
        VerificationError: If the folder, loaded elsewhere, gives other outputs.
        InputError: If there are no example inputs.
        StorageError: If the folder cannot be written, or holds something else.
    """
    target = resolved(folder)
    check_plain_folder(folder)
    with storage_errors(f"save to '{folder}'"):
        target.parent.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".saving", dir=target.parent))
        try:
            written = write_plain(result, room / "network", processors=processors, example_inputs=example_inputs)
            (written.folder / CARD).write_text(model_card(result, written.standard, losses or {}, command), encoding="utf-8")
            (problem,) = differences_elsewhere([written])
            if problem is not None:
                raise VerificationError(f"The folder does not give the pruned network when it is loaded in a fresh process: {problem}.")
            put_folder(written.folder, target, foreign=lambda _: ())
        finally:
            shutil.rmtree(room, ignore_errors=True)
    return Path(folder)


def write_plain(result: PruneResult, folder: Path, *, processors: Any = (), example_inputs: ExampleInputs | None = None) -> PlainFolder:
    """Write config, weights and the files of tokenizers; arguments and errors as for `save_pretrained`."""
    inputs = result.example_inputs if example_inputs is None else example_inputs
    if inputs is None:
        raise InputError("save_pretrained compares outputs, and this result has no example inputs. Give example_inputs=...")
    standard, call = plain_form(result, inputs)
    folder.mkdir(parents=True, exist_ok=True)
    network: Any = standard.network
    network.save_pretrained(folder)
    config: Any = _network(result).config
    source = getattr(network, "name_or_path", "") or getattr(config, "_name_or_path", "")
    add_files_beside(source, getattr(config, "_commit_hash", None), folder)
    chosen = [processors] if isinstance(processors, str | Path) or hasattr(processors, "save_pretrained") else list(processors or ())
    for processor in chosen:
        add_tokenizer(processor, folder)
    return PlainFolder(folder, standard, call)


def differences_elsewhere(written: Sequence[PlainFolder]) -> list[str | None]:
    """Load folders in one fresh process without proxyprune; what differs in each, or None.

    Raises:
        VerificationError: If the process ends without an answer.
    """
    with tempfile.TemporaryDirectory() as room:
        tasks = [_task(entry, Path(room) / f"{index}.pt") for index, entry in enumerate(written)]
        listing = Path(room) / "tasks.json"
        listing.write_text(json.dumps(tasks), encoding="utf-8")
        script = str(Path(load_elsewhere.__file__).resolve())
        done = subprocess.run([sys.executable, "-P", script, str(listing)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise VerificationError(f"The process that loads the folder elsewhere ended with an error: {done.stderr.strip()[-1000:]}")
    found: list[str | None] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _network(result: PruneResult) -> nn.Module:
    """Return the pruned network, without a wrapper around it."""
    blueprint = result.graph.blueprint
    return result.model if blueprint is None else result.model.get_submodule(blueprint.module)


def plain_form(result: PruneResult, inputs: ExampleInputs) -> tuple[Standard, InnerCall]:
    """Build the plain form of a result's network.

    Raises:
        ConfigError: If there is none.
    """
    graph, model = result.graph, result.model
    shapes = {**graph.program.shapes, **{alias: graph.program.shapes[name] for alias, name in graph.program.aliases.items()}}
    if graph.blueprint is None and (architecture := architecture_of(model)) is not None:
        raise ConfigError(
            f"timm builds {graph.model_class} ('{architecture}') from the name of its architecture and arguments that the network does not "
            "record in full, so no arguments can be found that give the pruned widths. Save it with proxyprune.save(result, folder), or "
            "export it with proxyprune.save_onnx."
        )
    family = family_in(graph.blueprint, shapes, graph.model_class)
    args, kwargs = call_arguments(on_device_of(model, inputs))
    with unchanged(model), evaluation(model):
        call = inner_call(model, family.blueprint.module, tuple(args), kwargs)
        try:
            return rebuilt(family, _network(result), call), call
        except ConfigError as error:
            raise ConfigError(
                f"{family.blueprint.kind.__name__} has no config for this pruned network: {str(error).rstrip('.')}. {_way_out(result)}"
            ) from error


def _way_out(result: PruneResult) -> str:
    if result.plan.options.get("uniform"):
        return "Keep the modules named here whole (keep=...), or save with proxyprune.save(result, folder)."
    return f"{_with_uniform(result)} Or save this network with proxyprune.save(result, folder)."


def _with_uniform(result: PruneResult) -> str:
    """Return what uniform=True would give for the same target."""
    plan, graph = result.plan, result.graph
    request = PlanRequest.of(plan.target, mode=plan.mode, metric=plan.metric, uniform=True, accept_unreliable=True, accept_uncosted=True)
    try:
        other = plan_for(graph, result.ranking, request)
    except ProxyPruneError as error:
        return f"uniform=True gives no plan for this target either: {error}"
    share = other.macs / other.base_macs
    widths = list(dict.fromkeys(f"{before} to {after}" for before, after in other.widths.values()))
    layers = f", without {', '.join(other.removed_blocks)}" if other.removed_blocks else ""
    return f"With uniform=True the same target gives {other.macs:,} MACs ({share:.1%}) with widths {', '.join(widths[:6])}{layers}."


def _task(entry: PlainFolder, file: Path) -> dict[str, Any]:
    network: Any = entry.standard.network
    kind = type(network)
    call = entry.call
    torch.save(
        {"args": mapped(call.args, _kept), "kwargs": mapped(dict(call.kwargs), _kept), "outputs": [_kept(t) for t in call.outputs]}, file
    )
    return {
        "folder": str(entry.folder.resolve()),
        "module": kind.__module__,
        "class": kind.__qualname__,
        "call": str(file),
        "library": "other" if entry.standard.config.blueprint.config_kind is None else "transformers",
        "attention": getattr(network.config, "_attn_implementation", None),
        "dtype": str(next(network.parameters()).dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _kept(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone()


def check_plain_folder(folder: str | Path) -> None:
    """Raise if `save_pretrained` could not write here.

    Raises:
        StorageError: If the folder is a file, or holds something else.
    """
    target = resolved(folder)
    if target.exists() and not target.is_dir():
        raise StorageError(f"Cannot save to '{target}': it is a file. Choose a folder.")
    if target.is_dir() and any(target.iterdir()) and not ((target / CONFIG).is_file() and (target / CARD).is_file()):
        raise StorageError(
            f"Cannot save to '{target}': it holds files that are not of a plain network of proxyprune. Choose a new or empty folder."
        )
