import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments import suites as validation
from celltransfer.experiments.suites import images, mnist_rotated
from celltransfer.experiments.suites.mnist_rotated import ARMS, CONTROLS, DRAWS, MnistRotated, _Split
from celltransfer.train.loop import Trainer


@pytest.fixture
def small(monkeypatch):
    """scikit-learn's digits, and a few steps."""
    monkeypatch.setattr(mnist_rotated, "load_digits", lambda size: images.load_digits("digits", size))
    monkeypatch.setattr(MnistRotated, "trainer", lambda self: Trainer(max_steps=20, check_every=10, progress=False))
    mnist_rotated._classifier.cache_clear()
    yield
    mnist_rotated._classifier.cache_clear()


def test_sources_targets_anchors_and_test_pictures_are_different_digits():
    split = _Split(1000, seed=1, anchor_seed=0)
    groups = split.source, split.target, split.anchors, split.test
    assert sum(map(len, groups)) == len(np.unique(np.concatenate(groups))) == 1000
    again = _Split(1000, seed=1, anchor_seed=3)
    np.testing.assert_array_equal(again.source, split.source)
    assert not np.array_equal(again.anchors, split.anchors)


def test_anchors_are_turned_partners_and_labels_are_known_only_when_given():
    pictures = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
    split = _Split(400, 0, 0)
    pair = split.pair(pictures, None, 5)
    np.testing.assert_array_equal(pair.anchor_y, images.rotate(pair.anchor_x, 1))
    assert pair.n_anchors == 5
    assert pair.condition_x is None
    assert split.pair(pictures, np.arange(400) % 10, 0).condition_x is not None


@pytest.mark.parametrize("full", [False, True])
def test_every_arm_makes_a_translator(full):
    suite = MnistRotated(full=full)
    arms = {job["arm"] for job in suite.jobs(1)} - set(CONTROLS)
    for arm in arms:
        config = suite.translator(arm).get_config()
        assert config["map"] == "mlp" if full else config["map"] in ("linear", "mlp")
        assert config["restarts"] == (1 if full or "one start" in arm else 4)


def test_a_turned_picture_is_found_by_regression_on_all_pairs(small):
    scores, _ = MnistRotated().run({"arm": "control: regression on all pairs", "seed": 0})
    assert scores["te"] < 0.05
    assert scores["accuracy"] > 0.9


def test_it_runs_from_end_to_end(small, monkeypatch, tmp_path):
    kept = {arm: ARMS[arm] for arm in ("matching", "both", "CycleGAN", "DIMENSION, labels known")}
    kept |= {arm: ARMS[arm] for arm in ("matching + sparsity", "matching + anchor")}
    monkeypatch.setattr(mnist_rotated, "ARMS", kept)
    monkeypatch.setattr(MnistRotated, "draws", 2)
    outcome = validation.run("mnist_rotated", seeds=1, out=tmp_path)
    assert len(outcome.rows) == len(kept) + len(CONTROLS) + 2
    assert np.isfinite(outcome.rows["te"]).all()
    assert set(outcome.rows["digits"]) == {"digits"}
    assert (tmp_path / "picture.png").stat().st_size > 1000
    assert all(claim.holds is None for claim in outcome.claims)  # one seed


def made(both, matching, spread=0.0):
    """Rows in which only these errors matter."""
    arms = dict.fromkeys(ARMS, 0.3) | {"both": both, "matching": matching}
    rows = [
        {"arm": arm, "seed": seed, "te": te + 0.001 * seed * (arm == "both")}
        for arm, te in arms.items()
        for seed in range(3)
    ]
    return pd.DataFrame(rows + [{"arm": DRAWS, "seed": seed, "te": both + spread * seed} for seed in range(1, 6)])


@pytest.mark.parametrize(("both", "holds"), [(0.05, True), (0.299, None), (0.4, False)])
def test_claims_follow_the_rows(both, holds):
    assert MnistRotated().claims(made(both, 0.3))[0].holds is holds


@pytest.mark.parametrize(("spread", "holds"), [(0.0, True), (0.001, True), (0.1, False)])
def test_anchors_are_alike_only_if_no_error_stands_out(spread, holds):
    assert MnistRotated().claims(made(0.05, 0.3, spread))[-1].holds is holds
