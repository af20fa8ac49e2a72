"""A network as an ONNX file with a dynamic batch, compared with torch before the file is kept."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from proxyprune.errors import InputError, StorageError, VerificationError
from proxyprune.support.extras import explained
from proxyprune.support.nested import mapped, tensors_of
from proxyprune.tracing.model_call import ExampleInputs, TensorOutputs, call_arguments, evaluation, on_device_of
from proxyprune.tracing.module_state import unchanged

_EXPORTED_ROWS = 2
"""Batch size of the exported call; a batch of 1 would be written as a constant."""
_COMPARED_ROWS = (1, 3)
_RELATIVE = 1e-3
"""Largest difference of an output, relative to its largest value: kernels of onnxruntime round differently."""


def save_onnx(model: nn.Module, example_inputs: ExampleInputs, file: str | Path, *, dynamic_batch: bool = True) -> Path:
    """Export a network to ONNX, and compare outputs of onnxruntime with those of torch.

    The first dimension of every input tensor that has the batch size of the example becomes dynamic. Outputs are compared at two batch
    sizes, neither of which is the exported one.

    Args:
        model: Any network, such as `result.model`; it stays as it is.
        example_inputs: As for `prune`.
        file: Where to; ends in .onnx.
        dynamic_batch: Export the batch size as a variable; otherwise the file takes the batch of the example inputs only.

    Returns:
        The file.

    Raises:
        MissingExtraError: If a package of the extra "onnx" is missing.
        InputError: If the network cannot be exported, or does not take another batch size.
        VerificationError: If onnxruntime gives other outputs.
        StorageError: If the file cannot be written.
    """
    check_onnx(file)
    target = Path(file).expanduser()
    args, kwargs = call_arguments(on_device_of(model, example_inputs))
    batch = _batch_of(args, kwargs)
    dynamic = dynamic_batch and batch is not None
    rows = [_EXPORTED_ROWS, *_COMPARED_ROWS] if dynamic and batch is not None else [batch or 1]
    calls = [_with_rows((args, kwargs), batch, count if dynamic else batch) for count in rows]
    wrapped = TensorOutputs(model)
    wrapped.training = False
    with unchanged(model), evaluation(model), tempfile.TemporaryDirectory(dir=target.parent) as room:
        try:
            expected = [wrapped(*call[0], **call[1]) for call in calls]
        except Exception as error:
            raise _no_export(f"the network does not run on a batch of {_EXPORTED_ROWS}", error) from error
        fresh = Path(room) / target.name
        _export(wrapped, calls[0], batch if dynamic else None, fresh)
        compared = list(zip(rows, calls, expected, strict=True))
        for count, call, outputs in compared[1:] or compared:
            _compare(fresh, call, outputs, count)
        try:
            for path in Path(room).iterdir():  # large weights lie in a second file beside the graph
                path.replace(target.parent / path.name)
        except OSError as error:
            raise StorageError(f"Cannot write '{target}': {error}. Check the path, its permissions and the free space.") from error
    return Path(file)


def check_onnx(file: str | Path) -> None:
    """Raise if `save_onnx` could not write here, before any work is done.

    Raises:
        MissingExtraError: If a package of the extra "onnx" is missing.
        StorageError: If the name does not end in .onnx, or the folder does not exist.
    """
    target = Path(file).expanduser()
    if target.suffix.lower() != ".onnx":
        raise StorageError(f"An ONNX file ends in .onnx; '{file}' ends in '{target.suffix}'. Choose another name.")
    if not target.parent.is_dir():
        raise StorageError(f"Cannot write '{file}': there is no folder '{target.parent}'. Create it first.")
    if target.is_dir():
        raise StorageError(f"Cannot write '{file}': it is a folder. Choose another name.")
    with explained("Exporting to ONNX"):
        import onnx  # noqa: F401  asked for here, so that a missing package is reported before the network is cut
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def _batch_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Rows of the first tensor that has a dimension, or None."""
    return next((len(tensor) for tensor in tensors_of((args, kwargs)) if tensor.dim()), None)


def _with_rows(call: Any, batch: int | None, count: int | None) -> Any:
    """Return the call with another number of rows; added rows are shifted along the last dimension, so that they differ."""

    def widen(tensor: Tensor) -> Tensor:
        if batch is None or not tensor.dim() or len(tensor) != batch or count == batch:
            return tensor
        rows = [tensor[index % batch : index % batch + 1] for index in range(count or 0)]
        return torch.cat([row.roll(index, -1) if row.dim() > 1 else row for index, row in enumerate(rows)])

    return mapped(call, widen)


def _export(model: nn.Module, call: Any, batch: int | None, file: Path) -> None:
    """Write the ONNX file; `batch` is the size that stands for the batch, or None for fixed sizes."""
    args, kwargs = call
    shapes = None if batch is None else {"args": _dynamic(tuple(args)), **({"kwargs": _dynamic(dict(kwargs))} if kwargs else {})}
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        program = torch.onnx.export(
            model, tuple(args), kwargs=dict(kwargs), dynamic_shapes=shapes, dynamo=True, verbose=False, external_data=False
        )
        assert program is not None
        program.save(file)
    except OSError as error:
        raise StorageError(f"Cannot write '{file}': {error}. Check the path, its permissions and the free space.") from error
    except Exception as error:
        raise _no_export("torch.onnx does not export the network", error) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _dynamic(value: Any) -> Any:
    """Dynamic dimensions for nested arguments, as torch.export takes them."""
    if isinstance(value, Tensor):
        return {0: torch.export.Dim.DYNAMIC} if value.dim() and len(value) == _EXPORTED_ROWS else None
    if isinstance(value, Mapping):
        return {key: _dynamic(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_dynamic(item) for item in value)
    return None


def _no_export(what: str, error: Exception) -> InputError:
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    first = str(cause).strip().splitlines()
    return InputError(
        f"No ONNX file: {what} ({type(cause).__name__}: {first[0][:300] if first else ''}). With dynamic_batch=False the file takes the "
        "batch of the example inputs only."
    )


def _compare(file: Path, call: Any, expected: tuple[Tensor, ...], rows: int) -> None:
    """Raise if onnxruntime gives other outputs than torch.

    Raises:
        VerificationError: If outputs differ in number, shape or value.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    tensors = list(tensors_of(call))
    wanted = session.get_inputs()
    feeds = {entry.name: tensor.detach().cpu().numpy() for entry, tensor in zip(wanted, tensors, strict=False)}
    if len(wanted) != len(tensors):
        raise VerificationError(
            f"The ONNX file takes {len(wanted)} inputs instead of {len(tensors)}: the network does not use some of its tensors."
        )
    try:
        found = session.run(None, feeds)
    except Exception as error:
        raise VerificationError(f"onnxruntime does not run the file on a batch of {rows}: {str(error)[:300]}") from error
    if len(found) != len(expected):
        raise VerificationError(f"The ONNX file has {len(found)} outputs instead of {len(expected)}.")
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        other = other.detach().cpu()
        if tuple(one.shape) != tuple(other.shape):
            raise VerificationError(
                f"Output {index} of the ONNX file is {tuple(one.shape)} on a batch of {rows}, not {tuple(other.shape)}."
            )
        difference = float((torch.from_numpy(one).double() - other.double()).abs().max()) if other.numel() else 0.0
        scale = float(other.double().abs().max()) if other.numel() else 0.0
        if not difference <= _RELATIVE * max(scale, _RELATIVE):
            raise VerificationError(
                f"Output {index} of the ONNX file differs by {difference:.3g} on a batch of {rows}; the largest value is {scale:.3g}."
            )
