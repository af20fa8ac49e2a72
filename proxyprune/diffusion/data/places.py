"""Places where downloads of named data sets may lie. Imports nothing, so that `proxyprune doctor` looks there without torch."""

from __future__ import annotations

from pathlib import Path

FASHION_PLACES = (Path("/usr/share/datasets/fashion-mnist"), Path("data/fashion-mnist"))
"""Folders of Fashion-MNIST: that of Debian's package dataset-fashion-mnist, and those of usual downloads."""

CIFAR_PLACES = (Path("data/cifar-10-batches-bin"), Path("data/cifar-10-binary.tar.gz"))
"""Places of a download, tried in this order."""
