"""Keys go where they belong and nowhere else, and nothing that is written or printed holds one."""

from __future__ import annotations

import logging
import pickle
import traceback
from pathlib import Path

import pytest
from llm import SCORERS, ask, options, small_graph

import proxyprune as pp
from proxyprune.errors import InputError, LLMAuthError, LLMError
from proxyprune.proxy.service.endpoint import ANTHROPIC, OPENAI, endpoint_of
from proxyprune.proxy.service.redact import redacted
from proxyprune.scoring import find
from proxyprune.testing import Drop, FakeLLMServer, Html, ReceivedRequest, Says, Status

CANARIES = {
    "OPENAI_API_KEY": "sk-canary-hosted-openai-0123456789",
    "ANTHROPIC_API_KEY": "sk-ant-canary-hosted-anthropic-0123",
    "ANTHROPIC_AUTH_TOKEN": "canaryauthtoken0123",
    "OPENAI_ADMIN_KEY": "sk-canary-admin-0123456789",
    "PROXYPRUNE_LLM_API_KEY": "canary.own.server.key-42",
    "OPENAI_ORG_ID": "org-canary-42",
    "OPENAI_CUSTOM_HEADERS": "x-secret: canary-header-42",
    "ANTHROPIC_CUSTOM_HEADERS": "x-secret: canary-header-42",
}
OWN = CANARIES["PROXYPRUNE_LLM_API_KEY"]
every_scorer = pytest.mark.parametrize("scorer", SCORERS)


@pytest.fixture(autouse=True)
def canaries(monkeypatch):
    """Keys that are easy to find again."""
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


def leaks(text: str) -> list[str]:
    return [value for name, value in CANARIES.items() if "HEADERS" not in name and value in text] + (
        ["header"] if "canary-header" in text else []
    )


def echo(asked: ReceivedRequest) -> str:
    """Return what a hostile server might do: send every header back as the answer."""
    return str(dict(asked.headers))


FAILURES = {
    "echoed key": Says(echo),
    "echoed in an error": Status(401, f"Incorrect API key provided: {OWN}. Authorization: Bearer {OWN}"),
    "500": Status(500, f"trace: {OWN}"),
    "dropped": Drop(),
    "html": Html(),
}


@every_scorer
def test_a_server_of_ones_own_gets_its_own_key_and_no_stray_header(scorer):
    """The hosted service's key, the organisation and headers from the environment stay here; nor is the machine described."""
    with FakeLLMServer() as server:
        ask(server, scorer)
        headers = server.requests[0].headers
    assert headers["authorization"] == f"Bearer {OWN}"
    assert leaks(str(dict(headers))) == [OWN]
    assert not [name for name in headers if name.startswith("x-stainless")]


@every_scorer
def test_without_a_key_of_its_own_the_placeholder_is_sent(scorer, monkeypatch):
    """No key at all leaves the machine then."""
    monkeypatch.delenv("PROXYPRUNE_LLM_API_KEY")
    with FakeLLMServer() as server:
        ask(server, scorer)
        assert server.requests[0].headers["authorization"] == "Bearer local"


@every_scorer
def test_user_and_password_in_the_address_become_a_header(scorer):
    """They are sent as basic authorization and shown nowhere."""
    with FakeLLMServer() as server:
        address = server.url_for(scorer).replace("://", "://me:hunter2canary@")
        made = find(scorer, options(server, scorer, base_url=address))
        pp.score(small_graph(), made)
        assert server.requests[0].headers["authorization"].startswith("Basic ")
    assert "hunter2canary" not in repr(made)


@every_scorer
def test_no_proxy_stands_between_this_machine_and_itself(scorer, monkeypatch):
    """Proxies of the environment would see prompt and key; to this machine they are not used."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with FakeLLMServer() as server:
        assert ask(server, scorer, retries=0).scores


@every_scorer
@pytest.mark.parametrize("failure", FAILURES)
def test_no_key_is_written_or_printed(scorer, failure, tmp_path, caplog, capfd):
    """Message, repr, traceback with its chain, log, audit and cache of a failed and of a good ranking hold no key."""
    caplog.set_level(logging.DEBUG)
    shown = []
    with FakeLLMServer([FAILURES[failure]] * 4) as server:
        kept = {"cache": tmp_path, "retries": 1}
        with pytest.raises(LLMError) as caught:
            shown.append(repr(ask(server, scorer, **kept)))
        error = caught.value
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        shown += [str(error), repr(error), "".join(trace.format()), str(vars(error)), str(pickle.dumps(error))]
        assert error.__context__ is None
        server._replies.clear()
        shown.append(repr(ask(server, scorer, **kept)))
        shown.append(repr(find(scorer, options(server, scorer, **kept))))
    written = [path.read_text() for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert len(written) >= 4
    out, err = capfd.readouterr()
    for text in (*shown, *written, out, err, *caplog.text.splitlines()):
        assert leaks(text) == [], text[:2000]


@pytest.mark.parametrize("scorer", ["openai", "anthropic"])
def test_a_missing_hosted_key_is_told_by_its_variable(scorer, monkeypatch):
    """Without the key nothing is sent, and the message names the variable."""
    name = {"openai": "OPENAI_API_KEY", "anthropic": "ANTHROPIC_API_KEY"}[scorer]
    monkeypatch.delenv(name)
    with pytest.raises(LLMAuthError, match=name):
        pp.score(small_graph(), scorer, options={"model": "any", "samples": 2})


class TestAddresses:
    """Which addresses are accepted, and as what."""

    @pytest.mark.parametrize(
        "url",
        [
            "http://example.org/v1",
            "http://10.0.0.1/v1",
            "http://localhost.example.org",
            "http://127.0.0.1.example.org",
            "ftp://127.0.0.1",
            "file:///etc/passwd",
            "127.0.0.1:80",
            "",
            "http://",
            "https://host/v1?key=1",
            "http://[::1",
        ],
    )
    def test_refused(self, url):
        """Plain http beyond this machine, and what is no address."""
        with pytest.raises(InputError):
            endpoint_of(url, OPENAI)

    @pytest.mark.parametrize("url", ["http://127.0.0.1:80/v1", "http://localhost", "http://[::1]:8080/", "http://127.9.9.9"])
    def test_this_machine(self, url):
        """Loopback may be plain http."""
        assert endpoint_of(url, None).loopback

    def test_only_the_hosted_address_is_the_hosted_service(self):
        """A path or port more, and it is somebody else."""
        assert endpoint_of("https://api.openai.com/v1/", OPENAI).hosted is OPENAI
        assert endpoint_of(None, ANTHROPIC).key() == CANARIES["ANTHROPIC_API_KEY"]
        for url in ("https://api.openai.com.example.org/v1", "https://api.openai.com:444/v1", "https://u:p@api.openai.com.evil.org/v1"):
            assert endpoint_of(url, OPENAI).key() == OWN

    def test_a_password_is_in_no_message(self):
        """A refused address is shown without it."""
        with pytest.raises(InputError) as caught:
            endpoint_of("http://me:hunter2canary@example.org/v1", None)
        assert "hunter2canary" not in str(caught.value)
        assert caught.value.__context__ is None


def test_redaction_knows_keys_by_their_look():
    """Also keys that nobody handed over."""
    text = redacted("key sk-abcdefgh123, Authorization: Bearer abc.def-123, https://me:pw@host/x, x-api-key: 12345678")
    assert text.count("[redacted]") >= 4
    assert not any(secret in text for secret in ("abcdefgh", "abc.def", "me:pw", "12345678"))
