"""Candidates added with weights that left-out anchors choose."""

import json

import numpy as np
import pytest
from celltransfer.errors import ConfigError
from celltransfer.metrics.scores import foscttm
from celltransfer.train import Status, Trainer
from celltransfer.translators import make
from celltransfer.translators.baselines import Ridge
from celltransfer.translators.stacking import FOLDS, PRIOR_ANCHORS, _tried, stack

QUICK = ["ridge", "pls"]
TURN = np.linalg.qr(np.random.default_rng(9).normal(size=(5, 5)))[0][:4]


def cells(k, n=200, m=180, seed=0, noise=0.0):
    """Unpaired cells of two modalities that are images of one another, the first k of them co-assayed."""
    rng = np.random.default_rng(seed)
    x, latent = (rng.gamma(np.array([0.3, 0.6, 1.0, 2.0]), size=(size, 4)) for size in (n, m))
    latent[:k] = x[:k]
    y = latent @ TURN + noise * rng.normal(size=(m, 5))
    return x.astype(np.float32), y.astype(np.float32), np.column_stack([np.arange(k)] * 2)


@pytest.fixture(scope="module")
def fitted():
    data = cells(7, n=120, m=110)
    return make("auto").fit(*data), data


def predictions(k, seed=0, shares=(0.9, 0.2)):
    """What candidates make of k anchors, each a share of the truth and noise; and the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(k, 3))
    return np.array([share * truth + (1 - share) * rng.normal(size=truth.shape) for share in shares]), truth


def test_weights_are_the_closed_form_where_it_is_positive():
    made, truth = predictions(40)
    prior = np.array([0.5, 0.5])
    size = np.mean(np.sum(truth**2, axis=1))
    columns = made.reshape(2, -1)
    gram, answer = columns @ columns.T / size, columns @ truth.ravel() / size
    expected = np.linalg.solve(gram + PRIOR_ANCHORS * np.eye(2), answer + PRIOR_ANCHORS * prior)
    assert (expected > 0).all()
    np.testing.assert_allclose(stack(made, truth, prior), expected, rtol=1e-6)


def test_weights_do_not_depend_on_the_scale_of_the_target():
    made, truth = predictions(10)
    prior = np.array([0.7, 0.3])
    np.testing.assert_allclose(stack(1e4 * made, 1e4 * truth, prior), stack(made, truth, prior), rtol=1e-6)


def test_anchors_that_say_nothing_leave_the_prior():
    prior = np.array([0.2, 0.8])
    np.testing.assert_allclose(stack(np.zeros((2, 9, 3)), predictions(9)[1], prior), prior)


def test_weights_go_from_the_prior_to_the_best_candidate_with_the_anchors():
    prior = np.array([0.0, 1.0])
    good = [stack(*predictions(k, shares=(1.0, 0.0)), prior) for k in (1, 10, 1000)]
    assert good[0][0] < good[1][0] < good[2][0]
    np.testing.assert_allclose(good[2], [1, 0], atol=0.05)


def test_weights_are_not_negative():
    made, truth = predictions(50)
    weights = stack(np.array([made[0], -truth]), truth, np.array([0.5, 0.5]))
    assert weights[1] == 0
    assert weights[0] > 0.5


def test_predictions_that_are_not_finite_get_no_weight():
    made, truth = predictions(20)
    broken = np.array([made[0], np.full_like(truth, np.nan), made[1]])
    weights = stack(broken, truth, np.array([0.25, 0.5, 0.25]))
    assert weights[1] == 0
    np.testing.assert_allclose(weights[[0, 2]], stack(made, truth, np.array([0.5, 0.5])))
    assert not stack(broken[1:2], truth, np.ones(1)).any()


def test_a_candidate_that_diverged_is_left_out_and_named(monkeypatch):
    fit = Ridge._fit

    def diverged(self, pair, **kwargs):
        result = fit(self, pair, **kwargs)
        self.arrays_ = {name: np.full_like(array, np.nan) for name, array in self.arrays_.items()}
        return result

    x, y, anchors = cells(7)
    monkeypatch.setattr(Ridge, "_fit", diverged)
    f = make("auto", methods=QUICK).fit(x, y, anchors)
    assert [member.name for member in f.members_] == ["pls"]
    assert any("Ridge diverged" in note for note in f.result_.notes)
    assert np.isfinite(f.translate(x)).all()
    assert make("auto", methods=["ridge"]).fit(x, y, anchors).result_.status is Status.DIVERGED


def test_the_more_anchors_the_more_the_matching_that_leans_on_them_weighs_to_begin_with():
    weights = [next(each.prior for each in _tried(k) if "anchored" in each.label) for k in (6, 50, 200)]
    assert weights == sorted(weights)
    for k in (1, 6, 200):
        assert sum(each.prior for each in _tried(k) if each.method == "consensus") == pytest.approx(1)


def test_every_anchor_is_left_out_once_by_fits_that_did_not_see_it(monkeypatch):
    x, y, anchors = cells(12)
    seen, fit = [], Ridge._fit

    def recorded(self, pair, **kwargs):
        seen.append((self, set(pair.anchors[:, 0])))
        return fit(self, pair, **kwargs)

    monkeypatch.setattr(Ridge, "_fit", recorded)
    f = make("auto", methods=QUICK).fit(x, y, anchors)
    assert len(f.left_out_) == FOLDS
    np.testing.assert_array_equal(np.sort(np.concatenate([held for _, held in f.left_out_])), np.arange(12))
    for part, held in f.left_out_:
        known = next(rows for member, rows in seen if member is part.members_[0])
        assert known == set(range(12)) - set(held)


def test_a_left_out_anchor_does_not_choose_its_own_weights():
    x, y, anchors = cells(12, noise=0.5)
    before = make("auto", methods=QUICK).fit(x, y, anchors)
    part, held = before.left_out_[0]
    changed = y.copy()
    changed[held[0]] = changed[held[0]] + 1e-3  # a partner that only fits of the other folds see
    after = make("auto", methods=QUICK).fit(x, changed, anchors)
    np.testing.assert_allclose(after.left_out_[0][0].weights_, part.weights_, atol=1e-2)
    assert not np.array_equal(after.weights_, before.weights_)


def test_notes_say_what_was_tried_and_how_it_did(fitted):
    f, _ = fitted
    note = f.result_.notes[0]
    assert "7 left-out anchors" in note
    labels = ("consensus", "fine consensus", "anchored consensus", "ridge")
    for label, weight in zip(labels, f.weights_, strict=True):
        assert f"{label} " in note
        assert f"weight {weight:.2f}" in note
    assert "of a budget of 180 s" in f.result_.notes[-1]


@pytest.mark.parametrize(("k", "why"), [(1, "fewer than 3 anchors"), (5, "lack of time")])
def test_notes_say_why_nothing_was_compared(k, why):
    f = make("auto").fit(*cells(k, n=60, m=50), trainer=Trainer(max_seconds=0.0 if k == 5 else None))
    assert why in f.result_.notes[0]
    assert f.left_out_ is None
    matched = [member.name == "consensus" for member in f.members_]
    np.testing.assert_allclose(f.weights_, np.divide(matched, np.sum(matched)))
    assert len(f.repeats_) == np.sum(matched)


def test_a_single_candidate_is_taken_as_it_is():
    x, y, anchors = cells(6)
    f = make("auto", methods=["ridge"]).fit(x, y, anchors)
    assert "only candidate" in f.result_.notes[0]
    np.testing.assert_allclose(f.translate(x), make("ridge").fit(x, y, anchors).translate(x), atol=1e-5)


def test_the_sum_is_of_differences_from_the_mean_cell(fitted):
    f, (x, y, _) = fitted
    mean = y.mean(axis=0, dtype=np.float64)
    parts = sum(w * (member.translate(x) - mean) for w, member in zip(f.weights_, f.members_, strict=True))
    np.testing.assert_allclose(f.translate(x), mean + parts, atol=1e-4)


@pytest.mark.parametrize("k", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_few_anchors_rest_on_the_shapes_and_many_on_the_pairs(k):
    x, y, anchors = cells(k, n=300, m=280, noise=0.1)
    ours, pairs = (
        foscttm(make(name).fit(x, y, anchors).translate(x)[k:], (x @ TURN)[k:]) for name in ("auto", "ridge")
    )
    assert ours < (pairs / 2 if k == 1 else pairs + 0.01)


def test_state_round_trip(fitted):
    f, (x, _, _) = fitted
    state = f.get_state()
    again = make("auto", **json.loads(json.dumps(f.get_config()))).set_state(state)
    np.testing.assert_array_equal(again.translate(x), f.translate(x))
    assert [member.get_config() for member in again.members_] == [
        json.loads(json.dumps(member.get_config())) for member in f.members_
    ]


def test_conditions_count_as_a_candidate():
    x, y, _ = cells(0, n=60, m=60)
    code = np.arange(60) % 3
    y = y + 20 * np.eye(3, 5)[code].astype(np.float32)
    f = make("auto").fit(x, y, condition_x=code, condition_y=code)
    assert {member.name for member in f.members_} == {"consensus", "condition_mean"}
    assert f.weights_.sum() == pytest.approx(1)
    out = f.translate(x, code)
    for own in range(3):
        np.testing.assert_allclose(out[code == own].mean(axis=0), y[code == own].mean(axis=0), atol=1)


def test_an_interrupted_candidate_interrupts(monkeypatch):
    fit = Ridge._fit

    def interrupted(self, pair, **kwargs):
        result = fit(self, pair, **kwargs)
        result.status = Status.INTERRUPTED
        return result

    monkeypatch.setattr(Ridge, "_fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make("auto", methods=QUICK).fit(*cells(6))


@pytest.mark.parametrize("methods", [[], ["auto"], ["condition_mean"], ["nonsense"]])
def test_wrong_candidates_are_named(methods):
    with pytest.raises(ConfigError):
        make("auto", methods=methods).fit(*cells(5))


def test_names_come_in_a_list():
    with pytest.raises(ConfigError, match="a list of names"):
        make("auto", methods="ridge").fit(*cells(6))


def test_matchings_of_few_anchors_are_averaged_and_kept_for_the_verdict():
    x, y, anchors = cells(1, n=60, m=50)
    f = make("auto").fit(x, y, anchors)
    first, second = (member.translate(x) for member in f.members_[:2])
    assert not np.array_equal(first, second)
    alone = [repeat.translate(x) for repeat in f.repeats_]
    np.testing.assert_allclose(np.mean(alone, axis=0), f.translate(x), atol=1e-4)
