"""The extra that brings each package, and the sentence that says so when one is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from proxyprune.errors import MissingExtraError

EXTRAS: Mapping[str, tuple[str, ...]] = {
    "diffusion": ("diffusers", "accelerate", "PIL", "sklearn"),
    "tracking": ("tensorboard",),
    "data": ("datasets",),
    "search": ("cmaes", "joblib", "cloudpickle"),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "prices": ("genai_prices",),
    "local": ("llama_cpp",),
    "mcp": ("mcp",),
}
"""Extra -> names under which its packages are imported."""


def how_to_install(package: str | None) -> str | None:
    """Return the command that brings a package, or None when no extra does.

    Args:
        package: Name as in an import statement; of a dotted name the first part counts.
    """
    root = (package or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if root in packages:
            return f'pip install "proxyprune[{extra}]"'
    return None


@contextlib.contextmanager
def explained(what: str = "This") -> Iterator[None]:
    """Turn the failing import of an extra's package into an error that says what to install.

    Args:
        what: What needs the package; the sentence begins with it.

    Raises:
        MissingExtraError: In place of a `ModuleNotFoundError` for a package that an extra brings; others pass.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        command = how_to_install(error.name)
        if command is None:
            raise
        raise MissingExtraError(
            f"{what} needs the package {str(error.name).partition('.')[0]}, which is not installed. Run: {command}"
        ) from error
