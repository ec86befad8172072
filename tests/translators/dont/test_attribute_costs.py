"""Costs from an attribute."""

import numpy as np
import pytest
from celltransfer.errors import CelltransferWarning, InputError
from celltransfer.translators import cost_weights_from


def features(n=400, d=6, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_what_tells_the_attribute_is_cheap_and_nothing_else():
    x = features()
    np.testing.assert_array_equal(cost_weights_from(x, np.where(x[:, 2] > 0, "right", "left")), [1, 1, 0.01, 1, 1, 1])
    three = np.digitize(x[:, 4], [-0.5, 0.5])
    assert cost_weights_from(100 * x + 7, three, floor=0.2)[4] == 0.2


def test_missing_labels_are_left_out():
    x = features()
    labels = np.where(x[:, 1] > 0, "a", "b").astype(object)
    labels[::3] = None
    assert cost_weights_from(x, labels)[1] == 0.01


def test_a_rare_value_is_left_out():
    x = features()
    labels = np.where(x[:, 1] > 0, "a", "b").astype(object)
    labels[:2] = "rare"
    assert cost_weights_from(x, labels)[1] == 0.01


def test_what_nothing_tells_leaves_all_alike():
    rng = np.random.default_rng(1)
    with pytest.warns(CelltransferWarning, match="all alike"):
        weights = cost_weights_from(features(), rng.random(400) < 0.1)
    np.testing.assert_array_equal(weights, 1)


@pytest.mark.parametrize(
    ("labels", "floor", "match"),
    [(np.zeros(400), 0.01, "1 values"), (np.arange(400), 0.01, "0 of them in 3 or more"), (np.zeros(3), 0.01, "shape"),
     (np.arange(400) % 2, 0.0, "above 0")],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(labels, floor, match):
    with pytest.raises(InputError, match=match):
        cost_weights_from(features(), labels, floor=floor)
