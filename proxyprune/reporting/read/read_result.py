"""Find the kind of result that a path holds, and everything in it that a report can show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxyprune.errors import ProxyPruneError, ResultFileError, StorageError
from proxyprune.graph.group_names import names_of_ids
from proxyprune.reporting.read.diffusion_run import DiffusionRun, is_run, read_run
from proxyprune.reporting.read.evaluation_record import EvaluationRecord, evaluations
from proxyprune.reporting.read.json_fields import Fields, fail, parsed
from proxyprune.reporting.read.result_records import ComparisonRecord, Figures, RoundRecord, SearchRecord, flat
from proxyprune.reporting.read.structure_record import StructureRecord
from proxyprune.saving.manifest import FILES, MANIFEST, PLAN, RANKING, REPORT, STRUCTURE, read_manifest, sha256_of
from proxyprune.scoring.ranking import Ranking

if TYPE_CHECKING:
    from proxyprune.planning.plan import PrunePlan

NETWORK, RANKED, PLANNED, SEARCHED, COMPARED, DESCRIBED, DIFFUSION, EVALUATED = (
    "pruned network",
    "ranking",
    "plan",
    "search",
    "comparison",
    "structure",
    "diffusion run",
    "evaluation",
)
EVALUATION = "evaluation.json"
"""File of a run with what `diffusion evaluate --json` printed; its figures are part of the run's report."""

_ACCEPTED = (
    "a folder written by prune, search or pp.save, a plan, a diffusion run, a search's memory (JSON lines), or what score, prune, search, "
    "compare, describe or diffusion evaluate print with --json"
)


@dataclass(frozen=True)
class Result:
    """Everything that was found; what a kind of result does not have is None or empty.

    Attributes:
        kind: One of the constants above.
        name: What to call it: the folder's or file's own name.
        structure: Blocks and wiring.
        ranking: Importances.
        plan: What is cut.
        figures: Cost before and after.
        search: Rounds of a search.
        comparison: Cells of a comparison.
        diffusion: A training run.
        evaluations: How good the images of pipelines are, and what they cost.
        asked: What asking a language model took.
        made_with: Package -> version.
        warnings: What a reader should know about the files themselves.
    """

    kind: str
    name: str
    structure: StructureRecord | None = None
    ranking: Ranking | None = None
    plan: PrunePlan | None = None
    figures: Figures | None = None
    search: SearchRecord | None = None
    comparison: ComparisonRecord | None = None
    diffusion: DiffusionRun | None = None
    evaluations: tuple[EvaluationRecord, ...] = ()
    asked: Mapping[str, str] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def model_class(self) -> str:
        """Name of the network's class, or ""."""
        if self.structure is not None and self.structure.model_class:
            return self.structure.model_class
        return "" if self.comparison is None else self.comparison.model_class

    @cached_property
    def group_names(self) -> Mapping[str, str]:
        """Block and role of each channel group, by id; files of earlier versions hold no names, so they follow from the ids."""
        groups = () if self.structure is None else self.structure.groups
        ids = [group.id for group in groups]
        ids += [] if self.plan is None else self.plan.widths
        ids += [] if self.figures is None else self.figures.pinned
        return names_of_ids(dict.fromkeys(ids)) | {group.id: group.name for group in groups if group.name}


def read_result(path: str | Path) -> Result:
    """Read a result of any kind.

    Args:
        path: What a command of proxyprune wrote, or its printed JSON in a file.

    Raises:
        StorageError: If nothing is there, or it cannot be read.
        ResultFileError: If it is no result, or a damaged one.
    """
    path = Path(path)
    if not path.exists():
        raise StorageError(f"There is no result at '{path}'. Check the path.")
    if path.is_dir():
        return _folder(path)
    content = _bytes(path)
    if path.suffix.lower() == ".jsonl":
        return Result(SEARCHED, path.name, search=_memory(content, f"'{path}'"))
    data = Fields.of(parsed(content, f"'{path}'"), f"'{path}'")
    for wanted, read in _KINDS.items():
        if data.has(*wanted):
            return replace(read(data), name=path.name)
    raise ResultFileError(f"'{path}' is JSON, but not a result of proxyprune. Expected {_ACCEPTED}.")


def _folder(path: Path) -> Result:
    if (path / MANIFEST).is_file():
        return _network(path)
    if is_run(path):
        judged = _object(path / EVALUATION, evaluations) or ()
        return Result(DIFFUSION, path.resolve().name, diffusion=read_run(path), evaluations=judged)
    raise ResultFileError(
        f"The folder '{path}' is not a result of proxyprune: it has neither a {MANIFEST} nor the configuration of a diffusion run. "
        f"Expected {_ACCEPTED}."
    )


def _network(path: Path) -> Result:
    """Return a folder written by `save`; older ones lack the structure, and say less."""
    manifest = read_manifest(path)
    changed = [name for name in FILES if name in manifest.sha256 and _changed(path / name, manifest.sha256[name])]
    figures = _object(path / REPORT, Figures.read)
    structure = _object(path / STRUCTURE, StructureRecord.read)
    memory = _memory_inside(path)
    warnings = [f"{name} was changed after it was saved, or is missing; its figures may not belong to this network." for name in changed]
    if structure is None:
        warnings.append("Saved by an earlier version, which did not keep the block graph: save the network again to see it drawn.")
    return Result(
        NETWORK if memory is None else SEARCHED,
        path.resolve().name,
        structure,
        _object(path / RANKING, _ranking),
        _object(path / PLAN, _plan),
        figures,
        memory,
        made_with={} if figures is None else figures.made_with,
        warnings=tuple(warnings),
    )


