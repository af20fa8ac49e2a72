"""LoRA adapters of the unpruned network, written for the pruned one beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proxyprune.cli.options.prune_files import PruneFiles
from proxyprune.errors import InputError
from proxyprune.result import PruneResult
from proxyprune.saving.lora_adapter import CarriedLora, carry_lora, check_lora


@dataclass(frozen=True)
class AdapterCopy:
    """One adapter to write.

    Attributes:
        source: The adapter of the unpruned network.
        target: The file or folder to write.
        plain: Use the names of the folder that `--save-pretrained` writes.
    """

    source: Path
    target: Path
    plain: bool


def adapter_copies(files: PruneFiles, destination: Path) -> tuple[AdapterCopy, ...]:
    """Return what `--lora` writes: each adapter beside the result, and beside the plain folder if there is one.

    Args:
        files: The options.
        destination: Folder of the result.

    Raises:
        InputError: If two adapters have one name.
    """
    names = [path.resolve().name for path in files.lora]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"Two adapters of --lora are called '{repeated}', and their copies would be one. Rename one of them.")
    places = [(destination, False)] + ([] if files.save_pretrained is None else [(files.save_pretrained, True)])
    return tuple(
        AdapterCopy(path, place.resolve().with_name(f"{place.resolve().name}-{name}"), plain)
        for path, name in zip(files.lora, names, strict=True)
        for place, plain in places
    )


def check_adapters(files: PruneFiles, destination: Path) -> None:
    """Raise before anything slow if an adapter cannot be read, or its copy not written."""
    for copy in adapter_copies(files, destination):
        check_lora(copy.source, copy.target)


def carry_adapters(files: PruneFiles, destination: Path, result: PruneResult) -> Iterator[tuple[AdapterCopy, CarriedLora]]:
    """Write the adapters for the pruned network."""
    for copy in adapter_copies(files, destination):
        yield copy, carry_lora(copy.source, result, copy.target, prefix=files.lora_prefix, plain=copy.plain)


def adapter_line(copy: AdapterCopy, carried: CarriedLora) -> str:
    """Return a sentence for the reader."""
    dropped = f", without the entries of removed blocks ({len(carried.dropped)})" if carried.dropped else ""
    return f"LoRA adapter: {copy.target}{dropped}, for {'the plain folder' if copy.plain else 'the pruned network'}."
