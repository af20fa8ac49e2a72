"""Errors of the file system and of safetensors as one error that names the action."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from proxyprune.errors import ProxyPruneError, StorageError


@contextmanager
def storage_errors(action: str) -> Iterator[None]:
    """Turn errors of the file system and of safetensors into `StorageError`.

    Args:
        action: What is done, such as "save the network to 'small'".
    """
    try:
        yield
    except ProxyPruneError:
        raise
    except (OSError, SafetensorError) as error:
        raise StorageError(f"Cannot {action}: {error}. Check the path, its permissions and the free space.") from error
