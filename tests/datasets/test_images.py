"""Reading IDX files and building image sets, on made bytes and on the real ones."""

from __future__ import annotations

import gzip
import struct

import celltransfer as ct
import h5py
import numpy as np
import pandas as pd
import pytest
from celltransfer.datasets import images, registry
from celltransfer.datasets.readers import read_idx
from celltransfer.errors import DatasetError, InputError


def idx(values: np.ndarray, code: int = 8) -> bytes:
    header = struct.pack(f">2xBB{values.ndim}I", code, values.ndim, *values.shape)
    return header + np.ascontiguousarray(values, np.uint8).tobytes()


def write(path, content: bytes):
    path.write_bytes(gzip.compress(content))
    return path


@pytest.mark.parametrize("shape", [(5,), (3, 4, 6), (0, 2, 2), (300, 1, 1)])
def test_idx_is_read(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = read_idx(write(tmp_path / "a.gz", idx(values)))
    assert found.dtype == np.uint8
    assert np.array_equal(found, values)
    assert found.shape == shape
    assert found.flags.writeable


GOOD = idx(np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (GOOD[:3], "not an IDX file"),
        (b"\x00\x00\x0d" + GOOD[3:], "starts with '00 00 0d 03'"),  # floats
        (b"P5\n2 3", "not an IDX file"),
        (GOOD[:13], "middle of its header"),
        (GOOD[:-1], r"declares shape \(2, 3, 4\), but holds 23"),
        (GOOD + b"x", "but holds 25"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, "but holds 0"),  # declares 2^64 values: nothing is allocated for them
    ],
)
def test_broken_idx_is_refused(tmp_path, content, message):
    with pytest.raises(DatasetError, match=message):
        read_idx(write(tmp_path / "a.gz", content))


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: GOOD,  # not compressed
        lambda packed: packed[:-9],  # broken off in the data
        lambda packed: packed[:-3],  # broken off in the checksum
        lambda packed: packed[:-8] + bytes(8),  # wrong checksum
        lambda packed: packed[:12] + b"\xff" * 6 + packed[18:],  # corrupt
    ],
)
def test_broken_gzip_is_refused(tmp_path, damage):
    path = tmp_path / "a.gz"
    path.write_bytes(damage(gzip.compress(GOOD)))
    with pytest.raises(DatasetError, match="not a readable gzip"):
        read_idx(path)


def test_files_of_another_size_are_refused(tmp_path):
    names = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
    parts = (np.zeros((3, 28, 28)), np.zeros(3))
    files = {name: write(tmp_path / name, idx(part)) for name, part in zip(names, parts, strict=True)}
    with pytest.raises(DatasetError, match=r"'mnist': the files hold 3 labels and images of shape \(3, 784\)"):
        images.mnist(files)


def test_digits_need_no_download(tmp_path):
    with ct.settings.override(cache_dir=tmp_path, data_mirror=None):
        adata = ct.datasets.digits()
        assert np.array_equal(ct.datasets.load("digits").X, adata.X)
    assert not list(tmp_path.iterdir())
    assert adata.shape == (1797, 64)
    assert (adata.X.dtype, adata.X.max()) == (np.uint8, 16)
    assert adata.uns["image_shape"] == [8, 8]
    assert adata.uns["max_value"] == 16
    assert adata.uns["celltransfer_dataset"]["labels"] == "label"
    assert adata.obs["label"][:10].tolist() == list(range(10))
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert adata.var.loc["r03c05"].tolist() == [3, 5]
    assert np.array_equal(adata.var["row"] * 8 + adata.var["column"], np.arange(64))


def test_images_cannot_be_unpaired():
    with pytest.raises(InputError, match="Expected a MuData and got AnnData"):
        ct.datasets.unpair(ct.datasets.digits())


@pytest.mark.parametrize("name", ["mnist", "usps", "fashion_mnist"])
def test_real_images(real_dataset, name):
    adata, entry = real_dataset(name), registry.get(name)
    assert adata.shape == entry.shape["image"]
    assert adata.uns["image_shape"] == list(entry.image_shape)
    assert adata.uns["max_value"] == 255
    assert adata.uns["celltransfer_dataset"] == entry.describe()
    assert (adata.X.dtype, adata.X.min(), adata.X.max()) == (np.uint8, 0, 255)
    assert adata.X.flags.writeable
    assert adata.obs["label"].isin(range(10)).all()
    assert adata.obs_names.is_unique


def test_mnist_is_the_test_set(real_dataset):
    adata = real_dataset("mnist")
    assert adata.obs["label"][:20].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9, 0, 6, 9, 0, 1, 5, 9, 7, 3, 4]
    assert np.bincount(adata.obs["label"]).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert "split" not in adata.obs


def test_usps_split_and_shades(real_dataset):
    adata = real_dataset("usps")
    assert adata.obs["split"].value_counts().to_dict() == {"train": 7291, "test": 2007}
    with h5py.File(ct.datasets.fetch.locate(registry.get("usps").files[0])) as file:
        assert np.abs(adata.X[:7291] / 255 - file["train/data"][:]).max() <= 0.5 / 255 + 1e-6
        assert np.array_equal(adata.obs["label"][7291:], file["test/target"][:])


def test_fashion_from_upstream_files_is_the_prepared_one(real_dataset, tmp_path):
    adata = real_dataset("fashion_mnist")
    train, test = (np.flatnonzero(adata.obs["split"] == split) for split in ("train", "test"))
    assert pd.crosstab(adata.obs["split"], adata.obs["label"]).loc["test"].tolist() == [1000] * 10
    assert adata.obs["label"].iloc[train].value_counts().to_dict() == {5: 6000, 7: 6000, 9: 6000}
    assert adata.obs["label"].iloc[test[:10]].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert adata.obs["class_name"].iloc[test[0]] == "Ankle boot"
    # Upstream has training images of other classes in between, which are left out.
    pixels, labels = adata.X.reshape(-1, 28, 28), adata.obs["label"].to_numpy()
    other = test[labels[test] == 3]
    mixed = np.insert(train, np.arange(0, 5 * len(other), 5), other)
    files = {}
    for stem, rows in (("train", mixed), ("t10k", test)):
        for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
            name = f"{stem}-{kind}-ubyte.gz"
            files[name] = tmp_path / name
            files[name].write_bytes(gzip.compress(idx(values[rows]), 1))
    built = images.fashion_mnist(files)
    assert np.array_equal(built.X, adata.X)
    pd.testing.assert_frame_equal(built.obs, adata.obs)
