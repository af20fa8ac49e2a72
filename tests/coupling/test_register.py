"""Rules of custom ops: what `register_rule` accepts and rejects, and networks with real custom ops pruned through the contract suite."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

import proxyprune as pp
from proxyprune.coupling import Outcome, Term, Walk, registered_rules
from proxyprune.errors import RuleError
from proxyprune.testing import RuleContractError, check_rule


@torch.library.custom_op("proxyprune_tests::swish", mutates_args=())
def swish(x: Tensor, beta: float = 1.0) -> Tensor:
    return x * torch.sigmoid(beta * x)


@swish.register_fake
def _(x, beta=1.0):
    return torch.empty_like(x)


@torch.library.custom_op("proxyprune_tests::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.gelu(F.linear(x, w, b))


@linear_gelu.register_fake
def _(x, w, b):
    return x.new_empty((*x.shape[:-1], w.shape[0]))


@torch.library.custom_op("proxyprune_tests::scaled_norm", mutates_args=())
def scaled_norm(x: Tensor, gain: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], gain)


@scaled_norm.register_fake
def _(x, gain):
    return torch.empty_like(x)


@torch.library.custom_op("proxyprune_tests::halves", mutates_args=())
def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, -1)
    return first.clone(), second.clone()


@halves.register_fake
def _(x):
    half = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    return half, half.clone()


class Net(nn.Module):
    """up -> swish -> linear_gelu -> down."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.middle, self.down = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.ops.proxyprune_tests.swish(self.up(x))
        return self.down(torch.ops.proxyprune_tests.linear_gelu(hidden, self.middle.weight, self.middle.bias))


class Around(nn.Module):
    """up -> any function -> down."""

    def __init__(self, forward, width: int = 32, out: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down = nn.Linear(8, width), nn.Linear(out or width, 4)
        self.middle = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.middle(self, self.up(x)))


X = torch.linspace(-1, 1, 6 * 8).sin().view(1, 6, 8)
LINEAR_GELU = "proxyprune_tests::linear_gelu"


@register_flop_formula(torch.ops.proxyprune_tests.linear_gelu)
def linear_gelu_flops(x_shape, w_shape, b_shape, *, out_shape=None, **kwargs):
    """Torch's own way to say what a custom op costs."""
    return 2 * x_shape[0] * x_shape[1] * w_shape[0] * w_shape[1]


@pytest.fixture(autouse=True)
def _nothing_left():
    """Every test withdraws what it registers."""
    before = registered_rules()
    yield
    assert registered_rules() == before


def test_without_a_rule_the_op_pins_what_it_touches_and_is_reported():
    """The networks of this file are no use as examples if their ops had rules anyway."""
    graph = pp.trace(Net(), X)
    assert set(graph.unsupported_ops) == {"proxyprune_tests.swish", "proxyprune_tests.linear_gelu"}
    assert not graph.prunable


def test_two_real_custom_ops_keep_the_contract():
    """An elementwise op and a fused layer with MACs: cut to 0.6, exact, equal to masking, repeatable."""
    with pp.register_rule(swish, "pointwise", keeps_zero=True), pp.register_rule(LINEAR_GELU, "aten::linear", keeps_zero=True):
        for op in (swish, LINEAR_GELU):
            report = check_rule(op, Net(), X, macs=6 * (8 * 32 + 32 * 24 + 24 * 4))
            assert not report.broken
        graph = pp.trace(Net(), X)
        assert {group.id for group in graph.prunable} == {"up.weight:0", "middle.weight:0"}
        assert not graph.unsupported_ops
        assert not graph.uncosted_ops


def test_names_of_an_op_are_one():
    """A custom op, its packet, its overload and both spellings of its name register the same op."""
    packet = torch.ops.proxyprune_tests.swish
    for op in (swish, packet, packet.default, "proxyprune_tests::swish", "proxyprune_tests.swish", "proxyprune_tests::swish.default"):
        with pp.register_rule(op, "pointwise") as registered:
            assert registered.op == "proxyprune_tests.swish"


