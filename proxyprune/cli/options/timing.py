"""Options of commands that time networks."""

from __future__ import annotations

from dataclasses import dataclass

import click

from proxyprune.cli.options.shared import gathered
from proxyprune.measuring.timing import DTYPES, Timing


@dataclass(frozen=True)
class TimeOptions:
    """Settings for timing networks, and for a missed target of time.

    Attributes:
        timing: Batch, threads, dtype, repeats, eager or compiled.
        accept_missed: Take the fastest network with a note, instead of an error.
    """

    timing: Timing
    accept_missed: bool = False


_TIMING = (
    click.option("--time-batch", type=click.IntRange(min=1), metavar="N", help="Time runs of N samples, by repeating the example inputs."),
    click.option("--time-threads", type=click.IntRange(min=1), metavar="N", help="Time with N threads of the processor."),
    click.option("--time-dtype", type=click.Choice(DTYPES), help="Time with weights and inputs of this type."),
    click.option("--time-compiled", is_flag=True, help="Time under torch.compile."),
    click.option(
        "--time-repeats",
        type=click.IntRange(min=3),
        default=Timing.repeats,
        show_default=True,
        help="Number of timed runs of each network.",
    ),
)
_NAMES = ("time_batch", "time_threads", "time_dtype", "time_compiled", "time_repeats")
_ACCEPT = click.option(
    "--accept-missed-time", is_flag=True, help="If a target of time is not met, return the fastest network with a note instead of an error."
)


def _timing(**values: object) -> Timing:
    return Timing(**{name.removeprefix("time_"): value for name, value in values.items()})  # type: ignore[arg-type]  # click checked the values


def _time_options(accept_missed_time: bool, **values: object) -> TimeOptions:
    return TimeOptions(_timing(**values), accept_missed_time)


timing_options = gathered("timing", _timing, _TIMING, names=_NAMES)
"""Give a command the options of `Timing`, as its argument `timing`."""

time_options = gathered("times", _time_options, (*_TIMING, _ACCEPT), names=(*_NAMES, "accept_missed_time"))
"""Give a command the options of `TimeOptions`, as its argument `times`."""
