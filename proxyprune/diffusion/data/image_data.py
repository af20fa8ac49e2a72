"""Image data, read once into memory as bytes: digits, Fashion-MNIST, folders, hub data sets and npz files.

Everything is checked while it is read, so a corrupt image or a missing folder is named before any training starts. A batch is an index into
one tensor, which no loader can be slower than.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxyprune.diffusion.config.run_config import DataConfig
from proxyprune.diffusion.data.cifar_files import cifar_records
from proxyprune.diffusion.data.places import CIFAR_PLACES, FASHION_PLACES
from proxyprune.errors import DataError
from proxyprune.support.extras import how_to_install
from proxyprune.support.seeds import derived_seed

_IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_SHUFFLE_SEED = 0
"""Held-out images are the same in every run, whatever the run's seed."""
_DIGITS_HELD_OUT, _MOST_HELD_OUT = 297, 5000
"""Held-out images of the digits, and most of other data, unless a number is given."""
_WITH_FILES = ("fashion-mnist", "cifar10")
_CONDITIONS = ("labels", "y", "embeddings")
"""Names of the arrays that condition a denoiser."""

if TYPE_CHECKING:
    from PIL import Image

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageData:
    """Images in memory.

    Attributes:
        name: Where they came from.
        train: [images, channels, height, width], uint8.
        held_out: The same, never trained on.
        labels: Labels [images] (int64) or embeddings [images, ...] (float32) of the training images, or None.
        held_out_labels: The same of the held-out images.
        classes: Number of classes; 0 without labels.
    """

    name: str
    train: Tensor = field(repr=False)
    held_out: Tensor = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    held_out_labels: Tensor | None = field(default=None, repr=False)
    classes: int = 0

    def __post_init__(self) -> None:
        for what, images in (("training", self.train), ("held-out", self.held_out)):
            if images.ndim != 4 or images.dtype != torch.uint8 or not images.numel():
                raise DataError(
                    f"{self.name}: expected {what} images [images, channels, height, width] of bytes, at least one; found "
                    f"{tuple(images.shape)} of {images.dtype}."
                )

    def fingerprint(self) -> dict[str, Any]:
        """Return the number of images, and a hash of all of them, which show that a run goes on with what it began with."""
        digest = hashlib.blake2b(digest_size=16)
        for images in (self.train, self.held_out):
            digest.update(f"{tuple(images.shape)}".encode())
            digest.update(images.contiguous().numpy().tobytes())
        return {"schema": 1, "train": len(self.train), "held_out": len(self.held_out), "blake2b": digest.hexdigest()}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.train.shape[1:]
        return int(channels), int(height), int(width)


def load_data(config: DataConfig, size: int | None = None) -> ImageData:
    """Read a data set.

    Args:
        config: Which one.
        size: Pixels along a side, where the configuration leaves it open.

    Raises:
        DataError: If it is missing or holds something that cannot be used; names the file.
    """
    wanted = config.size or size
    if config.path is not None and config.source not in _WITH_FILES:
        raise DataError(
            f"data.path (--data) names the place of the files of {' or '.join(_WITH_FILES)}, but the source is {config.source!r}. Omit "
            "it, or name a folder of images or an .npz file as the source (--source)."
        )
    if config.source in _READERS:
        return _READERS[config.source](config, wanted)
    if config.source.startswith("hub:"):
        return _hub(config, wanted)
    place = Path(config.source).expanduser()
    if place.suffix == ".npz":
        return _npz(config, wanted, place)
    if place.is_dir():
        return _folder(config, wanted, place)
    raise DataError(
        f"There is no data set {config.source!r}: it is none of {', '.join(_READERS)}, no folder, no .npz file, and does not "
        "begin with 'hub:'."
    )


def to_float(images: Tensor) -> Tensor:
    """Bytes to [-1, 1]."""
    return images.float() / 127.5 - 1.0


