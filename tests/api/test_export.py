"""A pruned model is an ordinary model: torch.export and ONNX take it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from zoo import NETWORKS, run, to_tensors

import proxyprune as pp


@pytest.mark.parametrize("name", ["ddpm_unet", "vit", "hf_resnet"])
def test_torch_export_of_a_pruned_model(name: str) -> None:
    """The exported program of the pruned model computes what the pruned model computes."""
    network = NETWORKS[name]
    inputs = network.inputs()
    pruned = pp.prune(network.build(), inputs, 0.6).model
    args, kwargs = ((), inputs) if isinstance(inputs, dict) else (tuple(inputs), {})
    exported = torch.export.export(pruned, args, kwargs, strict=False).module()
    for expected, found in zip(to_tensors(run(pruned, inputs)), to_tensors(exported(*args, **kwargs)), strict=True):
        torch.testing.assert_close(found, expected)


class Sample(nn.Module):
    """A diffusers U-Net that returns its tensor."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.unet(sample, timestep, return_dict=False)[0]


@pytest.mark.parametrize(("name", "wrapper"), [("ddpm_unet", Sample), ("plain_cnn", nn.Sequential)])
def test_onnx_of_a_pruned_model(name: str, wrapper: type[nn.Module], tmp_path: Path) -> None:
    """onnxruntime gives the pruned model's outputs."""
    onnxruntime = pytest.importorskip("onnxruntime")
    network = NETWORKS[name]
    inputs = network.inputs()
    args = tuple(inputs.values()) if isinstance(inputs, dict) else tuple(inputs)
    model = wrapper(pp.prune(network.build(), inputs, 0.6).model).eval()
    path = tmp_path / "pruned.onnx"
    torch.onnx.export(model, args, path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {entry.name: value.numpy() for entry, value in zip(session.get_inputs(), args, strict=True)}
    with torch.no_grad():
        expected = model(*args)
    np.testing.assert_allclose(session.run(None, feeds)[0], expected.numpy(), rtol=1e-3, atol=1e-4)
