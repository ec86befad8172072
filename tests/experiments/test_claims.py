"""The one rule: an interval against a margin bears a claim out, contradicts it, or does not tell."""

import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments import claims
from celltransfer.experiments.claims import Says


def rows(**arms):
    """Rows with a value by arm and seed."""
    return pd.DataFrame(
        [{"arm": arm, "seed": s, "error": v} for arm, values in arms.items() for s, v in enumerate(values)]
    )


def judged(made, *says, **more):
    return claims.judge(Says("Text.", *says, **more), made, ("arm",), {"error": "mean error"})


def found(own):
    return own["error"] < 0.5


def test_interval_is_students_and_everything_for_one_value():
    mean, low, high = claims.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert high - 2 == pytest.approx(4.302653 / np.sqrt(3), rel=1e-5)
    assert 2 - low == pytest.approx(high - 2)
    assert claims.interval([1.0])[1:] == (-np.inf, np.inf)
    assert claims.interval([np.nan, 1.0, 1.0]) == (1, 1, 1)


@pytest.mark.parametrize(("margin", "holds"), [(0.5, True), (2.0, None), (9.0, False)])
def test_above_and_below_are_opposites(margin, holds):
    made = rows(a=[1.0, 2.0, 3.0, 2.0])
    above = judged(made, "error", "a", ">", margin)
    assert above.holds is holds
    assert above.found == "mean error 2 (95 % interval 0.701 to 3.3, 4 seeds)."
    assert judged(made, "error", "a", "<", margin).holds is (None if holds is None else not holds)
    assert judged(made, "error", "a", ">", lambda rows: margin).holds is holds


def test_two_arms_are_paired_over_common_seeds():
    rng = np.random.default_rng(0)
    seed = rng.normal(0, 10, 8)
    made = rows(ours=seed + rng.normal(0, 0.1, 8), theirs=seed + 1 + rng.normal(0, 0.1, 8), few=seed[:1])
    assert judged(made, "error", "ours", "<", "theirs").holds is True
    assert judged(made, "error", "theirs", "<", "ours").holds is False
    assert judged(made, "error", "ours", "<", "theirs", by=0.5).holds is True
    assert judged(made, "error", "ours", "<", "theirs", by=2.0).holds is False
    assert judged(made, "error", "ours", "<", "few").holds is None
    assert judged(made, "error", "ours", "<", "not run").found == "nothing that was run bears on it."


def test_answers_of_yes_and_no_have_an_exact_interval():
    made = rows(all=[0.0] * 20, none=[1.0] * 5, three=[0.0] * 3)
    assert judged(made, found, "all", ">", 0.75).holds is True
    # Student's interval of equal answers would have no width, and hold.
    assert judged(made, found, "all", ">", 0.95).holds is None
    assert judged(made, found, "none", ">", 0.75).holds is False
    assert judged(made, found, "three", ">", 0.75).holds is None
    assert "3 of 3 (95 % interval 0.292 to 1 of the share)" in judged(made, found, "three", ">", 0.75).found


def test_arms_that_answer_yes_or_no_are_compared_where_they_differ():
    made = rows(
        often=[0.0] * 8 + [1.0] * 2, seldom=[1.0] * 6 + [0.0] * 2 + [1.0] * 2, once=[1.0] + [0.0] * 7 + [1.0] * 2
    )
    assert judged(made, found, "often", ">", "seldom").holds is True
    assert judged(made, found, "seldom", ">", "often").holds is False
    assert judged(made, found, "seldom", "<", "often").holds is True
    assert judged(made, found, "often", ">", "once").holds is None
    assert judged(made, found, "often", ">", "often").holds is None


def test_what_no_chance_enters_is_its_own_interval():
    made = rows(a=[0.1, 0.3])
    assert judged(made, "error", "a", "<", 0.4, exact=True).holds is True
    assert judged(made, "error", "a", "<", 0.2, exact=True).holds is False
    assert judged(made, "error", "a", "<", 0.4, exact=True).found == "mean error at most 0.3."


def test_a_claim_about_each_holds_where_all_do_and_fails_where_one_does():
    wiggle = 0.001 * np.arange(4)
    made = rows(ours=1 + wiggle, worse=2 - wiggle, bad=3 + wiggle, better=0.5 + wiggle, unclear=1.002 + wiggle[::-1])
    assert judged(made, "error", "ours", "<", ["worse", "bad", "not run"]).holds is True
    assert judged(made, "error", "ours", "<", ["worse", "unclear"]).holds is None
    each = judged(made, "error", "ours", "<", ["worse", "better", "unclear"])
    assert each.holds is False
    assert each.found.startswith("for 1 of 3; least (better): mean error 1 against 0.5")


def test_figures_may_join_arms_by_seed_and_rows_may_not_tell():
    made = rows(a=[1.0, 2.0, 3.0], b=[0.9, 1.9, 2.88])

    def gap(own):
        wide = own.pivot(index="seed", columns="arm", values="error")
        return wide["a"] - wide["b"]

    assert judged(made, gap, None, ">", 0).holds is True
    assert judged(made, gap, None, ">", 0, unless=lambda rows: "").holds is True
    untold = judged(made, gap, None, ">", 0, unless=lambda rows: "no map matched.")
    assert (untold.holds, untold.found) == (None, "no map matched.")
