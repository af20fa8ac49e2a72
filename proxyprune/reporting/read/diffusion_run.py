"""Read the files of a step-adaptive training run that a report shows."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from proxyprune.diffusion.run_folder import RunFolder
from proxyprune.errors import ProxyPruneError, StorageError
from proxyprune.reporting.read.json_fields import Fields, as_number, fail, parsed
from proxyprune.reporting.read.result_records import flat

_MOST_PICTURE_BYTES = 4 << 20
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST_DAMAGE = 1e9  # a log ratio of losses is nowhere near


@dataclass(frozen=True)
class Spent:
    """One line of the ledger."""

    stage: str
    what: str
    images: int
    macs: int


@dataclass(frozen=True)
class LoggedLoss:
    """The training loss of one stage.

    Attributes:
        stage: "base" or "expert-N".
        points: (step, loss), in order.
    """

    stage: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Damage:
    """The cost of pruning one interval to one size: the log ratio of losses."""

    fraction: float
    value: float


@dataclass(frozen=True)
class LossBinRecord:
    """Held-out loss in a stretch of timesteps of one interval.

    Attributes:
        interval: Its index.
        first: First timestep.
        last: Last timestep.
        snr_db: In the middle of the stretch; None without signal.
        base: Loss of the base.
        expert: Loss of the interval's expert, or None.
    """

    interval: int
    first: int
    last: int
    snr_db: float | None
    base: float
    expert: float | None


@dataclass(frozen=True)
class Picture:
    """A grid of samples.

    Attributes:
        label: Where in the run it is from.
        uri: The PNG as a data URI.
    """

    label: str
    uri: str


@dataclass(frozen=True)
class Range:
    """One interval of the noise process, and its expert; interval 0 is the cleanest.

    Attributes:
        index: Place.
        low_snr_db: At the noisy end, None where the process ends.
        high_snr_db: At the clean end, None where the process begins.
        first: First training timestep.
        last: Last training timestep.
        budget: Fraction of the base's MACs that the expert may cost, or None.
        sampler_steps: Steps of the sampler inside, or None.
        macs: What the finished expert costs, or None.
        params: Its parameters, or None.
        steps: Training steps it had, or None.
        tried: Damage at the end of each trial, where budgets were measured.
        remaining: Damage that is expected after an expert's training, by size.
    """

    index: int
    low_snr_db: float | None
    high_snr_db: float | None
    first: int
    last: int
    budget: float | None = None
    sampler_steps: int | None = None
    macs: int | None = None
    params: int | None = None
    steps: int | None = None
    tried: tuple[Damage, ...] = ()
    remaining: tuple[Damage, ...] = ()


@dataclass(frozen=True)
class DiffusionRun:
    """A run, finished or not.

    Attributes:
        settings: The configuration, as text by dotted name.
        ranges: The intervals; empty before they are chosen.
        interval_method: How they were chosen.
        budget_method: How the budgets were chosen.
        base_macs: MACs of the base, once it is trained.
        limit_macs: Training MACs of the full-size reference.
        ledger: What was spent.
        losses: Training losses by stage.
        pictures: The latest sample grid of each stage.
        curve: (timestep, SNR in dB), as far as it is finite.
        bins: Held-out loss by noise level; empty before the run is finished.
        notes: Sentences for the reader.
    """

    settings: Mapping[str, str]
    ranges: tuple[Range, ...]
    interval_method: str
    budget_method: str
    base_macs: int | None
    limit_macs: int | None
    ledger: tuple[Spent, ...]
    losses: tuple[LoggedLoss, ...]
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]
    curve: tuple[tuple[float, float], ...] = ()
    bins: tuple[LossBinRecord, ...] = ()

    @property
    def spent_macs(self) -> int:
        """Sum of the ledger."""
        return sum(entry.macs for entry in self.ledger)

    @property
    def mean_share(self) -> float | None:
        """Mean MACs over the sampler's steps, as a share of the base; as trained where all experts are finished, else as budgeted."""
        shares = [(_share(entry, self.base_macs), entry.sampler_steps) for entry in self.ranges]
        if not shares or any(share is None or steps is None for share, steps in shares):
            return None
        total = sum(steps or 0 for _, steps in shares)
        return sum((share or 0.0) * (steps or 0) for share, steps in shares) / total if total else None


def is_run(folder: Path) -> bool:
    """Return True if a folder looks like a diffusion run: a configuration with noise and intervals in it."""
    try:
        data = _read(RunFolder(folder).config)
    except ProxyPruneError:
        return False
    return data is not None and data.has("noise", "intervals")


def read_run(folder: Path) -> DiffusionRun:
    """Read what is there; a run that is still going says less.

    Raises:
        ResultFileError: If a file is damaged.
        StorageError: If one cannot be read.
    """
    run = RunFolder(folder)
    config = _read(run.config) or Fields({}, f"'{folder}'")
    layout, base, whole = (_read(path) for path in (run.layout, run.base.result, run.ledger))
    experts = [_read(expert.result) for expert in run.experts()]
    parts = [whole] if whole is not None else [part.fields("ledger") for part in (base, layout, *experts) if part is not None]
    budgets = Fields({}, f"'{folder}'") if layout is None else layout.fields("budgets")
    return DiffusionRun(
        settings=flat(config.data),
        ranges=() if layout is None else tuple(_ranges(layout, budgets, experts)),
        interval_method="" if layout is None else layout.fields("intervals").text("method", ""),
        budget_method=budgets.text("method", ""),
        base_macs=None if base is None else base.optional_count("macs"),
        limit_macs=None if whole is None else whole.optional_count("limit_macs"),
        ledger=tuple(entry for part in parts for entry in _spent(part)),
        losses=tuple(_losses(run)),
        pictures=tuple(_pictures(run)),
        notes=budgets.texts("notes"),
        curve=() if layout is None else tuple(_curve(layout)),
        bins=tuple(_bins(run)),
    )


