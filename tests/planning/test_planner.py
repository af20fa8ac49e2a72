"""Plans never exceed the budget, come close to it, and respect what the caller wants kept."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from handbuilt import Layer, chain, parallel, ranking_of
from hypothesis import assume, given, strategies as st
from subject import subject

from proxyprune import ModelGraph, PrunePlan, make_plan, trace
from proxyprune.errors import InputError, InvalidScoreError, KeepPatternError, TargetError, WeightsError
from proxyprune.planning.budget import parse_budget
from proxyprune.planning.constraints import lattice
from proxyprune.scoring import Ranking

scores = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))
targets = st.floats(0.05, 0.95)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    bins = draw(st.sampled_from([1, 1, 2, 4]))
    step = draw(st.sampled_from([1, 2, 3, 4])) * bins
    return Layer(step * draw(st.integers(1, 24)), channels=draw(st.sampled_from([1, 2, 8])), step=step, bins=bins)


@st.composite
def problems(draw: st.DrawFn) -> tuple[ModelGraph, Ranking]:
    graph = chain(draw(st.lists(layers(), min_size=1, max_size=6)), inputs=draw(st.integers(1, 64)), outputs=draw(st.integers(1, 64)))
    values = draw(st.lists(scores, min_size=len(graph.blocks), max_size=len(graph.blocks)))
    ranking = ranking_of(graph, values)
    return graph, (draw(weighed(graph, ranking)) if draw(st.booleans()) else ranking)


def weighed(graph: ModelGraph, ranking: Ranking) -> st.SearchStrategy[Ranking]:
    """Return the ranking with channel scores in one unit, many of them tied, zero or far apart."""
    values = st.sampled_from([0.0, 1e-6, 1.0, 1.0, 2.0, 1e6])
    each = {group.id: st.lists(values, min_size=group.atoms, max_size=group.atoms).map(tuple) for group in graph.prunable}
    return st.fixed_dictionaries(each).map(lambda found: replace(ranking, channel_scores=found, comparable_channels=True))


def attempt(graph: ModelGraph, ranking: Ranking, target: Any, **options: Any) -> PrunePlan:
    """Return a plan, or no test when none exists."""
    try:
        return make_plan(graph, ranking, target, **options)
    except TargetError:
        assume(False)
        raise


def share(plan: PrunePlan, group: str, graph: ModelGraph) -> float:
    """Fraction of a group's atoms that stays."""
    return len(plan.kept[group]) / graph.by_id[group].atoms if group in plan.kept else 1.0


# --- the budget ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "limit"),
    [
        (0.6, 6_000_000_000),
        ("0.6", 6_000_000_000),
        ("60%", 6_000_000_000),
        ("3.4G", 3_400_000_000),
        (" 3.4 g ", 3_400_000_000),
        ("3400M", 3_400_000_000),
        ("3_400_000K", 3_400_000_000),
        ("0.0034T", 3_400_000_000),
        (3_400_000_000, 3_400_000_000),
        (3.4e9, 3_400_000_000),
        (np.int64(5), 5),
        (np.float64(0.25), 2_500_000_000),
        (1 / 3, 3_333_333_333),
    ],
)
def test_targets_are_read_exactly(target: Any, limit: int) -> None:
    """Fractions, numbers and suffixes give whole units, rounded down."""
    assert parse_budget(target, base=10**10).limit == limit


@pytest.mark.parametrize(
    "target",
    [
        0,
        0.0,
        -0.5,
        1.0,
        1.7,
        2.5,
        60.0,
        10**400,
        "1.7x",
        "1.7",
        " 2.5 ",
        "100%",
        "150%",
        "",
        "G",
        "nan",
        "-3G",
        "20G",
        10**10,
        float("nan"),
        float("inf"),
        True,
        None,
        [0.5],
        "1e999",
    ],
)
def test_targets_out_of_range_are_refused(target: Any) -> None:
    """Nothing, everything, more than everything, and what is no number raise TargetError."""
    with pytest.raises(TargetError):
        parse_budget(target, base=10**10)


