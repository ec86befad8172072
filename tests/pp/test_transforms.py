"""The steps agree with scanpy, muon and Signac, and can be undone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from celltransfer.errors import ModalityError
from celltransfer.pp.transforms import CLR, SVD, LogNormalize, Standardize, TfIdf, moments, totals
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

COUNTS = arrays(np.float32, st.tuples(st.integers(2, 12), st.integers(2, 9)), elements=st.integers(0, 40).map(float))


def poisson(n=60, p=40, rate=0.8, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.poisson(rate * rng.gamma(2.0, 0.5, (n, 1)) * rng.gamma(1.0, 1.0, p)).astype(np.float32)
    x[0], x[:, 0] = 0, 0
    return x


def full(x):
    return x.toarray() if sp.issparse(x) else np.asarray(x)


@pytest.mark.parametrize(
    "normalizer", [LogNormalize(), TfIdf(), TfIdf("signac"), TfIdf(binarize=True), CLR(), CLR("feature")]
)
def test_sparse_and_dense_agree(normalizer):
    x = poisson()
    from_dense = normalizer.fit(x).transform(x)
    from_sparse = normalizer.fit(sp.csr_matrix(x)).transform(sp.csr_matrix(x))
    assert sp.issparse(from_sparse)
    np.testing.assert_allclose(from_sparse.toarray(), from_dense, rtol=1e-5)
    assert np.isfinite(from_dense).all()
    assert not from_dense[0].any(), "a cell without counts stays 0"


def test_log_normalize_is_scanpys():
    sc = pytest.importorskip("scanpy")
    x = poisson()
    theirs = AnnData(sp.csr_matrix(x))
    sc.pp.normalize_total(theirs, target_sum=1e4)
    sc.pp.log1p(theirs)
    np.testing.assert_allclose(LogNormalize().fit(x).transform(x), theirs.X.toarray(), rtol=1e-5)


def test_tfidf_is_muons():
    mu = pytest.importorskip("muon")
    x = poisson()[1:, 1:]
    theirs = AnnData(sp.csr_matrix(x))
    with np.errstate(divide="ignore"):
        mu.atac.pp.tfidf(theirs)
    np.testing.assert_allclose(TfIdf().fit(x).transform(x), full(theirs.X), rtol=1e-5)


def test_tfidf_is_signacs_method_1():
    x = poisson()[1:, 1:].astype(np.float64)
    x = x[:, x.sum(axis=0) > 0]
    expected = np.log1p(x / x.sum(axis=1, keepdims=True) * (len(x) / x.sum(axis=0)) * 1e4)
    np.testing.assert_allclose(TfIdf("signac").fit(x).transform(x), expected, rtol=1e-5)


def test_idf_comes_from_training_cells():
    x = poisson()
    fitted = TfIdf().fit(x[:30])
    expected = np.log1p(1e4 * x[50] / x[50].sum()) * np.log1p(30 / np.maximum(x[:30].sum(axis=0), 1e-30))
    expected[x[:30].sum(axis=0) == 0] = 0
    np.testing.assert_allclose(fitted.transform(x[50:51])[0], expected, rtol=1e-5)


@pytest.mark.parametrize(("axis", "theirs_axis"), [("cell", 1), ("feature", 0)])
@pytest.mark.parametrize("make", [np.array, sp.csr_matrix])
def test_clr_is_muons(axis, theirs_axis, make):
    mu = pytest.importorskip("muon")
    x = poisson(rate=5)
    theirs = AnnData(x.copy())
    mu.prot.pp.clr(theirs, axis=theirs_axis)
    ours = CLR(axis).fit(make(x)).transform(make(x))
    np.testing.assert_allclose(full(ours), theirs.X, rtol=1e-5)


def test_feature_clr_uses_means_of_training_cells():
    x = poisson(rate=5)
    np.testing.assert_allclose(
        CLR("feature").fit(x[:20]).transform(x[20:]),
        np.log1p(x[20:] / np.exp(np.log1p(x[:20]).mean(axis=0))),
        rtol=1e-5,
    )


@pytest.mark.parametrize("normalizer", [LogNormalize(), TfIdf(), TfIdf("signac")])
def test_counts_of_a_cell_of_median_depth_come_back(normalizer):
    x = poisson(61)[1:]
    kept = np.flatnonzero(x.sum(axis=0))
    y = normalizer.fit(x).transform(x)
    back = normalizer.to_counts(y[:, kept], kept)
    depth = totals(x)
    np.testing.assert_allclose(back * (depth / np.median(depth))[:, None], x[:, kept], rtol=1e-3, atol=1e-4)


def test_counts_are_bounded_by_the_depth_of_a_cell():
    x = poisson()
    for normalizer in (LogNormalize(), TfIdf(), TfIdf("signac")):
        back = normalizer.fit(x).to_counts(np.full((1, 39), 1e4, np.float32), np.arange(1, 40))
        assert np.isfinite(back).all()
        assert back.max() <= normalizer.median_depth * 1.001


def test_counts_from_clr():
    x = poisson(rate=5)
    by_feature = CLR("feature").fit(x)
    np.testing.assert_allclose(by_feature.to_counts(by_feature.transform(x), np.arange(40)), x, rtol=1e-3, atol=1e-3)
    by_cell = CLR("cell").fit(x)
    mean = np.exp(np.log1p(x).mean(axis=1, keepdims=True))
    expected = x / mean * np.median(mean)
    np.testing.assert_allclose(by_cell.to_counts(by_cell.transform(x), np.arange(40)), expected, rtol=1e-3, atol=1e-3)


@given(COUNTS)
@settings(deadline=None, max_examples=60)
def test_normalised_counts_are_finite_and_not_negative(x):
    for normalizer in (LogNormalize(), TfIdf(), TfIdf("signac"), CLR(), CLR("feature")):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            y = normalizer.fit(x).transform(x)
        assert np.isfinite(y).all()
        assert (y >= 0).all()


@given(COUNTS)
@settings(deadline=None, max_examples=60)
def test_moments_of_sparse_and_dense_agree(x):
    dense, sparse = moments(x), moments(sp.csr_matrix(x))
    np.testing.assert_allclose(dense, sparse, rtol=1e-5, atol=1e-6)
    assert np.array_equal(dense[1] == 0, np.ptp(x, axis=0) == 0)


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("shape", [(80, 30), (30, 80)])
def test_svd_is_pca(scale, shape):
    from sklearn.decomposition import PCA

    y = np.log1p(poisson(*shape))
    depth = totals(y)
    deviation = np.maximum(y.std(axis=0), 1e-30) if scale else 1
    theirs = PCA(4, svd_solver="full").fit_transform(y.astype(np.float64) / deviation)
    ours = SVD(4, scale=scale).fit(sp.csr_matrix(y), depth).transform(sp.csr_matrix(y))
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-3, atol=1e-4)


def test_svd_without_centre_is_truncated_svd():
    y = np.log1p(poisson(90, 50))
    _, values, _ = np.linalg.svd(y)
    z = SVD(5, center=False).fit(sp.csr_matrix(y), totals(y)).transform(sp.csr_matrix(y))
    np.testing.assert_allclose(np.linalg.norm(z, axis=0), values[:5], rtol=1e-4)


@pytest.mark.parametrize("make", [np.array, sp.csr_matrix])
@pytest.mark.parametrize("options", [{}, {"scale": True}, {"center": False}, {"center": False, "depth_threshold": 0.3}])
def test_svd_of_its_inverse_is_the_identity(options, make):
    y = make(np.log1p(poisson(90, 50)))
    svd = SVD(6, **options).fit(y, totals(y))
    z = np.random.default_rng(1).normal(size=(7, len(svd.components))).astype(np.float32)
    np.testing.assert_allclose(svd.transform(svd.inverse(z)), z, atol=1e-4)


def test_svd_with_all_components_loses_nothing():
    y = np.log1p(poisson(90, 12))
    svd = SVD(12).fit(y, totals(y))
    np.testing.assert_allclose(svd.inverse(svd.transform(y)), y, atol=1e-5)


def test_svd_is_deterministic_and_leaves_the_global_generator_alone():
    y = sp.csr_matrix(np.log1p(poisson(200, 90)))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (SVD(10, seed=3).fit(y, totals(y)) for _ in range(2))
    assert np.array_equal(first.components, second.components)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002
    largest = np.abs(first.components).argmax(axis=1)
    assert (first.components[np.arange(10), largest] > 0).all()


def test_depth_component_is_left_out_and_stands_at_its_mean_in_the_inverse():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, 300)
    profile, other = np.ones(40), rng.normal(size=40)
    y = (np.log(depth)[:, None] * profile + 0.3 * rng.normal(size=(300, 1)) * other + 3).astype(np.float32)
    svd = SVD(2, center=False, depth_threshold=0.75).fit(y, depth)
    assert svd.dropped.tolist() == [0]
    assert abs(svd.depth_correlation[0]) > 0.95
    np.testing.assert_allclose(svd.inverse(svd.transform(y)).mean(axis=0), y.mean(axis=0), atol=0.05)
    assert SVD(2, center=False).fit(y, depth).dropped.size == 0


def test_one_component_is_always_kept():
    depth = np.arange(1.0, 51.0)
    y = (np.log(depth)[:, None] * np.arange(1, 11)).astype(np.float32)
    svd = SVD(5, center=False, depth_threshold=0.5).fit(y, depth)
    assert len(svd.components) == 1


@pytest.mark.parametrize("shape", [(6, 5), (300, 120)])
def test_cells_that_are_all_the_same_have_no_components(shape):
    y = sp.csr_matrix(np.ones(shape, np.float32))
    with pytest.raises(ModalityError, match="the same"):
        SVD(3).fit(y, totals(y))
    assert len(SVD(3, center=False).fit(y, totals(y)).components) == 1


def test_components_without_variance_are_not_made_up():
    rng = np.random.default_rng(0)
    y = (rng.normal(size=(50, 2)) @ rng.normal(size=(2, 20))).astype(np.float32)
    assert len(SVD(10).fit(y, np.ones(50)).components) == 2
    sparse = sp.csr_matrix(np.tile(y, (4, 8)))
    assert len(SVD(10).fit(sparse, np.ones(200)).components) == 2


def test_weak_components_survive_any_number_of_cells(caplog):
    rng = np.random.default_rng(0)
    y = (rng.normal(size=(50, 4)) * [1.0, 0.1, 1e-3, 0.0]).astype(np.float32)
    many = np.tile(y, (20_000, 1))  # a million cells
    with caplog.at_level("INFO", logger="celltransfer"):
        assert len(SVD(4).fit(y, np.ones(50)).components) == 3
        assert len(SVD(4).fit(many, np.ones(len(many))).components) == 3
    assert caplog.text.count("1 of 4 components are zero up to rounding") == 2


@pytest.mark.parametrize("make", [np.array, sp.csr_matrix])
def test_standardize(make):
    y = poisson(50, 8)
    step = Standardize().fit(make(y), totals(y))
    z = step.transform(make(y))
    np.testing.assert_allclose(z[:, 1:].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(z[:, 1:].std(axis=0), 1, atol=1e-5)
    assert not z[:, 0].any(), "a constant feature is centred and not divided"
    np.testing.assert_allclose(step.inverse(z), y, atol=1e-5)


def test_scaling_without_centre_stays_sparse():
    y = sp.csr_matrix(poisson(50, 8))
    step = Standardize(center=False).fit(y, totals(y))
    z = step.transform(y)
    assert sp.issparse(z)
    np.testing.assert_allclose(step.inverse(z.toarray()), y.toarray(), rtol=1e-5)