def to_bytes(images: Tensor) -> Tensor:
    """[-1, 1] to bytes; what lies outside is clipped."""
    return ((images.float().clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8)


def _digits(config: DataConfig, size: int | None) -> ImageData:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, 17 grey levels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f"The digits come with scikit-learn, which is not installed. Run: {how_to_install('sklearn')}") from error
    found = load_digits()
    images = np.rint(found.images * (255.0 / 16.0)).astype(np.uint8)[:, None]
    usual = replace(config, held_out=_DIGITS_HELD_OUT) if config.held_out is None else config
    return _split("digits", _resized(torch.from_numpy(images), size or 8), torch.from_numpy(found.target).long(), usual)


def _fashion(config: DataConfig, size: int | None) -> ImageData:
    """Fashion-MNIST, 60,000 training and 10,000 test images.

    28 pixels as they are; 32 with a border of two zeros; 16 as means over 2 x 2 pixels of that.
    """
    places = (Path(config.path).expanduser(),) if config.path else FASHION_PLACES
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise DataError(
            f"Fashion-MNIST was not found in {', '.join(map(str, places))}. Install the package dataset-fashion-mnist, or give the folder "
            "with the four idx files as data.path (--data)."
        )
    images = [
        fashion_sized(torch.from_numpy(_idx(folder, f"{part}-images-idx3-ubyte", 3))[:, None], size or 28) for part in ("train", "t10k")
    ]
    labels = [torch.from_numpy(_idx(folder, f"{part}-labels-idx1-ubyte", 1)).long() for part in ("train", "t10k")]
    for pictures, names in zip(images, labels, strict=True):
        if len(pictures) != len(names):
            raise DataError(f"{folder}: {len(pictures)} images have {len(names)} labels. Download the files again.")
    given = labels if config.labels else [None, None]
    return ImageData("fashion-mnist", images[0], images[1], given[0], given[1], 10 if config.labels else 0)


def fashion_sized(images: Tensor, size: int) -> Tensor:
    """Fashion-MNIST at 28, 32 or 16 pixels, exactly: a border, and means over squares rounded to the nearest byte.

    Raises:
        DataError: For another size.
    """
    if size == 28:
        return images
    if size not in (16, 32):
        raise DataError(f"Fashion-MNIST is available at 16, 28 or 32 pixels, not {size}.")
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    return padded if size == 32 else _means(padded, 2)


def _means(images: Tensor, factor: int) -> Tensor:
    return torch.nn.functional.avg_pool2d(images.float(), factor).round().to(torch.uint8)


def _idx(folder: Path, name: str, dimensions: int) -> Bytes:
    """Return an IDX file of bytes, gzipped or not."""
    path = next((folder / candidate for candidate in (name, f"{name}.gz") if (folder / candidate).is_file()), None)
    if path is None:
        raise DataError(f"{folder} lacks {name} (or {name}.gz); Fashion-MNIST has four such files.")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}. Download it again.") from error
    head = 4 + 4 * dimensions
    if len(raw) < head or raw[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(f"{path} is not an IDX file of bytes with {dimensions} dimensions. Download it again.")
    shape = struct.unpack(f">{dimensions}I", raw[4:head])
    if len(raw) - head != math.prod(shape):
        raise DataError(f"{path} should hold {math.prod(shape):,} bytes for {shape}, but holds {len(raw) - head:,}. Download it again.")
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape).copy()


def _cifar10(config: DataConfig, size: int | None) -> ImageData:
    """CIFAR-10 in its binary version, 50,000 training and 10,000 test images of 32 pixels."""
    places = (Path(config.path).expanduser(),) if config.path else CIFAR_PLACES
    place = next((place for place in places if place.exists()), None)
    if place is None:
        raise DataError(
            f"CIFAR-10 was not found in {', '.join(map(str, places))}. Download cifar-10-binary.tar.gz, and give the archive or the "
            "folder that it unpacks to as data.path (--data)."
        )
    records = [cifar_records(place, names) for names in ([f"data_batch_{n}.bin" for n in range(1, 6)], ["test_batch.bin"])]
    images = [_resized(torch.from_numpy(found[:, 1:].reshape(-1, 3, 32, 32).copy()), size or 32) for found in records]
    labels = [torch.from_numpy(found[:, 0].copy()).long() for found in records]
    if config.labels:
        return ImageData("cifar10", images[0], images[1], labels[0], labels[1], 10)
    return ImageData("cifar10", images[0], images[1])


