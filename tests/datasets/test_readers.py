from __future__ import annotations

import gzip
import os
import pickle

import h5py
import numpy as np
import pandas as pd
import pytest
from celltransfer.datasets import builders, readers
from celltransfer.errors import DatasetError
from scipy import sparse


class Malicious:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_malicious_pickle_is_refused_and_runs_nothing(tmp_path, protocol):
    path = tmp_path / "cells.pkl"
    path.write_bytes(pickle.dumps(["cell", Malicious(str(tmp_path / "ran"))], protocol=protocol))
    with pytest.raises(DatasetError, match="mkdir"):
        readers.read_string_list(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", pickle.dumps({"a": 1}), pickle.dumps(["a", 1]), b"Pid\n."])
def test_pickle_of_anything_else_is_refused(tmp_path, content):
    path = tmp_path / "cells.pkl"
    path.write_bytes(content)
    with pytest.raises(DatasetError):
        readers.read_string_list(path)


@pytest.mark.parametrize("protocol", [0, 3, 5])
def test_list_of_strings_is_read(tmp_path, protocol):
    path = tmp_path / "cells.pkl"
    path.write_bytes(pickle.dumps(["a", "b"], protocol=protocol))
    assert readers.read_string_list(path) == ["a", "b"]


@pytest.mark.parametrize("scale", [1.0, 1.44055048])
def test_log_normalisation_is_inverted_exactly(scale):
    rng = np.random.default_rng(0)
    whole = rng.poisson(0.4, (200, 50)) * rng.integers(1, 4, (200, 50))
    whole[:, 0], whole[:, 1] = 2, 3  # no common divisor
    total = whole.sum(axis=1) + rng.integers(0, 3000, 200)
    values = sparse.csr_matrix(np.log1p(1e4 * whole / total[:, None]) / scale)
    found, sizes = readers.invert_log_normalisation(values, scale)
    assert np.array_equal(found.toarray(), whole)
    assert np.array_equal(sizes, total)


def test_values_that_are_no_counts_cannot_be_inverted():
    values = sparse.csr_matrix(np.random.default_rng(0).uniform(1, 5, (3, 40)))
    with pytest.raises(DatasetError, match="3 cells"):
        readers.invert_log_normalisation(values)


def test_match_rows_ignores_the_order_of_columns():
    reference = np.random.default_rng(0).integers(0, 10_000, (50, 14))
    rows = np.array([0, 3, 4, 20, 49])
    permuted = reference[rows][:, ::-1]
    assert np.array_equal(builders.match_rows(permuted, reference), rows)
    for wrong in (permuted[::-1], permuted + 1, permuted[[0, 0]]):
        with pytest.raises(DatasetError, match="cannot be matched"):
            builders.match_rows(wrong, reference)
    with pytest.raises(DatasetError, match="cannot be matched"):
        builders.match_rows(permuted, np.vstack([reference, reference[:1]]))


def write_table(path, values, features, cells) -> None:
    with gzip.open(path, "wt") as stream:
        pd.DataFrame(values.T.astype(float), index=features, columns=cells).to_csv(stream)


def test_cite_labels_come_from_matched_protein_counts(tmp_path):
    rng = np.random.default_rng(1)
    cells = [f"AAAC{i:02d}-1" for i in range(30)]
    proteins = [f"{name}_TotalSeqB" for name in sorted(builders._PBMC_PROTEINS)]
    genes, levels = rng.poisson(0.5, (30, 12)), rng.integers(0, 5000, (30, 14))
    names = {
        "rna": "pbmc10k_harmo_rna.csv.gz",
        "protein": "pbmc10k_harmo_pro.csv.gz",
        "labels": "10XPBMC_filtered_1000G.H5",
    }
    files = {name: tmp_path / name for name in names.values()}
    write_table(files[names["rna"]], genes, [f"gene{j}" for j in range(12)], cells)
    write_table(files[names["protein"]], levels, proteins, cells)
    labelled = np.sort(rng.choice(30, 20, replace=False))
    numbers = 1 + np.arange(20) % 7
    with h5py.File(files[names["labels"]], "w") as file:
        file["X1"], file["X2"], file["Y"] = genes[labelled], levels[labelled][:, rng.permutation(14)], numbers
    mdata = builders.pbmc10k_cite(files)
    assert mdata.obs_names.tolist() == [cells[i] for i in labelled]
    assert np.array_equal(mdata["rna"].X.toarray(), genes[labelled])
    assert mdata["protein"].var_names.tolist() == list(builders._PBMC_PROTEINS)
    column = proteins.index("CD19_TotalSeqB")
    assert np.array_equal(mdata["protein"][:, "CD19"].X.ravel(), levels[labelled, column])
    assert np.array_equal(mdata.obs["source_label"], numbers)
    assert mdata.obs["cell_type"].astype(str).tolist() == [builders._PBMC_LABELS[n] for n in numbers]
