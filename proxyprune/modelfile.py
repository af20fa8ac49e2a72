"""Model files: how a user's network gets into the command line, and what is wrong when it does not.

A model file is a Python file that defines `build_model()` and `example_inputs()`, and may define `also_inputs()`,
`calibration_batches()`, `validation_batches()`, `loss(model, batch)` and `quality(model)`. It is the user's code: it may fail in any way,
and each way has its own message with the line in that file. torch is imported only when the model is built, so that `proxyprune --help`
stays fast.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from proxyprune.errors import ModelFileError, WeightsError
from proxyprune.support.extras import how_to_install

if TYPE_CHECKING:
    from torch import Tensor, nn

ExampleInputs = Any
"""A tensor, a tuple of positional arguments, or a dict of keyword arguments."""

DEFAULT_FACTORY = "build_model"
EXAMPLE_INPUTS = "example_inputs"
ALSO_INPUTS = "also_inputs"
MODULE_PREFIX = "proxyprune_model_file_"
"""Start of the name of a model file's module in `sys.modules`."""

CALIBRATION_BATCHES = "calibration_batches"
VALIDATION_BATCHES = "validation_batches"
LOSS = "loss"
QUALITY = "quality"

_SKELETON = f"A model file defines {DEFAULT_FACTORY}() and {EXAMPLE_INPUTS}(); see examples/unet.py."
_LISTED = 8  # names in one message; more help nobody


