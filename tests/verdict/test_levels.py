"""Levels of the verdict on maps whose standing is known: open where laws are symmetric, settled where they are not."""

import numpy as np
import pytest
from celltransfer import translators
from celltransfer.data.pair import ModalityPair
from celltransfer.verdict.estimate import FITTED, conclude, estimate
from celltransfer.verdict.evidence import judge


def isotropic(n, rng):
    return rng.normal(size=(n, 4))


def mirrored(n, rng):
    cells = 0.5 * rng.normal(size=(n, 3))
    cells[:, 0] += 3 * rng.choice([-1, 1], n)
    return cells


def independent(n, rng):
    """Turns leave this law as it is once its coordinates are made Gaussian."""
    two = np.where(rng.random(n) < 0.3, 2.0, -0.86) + 0.2 * rng.normal(size=n)
    return np.column_stack([rng.exponential(size=n) - 1, rng.uniform(-1.7, 1.7, n), two])


def lopsided(n, rng):
    centres = np.array([[0, 0, 0, 0], [4, 0, 0, 0], [0, 3, 0, 0], [1, 1, 5, 0], [2, -3, 1, 2.0]])
    share = np.array([0.35, 0.25, 0.2, 0.12, 0.08])
    return centres[rng.choice(5, n, p=share)] + 0.6 * rng.normal(size=(n, 4))


def verdict_on_the_right_map(draw, k, where=None, n=400, seed=0):
    """Judge the right map as if it had been found from k anchors and the laws alone; refits find it again.

    `where` says which cells can be anchors.
    """
    rng = np.random.default_rng(seed)
    cells = draw(2 * n, rng)
    rotation = np.linalg.qr(rng.normal(size=(cells.shape[1],) * 2))[0]
    partner = cells @ rotation + 0.1 * rng.normal(size=cells.shape)
    both = np.column_stack([np.arange(2 * n)] * 2)
    right = translators.make("ridge").fit_pair(ModalityPair(cells, partner, both))
    can = np.arange(n) if where is None else np.flatnonzero(where(cells[:n]))
    ends = can[:k]
    x, y = cells[:n], np.vstack([partner[n:], partner[ends]])
    pair = ModalityPair(x, y, np.column_stack([ends, n + np.arange(k)]))
    return judge(right, pair, lambda pair, fold: right)


@pytest.mark.parametrize("draw", [isotropic, mirrored, independent])
def test_symmetric_laws_are_ambiguous_without_anchors(draw):
    verdict = verdict_on_the_right_map(draw, 0)
    assert verdict.level == "ambiguous"
    assert "Another map" in " ".join(verdict.reasons)
    assert verdict.evidence["twin_disagreement"] > 0.25


def test_anchors_that_lie_on_the_mirror_break_no_symmetry():
    """Two anchors in the middle between two mirror-image clusters fit either way; two in a cluster do not."""

    def dumbbell(n, rng):
        cells = 0.5 * rng.normal(size=(n, 2))
        cells[:, 0] += np.where(rng.random(n) < 0.1, 0, 4 * rng.choice([-1, 1], n))
        return cells

    middle = verdict_on_the_right_map(dumbbell, 2, lambda cells: np.linalg.norm(cells, axis=1) < 0.15)
    apart = verdict_on_the_right_map(dumbbell, 2, lambda cells: (np.abs(cells) > [3, 0.5]).all(axis=1))
    assert middle.level == "ambiguous"
    assert middle.evidence["twin_disagreement"] > 0.25 > apart.evidence["twin_disagreement"]


@pytest.mark.parametrize("k", [3, 10, 50])
def test_a_right_map_of_a_lopsided_law_is_identified(k):
    verdict = verdict_on_the_right_map(lopsided, k)
    assert verdict.level == "identified"
    assert verdict.evidence["twin_high"] < 0.1
    assert verdict.evidence["foscttm_estimate"] < 0.2


@pytest.mark.parametrize("draw", [isotropic, mirrored, independent])
def test_enough_anchors_identify_a_symmetric_law_too(draw):
    assert verdict_on_the_right_map(draw, 30).level == "identified"


def test_nothing_is_identified_without_an_anchor():
    verdict = verdict_on_the_right_map(lopsided, 0)
    assert verdict.level == "ambiguous"
    assert "Without any anchor" in verdict.reasons[-1]


def figures(k, rank=0.1, expected=0.1, twin=0.0, near=0.3):
    """Evidence with k left-out anchors."""
    left_out = {"held_out_rank": rank, "held_out_sd": 0.15, "held_out_near@10": near, "held_out_near@50": 2 * near}
    evidence = {"n_anchors": float(k), "held_out_anchors": float(k), "reference_cells": 1000.0}
    return (
        evidence
        | (left_out if k >= 3 else {"held_out_anchors": 0.0})
        | {
            "self_rank": expected,
            "twin_disagreement": twin,
        }
    )


def width(found, name="foscttm"):
    return found[f"{name}_high"] - found[f"{name}_low"]


def test_intervals_narrow_with_anchors_and_hold_the_estimate():
    found = [estimate(figures(k)) for k in (1, 30, 100, 1000)]
    for name in ("foscttm", "knn_accuracy"):
        assert all(f[f"{name}_low"] <= f[f"{name}_estimate"] <= f[f"{name}_high"] for f in found)
        assert all(0 <= f[f"{name}_low"] and f[f"{name}_high"] <= 1 for f in found)
    assert [width(f) for f in found] == sorted((width(f) for f in found), reverse=True)
    assert width(found[-1]) > 2 * 1.96 * 0.5 * FITTED.error[-1]  # what left-out anchors cannot see stays


def test_left_out_anchors_outweigh_what_the_fit_expects_of_itself():
    few, many = (estimate(figures(k, rank=0.5, expected=0.05))["foscttm_estimate"] for k in (3, 100))
    assert few < many
    assert many > 0.4


def test_knn_accuracy_follows_foscttm_and_the_anchors():
    good, bad = (estimate(figures(1, expected=e)) for e in (0.05, 0.5))
    assert good["knn_accuracy_estimate"] > 3 * bad["knn_accuracy_estimate"]
    assert bad["knn_accuracy_estimate"] == pytest.approx(0.01, abs=0.01)
    assert good["knn_accuracy_estimate@50"] > good["knn_accuracy_estimate"]
    hit, missed = (estimate(figures(100, near=near))["knn_accuracy_estimate"] for near in (0.4, 0.0))
    assert hit > missed


@pytest.mark.parametrize(
    ("evidence", "level"),
    [
        (figures(50, rank=0.1), "identified"),
        (figures(50, rank=0.33, expected=0.3), "ambiguous"),
        (figures(50, rank=0.5, expected=0.5), "failed"),
        (figures(1, expected=0.02, twin=0.0), "ambiguous"),
        (figures(1, expected=0.02, twin=0.4), "ambiguous"),
        (figures(50, rank=0.1, twin=0.4), "identified"),
        (figures(1, expected=0.3), "ambiguous"),
    ],
)
def test_levels_follow_the_figures(evidence, level):
    found, reasons = conclude(evidence | estimate(evidence))
    assert found == level
    assert all(reason.endswith(".") for reason in reasons)
