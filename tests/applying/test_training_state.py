"""Training goes on over a cut: the next step of the pruned model is the slice of the next step of the masked one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import proxyprune as pp
from proxyprune.errors import InputError, PlanMismatchError
from proxyprune.surgery.perform import slice_tensor

IMAGE = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Residual(nn.Module):
    """A block that can leave."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + second(relu(norm(first(x))))."""
        return x + self.second(torch.relu(self.norm(self.first(x))))


class Net(nn.Module):
    """Convolutions, batch norm, a depthwise layer and a linear head, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.blocks = nn.Sequential(Residual(12), Residual(12))
        self.depthwise = nn.Conv2d(12, 12, 3, groups=12, bias=False)
        self.head = nn.Linear(12, 5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(torch.relu(self.depthwise(self.blocks(self.stem(x)))).mean((2, 3)))


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw_foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
}


def step(model: nn.Module, optimizer: Optimizer) -> None:
    """One step on a fixed batch."""
    optimizer.zero_grad()
    model(IMAGE).square().mean().backward()
    optimizer.step()


def masked(model: nn.Module, result: pp.PruneResult) -> nn.Module:
    """Return a copy of the model in which every parameter slice that was dropped is zero."""
    full = copy.deepcopy(model)
    named = dict(full.named_parameters())
    with torch.no_grad():
        for cut in result.surgery.cuts:
            if cut.parameter in named:
                gone = torch.ones(cut.size, dtype=torch.bool)
                gone[list(cut.kept)] = False
                named[cut.parameter].movedim(cut.dim, 0)[gone] = 0
    return full


def kept_slice(name: str, value: Tensor, result: pp.PruneResult) -> Tensor:
    """Return what the surgery leaves of a tensor."""
    return slice_tensor(value, [cut for cut in result.surgery.cuts if cut.parameter == name])


def trained(make: Callable[[Any], Optimizer], steps: int = 3) -> tuple[nn.Module, Optimizer]:
    """Return a model with optimizer state behind it, and two parameter groups."""
    model = Net()
    optimizer = make(
        [{"params": list(model.head.parameters()), "lr": 0.002}, {"params": [p for n, p in model.named_parameters() if "head" not in n]}]
    )
    for _ in range(steps):
        step(model, optimizer)
    return model, optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_step_is_the_slice_of_the_masked_step(name: str) -> None:
    """Masked full model and pruned model, each with its optimizer's history, make the same step on the kept channels."""
    model, optimizer = trained(OPTIMIZERS[name])
    result = pp.prune(model, IMAGE, 0.5)
    carried = pp.carry_optimizer(optimizer, model, result.model, result.surgery)

    full = masked(model, result)
    reference = OPTIMIZERS[name]([{"params": list(group["params"])} for group in _groups_of(optimizer, model, full)])
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(full, reference)
    before = {name: parameter.detach().clone() for name, parameter in result.model.named_parameters()}
    step(result.model, carried)
    assert result.plan.kept
    for parameter_name, parameter in result.model.named_parameters():
        expected = kept_slice(parameter_name, dict(full.named_parameters())[parameter_name], result)
        torch.testing.assert_close(parameter, expected, rtol=1e-7, atol=1e-10)
        assert not torch.equal(parameter, before[parameter_name])


def _groups_of(optimizer: Optimizer, model: nn.Module, twin: nn.Module) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups, over a copy of the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    others = dict(twin.named_parameters())
    return [{"params": [others[names[id(parameter)]] for parameter in group["params"]]} for group in optimizer.param_groups]


def test_every_live_parameter_is_in_the_optimizer_once() -> None:
    """After width and depth cuts the optimizer holds exactly the pruned model's parameters, in the same groups, with their settings."""
    model, optimizer = trained(OPTIMIZERS["adamw"])
    result = pp.prune(model, IMAGE, 0.5, mode="both")
    assert result.plan.removed_blocks
    carried = pp.carry_optimizer(optimizer, model, result.model, result.surgery)
    held = [parameter for group in carried.param_groups for parameter in group["params"]]
    assert len(held) == len({id(parameter) for parameter in held})
    assert {id(parameter) for parameter in held} == {id(parameter) for parameter in result.model.parameters()}
    assert [group["lr"] for group in carried.param_groups] == [0.002, 0.01]
    assert type(carried) is type(optimizer)
    assert all(carried.state[parameter]["step"] == 3 for parameter in held)
    step(result.model, carried)


