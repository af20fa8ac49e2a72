"""The model card of a pipeline: README.md in its folder, which a hub shows. A card that a user changed is kept."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Sequence
from pathlib import Path

from proxyprune.diffusion.sampling.pipeline_record import Blueprint
from proxyprune.support.wording import counted

CARD = "README.md"
_MARK = "<!-- Written by proxyprune; a changed file is kept when the pipeline is saved again. sha256: "
_SPECIAL = re.compile(r"([\\`*_{}\[\]|#~$!])")


def pipeline_card(blueprint: Blueprint, scheduler: str, plans: Sequence[bool]) -> str:
    """Return the text of the card.

    Args:
        blueprint: Record of the pipeline.
        scheduler: Class of its sampler.
        plans: For each expert, whether it has a plan; the others are whole.
    """
    shape = " × ".join(map(str, blueprint.shape))
    network = "a model file" if blueprint.network is None else str(blueprint.network["class"])
    made = blueprint.provenance
    facts = [
        ("images", f"{shape}, {blueprint.classes} classes" if blueprint.classes else shape),
        ("unpruned network", f"{_escaped(network)}, {blueprint.base_macs:,} MACs"),
        ("sampler", _escaped(scheduler)),
    ]
    if made is not None:
        facts += [("sampling steps that budgets were made for", str(made.steps)), ("seed of the training", str(made.seed))]
    lines = [
        "---",
        "# license: add the licence of the weights here",
        "library_name: proxyprune",
        *(["pipeline_tag: unconditional-image-generation"] if blueprint.calling.condition is None else []),
        "tags:",
        "- proxyprune",
        "- diffusion",
        "- pruned",
        "---",
        "",
        "# Step-adaptive diffusion pipeline",
        "",
        f"{counted(len(blueprint.macs), 'denoiser')} for intervals of noise levels, made by structured pruning with proxyprune. With the "
        "same seed, image number i is the same in every batch size.",
        "",
        *_usage(blueprint),
        *_table(("", ""), facts),
        "## Experts",
        "",
        *_table(("expert", "SNR (dB)", "MACs", "of the base", "parameters", "plan"), _experts(blueprint, plans)),
    ]
    if blueprint.notes:
        lines += ["## Notes", "", *(f"- {_escaped(note)}" for note in blueprint.notes), ""]
    if made is not None:
        lines += ["## Training", "", *_fenced(made.command, "console"), ""]
    text = "\n".join(lines)
    return f"{text}\n{_MARK}{_hash(text)} -->\n"


def is_written_by_us(card: Path) -> bool:
    """Return whether a card is missing or unchanged since it was written, so that another one may replace it."""
    if not card.is_file():
        return not card.exists()
    text, mark, digest = card.read_text(encoding="utf-8", errors="replace").rpartition(f"\n{_MARK}")
    return bool(mark) and digest == f"{_hash(text)} -->\n"


def _usage(blueprint: Blueprint) -> list[str]:
    factory = "" if blueprint.network is not None else ", factory=build_model"
    condition = ", condition=embeddings" if blueprint.takes_embeddings else ""
    lines = [
        "```python",
        "from proxyprune.diffusion import StepAdaptivePipeline",
        "",
        f'pipeline = StepAdaptivePipeline.from_pretrained("FOLDER"{factory})',
        f"images = pipeline(batch_size=4, num_inference_steps=50, seed=0{condition}).images",
        "```",
        "",
    ]
    if blueprint.network is None:
        lines += ["`build_model` is that of the model file which the network was trained with.", ""]
    return lines


def _experts(blueprint: Blueprint, plans: Sequence[bool]) -> list[tuple[str, ...]]:
    ends = ["", *(f"{boundary:.1f}" for boundary in blueprint.intervals.boundaries_db), ""]
    rows: list[tuple[str, ...]] = []
    for index, (macs, params) in enumerate(zip(blueprint.macs, blueprint.params, strict=True)):
        high, low = ends[index], ends[index + 1]
        span = f"{low} to {high}" if low and high else f"above {low}" if low else f"below {high}" if high else "all"
        plan = f"[plan](experts/{index}/plan.json)" if plans[index] else "whole"
        rows.append((str(index), span, f"{macs:,}", f"{macs / blueprint.base_macs:.1%}", f"{params:,}", plan))
    return rows


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (headings, ["---"] * len(headings), *rows)] + [""]


def _fenced(text: str, language: str) -> list[str]:
    """Return a code block with a fence that is longer than any run of backticks inside."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [f"{fence}{language}", *(f"$ {line}" if not number else line for number, line in enumerate(text.splitlines())), fence]


def _escaped(text: str) -> str:
    """Return a text that Markdown and HTML show as it is, on one line."""
    return html.escape(_SPECIAL.sub(r"\\\1", " ".join(text.split())), quote=False)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