def test_unknown_metric_and_mode_are_refused() -> None:
    """The message lists what there is."""
    graph = chain([Layer(8)])
    with pytest.raises(TargetError, match="macs, params"):
        make_plan(graph, ranking_of(graph), 0.5, metric="latency")
    with pytest.raises(InputError, match="width, depth, both"):
        make_plan(graph, ranking_of(graph), 0.5, mode="diagonal")


@given(problems(), targets, st.sampled_from(["macs", "params"]), st.sampled_from([1, 4, 8]))
def test_a_plan_is_exact_and_never_above_its_target(problem: tuple[ModelGraph, Ranking], target: float, metric: str, round_to: int) -> None:
    """Planned cost is the cost model's, at most the target; a gap above 1 % of the base is noted."""
    graph, ranking = problem
    plan = attempt(graph, ranking, target, metric=metric, round_to=round_to)
    plan.check(graph)
    assert plan.macs == graph.cost.macs(plan.atoms(graph)) <= plan.target_macs <= graph.macs
    assert plan.params == graph.cost.params(plan.atoms(graph)) <= plan.target_params <= graph.params
    gap = (plan.target_macs - plan.macs) if metric == "macs" else (plan.target_params - plan.params)
    assert (gap > 0.01 * graph.macs) == any("below the target" in note for note in plan.notes)


@given(st.lists(st.integers(100, 300), min_size=2, max_size=5), targets, st.data())
def test_fine_steps_come_within_one_percent(atoms: list[int], target: float, data: st.DataObject) -> None:
    """Where single channels cost less than 1 % of the base, the plan uses the budget up to 1 %."""
    graph = chain([Layer(count) for count in atoms], inputs=16, outputs=16)
    ranking = ranking_of(graph, data.draw(st.lists(scores, min_size=len(graph.blocks), max_size=len(graph.blocks))))
    plan = attempt(graph, ranking, target)
    assert plan.target_macs - plan.macs <= 0.01 * graph.macs


@given(st.lists(st.builds(Layer, st.integers(2, 9), st.sampled_from([1, 4, 8])), min_size=1, max_size=3), targets, st.data())
def test_coarse_steps_come_as_close_as_any_plan(sizes: list[Layer], target: float, data: st.DataObject) -> None:
    """On networks of a few channels, the plan is within 1 % of the base whenever some assignment of widths is (all of them are tried)."""
    graph = chain(sizes, inputs=data.draw(st.integers(1, 40)), outputs=data.draw(st.integers(1, 40)))
    ranking = ranking_of(graph, data.draw(st.lists(scores, min_size=len(graph.blocks), max_size=len(graph.blocks))))
    plan = attempt(graph, ranking, target)
    costs = graph.cost.macs_batch(np.array(list(itertools.product(*(lattice(group) for group in graph.prunable)))))
    closest = int(costs[costs <= plan.target_macs].max())
    assert plan.target_macs - plan.macs <= max(0.01 * graph.macs, plan.target_macs - closest)


@given(problems(), targets)
def test_plans_repeat(problem: tuple[ModelGraph, Ranking], target: float) -> None:
    """The same question gives the same bytes."""
    graph, ranking = problem
    assert attempt(graph, ranking, target).to_text() == make_plan(graph, ranking, target).to_text()


@given(st.lists(st.integers(100, 200), min_size=2, max_size=4), st.floats(0.1, 0.8), st.floats(0.02, 0.15), st.data())
def test_a_larger_budget_is_used(atoms: list[int], target: float, more: float, data: st.DataObject) -> None:
    """Monotone: with fine steps, 2 % more budget never gives a cheaper plan."""
    graph = chain([Layer(count) for count in atoms], inputs=64, outputs=64)
    ranking = ranking_of(graph, data.draw(st.lists(scores, min_size=len(graph.blocks), max_size=len(graph.blocks))))
    assert attempt(graph, ranking, target).macs < make_plan(graph, ranking, target + more).macs


