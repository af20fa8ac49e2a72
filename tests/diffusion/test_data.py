"""Data sets, and the features and metrics that images are judged by."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from proxyprune.diffusion import DataConfig, load_features
from proxyprune.diffusion.data.image_data import fashion_sized, load_data, to_bytes, to_float
from proxyprune.diffusion.data.places import FASHION_PLACES
from proxyprune.diffusion.data.write_images import grid, save_arrays
from proxyprune.diffusion.evaluation.features import SIZES
from proxyprune.diffusion.evaluation.metrics import bootstrap, frechet, frechet_distance, kernel_distance, precision_recall
from proxyprune.errors import DataError, InputError, UnknownNameError, WeightsError

RNG = np.random.default_rng(0)


def test_digits_are_split_once():
    """Training and held-out digits are disjoint parts of the 1,797, the same in every run."""
    first, second = load_data(DataConfig(labels=True)), load_data(DataConfig(labels=True))
    assert len(first.train) == 1500
    assert len(first.held_out) == 297
    assert first.shape == (1, 8, 8)
    assert first.classes == 10
    assert torch.equal(first.train, second.train)


def test_bytes_and_floats_are_inverse():
    """Every byte survives the way to [-1, 1] and back."""
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_float(every)), every)


@pytest.mark.skipif(not FASHION_PLACES[0].is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_found():
    """Where Debian puts it, at 16 pixels."""
    data = load_data(DataConfig(source="fashion-mnist", labels=True), 16)
    assert data.train.shape == (60000, 1, 16, 16)
    assert data.held_out.shape == (10000, 1, 16, 16)


def test_fashion_sizes_are_exact():
    """28 pixels stay, 32 get a border of zeros, 16 are means over squares of that."""
    images = torch.randint(0, 256, (2, 1, 28, 28), dtype=torch.uint8)
    wide = fashion_sized(images, 32)
    assert torch.equal(wide[:, :, 2:30, 2:30], images)
    assert wide.long().sum() == images.long().sum()
    expected = wide.view(2, 1, 16, 2, 16, 2).float().mean((3, 5)).round().to(torch.uint8)
    assert torch.equal(fashion_sized(images, 16), expected)


def write_idx(path, array):
    path.write_bytes(gzip.compress(bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()))


def test_damaged_idx_files_are_named(tmp_path):
    """A truncated or missing IDX file is named with what is wrong."""
    for part, count in (("train", 4), ("t10k", 2)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte.gz", np.zeros((count, 28, 28), np.uint8))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.zeros(count, np.uint8))
    config = DataConfig(source="fashion-mnist", path=str(tmp_path))
    assert len(load_data(config).train) == 4
    whole = (tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes()
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="t10k-images"):
        load_data(config)
    (tmp_path / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match="t10k-images"):
        load_data(config)


def test_corrupt_image_is_named(tmp_path):
    """One broken file among good ones is named; without it the folder loads, classes from sub-folders."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(3):
            pixels = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{index}.png")
    bad = tmp_path / "b" / "x.png"
    bad.write_bytes((tmp_path / "b" / "0.png").read_bytes()[:200])
    config = DataConfig(source=str(tmp_path), size=8, held_out=2, labels=True)
    with pytest.raises(DataError, match=r"x\.png"):
        load_data(config)
    bad.unlink()
    data = load_data(config)
    assert data.shape == (3, 8, 8)
    assert data.classes == 2


@pytest.mark.parametrize("source", ["digits", "pictures"])
def test_a_place_that_would_not_be_read_is_refused(source, tmp_path):
    """`--data` beside a source that has no files of its own would be ignored, and other images trained on than the user meant."""
    with pytest.raises(DataError, match=rf"the source is '{source}'.*--source"):
        load_data(DataConfig(source=source, path=str(tmp_path)))


@pytest.mark.parametrize("source", ["nowhere", "missing.npz"])
def test_missing_data_is_refused(source):
    """What is no data set is refused by name."""
    with pytest.raises(DataError, match=source):
        load_data(DataConfig(source=source), 8)


def test_a_file_that_is_no_archive_is_named(tmp_path):
    """A damaged npz says that it is one, and never to unpickle it, which is numpy's advice."""
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(RNG.bytes(100))
    with pytest.raises(DataError, match=r"damaged\.npz is not an npz archive") as caught:
        load_data(DataConfig(source=str(damaged)), 8)
    assert "pickle" not in str(caught.value)


def test_npz_round_trip_with_embeddings(tmp_path):
    """Images and embeddings come back from npz; what is written for other tools can be read again."""
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    path = save_arrays(images, tmp_path / "out.npz")
    data = load_data(DataConfig(source=str(path), held_out=2), 8)
    assert {tuple(i.flatten().tolist()) for i in torch.cat([data.train, data.held_out])} == {tuple(i.flatten().tolist()) for i in images}
    np.savez(tmp_path / "e.npz", images=images.numpy(), embeddings=RNG.normal(size=(6, 4, 5)).astype(np.float32))
    embedded = load_data(DataConfig(source=str(tmp_path / "e.npz"), held_out=2, labels=True), 8)
    assert embedded.labels is not None
    assert embedded.labels.shape == (4, 4, 5)


