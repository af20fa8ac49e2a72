"""Formulas: text form, errors, values, and the scorer that they become."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import MEASURED, NETWORK, succeed
from hypothesis import given, settings, strategies as st
from subject import subject

import proxyprune as pp
from proxyprune.cli.options.compare_options import listed_names
from proxyprune.errors import FormulaError, InputError, MissingNeedError
from proxyprune.scoring import FormulaScorer, find
from proxyprune.scoring.builtin.formula import LARGEST
from proxyprune.scoring.builtin.formula_features import NEEDS_OF
from proxyprune.scoring.formula.expression import (
    DEEPEST,
    FEATURES,
    MOST_NODES,
    Constant,
    Feature,
    Operation,
    features_of,
    levels,
    nodes,
    parts_of,
    values_of,
    written,
)
from proxyprune.scoring.formula.operators import OPERATORS
from proxyprune.scoring.formula.parser import LONGEST, parsed
from proxyprune.testing import attention_network, residual_network

ROOT = Path(__file__).parents[2]


def scored(name, network, **changed):
    graph = pp.trace(network.model, network.example_inputs, probe=False)
    given = {"model": network.model, "batches": network.batches, "loss_fn": network.loss_fn, **changed}
    return pp.score(graph, name, **given)


# Text


LEAVES = st.sampled_from(list(FEATURES)).map(Feature) | st.floats(0.0, 1e300).map(Constant)


def operation(operands):
    infix = [name for name, operator in OPERATORS.items() if operator.arity == 2]
    prefix = [name for name in OPERATORS if name not in infix]
    two = st.builds(lambda name, a, b: Operation(name, (a, b)), st.sampled_from(infix), operands, operands)
    return two | st.builds(lambda name, a: Operation(name, (a,)), st.sampled_from(prefix), operands)


@settings(max_examples=300, deadline=None)
@given(st.recursive(LEAVES, operation, max_leaves=12))
def test_what_is_written_is_read_back(tree):
    """Every tree has a text, and reading it gives the same tree."""
    assert parsed(written(tree)) == tree


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("w - w1 - g", "(w - w1) - g"),
        ("w - (w1 - g)", "w - (w1 - g)"),
        ("w + w1 * g / act", "w + ((w1 * g) / act)"),
        ("-w * 2", "(0 - w) * 2"),
        ("max(w, -.5e1)", "max(w, 0 - 5)"),
        ("((w))", "w"),
    ],
)
def test_operators_bind_as_in_mathematics(text, meaning):
    """Products bind tighter than sums, and operators of one rank are read from the left."""
    assert parsed(text) == parsed(meaning)


HOSTILE = {
    "nothing": ("", "something is missing"),
    "dunder": ("__class__", "unknown name '__class__'"),
    "call": ("__import__(w)", "unknown name '__import__'"),
    "attribute": ("w.real", "Character 2 of the formula: unexpected character '.'"),
    "index": ("w[0]", "unexpected character '\\['"),
    "string": ("open('x')", "unknown name 'open'|unexpected character"),
    "lambda": ("lambda: 1", "unexpected character ':'"),
    "power": ("w ** 999", "Character 4 of the formula"),
    "two": ("w g", "Character 3 of the formula: expected an operator or the end"),
    "misspelt": ("wgg * w", "did you mean 'wg'"),
    "unclosed": ("sqrt(w", "expected '\\)'"),
    "uncalled": ("sqrt * w", "expected '\\('"),
    "too few": ("max(w)", "'max' takes 2 operand"),
    "too many": ("sqrt(w, w)", "'sqrt' takes 1 operand"),
    "infinite": ("1e999", "too large"),
    "nan": ("nan", "unknown name 'nan'"),
    "digits": ("９ * w", "unexpected character"),
    "nul": ("w\x00", "unexpected character"),
    "long": ("w" * (LONGEST + 1), "characters"),
    "wide": ("max(" * 7 + "w" + ", w + w + w + w + w + w + w + w)" * 7, "too large"),
    "deep sum": (" + ".join(["w"] * 100), "too large"),
    "deep": ("(" * (LONGEST // 2 - 1) + "w" + ")" * (LONGEST // 2 - 1), "levels of parentheses"),
    "deep functions": ("abs(" * 300 + "w" + ")" * 300, "levels of parentheses"),
    "signs": ("-" * 1500 + "w", "levels of parentheses"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_formula_is_an_error_with_a_place(name):
    """Names of Python, deep nesting and anything else that is no formula end in one of our errors."""
    text, message = HOSTILE[name]
    with pytest.raises(FormulaError, match=message):
        parsed(text)


@pytest.mark.parametrize("value", [None, 3, b"w", ["w"], {"w": 1}])
def test_only_text_is_read(value):
    """Anything else is named by its type."""
    with pytest.raises(FormulaError, match=f"found {type(value).__name__}"):
        FormulaScorer(value)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60) | st.text("w1g+-*/(), .sqrtmax0e", max_size=60))
def test_any_text_is_a_formula_or_our_error(text):
    """No text raises anything else."""
    try:
        tree = parsed(text)
    except FormulaError:
        return
    assert nodes(tree) <= MOST_NODES
    assert levels(tree) <= DEEPEST
    assert nodes(tree) == len(list(parts_of(tree)))


def test_trees_are_checked_when_they_are_made():
    """Unknown names, wrong numbers of operands, and constants that are no finite numbers from 0 up are rejected."""
    for make in (
        lambda: Feature("x"),
        lambda: Operation("**", (Feature("w"), Feature("w"))),
        lambda: Operation("sqrt", (Feature("w"), Feature("w"))),
        lambda: Constant(float("nan")),
        lambda: Constant(-1.0),
        lambda: Constant(True),
    ):
        with pytest.raises(FormulaError):
            make()


# Values


GROUPS = (slice(0, 3), slice(3, 5))
VALUES = {"w": np.array([1.0, 2.0, 3.0, 4.0, 4.0]), "g": np.array([0.0, 1.0, -2.0, 3.0, 0.5])}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("w / g", [0.0, 2.0, -1.5, 4 / 3, 8.0]),
        ("norm(w)", [0.0, 0.5, 1.0, 0.0, 0.0]),
        ("mean(w)", [2.0, 2.0, 2.0, 4.0, 4.0]),
        ("z(w)", [-(1.5**0.5), 0.0, 1.5**0.5, 0.0, 0.0]),
        ("sqrt(g)", [0.0, 1.0, 2**0.5, 3**0.5, 0.5**0.5]),
        ("log(g)", np.log1p(np.abs(VALUES["g"]))),
        ("abs(g) - 2 * square(g)", np.abs(VALUES["g"]) - 2 * VALUES["g"] ** 2),
        ("max(w, 2) + min(g, 1)", [2.0, 3.0, 1.0, 5.0, 4.5]),
        ("3", [3.0] * 5),
    ],
)
def test_operators_have_their_closed_forms(text, expected):
    """Protected where they need it, and within the group where they say so."""
    assert values_of(parsed(text), VALUES, GROUPS) == pytest.approx(np.asarray(expected))


def test_values_that_are_not_finite_are_reported():
    """The message names the operator that overflowed; sums that would overflow later are reported too."""
    square = "w"
    for _ in range(12):
        square = f"square({square})"
    with pytest.raises(FormulaError, match=r"values of 'square\(.*' are not finite"):
        scored(find("formula", {"expression": square + " * 0"}), subject())
    with pytest.raises(FormulaError, match="exceed 1e\\+100"):
        scored(find("formula", {"expression": f"w * {LARGEST * 10}"}), subject())


def test_a_feature_that_is_not_finite_is_reported():
    """A formula of a single feature is checked too."""
    values = {"act": np.array([1.0, np.nan])}
    with pytest.raises(FormulaError, match="1 of 2 values of 'act' are not finite"):
        values_of(parsed("act"), values, (slice(0, 2),))


# The scorer


@pytest.mark.parametrize("network", [attention_network, residual_network, subject])
def test_formulas_of_other_scorers_give_their_scores(network):
    """`wg` is taylor, `w` is magnitude and `w1` is magnitude_l1, to the last digit; `obs` is obs, to the digits of a formula."""
    for expression, scorer in (("wg", "taylor"), ("abs(wg)", "taylor"), ("w", "magnitude"), ("w1", "magnitude_l1")):
        assert scored(f"formula={expression}", network()).channel_scores == scored(scorer, network()).channel_scores
    expected = scored("obs", network()).channel_scores
    for group, values in scored("formula=obs", network()).channel_scores.items():
        assert values == pytest.approx(expected[group], rel=1e-5)


def test_the_formula_of_taylor_makes_its_plan():
    """The same widths and the same channels, because both compare channels across groups."""
    network = subject()
    graph = pp.trace(network.model, network.example_inputs)
    plans = [pp.make_plan(graph, scored(name, network), 0.6, model=network.model) for name in ("formula=wg", "taylor")]
    assert plans[0].kept == plans[1].kept


def test_activation_features_are_moments_of_what_layers_read():
    """`act` and `var` of the hidden channels equal the moments of the input of the convolution that reads them."""
    network = subject()
    seen = []
    hook = network.model.blocks[0].down.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    with torch.no_grad():
        for batch in network.batches:
            network.loss_fn(network.model, batch)
    hook.remove()
    read = torch.cat(seen).movedim(1, -1).flatten(0, -2).double()
    act, var = (scored(f"formula={name}", network).channel_scores["blocks.0.up.weight:0"] for name in ("act", "var"))
    assert act == pytest.approx(read.square().mean(0).sqrt().tolist(), rel=1e-4)
    assert var == pytest.approx(read.var(0, unbiased=False).tolist(), rel=1e-4)


def test_gradients_are_means_over_batches():
    """`g` is the norm of the gradients of all coupled slices."""
    network = subject()
    block = network.model.blocks[0]
    parameters = (block.up.weight, block.up.bias, block.norm.weight, block.norm.bias, block.down.weight)
    total = torch.zeros(24, dtype=torch.float64)
    for batch in network.batches:
        found = torch.autograd.grad(network.loss_fn(network.model, batch), parameters)
        rows = [gradient.double().movedim(1 if gradient.shape == block.down.weight.shape else 0, 0).reshape(24, -1) for gradient in found]
        total += torch.cat(rows, dim=1).norm(dim=1) / len(network.batches)
    assert scored("formula=g", network).channel_scores["blocks.0.up.weight:0"] == pytest.approx(total.tolist(), rel=1e-4)


def test_macs_are_shares_of_the_network():
    """A hidden channel of a residual block takes a row of one kernel and a column of the other."""
    network = subject()
    graph = pp.trace(network.model, network.example_inputs)
    expected = 2 * 12 * 9 * 64 / graph.macs
    assert scored("formula=macs", network).channel_scores["blocks.0.up.weight:0"] == pytest.approx([expected] * 24, rel=1e-5)


def test_needs_follow_from_the_features():
    """A formula of weights needs no data; one without a feature that is missing asks for what it reads."""
    assert FormulaScorer("w / macs").needs == {"weights"}
    assert FormulaScorer("act * w").needs == {"weights", "batches"}
    assert FormulaScorer().needs == {"gradients"}
    assert {name for name in FEATURES if name not in NEEDS_OF} == {"macs"}
    assert features_of(parsed("act * (w + act)")) == ("w", "act")
    assert scored("formula=w * macs", subject(), batches=None, loss_fn=None).channel_scores
    with pytest.raises(MissingNeedError, match="loss_fn"):
        scored("formula=g", subject(), loss_fn=None)


def test_negative_values_are_shifted():
    """Scores that leave are added up, so the least of the network becomes 0 and the order stays."""
    plain, negative = (scored(f"formula={text}", subject()).channel_scores for text in ("w", "w - 5"))
    assert min(value for values in negative.values() for value in values) == 0.0
    assert all(np.argsort(values).tolist() == np.argsort(negative[group]).tolist() for group, values in plain.items())


def test_the_page_lists_every_feature_and_operator():
    """Names and meanings in the docs are those of the tables."""
    page = (ROOT / "docs" / "scorers" / "formula.md").read_text()
    for name, meaning in FEATURES.items():
        assert f"| `{name}` | {meaning} | {NEEDS_OF.get(name, 'structure')} |" in page
    for operator in OPERATORS.values():
        assert f" | {operator.meaning.replace('|', '&#124;')} |" in page


def test_a_name_may_have_the_formula():
    """`formula=TEXT` is the scorer with that option, for all that takes a scorer's name; other scorers take nothing there."""
    assert find("formula=w * g", {}) == FormulaScorer("w * g")
    with pytest.raises(InputError, match="given twice"):
        find("formula=w", {"expression": "w"})
    with pytest.raises(InputError, match="takes nothing after '='"):
        find("taylor=w", {})
    with pytest.raises(FormulaError, match="unknown name"):
        find("formula=v", {})
    assert listed_names("taylor, formula=max(w, sqrt(g)) ,random,") == ["taylor", "formula=max(w, sqrt(g))", "random"]