@pytest.mark.parametrize("op", ["proxyprune_tests::nothing", "nowhere::swish", "swish", "", print, 3])
def test_what_is_no_op_is_rejected(op):
    """A misspelt name, a plain function and a number raise an error that says what is expected."""
    with pytest.raises(RuleError, match="not a registered op"):
        pp.register_rule(op, "pointwise")


def test_a_rule_is_not_replaced_unless_asked():
    """Neither a rule of the package nor an earlier registration is overwritten in silence; a withdrawn one gives way to its forerunner."""
    with pytest.raises(RuleError, match="part of the package"):
        pp.register_rule("aten::linear", "pointwise")
    with pp.register_rule(swish, "pointwise") as first:
        with pytest.raises(RuleError, match="registered before"):
            pp.register_rule(swish, "pointwise")
        with pp.register_rule(swish, "pointwise", keeps_zero=True, replace=True) as second:
            assert registered_rules()[first.op] is second.rule
        assert registered_rules()[first.op] is first.rule


def test_a_rule_of_the_package_can_be_replaced():
    """With replace=True a caller pins what the package would cut."""
    from proxyprune.coupling import kept_whole

    def whole(walk, node):
        return kept_whole(walk, node, "is left alone in")

    model = Around(lambda self, x: F.relu(x))
    assert len(pp.trace(model, X).prunable) == 1
    with pp.register_rule("aten::relu", whole, replace=True):
        assert not pp.trace(model, X).prunable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "aten::nothing"}, "not a registered op"),
        ({"rule": "proxyprune_tests::swish"}, "has no rule in this package"),
        ({"rule": "aten::linear", "arguments": {"input": "y"}}, "arguments= names y"),
        ({"rule": "aten::linear", "arguments": {"matrix": "w"}}, "arguments= names matrix"),
        ({"rule": "aten::group_norm"}, "'num_groups' of aten::group_norm"),
        ({"rule": "pointwise", "arguments": {"input": "x"}}, "only with the name of a known op"),
        ({"rule": 3}, "A rule is 'pointwise'"),
    ],
)
def test_what_fits_no_op_is_rejected_when_it_is_registered(options, message):
    """An unknown op to imitate, arguments that do not match and a rule of a wrong type raise at once."""
    with pytest.raises(RuleError, match=message):
        pp.register_rule(LINEAR_GELU, **options)


def test_arguments_in_another_order_are_named():
    """A fused layer that takes its weight first is a linear layer all the same."""

    @torch.library.custom_op("proxyprune_tests::weight_first", mutates_args=())
    def weight_first(w: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, w)

    @weight_first.register_fake
    def _(w, x):
        return x.new_empty((*x.shape[:-1], w.shape[0]))

    def forward(self, x):
        return weight_first(self.inner.weight, x)

    model = Around(forward)
    model.inner = nn.Linear(32, 32, bias=False)
    with pp.register_rule(weight_first, "aten::linear", arguments={"input": "x", "weight": "w"}, keeps_zero=True):
        check_rule(weight_first, model, X, flops=lambda w, x, *, out_shape=None, **kwargs: 2 * x[1] * w[0] * w[1])


def test_a_norm_is_one_line_too():
    """An op that normalises the last dimension follows aten::rms_norm; a constant stands for an argument that it lacks."""
    model = Around(lambda self, x: torch.ops.proxyprune_tests.scaled_norm(x, self.gain))
    model.gain = nn.Parameter(torch.rand(32) + 0.5)
    with pp.register_rule(scaled_norm, "aten::rms_norm", arguments={"normalized_shape": (32,), "weight": "gain"}, keeps_zero=True):
        check_rule(scaled_norm, model, X, masking=False)
        (group,) = pp.trace(model, X).prunable
        assert ("gain", 0) in [tuple(member) for member in group.members]


def halves_rule(walk: Walk, node) -> Outcome:
    """Both halves lose the same positions; the op costs one multiplication an element."""
    (x,) = node.args
    *leading, last = walk.axes(x)
    if last is None:
        return Outcome(outputs=((*leading, None),) * 2)
    half = walk.labels.tie_runs(last, 2, walk.where(node))
    return Outcome(outputs=((*leading, half),) * 2, zero=walk.zero(x), macs=(Term.of(*zip(walk.shape(x), walk.axes(x), strict=True)),))


