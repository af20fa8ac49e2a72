"""The address of requests, and the key that may go with them.

The key of a hosted service is sent to that service and to no other address. A server of one's own gets PROXYPRUNE_LLM_API_KEY, or the
word "local". Keys are read from the environment when a request is made, and are held by nothing that is printed.
"""

from __future__ import annotations

import base64
import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from proxyprune.errors import InputError, LLMAuthError

CUSTOM_KEY = "PROXYPRUNE_LLM_API_KEY"
PLACEHOLDER_KEY = "local"
"""Sent to servers of one's own that were given no key: the SDKs insist on one, and local servers ignore it."""


@dataclass(frozen=True)
class Hosted:
    """A hosted service: its address, and the environment variable with its key."""

    url: str
    key_variable: str


OPENAI = Hosted("https://api.openai.com/v1", "OPENAI_API_KEY")
ANTHROPIC = Hosted("https://api.anthropic.com", "ANTHROPIC_API_KEY")


@dataclass(frozen=True)
class Endpoint:
    """A checked address.

    Attributes:
        url: Without user name, password, query and trailing slash.
        hosted: The service, when it is the hosted one.
        loopback: Whether it is on this machine.
        userinfo: "user:password" from the address, or "".
    """

    url: str
    hosted: Hosted | None = None
    loopback: bool = False
    userinfo: str = field(default="", repr=False)

    @property
    def identity(self) -> str:
        """The origin that a recorded answer states: the host; ports of this machine change from day to day and are left out."""
        return "loopback" if self.loopback else urlsplit(self.url).netloc

    def key(self) -> str:
        """Return the key for this address, from the environment.

        Raises:
            LLMAuthError: If the hosted service's variable is not set.
        """
        if self.hosted is None:
            return os.environ.get(CUSTOM_KEY, "").strip() or PLACEHOLDER_KEY
        key = os.environ.get(self.hosted.key_variable, "").strip()
        if not key:
            raise LLMAuthError(
                f"No key for {self.url}: expected it in the environment variable {self.hosted.key_variable}, which is not set. "
                "Set it, or give base_url (--base-url) for your own server."
            )
        return key

    def secrets(self) -> tuple[str, ...]:
        """Everything that must not be readable anywhere: all keys in the environment that an SDK could pick up, and the password."""
        variables = (CUSTOM_KEY, OPENAI.key_variable, ANTHROPIC.key_variable, "ANTHROPIC_AUTH_TOKEN", "OPENAI_ADMIN_KEY")
        keys = (os.environ.get(variable, "").strip() for variable in variables)
        password = unquote(self.userinfo.partition(":")[2])
        basic = self.authorization().partition(" ")[2]
        return tuple(secret for secret in (*keys, password, self.userinfo, basic) if secret)

    def authorization(self) -> str:
        """Return the header for a user name and password in the address, or ""."""
        if not self.userinfo:
            return ""
        return "Basic " + base64.b64encode(unquote(self.userinfo).encode()).decode()


def endpoint_of(base_url: str | None, hosted: Hosted | None) -> Endpoint:
    """Check an address; None means the hosted service.

    Raises:
        InputError: If there is no address, it is no http(s) URL, or it is plain http to another machine.
    """
    if base_url is None:
        if hosted is None:
            raise InputError("Scorer 'local' needs base_url (--base-url), the address of the server, such as http://127.0.0.1:8080/v1.")
        return Endpoint(hosted.url, hosted)
    try:
        parts = urlsplit(base_url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise InputError(f"Expected base_url to be a URL such as http://127.0.0.1:8080/v1; it cannot be read ({error}).") from None
    userinfo, _, _ = parts.netloc.rpartition("@")
    shown = urlunsplit(_bare(parts))
    if parts.scheme not in ("http", "https") or not host:
        raise InputError(f"Expected base_url to be an http or https URL such as http://127.0.0.1:8080/v1, found '{shown}'.")
    if parts.query or parts.fragment:
        raise InputError(f"Expected base_url without a query and without a fragment, found '{shown}' with one. Omit it.")
    loopback = _is_loopback(host)
    if parts.scheme == "http" and not loopback:
        raise InputError(
            f"Plain http is only allowed to this machine, found '{shown}': prompts and keys would cross the network unencrypted. Use https."
        )
    url = shown.rstrip("/")
    if hosted is not None and url == hosted.url:
        return Endpoint(url, hosted)
    return Endpoint(url, None, loopback, userinfo)


def _bare(parts: SplitResult) -> tuple[str, str, str, str, str]:
    """Return the parts of a URL without user name, password, query and fragment."""
    return parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
