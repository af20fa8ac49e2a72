"""Channel groups that a config moves together.

A config has one number for the width of many groups, and sometimes several numbers that only fit together (heads of queries and of keys).
`knobs_of` finds the ways to narrow a network that its config can express: it starts at one number, follows the dimensions that react to it
to the channel groups there, and from these groups to all their other dimensions, where further numbers may have to follow. All sizes are
linear in the numbers and in the atoms of the groups, so the steps are exact fractions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from proxyprune.coupling.coupling import Coupling
from proxyprune.standard.blueprint import Path, attributes_of, shapes_of, written
from proxyprune.standard.reactions import Dim, Family
from proxyprune.standard.sizes import Sizes
from proxyprune.tracing.program import Program

_MOST_RAYS = 8  # ways to move one number together with others
_MOST_STEPS = 8  # of a knob whose single step the class rejects
_MOST_FOLLOWERS = 6  # hidden numbers that are tried along with a knob


@dataclass(frozen=True)
class Knob:
    """One way to narrow a network that its config can express.

    Attributes:
        numbers: Numbers of the config -> how much each falls in one step.
        atoms: Index of a prunable group -> atoms that leave in one step.
        divisors: Number of the knob -> another number by which the class requires it to be divisible.
        multiples: Number of the knob -> another number that the class requires to be divisible by it.
    """

    numbers: Mapping[Path, int]
    atoms: Mapping[int, int]
    divisors: Mapping[Path, Path] = field(default_factory=dict)
    multiples: Mapping[Path, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Knobs:
    """All independent ways to narrow a network that its config can express.

    Attributes:
        knobs: At most one for a group.
        obstacles: Index of a prunable group that has no knob -> why.
    """

    knobs: tuple[Knob, ...]
    obstacles: Mapping[int, str] = field(repr=False)


@dataclass(frozen=True)
class _Ray:
    numbers: Mapping[Path, Fraction]
    atoms: Mapping[int, Fraction]


@dataclass(frozen=True)
class _Blocked(Exception):
    dim: Dim
    numbers: tuple[Path, ...]
    computed: bool = False


class KnobFinder:
    """Finds the knobs of one family in one coupled program."""

    def __init__(self, family: Family, coupling: Coupling, prunable: int, sizes: Sizes) -> None:
        self._family = family
        self._sizes = sizes
        self._dims_of: dict[int, list[Dim]] = {group: [] for group in range(prunable)}
        for dim, coefficients in sizes.forms.items():
            for group in coefficients:
                self._dims_of[group].append(dim)
        self._atoms = [group.atoms for group in coupling.groups[:prunable]]
        self._head_channels = [group.atom_channels for group in coupling.groups[:prunable]]
        self._steps = [math.lcm(group.step, len(set(group.bins)) if group.bins else 1) for group in coupling.groups[:prunable]]
        self._blocked: dict[int, str] = {}

    def find(self) -> Knobs:
        """Find the knobs; of those that share a group the one with the best evidence counts."""
        found: list[tuple[tuple[int, int], Knob]] = []
        for path, reaction in self._family.reactions.items():
            if reaction.slopes:
                for ray in self._rays(path):
                    checked = self._checked(ray)
                    if checked is not None:
                        found.append(checked)
        found.sort(key=lambda entry: entry[0])
        chosen: list[Knob] = []
        taken: set[int] = set()
        for _, knob in found:
            if taken.isdisjoint(knob.atoms):
                chosen.append(knob)
                taken.update(knob.atoms)
        chosen.sort(key=lambda knob: min(knob.atoms))
        missing = [group for group in self._dims_of if group not in taken]
        return Knobs(tuple(chosen), {group: self._blocked.get(group, self._no_number(group)) for group in missing})

    def _no_number(self, group: int) -> str:
        name, dim = next(iter(self._dims_of[group]), ("", 0))
        numbers = self._family.reacting.get((name, dim), ())
        if not numbers:
            return f"no number of the config sets dimension {dim} of '{name}'"
        return f"{' and '.join(written(path) for path in numbers)} cannot be lowered for it alone"

    def _rays(self, start: Path) -> Iterator[_Ray]:
        """Every way to lower one number by one, with the numbers and groups that have to follow."""
        waiting: list[dict[Path, Fraction]] = [{start: Fraction(-1)}]
        tried = 0
        while waiting and tried < _MOST_RAYS * 4:
            numbers = waiting.pop(0)
            tried += 1
            try:
                atoms, open_dim, rest = self._followed(numbers)
            except _Blocked as blocked:
                self._note(blocked)
                continue
            if open_dim is None:
                if atoms:
                    yield _Ray(numbers, atoms)
                continue
            followers = [path for path in self._family.reacting.get(open_dim, ()) if path not in numbers]
            for path in followers:
                change = -rest / self._family.reactions[path].slopes[open_dim]
                if change < 0:
                    waiting.append({**numbers, path: change})
            if not followers:
                self._note_group(atoms, open_dim, numbers)

    def _followed(self, numbers: Mapping[Path, Fraction]) -> tuple[dict[int, Fraction], Dim | None, Fraction]:
        """Atoms that leave with numbers, and the first dimension that the numbers do not explain, with the size that it lacks."""
        reacting: dict[Dim, Fraction] = {}
        for path, change in numbers.items():
            for dim, slope in self._family.reactions[path].slopes.items():
                reacting[dim] = reacting.get(dim, Fraction(0)) + slope * change
        atoms: dict[int, Fraction] = {}
        waiting = dict(reacting)
        progress = True
        while waiting and progress:
            progress = False
            for dim, change in list(waiting.items()):
                coefficients = self._sizes.coefficients(dim)
                unknown = [group for group in coefficients if group not in atoms]
                if len(unknown) > 1:
                    continue
                rest = change - sum((coefficients[group] * atoms[group] for group in coefficients if group in atoms), Fraction(0))
                del waiting[dim]
                progress = True
                if unknown:
                    atoms[unknown[0]] = rest / coefficients[unknown[0]]
                elif rest and not coefficients:
                    raise _Blocked(dim, tuple(numbers))
                if change and dim[0] in self._family.computed:
                    raise _Blocked(dim, tuple(numbers), computed=True)
        atoms = {group: change for group, change in atoms.items() if change}
        for group in atoms:
            for dim in self._dims_of[group]:
                coefficients = self._sizes.coefficients(dim)
                size = sum((coefficients[other] * atoms.get(other, Fraction(0)) for other in coefficients), Fraction(0))
                if size != reacting.get(dim, Fraction(0)):
                    return atoms, dim, reacting.get(dim, Fraction(0)) - size
        for dim, change in reacting.items():
            coefficients = self._sizes.coefficients(dim)
            size = sum((coefficients[other] * atoms.get(other, Fraction(0)) for other in coefficients), Fraction(0))
            if size != change:
                return atoms, dim, change - size
        return atoms, None, Fraction(0)

    def _checked(self, ray: _Ray) -> tuple[tuple[int, int], Knob] | None:
        """Return the knob of a ray, with its evidence (less is better), if the class really builds the narrower network."""
        knob = self._whole_step(ray)
        if knob is None:
            return None
        found = self._after(knob, 1)
        if found is None and self._changes_names(knob):  # at one value alone, as where equal widths need no projection between them
            found = self._after(knob, 2) or self._after(knob, 3)
        return found or self._with_divisor(knob) or self._with_multiple(knob)

    def _after(self, knob: Knob, steps: int) -> tuple[tuple[int, int], Knob] | None:
        """Return the knob with the numbers that have to fall along, and the evidence after some steps."""
        atoms = {group: steps * count for group, count in knob.atoms.items()}
        best: tuple[tuple[int, int], Knob] | None = None
        for followers in self._followers(knob):
            numbers = {**knob.numbers, **followers}
            lower = {path: steps * fall for path, fall in numbers.items()}
            if any(fall >= self._family.reactions[path].value for path, fall in lower.items()):
                continue
            if any(count >= self._atoms[group] for group, count in atoms.items()):
                continue
            evidence = self._evidence(lower, atoms)
            if evidence is not None:
                entry = ((evidence, len(numbers)), Knob(numbers, knob.atoms))
                if best is None or entry[0] < best[0]:
                    best = entry
        return best

    def _changes_names(self, knob: Knob) -> bool:
        """Return True if the class builds the network one step narrower, with tensors that the unpruned one lacks or without some."""
        values = self._family.values
        built = self._family.blueprint.with_values({path: values[path] - fall for path, fall in knob.numbers.items()}).try_build()
        return built is not None and shapes_of(built).keys() != self._family.shapes.keys()

    def _with_divisor(self, knob: Knob) -> tuple[tuple[int, int], Knob] | None:
        """Return the same knob if the class only requires that one of its numbers stays divisible by another number."""
        values = self._family.values
        for path, fall in knob.numbers.items():
            for other, divisor in values.items():
                steps = divisor // math.gcd(divisor, fall)
                if other in knob.numbers or steps < 2 or values[path] % divisor or steps * fall >= values[path]:
                    continue
                numbers = {each: steps * change for each, change in knob.numbers.items()}
                evidence = self._evidence(numbers, {group: steps * count for group, count in knob.atoms.items()})
                if evidence is not None and self._divides(other, {each: values[each] - change for each, change in numbers.items()}, path):
                    return (evidence, len(numbers)), Knob(knob.numbers, knob.atoms, {path: other})
        return None

    def _with_multiple(self, knob: Knob) -> tuple[tuple[int, int], Knob] | None:
        """Return the same knob if the class only requires that another number stays divisible by one of its numbers."""
        values = self._family.values
        for path, fall in knob.numbers.items():
            for steps in range(2, min(_MOST_STEPS, (values[path] - 1) // fall) + 1):
                lower = {each: values[each] - steps * change for each, change in knob.numbers.items()}
                if any(value < 1 for value in lower.values()):
                    break
                divided = [other for other, value in values.items() if value % lower[path] == 0 and value % (values[path] - fall)]
                if not divided:
                    continue
                numbers = {each: steps * change for each, change in knob.numbers.items()}
                evidence = self._evidence(numbers, {group: steps * count for group, count in knob.atoms.items()})
                if evidence is None:
                    continue
                once = {each: values[each] - change for each, change in knob.numbers.items()}
                for other in divided:
                    if other not in knob.numbers and self._builds({**once, other: values[other] * once[path]}):
                        return (evidence, len(numbers)), Knob(knob.numbers, knob.atoms, multiples={path: other})
        return None

    def _builds(self, numbers: Mapping[Path, int]) -> bool:
        return self._family.blueprint.with_values(numbers).try_build() is not None

    def _divides(self, other: Path, numbers: Mapping[Path, int], path: Path) -> bool:
        """Return True if the class rejects a network only because another number, doubled, no longer divides one of these."""
        doubled = 2 * self._family.values[other]
        if numbers[path] % doubled == 0:
            doubled = numbers[path] + 1
        return not self._builds({**numbers, other: doubled})

    def _whole_step(self, ray: _Ray) -> Knob | None:
        """Return the smallest step of a ray in whole numbers and whole steps of the groups; None if that is more than there is."""
        values = [*ray.numbers.values(), *(change / self._steps[group] for group, change in ray.atoms.items())]
        if any(value >= 0 for value in values):
            return None
        scale = Fraction(math.lcm(*(value.denominator for value in values)), math.gcd(*(value.numerator for value in values)))
        numbers = {path: int(-change * scale) for path, change in ray.numbers.items()}
        atoms = {group: int(-change * scale) for group, change in ray.atoms.items()}
        if any(numbers[path] >= self._family.reactions[path].value for path in numbers):
            return None
        return None if any(count >= self._atoms[group] for group, count in atoms.items()) else Knob(numbers, atoms)

    def _followers(self, knob: Knob) -> Iterator[dict[Path, int]]:
        """Hidden numbers that may fall along: those that count the atoms of a group of the knob."""
        counts = {self._atoms[group]: change for group, change in knob.atoms.items() if self._head_channels[group] > 1}
        hidden = [(path, counts[r.value]) for path, r in self._family.hidden.items() if r.value in counts][:_MOST_FOLLOWERS]
        for size in range(len(hidden) + 1):
            for chosen in itertools.combinations(hidden, size):
                yield dict(chosen)

    def _evidence(self, numbers: Mapping[Path, int], atoms: Mapping[int, int]) -> int | None:
        """Build without these atoms, and count the head sizes that change; None if shapes differ, or factors that a cut leaves alone."""
        reactions = self._family.reactions
        built = self._family.blueprint.with_values({path: reactions[path].value - fall for path, fall in numbers.items()}).try_build()
        if built is None or shapes_of(built) != self._sizes.without(atoms):
            return None
        found = attributes_of(built)
        head_sizes = {self._head_channels[group] for group in atoms if self._head_channels[group] > 1}
        before = self._family.attributes
        scales = [key for key, value in before.items() if isinstance(value, float) and found.get(key) != value]
        if scales:
            text = (
                f"{' with '.join(map(written, numbers))} also sets the factor '{'.'.join(scales[0]).lstrip('.')}', which a cut leaves alone"
            )
            for group in atoms:
                self._blocked.setdefault(group, text)
            return None
        return sum(1 for key, value in before.items() if type(value) is int and value in head_sizes and found.get(key) != value)

    def _note(self, blocked: _Blocked) -> None:
        name, dim = blocked.dim
        why = "which the class computes and no file of weights holds" if blocked.computed else "which stays whole"
        fixed = f"{' with '.join(written(path) for path in blocked.numbers)} also sets dimension {dim} of '{name}', {why}"
        for path in blocked.numbers:
            for reacting in self._family.reactions[path].slopes:
                for group in self._sizes.coefficients(reacting):
                    self._blocked.setdefault(group, fixed)

    def _note_group(self, atoms: Iterable[int], dim: Dim, numbers: Iterable[Path]) -> None:
        text = f"dimension {dim[1]} of '{dim[0]}' does not follow {' and '.join(written(path) for path in numbers)}"
        for group in atoms:
            self._blocked.setdefault(group, text)


@lru_cache(maxsize=2)
def knobs_of(family: Family, coupling: Coupling, program: Program) -> Knobs:
    """Find the knobs of a family in a coupled program."""
    prunable = sum(1 for group in coupling.groups if group.pinned is None)
    return KnobFinder(family, coupling, prunable, Sizes.of(family, coupling, program)).find()
