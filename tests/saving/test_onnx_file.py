"""ONNX files: a dynamic batch, outputs that are compared, and what is rejected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import NETWORK, fail, succeed
from torch import nn
from zoo import NETWORKS

import proxyprune as pp
from proxyprune.errors import InputError, StorageError

onnxruntime = pytest.importorskip("onnxruntime")


def run(file: Path, *inputs: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = {entry.name: tensor.numpy() for entry, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)


@pytest.mark.parametrize("name", ["plain_cnn", "vit"])
def test_a_pruned_network_takes_any_batch(name, tmp_path):
    """At a batch size that neither the export nor its check saw, onnxruntime gives torch's outputs."""
    network = NETWORKS[name]
    inputs = network.inputs()
    model = pp.prune(network.build(), inputs, 0.6).model.eval()
    file = pp.save_onnx(model, inputs, tmp_path / "small.onnx")
    (example,) = inputs.values() if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
    batch = torch.randn(5, *example.shape[1:])
    with torch.no_grad():
        expected = model(batch)
    expected = getattr(expected, "logits", expected)
    np.testing.assert_allclose(run(file, batch)[0], expected.numpy(), rtol=1e-3, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.onnx"]


class FixedBatch(nn.Module):
    """Reshapes to one sample."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).reshape(1, 4)


def test_a_network_for_one_sample_needs_a_fixed_batch(tmp_path):
    """The error names the way out, no file is left, and a file that was there before is unchanged."""
    (tmp_path / "one.onnx").write_bytes(b"earlier")
    with pytest.raises(InputError, match="dynamic_batch=False"):
        pp.save_onnx(FixedBatch(), torch.zeros(1, 4), tmp_path / "one.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == b"earlier"
    assert len(list(tmp_path.iterdir())) == 1
    pp.save_onnx(FixedBatch(), torch.zeros(1, 4), tmp_path / "one.onnx", dynamic_batch=False)
    assert run(tmp_path / "one.onnx", torch.zeros(1, 4))[0].shape == (1, 4)


@pytest.mark.parametrize(("name", "said"), [("net.pt", "ends in .onnx"), ("nowhere/net.onnx", "there is no folder")])
def test_places_are_checked_first(name, said, tmp_path):
    """A wrong ending and a missing folder are reported."""
    with pytest.raises(StorageError, match=said):
        pp.save_onnx(nn.Linear(2, 2), torch.zeros(1, 2), tmp_path / name)


def test_command(tmp_path, monkeypatch):
    """`prune --onnx` writes the file and names it in the JSON; a wrong ending ends before the network is built."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    found = json.loads(succeed("prune", "--model", "net.py", "--out", "small", "--onnx", "small.onnx", "--json").stdout)
    assert found["onnx"] == "small.onnx"
    assert Path("small.onnx").is_file()
    Path("net.py").write_text("raise RuntimeError")
    assert "ends in .onnx" in fail("prune", "--model", "net.py", "--onnx", "small.pt")
    assert "--plan-only" in fail("prune", "--model", "net.py", "--plan-only", "--onnx", "small.onnx")
