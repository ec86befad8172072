"""Ranks of partners among the target cells."""

import numpy as np
import pytest
from celltransfer.translators.left_out import partner_ranks


def test_ranks_are_shares_of_the_other_cells():
    angle = np.linspace(0, 1.5, 6)
    y = np.column_stack([np.cos(angle), np.sin(angle)])
    y = np.concatenate([y, -y])  # of mean zero
    np.testing.assert_allclose(partner_ranks(y[:1], y, np.array([0])), [0.0])
    np.testing.assert_allclose(partner_ranks(y[:1], y, np.array([6])), [1.0])
    np.testing.assert_allclose(partner_ranks(y[:1], y, np.array([2])), [2 / 11])


@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_prediction_that_says_nothing_is_at_chance(n):
    y = np.random.default_rng(0).normal(size=(n, 3))
    constant = np.tile(y.mean(axis=0), (n, 1))
    ranks = partner_ranks(constant, y, np.arange(n))
    np.testing.assert_allclose(ranks, 0.5 if n > 1 else 0.0)