@dataclass(frozen=True)
class ModelFile:
    """A model file that was read and has a factory; nothing in it was called yet.

    The file's functions run with seeded generators (torch, numpy, random) and leave the state of those generators as it was, so
    that a network with random weights is the same network in every process.

    Attributes:
        path: The file.
        factory: Name of the function that builds the unpruned model.
        module: The file, executed.
        seed: Seed that every call into the file starts from.
    """

    path: Path
    factory: str
    module: ModuleType = field(repr=False, compare=False)
    seed: int = 0

    def build_model(self, weights: str | Path | None = None, *, fake_weights: bool = False) -> nn.Module:
        """Build the unpruned model, in evaluation mode.

        Args:
            weights: A safetensors file to load into it; None keeps the weights that the factory gives.
            fake_weights: Build on the meta device: shapes without values, for a network larger than memory.

        Raises:
            ModelFileError: If the factory needs arguments, raises, or returns something else than a module.
            WeightsError: If the weights do not fit the model.
        """
        import torch
        from torch import nn

        with torch.device("meta") if fake_weights else contextlib.nullcontext():
            model = self._call(self.factory)

        if not isinstance(model, nn.Module):
            raise ModelFileError(
                f"{self._where(self.factory)} must return a torch.nn.Module, but it returned {_kind(model)}. "
                "Return the model itself, not its weights or a path to them."
            )
        if weights is not None:
            load_weights(model, weights)
        return model.eval()

    def example_inputs(self) -> ExampleInputs:
        """Return the inputs that the model is traced and priced with.

        Raises:
            ModelFileError: If `example_inputs` is missing, raises, or returns no tensor, tuple or dict.
        """
        if not callable(getattr(self.module, EXAMPLE_INPUTS, None)):
            raise ModelFileError(
                f"{self.path} defines no {EXAMPLE_INPUTS}(). It has to return what the model is called with: a tensor, a tuple of "
                f"positional arguments or a dict of keyword arguments, for one sample. {self._functions()}"
            )
        inputs = self._call(EXAMPLE_INPUTS)
        self._check_inputs(EXAMPLE_INPUTS, inputs)
        return inputs

    def also_inputs(self) -> tuple[Any, ...]:
        """Further example calls for `trace(also=...)`: inputs, or `proxyprune.TrainingCall(inputs)`; () when the file defines none.

        Raises:
            ModelFileError: If `also_inputs` raises, returns no list, or one of its entries cannot be called with.
        """
        if not hasattr(self.module, ALSO_INPUTS):
            return ()
        calls = self._call(ALSO_INPUTS)
        if not isinstance(calls, list):
            raise ModelFileError(
                f"{self._where(ALSO_INPUTS)} must return a list of calls, each like {EXAMPLE_INPUTS}() or a "
                f"proxyprune.TrainingCall(inputs), but it returned {_kind(calls)}."
            )
        for call in calls:
            self._check_inputs(ALSO_INPUTS, getattr(call, "inputs", call))  # a TrainingCall holds its inputs
        return tuple(calls)

    def _check_inputs(self, function: str, inputs: Any) -> None:
        from torch import Tensor

        values = (inputs,) if isinstance(inputs, Tensor) else inputs
        if isinstance(inputs, Mapping):
            if not all(isinstance(name, str) for name in inputs):
                raise ModelFileError(f"{self._where(function)} returned a dict whose keys are not all names of arguments.")
            values = tuple(inputs.values())
        if not isinstance(values, tuple | list):
            raise ModelFileError(
                f"{self._where(function)} must return a tensor, a tuple of positional arguments or a dict of keyword "
                f"arguments, but it returned {_kind(inputs)}."
            )
        if not any(_holds_tensor(value) for value in values):
            raise ModelFileError(f"{self._where(function)} returned no tensor at all: {_kind(inputs)}. The trace needs at least one.")

    def calibration_batches(self) -> tuple[Any, ...] | None:
        """Batches for scorers that measure, or None when the file defines none.

        Raises:
            ModelFileError: If `calibration_batches` raises, or returns no or a single bare batch.
        """
        return self._batches(CALIBRATION_BATCHES)

    def validation_batches(self) -> tuple[Any, ...] | None:
        """Batches to judge pruned networks by, which no scorer sees, or None when the file defines none.

        Raises:
            ModelFileError: If `validation_batches` raises, or returns no or a single bare batch.
        """
        return self._batches(VALIDATION_BATCHES)

    @property
    def loss_fn(self) -> Callable[[nn.Module, Any], Tensor] | None:
        """The file's `loss`, checked on every call, or None when the file defines none."""
        return _CheckedLoss(self) if hasattr(self.module, LOSS) else None

    @property
    def training_loss_fn(self) -> Callable[[nn.Module, Any], Tensor] | None:
        """The same loss for fine-tuning: what it draws follows from the generators of the moment, and is new at every step."""
        return _CheckedLoss(self, reseeded=False) if hasattr(self.module, LOSS) else None

    @property
    def quality_fn(self) -> Callable[[nn.Module], float] | None:
        """The file's `quality`, checked on every call, or None when the file defines none."""
        return _CheckedQuality(self) if hasattr(self.module, QUALITY) else None

    def _batches(self, name: str) -> tuple[Any, ...] | None:
        if not hasattr(self.module, name):
            return None
        batches = self._call(name)
        from torch import Tensor

        if isinstance(batches, Tensor | Mapping | str) or not isinstance(batches, Iterable):
            raise ModelFileError(
                f"{self._where(name)} must return a list (or an iterator) of batches, but it returned {_kind(batches)}. "
                "Put a single batch into a list."
            )
        with self._user_code(name):
            found = tuple(batches)  # a generator runs the user's code here
        if not found:
            raise ModelFileError(f"{self._where(name)} returned no batch. Return at least one, or remove the function.")
        return found

    def _call(self, name: str) -> Any:
        function = getattr(self.module, name)
        self._check_arguments(name, function)
        with self._user_code(name):
            return function()

    def _check_arguments(self, name: str, function: Any) -> None:
        if not callable(function):
            raise ModelFileError(f"{self.path}: {name} must be a function without arguments, but it is {_kind(function)}.")
        try:
            signature = inspect.signature(function)
        except ValueError:  # a callable written in C has no signature; calling it will tell
            return
        try:
            signature.bind()
        except TypeError as error:
            raise ModelFileError(
                f"{self._where(name)} is called without arguments, but its signature is {name}{signature}: {error}. "
                "Give the arguments defaults, or add a function that fills them in."
            ) from error

    @contextlib.contextmanager
    def _user_code(self, name: str, *, seeded: bool = True) -> Iterator[None]:
        generators = _seeded(self.seed) if seeded else contextlib.nullcontext()
        with _importable(self.path.parent), generators, _blamed(self.path, f"{name}()"):
            yield

    def _where(self, name: str) -> str:
        code = getattr(getattr(self.module, name, None), "__code__", None)
        line = f":{code.co_firstlineno}" if code is not None else ""
        return f"{self.path}{line}: {name}()"

    def _functions(self) -> str:
        return _function_list(self.module)


