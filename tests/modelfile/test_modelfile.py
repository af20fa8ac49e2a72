"""Model files: what a good one gives, and what each kind of bad one is told."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from proxyprune import ProxyPruneError
from proxyprune.errors import ModelFileError, WeightsError
from proxyprune.modelfile import load_model_file, load_weights

EXAMPLES = Path(__file__).parents[2] / "examples"

GOOD = """
import torch
from torch import nn

def build_model():
    return nn.Linear(3, 2)

def build_wide(width=8):
    return nn.Linear(3, width)

def example_inputs():
    return torch.zeros(1, 3)
"""


@pytest.fixture
def write(tmp_path):
    """Write a model file and return its path."""

    def _write(source: str, name: str = "net.py") -> Path:
        path = tmp_path / name
        path.write_text(source, encoding="utf-8")
        return path

    return _write


def line_of(path: Path, text: str) -> int:
    return next(number for number, line in enumerate(path.read_text().splitlines(), start=1) if text in line)


def test_default_factory(write):
    """Without a name after the colon, build_model is called, and the model is in evaluation mode."""
    file = load_model_file(write(GOOD))
    model = file.build_model()
    assert isinstance(model, nn.Linear)
    assert model.out_features == 2
    assert not model.training
    assert file.example_inputs().shape == (1, 3)
    assert file.calibration_batches() is None
    assert file.loss_fn is None


def test_named_factory(write):
    """A name after the colon chooses the factory; arguments with defaults are fine."""
    file = load_model_file(f"{write(GOOD)}:build_wide")
    assert file.factory == "build_wide"
    assert file.build_model().out_features == 8


def test_colon_in_the_path_itself(tmp_path):
    """A file whose name holds a colon is found, because the whole text is tried first."""
    path = tmp_path / "a:b.py"
    path.write_text(GOOD)
    assert load_model_file(str(path)).path == path


def test_random_weights_repeat_and_generators_are_left_alone(write):
    """The same seed gives the same random network, and no global generator moves."""
    path = write(GOOD)
    torch.manual_seed(5)
    np.random.seed(5)
    random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first, second, other = (load_model_file(path, seed=seed).build_model() for seed in (0, 0, 1))
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]


def test_fake_weights_take_no_memory(write):
    """A network far larger than memory can be built for describing it."""
    source = GOOD.replace("nn.Linear(3, 2)", "nn.Linear(10**7, 10**7)")
    model = load_model_file(write(source)).build_model(fake_weights=True)
    assert model.weight.is_meta
    assert model.weight.numel() == 10**14


def test_neighbours_can_be_imported(write):
    """A model file may import a file next to it, and the import path is put back."""
    import sys

    write("WIDTH = 7", "neighbour_of_net.py")
    before = list(sys.path)
    file = load_model_file(
        write(
            GOOD.replace("def build_model():", "def build_model():\n    from neighbour_of_net import WIDTH").replace("(3, 2)", "(3, WIDTH)")
        )
    )
    assert file.build_model().out_features == 7
    assert sys.path == before


@pytest.mark.parametrize(("wanted", "said"), [("nett.py", "net.py"), ("model.py", "net.py")])
def test_missing_file_suggests_similar_ones(write, tmp_path, wanted, said):
    """A file that does not exist is named together with the ones that do."""
    write(GOOD)
    with pytest.raises(ModelFileError, match=rf"{wanted} does not exist.*{said}"):
        load_model_file(tmp_path / wanted)


def test_missing_folder(tmp_path):
    """When even the folder is missing, that is what is said."""
    with pytest.raises(ModelFileError, match="There is no folder"):
        load_model_file(tmp_path / "nowhere" / "net.py")


def test_folder_instead_of_file(write, tmp_path):
    """A folder is no model file; the Python files inside are listed."""
    write(GOOD, "model.py")
    with pytest.raises(ModelFileError, match="is a folder"):
        load_model_file(tmp_path)


def test_not_a_python_file(write):
    """Weights handed in as the model file point to --weights."""
    with pytest.raises(ModelFileError, match=r"must end in \.py.*--weights"):
        load_model_file(write("x", "net.safetensors"))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01", b"x = 1\x00"])
def test_binary_content(tmp_path, content):
    """Bytes that are no text are refused, whatever the ending says."""
    path = tmp_path / "net.py"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"is not (Python source|valid Python)"):
        load_model_file(path)


def test_syntax_error_names_the_line(write):
    """The line of a syntax error and its text are in the message."""
    path = write(GOOD + "\ndef broken(:\n    pass\n")
    with pytest.raises(ModelFileError, match=rf"net\.py:{line_of(path, 'def broken')} is not valid Python.*def broken\(:"):
        load_model_file(path)


def test_file_that_raises_while_it_is_read(write):
    """An error at the top level is reported with its kind, its message and its line."""
    path = write(GOOD + "\nraise RuntimeError('no luck today')\n")
    with pytest.raises(ModelFileError, match=rf"net\.py:{line_of(path, 'no luck')}: the file raised RuntimeError: no luck today"):
        load_model_file(path)


def test_file_that_exits(write):
    """A script without a main guard ends neither the process nor the message."""
    with pytest.raises(ModelFileError, match="__main__"):
        load_model_file(write(GOOD + "\nraise SystemExit(3)\n"))


def test_missing_package(write):
    """A package that is not installed is named, with what to do."""
    with pytest.raises(ModelFileError, match=r"No module named 'no_such_package_here'.*Install no_such_package_here"):
        load_model_file(write("import no_such_package_here\n" + GOOD))


def test_no_factory_lists_the_functions(write):
    """Without a factory, the functions that there are get listed."""
    path = write(GOOD.replace("def build_model", "def make_model"))
    with pytest.raises(ModelFileError, match=r"no function build_model\(\).*make_model, build_wide, example_inputs"):
        load_model_file(path)


def test_misspelt_factory_suggests_the_closest(write):
    """A factory that is nearly right gets the right one suggested."""
    with pytest.raises(ModelFileError, match=r"Did you mean .*net\.py:build_wide"):
        load_model_file(f"{write(GOOD)}:build_wied")


def test_empty_file(write):
    """An empty file is told what a model file defines."""
    with pytest.raises(ModelFileError, match=r"defines no function.*build_model\(\) and example_inputs\(\)"):
        load_model_file(write(""))


def test_factory_that_raises_names_the_users_line(write):
    """An error deep inside torch is reported at the line of the user's file."""
    path = write(GOOD.replace("nn.Linear(3, 2)", "nn.Linear(3, 'two')"))
    with pytest.raises(ModelFileError, match=rf"net\.py:{line_of(path, 'two')}: build_model\(\) raised TypeError") as caught:
        load_model_file(path).build_model()
    assert isinstance(caught.value.__cause__, TypeError)


