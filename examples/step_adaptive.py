"""Step-adaptive diffusion on scikit-learn's digits, from the plan to samples side by side; the end of the demo, or alone.

    python examples/step_adaptive.py --out demo-output/step-adaptive

The same through the command line: see docs/tutorials/step-adaptive.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from proxyprune.cli import main as cli
from proxyprune.diffusion import (
    StepAdaptiveConfig,
    StepAdaptivePipeline,
    StepAdaptiveTrainer,
    beside,
    evaluate,
    grid,
    load_features,
    save_picture,
)

STEPS = 600
SAMPLES = 400
SAMPLING_STEPS = 20


def run(out: Path, steps: int = STEPS, samples: int = SAMPLES) -> None:
    """Plan, train, sample and compare; `steps` are those of one full-size model, whose cost is the limit."""
    torch.set_num_threads(1)  # the network is so small that more of them wait for each other, and for everything else that runs
    out.mkdir(parents=True, exist_ok=True)
    config = StepAdaptiveConfig.preset("digits-small").with_values({"compute.reference_steps": steps, "run.cpu": True})
    (out / "config.json").write_text(config.to_text(), encoding="utf-8")
    command("plan", "--config", str(out / "config.json"), "--plot", str(out / "plan.png"))
    command("train", "--config", str(out / "config.json"), "--out", str(out / "run"))

    # The comparison that is fair: one full-size model that was given all of the compute.
    whole = config.with_values({"compute.base_share": 1.0, "base.decay": "cosine"})
    trainer = StepAdaptiveTrainer(whole, out / "full-size")
    full = trainer.train()
    adaptive = StepAdaptivePipeline.from_pretrained(out / "run" / "pipeline")
    features, rows, grids = load_features("digits"), [], []
    for name, pipeline in (("one full-size model", full), ("step-adaptive", adaptive)):
        images = pipeline.generate(samples, steps=SAMPLING_STEPS, batch_size=100)
        found = evaluate(pipeline, trainer.setup.data, features, steps=SAMPLING_STEPS, images_given=images, seconds_given=0.0)
        rows.append((name, found.sampling_macs, found.relative_macs, found.frechet))
        grids.append(grid(images[:64], scale=4))
    save_picture(beside(grids), out / "side-by-side.png")
    print(f"\n{'':<22}{'MACs an image':>16}{'of the base':>13}{'Frechet distance':>19}{'95 % interval':>20}")
    for name, macs, relative, distance in rows:
        print(f"{name:<22}{macs:>16,}{relative:>13.1%}{distance.value:>19.2f}{f'{distance.low:.2f} to {distance.high:.2f}':>20}")
    print(f"\n{samples} samples, {SAMPLING_STEPS} DDIM steps, seed 0, features {features.name}; one seed.")
    print(f"Samples side by side: {out / 'side-by-side.png'}; intervals and budgets: {out / 'plan.png'}; ledger: {out / 'run'}/ledger.json")


def command(*arguments: str) -> None:
    """Run `proxyprune diffusion`, and show the command."""
    print(f"$ proxyprune diffusion {' '.join(arguments)}\n", flush=True)
    cli(["diffusion", *arguments], standalone_mode=False)
    print(flush=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--out", type=Path, default=Path("demo-output/step-adaptive"))
    arguments.add_argument("--steps", type=int, default=STEPS, help="optimizer steps of the full-size model that all is measured by")
    arguments.add_argument("--samples", type=int, default=SAMPLES, help="images to draw from each")
    run(**vars(arguments.parse_args()))


if __name__ == "__main__":
    main()
