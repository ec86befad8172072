"""Image sets for checking methods where a person can see what is right: one function per set, as AnnData.

A builder takes the verified local path of each file of its registry entry, by file name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from celltransfer.datasets import registry
from celltransfer.datasets.readers import read_idx
from celltransfer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Files = Mapping[str, Path]

FASHION_CLASSES = tuple("T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(","))
"""Names of the labels 0 to 9 of Fashion-MNIST."""

SHOES = (5, 7, 9)
"""Labels of the shoes among them."""

_DIGITS_MAX = 16

LUMINANCE = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601)."""


def mnist(files: Files) -> AnnData:
    """Build :func:`celltransfer.datasets.mnist`."""
    return _image_set(
        "mnist", read_idx(files["t10k-images-idx3-ubyte.gz"]), read_idx(files["t10k-labels-idx1-ubyte.gz"])
    )


def usps(files: Files) -> AnnData:
    """Build :func:`celltransfer.datasets.usps`."""
    import h5py  # type: ignore[import-untyped]

    with h5py.File(files["usps.h5"], "r") as file:
        sizes = {split: len(file[f"{split}/target"]) for split in ("train", "test")}
        shades = np.concatenate([file[f"{split}/data"][:] for split in sizes])
        labels = np.concatenate([file[f"{split}/target"][:] for split in sizes])
    split = np.repeat([*sizes], [*sizes.values()])
    return _image_set("usps", np.rint(255 * shades).astype(np.uint8), labels, {"split": pd.Categorical(split)})


def fashion_mnist(files: Files) -> AnnData:
    """Build :func:`celltransfer.datasets.fashion_mnist` from the four upstream files or from the prepared one."""
    prepared = next((path for path in files.values() if path.suffix == ".npz"), None)
    if prepared is None:
        pixels, labels, split = _fashion_upstream(files)
    else:
        with np.load(prepared, allow_pickle=False) as arrays:
            pixels, labels, split = arrays["images"], arrays["labels"], arrays["split"]
    columns = {
        "split": pd.Categorical(split),
        "class_name": pd.Categorical(np.array(FASHION_CLASSES)[labels], categories=FASHION_CLASSES),
    }
    return _image_set("fashion_mnist", pixels, labels, columns)


def _fashion_upstream(files: Files) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, labels and split: the shoes among the training images, then all test images, in the upstream order."""
    parts = {
        split: tuple(read_idx(files[f"{stem}-{kind}-ubyte.gz"]) for kind in ("images-idx3", "labels-idx1"))
        for split, stem in (("train", "train"), ("test", "t10k"))
    }
    pixels, labels = parts["train"]
    shoes = np.isin(labels, SHOES)
    parts["train"] = (pixels[shoes], labels[shoes])
    split = np.repeat([*parts], [len(labels) for _, labels in parts.values()])
    pixels, labels = (np.concatenate(arrays) for arrays in zip(*parts.values(), strict=True))
    return pixels, labels, split


def faces_utk32(files: Files) -> AnnData:
    """Build :func:`celltransfer.datasets.faces_utk32` from the prepared file; the upstream folder is not read."""
    path = next(iter(files.values()))
    if path.suffix != ".npz":
        raise DatasetError(
            "'faces_utk32': only the prepared faces_utk32.npz is read, beside the folder that CELLTRANSFER_DATA_MIRROR "
            "names."
        )
    with np.load(path, allow_pickle=False) as arrays:
        colour, male, age, split = (arrays[name] for name in ("images", "male", "age", "split"))
    grey = np.rint(colour.astype(np.float64) @ LUMINANCE).astype(np.uint8)
    columns = {
        "split": pd.Categorical(split),
        "sex": pd.Categorical(np.where(male == 1, "male", "female")),
        "age": age.astype(np.int64),
    }
    return _image_set("faces_utk32", grey, male, columns)


def digits() -> AnnData:
    """1,797 handwritten digits of 8 x 8 pixels, which come with scikit-learn: nothing is downloaded.

    ``X`` holds whole numbers from 0 to 16 (``uns["max_value"]``). ``obs["label"]``: the digit.

    Licence CC BY 4.0.

    References
    ----------
    Alpaydin & Kaynak 1998, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    return _image_set("digits", data.images.astype(np.uint8), data.target, max_value=_DIGITS_MAX)


def _image_set(
    name: str,
    pixels: np.ndarray,
    labels: np.ndarray,
    columns: Mapping[str, Any] | None = None,
    max_value: int = 255,
) -> AnnData:
    """The AnnData of an image set, checked against its registry entry.

    Parameters
    ----------
    name
        Dataset name.
    pixels
        ``uint8``, shape ``(n_obs, height, width)`` or ``(n_obs, height * width)``.
    labels
        Shape ``(n_obs,)``.
    columns
        Further columns of ``obs``.
    max_value
        The value of a white pixel; 0 is black.
    """
    entry = registry.get(name)
    matrix = pixels.reshape(len(pixels), -1)
    if matrix.shape != entry.shape["image"] or len(labels) != len(matrix):
        raise DatasetError(
            f"{name!r}: the files hold {len(labels)} labels and images of shape {matrix.shape}, "
            f"expected {entry.shape['image']}."
        )
    height, width = entry.image_shape
    row, column = np.divmod(np.arange(height * width), width)
    obs = pd.DataFrame(
        {"label": labels.astype(np.int64), **(columns or {})},
        index=pd.Index([f"{name}_{i:05d}" for i in range(len(matrix))], name="image"),
    )
    names = [f"r{r:02d}c{c:02d}" for r, c in zip(row, column, strict=True)]
    adata = AnnData(matrix, obs=obs, var=pd.DataFrame({"row": row, "column": column}, index=names))
    adata.uns |= {
        "image_shape": [height, width],
        "max_value": max_value,
        "celltransfer_dataset": entry.describe(),
    }
    return adata
