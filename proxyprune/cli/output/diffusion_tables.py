"""Intervals, ledgers and evaluations as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

from proxyprune.support.wording import quantity, tenths

if TYPE_CHECKING:
    from proxyprune.diffusion.config.run_config import StepAdaptiveConfig
    from proxyprune.diffusion.evaluation.evaluate import Evaluation
    from proxyprune.diffusion.process.noise_schedule import FloatArray
    from proxyprune.diffusion.stages.layout import Layout
    from proxyprune.diffusion.training.ledger import Ledger


def layout_table(layout: Layout, base_macs: int, snr_db: FloatArray) -> list[RenderableType]:
    """Intervals with their SNR and budgets, and what that saves."""
    table = _table(f"{len(layout.members)} intervals ({layout.intervals.method}), budgets by {layout.budgets.method}")
    by_time = layout.budgets.metric == "time"
    shares = ("of the base's time",) if by_time else ("of the base", "MACs")
    for heading in ("interval", "timesteps", "SNR (dB)", "sampler steps", *shares):
        table.add_column(heading, justify="left" if heading == "interval" else "right")
    last = len(layout.members) - 1
    for member, fraction, steps in zip(layout.members, layout.budgets.fractions, layout.budgets.steps, strict=True):
        end = " (clean)" if member.index == 0 else " (noisy)" if member.index == last else ""
        span = f"{tenths(snr_db[member.last])} to {tenths(snr_db[member.first])}"
        cost = (f"{fraction:.1%}",) if by_time else (f"{fraction:.1%}", quantity(int(fraction * base_macs)))
        table.add_row(f"{member.index}{end}", f"{member.first} to {member.last}", span, str(steps), *cost)
    mean, whole = layout.budgets.mean, "the base's time" if by_time else f"{quantity(base_macs)} MACs"
    total = f"Mean over the sampler's {sum(layout.budgets.steps)} steps: {mean:.1%} of {whole}; {1.0 - mean:.1%} saved."
    return [table, total]


def ledger_table(ledger: Ledger) -> Table:
    """Return what was spent on what, against the full-size reference."""
    share = "" if ledger.share is None else f", {ledger.share:.1%} of one full-size model's"
    table = _table(f"Training compute: {quantity(ledger.spent_macs)} MACs{share}")
    table.add_column("spent on")
    table.add_column("MACs", justify="right")
    table.add_column("share", justify="right")
    for name, macs in ledger.by_stage().items():
        table.add_row(name, quantity(macs), f"{macs / ledger.limit_macs:.1%}" if ledger.limit_macs else "")
    return table


def evaluation_table(found: Evaluation) -> Table:
    """Figures with what they depend on."""
    title = f"{found.images:,} images, {found.sampler}, {found.steps} steps, seed {found.seed}, features {found.features}"
    table = _table(f"{title}; reference: {found.reference}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("95 % interval", justify="right")
    for label, estimate in (("Fréchet distance", found.frechet), ("KID", found.kid)):
        table.add_row(label, f"{estimate.value:.4f}", f"{estimate.low:.4f} to {estimate.high:.4f}")
    if found.real_frechet is not None:
        table.add_row("Fréchet distance of the same number of real images", f"{found.real_frechet:.4f}", "")
    table.add_row("precision", f"{found.precision:.3f}", "")
    table.add_row("recall", f"{found.recall:.3f}", "")
    table.add_row("sampling MACs an image", quantity(found.sampling_macs), f"{found.relative_macs:.1%} of the base")
    table.add_row("seconds an image", f"{found.seconds_per_image:.4f}", "")
    table.add_row("parameters stored", f"{found.params:,}", "")
    for index, loss in enumerate(found.losses):
        table.add_row(f"held-out loss, interval {index}", f"{loss:.5f}", "")
    return table


def frontier_table(found: Sequence[tuple[str, Evaluation]]) -> Table:
    """Return a row for each pipeline and number of steps: distance, compute and time of one image."""
    first = found[0][1]
    table = _table(f"{first.images:,} images, seed {first.seed}, features {first.features}; reference: {first.reference}")
    table.add_column("pipeline", overflow="fold")
    for heading in ("steps", "Fréchet", "95 % interval", "MACs", "of the base", "ms"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, judged in found:
        table.add_row(
            name,
            str(judged.steps),
            f"{judged.frechet.value:.3f}",
            f"{judged.frechet.low:.2f} to {judged.frechet.high:.2f}",
            quantity(judged.sampling_macs),
            f"{judged.relative_macs:.1%}",
            f"{1000 * judged.seconds_per_image:.1f}",
        )
    return table


def plan_payload(config: StepAdaptiveConfig, layout: Layout, base_macs: int, base_params: int, snr_db: FloatArray) -> dict[str, Any]:
    """Return what `diffusion plan --json` prints."""
    from proxyprune.diffusion.stages.layout import layout_record

    return {"schema": 1, "config": config.to_dict(), "base_macs": base_macs, "base_params": base_params, **layout_record(layout, snr_db)}


def _table(title: str) -> Table:
    return Table(
        title=f"\n{title}", title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
