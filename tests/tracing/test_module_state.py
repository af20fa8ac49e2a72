"""What a forward stores on its modules is gone after any call, and what cannot be copied or traced is an error in product terms."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as masks
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import InputError, TraceError
from proxyprune.measuring.held_out import Data, Recovery, held_out_loss, recovered
from proxyprune.measuring.wall_time import run_seconds
from proxyprune.tracing.module_state import unchanged


class Holder:
    """A plain object that a module keeps."""

    def __init__(self) -> None:
        self.last: Tensor | None = None


class Stores(nn.Module):
    """A forward that stores tensors in every kind of place, replaces a buffer, writes into another, and deletes an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 32), nn.Linear(32, 4)
        self.kept: dict[str, Tensor] = {}
        self.list: list[Tensor] = []
        self.holder = Holder()
        self.calls = 0
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("counter", torch.zeros(1))
        self.fresh = True

    def forward(self, x: Tensor) -> Tensor:
        """Compute, and store on the way."""
        hidden = self.first(x).relu()
        self.last = hidden
        self.kept["last"] = hidden
        self.list.append(hidden)
        self.holder.last = hidden
        self.calls += 1
        self.scale = torch.ones(1, device=x.device) * 1
        self.counter.add_(1)
        if hasattr(self, "fresh"):
            del self.fresh
        return self.second(hidden) * self.scale


def picture(model: nn.Module) -> dict[str, Any]:
    """Identity of every attribute, container items and values of buffers included."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            found[f"{name}.{key}"] = id(value)
            if isinstance(value, dict):
                found |= {f"{name}.{key}[{item}]": id(inner) for item, inner in value.items()}
            if isinstance(value, list):
                found |= {f"{name}.{key}[{index}]": id(inner) for index, inner in enumerate(value)}
            if isinstance(value, Holder):
                found[f"{name}.{key}.last"] = id(value.last)
        found |= {f"{name}.{key} values": value.tolist() for key, value in module.named_buffers(recurse=False)}
    return found


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    """Return a scalar loss."""
    return model(batch).square().mean()


X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
DATA = Data((X, X), (X,), mean_square)
CALLS: dict[str, Callable[[nn.Module], Any]] = {
    "trace": lambda model: pp.trace(model, X),
    "score": lambda model: pp.score(pp.trace(model, X), "ablation", model=model, batches=[X], loss_fn=mean_square),
    "taylor": lambda model: pp.score(pp.trace(model, X), "taylor", model=model, batches=[X], loss_fn=mean_square),
    "prune": lambda model: pp.prune(model, X, target=0.6),
    "measured loss": lambda model: held_out_loss(model, DATA, 0),
    "recovery": lambda model: recovered(model, DATA, Recovery(1), 0),
    "measured time": lambda model: run_seconds(model, model, X),
}


@pytest.mark.parametrize("used", [False, True], ids=["never run", "after a training step"])
@pytest.mark.parametrize("call", CALLS)
def test_a_model_whose_forward_stores_tensors_is_as_before(call: str, *, used: bool) -> None:
    """Attributes, containers, objects and buffers are the same objects with the same values after any call."""
    model = Stores()
    if used:
        mean_square(model, X).backward()
    before = picture(model)
    CALLS[call](model)
    assert picture(model) == before


def test_the_callers_own_copy_works_after_a_trace() -> None:
    """No fake tensor stays in a model that its forward would have stored it in."""
    model = Stores()
    pp.trace(model, X)
    copy.deepcopy(model)


def test_attributes_are_restored_when_the_forward_raises() -> None:
    """An error on the way changes nothing about that."""
    model = Stores()
    model.second = nn.Linear(9, 4)
    before = picture(model)
    with pytest.raises(RuntimeError), unchanged(model):
        model(X)
    assert picture(model) == before


def test_shared_objects_such_as_loggers_are_left_alone() -> None:
    """An object that deepcopy shares, here with loggers made inside, is not reset."""
    import logging

    model = nn.Linear(2, 2)
    model.logger = logging.getLogger("proxyprune.tests.shared")  # type: ignore[assignment]
    with unchanged(model):
        logging.getLogger("proxyprune.tests.made_inside")
    assert "proxyprune.tests.made_inside" in logging.root.manager.loggerDict


def mlp() -> nn.Sequential:
    """Two linear layers."""
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


def masked() -> nn.Module:
    """With a mask of torch.nn.utils.prune."""
    model = mlp()
    masks.ln_structured(model[0], "weight", 0.5, n=2, dim=0)
    return model


def normed() -> nn.Module:
    """With the weight norm that recomputes the weight in a hook."""
    model = mlp()
    nn.utils.weight_norm(model[0])
    return model


def stored() -> nn.Module:
    """With activations of a real forward, attached to its graph, in an attribute and inside an object."""
    model = Stores()
    model(X)
    return model


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("build", [masked, normed, stored])
def test_computed_tensors_do_not_stop_pruning(build: Callable[[], nn.Module], *, inplace: bool) -> None:
    """A model that holds non-leaf tensors is pruned; the result trains, and holds no tensor of the old width."""
    result = pp.prune(build(), X, target=0.6, inplace=inplace)
    for module in result.model.modules():
        weight = vars(module).get("weight")
        assert weight is None or len(weight) == len(module.bias)  # type: ignore[arg-type]
    mean_square(result.model, X).backward()


def test_a_lock_is_named_and_does_not_matter_in_place() -> None:
    """What cannot be copied is an error that names module and attribute; in place nothing is copied."""
    model = nn.Sequential(mlp())
    model[0].extra = {"lock": threading.Lock()}
    with pytest.raises(InputError, match=r"'extra' of module '0' \(Sequential\) holds a lock.*inplace=True"):
        pp.prune(model, X, target=0.6)
    lock = model[0].extra["lock"]
    assert pp.prune(model, X, target=0.6, inplace=True).model[0].extra["lock"] is lock  # type: ignore[index]


class Around(nn.Module):
    """A network with an inner one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.a, self.inner, self.c = nn.Linear(8, 8), inner, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return self.c(self.inner(self.a(x)))


