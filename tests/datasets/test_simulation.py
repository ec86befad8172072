from __future__ import annotations

import celltransfer as ct
import mudata
import numpy as np
import pytest
from celltransfer.errors import ConfigError
from scipy import sparse
from scipy.special import expit
from sklearn.linear_model import Ridge


def log_normalised(adata) -> np.ndarray:
    x = adata.X.toarray()
    return np.log1p(x / np.maximum(x.sum(axis=1, keepdims=True), 1) * 1e3)


def test_counts_are_integer_csr_with_the_asked_depths():
    mdata = ct.datasets.simulate(n_obs=500, dropout=0.0, rna_depth=400, atac_depth=250)
    for name, depth, n_vars in (("rna", 400, 300), ("atac", 250, 600)):
        x = mdata[name].X
        assert isinstance(x, sparse.csr_matrix)
        assert x.dtype == np.float32
        assert x.shape == (500, n_vars)
        assert np.array_equal(x.data, np.rint(x.data))
        assert np.median(np.asarray(x.sum(axis=1))) == pytest.approx(depth, rel=0.1)


def test_rates_follow_from_the_truth(simulated):
    truth, latent = simulated.uns["truth"], simulated.obsm["truth_latent"]
    access = expit(truth["peak_offset"] + latent @ truth["peak_loadings"].T)
    assert np.allclose(simulated["atac"].layers["rate"], 250 * access / access.sum(axis=1, keepdims=True), rtol=1e-4)
    assert np.allclose(access.mean(axis=0), truth["mean_accessibility"])
    expression = np.exp(truth["gene_offset"] + (access - truth["mean_accessibility"]) @ truth["regulatory_map"].T)
    expected = 400 * expression / expression.sum(axis=1, keepdims=True)
    assert np.allclose(simulated["rna"].layers["rate"], expected, rtol=1e-4)


def test_regulatory_map_is_sparse():
    truth = ct.datasets.simulate(n_obs=50, peaks_per_gene=4).uns["truth"]
    assert truth["regulatory_map"].shape == (300, 600)
    assert set(np.diff(truth["regulatory_map"].indptr)) == {4}
    assert set(np.diff(truth["peak_loadings"].indptr)) == {1, 2}
    assert 0.1 < (truth["regulatory_map"].data < 0).mean() < 0.3


def test_noise_and_dropout_do_what_they_say():
    def draw(**kwargs):
        return ct.datasets.simulate(n_obs=1000, depth_sd=0.0, **kwargs)["rna"]

    poisson, noisy, dropped = draw(dispersion=0.0, dropout=0.0), draw(dispersion=1.0, dropout=0.0), draw(dropout=0.8)
    residual = [np.square(a.X.toarray() - a.layers["rate"]).sum() for a in (poisson, noisy)]
    rate = poisson.layers["rate"]
    assert residual[0] == pytest.approx(rate.sum(), rel=0.05)
    assert residual[1] == pytest.approx((rate + rate**2).sum(), rel=0.1)
    assert dropped.X.nnz < 0.8 * poisson.X.nnz


def test_condition_shifts_some_programs(simulated):
    latent, shift = simulated.obsm["truth_latent"], simulated.uns["truth"]["condition_shift"]
    treated = (simulated.obs["condition"] == "treated").to_numpy()
    assert 0 < np.count_nonzero(shift) < len(shift)
    difference = latent[treated].mean(axis=0) - latent[~treated].mean(axis=0)
    assert np.corrcoef(difference, shift)[0, 1] > 0.9


def test_annotation(simulated):
    obs = simulated.obs
    assert (obs["split"] == "test").sum() == 100
    assert obs["cell_type"].nunique() == 4
    assert obs["pseudotime"].between(0, 1).all()
    for adata in simulated.mod.values():
        assert adata.obs.equals(obs)
    assert simulated.uns["celltransfer_dataset"]["condition"] == "condition"


