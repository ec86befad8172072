"""Facts about the real datasets: whole matrices by hash, and what their publications and sources say."""

from __future__ import annotations

import hashlib
import json

import celltransfer as ct
import mudata
import numpy as np
import pandas as pd
import pytest
from celltransfer.datasets import registry
from scipy import sparse

# Sum of X, hash of X, of the cell names and of the feature names.
CONTENT = {
    ("a549_scicar", "rna"): (2141739.0, "10231817de9537f3", "ea73fd7bb0810fcb", "66ebe1079542a323"),
    ("a549_scicar", "atac"): (4628103.0, "dc6fb9e9fabdfd95", "ea73fd7bb0810fcb", "818fd2518bd87874"),
    ("a549_scicar_peaks", "rna"): (1821429.0, "1aea01a8a55e3248", "9264bb860d6d711e", "f802381d7613de04"),
    ("a549_scicar_peaks", "atac"): (4146432.0, "8fdcdd918b5c9892", "9264bb860d6d711e", "aa25527169cf7289"),
    ("snare_cortex", "rna"): (3092017.0, "dc9d7b57b52849c2", "477712882731f429", "c924fc5319fc5158"),
    ("snare_cortex", "atac"): (1040569.0, "00c19c24cb64043a", "477712882731f429", "0a88dca6b545979a"),
    ("scgem", "rna"): (33263.226, "9e346c0f269ce142", "5057e303aa7005c3", "72668e3052af7065"),
    ("scgem", "methylation"): (2948.0, "7f3883e69dd758b6", "5057e303aa7005c3", "3d5c2da8efa39fc6"),
    ("pbmc10k_cite", "rna"): (6273039.0, "707b9293d418769a", "82876b8ee707f478", "b00c20e0e9e42991"),
    ("pbmc10k_cite", "protein"): (36442155.0, "d8b5c1953696b6ad", "82876b8ee707f478", "f2920d058f9d2518"),
}


def digest(x: sparse.csr_matrix | np.ndarray) -> str:
    parts = [x.indptr.astype("<i8"), x.indices.astype("<i8"), x.data] if sparse.issparse(x) else [x]
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]


def digest_names(names: pd.Index) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@pytest.mark.parametrize(("name", "modality"), CONTENT)
def test_content_is_the_known_one(real_dataset, name, modality):
    adata = real_dataset(name)[modality]
    total, matrix, cells, features = CONTENT[name, modality]
    assert adata.shape == registry.get(name).shape[modality]
    assert adata.X.dtype == np.float32
    assert float(adata.X.sum(dtype=np.float64)) == pytest.approx(total, abs=1e-3)
    assert digest(adata.X) == matrix
    assert digest_names(adata.obs_names) == cells
    assert digest_names(adata.var_names) == features
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    if (name, modality) != ("scgem", "rna"):
        values = adata.X.data if sparse.issparse(adata.X) else adata.X
        assert np.array_equal(values, np.rint(values))
        assert values.min() >= 0


@pytest.mark.parametrize("name", sorted({name for name, _ in CONTENT}))
def test_conventions_hold(real_dataset, name, tmp_path):
    mdata = real_dataset(name)
    entry = registry.get(name)
    assert list(mdata.mod) == list(entry.modalities)
    assert mdata.uns["celltransfer_dataset"] == entry.describe()
    assert entry.labels in mdata.obs
    assert entry.condition is None or entry.condition in mdata.obs
    for adata in mdata.mod.values():
        assert adata.obs.equals(mdata.obs)
        assert not sparse.issparse(adata.X) or isinstance(adata.X, sparse.csr_matrix)
    mdata.write_h5mu(tmp_path / "copy.h5mu")
    back = mudata.read_h5mu(tmp_path / "copy.h5mu")
    for modality, adata in mdata.mod.items():
        assert digest(back[modality].X) == digest(adata.X)


def test_a549_scicar(real_dataset):
    mdata = real_dataset("a549_scicar")
    assert mdata.obs["treatment_time"].value_counts().to_dict() == {0: 473, 1: 694, 3: 707}
    test = mdata.obs["split"] == "test"
    assert test.sum() == 340
    assert mdata.obs.loc[test, "treatment_time"].value_counts().to_dict() == {0: 79, 1: 133, 3: 128}
    assert mdata["rna"].var["named"].sum() == 1014
    assert not mdata["rna"].var_names[mdata["rna"].var["named"]].str.fullmatch(r"gene_\d{4}").any()
    assert (mdata.obs["atac_total"] == 0).sum() == 12
    assert {"TSC22D3", "PER1", "FKBP5"} & set(mdata["rna"].var_names)