def _ranges(layout: Fields, budgets: Fields, experts: Sequence[Fields | None]) -> Iterator[Range]:
    fractions, counts, measured = budgets.items("fractions"), budgets.items("steps"), layout.fields("measured")
    tried, remaining = measured.items("sizes"), measured.items("remaining")
    for index, member in enumerate(layout.objects("members")):
        done = experts[index] if index < len(experts) else None
        yield Range(
            index,
            member.number("low_snr_db"),
            member.number("high_snr_db"),
            member.count("first"),
            member.count("last"),
            as_number(fractions[index], f"{layout.where}, 'fractions'") if index < len(fractions) else None,
            int(as_number(counts[index], f"{layout.where}, 'steps'")) if index < len(counts) else None,
            None if done is None else done.optional_count("macs"),
            None if done is None else done.optional_count("params"),
            None if done is None else done.optional_count("steps"),
            tuple(_tried(tried[index], measured.where)) if index < len(tried) else (),
            tuple(_remaining(remaining[index], measured.where)) if index < len(remaining) else (),
        )


def _tried(sizes: object, where: str) -> Iterator[Damage]:
    if not isinstance(sizes, list):
        fail(where, f"expected sizes that were tried, found {str(sizes)[:60]!r}")
    for size in sizes:
        record = Fields.of(size, where)
        damages = record.items("damages")
        yield _damage(record.number("fraction"), as_number(damages[-1], where) if damages else None, where)


def _remaining(points: object, where: str) -> Iterator[Damage]:
    if not isinstance(points, list):
        fail(where, f"expected sizes with their damage, found {str(points)[:60]!r}")
    for point in points:
        if not isinstance(point, list) or len(point) != 2:
            fail(where, f"expected [size, damage], found {str(point)[:60]!r}")
        yield _damage(as_number(point[0], where), as_number(point[1], where), where)


def _damage(fraction: float | None, value: float | None, where: str) -> Damage:
    if fraction is None or value is None or not (0.0 < fraction <= 1.0 and abs(value) <= _MOST_DAMAGE):
        fail(where, f"expected a size in (0, 1] and its damage, found {fraction} and {value}")
    return Damage(fraction, value)


def _curve(layout: Fields) -> Iterator[tuple[float, float]]:
    where = f"{layout.where}, 'curve'"
    for point in layout.items("curve"):
        if not isinstance(point, list) or len(point) != 2:
            fail(where, f"expected [timestep, dB], found {str(point)[:60]!r}")
        if point[1] is not None:
            yield as_number(point[0], where), as_number(point[1], where)


def _bins(run: RunFolder) -> Iterator[LossBinRecord]:
    found = _read(run.losses)
    for entry in () if found is None else found.objects("bins"):
        levels, base = entry.items("snr_db"), entry.number("base")
        if len(levels) != 3 or base is None:
            fail(entry.where, "expected three SNRs and the base's loss")
        middle = None if levels[1] is None else as_number(levels[1], f"{entry.where}, 'snr_db'")
        yield LossBinRecord(entry.count("interval"), entry.count("first"), entry.count("last"), middle, base, entry.number("expert"))


def _share(entry: Range, base_macs: int | None) -> float | None:
    return entry.macs / base_macs if entry.macs is not None and base_macs else entry.budget


def _spent(ledger: Fields) -> Iterator[Spent]:
    for entry in ledger.objects("entries"):
        number = entry.optional_count("interval")
        stage = entry.text("stage", "")
        yield Spent(stage if number is None else f"{stage} {number}", entry.text("what", ""), entry.count("images", 0), entry.count("macs"))


def _losses(run: RunFolder) -> Iterator[LoggedLoss]:
    """Read lines of a log, whose last one may be half written while the run goes on."""
    for stage in run.stages():
        if not (path := stage.log).is_file():
            continue
        content = _content(path)
        points = []
        for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
            where = f"'{path}', line {number}"
            entry = Fields.of(parsed(line, where), where)
            step, loss = entry.number("step"), entry.number("loss")
            if step is not None and loss is not None:
                points.append((step, loss))
        if points:
            yield LoggedLoss(stage.path.name, tuple(points))


def _pictures(run: RunFolder) -> Iterator[Picture]:
    """Yield the latest grid of each stage, and what lies in the run's own folder; PNG only, and of a size that a page can carry."""
    latest = [path for stage in run.stages() for path in stage.grids()[-1:]]
    for path in [*sorted(run.path.glob("*.png")), *latest]:
        content = _content(path) if path.stat().st_size <= _MOST_PICTURE_BYTES else b""
        if content.startswith(_PNG):
            uri = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
            yield Picture(str(path.relative_to(run.path).with_suffix("")), uri)


def _read(path: Path) -> Fields | None:
    return Fields.of(parsed(_content(path), f"'{path}'"), f"'{path}'") if path.is_file() else None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}. Check its permissions.") from error
