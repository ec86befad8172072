"""The simple maps, McNemar's test, the autoencoder, the claims, and the suite on few steps."""

import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments.suites import digits_usps_mnist as suite
from celltransfer.experiments.suites import label
from celltransfer.experiments.suites.digits_usps_mnist import ARMS, Autoencoder, Digits, DigitsUspsMnist
from scipy.stats import binom


@pytest.fixture
def codes():
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 3)) * [1, 2, 0.5] + 1, rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3)) - 2


@pytest.mark.parametrize("name", [suite.CORAL, suite.MOMENTS])
def test_both_affine_maps_match_two_moments(codes, name):
    moved = suite.SIMPLE[name](*codes)
    np.testing.assert_allclose(moved.mean(0), codes[1].mean(0), atol=1e-8)
    np.testing.assert_allclose(np.cov(moved.T), np.cov(codes[1].T), rtol=0.05, atol=0.02)


def test_partners_are_the_cheapest_one_to_one(codes):
    rng = np.random.default_rng(1)
    target = codes[0] + 1e-3 * rng.normal(size=codes[0].shape)
    shuffled = rng.permutation(len(target))
    np.testing.assert_array_equal(suite.partners(codes[0], target[shuffled]), target)


def test_mcnemar_counts_disagreements_alone():
    one = np.array([True] * 15 + [False] * 5 + [True] * 100)
    other = np.array([False] * 15 + [True] * 5 + [True] * 100)
    assert suite.mcnemar(one, other) == pytest.approx(2 * binom.cdf(5, 20, 0.5))
    assert suite.mcnemar(one, one) == 1


def test_autoencoder_learns_and_codes_are_draws():
    pictures = np.sign(np.random.default_rng(0).normal(size=(8, 256))).astype(np.float32).repeat(20, axis=0)
    before, after = (suite.train_autoencoder(pictures, 0, steps) for steps in (1, 200))
    errors = [np.square(net.decode(net.encode(pictures, 0)) - pictures).mean() for net in (before, after)]
    assert errors[1] < 0.5 * errors[0]
    assert not np.allclose(after.encode(pictures, 0), after.encode(pictures, 1))
    assert isinstance(after, Autoencoder)


def rows(ours, theirs, loss, verdict):
    made = []
    for seed in range(3):
        row = {"seed": seed, "best_loss": loss + 0.01 * seed, "loss": loss, f"verdict: {suite.OURS}": verdict}
        row |= {f"accuracy: {arm}": theirs + 0.001 * seed for arm in ARMS} | {f"accuracy: {suite.OURS}": ours}
        row |= {f"p: {arm}": 1e-4 for arm in (suite.MOMENTS, suite.EMD, suite.CORAL, suite.NONE)}
        made.append(row | {f"auc: {suite.OURS}": 0.6})
    return pd.DataFrame(made)


def test_claims_can_hold_and_fail():
    assert [c.holds for c in DigitsUspsMnist().claims(rows(0.55, 0.47, 0.01, "aligned"))][:6] == [
        True,
        True,
        None,
        True,
        True,
        True,
    ]
    found = [c.holds for c in DigitsUspsMnist().claims(rows(0.4, 0.47, 2.0, "not aligned"))]
    # Three seeds do not tell a share of nothing from one half.
    assert found[:6] == [False, False, None, False, False, False]
    table = DigitsUspsMnist().table(rows(0.55, 0.47, 0.01, "aligned"))
    assert table.loc[suite.OURS, "paper"] == "0.55"
    assert table.loc["chance", "accuracy"] == "0.1"


def test_a_short_run(monkeypatch):
    rng = np.random.default_rng(0)

    def few(seed):
        shades, labels = rng.uniform(-1, 1, size=(3, 250, 256)).astype(np.float32), rng.integers(0, 10, (3, 250))
        return Digits(shades[0], labels[0], shades[1], labels[1], shades[2], labels[2])

    whole, trainer = suite.train_autoencoder, suite.Trainer
    monkeypatch.setattr(suite, "draw_digits", few)
    monkeypatch.setattr(suite, "train_autoencoder", lambda x, seed, steps: whole(x, seed, 20))
    monkeypatch.setattr(suite, "Trainer", lambda **limits: trainer(**limits | {"max_steps": 10, "check_every": 5}))
    scores, arrays = DigitsUspsMnist(device="cpu").run({"seed": 0})
    assert all(0 <= scores[f"accuracy: {arm}"] <= 1 for arm in ARMS)
    assert np.isfinite(scores["best_loss"])
    assert set(arrays) == {suite.NONE, *suite.METHODS}
    figure = DigitsUspsMnist().draw(pd.DataFrame(), {label({"seed": 0}): arrays})
    assert len(figure.axes) == 1 + len(suite.METHODS)
