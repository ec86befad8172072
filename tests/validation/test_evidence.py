"""Claims from figures over seeds: borne out, contradicted, or not told."""

import numpy as np
import pandas as pd
import pytest
from celltransfer.validation import evidence


def test_interval_is_students_and_everything_for_one_value():
    mean, low, high = evidence.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - 2 == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)
    assert 2 - low == pytest.approx(high - 2)
    assert evidence.interval([1.0])[1:] == (-np.inf, np.inf)
    assert evidence.interval([np.nan, 1.0, 1.0]) == (1, 1, 1)


@pytest.mark.parametrize(("bound", "holds"), [(0.5, True), (2.0, None), (9.0, False)])
def test_above_and_below_are_opposites(bound, holds):
    values = [1.0, 2.0, 3.0, 2.0]
    assert evidence.above("", "figure", values, bound).holds is holds
    assert evidence.below("", "figure", values, bound).holds is (None if holds is None else not holds)


def test_lower_is_paired_over_common_seeds():
    rng = np.random.default_rng(0)
    seed = pd.Series(rng.normal(0, 10, 8))
    ours, theirs = seed + rng.normal(0, 0.1, 8), seed + 1 + rng.normal(0, 0.1, 8)
    assert evidence.lower("", "error", ours, theirs).holds is True
    assert evidence.lower("", "error", theirs, ours).holds is False
    assert evidence.lower("", "error", ours[:1], theirs).holds is None


def test_shares_need_enough_runs():
    assert evidence.rate_above("", "hit", [True] * 20, 0.75).holds is True
    assert evidence.rate_above("", "hit", [False] * 5, 0.75).holds is False
    assert evidence.rate_above("", "hit", [True] * 3, 0.75).holds is None
    assert evidence.rate_above("", "hit", [], 0.75).holds is None


def test_groups_are_separated_or_not():
    low, high = np.arange(5.0), np.arange(6.0, 11)
    assert evidence.separated("", "loss", low, high).holds is True
    assert evidence.separated("", "loss", low, high - 4).holds is False
    assert evidence.separated("", "loss", low[:1], high[:1]).holds is None
    assert evidence.separated("", "loss", low, []).holds is None