def test_a_rule_can_be_a_function_with_costs():
    """A function relates axes as it likes; its terms are part of every price."""

    def forward(self, x):
        first, second = torch.ops.proxyprune_tests.halves(x)
        return first * second

    with pp.register_rule(halves, halves_rule):
        model = Around(forward, out=16)
        (group,) = pp.trace(model, X).prunable
        assert (group.atoms, group.width) == (16, 32)
        macs = 6 * (8 * 32 + 32 + 16 * 4)
        assert not check_rule(halves, model, X, flops=lambda x, *, out_shape=None, **kwargs: 2 * math.prod(x), macs=macs).broken


def test_a_cost_rule_of_its_own():
    """`cost_rule` takes the place of what a known op costs."""

    def twice(walk, node):
        return (Term.of((2 * walk.shape(node)[1], None), (32, walk.axes(node.args[0])[-1]), (24, walk.axes(node)[-1])),)

    with pp.register_rule(swish, "pointwise"), pp.register_rule(linear_gelu, "aten::linear", cost_rule=twice):
        assert pp.trace(Net(), X).macs == 6 * (8 * 32 + 2 * 32 * 24 + 24 * 4)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (lambda walk, node: 1 / 0, "raised ZeroDivisionError"),
        (lambda walk, node: None, "must return an Outcome"),
        (lambda walk, node: Outcome(outputs=((None,),)), r"shapes \[\[1, 6, 32\]\], the rule returned axes of lengths \[\[None\]\]"),
    ],
)
def test_a_rule_that_fails_is_an_error_and_not_a_pin(rule, message):
    """What is wrong with a registered rule is reported with the op's name, and never taken for an op without a rule."""
    with pp.register_rule(swish, rule), pytest.raises(RuleError, match=message):
        pp.trace(Net(), X)


def test_the_contract_finds_wrong_rules():
    """A wrong claim about zero, a wrong cost, and a rule that pins are each found and named."""

    @torch.library.custom_op("proxyprune_tests::shifted", mutates_args=())
    def shifted(x: Tensor) -> Tensor:
        return torch.cos(x)

    @shifted.register_fake
    def _(x):
        return torch.empty_like(x)

    model = Around(lambda self, x: shifted(x).square().sum(-1, keepdim=True) + x)
    with pp.register_rule(shifted, "pointwise", keeps_zero=True), pytest.raises(RuleContractError, match="Pruning equals masking"):
        check_rule(shifted, model, X)
    with (
        pp.register_rule(swish, "pointwise"),
        pp.register_rule(LINEAR_GELU, "aten::linear", cost_rule=lambda walk, node: ()),
        pytest.raises(RuleContractError, match="MACs planned"),
    ):
        check_rule(LINEAR_GELU, Net(), X)
    with pp.register_rule(swish, "aten::softmax", arguments={"dim": -1}), pytest.raises(RuleContractError, match="can shrink"):
        check_rule(swish, Around(lambda self, x: swish(x)), X)
    with pytest.raises(RuleError, match="No rule is registered"):
        check_rule(swish, Net(), X)
    with pp.register_rule(swish, "pointwise"), pytest.raises(RuleError, match="does not call"):
        check_rule(swish, Around(lambda self, x: F.relu(x)), X)


def test_the_rules_belong_to_the_trace():
    """A graph keeps the rules that it was traced with; a plan names them and is not applied without them."""
    model = Around(lambda self, x: swish(x))
    with pp.register_rule(swish, "pointwise"):
        result = pp.prune(model, X, 0.6)
        graph = pp.trace(model, X, probe=False)
    assert result.plan.options["registered_rules"] == ["proxyprune_tests.swish"]
    assert pp.apply_plan(model, result.plan, X, graph=graph)(X).shape == (1, 6, 4)
    with pytest.raises(RuleError, match=r"registered rules for proxyprune_tests\.swish"):
        pp.apply_plan(model, result.plan, X)
    with pp.register_rule(swish, "pointwise"):
        assert pp.apply_plan(model, result.plan, X)(X).shape == (1, 6, 4)