def test_the_old_optimizer_is_not_touched() -> None:
    """State and groups are copies: stepping the new optimizer leaves the old one as it was."""
    model, optimizer = trained(OPTIMIZERS["adam"])
    result = pp.prune(model, IMAGE, 0.6)
    before = copy.deepcopy(optimizer.state_dict())
    carried = pp.carry_optimizer(optimizer, model, result.model, result.surgery)
    step(result.model, carried)
    carried.param_groups[0]["lr"] = 7.0
    torch.testing.assert_close(optimizer.state_dict(), before)


def test_an_optimizer_follows_a_cut_in_place() -> None:
    """With the parameters named before the cut, the model itself may have been pruned."""
    model, optimizer = trained(OPTIMIZERS["momentum"])
    named = dict(model.named_parameters())
    result = pp.prune(model, IMAGE, 0.6, inplace=True)
    carried = pp.carry_optimizer(optimizer, named, result.model, result.surgery)
    assert sum(len(group["params"]) for group in carried.param_groups) == len(list(model.parameters()))
    with pytest.raises(InputError, match="before pruning"):
        pp.carry_optimizer(optimizer, model, result.model, result.surgery)


def test_named_groups_keep_their_names() -> None:
    """An optimizer made from named parameters lists the survivors' names."""
    model = Net()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    result = pp.prune(model, IMAGE, 0.5, mode="both")
    carried = pp.carry_optimizer(optimizer, model, result.model, result.surgery)
    assert set(carried.param_groups[0]["param_names"]) == {name for name, _ in result.model.named_parameters()}


def test_frozen_parameters_stay_out() -> None:
    """What the old optimizer did not update, the new one does not either."""
    model = Net()
    optimizer = torch.optim.SGD(model.blocks.parameters(), lr=0.1)
    result = pp.prune(model, IMAGE, 0.6)
    carried = pp.carry_optimizer(optimizer, model, result.model, result.surgery)
    assert {id(p) for p in carried.param_groups[0]["params"]} == {id(p) for p in result.model.blocks.parameters()}


def test_factored_state_is_cut_along_its_own_dimensions() -> None:
    """Adafactor's row and column averages keep the entries of the kept rows and columns, and training goes on."""
    model = Net().float()
    optimizer = torch.optim.Adafactor(model.parameters(), lr=0.01)
    image = IMAGE.float()
    for _ in range(2):
        model(image).square().mean().backward()
        optimizer.step()
    result = pp.prune(model, image, 0.4)
    carried = pp.carry_optimizer(optimizer, model, result.model, result.surgery)
    old, new = model.head.weight, result.model.head.weight
    kept = next(list(cut.kept) for cut in result.surgery.cuts if cut.parameter == "head.weight")
    assert torch.equal(carried.state[new]["row_var"], optimizer.state[old]["row_var"])
    assert torch.equal(carried.state[new]["col_var"], optimizer.state[old]["col_var"][:, kept])
    result.model(image).square().mean().backward()
    carried.step()