def test_hub_data_through_datasets(tmp_path):
    """A local data set of the package `datasets` with images and class labels is read like one of the hub."""
    datasets = pytest.importorskip("datasets")
    del datasets
    for split in ("cat", "dog"):
        (tmp_path / "set" / "train" / split).mkdir(parents=True)
        for index in range(3):
            pixels = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / "train" / split / f"{index}.png")
    data = load_data(DataConfig(source=f"hub:{tmp_path / 'set'}", size=8, held_out=2, labels=True))
    assert data.shape == (3, 8, 8)
    assert data.classes == 2


def test_grid_holds_every_image():
    """Each image lies in the picture at its place."""
    images = torch.randint(0, 100, (5, 1, 4, 4), dtype=torch.uint8)
    picture = grid(images, columns=3)
    assert picture.shape == (1, 11, 16)
    assert torch.equal(picture[:, 6:10, 6:10], images[4])


def spd(size, generator):
    root = generator.normal(size=(size, size))
    return root @ root.T + 0.1 * np.eye(size)


def test_frechet_closed_forms():
    """Equal distributions: 0. Equal covariances: the squared distance of the means. Scaled ones: (1 - s)^2 tr(C)."""
    cov, mean = spd(5, RNG), RNG.normal(size=5)
    assert frechet(mean, cov, mean, cov) == pytest.approx(0.0, abs=1e-9)
    assert frechet(mean, cov, mean + 2.0, cov) == pytest.approx(20.0)
    assert frechet(mean, cov, mean, 4.0 * cov) == pytest.approx(np.trace(cov))


def test_frechet_agrees_with_scipy():
    """The trace of the root is that of scipy's matrix square root, also for a singular covariance."""
    for rank in (6, 3):
        a, b = spd(6, RNG), RNG.normal(size=(6, rank))
        b = b @ b.T
        root = scipy.linalg.sqrtm(a @ b)
        expected = 1.0 + np.trace(a) + np.trace(b) - 2.0 * np.trace(root.real)
        assert frechet(np.zeros(6), a, np.eye(6)[0], b) == pytest.approx(expected, rel=1e-5)


def test_kid_is_unbiased():
    """KID is the mean over pairs of different images, by hand; and about 0 for two samples of one distribution."""
    a, b = RNG.normal(size=(5, 3)), RNG.normal(size=(4, 3))

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    inside_a = np.mean([k(a[i], a[j]) for i in range(5) for j in range(5) if i != j])
    inside_b = np.mean([k(b[i], b[j]) for i in range(4) for j in range(4) if i != j])
    between = np.mean([k(x, y) for x in a for y in b])
    assert kernel_distance(a, b) == pytest.approx(inside_a + inside_b - 2 * between)
    many = RNG.normal(size=(2, 1500, 4))
    assert abs(kernel_distance(many[0], many[1])) < 0.05


def test_precision_and_recall_see_missing_modes():
    """A generator that makes one of two clusters has full precision and half the recall; one that makes noise has none."""
    left, right = RNG.normal(size=(200, 2)), RNG.normal(size=(200, 2)) + 50.0
    real = np.concatenate([left, right])
    precision, recall = precision_recall(real, RNG.normal(size=(200, 2)))
    assert precision > 0.9
    assert 0.4 < recall < 0.55
    assert precision_recall(real, RNG.normal(size=(200, 2)) + 500.0) == (0.0, 0.0)


def test_bootstrap_interval_covers_the_truth():
    """The interval of a mean's square has about the width that theory says, and holds the value."""
    x = RNG.normal(size=(400, 1)) + 3.0
    found = bootstrap(lambda v: float(v.mean()), x, rounds=300)
    assert found.low < found.value < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.25)


def test_metrics_refuse_what_is_no_features():
    """NaN and other sizes are named."""
    with pytest.raises(InputError, match="NaN"):
        frechet_distance(np.full((3, 2), np.nan), np.zeros((3, 2)))
    with pytest.raises(InputError, match="length"):
        kernel_distance(np.zeros((3, 2)), np.zeros((3, 4)))


def test_inception_says_what_is_missing(tmp_path):
    """Without torch-fidelity, one sentence with what to install; with it, a file that is no weights is named."""
    try:
        import torch_fidelity  # noqa: F401
    except ImportError:
        with pytest.raises(UnknownNameError, match="pip install torch-fidelity"):
            load_features("inception")
        return
    with pytest.raises(WeightsError, match=r"gone\.pth"):
        load_features(f"inception:{tmp_path / 'gone.pth'}")
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="inception:FILE"):
        load_features(f"inception:{tmp_path / 'bad.pth'}")


@pytest.mark.parametrize("name", list(SIZES))
def test_features_tell_images_from_noise(name):
    """Halves of the held-out images are closer to each other than to noise, by far."""
    if name == "fashion-mnist" and not FASHION_PLACES[0].is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    data = load_data(DataConfig(source=name), SIZES[name][0])
    features = load_features(name)
    images = data.held_out[:280]
    a, b = features.of(images[:140]), features.of(images[140:])
    noise = features.of(torch.randint(0, 256, (140, *data.shape), dtype=torch.uint8))
    assert a.shape == (140, 64)
    assert 5.0 * frechet_distance(a, b) < frechet_distance(a, noise)