def test_mirror_and_registry_agree_on_the_split():
    path = ct.settings.data_mirror and ct.settings.data_mirror / "a549_scicar" / "test_split_indices.json"
    if path is None or not path.is_file():
        pytest.skip("no mirror with test_split_indices.json")
    assert tuple(json.loads(path.read_text())) == registry.get("a549_scicar").test_indices


def test_a549_scicar_peaks_is_the_same_experiment(real_dataset):
    peaks, motifs = real_dataset("a549_scicar_peaks"), real_dataset("a549_scicar")
    assert peaks.obs["split"].value_counts().to_dict() == {"train": 1483, "extra": 831, "test": 327}
    shared = peaks.obs_names.intersection(motifs.obs_names)
    assert len(shared) == 1810
    for column in ("split", "treatment_time"):
        assert (peaks.obs.loc[shared, column].astype(str) == motifs.obs.loc[shared, column].astype(str)).all()
    named = motifs["rna"].var_names[motifs["rna"].var["named"]]
    assert (peaks["rna"][shared, named].X != motifs["rna"][shared, named].X).nnz == 0
    open_peaks = peaks["atac"][shared].X.getnnz(axis=1)
    assert np.corrcoef(open_peaks, motifs.obs.loc[shared, "atac_total"])[0, 1] == pytest.approx(0.71, abs=0.01)
    assert np.array_equal(np.asarray(peaks["atac"].X.sum(axis=1)).ravel(), peaks.obs["atac_library_size"])
    assert (peaks["atac"].var["end"] > peaks["atac"].var["start"]).all()


def test_snare_cortex_links_each_peak_to_one_gene(real_dataset, tmp_path):
    mdata = real_dataset("snare_cortex")
    assert mdata.obs["cell_type"].nunique() == 15
    assert mdata.obs["cell_type_fine"].nunique() == 23
    assert mdata.obs["batch"].nunique() == 12
    mdata.write_h5mu(tmp_path / "snare.h5mu")
    for links in (mdata.uns["feature_links"], mudata.read_h5mu(tmp_path / "snare.h5mu").uns["feature_links"]):
        assert links.format == "csr"
        assert links.shape == (25734, 1677)
        assert set(links.data) == {1.0}
        linked = mdata["rna"].var_names[np.asarray(links.argmax(axis=1)).ravel()]
        assert (linked == mdata["atac"].var["linked_gene"].astype(str)).all()


def test_scgem(real_dataset):
    mdata = real_dataset("scgem")
    counts = mdata.obs.groupby("label")["cell_type"].agg(["first", "size"]).astype({"first": str})
    assert counts.values.tolist() == [["BJ", 35], ["d8", 40], ["d16T+", 32], ["d24T+", 36], ["iPS", 34]]
    expression = (
        pd.DataFrame(mdata["rna"].X, columns=mdata["rna"].var_names).groupby(mdata.obs["label"].to_numpy()).mean()
    )
    assert (expression[["NANOG", "OCT4", "SOX2"]].idxmax() >= 4).all()
    assert expression["LUM"].idxmax() == 1
    assert set(np.unique(mdata["methylation"].X.toarray())) == {0.0, 1.0}


def test_pbmc10k_cite_labels_fit_the_proteins(real_dataset):
    mdata = real_dataset("pbmc10k_cite")
    sizes = {"CD4 T": 2257, "CD14+ Monocyte": 1413, "CD8 T": 1018, "NK": 749, "B": 492, "DC": 38, "CD16+ Monocyte": 27}
    assert mdata.obs["cell_type"].value_counts().to_dict() == sizes
    levels = pd.DataFrame(mdata["protein"].X, columns=mdata["protein"].var_names)
    median = levels.groupby(mdata.obs["cell_type"].astype(str).to_numpy()).median()
    for protein, cell_type in {"CD19": "B", "CD8a": "CD8 T", "CD14": "CD14+ Monocyte", "CD56": "NK"}.items():
        assert median[protein].idxmax() == cell_type
