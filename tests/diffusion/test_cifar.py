"""CIFAR-10 as it is published: archive and folder, and what is taken for it."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch

from proxyprune.diffusion.config.run_config import DataConfig
from proxyprune.diffusion.data.image_data import load_data
from proxyprune.errors import DataError

NAMES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


def records(count: int, seed: int) -> np.ndarray:
    """Random images with labels, as the files hold them."""
    random = np.random.default_rng(seed)
    return np.concatenate([random.integers(0, 10, (count, 1)), random.integers(0, 256, (count, 3072))], axis=1).astype(np.uint8)


@pytest.fixture
def archive(tmp_path):
    """Return an archive like the published one, with four images a file."""
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        for seed, name in enumerate(NAMES):
            raw = records(4, seed).tobytes()
            entry = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            entry.size = len(raw)
            file.addfile(entry, io.BytesIO(raw))
    return path


def test_archive_and_folder_hold_the_same(archive, tmp_path):
    """Colours are planes of 32 x 32, training files follow each other, and the test file is held out."""
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    packed, folder = (load_data(DataConfig("cifar10", path=str(path), labels=True)) for path in (archive, tmp_path / "unpacked"))
    assert torch.equal(packed.train, folder.train)
    assert packed.train.shape == (20, 3, 32, 32)
    assert packed.classes == 10
    second = records(4, 1)
    assert torch.equal(packed.train[4], torch.from_numpy(second[0, 1:].reshape(3, 32, 32)))
    assert packed.labels[4:8].tolist() == second[:, 0].tolist()
    assert torch.equal(packed.held_out[0].flatten(), torch.from_numpy(records(4, 5)[0, 1:]))
    assert load_data(DataConfig("cifar10", path=str(archive), size=16)).shape == (3, 16, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "test_batch.bin").unlink(), r"lacks test_batch\.bin.*pickles"),
        (lambda folder: (folder / "data_batch_2.bin").write_bytes(b"12345"), r"data_batch_2\.bin .* 5 bytes"),
        (lambda folder: (folder / "data_batch_3.bin").write_bytes(bytes([200]) * 3073), "label 200"),
    ],
)
def test_other_files_are_named(tmp_path, change, message):
    """With what they should hold."""
    for seed, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(records(2, seed).tobytes())
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        load_data(DataConfig("cifar10", path=str(tmp_path)))


def test_a_damaged_archive_and_a_missing_one(tmp_path):
    """Are errors with the path, and what to download."""
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b nothing")
    with pytest.raises(DataError, match=r"cut\.tar\.gz cannot be read"):
        load_data(DataConfig("cifar10", path=str(tmp_path / "cut.tar.gz")))
    with pytest.raises(DataError, match=r"Download cifar-10-binary\.tar\.gz"):
        load_data(DataConfig("cifar10", path=str(tmp_path / "nowhere")))
