"""Options that several commands share, gathered into one frozen value each before the command sees them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from proxyprune.cli.options.completion import files, scorer_names
from proxyprune.planning.budget import SingleTarget, Target
from proxyprune.planning.limits import AUTO
from proxyprune.planning.request import CutKeywords, PlanKeywords, PlanRequest

if TYPE_CHECKING:
    from proxyprune.coupling.options import TraceKeywords
    from proxyprune.measuring.held_out import Recovery

_Bounds = tuple[tuple[str, "float | int"], ...]
_Function = TypeVar("_Function", bound=Callable[..., Any])

_FILE = click.Path(path_type=Path)
_FRACTION = re.compile(r"0?\.\d+")


@dataclass(frozen=True)
class ModelOptions:
    """The network, and how it is read.

    Attributes:
        model: Model file, `path.py` or `path.py:factory`.
        weights: Safetensors file to load, or None.
        fake_weights: Build the network without memory for its weights.
        seed: Seed of all random choices.
        norm_groups: How norm groups may shrink.
        conv_groups: How the groups of grouped convolutions may shrink.
        adapter_ranks: Whether inner ranks of adapters may shrink.
    """

    model: str
    weights: Path | None
    fake_weights: bool
    seed: int
    norm_groups: str
    conv_groups: str
    adapter_ranks: str

    @property
    def trace_keywords(self) -> TraceKeywords:
        """As `trace` and `prune` take them."""
        return {"norm_groups": self.norm_groups, "conv_groups": self.conv_groups, "adapter_ranks": self.adapter_ranks}

    def __post_init__(self) -> None:
        if self.fake_weights and self.weights is not None:
            raise click.UsageError("--weights loads weights and --fake-weights does without; give one of them.")
        from proxyprune.modelfile import check_files

        check_files(self.model, self.weights)  # before anything slow is imported


class BoundType(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.5 on, and not before
    """`PATTERN=VALUE`: a fraction such as 0.25, or a whole number of channels such as 32."""

    name = "pattern=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float | int]:
        """Split at the last equals sign and read the number."""
        if isinstance(value, tuple):
            return value
        pattern, equals, number = str(value).rpartition("=")
        if not equals or not pattern:
            self.fail(f"{value!r} is not of the form PATTERN=VALUE, such as 'mid_block.*=0.5' or 'conv_in=32'.", param, ctx)
        try:
            return pattern, int(number) if number.strip().isdigit() else float(number)
        except ValueError:
            self.fail(f"{number!r} in {value!r} is neither a fraction such as 0.5 nor a number of channels such as 32.", param, ctx)


class RoundToType(click.ParamType):  # type: ignore[type-arg]  # as above
    """A whole number of channels, or "auto"."""

    name = "n|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Read a number from 1 up, or the word."""
        text = str(value).strip()
        if text == AUTO:
            return AUTO
        if not text.isdigit() or int(text) < 1:
            self.fail(f"{value!r} is neither a whole number of channels (at least 1) nor 'auto'.", param, ctx)
        return int(text)