def test_factory_with_arguments(write):
    """A factory that needs arguments is told so with its signature, before it is called."""
    path = write(GOOD.replace("def build_model()", "def build_model(width, *, depth)"))
    with pytest.raises(ModelFileError, match=r"called without arguments.*build_model\(width, \*, depth\)"):
        load_model_file(path).build_model()


def test_factory_that_is_no_function(write):
    """A value under the factory's name is not called."""
    with pytest.raises(ModelFileError, match="must be a function without arguments, but it is an int"):
        load_model_file(write("build_model = 3")).build_model()


@pytest.mark.parametrize(
    ("value", "kind"), [("None", "None"), ("nn.Linear(1, 1).state_dict()", "an OrderedDict of 2"), ("'net.pt'", "a str of 6")]
)
def test_factory_that_returns_no_module(write, value, kind):
    """What the factory returned instead of a module is said."""
    with pytest.raises(ModelFileError, match=rf"must return a torch\.nn\.Module, but it returned {kind}"):
        load_model_file(write(GOOD.replace("nn.Linear(3, 2)", value))).build_model()


def test_missing_example_inputs(write):
    """Without example inputs there is nothing to trace with."""
    with pytest.raises(ModelFileError, match=r"defines no example_inputs\(\).*one sample"):
        load_model_file(write(GOOD.replace("def example_inputs", "def examples"))).example_inputs()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("None", "must return a tensor, a tuple"),
        ("3", "returned an int"),
        ("(1, 2)", "no tensor at all"),
        ("{}", "no tensor at all"),
        ("{1: torch.zeros(1)}", "names of arguments"),
        ("iter(())", "must return a tensor, a tuple"),
    ],
)
def test_example_inputs_of_a_wrong_kind(write, value, said):
    """Example inputs are a tensor, a tuple, a list or a dict, and hold a tensor."""
    with pytest.raises(ModelFileError, match=said):
        load_model_file(write(GOOD.replace("torch.zeros(1, 3)", value))).example_inputs()


