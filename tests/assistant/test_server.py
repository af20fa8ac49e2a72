"""The tools over the Model Context Protocol: in one process, over stdin and stdout, without a network, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from commands import MEASURED, NETWORK
from mcp import Client, StdioServerParameters, stdio_client
from subject import subject

from proxyprune.assistant import TOOLS, PruningTask, Replay, Session, make_server
from proxyprune.errors import TraceError

ROOT = Path(__file__).parents[2]
NO_NETWORK = """
import sys
def no_network(event, arguments):
    if event in ("socket.connect", "socket.bind", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise RuntimeError(f"{event}: {arguments}")
sys.addaudithook(no_network)
"""
REPLAY = (
    NO_NETWORK
    + """
import anyio, json
from mcp import Client
from proxyprune.assistant import Replay, make_server

async def answered(folder, mode):
    replay, wrong = Replay(folder), []
    async with Client(make_server(lambda: replay), mode=mode) as client:
        for call in replay.calls:
            result = await client.call_tool(call["tool"], call["arguments"])
            if result.content[0].text != call["answer"] or result.is_error != call["is_error"]:
                wrong.append([call, result.content[0].text])
    return {"calls": len(replay.calls), "left": replay.left, "wrong": wrong}

print(json.dumps([anyio.run(answered, folder, mode) for folder, mode in json.loads(sys.argv[1])]))
"""
)
MODES = ("legacy", "auto")
CALLS = [
    ("describe", {}),
    ("price", {"widths": {"blocks.0": 0.5}}),
    ("score", {"scores": {"blocks.1": 0.9, "blocks.2": 0.1}}),
    ("plan", {"ranking": "r1", "target": 0.5}),
    ("plan", {"target": 2}),
    ("measure", {"plan": "p1", "what": ["loss", "seconds"]}),
    ("history", {}),
]


@pytest.fixture
def measured_file(tmp_path) -> Path:
    """Return a model file with data that prints when it is read, in an otherwise empty folder."""
    path = tmp_path / "net.py"
    path.write_text(NETWORK + MEASURED + "\nprint('a model file may print')\n")
    return path


def parameters(*arguments) -> StdioServerParameters:
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    return StdioServerParameters(command=sys.executable, args=["-m", "proxyprune", "mcp", *map(str, arguments)], env=environment)


async def with_client(server, calls, mode="legacy"):
    async with Client(server, mode=mode) as client:
        return [await client.call_tool(*call) for call in calls]


@pytest.mark.parametrize("mode", MODES)
def test_a_client_gets_what_the_session_answers(tmp_path, mode):
    """Through the SDK, every answer is that of the session in the same process, for both generations of the protocol."""
    network = subject()
    task = PruningTask.of(network.model, network.example_inputs, 0.6, batches=network.batches, loss_fn=network.loss_fn)
    with Session.open(task, tmp_path / "w") as session:
        results = anyio.run(with_client, make_server(lambda: session), CALLS, mode)
    texts = [result.content[0].text for result in results]
    replay = Replay(tmp_path / "w")
    assert texts == [replay.call(*call).text for call in CALLS]
    assert [result.is_error for result in results] == [False, False, False, False, True, False, False]


def test_tools_are_listed_before_anything_is_read():
    """The list needs no session, and every schema has the properties of the arguments."""

    def unreadable():
        raise TraceError("not readable")

    async def look():
        async with Client(make_server(unreadable), mode="legacy") as client:
            listed = await client.list_tools()
            return listed.tools, await client.call_tool("describe", {})

    tools, answer = anyio.run(look)
    assert [tool.name for tool in tools] == list(TOOLS)
    for tool in tools:
        assert tool.input_schema["type"] == "object"
        assert all("description" in entry for entry in tool.input_schema["properties"].values())
    assert answer.is_error
    assert json.loads(answer.content[0].text) == {"error": "TraceError", "message": "not readable"}


@pytest.fixture(scope="module")
def replayed(tmp_path_factory) -> dict[tuple[str, str], dict[str, Any]]:
    """Replay the session of the docs and a new one through clients of both protocols, in one process with every socket blocked."""
    network, folder = subject(), tmp_path_factory.mktemp("session") / "w"
    task = PruningTask.of(network.model, network.example_inputs, 0.6, batches=network.batches, loss_fn=network.loss_fn)
    with Session.open(task, folder) as session:
        for call in CALLS:
            session.call(*call)
    folders = {"docs": ROOT / "examples" / "session", "new": folder}
    cases = [(name, mode) for name in folders for mode in MODES]
    command = [sys.executable, "-c", REPLAY, json.dumps([(str(folders[name]), mode) for name, mode in cases])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(zip(cases, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_the_session_of_the_docs_is_replayed(replayed, mode):
    """The recorded session in examples/ is answered byte for byte through a client, with every socket blocked."""
    found = replayed["docs", mode]
    assert found["wrong"] == []
    assert found["left"] == 0
    assert found["calls"] > 0


@pytest.mark.parametrize("mode", MODES)
def test_a_recorded_session_is_replayed_without_a_network(replayed, mode):
    """A client in the same process replays a session byte for byte with every socket blocked."""
    assert replayed["new", mode] == {"calls": len(CALLS), "left": 0, "wrong": []}


def test_over_stdin_and_stdout(measured_file, tmp_path):
    """The command serves a model file that prints, and then the recording of that session without the model file."""
    workspace = tmp_path / "work"

    async def drive(*arguments):
        async with Client(stdio_client(parameters(*arguments)), mode="legacy") as client:
            found = [
                await client.call_tool("describe", {}),
                await client.call_tool("plan", {}),
                await client.call_tool("measure", {"plan": "p0"}),
            ]
            return [result.content[0].text for result in found]

    texts = anyio.run(drive, "--model", measured_file, "--workspace", workspace, "--target", "0.5")
    assert json.loads(texts[2])["loss"] > 0
    measured_file.unlink()
    assert anyio.run(drive, "--replay", workspace) == texts


def test_a_killed_server_loses_nothing_that_was_answered(measured_file, tmp_path):
    """After SIGKILL in the middle of calls, every answer that arrived is in the log, and the same command goes on."""
    workspace = tmp_path / "work"
    command = [sys.executable, "-m", "proxyprune", "mcp", "--model", str(measured_file), "--workspace", str(workspace)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True)

    def send(**message):
        server.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        server.stdin.flush()

    start = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    send(id=0, method="initialize", params=start)
    assert json.loads(server.stdout.readline())["result"]["serverInfo"]["name"] == "proxyprune"
    send(method="notifications/initialized")
    calls = [
        ("score", {"scores": {}, "scorer": "random"}),
        ("plan", {"ranking": "r1"}),
        ("measure", {"plan": "p0"}),
    ] * 60  # more answers than a pipe holds
    for number, (tool, arguments) in enumerate(calls, start=1):
        send(id=number, method="tools/call", params={"name": tool, "arguments": arguments})
    answers = [json.loads(server.stdout.readline())["result"]["content"][0]["text"] for _ in range(5)]
    server.send_signal(signal.SIGKILL)
    answers += [json.loads(line)["result"]["content"][0]["text"] for line in server.stdout.read().splitlines() if line.endswith("}")]
    server.wait()
    recorded = [call["answer"] for call in Replay(workspace).calls]
    assert recorded[: len(answers)] == answers
    assert len(answers) < len(calls), "the kill came too late to prove anything"

    async def go_on():
        async with Client(stdio_client(parameters("--model", measured_file, "--workspace", workspace)), mode="legacy") as client:
            return json.loads((await client.call_tool("history", {"last": 1000})).content[0].text)

    past = anyio.run(go_on)
    assert len(past["rankings"]) == 1 + sum('"has_channel_scores"' in answer for answer in recorded)
    assert past["plans"]["p0"]["measured"]["cut"] == {
        "loss": next(json.loads(text)["loss"] for text in answers if '"measured_before"' in text)
    }


def test_what_the_command_needs(tmp_path):
    """Without a model and without a recording, and with both, the command says what to give."""
    for arguments in ([], ["--model", "x.py", "--replay", str(tmp_path)]):
        done = subprocess.run(
            [sys.executable, "-m", "proxyprune", "mcp", *arguments], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 2
        assert "--replay" in done.stderr or "does not exist" in done.stderr
