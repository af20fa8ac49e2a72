"""Load plain folders in this process, where proxyprune cannot be imported, and compare their outputs with recorded ones.

Run as a script with the path of a JSON file: a list of objects with the keys folder, module, class, call (a file of torch.save: args,
kwargs, outputs), library ("transformers" or another) and attention. Prints a JSON list with one entry for each: null, or what differs.
This file imports nothing of proxyprune.
"""

import dataclasses
import gc
import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


class _NoProxyprune:
    """Makes every import of proxyprune fail."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Raise for proxyprune and what lies in it; other finders answer for the rest."""
        if name.partition(".")[0] == "proxyprune":
            raise ImportError("proxyprune cannot be imported in this process.")


def _tensors(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for entry in dataclasses.fields(value):
            yield from _tensors(getattr(value, entry.name))
    elif isinstance(getattr(value, "sample", None), torch.Tensor):
        yield value.sample


def _load(task: Mapping[str, Any]) -> tuple[Any, list[str]]:
    """Return the network, and the names that the loader misses, did not expect or could not fit."""
    import torch

    kind: Any = importlib.import_module(task["module"])
    for part in task["class"].split("."):
        kind = getattr(kind, part)
    settings: dict[str, Any] = {"output_loading_info": True, "local_files_only": True}
    if task["library"] == "transformers":
        settings |= {"attn_implementation": task["attention"]} if task["attention"] else {}
    else:
        settings |= {"torch_dtype": getattr(torch, task["dtype"])}
        if not getattr(kind, "_keep_in_fp32_modules", None):  # diffusers loads these classes in the other way alone
            settings |= {"low_cpu_mem_usage": False}
    network, information = kind.from_pretrained(task["folder"], **settings)
    for tensor in [*network.parameters(), *network.buffers()]:
        tensor.data = tensor.data.clone()  # weights mapped from a file lie at other addresses, and kernels may round differently there
    return network.eval(), [
        str(name) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in information.get(key, ())
    ]


def check(task: Mapping[str, Any]) -> str | None:
    """Return what differs when a folder is loaded and run, or None."""
    import torch

    call = torch.load(task["call"], weights_only=True)
    torch.set_num_threads(task["threads"])
    network, wrong = _load(task)
    if wrong:
        return f"from_pretrained reports {', '.join(wrong[:5])}"
    with torch.no_grad():
        torch.manual_seed(0)
        outputs = list(_tensors(network(*call["args"], **call["kwargs"])))
    expected = call["outputs"]
    if len(outputs) != len(expected):
        return f"{len(outputs)} outputs instead of {len(expected)}"
    for index, (one, other) in enumerate(zip(outputs, expected, strict=True)):
        if one.shape != other.shape or one.dtype != other.dtype:
            return f"output {index} is {tuple(one.shape)} {one.dtype} instead of {tuple(other.shape)} {other.dtype}"
        if not bool(((one == other) | ((one != one) & (other != other))).all()):
            return f"output {index} differs by up to {float((one.double() - other.double()).abs().max()):.3g}"
    return None


def main(path: str) -> None:
    """Check every folder that a file lists."""
    found = []
    for task in json.loads(Path(path).read_text(encoding="utf-8")):
        try:
            found.append(check(task))
        except Exception as error:  # noqa: BLE001  whatever loading raises is the answer
            found.append(f"{type(error).__name__}: {error}")
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    gc.disable()  # this short process imports large libraries, whose objects stay
    sys.meta_path.insert(0, _NoProxyprune())
    main(sys.argv[1])
