"""Parameters that the example call does not reach stay whole, and so does what they may share; both are reported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import proxyprune as pp

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Auxiliary(nn.Module):
    """An auxiliary head for training, and an optional table of labels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 4, 1)
        self.aux = nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
        self.prior = nn.Embedding(10, 1)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Two outputs in training."""
        hidden = self.stem(x).relu()
        out = self.head(self.body(hidden).relu())
        if label is not None:
            out = out + self.prior(label)[:, :, None, None]
        return (out, self.aux(hidden)) if self.training else out


class Flattened(Auxiliary):
    """An auxiliary head that reads a flattened map, or two maps side by side."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Linear(inputs, 4))

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Two outputs in training."""
        hidden = self.stem(x).relu()
        wide = self.body(hidden).relu()
        flat = hidden[:, :, :4, :4].flatten(1)
        both = torch.cat([hidden.mean((2, 3)), wide.mean((2, 3))], 1)
        out = self.head(wide)
        return (out, self.aux(flat if self.aux[0].in_features == flat.shape[1] else both)) if self.training else out


class MaskToken(nn.Module):
    """A token for masked positions, which only training uses, and a cached lookup."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(24))
        self.first, self.inner, self.outer, self.head = nn.Linear(8, 24), nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Mask the first position in training."""
        hidden = self.first(x)
        if self.training:
            hidden = torch.cat([self.token.expand(len(hidden), 1, -1), hidden[:, 1:]], 1)
        return self.head(hidden + self.outer(self.inner(hidden).relu()))


@pytest.mark.parametrize("metric", ["macs", "params"])
def test_an_auxiliary_head_stays_whole_and_fits_its_input(metric: str) -> None:
    """Nothing of it is cut, what it may read keeps its width, and both modes of the network run."""
    model = Auxiliary().train()
    result = pp.prune(model, X, target=0.6, metric=metric)
    cut = {change.parameter.split(".")[0] for change in result.surgery.cuts}
    assert cut == {"body", "head"}
    result.model.train()(X)
    label = torch.tensor([9, 5])
    result.model.eval()(X, label)
    assert torch.equal(result.model.prior(label), model.prior(label))  # type: ignore[operator]


def test_unreached_parameters_are_reported() -> None:
    """Trace, text, JSON and report list them; a network without such parameters has no line about them."""
    model = Auxiliary().eval()
    graph = pp.trace(model, X)
    names = ("aux.0.weight", "aux.0.bias", "aux.2.weight", "aux.2.bias", "prior.weight")
    assert graph.unreached == names
    assert "does not reach" in graph.to_text()
    assert graph.to_dict()["unreached"] == list(names)
    result = pp.prune(model, X, target=0.6)
    assert result.report.to_dict()["unreached"] == list(names)
    assert result.report.pinned["aux.0.weight:0"] == "belongs to a parameter that the example call does not reach"
    assert result.report.pinned["stem.weight:0"] == "may be shared with aux.0.weight, which the example call does not reach"
    plain = pp.trace(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), torch.zeros(1, 8))
    assert plain.unreached == ()
    assert "unreached" not in plain.to_dict()
    assert "does not reach" not in plain.to_text()


@pytest.mark.parametrize("inputs", [16 * 16, 16 + 32], ids=["flattened", "concatenated"])
def test_inputs_of_an_unexplained_size_may_hold_any_narrower_axis(inputs: int) -> None:
    """A flattened map or a concatenation has the size of no axis; what could be part of it stays."""
    model = Flattened(inputs).train()
    graph = pp.trace(model, X)
    assert not {group.id for group in graph.prunable} & {"stem.weight:0", "body.weight:0"}


def test_a_mask_token_holds_the_width_of_its_stream() -> None:
    """The inner width is still cut; the token fits, and training runs."""
    model = MaskToken()
    x = torch.randn(2, 5, 8)
    result = pp.prune(model.eval(), x, target=0.7)
    assert {change.parameter for change in result.surgery.cuts} == {"inner.weight", "inner.bias", "outer.weight"}
    result.model.train()(x)


class Cached(nn.Module):
    """Attention biases by position, looked up once in evaluation, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qk, self.value, self.out = nn.Linear(16, 64), nn.Linear(16, 32), nn.Linear(32, 4)
        self.biases = nn.Parameter(torch.randn(4, 6))
        self.register_buffer("places", torch.arange(36).reshape(6, 6) % 6)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Attention over 6 positions with 4 heads."""
        if self.training or "here" not in self.cache:
            found = self.biases[:, self.places]  # type: ignore[index]
            if not self.training:
                self.cache["here"] = found
        found = found if self.training else self.cache["here"]
        q, k = self.to_qk(x).unflatten(-1, (2, 4, -1)).permute(2, 0, 3, 1, 4)
        v = self.value(x).unflatten(-1, (4, -1)).transpose(1, 2)
        mixed = (q @ k.transpose(-1, -2) + found).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("used", [False, True])
def test_a_cached_lookup_is_right_whether_the_model_was_run_before_or_not(*, used: bool) -> None:
    """The pruned network gives the same in evaluation, twice in a row, and runs in training, where the lookup is read anew."""
    model, x = Cached().eval(), torch.randn(2, 6, 16)
    if used:
        with torch.no_grad():
            model(x)
    result = pp.prune(model, x, target=0.7)
    assert bool(model.cache) is used
    with torch.no_grad():
        once, again = result.model(x), result.model(x)
        result.model.train()
        fresh = result.model(x)
    assert torch.equal(once, again)
    assert torch.allclose(once, fresh, atol=1e-6)


class Tower(nn.Module):
    """A residual MLP."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what two layers compute."""
        return x + self.down(self.up(x).relu())


class TwoTowers(nn.Module):
    """Two towers of equal sizes, one of which a call may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.text, self.image, self.head = nn.Linear(8, 16), Tower(16, 32), Tower(16, 32), nn.Linear(16, 4)

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        """Join the towers."""
        hidden = self.text(self.read(x))
        return self.head(hidden if image is None else hidden + self.image(image))


def test_a_hidden_width_inside_another_module_is_shared_with_nothing() -> None:
    """The stream may meet the second tower and stays; the hidden width of the first one never leaves it, and is cut."""
    model, x = TwoTowers().eval(), torch.randn(1, 8)
    result = pp.prune(model, x, 0.7)
    assert {change.parameter for change in result.surgery.cuts} == {"text.up.weight", "text.up.bias", "text.down.weight"}
    result.model(x, torch.randn(1, 16))