# --- the family ---------------------------------------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(20, 200), st.floats(0.2, 0.95), scores)
def test_equal_scores_give_a_uniform_ratio(count: int, atoms: int, target: float, score: float) -> None:
    """With nothing to tell groups apart, they differ by one step at most."""
    graph = parallel(count, atoms=atoms)
    counts = attempt(graph, ranking_of(graph, [score] * len(graph.blocks)), target).atoms(graph)
    assert counts.max() - counts.min() <= 1


def test_tied_scores_are_cut_by_count() -> None:
    """Three score levels, asked for 10 %: a tenth goes, not a third."""
    graph = parallel(30, atoms=32)
    plan = make_plan(graph, ranking_of(graph, [1.0, *([0.1] * 10 + [0.5] * 10 + [0.9] * 10), 1.0]), 0.9)
    assert plan.target_macs - plan.macs <= 0.01 * graph.macs


@given(st.lists(scores, min_size=3, max_size=6), st.floats(0.2, 0.9))
def test_more_important_blocks_shrink_less(values: list[float], target: float) -> None:
    """Among equal blocks, a higher score never keeps fewer channels, up to the single steps that fill the budget."""
    graph = parallel(len(values), atoms=64)
    counts = attempt(graph, ranking_of(graph, [0.5, *values, 0.5]), target).atoms(graph)
    for (a, score_a), (b, score_b) in itertools.permutations(zip(counts, values, strict=True), 2):
        if score_a > score_b:
            assert a >= b


def test_the_most_important_block_shrinks_a_third_as_much() -> None:
    """Log kept fraction of the best block is a third of the worst block's, as documented."""
    graph = parallel(2, atoms=2000)
    plan = make_plan(graph, ranking_of(graph, [0.5, 0.0, 1.0, 0.5]), 0.5)
    worst, best = (np.log(share(plan, f"block{i}.up.weight:0", graph)) for i in (0, 1))
    # Ranks run over all four blocks, so both ends are reached.
    assert best / worst == pytest.approx(1 / 3, abs=0.01)


# --- channels weighed across groups ---------------------------------------------------------------------------------------------------


def channels_of(graph: ModelGraph, *scores: list[float]) -> Ranking:
    """Return a ranking with these channel scores, group by group, in one unit."""
    found = {group.id: tuple(values) for group, values in zip(graph.prunable, scores, strict=True)}
    return ranking_of(graph, channel_scores=found, comparable_channels=True)


