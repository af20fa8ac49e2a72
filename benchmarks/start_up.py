"""CPU seconds of `proxyprune describe` on a small U-Net, above importing torch and diffusers' class alone; both in turns.

python benchmarks/start_up.py        # about two minutes; writes results/start_up.json
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from pathlib import Path

from common import environment, print_table, save

ROOT = Path(__file__).parent.parent
TURNS = 5
COMMANDS = {
    "import torch, UNet2DModel": ["-c", "import torch; from diffusers import UNet2DModel"],
    "import proxyprune": ["-c", "import proxyprune"],
    "proxyprune --help": ["-m", "proxyprune", "--help"],
    "proxyprune doctor": ["-m", "proxyprune", "doctor"],
    "proxyprune describe": ["-m", "proxyprune", "describe", "--model", "examples/unet.py"],
}


def cpu_seconds(arguments: list[str]) -> float:
    """Return the processor time of a Python process, user and system, over all its threads."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure in turns, and write medians and all turns."""
    turns = {name: [] for name in COMMANDS}
    for _ in range(TURNS):
        for name, arguments in COMMANDS.items():
            turns[name].append(cpu_seconds(arguments))
    rows = [{"command": name, "median": statistics.median(found), "all": found} for name, found in turns.items()]
    base, own = (turns[name] for name in ("import torch, UNet2DModel", "proxyprune describe"))
    above = statistics.median(b - a for a, b in zip(base, own, strict=True))
    print_table("CPU seconds", ["command", "median"], rows)
    print(f"describe above the imports: {above:.2f} s, median of {TURNS} turns")
    save("start_up", {"environment": environment(), "rows": rows, "describe_above_imports": above})


if __name__ == "__main__":
    main()
