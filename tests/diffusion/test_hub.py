"""Pipelines from a hub on 127.0.0.1, in a process of its own that reaches nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusion_pipelines import pipeline
from diffusion_runs import ROOT
from local_hub import local_hub

from proxyprune.diffusion import StepAdaptivePipeline
from proxyprune.diffusion.data.write_images import save_arrays
from proxyprune.errors import InputError, StorageError

SCRIPT = """
import hashlib, json, sys
from proxyprune.diffusion import StepAdaptivePipeline
from proxyprune.errors import StorageError

def drawn(name, **given):
    try:
        found = StepAdaptivePipeline.from_pretrained(name, **given).generate(2, steps=3, progress=False)
        return hashlib.sha256(found.numpy().tobytes()).hexdigest()
    except StorageError as error:
        return str(error)

def plain(name, kind="DiffusionPipeline", **given):
    import diffusers, warnings
    try:
        found = getattr(diffusers, kind).from_pretrained(name, **given)
        assert type(found) is StepAdaptivePipeline
        return [str(found.dtype), hashlib.sha256(found.generate(2, steps=3, progress=False).numpy().tobytes()).hexdigest()]
    except Exception as error:
        return f"{type(error).__name__}: {error}"

cases = json.loads(sys.argv[1])
print(json.dumps([(plain if given.pop('plain', False) else drawn)(name, **given) for name, given in cases]))
"""

COMMANDS = """
import json, sys
from click.testing import CliRunner
from proxyprune.cli import main