class Wrapped(Tensor):
    """A tensor subclass with its own dispatch, as quantised and distributed tensors are."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run no op."""
        raise NotImplementedError(func)


def subclassed() -> nn.Module:
    """With a weight that is a tensor subclass."""
    model = mlp()
    model[0]._parameters["weight"] = Tensor._make_subclass(Wrapped, torch.zeros(32, 8))  # type: ignore[assignment]
    return model


REJECTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled": (lambda: torch.compile(mlp()), r"compiled wrapper\. Prune model\._orig_mod"),  # type: ignore[dict-item, return-value]
    "compiled part": (lambda: Around(torch.compile(mlp())), r"'inner'.*compiled wrapper\. Prune model\.inner\._orig_mod"),  # type: ignore[arg-type]
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(32), nn.LazyLinear(4)), r"'0\.weight' has no shape yet.*Call the model once"),
    "scripted part": (lambda: Around(torch.jit.script(mlp())), r"'inner'.*TorchScript"),
    "traced part": (lambda: Around(torch.jit.trace(mlp(), X)), r"'inner'.*TorchScript"),
    "quantised part": (
        lambda: Around(torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear}, dtype=torch.qint8)),
        r"'inner\.0.*quantised layers.*Prune the network before it is quantised",
    ),
    "tensor subclass": (subclassed, r"'0\.weight' is a Wrapped; only plain tensors"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REJECTED)
def test_networks_that_cannot_be_traced_are_named(name: str) -> None:
    """Each is one sentence on what it is and what to prune instead, never a guess at data-dependent branches."""
    build, message = REJECTED[name]
    for call in (pp.trace, pp.prune):
        with pytest.raises(InputError, match=message):
            call(build(), X)


def test_a_distributed_wrapper_is_named(tmp_path: Any) -> None:
    """DistributedDataParallel is unwrapped by the caller."""
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path}/store")
    try:
        with pytest.raises(InputError, match=r"distributed wrapper\. Prune model\.module"):
            pp.prune(nn.parallel.DistributedDataParallel(mlp()), X, target=0.6)
    finally:
        torch.distributed.destroy_process_group()


class Returns(nn.Module):
    """A network that returns what `wrap` makes of its output."""

    def __init__(self, wrap: Callable[[nn.Module, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.net, self.wrap = mlp(), wrap

    def forward(self, x: Tensor) -> Any:
        """Compute, and wrap."""
        return self.wrap(self, x, self.net(x))


def in_holder(model: nn.Module, x: Tensor, y: Tensor) -> Holder:
    """Return an object of no known kind."""
    holder = Holder()
    holder.last = y
    return holder


@pytest.mark.parametrize(
    "wrap",
    [lambda m, x, y: None, lambda m, x, y: {}, lambda m, x, y: {"loss": None}, in_holder, lambda m, x, y: setattr(m, "logits", y)],
)
def test_a_forward_without_tensors_to_return_is_an_error(wrap: Callable[..., Any]) -> None:
    """Without outputs nothing holds the head in place, so there is nothing to verify a cut against."""
    for call in (pp.trace, pp.prune):
        with pytest.raises(InputError, match="returns no tensor"):
            call(Returns(wrap), X)


def test_outputs_that_no_weight_reaches_are_an_error() -> None:
    """An output that the layers do not make holds nothing in place either."""
    with pytest.raises(InputError, match="depend on no parameter"):
        pp.prune(Returns(lambda m, x, y: x * 2), X)


class Inside(nn.Module):
    """A network whose middle is any function of its features."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.middle, self.b = nn.Linear(8, 32), middle, nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Run the middle between two layers."""
        return self.b(self.middle(self.a(x)))


def test_a_data_dependent_branch_is_named_without_a_dump(capfd: pytest.CaptureFixture[str]) -> None:
    """Without values to read, the reason is in the error; with values the branch is taken. Nothing else is printed."""
    model = Inside(lambda h: h * 2 if h.sum() > 0 else h)
    assert pp.trace(model, X).notes
    with pytest.raises(TraceError, match="A branch or a size depends on the data"):
        pp.trace(model.to("meta"), X)
    assert capfd.readouterr() == ("", "")


class Halves(nn.Module):
    """Two parts of constant sizes, and a tensor made on the CPU, so that runs without data use fake tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.left, self.right = nn.Linear(8, 16), nn.Linear(10, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Split, and add both parts up."""
        first, second = torch.split(self.enter(x) + torch.ones(1, device="cpu"), [10, 6], dim=-1)
        return self.left(first) + self.right(second)


def test_probes_that_fail_print_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A forward that does not follow a cut is pinned with the reason; torch's stack traces of the attempts are not logged."""
    graph = pp.trace(Halves(), X)
    assert any("split_with_sizes" in (group.pinned or "") for group in graph.groups)
    assert not caplog.records


def test_other_failures_of_a_trace_are_not_put_down_to_data() -> None:
    """A detour over NumPy has nothing to do with branches, so the message does not mention any."""
    with pytest.raises(TraceError, match="cannot run on tensors without values") as caught:
        pp.trace(Inside(lambda h: torch.from_numpy(h.detach().numpy())).to("meta"), X)
    assert "branch" not in str(caught.value)
