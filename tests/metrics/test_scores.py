"""Scores against brute force, on cases small enough to count by hand."""

from __future__ import annotations

import time

import numpy as np
import pytest
import scipy.sparse as sp
from celltransfer.errors import ConfigError, InputError
from celltransfer.metrics import scores
from scipy.stats import pearsonr, spearmanr

METRICS = list(scores.METRICS)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def cells(rng):
    truth = rng.normal(size=(40, 5))
    return truth + rng.normal(size=truth.shape), truth


def cosine(a, b):
    norm = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / norm) if norm else 0.0


def brute_distances(query, candidates, metric):
    if metric == "euclidean":
        return np.array([[np.linalg.norm(q - c) for c in candidates] for q in query])
    if metric == "l1":
        return np.array([[np.abs(q - c).sum() for c in candidates] for q in query])
    similarity = np.array([[cosine(q, c) for c in candidates] for q in query])
    if metric == "cosine":
        return 1 - similarity
    nearest = np.sort(similarity, axis=0)[::-1][: scores.CSLS_NEIGHBOURS]
    return nearest.mean(axis=0) - 2 * similarity


def brute_foscttm(prediction, truth, metric):
    def direction(distance):
        n = len(distance)
        values = []
        for i in range(n):
            others = np.delete(distance[i], i)
            values.append(np.mean((others < distance[i, i] - 1e-9) + 0.5 * (np.abs(others - distance[i, i]) <= 1e-9)))
        return np.mean(values)

    return direction(brute_distances(prediction, truth, metric)), direction(brute_distances(truth, prediction, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_foscttm_is_the_brute_force_count(cells, metric):
    forward, backward = brute_foscttm(*cells, metric)
    result = scores.foscttm_directions(*cells, metric)
    assert result.source_to_target == pytest.approx(forward)
    assert result.target_to_source == pytest.approx(backward)
    assert result.overall == pytest.approx((forward + backward) / 2) == scores.foscttm(*cells, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_foscttm_counts_exact_ties_half(rng, metric):
    truth = rng.normal(size=(6, 3))[[0, 0, 0, 1, 2, 3, 3, 4, 5, 5]]
    prediction = rng.normal(size=(4, 3))[[0, 1, 1, 2, 3, 3, 0, 0, 2, 1]]
    assert scores.foscttm(prediction, truth, metric) == pytest.approx(np.mean(brute_foscttm(prediction, truth, metric)))


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "l1"])
def test_a_constant_prediction_is_chance_from_the_target_side(rng, metric):
    truth = rng.normal(size=(30, 4))
    result = scores.foscttm_directions(np.ones_like(truth), truth, metric)
    assert result.target_to_source == 0.5
    assert result.source_to_target == pytest.approx(0.5, abs=1e-12)


def test_predicting_nothing_is_chance_in_every_angular_score(rng):
    truth = rng.normal(size=(50, 4))
    nothing = np.zeros_like(truth)
    assert scores.foscttm(nothing, truth) == 0.5
    assert scores.knn_accuracy(nothing, truth, k=10) == pytest.approx(10 / 50)


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_do_not_change_anything(cells, metric, monkeypatch):
    labels = np.arange(40) % 3
    whole = [
        scores.foscttm_per_cell(*cells, metric).overall,
        scores.knn_accuracy_per_cell(*cells, 5, metric),
        scores.knn_accuracy_cmae_per_cell(*cells, 5, metric),
        scores.label_transfer_per_cell(*cells, labels, 5, metric),
    ]
    monkeypatch.setattr(scores, "BLOCK_BYTES", 8 * 40 * 7)
    np.testing.assert_array_equal(whole[0], scores.foscttm_per_cell(*cells, metric).overall)
    np.testing.assert_array_equal(whole[1], scores.knn_accuracy_per_cell(*cells, 5, metric))
    np.testing.assert_array_equal(whole[2], scores.knn_accuracy_cmae_per_cell(*cells, 5, metric))
    np.testing.assert_array_equal(whole[3], scores.label_transfer_per_cell(*cells, labels, 5, metric))


@pytest.mark.parametrize("metric", METRICS)
def test_order_of_cells_does_not_matter(cells, rng, metric):
    order = rng.permutation(40)
    shuffled = [side[order] for side in cells]
    np.testing.assert_allclose(
        scores.foscttm_per_cell(*cells, metric).overall[order], scores.foscttm_per_cell(*shuffled, metric).overall
    )
    np.testing.assert_array_equal(
        scores.knn_accuracy_per_cell(*cells, 3, metric)[order], scores.knn_accuracy_per_cell(*shuffled, 3, metric)
    )


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_prediction(cells, metric):
    truth = cells[1]
    assert scores.foscttm(truth, truth, metric) == (0.0 if metric != "csls" else pytest.approx(0, abs=0.02))
    assert scores.knn_accuracy(truth, truth, 1, metric) >= (1.0 if metric != "csls" else 0.9)
    assert scores.knn_accuracy_cmae(truth, truth, 1) == 1.0
    assert scores.mse(truth, truth) == 0.0
    np.testing.assert_allclose(scores.correlation_per_cell(truth, truth), 1)


def test_unrelated_cells_score_chance(rng):
    n, k = 400, 20
    a, b = rng.normal(size=(2, n, 6))
    for metric in METRICS:
        assert scores.foscttm(a, b, metric) == pytest.approx(0.5, abs=0.05)
        assert scores.knn_accuracy(a, b, k, metric) == pytest.approx(k / n, abs=0.04)
        assert scores.knn_accuracy_cmae(a, b, k, metric) == pytest.approx(k / n, abs=0.04)
    assert scores.classifier_auc(a, b) == pytest.approx(0.5, abs=0.06)


def test_knn_accuracy_is_the_brute_force_count(cells):
    distance = brute_distances(*cells, "cosine")
    nearest = np.argsort(distance, axis=1)[:, :7]
    assert scores.knn_accuracy(*cells, 7) == np.mean([i in nearest[i] for i in range(40)])


def test_knn_accuracy_breaks_ties_in_expectation():
    truth = np.array([[1.0], [1.0], [1.0], [5.0]])
    values = scores.knn_accuracy_per_cell(np.array([[1.0], [1.0], [1.0], [5.0]]), truth, 1, "euclidean")
    np.testing.assert_allclose(values, [1 / 3, 1 / 3, 1 / 3, 1])


def test_knn_accuracy_cmae_follows_yang_et_al(cells):
    prediction, truth = cells
    nearest = brute_distances(prediction, truth, "l1").argmin(axis=1)
    hood = np.argsort(brute_distances(truth, truth, "l1"), axis=1)[:, :6]
    assert scores.knn_accuracy_cmae(prediction, truth, 6) == np.mean([nearest[i] in hood[i] for i in range(40)])


def test_two_cells_and_one_cell():
    two = np.array([[0.0, 1.0], [1.0, 0.0]])
    assert scores.foscttm(two, two) == 0.0
    assert scores.foscttm(two[::-1], two) == 1.0
    assert scores.knn_accuracy(two[:1], two[:1]) == 1.0
    assert scores.label_transfer_accuracy(two, two, np.array(["a", "b"]), k=1) == 1.0
    with pytest.raises(InputError, match="at least 2"):
        scores.foscttm(two[:1], two[:1])
    with pytest.raises(InputError, match="at least 4"):
        scores.classifier_auc(two, two)


def test_within_groups_leaves_out_what_has_no_group(cells):
    groups = np.array(["a"] * 15 + ["b"] * 20 + ["alone"] + [None] * 4, dtype=object)
    values = scores.foscttm_within_per_cell(*cells, groups)
    inside = scores.foscttm_per_cell(cells[0][:15], cells[1][:15]).overall
    np.testing.assert_allclose(values[:15], inside)
    assert np.isnan(values[35:]).all()
    assert scores.foscttm_within(*cells, groups) == pytest.approx(values[:35].mean())
    assert np.isnan(scores.foscttm_within(*cells, np.arange(40)))


def test_within_groups_is_chance_when_only_the_group_is_known(rng):
    groups = np.repeat([0, 1], 50)
    truth = rng.normal(size=(100, 3)) + 6 * groups[:, None]
    prediction = truth[np.concatenate([rng.permutation(50), 50 + rng.permutation(50)])]
    assert scores.foscttm(prediction, truth, "euclidean") < 0.3
    assert scores.foscttm_within(prediction, truth, groups, "euclidean") == pytest.approx(0.5, abs=0.1)


def test_unknown_labels_neither_ask_nor_vote(rng):
    truth = np.concatenate([rng.normal(size=(10, 2)), rng.normal(size=(10, 2)) + 9])
    labels = np.array(["a"] * 8 + [np.nan, None] + ["b"] * 10, dtype=object)
    values = scores.label_transfer_per_cell(truth, truth, labels, metric="euclidean")
    assert np.isnan(values[[8, 9]]).all()
    assert scores.label_transfer_accuracy(truth, truth, labels, metric="euclidean") == 1.0
    assert np.isnan(scores.label_transfer_accuracy(truth, truth, np.full(20, np.nan)))


def test_label_votes_are_counted_and_ties_shared():
    truth = np.array([[0.0], [1.0], [2.0], [3.0]])
    labels = np.array(["a", "a", "b", "b"])
    values = scores.label_transfer_per_cell(truth, truth, labels, k=4, metric="euclidean")
    np.testing.assert_allclose(values, 0.5)


@pytest.mark.parametrize(("method", "peer"), [("pearson", pearsonr), ("spearman", spearmanr)])
def test_correlations_match_scipy(cells, method, peer):
    prediction, truth = (np.round(side, 1) for side in cells)
    expected = [peer(prediction[:, j], truth[:, j])[0] for j in range(5)]
    np.testing.assert_allclose(scores.correlation_per_feature(prediction, truth, method), expected)
    expected = [peer(prediction[i], truth[i])[0] for i in range(40)]
    np.testing.assert_allclose(scores.correlation_per_cell(prediction, truth, method), expected)


def test_correlation_of_what_does_not_vary_is_zero(cells):
    prediction, truth = (side.copy() for side in cells)
    prediction[:, 0], truth[:, 1], prediction[3] = 0.1, 7.3, 0.1
    assert scores.correlation_per_feature(prediction, truth)[1] == 0
    assert scores.correlation_per_cell(prediction, truth)[3] == 0
    prediction[:] = 0.1
    assert not scores.correlation_per_feature(prediction, truth).any()


def test_sparse_and_dense_agree(cells, monkeypatch):
    prediction, truth = (np.where(side > 0.5, side, 0) for side in cells)
    monkeypatch.setattr(scores, "BLOCK_BYTES", 700)
    sparse = sp.csr_matrix(truth)
    np.testing.assert_allclose(scores.mse_per_cell(prediction, sparse), ((prediction - truth) ** 2).mean(axis=1))
    for function in (scores.correlation_per_feature, scores.correlation_per_cell):
        np.testing.assert_allclose(function(prediction, sparse), function(prediction, truth))


def test_energy_distance_is_the_u_statistic(rng):
    x, y = rng.normal(size=(7, 2)), rng.normal(size=(9, 2)) + 1
    between = np.mean([np.linalg.norm(a - b) for a in x for b in y])
    within = [
        np.mean([np.linalg.norm(a - b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)
    ]
    assert scores.energy_distance(x, y) == pytest.approx(2 * between - sum(within))


def test_energy_distance_is_unbiased(rng):
    values = [scores.energy_distance(*rng.normal(size=(2, 30, 3))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)


def test_conditional_means_are_told_from_cells(rng):
    truth = rng.normal(size=(300, 5))
    assert scores.classifier_auc(0.5 * truth, truth) > 0.8
    assert scores.energy_distance(0.5 * truth, truth) > 0.1
    assert scores.foscttm(0.5 * truth, truth) == 0.0


def test_reference_share():
    assert scores.reference_share(0.3, chance=0.5, reference=0.1) == pytest.approx(0.5)
    assert np.isnan(scores.reference_share(0.3, chance=0.5, reference=0.5))


def test_wrong_input_is_named(cells):
    prediction, truth = cells
    with pytest.raises(InputError, match=r"\(39, 5\).*\(40, 5\)"):
        scores.foscttm(prediction[:-1], truth)
    broken = prediction.copy()
    broken[0, 0] = np.nan
    for function in (scores.foscttm, scores.knn_accuracy, scores.mse, scores.energy_distance, scores.classifier_auc):
        with pytest.raises(InputError, match="1 NaN"):
            function(broken, truth)
    with pytest.raises(ConfigError, match="manhattan"):
        scores.foscttm(prediction, truth, "manhattan")
    with pytest.raises(ConfigError, match="k=0"):
        scores.knn_accuracy(prediction, truth, 0)
    with pytest.raises(ConfigError, match="kendall"):
        scores.correlation_per_cell(prediction, truth, "kendall")
    with pytest.raises(InputError, match=r"expected \(40,\)"):
        scores.foscttm_within(prediction, truth, np.zeros(3))


def test_many_cells_in_bounded_memory(rng):
    import tracemalloc

    a, b = rng.normal(size=(2, 6000, 20))
    tracemalloc.start()
    start = time.perf_counter()
    scores.foscttm(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * scores.BLOCK_BYTES
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize("metric", scores.METRICS)
def test_both_directions_in_one_pass_are_the_two_passes(metric, monkeypatch):
    rng = np.random.default_rng(0)
    truth = np.round(rng.normal(size=(150, 4)), 1)
    prediction = np.repeat(truth[:50], 3, axis=0)
    prediction[7] = 0
    monkeypatch.setattr(scores, "BLOCK_BYTES", 8 * 150 * 37)
    forward, backward = scores.mutual_ranks(prediction, truth, metric)
    for found, expected in (
        (forward, scores.partner_ranks(prediction, truth, metric)),
        (backward, scores.partner_ranks(truth, prediction, metric)),
    ):
        np.testing.assert_array_equal(found.closer, expected.closer)
        np.testing.assert_array_equal(found.tied, expected.tied)