def test_the_channels_that_lose_least_leave_first() -> None:
    """Of two equal blocks, one with channels worth a hundredth: it alone is cut, down to the default floor, then the other."""
    graph = parallel(2, atoms=100)
    ranking = channels_of(graph, [0.01] * 100, [1.0] * 100)
    removable = 2 * 2 * 100 * 16
    mild = make_plan(graph, ranking, graph.macs - removable // 4)
    assert mild.atoms(graph).tolist() == [50, 100]
    assert mild.options["allocation"] == "channels"
    hard = make_plan(graph, ranking, graph.macs - removable * 6 // 10)
    assert hard.atoms(graph).tolist() == [10, 70]


def test_a_channel_is_weighed_against_what_it_saves() -> None:
    """A channel that is worth twice as much, and saves eight times as much, goes first."""
    graph = chain([Layer(64), Layer(64)], inputs=8, outputs=512)
    ranking = channels_of(graph, [1.0] * 64, [2.0] * 64)
    first, second = make_plan(graph, ranking, 0.8).atoms(graph)
    assert first == 64
    assert second < 64


def test_equal_channels_leave_alike() -> None:
    """With nothing to tell channels apart, groups differ by one step at most."""
    graph = parallel(4, atoms=50)
    counts = make_plan(graph, channels_of(graph, *[[0.3] * 50] * 4), 0.6).atoms(graph)
    assert counts.max() - counts.min() <= 1


def test_blocks_decide_where_channels_cannot_be_compared() -> None:
    """Without one unit, or with a group left out, "auto" follows the blocks, and "channels" is refused with the reason."""
    graph = parallel(2, atoms=100)
    whole = channels_of(graph, [0.01] * 100, [1.0] * 100)
    partly = replace(whole, channel_scores=dict(list(whole.channel_scores.items())[:1]))
    for ranking, reason in ((replace(whole, comparable_channels=False), "does not call comparable"), (partly, "1 of 2 groups without")):
        assert make_plan(graph, ranking, 0.8).options["allocation"] == "blocks"
        with pytest.raises(InputError, match=reason):
            make_plan(graph, ranking, 0.8, allocation="channels")
    assert (
        make_plan(graph, whole, 0.8, allocation="blocks").atoms(graph).tolist()
        == make_plan(graph, replace(whole, comparable_channels=False), 0.8).atoms(graph).tolist()
    )
    with pytest.raises(InputError, match="Unknown allocation"):
        make_plan(graph, whole, 0.8, allocation="fair")


def test_a_plan_says_when_scores_are_missing_to_weigh_channels() -> None:
    """A ranking that calls its channels comparable, and leaves one group out, is not followed by blocks in silence."""
    graph = parallel(2, atoms=100)
    whole = channels_of(graph, [0.01] * 100, [1.0] * 100)
    partly = replace(whole, channel_scores=dict(list(whole.channel_scores.items())[:1]))
    assert make_plan(graph, whole, 0.8).notes == ()
    assert "1 group ('block1.up.weight:0') without channel scores" in make_plan(graph, partly, 0.8).notes[0]


def test_nothing_collapses_by_default() -> None:
    """Groups keep a tenth of their atoms, whatever their score, while the target allows it; below, the plan says so."""
    graph = parallel(4, atoms=100)
    ranking = ranking_of(graph, [1, 0, 0, 1, 1, 1])
    gentle = make_plan(graph, ranking, 0.25)
    assert min(gentle.atoms(graph)) >= 10
    assert gentle.notes == ()
    harsh = make_plan(graph, ranking, 0.1)
    assert min(harsh.atoms(graph)) < 10
    assert "below the default floor" in harsh.notes[0]


def test_a_gap_is_not_closed_off_the_rounded_widths() -> None:
    """With coarse rounded widths the plan stays below the target and says so, rather than leave the multiples of round_to."""
    graph = chain([Layer(64), Layer(64)])
    plan = make_plan(graph, ranking_of(graph), 0.8, round_to=32)
    assert all(after % 32 == 0 for _, after in plan.widths.values())
    assert "below the target" in plan.notes[0]


@given(problems())
def test_the_best_reachable_target_is_reachable(problem: tuple[ModelGraph, Ranking]) -> None:
    """A target below everything raises, and the number and the fraction in the message both work as targets."""
    graph, ranking = problem
    with pytest.raises(TargetError, match="best reachable") as caught:
        make_plan(graph, ranking, 1)
    words = str(caught.value).split("The best reachable is ")[1]
    number, fraction = words.split(" MACs, ")[0].replace(",", ""), words.split(" MACs, ")[1].split(" of")[0]
    if int(number) < graph.macs:
        assert make_plan(graph, ranking, int(number)).macs == int(number)
    if float(fraction) < 1:
        assert make_plan(graph, ranking, float(fraction)).macs >= int(number)


def test_an_unreachable_target_says_what_limits_it() -> None:
    """Keep patterns and floors are named with their share."""
    graph = parallel(4)
    with pytest.raises(TargetError, match=r"keep patterns hold .*floors hold .*pinned axes"):
        make_plan(graph, ranking_of(graph), 0.2, keep=("block0",), floors={"block1": 0.9})


# --- limits -------------------------------------------------------------------------------------------------------------------------


@given(problems(), targets, st.floats(0, 1), st.data())
def test_steps_bins_keep_and_floors_hold(problem: tuple[ModelGraph, Ranking], target: float, floor: float, data: st.DataObject) -> None:
    """Counts lie on the group's lattice, bins stay equal, kept groups stay whole, floors are respected."""
    graph, ranking = problem
    kept = data.draw(st.sampled_from(graph.prunable)).id
    floored = data.draw(st.sampled_from(graph.prunable)).id
    plan = attempt(graph, ranking, target, keep=(kept,), floors={floored: floor})
    plan.check(graph)
    assert kept not in plan.kept
    assert share(plan, floored, graph) >= floor - 1e-9
    for group, count in zip(graph.prunable, plan.atoms(graph), strict=True):
        assert count in lattice(group)


@given(problems(), targets, st.sampled_from([2, 4, 8, 16]))
def test_widths_are_rounded_where_possible(problem: tuple[ModelGraph, Ranking], target: float, round_to: int) -> None:
    """A cut width is a multiple of round_to, or the plan names the group."""
    graph, ranking = problem
    plan = attempt(graph, ranking, target, round_to=round_to)
    odd = [group for group, (_, after) in plan.widths.items() if after % round_to]
    assert bool(odd) == any("No multiple" in note for note in plan.notes)
    if odd:
        assert any(f"{len(odd)} group" in note for note in plan.notes)


def test_groups_that_cannot_be_rounded_stay_whole_unless_needed() -> None:
    """A width below round_to is cut only when the target cannot be met without it."""
    graph = chain([Layer(64), Layer(6), Layer(64)])
    assert "fc1.weight:0" not in make_plan(graph, ranking_of(graph), 0.6, round_to=8).kept
    harsh = make_plan(graph, ranking_of(graph), 0.05, round_to=8)
    assert any("No multiple of 8 channels was possible for" in note and "'fc1.weight:0'" in note for note in harsh.notes)


@pytest.mark.parametrize("pattern", ["fc1.weight:0", "fc1", "fc1.weight", "fc[1]", "fc1.*", "*1.weight"])
def test_keep_patterns_match_groups_blocks_modules_and_parameters(pattern: str) -> None:
    """A name, a dotted prefix or an fnmatch pattern keeps every group that touches it: rows and columns of fc1."""
    graph = chain([Layer(32), Layer(32), Layer(32)])
    plan = make_plan(graph, ranking_of(graph), 0.8, keep=(pattern,))
    assert "fc1.weight:0" not in plan.kept
    assert "fc2.weight:0" in plan.kept
    assert ("fc0.weight:0" in plan.kept) == (pattern == "fc1.weight:0")  # the group alone, or the layer with its inputs


def test_an_alias_of_a_shared_parameter_can_be_kept() -> None:
    """The second name of a tied weight works in patterns."""
    graph = chain([Layer(32), Layer(32), Layer(32)])
    tied = replace(graph, program=replace(graph.program, aliases={"head.weight": "fc2.weight"}))
    assert list(make_plan(tied, ranking_of(tied), 0.8, keep=("head",)).kept) == ["fc0.weight:0"]


@pytest.mark.parametrize("option", [{"keep": ("fc9",)}, {"floors": {"fc9": 0.5}}, {"ceilings": {"fc9": 0.5}}])
def test_a_pattern_that_matches_nothing_is_refused(option: dict[str, Any]) -> None:
    """The message lists the closest names."""
    graph = chain([Layer(32), Layer(32)])
    with pytest.raises(KeepPatternError, match="'fc0'"):
        make_plan(graph, ranking_of(graph), 0.5, **option)


@pytest.mark.parametrize(
    "option",
    [
        {"floors": {"fc0": 1.5}},
        {"floors": {"fc0": -1}},
        {"floors": {"fc0": True}},
        {"ceilings": {"fc0": float("nan")}},
        {"ceilings": {"fc0": "half"}},
        {"floors": {"fc0": 0.8}, "ceilings": {"fc0": 0.5}},
        {"round_to": 0},
        {"round_to": 2.0},
        {"keep": (3,)},
    ],
)
def test_senseless_limits_are_refused(option: dict[str, Any]) -> None:
    """Fractions outside [0, 1], wrong types and contradictions raise InputError."""
    graph = chain([Layer(32), Layer(32)])
    with pytest.raises(InputError):
        make_plan(graph, ranking_of(graph), 0.5, **option)


def test_floors_and_ceilings_count_in_channels_or_fractions() -> None:
    """An int is channels, a float a fraction; the ceiling is met although the budget would allow more."""
    graph = chain([Layer(16, channels=4), Layer(64), Layer(64)])
    plan = make_plan(graph, ranking_of(graph), 0.7, floors={"fc1.weight:0": 60}, ceilings={"fc0": 40})
    assert plan.widths["fc0.weight:0"] == (64, 40)
    assert plan.widths.get("fc1.weight:0", (64, 64))[1] >= 60


def test_ceilings_can_undercut_the_budget() -> None:
    """When ceilings alone cost less than the target, nothing more is cut and the plan says how far below it is."""
    graph = chain([Layer(64), Layer(64)])
    plan = make_plan(graph, ranking_of(graph), 0.9, ceilings={"*": 0.5})
    assert plan.atoms(graph).tolist() == [32, 32]
    assert "below the target" in plan.notes[0]


# --- which atoms --------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=16, max_size=16), st.integers(1, 4))
def test_the_best_atoms_stay(values: list[float], bins: int) -> None:
    """In every bin no dropped atom scores higher than a kept one, and of equals the lower index stays."""
    bins = {3: 2}.get(bins, bins)
    graph = chain([Layer(16, step=bins, bins=bins)])
    group = graph.prunable[0]
    plan = make_plan(graph, ranking_of(graph, channel_scores={group.id: tuple(values)}), 0.5)
    kept = plan.kept[group.id]
    for first in range(0, 16, 16 // bins):
        members = range(first, first + 16 // bins)
        ranked = sorted(members, key=lambda atom: (-values[atom], atom))
        assert sorted(set(kept) & set(members)) == sorted(ranked[: len(kept) // bins])


def test_magnitude_over_all_members_orders_atoms_without_channel_scores() -> None:
    """Rows of the layer and columns of its reader count together; without a model the first atoms stay."""
    graph = chain([Layer(8)], inputs=4, outputs=4)
    model = torch.nn.ModuleDict({"fc0": torch.nn.Linear(4, 8, bias=False), "fc1": torch.nn.Linear(8, 4, bias=False)})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
        model["fc0"].weight[6] = 1.0
        model["fc1"].weight[:, 7] = 2.0
    assert make_plan(graph, ranking_of(graph), 0.26, model=model).kept["fc0.weight:0"] == (6, 7)
    assert make_plan(graph, ranking_of(graph), 0.26).kept["fc0.weight:0"] == (0, 1)


def test_weights_that_are_not_finite_are_refused() -> None:
    """NaN in a cut group raises WeightsError."""
    graph = chain([Layer(8)], inputs=4, outputs=4)
    model = torch.nn.ModuleDict({"fc0": torch.nn.Linear(4, 8, bias=False), "fc1": torch.nn.Linear(8, 4, bias=False)})
    with torch.no_grad():
        model["fc0"].weight[3, 2] = float("nan")
    with pytest.raises(WeightsError, match=r"fc0\.weight:0"):
        make_plan(graph, ranking_of(graph), 0.5, model=model)


@pytest.mark.parametrize("values", [(1.0,) * 7, (1.0,) * 7 + (float("nan"),)])
def test_channel_scores_must_fit(values: tuple[float, ...]) -> None:
    """Too few scores, or one that is not finite, raise InvalidScoreError."""
    graph = chain([Layer(8)])
    with pytest.raises(InvalidScoreError, match="8 atoms"):
        make_plan(graph, ranking_of(graph, channel_scores={"fc0.weight:0": values}), 0.5)


def test_a_ranking_for_another_graph_is_refused() -> None:
    """Blocks without a score and scores without a block are both counted."""
    graph = chain([Layer(8), Layer(8)])
    with pytest.raises(InvalidScoreError, match="3 without a score"):
        make_plan(graph, Ranking({"other": 0.5}, "stray"), 0.5)


# --- depth --------------------------------------------------------------------------------------------------------------------------


@given(st.lists(scores, min_size=2, max_size=8), st.floats(0.1, 0.95))
def test_depth_removes_the_least_important_blocks(values: list[float], target: float) -> None:
    """Equal blocks leave lowest score first, later ones first among equals, and no more of them than needed."""
    graph = parallel(len(values))
    plan = attempt(graph, ranking_of(graph, [0.5, *values, 0.5]), target, mode="depth")
    assert plan.kept == {}
    assert plan.macs == graph.cost.macs(plan.atoms(graph), plan.removed_blocks) <= plan.target_macs
    order = sorted(range(len(values)), key=lambda i: (values[i], -i))
    assert set(plan.removed_blocks) == {f"block{i}" for i in order[: len(plan.removed_blocks)]}
    each = graph.blocks[1].macs
    assert plan.target_macs - plan.macs < each


def test_depth_takes_back_what_still_fits() -> None:
    """A large block that had to go makes room for small, better ones that went before it."""
    graph = parallel(4)
    uneven = _scaled(graph, {"block3": 8})
    plan = make_plan(uneven, ranking_of(uneven, [1, 0.1, 0.2, 0.3, 0.4, 1]), 0.5, mode="depth")
    assert plan.removed_blocks == ("block3",)
    assert "whole blocks" in plan.notes[0]


def test_depth_keeps_blocks_that_are_kept_or_floored() -> None:
    """A keep pattern on a block, on a parameter inside it, or a floor protects it; the rest leaves."""
    graph = parallel(4)
    plan = make_plan(graph, ranking_of(graph), 0.55, mode="depth", keep=("block3", "block2.up.weight"), metric="params")
    assert plan.removed_blocks == ("block0", "block1")[: len(plan.removed_blocks)]
    with pytest.raises(TargetError, match=r"keep patterns hold .* floors hold .*outside the removable blocks"):
        make_plan(graph, ranking_of(graph), 0.2, mode="depth", keep=("block3",), floors={"block2": 0.1})


def test_depth_does_not_list_blocks_inside_removed_ones() -> None:
    """Of a block and its parent, both removed, only the parent is named."""
    graph = parallel(3)
    nested = replace(graph.blocks[1], id="block0.attn", macs=1)
    inside = replace(graph, blocks=(*graph.blocks[:2], nested, *graph.blocks[2:]))
    plan = make_plan(inside, ranking_of(inside, [1, 0.1, 0.0, 0.9, 0.9, 1]), 0.8, mode="depth")
    assert plan.removed_blocks == ("block0",)


@given(st.lists(scores, min_size=3, max_size=6), st.floats(0.15, 0.9))
def test_both_shares_the_reduction(values: list[float], target: float) -> None:
    """Blocks make up at most half of the reduction (or one block), widths meet the target exactly, groups of removed blocks stay."""
    graph = parallel(len(values), atoms=128)
    plan = attempt(graph, ranking_of(graph, [0.5, *values, 0.5]), target, mode="both")
    atoms = plan.atoms(graph)
    assert plan.macs == graph.cost.macs(atoms, plan.removed_blocks) <= plan.target_macs
    assert plan.target_macs - plan.macs <= 0.01 * graph.macs
    through_depth = graph.macs - graph.cost.macs(graph.cost.full, plan.removed_blocks)
    assert through_depth <= (graph.macs - plan.target_macs) / 2 or len(plan.removed_blocks) == 1
    assert not any(group.startswith(f"{block}.") for group in plan.kept for block in plan.removed_blocks)


def test_both_removes_more_blocks_when_widths_are_held() -> None:
    """With floors in the way, further blocks leave until the target is within reach of the widths."""
    graph = parallel(6)
    plan = make_plan(graph, ranking_of(graph), 0.35, mode="both", floors={"block0": 1.0, "block1": 0.9})
    assert len(plan.removed_blocks) >= 2
    assert plan.macs <= plan.target_macs


def test_the_residual_width_can_be_held_without_holding_every_block() -> None:
    """Keeping or flooring the width of the stream by its group leaves every residual block removable; a block's own width holds it."""
    graph = trace(subject().model, torch.zeros(1, 3, 8, 8))
    stream = next(group.id for group in graph.prunable if len(group.blocks) > 4)
    inner = next(group.id for group in graph.prunable if group.blocks == ("blocks.1",))
    for limit in ({"keep": (stream,)}, {"floors": {stream: 0.9}}):
        plan = make_plan(graph, ranking_of(graph), 0.8, mode="depth", **limit)
        assert plan.removed_blocks
        both = make_plan(graph, ranking_of(graph), 0.5, mode="both", **limit)
        assert both.removed_blocks
        assert len(both.kept.get(stream, range(12))) >= 11
    low = [0.0 if block.id == "blocks.1" else 1.0 for block in graph.blocks]
    assert make_plan(graph, ranking_of(graph, low), 0.9, mode="depth").removed_blocks == ("blocks.1",)
    assert "blocks.1" not in make_plan(graph, ranking_of(graph, low), 0.9, mode="depth", keep=(inner,)).removed_blocks


@pytest.mark.parametrize(
    ("graph", "limits", "reason"),
    [
        (chain([Layer(32), Layer(32)]), {}, "no block that can be removed"),
        (parallel(3), {"floors": {"block*": 0.1}}, "hold all 3 removable blocks"),
        (parallel(2), {}, "saves"),
    ],
)
def test_both_says_when_it_did_nothing_but_width(graph: ModelGraph, limits: dict[str, Any], reason: str) -> None:
    """A plan of mode "both" without a removed block gives the reason in its notes; one with blocks has no such note."""
    plan = make_plan(graph, ranking_of(graph), 0.9, mode="both", **limits)
    assert not plan.removed_blocks
    assert any("Mode 'both' removed no block" in note and reason in note for note in plan.notes)
    deeper = make_plan(parallel(6), ranking_of(parallel(6)), 0.5, mode="both")
    assert deeper.removed_blocks
    assert not any("Mode 'both'" in note for note in deeper.notes)


def test_blocks_leave_by_their_removal_scores() -> None:
    """Where a ranking has removal scores, they decide which blocks leave; widths still follow the other scores."""
    graph = parallel(4)
    opposite = {block.id: 1.0 - index / 10 for index, block in enumerate(graph.blocks)}
    rising = [index / 10 for index in range(len(graph.blocks))]
    ranking = ranking_of(graph, rising)
    assert make_plan(graph, ranking, 0.7, mode="depth").removed_blocks[0] == "block0"
    swapped = replace(ranking, removal_scores=opposite)
    assert make_plan(graph, swapped, 0.7, mode="depth").removed_blocks[-1] == "block3"
    assert make_plan(graph, swapped, 0.7).kept == make_plan(graph, ranking, 0.7).kept


def test_a_group_of_large_atoms_never_keeps_less_than_its_share() -> None:
    """With equal scores, three heads of 32 channels keep at least the share that 96 single channels keep."""
    for target in (0.95, 0.9, 0.8, 0.7, 0.6, 0.5):
        graph = chain([Layer(3, channels=32), Layer(96), Layer(3, channels=32), Layer(96)])
        plan = make_plan(graph, ranking_of(graph, [0.5] * 5), target)
        heads, singles = (min(share(plan, graph.groups[index].id, graph) for index in pair) for pair in ((0, 2), (1, 3)))
        assert heads >= singles - 0.06


def _scaled(graph: ModelGraph, factors: dict[str, int]) -> ModelGraph:
    """Return the same graph with some blocks made more expensive."""
    polynomial = graph.cost.mac_terms
    constants = polynomial.constants * np.array([factors.get(block, 1) for block in polynomial.blocks])
    scaled = replace(polynomial, constants=constants)
    total = int(scaled.terms(graph.cost.full).sum())
    cost = replace(graph.cost, mac_terms=scaled, param_terms=scaled, base_macs=total, base_params=total)
    return replace(graph, cost=cost, macs=total, params=total)
