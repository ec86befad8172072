"""The verdict: right on maps that are known to be right, wrong, or undecidable."""

import numpy as np
import pytest
from celltransfer import translators
from celltransfer.data.pair import ModalityPair
from celltransfer.metrics.scores import foscttm
from celltransfer.metrics.space import centred
from celltransfer.train.outcome import FitResult, Status
from celltransfer.verdict import evidence
from celltransfer.verdict.evidence import Readout, held_out_ranks, judge


def linear_pair(k, noise=0.3, n=400, seed=0):
    """Target = rotation of the source plus noise; disjoint cells, k anchors."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    cells = rng.normal(size=(2 * n + k, 6)) * np.array([3, 2, 1.5, 1, 1, 1])
    partner = cells @ rotation + noise * rng.normal(size=cells.shape)
    x, y = np.vstack([cells[:k], cells[k : k + n]]), np.vstack([partner[:k], partner[k + n :]])
    return ModalityPair(x, y, np.column_stack([np.arange(k), np.arange(k)]))


def refit_with(name):
    return lambda pair, fold: translators.make(name).fit_pair(pair, seed=fold)


def test_a_right_map_is_identified():
    pair = linear_pair(40)
    verdict = judge(translators.make("ridge").fit_pair(pair), pair, refit_with("ridge"))
    assert verdict.level == "identified"
    assert verdict.evidence["foscttm_high"] < 0.35
    assert verdict.evidence["held_out_anchors"] == 40


def test_a_random_map_has_failed():
    pair = linear_pair(80)
    verdict = judge(translators.make("chance").fit_pair(pair), pair, refit_with("chance"))
    assert verdict.level == "failed"
    assert "Do not use this translation" in verdict.reasons[-1]


@pytest.mark.parametrize("k", [0, 1, 2])
def test_few_anchors_do_not_identify_a_symmetric_law(k):
    """Cells of `linear_pair` are Gaussian: matching them leaves every turn open."""
    pair = linear_pair(k)
    name = "fgw" if k == 0 else "ridge"
    verdict = judge(translators.make(name).fit_pair(pair), pair, refit_with(name))
    assert verdict.level != "identified"
    assert "cannot be cross-validated" in verdict.reasons[0]
    assert verdict.evidence["held_out_anchors"] == 0
    assert 0 < verdict.evidence["foscttm_low"] < verdict.evidence["foscttm_high"] < 1


def test_a_diverged_fit_has_failed_whatever_its_anchors_say():
    pair = linear_pair(40)
    fitted = translators.make("ridge").fit_pair(pair)
    fitted.result_ = FitResult(Status.DIVERGED)
    assert judge(fitted, pair, refit_with("ridge")).level == "failed"


def test_a_translation_with_nan_has_failed():
    pair = linear_pair(40)
    fitted = translators.make("ridge").fit_pair(pair)
    fitted.arrays_["offset"][:] = np.nan
    assert judge(fitted, pair, refit_with("ridge")).level == "failed"


@pytest.mark.parametrize("k", [10, 50])
def test_ranks_of_a_map_without_information_average_one_half(k):
    means = [
        held_out_ranks(linear_pair(k, seed=s), refit_with("chance"), np.random.default_rng(s))[:, 0].mean()
        for s in range(20)
    ]
    assert abs(np.mean(means) - 0.5) < 4 * 0.29 / np.sqrt(20 * k)


def test_estimate_agrees_with_the_truth_it_cannot_see():
    """Left-out anchors estimate the FOSCTTM of cells whose pairing is hidden."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    cells = rng.normal(size=(900, 6)) * np.array([3, 2, 1.5, 1, 1, 1])
    partner = cells @ rotation + 1.5 * rng.normal(size=cells.shape)
    anchors = np.column_stack([np.arange(100), np.arange(100)])
    pair = ModalityPair(np.vstack([cells[:100], cells[100:400]]), np.vstack([partner[:100], partner[400:700]]), anchors)
    fitted = translators.make("ridge").fit_pair(pair)
    verdict = judge(fitted, pair, refit_with("ridge"))
    truth = foscttm(fitted.translate(cells[700:]), partner[700:])
    assert verdict.evidence["foscttm_low"] - 0.02 < truth < verdict.evidence["foscttm_high"] + 0.02