@pytest.mark.parametrize("coassayed", [0.0, 0.1, 0.55, 1.0])
def test_cells_are_shared_as_asked(coassayed):
    mdata = ct.datasets.simulate(n_obs=101, n_genes=5, n_peaks=6, coassayed=coassayed)
    rna, atac = set(mdata["rna"].obs_names), set(mdata["atac"].obs_names)
    assert len(rna & atac) == round(coassayed * 101)
    assert len(rna | atac) == mdata.n_obs == 101
    assert abs(len(rna) - len(atac)) <= 1
    full = ct.datasets.simulate(n_obs=101, n_genes=5, n_peaks=6)
    assert np.array_equal(mdata[full.obs_names].obsm["truth_latent"], full.obsm["truth_latent"])
    assert mdata.obs.loc[full.obs_names, "pseudotime"].equals(full.obs["pseudotime"])


def test_anchors_are_coassayed_training_cells():
    mdata = ct.datasets.simulate(n_obs=200, n_genes=5, n_peaks=6, coassayed=0.3, n_anchors=12)
    anchors = mdata.obs_names[mdata.obs["anchor"]]
    assert len(anchors) == 12
    assert set(anchors) <= set(mdata["rna"].obs_names) & set(mdata["atac"].obs_names)
    assert (mdata.obs.loc[anchors, "split"] == "train").all()
    with pytest.raises(ConfigError, match="n_anchors=100"):
        ct.datasets.simulate(n_obs=200, n_genes=5, n_peaks=6, coassayed=0.3, n_anchors=100)


def test_seed_decides_everything_and_global_state_is_untouched():
    np.random.seed(7)  # noqa: NPY002 - the global state is what is tested
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (ct.datasets.simulate(n_obs=60, seed=seed) for seed in (3, 3, 4))
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    for name in ("rna", "atac"):
        assert (first[name].X != again[name].X).nnz == 0
        assert (first[name].X != other[name].X).nnz > 0
    assert first.obs.equals(again.obs)


def test_h5mu_round_trip(simulated, tmp_path):
    simulated.write_h5mu(tmp_path / "simulated.h5mu")
    back = mudata.read_h5mu(tmp_path / "simulated.h5mu")
    assert (back["atac"].X != simulated["atac"].X).nnz == 0
    truth, found = simulated.uns["truth"], back.uns["truth"]
    assert (found["regulatory_map"] != truth["regulatory_map"]).nnz == 0
    assert np.array_equal(found["condition_shift"], truth["condition_shift"])
    assert np.array_equal(back.obsm["truth_latent"], simulated.obsm["truth_latent"])
    assert back.uns["celltransfer_dataset"] == simulated.uns["celltransfer_dataset"]


def test_task_is_learnable_beyond_labels_but_not_from_ten_pairs():
    mdata = ct.datasets.simulate(n_obs=1000, seed=0)
    x, y = log_normalised(mdata["rna"]), np.log1p(mdata["atac"].layers["rate"])
    train = (mdata.obs["split"] == "train").to_numpy()
    group = (mdata.obs["cell_type"].astype(str) + mdata.obs["condition"].astype(str)).to_numpy()
    means = {label: y[train & (group == label)].mean(axis=0) for label in np.unique(group)}

    def error(predicted: np.ndarray) -> float:
        return np.square(predicted - y[~train]).sum() / np.square(y[~train] - y[train].mean(axis=0)).sum()

    def ridge(rows: np.ndarray) -> float:
        return error(Ridge(100).fit(x[rows], y[rows]).predict(x[~train]))

    by_label = error(np.array([means[label] for label in group[~train]]))
    every, ten = ridge(np.flatnonzero(train)), ridge(np.flatnonzero(train)[:10])
    assert every < 0.6 * by_label
    assert ten > by_label


@pytest.mark.parametrize(
    "kwargs",
    [{"n_obs": 0}, {"coassayed": 1.5}, {"dropout": -0.1}, {"n_peaks": 2}, {"rna_depth": 0}, {"n_types": 0}],
)
def test_arguments_out_of_range_are_refused(kwargs):
    with pytest.raises(ConfigError, match="simulate"):
        ct.datasets.simulate(**kwargs)


@pytest.mark.parametrize("kwargs", [{"n_types": 1}, {"n_programs": 1}, {"n_genes": 1}, {"n_peaks": 3}, {"n_obs": 2}])
def test_small_cases_work(kwargs):
    mdata = ct.datasets.simulate(**{"n_obs": 20, "n_genes": 4, "n_peaks": 6, **kwargs})
    assert all(np.isfinite(adata.layers["rate"]).all() for adata in mdata.mod.values())