@dataclass(frozen=True)
class _CheckedLoss:
    """The user's loss with a check of what it returns.

    Every call starts from the same seed: a loss that draws noise then compares two models on the same noise, and the difference
    between them is the models', not the noise's. Training on the same noise over and over would teach the noise, so there it is not
    seeded anew.
    """

    file: ModelFile
    reseeded: bool = True

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        from torch import Tensor

        function = getattr(self.file.module, LOSS)
        with self.file._user_code(LOSS, seeded=self.reseeded):
            value = function(model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else _kind(value)
            raise ModelFileError(
                f"{self.file._where(LOSS)} must return a tensor with one number, but it returned {found}. "
                "Average over the batch, and do not call .item(), so that gradients can be taken."
            )
        return value.reshape(())


@dataclass(frozen=True)
class _CheckedQuality:
    """The user's measure of a network, larger is better, with a check of what it returns; every call starts from the same seed."""

    file: ModelFile

    def __call__(self, model: nn.Module) -> float:
        from torch import Tensor

        with self.file._user_code(QUALITY):
            value = getattr(self.file.module, QUALITY)(model)
        if isinstance(value, Tensor) and value.numel() == 1:
            return float(value)
        if not isinstance(value, int | float):
            raise ModelFileError(f"{self.file._where(QUALITY)} must return one number, but it returned {_kind(value)}.")
        return float(value)


def check_files(spec: str | Path, weights: str | Path | None = None) -> None:
    """Refuse a model file or a weights file that cannot be read; nothing is run and torch is not imported.

    Raises:
        ModelFileError: If the model file is missing or is not Python source.
        WeightsError: If the weights file is missing.
    """
    _read(split_spec(str(spec))[0])
    if weights is not None:
        _check_weights(Path(weights))


def load_model_file(spec: str | Path, *, seed: int = 0) -> ModelFile:
    """Read and execute a model file.

    Args:
        spec: `path/to/file.py`, or `path/to/file.py:factory` for a factory with another name than `build_model`.
        seed: Seed that every call into the file starts from.

    Raises:
        ModelFileError: If the file is missing, is not Python, does not run, or has no such factory.
    """
    path, factory = split_spec(str(spec))
    module = _execute(path, _read(path), seed)
    if not hasattr(module, factory):
        close = difflib.get_close_matches(factory, _functions_of(module), n=1)
        meant = f" Did you mean {path}:{close[0]}?" if close else ""
        other = "" if factory != DEFAULT_FACTORY else f" Name another factory as {path}:NAME."
        raise ModelFileError(f"{path} has no function {factory}().{meant} {_function_list(module)}{other} {_SKELETON}")
    return ModelFile(path=path, factory=factory, module=module, seed=seed)


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a safetensors file into a model, all of it or nothing.

    A parameter under two names (tied weights) needs to be in the file once.

    Raises:
        WeightsError: If the file is missing or is not safetensors, or names or shapes differ from the model's.
    """
    path = Path(path)
    _check_weights(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        advice = (
            "Write it again."
            if path.suffix == ".safetensors"
            else "Pickled checkpoints are not read, because loading one runs its code; convert it once with "
            "safetensors.torch.save_model(model, 'weights.safetensors')."
        )
        raise WeightsError(f"{path} cannot be read as safetensors ({error}). {advice}") from error

    expected = model.state_dict(keep_vars=True)
    given = {id(expected[name]) for name in found if name in expected}
    missing = [name for name, tensor in expected.items() if name not in found and id(tensor) not in given]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} (the model has {list(expected[name].shape)}, the file {list(tensor.shape)})"
        for name, tensor in found.items()
        if name in expected and expected[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {label}: {_listed(names)}."
        for label, names in (("missing from the file", missing), ("not in the model", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}, which has {len(expected)} tensors where the file has {len(found)}. "
            + " ".join(problems)
            + " The factory has to build the network that the weights were saved from."
        )
    model.load_state_dict(found, strict=False)  # strict would object to the second name of a tied parameter


def _check_weights(path: Path) -> None:
    if not path.is_file():
        raise WeightsError(f"The weights file {path} does not exist.{_similar_files(path, '*.safetensors')}")


def split_spec(spec: str) -> tuple[Path, str]:
    """File and factory of `path.py` or `path.py:factory`."""
    head, colon, tail = spec.rpartition(":")
    if colon and tail.isidentifier() and not Path(spec).exists():
        return Path(head), tail
    return Path(spec), DEFAULT_FACTORY


def _read(path: Path) -> str:
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder; a model file is one Python file.{_similar_files(path / 'model.py')}")
    if not path.exists():
        raise ModelFileError(f"The model file {path} does not exist.{_similar_files(path)}")
    if path.suffix != ".py":
        raise ModelFileError(f"{path} is not a Python file: its name must end in .py. {_SKELETON} Weights are given with --weights.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is not Python source: byte {error.start} is not UTF-8 text. {_SKELETON}") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror}.") from error


def _execute(path: Path, source: str, seed: int) -> ModuleType:
    try:
        code = compile(source, str(path), "exec")
    except SyntaxError as error:
        line = (error.text or "").strip()
        raise ModelFileError(
            f"{path}:{error.lineno} is not valid Python: {error.msg}." + (f" The line reads: {line}" if line else "")
        ) from error
    except ValueError as error:
        raise ModelFileError(f"{path} is not Python source: {error}. {_SKELETON}") from error
    module = ModuleType(f"{MODULE_PREFIX}{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses and inspect look a class's module up by name
    with _importable(path.parent), _seeded(seed), _blamed(path, "the file"):
        exec(code, module.__dict__)
    return module


@contextlib.contextmanager
def _blamed(path: Path, what: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a ModelFileError that names the line in the user's file."""
    try:
        yield
    except ModelFileError:
        raise
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f"{path}:{lines[-1]}" if lines else str(path)
        advice = ""
        if isinstance(error, ModuleNotFoundError):
            command = how_to_install(error.name)
            advice = f" Run: {command}" if command else f" Install {error.name}, or put it next to the model file."
        elif isinstance(error, SystemExit):
            advice = " Put code that is meant for the command line under: if __name__ == '__main__'."
        raise ModelFileError(f"{where}: {what} raised {type(error).__name__}: {str(error).strip() or 'no message'}.{advice}") from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let the model file import its neighbours, as it could when run as a script."""
    entry = str(folder.resolve())
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Run with the global generators seeded, and put their state back afterwards."""
    import numpy as np
    import torch

    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)


def _similar_files(path: Path, pattern: str = "*.py") -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" There is no folder {folder}."
    names = sorted(entry.name for entry in folder.glob(pattern))
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    return f" In that folder there is {', '.join(close)}." if close else ""


def _functions_of(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__]


def _function_list(module: ModuleType) -> str:
    names = [name for name in _functions_of(module) if not name.startswith("_")]
    return f"Functions found in it: {_listed(names)}." if names else "It defines no function."


def _listed(names: list[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _holds_tensor(value: Any) -> bool:
    from torch import Tensor

    if isinstance(value, Mapping):
        return any(_holds_tensor(part) for part in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_tensor(part) for part in value)
    return isinstance(value, Tensor)


def _kind(value: Any) -> str:
    """Describe a value without its content: `a list of 3`, `None`, `a dict of 2`, `a Linear`."""
    if value is None:
        return "None"
    name = type(value).__name__
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    size = f" of {len(value)}" if isinstance(value, list | tuple | dict | str) else ""
    return f"{article} {name}{size}"