class RowColumn(Optimizer):
    """Keeps averages as Adafactor of Hugging Face does: shapes without the last and without the last but one dimension; and an odd one."""

    def __init__(self, params: Any, odd: bool = False) -> None:
        super().__init__(params, {"lr": 0.1})
        self.odd = odd

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Record squares, change nothing."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim >= 2:
                    square = torch.arange(parameter.numel(), dtype=torch.float64).reshape(parameter.shape)
                    self.state[parameter] = {"exp_avg_sq_row": square.mean(-1), "exp_avg_sq_col": square.mean(-2)}
                    if self.odd:
                        self.state[parameter]["blocks"] = torch.zeros(parameter.numel() // 2)


def test_rows_and_columns_of_square_matrices_are_told_apart() -> None:
    """In a square kernel only the names say which average runs along which dimension."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    optimizer = RowColumn(model.parameters())
    optimizer.step()
    result = pp.prune(model, torch.randn(1, 8), 0.4)
    carried = pp.carry_optimizer(optimizer, model, result.model, result.surgery)
    old, new = optimizer.state[model[2].weight], carried.state[result.model[2].weight]
    kept = {cut.dim: list(cut.kept) for cut in result.surgery.cuts if cut.parameter == "2.weight"}
    assert set(kept) == {0, 1}
    assert torch.equal(new["exp_avg_sq_row"], old["exp_avg_sq_row"][kept[0]])
    assert torch.equal(new["exp_avg_sq_col"], old["exp_avg_sq_col"][kept[1]])
    assert carried.odd is False  # type: ignore[attr-defined]


def test_state_of_unknown_shape_starts_over_with_a_warning() -> None:
    """Blocked or quantised state cannot be sliced: the parameter starts over, and the warning names it."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    optimizer = RowColumn(model.parameters(), odd=True)
    optimizer.step()
    result = pp.prune(model, torch.randn(1, 8), 0.6)
    with pytest.warns(UserWarning, match="'blocks' of"):
        carried = pp.carry_optimizer(optimizer, model, result.model, result.surgery)
    assert carried.state[result.model[0].weight] == {}


def test_state_over_all_parameters_is_refused() -> None:
    """L-BFGS keeps one flat history: InputError says to make a new optimizer."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    x = torch.randn(2, 4)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    result = pp.prune(model, x[:1], 0.6)
    with pytest.raises(InputError, match="new optimizer"):
        pp.carry_optimizer(optimizer, model, result.model, result.surgery)


def test_surgery_of_another_pruning_is_refused() -> None:
    """Shapes that do not come out right raise PlanMismatchError."""
    model, optimizer = trained(OPTIMIZERS["adam"])
    half, most = pp.prune(model, IMAGE, 0.5), pp.prune(model, IMAGE, 0.8)
    with pytest.raises(PlanMismatchError, match="would become"):
        pp.carry_optimizer(optimizer, model, half.model, most.surgery)
    with pytest.raises(PlanMismatchError, match="would become"):
        pp.carry_state(model.state_dict(), most.surgery, half.model)
    with pytest.raises(PlanMismatchError, match="cuts dimension"):
        pp.carry_state(half.model.state_dict(), most.surgery)


def test_shadow_weights_follow_the_cut() -> None:
    """An exponential moving average is sliced like the model, buffers included, without what left; it loads strictly."""
    model = Net()
    shadow = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        step(model, optimizer)
        shadow.update_parameters(model)
    result = pp.prune(model, IMAGE, 0.5, mode="both")
    carried = pp.carry_state(shadow.module.state_dict(), result.surgery, result.model)
    for name, value in carried.items():
        assert torch.equal(value, kept_slice(name, shadow.module.state_dict()[name], result))
    ema = copy.deepcopy(result.model)
    ema.load_state_dict(carried, strict=True)
    assert not torch.equal(ema.stem.weight, result.model.stem.weight)


def test_shared_tensors_are_cut_under_all_their_names() -> None:
    """A tied weight is cut once and stays tied; cloned shadow weights need the model to be recognised."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 20, bias=False))
    model[4].weight = model[0].weight
    result = pp.prune(model, torch.randint(0, 20, (1, 5)), 0.6)
    assert result.model[4].weight is result.model[0].weight
    tied = pp.carry_state(model.state_dict(), result.surgery)
    assert tied["0.weight"].data_ptr() == tied["4.weight"].data_ptr()
    assert tied["4.weight"].shape == result.model[4].weight.shape
    cloned = {name: value.clone() for name, value in model.state_dict().items()}
    apart = pp.carry_state(cloned, result.surgery, result.model)
    assert torch.equal(apart["4.weight"], result.model[4].weight)
    optimizer = torch.optim.Adam(model.parameters())
    carried = pp.carry_optimizer(optimizer, model, result.model, result.surgery)
    assert len(carried.param_groups[0]["params"]) == len(list(result.model.parameters()))


class Regional(nn.Module):
    """A wrapper around a part, as `torch.compile` of one layer puts it into the tree."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner


def counted(model: nn.Module) -> AveragedModel:
    """Return an average whose state has a counter beside the model."""
    shadow = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    shadow.update_parameters(model)
    return shadow


STATES: dict[str, tuple[Callable[[nn.Module], dict[str, Any]], str]] = {
    "DataParallel": (lambda model: nn.DataParallel(model).state_dict(), "module."),
    "compiled": (lambda model: torch.compile(model).state_dict(), "_orig_mod."),  # type: ignore[attr-defined]
    "averaged": (lambda model: counted(model).state_dict(), "module."),
    "averaged and compiled": (lambda model: counted(torch.compile(model)).state_dict(), "module._orig_mod."),  # type: ignore[arg-type]
    "a trainer": (lambda model: {f"net.ema.{name}": value for name, value in model.named_parameters()}, "net.ema."),
}


@pytest.mark.parametrize("mode", ["width", "depth", "both"])
@pytest.mark.parametrize("name", STATES)
def test_states_under_a_wrapper_are_cut(name: str, mode: str) -> None:
    """Every tensor behind the prefix is sliced, and the prefix stays; what lies beside the model is copied."""
    model = Net()
    result = pp.prune(model, IMAGE, 0.7, mode=mode)
    make, prefix = STATES[name]
    state = make(model)
    expected = pp.carry_state(model.state_dict(), result.surgery, result.model)
    for pruned in (None, result.model):
        carried = pp.carry_state(state, result.surgery, pruned)
        inside = {key.removeprefix(prefix): value for key, value in carried.items() if key.startswith(prefix)}
        assert inside
        assert all(torch.equal(value, expected[key]) for key, value in inside.items())
        assert {key for key in state if not key.startswith(prefix)} == {key for key in carried if not key.startswith(prefix)}


def test_a_part_that_is_compiled_alone_is_recognised() -> None:
    """The child that torch.compile inserts in the middle of a name is no part of the model's own name."""
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    result = pp.prune(model, torch.zeros(1, 8), 0.6)
    state = nn.Sequential(Regional(model[0]), model[1], model[2]).state_dict()
    carried = pp.carry_state(state, result.surgery, result.model)
    assert carried["0._orig_mod.weight"].shape == result.model[0].weight.shape  # type: ignore[index]


def test_a_state_with_foreign_names_is_refused() -> None:
    """Names that match nothing were returned uncut."""
    result = pp.prune(Net(), IMAGE, 0.5)
    with pytest.raises(PlanMismatchError, match="does not use the names of the model that was pruned"):
        pp.carry_state({"weights": torch.zeros(3)}, result.surgery)


def test_the_average_of_diffusers_follows_the_cut() -> None:
    """EMAModel keeps a list in parameter order: object and state dict are carried, and go on averaging the pruned model."""
    training_utils = pytest.importorskip("diffusers.training_utils")
    model = Net()
    ema = training_utils.EMAModel(model.parameters(), decay=0.5)
    result = pp.prune(model, IMAGE, 0.5)
    carried = pp.carry_state(ema, result.surgery, result.model)
    assert type(carried) is type(ema)
    for (name, parameter), shadow in zip(result.model.named_parameters(), carried.shadow_params, strict=True):
        assert torch.equal(shadow, kept_slice(name, dict(model.named_parameters())[name].detach(), result)), name
        assert shadow.shape == parameter.shape
    carried.step(result.model.parameters())
    assert len(ema.shadow_params[0]) == len(next(iter(model.parameters())))
    again = training_utils.EMAModel(result.model.parameters())
    again.load_state_dict(pp.carry_state(ema.state_dict(), result.surgery, result.model))


def test_a_list_without_names_needs_the_model_and_all_blocks() -> None:
    """Without names the order decides, which is only known when no block left."""
    training_utils = pytest.importorskip("diffusers.training_utils")
    model = Net()
    ema = training_utils.EMAModel(model.parameters())
    result = pp.prune(model, IMAGE, 0.7, mode="depth")
    with pytest.raises(InputError, match="the pruned model is needed"):
        pp.carry_state(ema, result.surgery)
    with pytest.raises(InputError, match=r"blocks were removed.*dict\(zip\(names"):
        pp.carry_state(ema, result.surgery, result.model)
    names = [name for name, _ in model.named_parameters()]
    carried = pp.carry_state(dict(zip(names, ema.shadow_params, strict=True)), result.surgery, result.model)
    assert set(carried) == {name for name, _ in result.model.named_parameters()}