def _changed(path: Path, expected: str) -> bool:
    try:
        return not path.is_file() or sha256_of(path) != expected
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}. Check its permissions.") from error


def _memory_inside(path: Path) -> SearchRecord | None:
    """Return the rounds, when the search kept its memory in the folder that it saved to."""
    for file in sorted(path.glob("*.jsonl")):
        return _memory(_bytes(file), f"'{file}'")
    return None


def _described(data: Fields) -> Result:
    return Result(DESCRIBED, "", StructureRecord.read(data), made_with=data.text_map("made_with"))


def _scored(data: Fields) -> Result:
    structure = StructureRecord.read(data) if data.has("blocks") else None
    asked = flat(data.fields("asked").data)
    return Result(RANKED, "", structure, _ranking(data), asked=asked, made_with=data.text_map("made_with"))


def _planned(data: Fields) -> Result:
    return Result(PLANNED, "", plan=_plan(data))


def _pruned(data: Fields) -> Result:
    """Return what `prune --json` prints."""
    figures = Figures.read(data.fields("report"))
    kind = PLANNED if "file" in data.data else NETWORK
    return Result(kind, "", _inner(data), plan=_plan(data.fields("plan")), figures=figures, made_with=figures.made_with)


def _searched(data: Fields) -> Result:
    """Return what `search --json` prints."""
    rounds = tuple(RoundRecord.read(entry) for entry in data.objects("rounds"))
    search = SearchRecord(data.text("proposer", ""), data.text("stopped", ""), data.number("base_loss"), rounds)
    figures = Figures.read(data.fields("report")) if data.has("report") else None
    rankings = {entry.count("index"): entry for entry in data.objects("rounds") if entry.has("ranking")}
    chosen = rankings.get(data.optional_count("best_round") or 0)
    return Result(
        SEARCHED,
        "",
        _inner(data),
        None if chosen is None else _ranking(chosen.fields("ranking")),
        _plan(data.fields("plan")) if data.has("plan") else None,
        figures,
        search,
        made_with={} if figures is None else figures.made_with,
    )


def _compared(data: Fields) -> Result:
    return Result(COMPARED, "", _inner(data), comparison=ComparisonRecord.read(data), made_with=data.text_map("made_with"))


def _evaluated(data: Fields) -> Result:
    return Result(EVALUATED, "", evaluations=evaluations(data))


# Keys that tell what a JSON object is -> how it is read; the first that fits.
_KINDS: Mapping[tuple[str, ...], Callable[[Fields], Result]] = {
    ("cells", "scorings"): _compared,
    ("evaluations",): _evaluated,
    ("frechet", "sampling_macs"): _evaluated,
    ("rounds", "proposer"): _searched,
    ("plan", "report"): _pruned,
    ("groups", "removed_blocks", "fingerprint"): _planned,
    ("scores", "scorer"): _scored,
    ("blocks", "groups"): _described,
}


def _inner(data: Fields) -> StructureRecord | None:
    return StructureRecord.read(data.fields("graph")) if data.has("graph") else None


def _ranking(data: Fields) -> Ranking:
    """Return a ranking without its channel scores, which no report shows."""
    checked = {
        "schema": data.data.get("schema"),
        "scorer": data.text("scorer"),
        "seed": data.count("seed", 0),
        "confidence": data.number("confidence"),
        "scores": data.fields("scores").data,
        "notes": data.texts("notes"),
        "unreliable": data.optional_text("unreliable"),
    }
    try:
        return Ranking.from_dict(checked)
    except ProxyPruneError as error:
        raise ResultFileError(f"{data.where}: {error}") from error


def _plan(data: Fields) -> PrunePlan:
    from proxyprune.planning.plan import PrunePlan

    try:
        return PrunePlan.from_dict(data.data)
    except ProxyPruneError as error:
        raise ResultFileError(f"{data.where}: {error}") from error


def _object(path: Path, read: Callable[[Fields], Any]) -> Any:
    """One file of a folder, or None when it is not there."""
    return read(Fields.of(parsed(_bytes(path), f"'{path}'"), f"'{path}'")) if path.is_file() else None


def _memory(content: bytes, where: str) -> SearchRecord:
    """Return a search's memory: a header, the start, one line a round; half a last line is passed over, as when it is resumed."""
    lines = content[: content.rfind(b"\n") + 1].splitlines()
    entries = [Fields.of(parsed(line, f"{where}, line {number}"), f"{where}, line {number}") for number, line in enumerate(lines, start=1)]
    if not entries or entries[0].data.get("kind") != "search":
        fail(where, "it is not the memory of a search")
    header = entries[0]
    starts = [entry for entry in entries if entry.data.get("what") == "start"]
    rounds = tuple(RoundRecord.read(entry.fields("round")) for entry in entries if entry.data.get("what") == "round")
    settings = flat({key: value for key, value in header.data.items() if key not in ("schema", "kind")})
    return SearchRecord(header.text("proposer", ""), "", starts[0].number("base_loss") if starts else None, rounds, settings)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror}. Check its permissions.") from error
