"""Figures of a pruned network, rounds of a search and cells of a comparison, as the files tell them; unknown keys are passed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from proxyprune.reporting.read.json_fields import Fields, as_number, fail


@dataclass(frozen=True)
class Figures:
    """The content of report.json; the attributes are those of `proxyprune.api.Report`, `block_macs` being its `blocks`.

    Those that came later may be missing: parameters by block, versions, thop's count, and the time of a run, which is measured on request.
    """

    base_macs: int
    macs: int
    base_params: int
    params: int
    conventional_macs: tuple[int, int] | None
    pinned: Mapping[str, str]
    unsupported_ops: tuple[str, ...]
    uncosted_ops: tuple[str, ...]
    block_macs: Mapping[str, tuple[int, int]]
    block_params: Mapping[str, tuple[int, int]]
    notes: tuple[str, ...]
    made_with: Mapping[str, str]
    seconds: tuple[float, float] | None = None
    unreached: tuple[str, ...] = ()
    not_followed: Mapping[str, str] = field(default_factory=dict)
    compensation: CompensationRecord | None = None
    thop_macs: tuple[int, int] | None = None
    losses: LossesRecord | None = None
    trials: TrialsRecord | None = None

    @classmethod
    def read(cls, data: Fields) -> Figures:
        """From report.json.

        Raises:
            ResultFileError: If it is malformed.
        """
        both = data.items("conventional_macs")
        conventional = data.pair_of(both, "conventional_macs") if both else None
        timed = data.items("seconds")
        by_thop = data.items("thop_macs")
        return cls(
            base_macs=data.count("base_macs"),
            macs=data.count("macs"),
            base_params=data.count("base_params"),
            params=data.count("params"),
            conventional_macs=conventional,
            pinned=data.text_map("pinned"),
            unsupported_ops=data.texts("unsupported_ops"),
            uncosted_ops=data.texts("uncosted_ops"),
            block_macs=data.pairs("blocks"),
            block_params=data.pairs("block_params"),
            notes=data.texts("notes"),
            made_with=data.text_map("made_with"),
            seconds=(as_number(timed[0], data.where), as_number(timed[1], data.where)) if len(timed) == 2 else None,
            unreached=data.texts("unreached"),
            not_followed=data.text_map("not_followed"),
            thop_macs=data.pair_of(by_thop, "thop_macs") if by_thop else None,
            compensation=CompensationRecord.read(data.fields("compensation")) if data.has("compensation") else None,
            losses=LossesRecord.read(data.fields("losses")) if data.has("losses") else None,
            trials=TrialsRecord.read(data.fields("trials")) if data.has("trials") else None,
        )


@dataclass(frozen=True)
class LossesRecord:
    """The loss at each stage; the attributes are those of `proxyprune.Losses`."""

    measured_on: str
    batches: int
    unpruned: float | None
    cut: float | None
    compensated: float | None
    recovered: float | None
    recover_steps: int

    @classmethod
    def read(cls, data: Fields) -> LossesRecord:
        """From "losses" in report.json.

        Raises:
            ResultFileError: If it is malformed.
        """
        return cls(
            measured_on=data.text("measured_on"),
            batches=data.count("batches"),
            unpruned=data.number("unpruned"),
            cut=data.number("cut"),
            compensated=data.number("compensated"),
            recovered=data.number("recovered"),
            recover_steps=data.count("recover_steps"),
        )


@dataclass(frozen=True)
class TrialRecord:
    """One scorer and mode that was tried; the attributes are those of `proxyprune.Trial`."""

    scorer: str
    mode: str
    value: float | None
    seconds: float | None
    chosen: bool
    note: str


@dataclass(frozen=True)
class TrialsRecord:
    """The scorers that were tried; the attributes are those of `proxyprune.Trials`."""

    measure: str
    batches: int
    tried: tuple[TrialRecord, ...]

    @classmethod
    def read(cls, data: Fields) -> TrialsRecord:
        """From "trials" in report.json.

        Raises:
            ResultFileError: If it is malformed.
        """
        tried = tuple(
            TrialRecord(
                entry.text("scorer"),
                entry.text("mode"),
                entry.number("value"),
                entry.number("seconds"),
                entry.flag("chosen"),
                entry.text("note"),
            )
            for entry in data.objects("tried")
        )
        return cls(measure=data.text("measure"), batches=data.count("batches"), tried=tried)


@dataclass(frozen=True)
class LayerRecord:
    """One layer of a compensation; the attributes are those of `proxyprune.compensation.report.RefittedLayer`."""

    layer: str
    error_before: float | None
    error_after: float | None
    ridge: float | None
    refitted: bool


@dataclass(frozen=True)
class CompensationRecord:
    """The effect of a refit of the weights; the attributes are those of `proxyprune.CompensationReport`."""

    measure: str
    before: float | None
    after: float | None
    accepted: bool
    held_out_batches: int
    layers: tuple[LayerRecord, ...]
    skipped: Mapping[str, str]

    @classmethod
    def read(cls, data: Fields) -> CompensationRecord:
        """From "compensation" in report.json.

        Raises:
            ResultFileError: If it is malformed.
        """
        layers = tuple(
            LayerRecord(
                entry.text("layer"),
                entry.number("error_before"),
                entry.number("error_after"),
                entry.number("ridge"),
                entry.flag("refitted"),
            )
            for entry in data.objects("layers")
        )
        return cls(
            measure=data.text("measure"),
            before=data.number("before"),
            after=data.number("after"),
            accepted=data.flag("accepted"),
            held_out_batches=data.count("held_out_batches"),
            layers=layers,
            skipped=data.text_map("skipped"),
        )


@dataclass(frozen=True)
class RoundRecord:
    """One round of a search; the attributes are those of `proxyprune.searching.Round`."""

    index: int
    loss: float | None
    verdict: str
    macs: int | None
    seconds: float | None
    duplicate_of: int | None
    error: str | None
    notes: tuple[str, ...]

    @classmethod
    def read(cls, data: Fields) -> RoundRecord:
        """From one entry of "rounds", or one line of a memory."""
        macs = data.optional_count("macs")
        return cls(
            index=data.count("index"),
            loss=data.number("loss"),
            verdict=data.text("verdict", ""),
            macs=data.fields("plan").optional_count("macs") if macs is None else macs,
            seconds=data.number("seconds"),
            duplicate_of=data.optional_count("duplicate_of"),
            error=data.optional_text("error"),
            notes=data.fields("ranking").texts("notes"),
        )


@dataclass(frozen=True)
class SearchRecord:
    """A search.

    Attributes:
        proposer: Who proposed.
        stopped: Why it ended, "" when the file does not say (a memory does not).
        base_loss: Held-out loss of the unpruned network.
        rounds: In order.
        settings: What the memory belongs to, as text by name.
    """

    proposer: str
    stopped: str
    base_loss: float | None
    rounds: tuple[RoundRecord, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def best(self) -> RoundRecord | None:
        """The round with the lowest loss."""
        return min((entry for entry in self.rounds if entry.loss is not None), key=lambda entry: entry.loss or 0.0, default=None)

    @property
    def measured(self) -> int:
        """Rounds that cost a measurement."""
        return sum(entry.duplicate_of is None for entry in self.rounds)


@dataclass(frozen=True)
class ScoringRecord:
    """One ranking by one scorer: its agreement with the oracle, and what it cost."""

    scorer: str
    seed: int
    tau: float | None
    seconds: float | None
    dollars: float | None
    error: str | None

    @classmethod
    def read(cls, data: Fields) -> ScoringRecord:
        """From one entry of "scorings"."""
        return cls(
            data.text("scorer"),
            data.count("seed", 0),
            data.number("tau"),
            data.number("seconds"),
            data.number("dollars"),
            data.optional_text("error"),
        )


@dataclass(frozen=True)
class CellRecord:
    """One network, cut by one ranking and measured."""

    scorer: str
    case: str
    seed: int
    macs: int | None
    loss: float | None
    recovered_loss: float | None
    quality: float | None
    error: str | None

    @classmethod
    def read(cls, data: Fields) -> CellRecord:
        """From one entry of "cells" or "base"."""
        target = data.data.get("target", "")
        return cls(
            scorer=data.text("scorer", ""),
            case=f"{data.text('mode', '')} {target}".strip()[:80],
            seed=data.count("seed", 0),
            macs=data.optional_count("macs"),
            loss=data.number("loss"),
            recovered_loss=data.number("recovered_loss"),
            quality=data.number("quality"),
            error=data.optional_text("error"),
        )


@dataclass(frozen=True)
class ComparisonRecord:
    """Scorers, compared on one network."""

    model_class: str
    fingerprint: str
    base_macs: int
    base: tuple[CellRecord, ...]
    scorings: tuple[ScoringRecord, ...]
    cells: tuple[CellRecord, ...]
    notes: tuple[str, ...]
    settings: Mapping[str, str]
    oracle: Mapping[str, float]

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names, in the order of the file."""
        return unique([*(entry.scorer for entry in self.scorings), *(cell.scorer for cell in self.cells)])

    @property
    def cases(self) -> tuple[str, ...]:
        """Ways to cut, in the order of the file."""
        return unique(cell.case for cell in self.cells)

    @classmethod
    def read(cls, data: Fields) -> ComparisonRecord:
        """From `compare --json`.

        Raises:
            ResultFileError: If it is malformed.
        """
        cells = tuple(CellRecord.read(entry) for entry in data.objects("cells"))
        if not cells:
            fail(data.where, "the comparison holds no measurement")
        return cls(
            model_class=data.text("model_class", ""),
            fingerprint=data.text("fingerprint", ""),
            base_macs=data.count("base_macs", 0),
            base=tuple(CellRecord.read(entry) for entry in data.objects("base")),
            scorings=tuple(ScoringRecord.read(entry) for entry in data.objects("scorings")),
            cells=cells,
            notes=data.texts("notes"),
            settings=flat(data.fields("settings").data),
            oracle={name: as_number(value, f"{data.where}, 'oracle'") for name, value in data.fields("oracle").data.items()},
        )


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, in order."""
    return tuple(dict.fromkeys(names))


def flat(data: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested settings as text by dotted name."""
    found: dict[str, str] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None and value != [] and value != "":
            found[f"{prefix}{name}"] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return found