@pytest.mark.parametrize(
    "value", ["(torch.zeros(1, 3), None, 4)", "[torch.zeros(1, 3)]", "{'input': torch.zeros(1, 3)}", "([torch.zeros(1)],)"]
)
def test_example_inputs_of_every_good_kind(write, value):
    """What the trace accepts is accepted here, and handed on as it is."""
    inputs = load_model_file(write(GOOD.replace("torch.zeros(1, 3)", value))).example_inputs()
    assert type(inputs) is type(eval(value))


def test_example_inputs_that_raise(write):
    """An error in example_inputs is reported like one in the factory."""
    path = write(GOOD.replace("torch.zeros(1, 3)", "torch.zeros(1, -3)"))
    with pytest.raises(ModelFileError, match=rf"net\.py:{line_of(path, '-3')}: example_inputs\(\) raised"):
        load_model_file(path).example_inputs()


def test_calibration_batches_from_a_generator(write):
    """A generator is read once; what it yields are the batches."""
    file = load_model_file(write(GOOD + "\ndef calibration_batches():\n    yield 1\n    yield 2\n"))
    assert file.calibration_batches() == (1, 2)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return []", "returned no batch"),
        ("return torch.zeros(4, 3)", "single batch into a list"),
        ("return {'x': torch.zeros(1)}", "single batch into a list"),
        ("return None", "but it returned None"),
        ("yield 1\n    raise KeyError('labels')", "raised KeyError: 'labels'"),
    ],
)
def test_bad_calibration_batches(write, body, said):
    """Each way in which batches can be wrong has its own message."""
    file = load_model_file(write(GOOD + f"\ndef calibration_batches():\n    {body}\n"))
    with pytest.raises(ModelFileError, match=said):
        file.calibration_batches()


def test_loss_is_the_same_on_every_call(write):
    """A loss that draws noise draws the same noise each time, so that two models are compared on equal terms."""
    file = load_model_file(write(GOOD + "\ndef loss(model, batch):\n    return (model(torch.randn(4, 3)) - batch).square().mean()\n"))
    model = file.build_model()
    first = file.loss_fn(model, torch.zeros(4, 2))
    torch.rand(3)
    assert torch.equal(first, file.loss_fn(model, torch.zeros(4, 2)))
    first.backward()
    assert model.weight.grad is not None


@pytest.mark.parametrize(
    ("value", "said"),
    [("0.5", "returned a float"), ("torch.zeros(2)", r"a tensor of shape \[2\]"), ("model(batch)", "loss\\(\\) raised TypeError")],
)
def test_bad_losses(write, value, said):
    """A loss must be one number as a tensor; an error inside it is reported with its line."""
    file = load_model_file(write(GOOD + f"\ndef loss(model, batch):\n    return {value}\n"))
    with pytest.raises(ModelFileError, match=said):
        file.loss_fn(file.build_model(), "no tensor")


