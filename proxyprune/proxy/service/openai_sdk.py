"""The common part of both OpenAI protocols: the client, and the one place that turns the SDK's exceptions into ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from proxyprune.errors import LLMError
from proxyprune.proxy.service.connection import http_client
from proxyprune.proxy.service.endpoint import Endpoint
from proxyprune.proxy.service.failures import FailedStatus, Service

if TYPE_CHECKING:
    from openai import OpenAI

_Result = TypeVar("_Result")


def make_client(endpoint: Endpoint) -> OpenAI:
    """Return a client that neither retries nor follows redirections nor reads another address or key from the environment."""
    from openai import OpenAI

    return OpenAI(api_key=endpoint.key(), base_url=endpoint.url, max_retries=0, http_client=http_client(endpoint))


def exchange(service: Service, timeout_seconds: float, call: Callable[[], _Result]) -> _Result | FailedStatus:
    """Make one call; a reply with an error status is a value, because the caller may know a way around it.

    Raises:
        LLMError: For everything else that goes wrong.
    """
    failure: LLMError | FailedStatus
    try:
        return call()
    except Exception as error:  # noqa: BLE001  the SDK lets errors of the JSON and HTTP libraries through
        failure = _meaning(service, timeout_seconds, error)
    if isinstance(failure, FailedStatus):
        return failure
    raise failure


def _meaning(service: Service, timeout_seconds: float, error: Exception) -> LLMError | FailedStatus:
    import openai

    if isinstance(error, LLMError):
        return error
    if isinstance(error, openai.APITimeoutError):
        return service.timed_out(timeout_seconds)
    if isinstance(error, openai.APIConnectionError):
        return service.unreachable(_cause(error))
    if isinstance(error, openai.APIStatusError):
        return FailedStatus.of(error.status_code, error.response.headers, error.body, error.message)
    if isinstance(error, openai.APIResponseValidationError | json.JSONDecodeError | UnicodeDecodeError):
        return service.half_reply(error)
    return service.unexpected(error)


def _cause(error: Exception) -> Any:
    return error.__cause__ or error