def _folder(config: DataConfig, size: int | None, place: Path) -> ImageData:
    """All images below a folder, in the order of their names; sub-folders are classes when labels are asked for."""
    paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{place} holds no image ({', '.join(sorted(_IMAGE_SUFFIXES))}).")
    wanted = _size_needed(size, place)
    images = torch.stack([_picture(path, path, wanted, config.channels) for path in paths])
    labels = None
    if config.labels:
        groups = [path.relative_to(place).parts[0] for path in paths]
        if any(path.parent == place for path in paths):
            raise DataError(f"Labels were requested, but {place} holds images outside of sub-folders; put each class into its own.")
        names = sorted(set(groups))
        labels = torch.tensor([names.index(group) for group in groups])
    return _split(str(place), images, labels, config)


def _hub(config: DataConfig, size: int | None) -> ImageData:
    """Return a data set of the hub (or a local copy of one) through the package `datasets`."""
    try:
        import datasets
    except ImportError as error:
        raise DataError("Data sets of the hub need the package datasets: pip install 'proxyprune[data]'.") from error
    name = config.source.removeprefix("hub:")
    try:
        found = datasets.load_dataset(name, split="train")
    except Exception as error:
        raise DataError(
            f"The data set {name!r} cannot be loaded ({type(error).__name__}: {error}). Check its name and the connection, "
            "or give its images as a folder or an .npz file."
        ) from error
    columns = {column: type(feature).__name__ for column, feature in found.features.items()}
    pictures = next((column for column, kind in columns.items() if kind == "Image"), None)
    if pictures is None:
        raise DataError(f"The data set {name!r} has no column of images; its columns are {columns}.")
    wanted = _size_needed(size, name)
    plain = found.cast_column(pictures, datasets.Image(decode=False))
    images = torch.stack(
        [_picture(_source(row[pictures]), f"{name}, row {index}", wanted, config.channels) for index, row in enumerate(plain)]
    )
    labels = None
    if config.labels:
        column = next((column for column, kind in columns.items() if kind == "ClassLabel"), "label" if "label" in columns else None)
        if column is None:
            raise DataError(f"Labels were requested, but {name!r} has no column of class labels; its columns are {columns}.")
        labels = torch.tensor(found[column][:])
    return _split(name, images, labels, config)


def _source(cell: Mapping[str, Any]) -> Any:
    import io

    return io.BytesIO(cell["bytes"]) if cell.get("bytes") is not None else cell["path"]


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz file, by name.

    Raises:
        DataError: If it cannot be read, or holds pickled objects.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an npz archive, or is incomplete. Write it with numpy.savez, or copy it again.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zip, zlib and numpy each have errors of their own for a damaged file
        raise DataError(f"{path} cannot be read as npz ({type(error).__name__}: {error}).") from error


def _npz(config: DataConfig, size: int | None, path: Path) -> ImageData:
    """Arrays `images` [n, h, w], [n, h, w, c] or [n, c, h, w] of bytes; `labels` [n] or `embeddings` [n, ...] with data.labels."""
    arrays = read_npz(path)
    name = next((name for name in ("images", "x", "data", "arr_0") if name in arrays), None)
    if name is None or arrays[name].dtype != np.uint8 or arrays[name].ndim not in (3, 4):
        found = {key: (value.shape, str(value.dtype)) for key, value in arrays.items()}
        raise DataError(f"{path} must hold an array 'images' of bytes (uint8) with 3 or 4 dimensions, found {found}.")
    images = torch.from_numpy(arrays[name])
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] in (1, 3, 4) and images.shape[1] not in (1, 3, 4):
        images = images.permute(0, 3, 1, 2).contiguous()
    labels = None
    if config.labels:
        there = [key for key in _CONDITIONS if key in arrays]
        if len(there) > 1:
            raise DataError(f"{path} holds {' and '.join(map(repr, there))}, and a denoiser takes one of them. Remove one.")
        key = there[0] if there else None
        if key is None or len(arrays[key]) != len(images):
            raise DataError(f"Labels were requested, but {path} has no array 'labels' or 'embeddings' with one entry for each image.")
        labels = _labels(path, key, arrays[key])
    if size is not None and images.shape[-2] != images.shape[-1]:
        images = _middle(images)
    return _split(str(path), _resized(images, size or int(images.shape[-1])), labels, config)