def test_a_formula_prunes_and_is_compared(tmp_path):
    """`prune` and `compare` take it by name, from Python and from the command line, and the ranking has it as a note."""
    network = subject()
    result = pp.prune(
        network.model, network.example_inputs, 0.6, "formula=w * act", batches=network.batches, loss_fn=network.loss_fn
    )  # fmt: skip
    assert "Formula: w * act" in result.ranking.notes
    assert result.plan.macs <= result.plan.target_macs
    file = tmp_path / "net.py"
    file.write_text(NETWORK + MEASURED)
    scores = json.loads(succeed("score", "--model", file, "--scorer", "formula=norm(wg)", "--json").stdout)
    assert "Formula: norm(wg)" in scores["notes"]
    arms = "formula=max(w, w1),formula=w"
    cells = json.loads(succeed("compare", "--model", file, "--scorers", arms, "--targets", "0.6", "--seeds", "1", "--json").stdout)["cells"]
    assert {"formula=max(w, w1)", "formula=w"} <= {cell["scorer"] for cell in cells}


def test_a_formula_prunes_the_experts_of_a_run(tmp_path):
    """`pruning.scorer` of a step-adaptive run takes it, with the expression among the options or in the name; a mistake stops the run."""
    from diffusion_runs import small_config

    from proxyprune.diffusion import StepAdaptiveTrainer

    for number, changed in enumerate(({"pruning__options": {"expression": "w * act"}}, {"pruning__scorer": "formula=w * act"})):
        config = small_config(tmp_path, **{"pruning__scorer": "formula", "compute__reference_steps": 400} | changed)
        StepAdaptiveTrainer(config, tmp_path / f"run{number}")
    with pytest.raises(FormulaError):
        StepAdaptiveTrainer(small_config(tmp_path, pruning__scorer="formula=w *"), tmp_path / "wrong")
