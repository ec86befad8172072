"""Pictures of both pairs, the composition of two densities, claims that follow the rows, and the suite on few steps."""

import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments.suites import digits_glow as suite
from celltransfer.experiments.suites import get, images, label
from celltransfer.experiments.suites.digits_glow import ARMS, BEFORE, COMPOSED, LIKE, OURS, PAIRS, DigitsGlow, Pictures
from celltransfer.train.loop import Trainer


@pytest.fixture
def small(monkeypatch):
    """scikit-learn's digits in place of both sets, and fits of a few steps."""
    monkeypatch.setattr(suite, "load_digits", lambda name, size: images.load_digits("digits", size))
    monkeypatch.setattr(suite, "COPIES", 1)
    monkeypatch.setattr("celltransfer.translators.lrmf.lrmf.DENSITY_STEPS", 30)
    trainer = Trainer(max_steps=10, batch_size=32, check_every=5, patience=float("inf"), progress=False)
    monkeypatch.setattr(DigitsGlow, "trainer", lambda self: trainer)
    suite._fitted_on.cache_clear()
    suite._classifier.cache_clear()
    yield
    suite._fitted_on.cache_clear()
    suite._classifier.cache_clear()


def test_pictures_to_fit_on_and_to_score_on_are_different_ones(small, monkeypatch):
    monkeypatch.setattr(suite, "NOISE", 0.0)
    tones, usps = (Pictures(pair, 8, 1) for pair in ("tones", "usps"))
    undone = (tones.x - suite.BRIGHTNESS) / suite.CONTRAST
    sets = [{row.tobytes() for row in np.round(x * 8)} for x in (undone, tones.y, tones.like, tones.y_test)]
    assert not any(a & b for i, a in enumerate(sets) for b in sets[:i])
    np.testing.assert_allclose(suite._toned(tones.like), tones.x_test)
    np.testing.assert_array_equal(tones.y_test, usps.y_test)
    assert len(usps.x_test) == len(usps.labels)


def test_noise_is_as_large_as_it_says(small):
    noisy, again = Pictures("tones", 8, 1), Pictures("tones", 8, 1)
    np.testing.assert_array_equal(noisy.x, again.x)
    assert noisy.y.std(axis=0).min() == pytest.approx(suite.NOISE, rel=0.15)


@pytest.fixture
def fitted(small):
    pictures = Pictures("tones", 8, 0)
    return suite._fitted(DigitsGlow(device="cpu"), "tones", 0), pictures


def test_back_to_back_goes_to_latents_and_on(fitted):
    f, pictures = fitted
    found = suite.back_to_back(f, pictures.x_test)
    assert found.shape == pictures.x_test.shape
    assert np.isfinite(found).all()
    f.density_("A").load_state_dict(f.density_("B").state_dict())
    same = suite.back_to_back(f, pictures.x_test)
    np.testing.assert_allclose(same, pictures.x_test, atol=1e-3)  # one flow there and back


def test_the_loss_is_zero_for_one_set_and_one_density(fitted):
    f, pictures = fitted
    net = f.module_
    net.transform.second.load_state_dict(net.transform.first.state_dict())
    for which in "AS":
        f.density_(which).load_state_dict(f.density_("B").state_dict())
    assert abs(f.loss_on(pictures.y_test, pictures.y_test)) < 1e-2


def test_jobs_run(small):
    found = get("digits_glow")(device="cpu")
    for arm in ARMS:
        scores, arrays = found.run({"pair": "tones", "arm": arm, "seed": 0})
        assert np.isfinite([scores[name] for name in ("accuracy", "auc", "energy_distance")]).all()
        assert bool(arrays) == (arm in (OURS, COMPOSED))
        assert ("loss" in scores) == (arm == OURS)
        if arm == LIKE:
            assert scores["accuracy"] > 0.6


def made(loss=0.0, auc=0.01, kept=0.6, seeds=3):
    """Rows in which only these figures of the map matter."""
    rows = []
    for job in DigitsGlow().jobs(seeds):
        wiggle = 0.001 * job["seed"] * len(job["arm"])
        usps, ours = job["pair"] == "usps", job["arm"] == OURS
        rows.append(
            job
            | {
                "loss": (3.0 if usps else loss) + wiggle if ours else np.nan,
                "auc": 0.9 - 0.2 * (job["arm"] == COMPOSED) + wiggle,
                "auc_excess": auc + wiggle,
                "accuracy": (kept if ours else {BEFORE: 0.5}.get(job["arm"], 0.3)) + wiggle,
                "energy_distance": 0.1 * ours + wiggle,
                "verdict": "not aligned" if usps or auc > 0.1 else "aligned",
                "seconds": 60.0,
            }
        )
    return pd.DataFrame(rows)


def test_claims_follow_the_rows():
    found = DigitsGlow()
    assert all(claim.holds for claim in found.claims(made(seeds=6)))
    bad = found.claims(made(loss=2.0, auc=0.4, kept=0.2, seeds=6))
    assert [claim.holds for claim in bad[:3]] == [False, False, False]
    assert [claim.holds for claim in bad[7:9]] == [False, False]
    assert all(claim.holds is None for claim in found.claims(made(seeds=1)) if "verdict" not in claim.text)


def test_table_and_picture():
    found, picture = DigitsGlow(), np.zeros((suite.SHOWN, 64))
    assert list(found.table(made())["seeds"]) == [3] * 8
    curve = np.array([[0, 9.0], [10, 1.0]])
    drawn = dict.fromkeys(("source", "target", "translated", "inverse"), picture) | {"loss": curve, "monitor": curve}
    arrays = {label({"pair": p, "arm": a, "seed": 0}): drawn for p in PAIRS for a in (OURS, COMPOSED)}
    assert found.draw(made(), arrays) is not None
    assert found.draw(made(), {}) is None


def test_the_full_size_is_the_papers():
    translator = DigitsGlow(full=True).translator().get_config()
    assert (translator["scales"], translator["blocks"], translator["side"]) == (3, 8, 32)
    assert translator["hidden"][0] == 512
