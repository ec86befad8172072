"""The curve over the number of anchors: what is refitted, on what, and what is said where it is not."""

from __future__ import annotations

import celltransfer as ct
import numpy as np
import pytest
from celltransfer.errors import ConfigError
from celltransfer.reporting import curve

pytestmark = pytest.mark.filterwarnings(
    "ignore::celltransfer.errors.VerdictWarning", "ignore:method='ridge' fits without conditions"
)


def test_numbers_of_anchors():
    assert curve.numbers(None, 60) == [1, 3, 10, 30]
    assert curve.numbers((20, 5, 5, 0, 60, 100), 60) == [0, 5, 20]
    for wrong in ((1.5,), (-1,), (True,)):
        with pytest.raises(ConfigError, match="expected numbers of anchors"):
            curve.numbers(wrong, 60)


def test_the_curve_ends_at_the_model_and_falls(whole):
    mine = whole.curve[whole.curve["method"] == "translation"]
    assert sorted(mine["n_anchors"].unique()) == [1, 5, 20, 60]
    assert mine.groupby("n_anchors").size().tolist() == [curve.DRAWS] * 3 + [1]
    last = mine[mine["n_anchors"] == 60].iloc[0]
    for score in ("foscttm", "foscttm_target_to_source", "knn_accuracy@10", "knn_accuracy@50"):
        assert last[score] == pytest.approx(whole.table.loc["translation", score])
    ridge = whole.curve[(whole.curve["method"] == "ridge on the anchors") & (whole.curve["n_anchors"] == 60)]
    assert ridge["foscttm"].iloc[0] == pytest.approx(whole.table.loc["ridge on the anchors", "foscttm"])
    means = mine.groupby("n_anchors")["foscttm"].mean()
    assert means[1] > means[20] > means[60]


def test_a_refit_is_what_fit_gives_with_these_anchors(cells, model):
    found = ct.report(model, cells, anchors=(20,)).curve
    one = found[(found["n_anchors"] == 20) & (found["draw"] == 0) & (found["method"] == "translation")]
    order = np.random.default_rng([0, curve._ANCHORS, 0]).permutation(60)
    task_order = cells["rna"].obs_names.get_indexer(model.anchors["source_id"])
    assert (task_order >= 0).all()
    chosen = model.anchors.iloc[np.sort(order[:20])]
    again = ct.fit(cells, train="train", method="ridge", anchors=chosen, verdict=False)
    assert one["foscttm"].iloc[0] == pytest.approx(ct.report(again, cells).table.loc["translation", "foscttm"])


def test_no_curve_unless_it_is_asked_for(result):
    assert result.curve.empty
    assert "Number of anchors" not in result.to_markdown()


def test_time_that_is_up_is_said(cells, model):
    late = ct.report(model, cells, curve=True, max_seconds=0)
    assert set(late.curve["n_anchors"]) == {60}
    assert "The curve lacks 12 refits with 1, 3, 10, 30 anchors: the limit of 0 s came first." in repr(late)
    assert "curve" in late.pictures()


def test_a_method_that_cannot_do_with_so_few_is_said(cells, model, monkeypatch):
    class Needy:
        def fit_pair(self, pair, **_):
            raise ConfigError("It takes more anchors.")

    monkeypatch.setattr(curve.translators, "make", lambda *_, **__: Needy())
    result = ct.report(model, cells, anchors=(1, 3))
    assert "lacks 6 refits with 1, 3 anchors: It takes more anchors." in repr(result)


def test_no_number_below_that_of_the_model_gives_no_curve(cells, model):
    result = ct.report(model, cells, anchors=(60, 80))
    assert result.curve.empty
    assert "There is no curve" in repr(result)


def test_a_cost_from_an_attribute_is_kept_by_refits(cells):
    from celltransfer.train.loop import Trainer

    short = Trainer(max_steps=5, batch_size=64, device="cpu", progress=False)
    how = {"method": "dont", "cost_attribute": "cell_type", "anchors": 20, "trainer": short, "verdict": False}
    model = ct.fit(cells, train="train", **how)
    found = ct.report(model, cells, anchors=(5,))
    assert set(found.curve["n_anchors"]) == {5, 20}
