"""Run commands of the command line on a model file, in this process."""

from __future__ import annotations

from click.testing import CliRunner, Result

from proxyprune.cli import main

NETWORK = """
import torch
from torch import nn

print("a model file may print")

class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(self.norm(self.conv1(x)).relu())

class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList([Residual(width) for _ in range(3)])
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))

def build_model():
    return Net(16)

def build_wide():
    return Net(24)

def example_inputs():
    return torch.zeros(1, 3, 8, 8)
"""


MEASURED = """
def calibration_batches():
    return [torch.randn(4, 3, 8, 8) for _ in range(2)]

def loss(model, batch):
    return model(batch).square().mean()
"""


def run(*arguments: object, columns: int = 160) -> Result:
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(main, [str(argument) for argument in arguments])


def succeed(*arguments: object, columns: int = 160) -> Result:
    result = run(*arguments, columns=columns)
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments: object) -> str:
    """Run a command that must fail on purpose; the message."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert result.stdout.replace("a model file may print\n", "") == ""
    return result.stderr
