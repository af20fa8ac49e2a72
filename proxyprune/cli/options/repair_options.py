"""Options of `proxyprune prune` alone: in how many steps it cuts, and what it does about the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from proxyprune.cli.options.shared import gathered

if TYPE_CHECKING:
    from proxyprune.measuring.held_out import Recovery


@dataclass(frozen=True)
class RepairOptions:
    """Number of cuts, and repair of the network after each.

    Attributes:
        compensate: Refit the remaining weights on the model file's calibration batches.
        steps: Number of cuts.
        recover_steps: Updates of training after the cut.
        learning_rate: Of that training.
        auto_seconds: Time after which `--scorer auto` starts no trial, or None.
        any_mode: `--scorer auto` may choose the mode, because none was given.
    """

    compensate: bool
    steps: int
    recover_steps: int
    learning_rate: float
    auto_seconds: float | None
    any_mode: bool = True

    @property
    def recovery(self) -> Recovery | None:
        """As the library takes it; None if nothing is trained."""
        from proxyprune.measuring.held_out import Recovery

        return Recovery(self.recover_steps, self.learning_rate) if self.recover_steps else None

    @property
    def asked(self) -> tuple[str, ...]:
        """Options that need a network that is cut."""
        given = {"--compensate": self.compensate, "--steps": self.steps > 1, "--recover-steps": self.recover_steps > 0}
        return tuple(name for name, value in given.items() if value)


_OPTIONS = (
    click.option(
        "--compensate", is_flag=True, help="Refit the remaining weights on calibration_batches() of the model file, without training."
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="N",
        help="Cut in N steps, with new scores before each.",
    ),
    click.option(
        "--recover-steps",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        metavar="N",
        help="Train for N steps after the cut, with loss() and calibration_batches() of the model file.",
    ),
    click.option("--learning-rate", type=float, default=1e-4, show_default=True, help="Learning rate of that training (AdamW)."),
    click.option("--auto-seconds", type=click.FloatRange(min=0.0), metavar="S", help="With --scorer auto, start no trial after S seconds."),
)

_NAMES = ("compensate", "steps", "recover_steps", "learning_rate", "auto_seconds")

repair_options = gathered("repair", RepairOptions, _OPTIONS, names=_NAMES)
"""Give a command the options of `RepairOptions`, as its argument `repair`."""
