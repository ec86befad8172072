from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from celltransfer.errors import FeatureError, InputError
from celltransfer.metrics.space import ScoringSpace


@pytest.fixture
def train():
    rng = np.random.default_rng(0)
    return np.abs(rng.normal(size=(120, 4)) @ rng.normal(size=(4, 90)) + 0.1 * rng.normal(size=(120, 90)))


def test_training_cells_are_standardised(train):
    points = ScoringSpace.fit(train, 6).transform(train)
    assert points.shape == (120, 6)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(points.std(axis=0), 1)


def test_sparse_and_dense_span_one_space(train):
    a, b = ScoringSpace.fit(train, 5), ScoringSpace.fit(sp.csr_matrix(train), 5)
    exact = np.linalg.svd(train, full_matrices=False)[2][:5].T
    for space in (a, b):
        np.testing.assert_allclose(np.abs(np.diag(space.directions.T @ exact)), 1, atol=1e-6)
    np.testing.assert_allclose(np.abs(a.transform(train)), np.abs(b.transform(sp.csr_matrix(train))), atol=1e-6)


def test_same_seed_same_space(train):
    np.testing.assert_array_equal(ScoringSpace.fit(train, 5).directions, ScoringSpace.fit(train, 5).directions)


def test_predictions_are_centred_but_never_rescaled(train):
    space = ScoringSpace.fit(train, 4)
    truth = space.transform(train)
    narrow = space.transform_prediction(3 + 0.1 * train)
    np.testing.assert_allclose(narrow, 0.1 * truth, atol=1e-9)


def test_missing_features_are_their_training_mean(train):
    space = ScoringSpace.fit(train, 4)
    given = np.array([7, 2, 30, 55])
    filled = np.tile(train.mean(axis=0), (120, 1))
    filled[:, given] = train[:, given]
    np.testing.assert_allclose(
        space.transform_prediction(train[:, given], given), space.transform_prediction(filled), atol=1e-9
    )


def test_fewer_dimensions_where_cells_vary_along_fewer():
    values = np.random.default_rng(1).normal(size=(50, 3)) @ np.ones((3, 8))
    assert ScoringSpace.fit(values, 20).n_components == 1


def test_wrong_input_is_named(train):
    space = ScoringSpace.fit(train, 4)
    with pytest.raises(FeatureError, match="89 features"):
        space.transform(train[:, 1:])
    with pytest.raises(InputError, match="all training cells|All training cells"):
        ScoringSpace.fit(np.ones((5, 4)))
    with pytest.raises(InputError, match="NaN"):
        space.transform_prediction(np.full((2, 90), np.nan))