done = [CliRunner().invoke(main, ["diffusion", *line.split()]) for line in json.loads(sys.argv[1])]
print(json.dumps([[found.exit_code, " ".join(found.output.split())] for found in done]))
"""


def reaching(hub: str, home: Path) -> dict[str, str]:
    """Return an environment in which the hub is the one at an address."""
    cleared = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    settings = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return cleared | settings | {"PYTHONPATH": str(ROOT)}


def in_process(hub: str, home: Path, *cases: tuple[str, dict[str, object]]) -> list[str]:
    """Return a hash of the images of each case, or its error."""
    return answers(SCRIPT, hub, home, cases)


def answers(script: str, hub: str, home: Path, given: object) -> list[Any]:
    """Run a script in a process that reaches the hub, and return what it prints last."""
    command = [sys.executable, "-c", script, json.dumps(given)]
    done = subprocess.run(command, cwd=home.parent, env=reaching(hub, home), text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def hash_of(found: StepAdaptivePipeline) -> str:
    """Return a hash of two images."""
    return hashlib.sha256(found.generate(2, steps=3, progress=False).numpy().tobytes()).hexdigest()


def two_revisions(folder: Path) -> tuple[StepAdaptivePipeline, StepAdaptivePipeline]:
    """Save two pipelines that draw different images into `main` and `other`, and make an empty home."""
    first, second = pipeline(), pipeline()
    with torch.no_grad():
        second.experts[0].conv_out.bias.add_(0.5)
    first.save_pretrained(folder / "main")
    second.save_pretrained(folder / "other")
    (folder / "home").mkdir()
    return first, second


TRUSTED = {"plain": True, "trust_remote_code": True}
CASES = {
    "main": ("org/name", {}),
    "v2": ("org/name", {"revision": "v2"}),
    "inside": ("org/name", {"subfolder": "inside/pipeline"}),
    "v3": ("org/name", {"revision": "v3"}),
    "missing": ("org/missing", {}),
    "plain folder": ("{folder}", TRUSTED),
    "plain": ("org/name", TRUSTED),
    "untrusted": ("{folder}", {"plain": True}),
    "another class": ("{folder}", {"plain": True, "kind": "DDPMPipeline"}),
    "a network": ("{folder}", {"plain": True, "kind": "UNet2DModel"}),
}
"""Arguments of loading, by name; all are loaded in one process."""


@dataclass(frozen=True)
class Reached:
    """Results of one process that reaches a hub: a hash of images or an error, by name of the case."""

    first: str
    second: str
    found: dict[str, Any]
    downloaded: list[str]
    home: Path


@pytest.fixture(scope="module")
def reached(tmp_path_factory) -> Reached:
    """Load every case from a hub with two revisions; the second stands in a subfolder of the first, too."""
    folder = tmp_path_factory.mktemp("hub")
    first, second = two_revisions(folder)
    second.save_pretrained(folder / "main/inside/pipeline")
    (folder / "main/large.bin").write_bytes(b"not of the pipeline")
    cases = [(name.format(folder=folder / "main"), given) for name, given in CASES.values()]
    with local_hub({("org/name", "main"): folder / "main", ("org/name", "v2"): folder / "other"}) as hub:
        found = in_process(hub.url, folder / "home", *cases)
        return Reached(hash_of(first), hash_of(second), dict(zip(CASES, found, strict=True)), list(hub.downloaded), folder / "home")


def test_ids_revisions_and_subfolders(reached):
    """Each gives the images of its own folder; only files of the pipeline are downloaded, and later loads need no network."""
    found = reached.found
    assert [found[name] for name in ("main", "v2", "inside")] == [reached.first, reached.second, reached.second]
    assert "org/name" in found["v3"]
    assert "revision 'v3'" in found["v3"]
    assert "'org/missing' is not a local folder" in found["missing"]
    assert "hf auth login" in found["missing"]
    assert "large.bin" not in reached.downloaded
    assert "experts/1/model.safetensors" in reached.downloaded
    again = in_process("http://127.0.0.1:9", reached.home, ("org/name", {"local_files_only": True}))
    assert again == [reached.first]


def test_commands_take_ids(tmp_path):
    """`sample --pipeline org/name --revision v2` draws the images of that revision; `evaluate` loads it before it looks for the run."""
    _, second = two_revisions(tmp_path)
    with local_hub({("org/name", "main"): tmp_path / "main", ("org/name", "v2"): tmp_path / "other"}) as hub:
        lines = (
            "sample --pipeline org/name --revision v2 --count 2 --steps 3 --out images.npz",
            "evaluate --pipeline org/name --count 2 --steps 3",
            "sample --pipeline org/missing --count 2 --out images.npz",
        )
        drawn, judged, missing = answers(COMMANDS, hub.url, tmp_path / "home", lines)
        downloaded = list(hub.downloaded)
    assert drawn[0] == 0, drawn[1]
    save_arrays(second.generate(2, steps=3, progress=False), tmp_path / "expected.npz")
    found, expected = (np.load(tmp_path / name) for name in ("images.npz", "expected.npz"))
    assert found.files == expected.files
    assert all(np.array_equal(found[name], expected[name]) for name in found.files)
    assert judged[0] != 0
    assert "--run" in judged[1]
    assert downloaded.count("experts/0/model.safetensors") == 2
    assert missing[0] != 0
    assert "'org/missing' is not a local folder" in missing[1]


def test_a_folder_comes_before_the_hub(tmp_path, monkeypatch):
    """Of the same name; subfolder works for it, too, and cannot lead out of it."""
    pipeline().save_pretrained(tmp_path / "org/name/inside")
    monkeypatch.chdir(tmp_path)
    assert len(StepAdaptivePipeline.from_pretrained("org/name", subfolder="inside").experts) == 2
    with pytest.raises(InputError, match="subfolder inside 'org/name'"):
        StepAdaptivePipeline.from_pretrained("org/name", subfolder="../name/inside")
    with pytest.raises(InputError, match="no option variant"):
        StepAdaptivePipeline.from_pretrained("org/name", variant="fp16")
    with pytest.raises(StorageError, match="not a step-adaptive pipeline"):
        StepAdaptivePipeline.from_pretrained(Path("org/other"))


WITHOUT = """
import sys
sys.modules["proxyprune"] = None  # importing it fails, as where it is not installed
from diffusers import DiffusionPipeline
DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


def test_plain_diffusers_loads_the_folder(reached):
    """From disk and from a hub, with the images of our own loading; other classes and untrusted code end in an error."""
    found = reached.found
    assert found["plain folder"] == found["plain"] == ["torch.float32", reached.first]
    assert "trust_remote_code=True" in found["untrusted"]
    assert "trust_remote_code=True" in found["another class"]
    assert found["a network"].startswith(("OSError", "ValueError"))


def test_without_proxyprune_the_last_line_says_what_to_do(tmp_path):
    """In a process where proxyprune cannot be imported."""
    pipeline().save_pretrained(tmp_path / "saved")
    environment = os.environ | {"HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", WITHOUT, str(tmp_path / "saved")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: This pipeline needs proxyprune")
    assert "Install proxyprune with its extra `diffusion`" in last


def test_a_folder_of_an_earlier_version_loads(tmp_path):
    """It has no code, one record, and the plain name of the class in the index."""
    found = pipeline()
    folder = tmp_path / "saved"
    found.save_pretrained(folder)
    for path in (folder / "pipeline.py", folder / "experts/step_adaptive_experts.py", folder / "experts/step_adaptive.json"):
        path.unlink()
    index = json.loads((folder / "model_index.json").read_text())
    del index["experts"]
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "StepAdaptivePipeline"}))
    assert hash_of(StepAdaptivePipeline.from_pretrained(folder)) == hash_of(found)
