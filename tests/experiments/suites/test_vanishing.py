"""The gradient in closed form, by the best shared model and by numbers; fits of shifts; and the claims."""

import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import vanishing
from celltransfer.experiments.suites.vanishing import DELTA, FITS, INTEGRAL, SAMPLED, Vanishing
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.stats import norm


def density(x, means, width):
    return 0.5 * sum(norm.pdf(x, m, width) for m in means)


@pytest.mark.parametrize("mu", [4.0, 7.0])
def test_gradient_is_the_derivative_of_the_cross_entropy(mu):
    width, scale = 0.5, np.sqrt(0.5**2 + DELTA**2)

    def entropy(m):
        def integrand(x):
            return -density(x, (-DELTA, DELTA), width) * np.log(density(x, (0.0, m), scale))

        return quad(integrand, -6, 6, epsabs=1e-13, limit=200)[0]

    slope = (entropy(mu + 1e-2) - entropy(mu - 1e-2)) / 2e-2
    assert np.exp(vanishing.log_gradient(mu, width)) == pytest.approx(abs(slope), rel=2e-2)


def test_gradient_of_the_best_shared_model_is_that_of_the_loss():
    """The loss, minimised over the shared model by numbers, falls that fast as a shift begins."""
    mu, width = 4.0, 0.4
    x = np.linspace(-6, 12, 4001)

    def loss(b):
        a, own = density(x, (mu + b - DELTA, mu + b + DELTA), width), density(x, (-DELTA, DELTA), width)

        def objective(p):
            return -((a + own) * np.log(density(x, p[:2], np.exp(p[2])) + 1e-300)).sum() * (x[1] - x[0])

        return minimize(objective, [0.1, mu - 0.1, 0.1], method="BFGS", options={"gtol": 1e-9}).fun

    slope = (loss(0.05) - loss(-0.05)) / 0.1
    assert 2 * np.exp(vanishing.best_gradient(mu, width)) == pytest.approx(slope, rel=2e-2)


def test_far_away_the_closed_form_is_the_best_model_and_the_slope_that_of_theory():
    assert vanishing.best_gradient(12.0, 0.4) == pytest.approx(vanishing.log_gradient(12.0, 0.4), abs=1e-6)
    for width in (0.25, 0.4, 2.0):
        far = [np.sqrt(-vanishing.log_gradient(mu, width)) for mu in (200.0, 210.0)]
        assert (far[1] - far[0]) / 10 == pytest.approx(vanishing.slope(width), rel=2e-2)


def test_a_sample_agrees_near_and_a_line_is_found():
    exact = [vanishing.log_gradient(mu, 0.4) for mu in vanishing.DISTANCES[:5]]
    np.testing.assert_allclose(vanishing.sampled_gradient(0.4, 0)[:5], exact, atol=0.1)
    line = vanishing.straight(-((0.6 * vanishing.DISTANCES - 1.168) ** 2))
    assert line == pytest.approx({"slope": 0.6, "offset": -1.168, "r": 1.0})


def test_mixtures_are_fitted_by_likelihood():
    x = vanishing.mixture(20_000, 0.4, np.random.default_rng(0))
    means, log_scale = vanishing.fit_mixture(x)
    np.testing.assert_allclose(means, [-1, 1], atol=0.02)
    assert np.exp(log_scale) == pytest.approx(0.4, abs=0.01)
    log_density = vanishing.log_density(np.array([0.3]), np.array([-1.0, 1.0]), np.log(0.4))
    assert np.exp(log_density[0]) == pytest.approx(density(0.3, (-1, 1), 0.4))


def test_near_sets_are_aligned_and_far_ones_are_not_and_the_loss_says_so():
    arm = "gradient descent, from the best shared model"
    near, path = vanishing.fit_shift(arm, 1.0, 0, steps=400, n=400)
    far, _ = vanishing.fit_shift(arm, 10.0, 0, steps=400, n=400)
    assert near["error"] < vanishing.ALIGNED
    assert abs(near["loss"]) < 0.05
    assert abs(far["shift"]) < 1e-3
    assert far["loss"] == pytest.approx(2 * np.log(np.hypot(1, 0.4) / 0.4), abs=0.15)
    assert len(path) == 100


def test_gradient_of_equation_3_is_its_derivative():
    rng = np.random.default_rng(0)
    a, b, at = rng.normal(2, 1, 50), rng.normal(size=60), np.array([-0.5, -0.3, 1.2, 0.1])

    def loss(p):
        return -sum(vanishing.log_density(x, p[1:3], p[3]).mean() for x in (a + p[0], b))

    numbers = [(loss(at + h) - loss(at - h)) / 2e-5 for h in 1e-5 * np.eye(4)]
    np.testing.assert_allclose(vanishing.gradient(at, a, b), numbers, rtol=1e-6)


def rows(aligned, r=0.9999, breaks=12.0):
    """Rows where shifts are aligned up to a distance."""
    about = {"slope": 0.6, "offset": -1.0, "r": r, "slope_theory": 0.6, "closed_form_error": 0.01, "breaks": breaks}
    made = [{"arm": INTEGRAL, "width": w, "mu": 0.0, "seed": 0} | about for w in vanishing.WIDTHS]
    made += [{"arm": SAMPLED, "width": w, "mu": 0.0, "seed": s} | about for w in vanishing.WIDTHS for s in range(5)]
    for job in Vanishing().jobs(5):
        if job["arm"] in FITS:
            near = job["mu"] <= aligned
            made.append(job | {"error": 0.01 if near else job["mu"], "loss": 0.0 if near else 2.0 + job["seed"]})
    return pd.DataFrame(made)


def test_claims_can_hold_and_fail():
    assert [c.holds for c in Vanishing().claims(rows(6))] == [True, True, True, False, *[True] * 5]
    found = Vanishing().claims(rows(0, r=0.99, breaks=np.nan))
    assert [c.holds for c in found[:5]] == [False, False, True, True, False]
    # All runs aligned: nothing is left to be told apart.
    found = Vanishing().claims(rows(20))
    assert [c.holds for c in found[5:]] == [False, False, False, None]
    table = Vanishing().table(rows(6))
    assert len(table) == 2 * len(vanishing.WIDTHS) + len(FITS) * len(vanishing.SHIFTS)


def test_a_short_run_from_end_to_end(monkeypatch, tmp_path):
    whole = vanishing.fit_shift
    monkeypatch.setattr(vanishing, "fit_shift", lambda arm, mu, seed, steps: whole(arm, mu, seed, steps=100, n=50))
    monkeypatch.setattr(vanishing, "WIDTHS", (0.4,))
    monkeypatch.setattr(vanishing, "DISTANCES", np.array([4.0, 6.0, 8.0]))
    monkeypatch.setattr(vanishing, "SAMPLE", 2000)
    outcome = base.run("vanishing", seeds=2, out=tmp_path, device="cpu")
    assert len(outcome.rows) == 1 + 2 + 2 * len(FITS) * len(vanishing.SHIFTS)
    assert (tmp_path / "picture.png").exists()
