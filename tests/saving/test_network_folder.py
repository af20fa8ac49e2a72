"""What is saved comes back the same; what fails leaves everything as it was; what was changed is noticed."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import proxyprune as pp
from proxyprune.errors import ModelFileError, PlanFormatError, PlanMismatchError, StorageError, WeightsError
from proxyprune.saving.network_folder import FILES

INPUTS = torch.randint(0, 30, (2, 7), generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    """A residual block that can leave."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + down(relu(up(x)))."""
        return x + self.down(torch.relu(self.up(x)))


class Tied(nn.Module):
    """Embedding and output layer share a weight; batch norm brings buffers, one of them an integer."""

    def __init__(self, hidden: int = 40, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(30, 24)
        self.blocks = nn.ModuleList(Mlp(24, hidden) for _ in range(3))
        self.norm = nn.BatchNorm1d(24)
        self.head = nn.Linear(24, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits for every position."""
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.transpose(1, 2)).transpose(1, 2))


@pytest.fixture(scope="module")
def result() -> pp.PruneResult:
    """Return a network with shared weights, blocks removed, and widths cut."""
    return pp.prune(Tied().eval(), INPUTS, 0.6, mode="both")


@pytest.fixture
def saved(result: pp.PruneResult, tmp_path: Path) -> Path:
    return pp.save(result, tmp_path / "net")


def output(model: nn.Module) -> Tensor:
    """Return what the network says, without gradients."""
    with torch.no_grad():
        return model(INPUTS)  # type: ignore[no-any-return]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@contextmanager
def full_disk(after_bytes: int) -> Iterator[None]:
    """Let writing more than this to one file fail, as it does when the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- round trip ---------------------------------------------------------------------------------------------------------------------


def test_the_loaded_network_gives_the_same_output(result: pp.PruneResult, saved: Path) -> None:
    """Same bits out, other initial weights in the factory or not."""
    assert result.plan.kept
    assert result.plan.removed_blocks
    loaded = pp.load(saved, lambda: Tied(seed=1))
    assert torch.equal(output(loaded), output(result.model))
    assert not loaded.training
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {
        name: value.shape for name, value in result.model.state_dict().items()
    }


def test_the_folder_holds_the_documented_files(result: pp.PruneResult, saved: Path) -> None:
    """Plan, surgery, weights, ranking, graph text, report and manifest; nothing else beside or inside."""
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    assert [path.name for path in saved.parent.iterdir()] == ["net"]
    assert pp.PrunePlan.from_json(saved / "plan.json") == result.plan
    assert (saved / "graph.txt").read_text() == result.graph.to_text()
    assert pp.Ranking.from_dict(json.loads((saved / "ranking.json").read_text())) == result.ranking
    assert json.loads((saved / "report.json").read_text()) == json.loads(json.dumps(result.report.to_dict()))


def test_saving_twice_gives_the_same_bytes(result: pp.PruneResult, saved: Path, tmp_path: Path) -> None:
    """Nothing in the folder depends on time or place."""
    assert contents(pp.save(result, tmp_path / "again")) == contents(saved)


def test_shared_weights_are_stored_once_and_stay_shared(saved: Path) -> None:
    """Tied tensors share memory after loading, and take it once in the file."""
    stored = safetensors.torch.load_file(saved / "model.safetensors")
    assert len({"embed.weight", "head.weight"} & set(stored)) == 1
    loaded = pp.load(saved, Tied)
    assert loaded.embed.weight is loaded.head.weight


def test_dtype_and_mode_come_back(result: pp.PruneResult, tmp_path: Path) -> None:
    """A half-precision network in training mode with a frozen norm is that again."""
    model = pp.load(pp.save(result, tmp_path / "first"), Tied).to(torch.bfloat16).train()
    model.norm.eval()
    loaded = pp.load(pp.save(replace(result, model=model), tmp_path / "net"), Tied)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert loaded.norm.num_batches_tracked.dtype == torch.int64
    assert loaded.training
    assert not loaded.norm.training
    assert torch.equal(output(loaded.eval()), output(model.eval()))


def test_views_of_one_tensor_are_saved_apart(result: pp.PruneResult, tmp_path: Path) -> None:
    """Parameters that overlap in memory without being the same are stored with their own values."""
    model = pp.load(pp.save(result, tmp_path / "first"), Tied)
    flat = torch.randn(2 * 24, generator=torch.Generator().manual_seed(1))[: 2 * model.norm.weight.numel()]
    with torch.no_grad():
        model.norm.weight.data, model.norm.bias.data = flat.chunk(2)
    loaded = pp.load(pp.save(replace(result, model=model), tmp_path / "net"), Tied)
    assert torch.equal(loaded.norm.bias, flat.chunk(2)[1])
    assert torch.equal(output(loaded), output(model))


def test_factories_may_return_inputs_or_be_modules(result: pp.PruneResult, saved: Path) -> None:
    """(model, inputs) and an object with build_model work like a plain factory."""
    for factory in (lambda: (Tied(), INPUTS), SimpleNamespace(build_model=Tied)):
        assert torch.equal(output(pp.load(saved, factory)), output(result.model))


def test_a_network_pruned_twice_loads_in_two_steps(result: pp.PruneResult, saved: Path, tmp_path: Path) -> None:
    """The factory of the second save is the load of the first."""
    second = pp.prune(pp.load(saved, Tied), INPUTS, 0.7)
    pp.save(second, tmp_path / "second")
    assert torch.equal(output(pp.load(tmp_path / "second", lambda: pp.load(saved, Tied))), output(second.model))


# --- all or nothing -----------------------------------------------------------------------------------------------------------------


def test_saving_again_replaces_the_files_and_keeps_others(result: pp.PruneResult, saved: Path) -> None:
    """A later save wins; a plot that lies in the folder stays."""
    (saved / "plot.png").write_bytes(b"png")
    model = pp.load(saved, Tied)
    with torch.no_grad():
        model.norm.bias.add_(1)
    pp.save(replace(result, model=model), saved)
    assert torch.equal(output(pp.load(saved, Tied)), output(model))
    assert (saved / "plot.png").read_bytes() == b"png"
    assert [path.name for path in saved.parent.iterdir()] == ["net"]


@pytest.mark.parametrize("after_bytes", [0, 200, 5_000, 15_000])
def test_a_full_disk_leaves_the_old_folder(result: pp.PruneResult, saved: Path, after_bytes: int) -> None:
    """Wherever the space ends, StorageError is raised, the earlier save loads, and no half-written folder is left."""
    before = contents(saved)
    assert max(map(len, before.values())) > 15_000
    with full_disk(after_bytes), pytest.raises(StorageError, match="Cannot save"):
        pp.save(result, saved)
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["net"]


def test_a_failure_while_writing_leaves_the_old_folder(result: pp.PruneResult, saved: Path) -> None:
    """An error that is not about files passes through, and changes nothing either."""

    class Broken:
        def to_dict(self) -> dict[str, Any]:
            raise RuntimeError("no report")

    before = contents(saved)
    with pytest.raises(RuntimeError, match="no report"):
        pp.save(SimpleNamespace(**vars(result) | {"report": Broken()}), saved)
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["net"]


def test_files_and_foreign_folders_are_not_replaced(result: pp.PruneResult, tmp_path: Path) -> None:
    """A file, a place below a file, and a folder with someone's data raise StorageError and stay."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("x")
    for place, says in (("file", "it is a file"), ("file/below", "Cannot save"), ("data", "did not write")):
        with pytest.raises(StorageError, match=says):
            pp.save(result, tmp_path / place)
    assert contents(tmp_path) == {"data/thesis.txt": b"x", "file": b"x"}
    with pytest.raises(OSError, match="Cannot save"):
        pp.save(result, "/proc/nowhere/net")


def test_an_empty_folder_and_missing_parents_are_fine(result: pp.PruneResult, tmp_path: Path) -> None:
    """Parents are created, an empty folder is filled, a link is followed."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for place in ("empty", "a/b/c", "link"):
        pp.load(pp.save(result, tmp_path / place), Tied)
    assert (tmp_path / "link").is_symlink()


def test_networks_that_cannot_be_stored_are_refused(result: pp.PruneResult, tmp_path: Path) -> None:
    """Weights without values and state that needs pickle raise before anything is written."""

    class WithExtraState(nn.Linear):
        def get_extra_state(self) -> object:
            return {"anything": object()}

        def set_extra_state(self, state: object) -> None:
            pass

    with pytest.raises(WeightsError, match="no values"):
        pp.save(replace(result, model=nn.Linear(2, 2, device="meta")), tmp_path / "net")
    with pytest.raises(WeightsError, match="not a tensor"):
        pp.save(replace(result, model=WithExtraState(2, 2)), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


# --- damage -------------------------------------------------------------------------------------------------------------------------


def flip(content: bytes) -> bytes:
    """One bit changed in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flip, lambda content: content[:-7], lambda content: b""], ids=["bit", "truncated", "empty"])
@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("plan.json", PlanFormatError),
        ("surgery.json", PlanFormatError),
        ("model.safetensors", WeightsError),
        ("manifest.json", StorageError),
    ],
)
def test_damaged_files_are_noticed(saved: Path, name: str, error: type[Exception], damage: Callable[[bytes], bytes]) -> None:
    """A flipped bit, a cut end or an emptied file raises the error of its kind and names the file."""
    path = saved / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((error, PlanMismatchError) if name == "manifest.json" else error):
        pp.load(saved, Tied)


@pytest.mark.parametrize("name", ["plan.json", "surgery.json", "model.safetensors", "manifest.json"])
def test_missing_files_are_noticed(saved: Path, name: str) -> None:
    """Each needed file is asked for."""
    (saved / name).unlink()
    with pytest.raises(StorageError, match=name):
        pp.load(saved, Tied)


def test_the_readers_files_are_not_needed(saved: Path) -> None:
    """Ranking, graph and report may be deleted."""
    for name in ("ranking.json", "graph.txt", "report.json"):
        (saved / name).unlink()
    pp.load(saved, Tied)


def test_folders_that_are_no_network_are_refused(tmp_path: Path) -> None:
    """Nothing there, a file, an empty folder, another schema: each says so."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "future").mkdir()
    (tmp_path / "future" / "manifest.json").write_text('{"schema": 99}')
    for place, says in (("none", "does not exist"), ("file", "not a folder"), ("empty", "no manifest"), ("future", "found 99")):
        with pytest.raises(StorageError, match=says):
            pp.load(tmp_path / place, Tied)


def test_an_interrupted_swap_can_be_undone(saved: Path) -> None:
    """When power goes between the two renames, loading says where the earlier network is."""
    saved.rename(saved.with_name(".net.k3x.previous"))
    with pytest.raises(StorageError, match=r"rename '.*\.net\.k3x\.previous'"):
        pp.load(saved, Tied)


def test_weights_of_another_network_are_refused(result: pp.PruneResult, saved: Path, tmp_path: Path) -> None:
    """Weights swapped in with a manifest that was made to fit are still checked by name and shape."""
    other = pp.save(pp.prune(Tied().eval(), INPUTS, 0.8), tmp_path / "other")
    shutil.copy(other / "model.safetensors", saved / "model.safetensors")
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["sha256"]["model.safetensors"] = json.loads((other / "manifest.json").read_text())["sha256"]["model.safetensors"]
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(WeightsError, match=r"shape .* in the file"):
        pp.load(saved, Tied)


def test_another_factory_is_refused(saved: Path) -> None:
    """The message names parameters that are missing, new, or of another shape."""
    with pytest.raises(PlanMismatchError, match=r"'blocks\.0\.down\.weight' has shape \(24, 48\) instead of \(24, 40\)"):
        pp.load(saved, lambda: Tied(hidden=48))
    with pytest.raises(PlanMismatchError, match=r"'weight' is new"):
        pp.load(saved, lambda: nn.Linear(24, 24, bias=False))


def test_factories_that_fail_are_reported(saved: Path) -> None:
    """Raising, returning no module, or being no factory raises ModelFileError."""

    def failing() -> nn.Module:
        raise KeyError("config")

    for factory, says in ((failing, "KeyError"), (lambda: 3, "found int"), ("unet.py", "found str")):
        with pytest.raises(ModelFileError, match=says):
            pp.load(saved, factory)
    with torch.device("meta"), pytest.raises(WeightsError, match="meta device"):
        pp.load(saved, Tied)