class TestWeights:
    """`--weights`: all of the file fits, or nothing is loaded."""

    @pytest.fixture
    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def test_round_trip(self, write, model, tmp_path):
        """Saved weights come back, to the bit."""
        source = GOOD.replace("nn.Linear(3, 2)", "nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))")
        save_model(model, str(tmp_path / "w.safetensors"))
        loaded = load_model_file(write(source)).build_model(tmp_path / "w.safetensors")
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)

    def test_tied_weights_are_stored_once(self, tmp_path):
        """A parameter under two names needs one of them in the file."""

        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embed = nn.Embedding(5, 3)
                self.head = nn.Linear(3, 5, bias=False)
                self.head.weight = self.embed.weight

        saved, fresh = Tied(), Tied()
        save_model(saved, str(tmp_path / "w.safetensors"))
        load_weights(fresh, tmp_path / "w.safetensors")
        assert torch.equal(fresh.head.weight, saved.head.weight)
        assert fresh.head.weight is fresh.embed.weight

    def test_everything_wrong_is_listed_at_once(self, model, tmp_path):
        """Missing, unexpected and misshapen tensors come in one message, and the model is left alone."""
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file({"0.weight": torch.zeros(5, 3), "0.bias": torch.zeros(4), "extra": torch.zeros(1)}, tmp_path / "w.safetensors")
        with pytest.raises(WeightsError) as caught:
            load_weights(model, tmp_path / "w.safetensors")
        message = str(caught.value)
        assert "2 missing from the file: 1.weight, 1.bias." in message
        assert "1 not in the model: extra." in message
        assert "0.weight (the model has [4, 3], the file [5, 3])" in message
        for name, tensor in model.state_dict().items():
            assert torch.equal(before[name], tensor)

    def test_long_lists_are_cut(self, tmp_path):
        """A hundred missing names do not fill the screen."""
        save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors")
        with pytest.raises(WeightsError, match=r"100 missing from the file.* and 92 more"):
            load_weights(nn.Sequential(*(nn.Linear(1, 1) for _ in range(50))), tmp_path / "w.safetensors")

    def test_missing_file(self, model, tmp_path):
        """A missing file is named with the ones that are there."""
        save_file({"x": torch.zeros(1)}, tmp_path / "unet.safetensors")
        with pytest.raises(WeightsError, match=r"unett\.safetensors does not exist.*unet\.safetensors"):
            load_weights(model, tmp_path / "unett.safetensors")

    def test_pickles_are_refused(self, model, tmp_path):
        """A pickled checkpoint is not opened, and the way to convert it is given."""
        torch.save(model.state_dict(), tmp_path / "w.pt")
        with pytest.raises(WeightsError, match=r"Pickled checkpoints are not read.*save_model"):
            load_weights(model, tmp_path / "w.pt")

    def test_truncated_file(self, model, tmp_path):
        """Half a file is an error, not half a network."""
        path = tmp_path / "w.safetensors"
        save_model(model, str(path))
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(WeightsError, match="cannot be read as safetensors"):
            load_weights(model, path)


@pytest.mark.parametrize("name", ["unet.py", "resnet.py"])
def test_examples_are_model_files(name):
    """The shipped examples build, run on their example inputs, and have a finite loss."""
    file = load_model_file(EXAMPLES / name)
    model, inputs = file.build_model(), file.example_inputs()
    model(**inputs) if isinstance(inputs, dict) else model(inputs)
    batches = file.calibration_batches()
    assert len(batches) >= 2
    with torch.no_grad():
        assert torch.isfinite(file.loss_fn(model, batches[0]))


def test_every_error_is_one_of_ours(write):
    """Both kinds of error belong to the package's tree and are ValueErrors."""
    for kind in (ModelFileError, WeightsError):
        assert issubclass(kind, ProxyPruneError)
        assert issubclass(kind, ValueError)


def test_further_example_calls(write):
    """`also_inputs` gives a list of calls, training calls among them; without the function there are none."""
    import proxyprune as pp

    assert load_model_file(write(GOOD)).also_inputs() == ()
    calls = "[{'input': torch.ones(2, 3)}, pp.TrainingCall(torch.zeros(4, 3))]"
    source = f"{GOOD}\nimport proxyprune as pp\n\ndef also_inputs():\n    return {calls}\n"
    first, second = load_model_file(write(source)).also_inputs()
    assert first["input"].shape == (2, 3)
    assert isinstance(second, pp.TrainingCall)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return torch.zeros(1, 3)", "must return a list of calls"),
        ("return [(1, 2)]", "returned no tensor at all"),
        ("return [3]", "must return a tensor, a tuple of positional arguments or a dict"),
    ],
)
def test_further_example_calls_that_cannot_be_made(write, body, said):
    """A bare tensor, a call without a tensor and a call that is none are named with the line of the function."""
    path = write(f"{GOOD}\ndef also_inputs():\n    {body}\n")
    with pytest.raises(ModelFileError, match=said) as caught:
        load_model_file(path).also_inputs()
    assert f"{path}:{line_of(path, 'def also_inputs')}" in str(caught.value)
