"""Weather: which weeks meet in a task, what the scores say of a known law, and how rows become claims."""

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import conditional, weather
from celltransfer.experiments.suites.weather import (
    MOST,
    PAIRED,
    UNPAIRED,
    Chance,
    Climatology,
    Weather,
    Weeks,
    load_weeks,
    task,
)


@pytest.fixture
def weeks(monkeypatch):
    """Made weeks in place of the real ones: every value of week i says i."""

    def part(n, first):
        number = np.arange(first, first + n, dtype=float)
        y = number[:, None, None] + np.arange(7)[:, None] / 10 + np.zeros((1, 1, 7))
        day = 1 + (np.arange(n)[:, None] * 7 + np.arange(7)) % 365
        return Weeks(np.tile(number[:, None], (1, 14)), y, day)

    made = {"train": part(203, 0), "dev": part(51, 1000), "test": part(51, 2000)}
    monkeypatch.setattr(weather, "load_weeks", lambda: made)
    return made


def test_no_week_is_both_paired_and_unpaired_and_fewer_are_part_of_more(weeks):
    found = {(k, n): task(weeks["train"], k, n, seed=3) for k in PAIRED for n in UNPAIRED}
    for (k, n), (paired, x, y) in found.items():
        assert len(paired) == k
        assert len(x) == len(y) == 7 * n
        assert set(np.unique(x[:, 0])) == set(np.unique(np.floor(y[:, 0])))
        assert len(np.unique(x[:, 0])) == n
        assert not set(paired.x[:, 0]) & set(x[:, 0])
        assert set(found[PAIRED[0], n][0].x[:, 0]) <= set(paired.x[:, 0])
        assert set(np.unique(found[k, UNPAIRED[1]][1])) <= set(np.unique(found[k, MOST[1]][1]))
    assert not np.array_equal(task(weeks["train"], 10, 0, 0)[0].x, task(weeks["train"], 10, 0, 1)[0].x)


def test_the_order_of_unpaired_rows_gives_no_pairing_away(weeks):
    _, x, y = task(weeks["train"], *MOST, seed=0)
    same = np.mean(x[:, 0] == np.floor(y[:, 0]))
    assert same < 0.04  # 1 in 110 by chance
    assert abs(np.corrcoef(x[:, 0], y[:, 0])[0, 1]) < 3 / np.sqrt(len(x))


def test_pairs_repeat_the_source_for_each_of_its_days(weeks):
    xp, yp = weeks["train"][np.array([4, 9])].pairs()
    assert xp[:, 0].tolist() == [4] * 7 + [9] * 7
    np.testing.assert_allclose(yp[7:, 0], 9 + np.arange(7) / 10)


def test_weeks_pair_with_the_next_one_of_the_same_year():
    day = np.concatenate([np.arange(2, 366), np.arange(1, 367)])
    values = np.random.default_rng(0).normal(size=(len(day), 3))
    year = np.repeat([2015, 2016], [364, 366])
    made = weather._pair_weeks(values, day, [year == 2015, year == 2016])
    assert len(made) == 50 + 51  # the first week of 2015 lacks a day; days after the 52nd week are left out
    assert made.day[:2, 0].tolist() == [15, 22]
    assert made.day[50, 0] == 8
    assert made.day.max() == 364
    np.testing.assert_array_equal(made.y[50], values[364 + 7 : 364 + 14])
    np.testing.assert_allclose(made.x[50, :3], values[364 : 364 + 7].mean(axis=0))
    np.testing.assert_allclose(made.x[50, 3:], np.log(values[364 : 364 + 7].std(axis=0, ddof=1)))


def test_whitening_makes_uncorrelated():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 3)) @ rng.normal(size=(3, 3))
    root = weather._inverse_root(np.cov(points.T))
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    np.testing.assert_allclose(np.cov((points @ root).T), np.eye(3), atol=1e-9)


class Known:
    """The law N(x[0], 1) in seven columns."""

    def sample(self, x, n, seed=0):
        return x[:, :1] + np.random.default_rng(seed).normal(size=(n, len(x), 7))

    def log_prob(self, x, y):
        return -0.5 * np.square(y - x[:, :1]).sum(axis=1) - 3.5 * np.log(2 * np.pi)


