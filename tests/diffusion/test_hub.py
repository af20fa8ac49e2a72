"""Pipelines from a hub on 127.0.0.1, in a process of its own that reaches nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

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


def reaching(hub: str, home: Path) -> dict[str, str]:
    """Return an environment in which the hub is the one at an address."""
    cleared = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    settings = {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return cleared | settings | {"PYTHONPATH": str(ROOT)}


def in_process(hub: str, home: Path, *cases: tuple[str, dict[str, object]]) -> list[str]:
    """Return a hash of the images of each case, or its error."""
    command = [sys.executable, "-c", SCRIPT, json.dumps(cases)]
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


def test_ids_revisions_and_subfolders(tmp_path):
    """Each gives the images of its own folder; only files of the pipeline are downloaded, and later loads need no network."""
    first, second = two_revisions(tmp_path)
    second.save_pretrained(tmp_path / "main/inside/pipeline")
    (tmp_path / "main/large.bin").write_bytes(b"not of the pipeline")
    with local_hub({("org/name", "main"): tmp_path / "main", ("org/name", "v2"): tmp_path / "other"}) as hub:
        found = in_process(
            hub.url,
            tmp_path / "home",
            ("org/name", {}),
            ("org/name", {"revision": "v2"}),
            ("org/name", {"subfolder": "inside/pipeline"}),
            ("org/name", {"revision": "v3"}),
            ("org/missing", {}),
        )
        downloaded = list(hub.downloaded)
    assert found[:3] == [hash_of(first), hash_of(second), hash_of(second)]
    assert "org/name" in found[3]
    assert "revision 'v3'" in found[3]
    assert "'org/missing' is not a local folder" in found[4]
    assert "hf auth login" in found[4]
    assert "large.bin" not in downloaded
    assert "experts/1/model.safetensors" in downloaded
    again = in_process("http://127.0.0.1:9", tmp_path / "home", ("org/name", {"local_files_only": True}))
    assert again == found[:1]


def test_commands_take_ids(tmp_path):
    """`sample --pipeline org/name --revision v2` draws the images of that revision; `evaluate` loads it before it looks for the run."""
    _, second = two_revisions(tmp_path)
    with local_hub({("org/name", "main"): tmp_path / "main", ("org/name", "v2"): tmp_path / "other"}) as hub:

        def command(*arguments: str) -> subprocess.CompletedProcess[str]:
            line = [sys.executable, "-m", "proxyprune", "diffusion", *arguments]
            return subprocess.run(line, cwd=tmp_path, env=reaching(hub.url, tmp_path / "home"), text=True, capture_output=True)

        drawn = command(*"sample --pipeline org/name --revision v2 --count 2 --steps 3 --out images.npz".split())
        assert drawn.returncode == 0, drawn.stderr
        judged = command(*"evaluate --pipeline org/name --count 2 --steps 3".split())
        missing = command(*"sample --pipeline org/missing --count 2 --out images.npz".split())
        downloaded = list(hub.downloaded)
    save_arrays(second.generate(2, steps=3, progress=False), tmp_path / "expected.npz")
    found, expected = (np.load(tmp_path / name) for name in ("images.npz", "expected.npz"))
    assert found.files == expected.files
    assert all(np.array_equal(found[name], expected[name]) for name in found.files)
    assert "--run" in judged.stderr
    assert downloaded.count("experts/0/model.safetensors") == 2
    assert "'org/missing' is not a local folder" in missing.stderr


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


def test_plain_diffusers_loads_the_folder(tmp_path):
    """From disk and from a hub, with the images of our own loading; other classes and untrusted code end in an error."""
    found = pipeline()
    folder = tmp_path / "saved"
    found.save_pretrained(folder)
    trusted = {"plain": True, "trust_remote_code": True}
    with local_hub({("org/name", "main"): folder}) as hub:
        loaded, remote, untrusted, other, network = in_process(
            hub.url,
            tmp_path / "home",
            (str(folder), trusted),
            ("org/name", trusted),
            (str(folder), {"plain": True}),
            (str(folder), {"plain": True, "kind": "DDPMPipeline"}),
            (str(folder), {"plain": True, "kind": "UNet2DModel"}),
        )
    assert loaded == remote == ["torch.float32", hash_of(found)]
    assert "trust_remote_code=True" in untrusted
    assert "trust_remote_code=True" in other
    assert network.startswith(("OSError", "ValueError"))


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