def test_a_constant_map_is_chance_not_perfect():
    """Ties count half: a map that sends every cell to one place must not win by ties."""
    pair = linear_pair(60)
    verdict = judge(translators.make("condition_mean").fit_pair(pair), pair, refit_with("condition_mean"))
    assert verdict.level != "identified"
    assert abs(verdict.evidence["foscttm_estimate"] - 0.5) < 0.15


def noise_pair(k, seed):
    """Modalities without any relation."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(200, 6)), rng.normal(size=(200, 6))
    return ModalityPair(x, y, np.column_stack([np.arange(k), np.arange(k)]))


@pytest.mark.parametrize("k", [3, 5])
def test_noise_is_not_identified_however_few_the_anchors(k):
    levels = [
        judge(translators.make("ridge").fit_pair(pair), pair, refit_with("ridge"), max_folds=20).level
        for pair in (noise_pair(k, seed) for seed in range(10))
    ]
    assert "identified" not in levels


@pytest.mark.parametrize(("k", "noise"), [(3, 1.0), (10, 1.0)])
def test_intervals_hold_the_truth_with_few_anchors(k, noise):
    held = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
        cells = rng.normal(size=(900, 6)) * np.array([3, 2, 1.5, 1, 1, 1])
        partner = cells @ rotation + noise * rng.normal(size=cells.shape)
        x, y = np.vstack([cells[:k], cells[100:400]]), np.vstack([partner[:k], partner[400:700]])
        pair = ModalityPair(x, y, np.column_stack([np.arange(k), np.arange(k)]))
        fitted = translators.make("ridge").fit_pair(pair)
        evidence = judge(fitted, pair, refit_with("ridge")).evidence
        space = Readout.of_features(pair)
        truth = foscttm(centred(space.place(fitted.translate(cells[700:]))), space.place(partner[700:]))
        held.append(evidence["foscttm_low"] <= truth <= evidence["foscttm_high"])
    assert sum(held) >= 3


def test_the_mean_of_a_condition_is_not_a_translation():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 600)
    shift = rng.normal(size=(3, 6)) * 4
    x, y = rng.normal(size=(600, 6)), rng.normal(size=(600, 6)) + shift[codes]
    anchors = np.column_stack([np.arange(60), np.arange(60)])
    pair = ModalityPair(x, y, anchors, codes, codes, conditions=("a", "b", "c"))
    verdict = judge(translators.make("condition_mean").fit_pair(pair), pair, refit_with("condition_mean"))
    assert verdict.evidence["foscttm_high"] < 0.35
    assert verdict.level == "ambiguous"
    assert "condition alone" in verdict.reasons[-1]


def test_the_origin_of_the_target_does_not_matter():
    pair = linear_pair(40)
    moved = ModalityPair(pair.x, pair.y + 100, pair.anchors)
    estimates = [
        judge(translators.make("ridge").fit_pair(p), p, refit_with("ridge")).evidence["foscttm_estimate"]
        for p in (pair, moved)
    ]
    assert estimates[0] == pytest.approx(estimates[1], abs=0.01)


def test_a_condition_without_other_cells_says_nothing():
    """Anchors may be all that there is of their condition; that is no perfect rank."""
    similarity, near = np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([[0.5], [0.5]])
    among = np.array([[True, True], [False, False]])
    np.testing.assert_array_equal(evidence._share_nearer(similarity, near, among), [0.5, np.nan])
    ranks = np.column_stack([np.full(4, 0.2), [0.1, np.nan, np.nan, np.nan], np.full(4, 0.2)])
    assert "held_out_rank_within_condition" not in evidence._summary(ranks, 100)


@pytest.mark.parametrize(("n", "k"), [(8, 8), (20, 20), (40, 38)])
def test_noise_is_not_identified_where_the_components_were_fitted_to_the_anchors(n, k):
    rng = np.random.default_rng(n)

    def components():
        """Centred principal components, of which there are as many as cells allow."""
        values = rng.normal(size=(n, 60))
        left, lengths, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
        return (left * lengths)[:, : n - 1]

    pair = ModalityPair(components(), components(), np.column_stack([np.arange(k)] * 2))
    verdict = judge(translators.make("ridge").fit_pair(pair), pair, refit_with("ridge"), max_folds=20)
    assert verdict.level != "identified"
    assert verdict.evidence["held_out_anchors"] == 0
    assert "none is new when left out" in verdict.reasons[0]