def made_weeks(n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = 3 * rng.normal(size=(n, 14))
    day = 1 + (np.arange(n)[:, None] * 365 // n + np.arange(7)) % 365
    return Weeks(x, x[:, :1, None] + rng.normal(size=(n, 7, 7)), day)


def test_scores_of_a_known_law():
    test, entropy = made_weeks(), 3.5 * np.log(2 * np.pi * np.e)
    scores = weather.score(Known(), test)
    assert scores["ll"] == pytest.approx(-entropy, abs=0.4)
    shuffled = Weeks(test.x[::-1], test.y, test.day)
    wrong = weather.score(Known(), shuffled)
    assert wrong["ll"] < scores["ll"] - 5
    assert wrong["cfd"] > 3 * scores["cfd"]
    assert wrong["energy_score"] > scores["energy_score"]


def test_controls_tell_the_season_but_not_the_week():
    rng = np.random.default_rng(0)
    day = np.tile(1 + np.arange(357).reshape(51, 7), (4, 1))
    y = np.sin(2 * np.pi * day / 365)[:, :, None] * 3 + rng.normal(size=(*day.shape, 7))
    train = Weeks(rng.normal(size=(len(day), 14)), y, day)
    test = train[np.arange(51)]
    chance, diagonal, season = (weather.control(name, train, test) for name in weather.CONTROLS)
    assert season["ll"] > chance["ll"]
    assert season["ll"] > diagonal["ll"]
    assert season["cfd"] < chance["cfd"]
    new_year = Climatology(train).sample(np.array([[364.0]]), 2000)
    assert abs(new_year.mean()) < 0.3  # days on both sides of it count
    assert Chance(train).sample(train.x, 3).shape == (3, len(train), 7)


def rows(ll, cfd=None, n=5):
    """Rows whose values are functions of method and numbers of weeks, with a little noise over seeds."""
    rng = np.random.default_rng(0)
    made = [
        job
        | {"ll": ll(job) + 0.01 * rng.normal(), "cfd": (cfd or (lambda j: -ll(j)))(job), "energy_score": 1.0}
        | {"seconds": 1.0}
        for job in Weather().jobs(n)
    ]
    return pd.DataFrame(made)


def good(job):
    gain = {"ieot": 1.0, "climatology": -2.0, "chance": -3.0, "chance_diagonal": -3.5}.get(job["method"], 0.0)
    return -9 + gain + 0.01 * job["paired"] + 0.001 * job["unpaired"] * (job["method"] == "ieot")


def test_claims_of_a_method_that_does_what_is_said_and_of_one_that_does_not(weeks):
    assert [claim.holds for claim in Weather().claims(rows(good))] == [True] * 8
    worse = rows(lambda job: -good(job) - 20 if job["method"] == "ieot" else good(job))
    claims = Weather().claims(worse)
    assert [claim.holds for claim in claims] == [False] * 8
    assert claims[2].found.startswith("for 0 of 12; least (mdn, ")


def test_one_seed_tells_nothing_and_one_better_method_contradicts(weeks):
    assert [claim.holds for claim in Weather().claims(rows(good, n=1))] == [None] * 8
    flow = rows(lambda job: good(job) + 3 * (job["method"] == "cnf_ss"))
    best = Weather().claims(flow)[3]
    assert best.holds is False
    assert best.found.startswith("for 6 of 7; least (cnf_ss, ")


def test_table_and_picture_name_every_arm(weeks):
    suite, found = Weather(), rows(good)
    found.loc[found["method"].isin(["cgan", "ugan_l2", "regression"]), "ll"] = np.nan
    table = suite.table(found)
    assert len(table) == len(found) / 5
    assert set(table.index) == set(weather.NAMES.values())
    assert (table.loc["CGAN", "log-likelihood"], table.loc["CGAN", "CFD"] != "") == ("", True)
    figure = suite.draw(found, {})
    left, right = figure.axes
    assert len(left.get_legend().get_texts()) == len(UNPAIRED) + 1 + len(weather.CONTROLS) + 1
    assert len(right.patches) == len(conditional.NAMES) + 1 + len(weather.CONTROLS)
    assert Weather(full=True).jobs(None)[-1]["seed"] == 19


def test_a_short_run_from_end_to_end(weeks, monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    small = {name: made_weeks(20, int(rng.integers(100))) for name in weeks}
    short = {name: {"steps": 2} for name in conditional.NAMES}
    short["ieot"] = {"steps": 2, "n_potential": 2, "weight_unpaired": 1.0, "penalty": 1.0}
    sizes = {"N_TRAIN": 20, "PAIRED": (2, 5), "UNPAIRED": (0, 8), "MOST": (5, 8)}
    for name, value in ({"load_weeks": lambda: small} | sizes).items():
        monkeypatch.setattr(weather, name, value)
    monkeypatch.setattr(weather, "SETTINGS", short)
    monkeypatch.setattr(weather, "SAMPLES", 20)
    outcome = base.run("weather", seeds=1, out=tmp_path, device="cpu")
    found = outcome.rows.set_index("method")
    assert found["cfd"].notna().all()
    assert set(found.index[found["ll"].isna()]) == {"cgan", "ugan_l2", "regression"}
    assert [claim.holds for claim in outcome.claims] == [None] * 8
    assert (tmp_path / "picture.png").exists()


def test_years_are_never_mixed(real_dataset):
    table = real_dataset("weather_hannover")
    parts = load_weeks()
    assert {name: len(part) for name, part in parts.items()} == {"train": weather.N_TRAIN, "dev": 51, "test": 51}
    years = [year for part in weather.YEARS.values() for year in part]
    assert sorted(years) == sorted(set(table.obs["year"]))
    days = parts["train"].y.reshape(-1, 7)
    np.testing.assert_allclose(np.cov(days.T), np.eye(7), atol=0.15)
    assert not {tuple(day) for day in days} & {tuple(day) for day in parts["test"].y.reshape(-1, 7)}
    assert ct.datasets.available("weather_hannover")
