"""Draw the plots of finished benchmarks again, from their JSON in results/; nothing is measured.

The grids of samples are not drawn again, because results/ does not contain the images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import compare_scorers
import search
import simulated_proxy
import step_adaptive_plots
import wall_time
from common import RESULTS


def step_adaptive(results: Mapping[str, Any], name: str) -> None:
    """Draw the pictures of one run of the step-adaptive experiment."""
    lines = results["runs"]
    samplers = list(dict.fromkeys((line["sampler_name"], line["steps"]) for line in lines))
    step_adaptive_plots.draw(lines, samplers, lambda arm, seed: Path(arm) / str(seed), RESULTS / name)


PLOTS: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "compare_scorers": lambda results: compare_scorers.plot(results["rows"]),
    "search": lambda results: search.plot(results["runs"], results["rows"]),
    "simulated_proxy": lambda results: simulated_proxy.plot(results["rows"]),
    "wall_time": lambda results: wall_time.plot(results["rows"]),
    "step_adaptive": lambda results: step_adaptive(results, "step_adaptive"),
    "step_adaptive_v": lambda results: step_adaptive(results, "step_adaptive_v"),
    "step_adaptive_28": lambda results: step_adaptive(results, "step_adaptive_28"),
}
"""Name of a JSON file to the function that draws it."""


def main() -> None:
    """Draw the named plots, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=(*PLOTS, []), help="names of JSON files; all if none is given")
    for name in parser.parse_args().names or PLOTS:
        PLOTS[name](json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8")))
        print(f"results/{name}*.png")


if __name__ == "__main__":
    main()