_FAKE_WEIGHTS = click.option("--fake-weights", is_flag=True, help="Build the model without weights, for networks larger than memory.")
_MODEL = (
    click.option(
        "--model",
        "-m",
        required=True,
        metavar="FILE.py[:FACTORY]",
        shell_complete=files,
        help="Model file; FACTORY defaults to build_model.",
    ),
    click.option("--weights", "-w", type=_FILE, metavar="FILE", help="Safetensors file with the weights of the model."),
    _FAKE_WEIGHTS,
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random choices."),
    click.option(
        "--norm-groups",
        type=click.Choice(["balanced", "whole", "reduced"]),
        default="balanced",
        show_default=True,
        help="Cut GroupNorm by the same number of channels from each group, by whole groups, or with fewer groups.",
    ),
    click.option(
        "--conv-groups",
        type=click.Choice(["balanced", "whole"]),
        default="balanced",
        show_default=True,
        help="Cut grouped convolutions by the same number of channels from each group, or by whole groups.",
    ),
    click.option(
        "--adapter-ranks",
        type=click.Choice(["keep", "cut"]),
        default="keep",
        show_default=True,
        help="Keep or cut the inner ranks of adapters (LoRA).",
    ),
)
_GOAL = (
    click.option(
        "--target",
        "-t",
        default="0.6",
        show_default=True,
        help="Fraction of the unpruned network (0.6), an amount (3.4G, 250M, 5ms), or several budgets (macs=0.7,params=0.8).",
    ),
    click.option("--mode", type=click.Choice(["width", "depth", "both"]), default="width", show_default=True, help="What may be cut."),
)
_CUT = (
    click.option(
        "--metric",
        type=click.Choice(["macs", "params", "time"]),
        default="macs",
        show_default=True,
        help="Unit of the target; time is that of a run on this machine.",
    ),
    click.option(
        "--round-to",
        type=RoundToType(),
        help="Make widths multiples of this number if possible (default 1). auto: the fast multiple on this machine, the default for time.",
    ),
    click.option("--keep", multiple=True, metavar="PATTERN", help="Do not cut matching blocks, modules or parameters; repeatable."),
    click.option(
        "--floor", "floors", type=BoundType(), multiple=True, help="Keep at least this share or number of matching channels; repeatable."
    ),
    click.option(
        "--ceiling", "ceilings", type=BoundType(), multiple=True, help="Keep at most this share or number of matching channels; repeatable."
    ),
    click.option(
        "--remove", multiple=True, metavar="PATTERN", help="Remove matching blocks as a whole, if they are removable; repeatable."
    ),
    click.option(
        "--allocation",
        type=click.Choice(["auto", "blocks", "channels"]),
        default="auto",
        show_default=True,
        help="Widths from a comparison of channels, or from block scores; auto: from channels if their scores are comparable.",
    ),
    click.option(
        "--uniform",
        is_flag=True,
        help="Keep equal widths in repeated layers, so that the config of a transformers or diffusers class fits.",
    ),
    click.option("--accept-uncosted", is_flag=True, help="Plan even if the MACs of some ops are unknown; no figure includes them."),
)
_ACCEPT = click.option("--accept-unreliable", is_flag=True, help="Plan even if the ranking is marked unreliable.")

_RECOVERY = (
    click.option(
        "--recovery-steps",
        type=click.IntRange(min=0),
        default=None,
        metavar="N",
        help="Steps of fine-tuning after each cut (default 0 in search, 50 in compare and mcp).",
    ),
    click.option("--learning-rate", type=float, default=1e-4, show_default=True, help="Learning rate of that fine-tuning (AdamW)."),
)


@dataclass(frozen=True)
class RecoveryOptions:
    """The short fine-tuning before a network is measured.

    Attributes:
        steps: Updates, or None when the option was not given.
        learning_rate: AdamW's.
    """

    steps: int | None
    learning_rate: float

    def recovery(self, default_steps: int) -> Recovery:
        """As the library takes it."""
        from proxyprune.measuring.held_out import Recovery

        return Recovery(default_steps if self.steps is None else self.steps, self.learning_rate)


json_option = click.option("--json", "as_json", is_flag=True, help="Write only JSON to stdout.")


