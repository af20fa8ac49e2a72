"""The HTTP client under both SDKs: no redirections, no stray headers to servers of one's own, no proxy between this machine and itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from proxyprune.proxy.service.endpoint import Endpoint

if TYPE_CHECKING:
    import httpx2

_HEADERS = frozenset(
    "host accept accept-encoding accept-language connection content-type content-length content-encoding transfer-encoding user-agent "
    "authorization x-api-key anthropic-version".split()
)
"""All that a server of one's own is sent. The SDKs would add the operating system, and whatever headers the environment sets for the
hosted service, which may hold secrets."""


def http_client(endpoint: Endpoint) -> httpx2.Client:
    """Return a plain client of the library under both SDKs; the class that one of them brings always reads proxies from the environment."""
    import httpx2

    options: dict[str, Any] = {"follow_redirects": False, "trust_env": not endpoint.loopback}
    if endpoint.url.startswith("http://"):
        options["verify"] = False  # there is no certificate to check, and loading the trusted ones takes a tenth of a second
    if endpoint.hosted is None:

        def strip(request: httpx2.Request) -> None:
            for name in [name for name in request.headers if name.lower() not in _HEADERS]:
                del request.headers[name]
            authorization = endpoint.authorization() or f"Bearer {endpoint.key()}"
            request.headers["authorization"] = authorization
            if "x-api-key" in request.headers:
                request.headers["x-api-key"] = endpoint.key()

        options["event_hooks"] = {"request": [strip]}
    return httpx2.Client(**options)