def _labels(path: Path, name: str, values: NDArray[Any]) -> Tensor:
    """Class labels [n] (int64), or embeddings [n, ...] (float32)."""
    what = f"{path}: the array {name!r}"
    if values.dtype.kind in "iub":
        if values.ndim != 1 or values.min() < 0:
            raise DataError(f"{what} holds whole numbers, so labels [images] from 0 up, found {values.shape} from {values.min()}.")
        return torch.from_numpy(values.astype(np.int64))
    if values.dtype.kind != "f" or values.ndim < 2 or not np.isfinite(values).all():
        raise DataError(
            f"{what} must hold labels (whole numbers from 0 up, [images]) or embeddings (finite numbers, [images, ...]), found "
            f"{values.dtype} {values.shape}."
        )
    return torch.from_numpy(values).float()


def _middle(images: Tensor) -> Tensor:
    """Return the middle square of images [n, channels, height, width]."""
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side].contiguous()


def _picture(source: Any, label: Any, size: int, channels: int) -> Tensor:
    """One image, its middle square, shrunk by means over areas; [channels, size, size]."""
    from PIL import Image

    try:
        with Image.open(source) as opened:
            image = _bytes_of(opened, label).convert("L" if channels == 1 else "RGB")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{label} is not a readable image ({type(error).__name__}: {error}). Remove or replace it.") from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side != size:
        image = image.resize((size, size), Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC)
    pixels = np.asarray(image, np.uint8)
    return torch.from_numpy(pixels[None].copy() if channels == 1 else pixels.transpose(2, 0, 1).copy())


def _bytes_of(image: Image.Image, label: Any) -> Image.Image:
    """Return an image of 8 bits a channel; Pillow would cut 16 bits off at 255."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image, np.float64) / 257.0).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"{label} has 32 bits a pixel (mode {image.mode}), whose range is not known. Save it with 8 or 16 bits.")
    return image


def _resized(images: Tensor, size: int) -> Tensor:
    """Square images at another size: means over squares where it divides, else antialiased interpolation."""
    now = int(images.shape[-1])
    if now == size:
        return images
    if now % size == 0:
        return _means(images, now // size)
    grown = torch.nn.functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)
    return grown.round().clamp(0, 255).to(torch.uint8)


def _size_needed(size: int | None, where: object) -> int:
    if size is None:
        raise DataError(f"{where}: set the number of pixels of a side (data.size), because images may differ in size.")
    return size


def _split(name: str, images: Tensor, labels: Tensor | None, config: DataConfig) -> ImageData:
    count = min(_MOST_HELD_OUT, max(1, len(images) // 10)) if config.held_out is None else config.held_out
    if not 0 < count < len(images):
        raise DataError(f"{name} has {len(images)} images, of which {count} cannot be held out; set data.held_out.")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derived_seed(_SHUFFLE_SEED, "held out")))
    kept, out = order[count:], order[:count]
    if labels is None or not config.labels:
        return ImageData(name, images[kept], images[out])
    classes = 0 if labels.is_floating_point() else int(labels.max()) + 1
    return ImageData(name, images[kept], images[out], labels[kept], labels[out], classes)


_READERS: Mapping[str, Callable[[DataConfig, int | None], ImageData]] = {"digits": _digits, "fashion-mnist": _fashion, "cifar10": _cifar10}
