"""Build wheel and sdist, install the wheel into an empty environment without extras, and see what it says there.

    python scripts/check_wheel.py            # several minutes: PyTorch is installed anew
    python scripts/check_wheel.py --environment FOLDER    # keeps the environment, and takes it the next time

`make wheel` runs it. What is checked: the archives hold every file of the package that is no code, and the plain installation does
what it promises, and names the extra to install for everything else.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxyprune"

NETWORK = """
import torch
from torch import nn


def build_model():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))


def example_inputs():
    return torch.zeros(1, 3, 8, 8)


def calibration_batches():
    return [torch.ones(2, 3, 8, 8) for _ in range(3)]


def loss(model, batch):
    return model(batch).square().mean()
"""
UNET = str(ROOT / "examples" / "unet.py")
EXTRA = 'pip install "proxyprune[{}]"'

WORKS: tuple[tuple[str, str], ...] = (
    ("--version", "proxyprune"),
    ("--help", "describe"),
    ("scorers", "magnitude"),
    ("doctor", EXTRA.format("diffusion")),
    ("describe --model net.py", "pinned"),
    ("score --model net.py", "magnitude"),
    ("score --model net.py --scorer taylor --plot ranking.png", "taylor"),
    ("score --model net.py --scorer openai --llm-model NAME --dry-run", "tokens"),
    ("prune --model net.py --target 0.6 --out small", "small"),
    ("report small", "report.html"),
    ("search --model net.py --proposer coordinate --rounds 2 --start magnitude --out best", "best"),
    ("compare --model net.py --scorers magnitude,random --targets 0.6 --seeds 1 --recovery-steps 1", "random"),
)
"""Commands that a plain installation can do, and what stands in their output."""

LACKS: tuple[tuple[str, str], ...] = (
    ("mcp --model net.py --workspace session", EXTRA.format("mcp")),
    (f"describe --model {UNET}", EXTRA.format("diffusion")),
    ("diffusion plan --preset digits", EXTRA.format("diffusion")),
    ("diffusion train --preset digits --out run", EXTRA.format("diffusion")),
    ("diffusion sample --pipeline run --grid grid.png", EXTRA.format("diffusion")),
    ("diffusion evaluate --pipeline run", EXTRA.format("diffusion")),
    ("search --model net.py --rounds 2 --start magnitude --out other", EXTRA.format("search")),
    ("score --model net.py --scorer openai --llm-model NAME", "OPENAI_API_KEY"),
    ("score --model net.py --scorer anthropic --llm-model NAME", "ANTHROPIC_API_KEY"),
    ("score --model net.py --scorer local --llm-model NAME", "--base-url"),
    ("score --model net.py --scorer magnitud", "Did you mean 'magnitude'?"),
)
"""Commands that need more, and what one has to be told: exit code 2, one message, no traceback."""


def build(folder: Path) -> tuple[Path, Path]:
    """Wheel and sdist."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


def wanted_files() -> set[str]:
    """Files of the package that have to be in both archives, relative to the checkout."""
    files = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    return {name for name in files if "__pycache__" not in name and not name.endswith(".pyc")}


def missing_files(wheel: Path, sdist: Path) -> list[str]:
    """Return what an archive lacks."""
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = set(archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    lacking = [f"{wheel.name} lacks {name}" for name in sorted(wanted_files() - in_wheel)]
    lacking += [f"{sdist.name} lacks {name}" for name in sorted(wanted_files() - in_sdist)]
    return lacking


def environment(folder: Path, wheel: Path) -> Path:
    """Return the `proxyprune` of an environment that has the wheel and what it requires, and nothing else."""
    if not (folder / "pyvenv.cfg").exists():
        venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), str(wheel)], check=True, cwd=folder)
    subprocess.run([*pip, "--no-deps", "--force-reinstall", str(wheel)], check=True, cwd=folder)
    return folder / "bin" / "proxyprune"


def without_keys() -> dict[str, str]:
    """Return the environment variables of a reader who has no key and no paths of this checkout."""
    return {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY") and name != "PYTHONPATH"}


def problem_with(program: Path, folder: Path, command: str, expected: str, code: int) -> str | None:
    """Run one command; what is wrong with what came, or None."""
    words = [str(program), *command.split()]
    done = subprocess.run(words, cwd=folder, env=without_keys() | {"COLUMNS": "200"}, capture_output=True, text=True, check=False)
    said = " ".join((done.stdout + done.stderr).split())
    if done.returncode != code:
        return f"exit code {done.returncode}, not {code}: {said[-600:]}"
    if "Traceback" in said:
        return f"a traceback: {said[-600:]}"
    return None if expected in said else f"{expected!r} is not in: {said[-600:]}"


def main() -> None:
    """Build, install, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the archives go")
    parser.add_argument("--environment", type=Path, help="an environment to use and keep")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        built = Path(temporary) / "dist"
        wheel, sdist = build(built)
        problems = missing_files(wheel, sdist)
        program = environment(options.environment or Path(temporary) / "environment", wheel)
        reader = Path(temporary) / "reader"
        reader.mkdir()
        (reader / "net.py").write_text(NETWORK, encoding="utf-8")
        for code, commands in ((0, WORKS), (2, LACKS)):
            for command, expected in commands:
                problem = problem_with(program, reader, command, expected, code)
                print(f"{'ok  ' if problem is None else 'BAD '} proxyprune {command}")
                problems += [f"proxyprune {command}: {problem}"] if problem else []
        if problems:
            sys.exit("\n".join(("", *problems)))
        options.out.mkdir(exist_ok=True)
        for archive in (wheel, sdist):
            print(archive.replace(options.out / archive.name))


if __name__ == "__main__":
    main()
