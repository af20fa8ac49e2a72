"""Pipelines from a hub on 127.0.0.1, in a process of its own that reaches nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusion_pipelines import pipeline
from diffusion_runs import ROOT
from local_hub import local_hub

from proxyprune.diffusion import StepAdaptivePipeline
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

cases = json.loads(sys.argv[1])
print(json.dumps([drawn(name, **given) for name, given in cases]))
"""


def in_process(hub: str, home: Path, *cases: tuple[str, dict[str, object]]) -> list[str]:
    """Return a hash of the images of each case, or its error."""
    cleared = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    environment = cleared | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", SCRIPT, json.dumps(cases)]
    done = subprocess.run(command, cwd=home.parent, env=environment | {"PYTHONPATH": str(ROOT)}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def hash_of(found: StepAdaptivePipeline) -> str:
    """Return a hash of two images."""
    return hashlib.sha256(found.generate(2, steps=3, progress=False).numpy().tobytes()).hexdigest()


def test_ids_revisions_and_subfolders(tmp_path):
    """Each gives the images of its own folder; only files of the pipeline are downloaded, and later loads need no network."""
    first, second = pipeline(), pipeline()
    with torch.no_grad():
        second.experts[0].conv_out.bias.add_(0.5)
    first.save_pretrained(tmp_path / "main")
    second.save_pretrained(tmp_path / "other")
    second.save_pretrained(tmp_path / "main/inside/pipeline")
    (tmp_path / "main/large.bin").write_bytes(b"not of the pipeline")
    (tmp_path / "home").mkdir()
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
    assert "'org/missing' is no folder here" in found[4]
    assert "hf auth login" in found[4]
    assert "large.bin" not in downloaded
    assert "experts/1/model.safetensors" in downloaded
    again = in_process("http://127.0.0.1:9", tmp_path / "home", ("org/name", {"local_files_only": True}))
    assert again == found[:1]


def test_a_folder_comes_before_the_hub(tmp_path, monkeypatch):
    """Of the same name; subfolder works for it, too, and cannot lead out of it."""
    pipeline().save_pretrained(tmp_path / "org/name/inside")
    monkeypatch.chdir(tmp_path)
    assert len(StepAdaptivePipeline.from_pretrained("org/name", subfolder="inside").experts) == 2
    with pytest.raises(InputError, match="subfolder inside 'org/name'"):
        StepAdaptivePipeline.from_pretrained("org/name", subfolder="../name/inside")
    with pytest.raises(InputError, match="no option variant"):
        StepAdaptivePipeline.from_pretrained("org/name", variant="fp16")
    with pytest.raises(StorageError, match="no step-adaptive pipeline"):
        StepAdaptivePipeline.from_pretrained(Path("org/other"))
