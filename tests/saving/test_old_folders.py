"""Files that commit e15aa50 wrote, before the package was laid out anew, still load.

`e15aa50/` holds two saved networks, their outputs on one input, and the memory of a search of three rounds.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import proxyprune as pp

OLD = Path(__file__).parent / "e15aa50"
TENSORS = load_file(OLD / "tensors.safetensors")


class Residual(nn.Module):
    """x + conv(relu(norm(conv(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.n = nn.BatchNorm2d(2 * width)
        self.b = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.n(self.a(x)).relu())


class Net(nn.Module):
    """Three residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(Residual(16), Residual(16), Residual(16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def build() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


def example() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", ["width", "both"])
def test_an_old_folder_loads_and_its_plan_applies(mode):
    """The saved network gives the output that it gave, and its plan makes the same network again."""
    loaded = pp.load(OLD / mode, build)
    torch.testing.assert_close(loaded(example()), TENSORS[mode])
    again = pp.apply_plan(build(), pp.PrunePlan.from_json(OLD / mode / "plan.json"), example())
    assert {name: tuple(value.shape) for name, value in again.state_dict().items()} == {
        name: tuple(value.shape) for name, value in loaded.state_dict().items()
    }


def test_an_old_search_memory_is_resumed(tmp_path):
    """A search goes on from the three rounds that it remembers."""
    memory = tmp_path / "memory.jsonl"
    shutil.copy(OLD / "search.jsonl", memory)
    batches = [TENSORS[f"batch{index}"] for index in range(3)]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    seen = []
    result = pp.search(
        build(), example(), 0.6, "random", rounds=4, memory=memory, resume=True, batches=batches, loss_fn=loss, progress=seen.append
    )
    assert len(result.rounds) == len(seen) == 4
    assert memory.read_text().count("\n") == (OLD / "search.jsonl").read_text().count("\n") + 1