def gathered(
    argument: str, build: Callable[..., Any], options: tuple[Callable[[Any], Any], ...], names: tuple[str, ...] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command several options as one value.

    Args:
        argument: Name of the command's argument that takes the value.
        build: Makes the value from the options, by keyword; a dataclass, as a rule.
        options: click's option decorators, in the order of `--help`.
        names: Parameter names of the options; the dataclass's fields when left out.
    """
    fields = names or tuple(build.__dataclass_fields__)  # type: ignore[attr-defined]  # a dataclass, unless names are given

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def packed(*positional: Any, **values: Any) -> Any:
            return command(*positional, **{argument: build(**{name: values.pop(name) for name in fields})}, **values)

        for option in reversed(options):
            packed = option(packed)
        return packed

    return decorate


def _cut_keywords(floors: _Bounds, ceilings: _Bounds, round_to: int | str | None, **others: Any) -> CutKeywords:
    rounding = {} if round_to is None else {"round_to": round_to}
    return cast("CutKeywords", {**others, **rounding, "floors": dict(floors), "ceilings": dict(ceilings)})


def _plan_request(target: str, mode: str, accept_unreliable: bool, **cuts: Any) -> PlanRequest:
    """Build the request; a plain fraction becomes the number that a Python caller would write."""
    return PlanRequest.of(_targets(target), mode=mode, accept_unreliable=accept_unreliable, **_cut_keywords(**cuts))


def _targets(text: str) -> Target:
    """Read one target, or "macs=0.7,params=0.8"."""
    if "=" not in text:
        return _target(text)
    found: dict[str, SingleTarget] = {}
    for part in text.split(","):
        metric, equals, value = part.partition("=")
        if not equals or metric.strip() in found:
            raise click.UsageError(f"--target has {part!r}; expected each metric once, as in macs=0.7,params=0.8.")
        found[metric.strip()] = _target(value.strip())
    return found


def _target(text: str) -> SingleTarget:
    return float(text) if _FRACTION.fullmatch(text) else text


def _recovery(recovery_steps: int | None, learning_rate: float) -> RecoveryOptions:
    return RecoveryOptions(recovery_steps, learning_rate)


def _with_weights(**values: Any) -> ModelOptions:
    return ModelOptions(fake_weights=False, **values)


model_options = gathered("source", ModelOptions, _MODEL)
"""Give a command the options of `ModelOptions`, as its argument `source`."""

measured_model_options = gathered(
    "source",
    _with_weights,
    tuple(option for option in _MODEL if option is not _FAKE_WEIGHTS),
    names=tuple(name for name in ModelOptions.__dataclass_fields__ if name != "fake_weights"),
)
"""The same for a command that measures the network, which takes weights."""

_OPTIONAL_MODEL = click.option(
    "--model", "-m", metavar="FILE.py[:FACTORY]", shell_complete=files, help="Model file; FACTORY defaults to build_model."
)


def _with_weights_or_none(model: str | None, **values: Any) -> ModelOptions | None:
    return None if model is None else ModelOptions(model=model, fake_weights=False, **values)


optional_model_options = gathered(
    "source",
    _with_weights_or_none,
    (_OPTIONAL_MODEL, *(option for option in _MODEL[1:] if option is not _FAKE_WEIGHTS)),
    names=tuple(name for name in ModelOptions.__dataclass_fields__ if name != "fake_weights"),
)
"""The same for a command that can do without a network."""

recovery_options = gathered("recovery", _recovery, _RECOVERY, names=("recovery_steps", "learning_rate"))
"""Give a command the options of `RecoveryOptions`, as its argument `recovery`."""

PLAN_NAMES = ("target", *PlanKeywords.__annotations__)
"""Names of the parameters that `plan_options` adds."""

plan_options = gathered("request", _plan_request, (*_GOAL, *_CUT, _ACCEPT), names=PLAN_NAMES)
"""Give a command what it asks of a plan, a `PlanRequest`, as its argument `request`."""

cut_options = gathered("cuts", _cut_keywords, _CUT, names=tuple(CutKeywords.__annotations__))
"""Give a command that takes several targets and modes the other options of a plan, `CutKeywords`, as its argument `cuts`."""


def scorer_option(command: _Function) -> _Function:
    """Give a command `--scorer`."""
    text = "Registered name; `proxyprune scorers` lists them."
    return click.option("--scorer", "-s", default="magnitude", show_default=True, metavar="NAME", shell_complete=scorer_names, help=text)(
        command
    )


def channels_option(command: _Function) -> _Function:
    """Give a command `--channels`."""
    text = (
        "Scorer of channels, for a scorer that scores only blocks; calibration data decide the weight of the block scores. "
        "auto: taylor with a language model, in mode width, if the model file has data. none: no channel scorer."
    )
    return click.option("--channels", default="auto", show_default=True, metavar="NAME", shell_complete=scorer_names, help=text)(command)


def file_option(name: str, metavar: str, text: str) -> Callable[[_Function], _Function]:
    """Return an option that names a file or folder; whether it exists is for the command to see."""
    return click.option(name, type=_FILE, metavar=metavar, help=text)


def plot_option(drawn: str) -> Callable[[_Function], _Function]:
    """Give a command `--plot`; `drawn` says what it shows."""
    return file_option("--plot", "PATH", f"Draw {drawn} (.png, .svg or .pdf).")
