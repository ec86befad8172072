"""celltransfer.fit as a whole: one time limit, Ctrl-C, refits that break off, device, conditions that are ignored."""

import time

import celltransfer as ct
import numpy as np
import pytest
from celltransfer.errors import CelltransferWarning, ConfigError
from celltransfer.train import Status, Trainer
from celltransfer.translators.baselines import Ridge

pytestmark = pytest.mark.filterwarnings("ignore::celltransfer.errors.VerdictWarning")


@pytest.fixture(scope="module")
def cells():
    return ct.datasets.simulate(n_obs=400, n_genes=60, n_peaks=90, seed=0)


def end_as(monkeypatch, *statuses):
    """Let fits of ridge end with `statuses`, one after the other."""
    fit, left = Ridge._fit, list(statuses)

    def ended(self, pair, **kwargs):
        result = fit(self, pair, **kwargs)
        result.status = left.pop(0) if left else Status.SOLVED
        return result

    monkeypatch.setattr(Ridge, "_fit", ended)


def test_an_interrupted_fit_is_not_judged(cells, monkeypatch):
    end_as(monkeypatch, Status.INTERRUPTED, Status.DIVERGED)
    verdict = ct.fit(cells, anchors=20, method="ridge").verdict_
    assert verdict.level == "ambiguous"
    assert "interrupted" in verdict.reasons[0]


def test_ctrl_c_in_a_refit_keeps_the_fit_and_says_that_it_is_not_judged(cells, monkeypatch):
    end_as(monkeypatch, Status.SOLVED, Status.SOLVED, Status.INTERRUPTED)
    model = ct.fit(cells, anchors=20, method="ridge")
    assert model.verdict_.level == "ambiguous"
    assert "Interrupted while the fit was judged" in model.verdict_.reasons[0]


def test_a_refit_that_diverged_is_no_evidence(cells, monkeypatch):
    end_as(monkeypatch, Status.SOLVED, Status.SOLVED, Status.DIVERGED)
    verdict = ct.fit(cells, anchors=20, method="ridge").verdict_
    assert verdict.level == "ambiguous"
    assert "diverged" in verdict.reasons[0]


def test_the_time_limit_covers_guard_fit_and_verdict(cells):
    ct.fit(cells, anchors=20, method="jacobian", trainer=Trainer(max_steps=1))  # imports
    trainer = Trainer(max_seconds=2, max_steps=10**6, patience=np.inf, progress=False)
    start = time.perf_counter()
    model = ct.fit(cells, anchors=20, method="jacobian", trainer=trainer)
    assert time.perf_counter() - start < 4
    assert model.result_.seconds < 2


def test_the_default_keeps_a_time_limit_too_short_for_it(cells):
    ct.fit(cells, anchors=3, trainer=Trainer(max_seconds=0.1))  # imports
    start = time.perf_counter()
    model = ct.fit(cells, anchors=20, trainer=Trainer(max_seconds=1))
    assert time.perf_counter() - start < 4
    assert model.result_.status is Status.MAX_TIME
    assert "time" in model.result_.notes[0]


def test_a_schedule_cut_short_is_said_in_the_verdict(cells):
    how = {"anchors": 20, "method": "sparse_mixing", "map": "linear"}
    cut = ct.fit(cells, trainer=Trainer(max_seconds=4, max_steps=10**5, progress=False), **how)
    assert cut.result_.status is Status.MAX_TIME
    assert "in the middle of a schedule" in " ".join(cut.verdict_.reasons)
    whole = ct.fit(cells, trainer=Trainer(max_steps=10, progress=False), **how)
    assert "schedule" not in " ".join(whole.verdict_.reasons)


def test_ctrl_c_while_the_default_compares_methods_keeps_what_was_fitted(cells, monkeypatch):
    fit, seen = Ridge._fit, []

    def interrupted(self, pair, **kwargs):
        seen.append(pair.n_anchors)
        if pair.n_anchors < 20:
            raise KeyboardInterrupt
        return fit(self, pair, **kwargs)

    monkeypatch.setattr(Ridge, "_fit", interrupted)
    model = ct.fit(cells, anchors=20)
    assert seen == [20, 16]
    assert model.result_.status is Status.INTERRUPTED
    assert "not judged" in model.verdict_.reasons[0]
    assert np.isfinite(model.translate(cells["rna"]).X).all()


def test_out_of_time_before_the_verdict(cells):
    verdict = ct.fit(cells, anchors=20, method="ridge", trainer=Trainer(max_seconds=0.0)).verdict_
    assert verdict.level == "ambiguous"
    assert "time limit" in verdict.reasons[0]


def test_the_device_may_be_given_in_either_place_but_not_differently(cells):
    options = {"anchors": 20, "verdict": False, "method": "ridge"}
    ct.fit(cells, device="cpu", trainer=Trainer(), **options)
    ct.fit(cells, device="cpu", trainer=Trainer(device="cpu"), **options)
    with pytest.raises(ConfigError, match="device='cuda'"):
        ct.fit(cells, device="cuda", trainer=Trainer(device="cpu"), **options)
    with pytest.raises(ConfigError, match="tpu9"):
        ct.fit(cells, device="tpu9", trainer=Trainer(max_steps=1), anchors=20, method="jacobian")
    with pytest.raises(ConfigError, match="device='gpu' is not a device"):
        ct.fit(cells, device="gpu", anchors=20, method="ridge")


def test_conditions_that_the_fit_ignores_are_a_warning():
    cells = ct.datasets.simulate(n_obs=400, n_genes=60, n_peaks=90, seed=0)
    cells.obs["side"] = ["left", "right"] * 200
    with pytest.warns(CelltransferWarning, match="'ridge' fits without conditions"):
        ct.fit(cells, anchors=20, method="ridge", conditions="side", verdict=False)
