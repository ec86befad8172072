"""Running suites: what is kept, what is run again, and what is said about it."""

import os
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from celltransfer import __version__, settings
from celltransfer.errors import ConfigError, DatasetError, WriteError
from celltransfer.experiments import run, store
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import Claim, Outcome, Suite
from celltransfer.experiments.tables import mean_sd
from celltransfer.train.loop import Trainer
from celltransfer.train.outcome import Status
from celltransfer.translators import make


class Tiny(Suite):
    """One of two arms is right."""

    name = "tiny"
    title = "A tiny suite"
    reference = "Nowhere."

    def jobs(self, seeds):
        return [{"arm": arm, "seed": seed} for seed in range(seeds or 2) for arm in ("one", "an other/arm")]

    def run(self, job):
        scores = {"error": 1 / 3 + job["seed"], "missing": float("nan"), "n": 7, "big": 2**40, "right": True}
        about = {"process": os.getpid(), "threads": torch.get_num_threads(), "cache": str(settings.cache_dir)}
        only = {"only": np.float32(0.1)} if job["arm"] == "one" else {}
        arrays = {"size": np.array([self.full])} if job["seed"] == 0 else {}
        return scores | about | only | {"word": '1 of 2, "x"'}, arrays

    def table(self, rows):
        return rows.groupby("arm", sort=False)[["error", "missing"]].mean()

    def claims(self, rows):
        return [Claim("Yes.", "1.", True), Claim("No.", "2.", np.bool_(False)), Claim("Who knows.", "3.", None)]

    def draw(self, rows, arrays):
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(1, 1))
        figure.found = arrays
        return figure


@pytest.fixture
def tiny(monkeypatch):
    """The suite, registered, and the jobs that it has run in this process."""
    ran = []

    class Counting(Tiny):
        def run(self, job):
            ran.append((job["arm"], job["seed"]))
            return super().run(job)

    monkeypatch.setattr(base, "get", lambda name: Counting)
    return ran


def test_a_run_in_memory_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = base.run("tiny", seeds=1, device="cpu")
    assert list(outcome.rows["arm"]) == ["one", "an other/arm"]
    assert outcome.rows.loc[0, ["suite", "device", "celltransfer"]].tolist() == ["tiny", "cpu", __version__]
    assert set(outcome.figure.found) == {"arm-one_seed-0", "arm-an-other-arm_seed-0"}
    assert outcome.written == []
    assert list(tmp_path.iterdir()) == []


def test_pictures_are_not_left_with_pyplot(tiny):
    from matplotlib import pyplot

    outcome = base.run("tiny", seeds=1)
    assert outcome.figure is not None
    assert pyplot.get_fignums() == []


def test_files(tiny, tmp_path):
    folder = tmp_path / "new" / "folder"
    outcome = base.run("tiny", seeds=1, out=folder)
    assert [path.relative_to(folder).as_posix() for path in outcome.written] == ["rows.csv", "table.md", "picture.png"]
    assert (folder / "table.md").read_text() == outcome.to_markdown()
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    assert names == [
        "arrays",
        "arrays/arm-an-other-arm_seed-0.npz",
        "arrays/arm-one_seed-0.npz",
        "picture.png",
        "rows.csv",
        "table.md",
    ]


def test_rows_read_back_are_the_rows_that_were_found(tiny, tmp_path):
    in_memory = base.run("tiny").rows.drop(columns="seconds")
    fresh = base.run("tiny", out=tmp_path)
    resumed = base.run("tiny", out=tmp_path)
    assert len(tiny) == 8
    pd.testing.assert_frame_equal(fresh.rows, resumed.rows)
    pd.testing.assert_frame_equal(fresh.rows.drop(columns="seconds"), in_memory)
    assert resumed.to_markdown() == fresh.to_markdown()
    np.testing.assert_array_equal(resumed.figure.found["arm-one_seed-0"]["size"], [False])
    rows = resumed.rows
    assert rows["error"].tolist() == [1 / 3, 1 / 3, 4 / 3, 4 / 3]
    assert rows["missing"].isna().all()
    assert rows["only"].tolist()[::2] == [float(np.float32(0.1))] * 2
    assert rows["only"].isna().tolist() == [False, True] * 2
    assert (rows[["n", "big", "seed"]].dtypes == np.int64).all()
    assert rows["right"].tolist() == rows["full"].map({False: True}).tolist() == [True] * 4
    assert set(rows["word"]) == {'1 of 2, "x"'}


def test_rows_of_other_seeds_and_sizes_stay(tiny, tmp_path):
    base.run("tiny", out=tmp_path, seeds=3)
    del tiny[:]
    fewer = base.run("tiny", out=tmp_path, seeds=1)
    assert sorted(set(fewer.rows["seed"])) == [0]
    full = base.run("tiny", out=tmp_path, seeds=1, full=True)
    assert len(tiny) == 2
    assert full.figure.found["arm-one_seed-0"]["size"]
    assert "2 runs at the paper's sizes" in full.to_markdown()
    again = base.run("tiny", out=tmp_path, seeds=4)
    assert tiny[2:] == [("one", 3), ("an other/arm", 3)]
    assert len(again.rows) == 8
    assert not again.figure.found["arm-one_seed-0"]["size"]
    assert len(pd.read_csv(tmp_path / "rows.csv")) == 10


def test_rows_of_another_version_are_run_again(tiny, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(store, "__version__", "0.0.9")
    monkeypatch.setattr(run, "__version__", "0.0.9")
    base.run("tiny", out=tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(base, "get", lambda name: Tiny)
    outcome = base.run("tiny", out=tmp_path, seeds=1)
    assert "rows of celltransfer 0.0.9" in caplog.text
    assert set(outcome.rows["celltransfer"]) == {__version__}
    assert pd.read_csv(tmp_path / "rows.csv")["celltransfer"].tolist() == [__version__] * 2 + ["0.0.9"] * 2


class Failing(Tiny):
    """Fails at the second seed."""

    def run(self, job):
        if job["seed"] == 1 and job["arm"] == "one":
            raise DatasetError("no data")
        return super().run(job)


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_names_the_job_and_leaves_what_is_finished(tmp_path, monkeypatch, processes):
    monkeypatch.setattr(base, "get", lambda name: Failing)
    with pytest.raises(DatasetError, match="no data\nIn run arm-one_seed-1 of suite 'tiny'"):
        base.run("tiny", out=tmp_path, processes=processes)
    done = pd.read_csv(tmp_path / "rows.csv")
    assert set(done["seed"][:2]) == {0}
    monkeypatch.setattr(base, "get", lambda name: Tiny)
    assert len(base.run("tiny", out=tmp_path).rows) == 4


def test_processes_run_on_one_thread_with_the_settings_of_this_one(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "get", lambda name: Tiny)
    with settings.override(cache_dir=tmp_path / "cache"):
        outcome = base.run("tiny", seeds=3, processes=2, out=tmp_path)
    rows = outcome.rows
    assert list(zip(rows["arm"], rows["seed"], strict=True))[:3] == [("one", 0), ("an other/arm", 0), ("one", 1)]
    assert os.getpid() not in set(rows["process"])
    assert set(rows["threads"]) == {1}
    assert set(rows["cache"]) == {str(tmp_path / "cache")}
    assert len(outcome.figure.found) == 2


class Interrupted(Tiny):
    """Ctrl-C in the middle of the third job's fit, which by itself would end it early and quietly."""

    statuses: list[Status] = []

    def run(self, job):
        x = np.random.default_rng(0).normal(size=(60, 3))
        f = make("jacobian", guard=False, init="random")
        if job == {"arm": "one", "seed": 1}:
            losses = f.losses
            f.losses = lambda *args: (signal.raise_signal(signal.SIGINT), losses(*args))[1]
        f.fit(x, x, trainer=Trainer(max_steps=3, progress=False, device="cpu"))
        self.statuses.append(f.result_.status)
        return super().run(job)


def test_ctrl_c_ends_the_run_and_keeps_no_half_trained_row(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "get", lambda name: Interrupted)
    with pytest.raises(KeyboardInterrupt):
        base.run("tiny", out=tmp_path)
    assert Interrupted.statuses == [Status.MAX_STEPS] * 2
    assert pd.read_csv(tmp_path / "rows.csv")["seed"].tolist() == [0, 0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_folder_of_something_else_is_refused_before_anything_runs(tiny, tmp_path):
    (tmp_path / "rows.csv").write_text("arm,seed\none,0\n")
    with pytest.raises(ConfigError, match=r"rows.csv does not hold rows of suite 'tiny': it has no column 'full'"):
        base.run("tiny", out=tmp_path)
    (tmp_path / "rows.csv").write_bytes(b"\x80\x00\xff")
    with pytest.raises(ConfigError, match="cannot be read"):
        base.run("tiny", out=tmp_path)
    (tmp_path / "rows.csv").unlink()
    base.run("tiny", out=tmp_path, seeds=1)
    text = (tmp_path / "rows.csv").read_text()
    (tmp_path / "rows.csv").write_text(text.replace(",tiny,", ",plane,"))
    with pytest.raises(ConfigError, match="its suite is 'plane'"):
        base.run("tiny", out=tmp_path)
    with pytest.raises(WriteError, match="Cannot write to"):
        base.run("tiny", out=tmp_path / "table.md" / "below")
    assert len(tiny) == 2


@pytest.mark.parametrize("bad", [{"seeds": 0}, {"processes": 0}, {"device": "warp"}, {"name": "nonsense"}])
def test_wrong_arguments(bad, tmp_path):
    with pytest.raises(ConfigError, match=next(iter(bad.values())) if "name" in bad else next(iter(bad))):
        base.run(**{"name": "plane", "out": tmp_path / "out"} | bad)
    assert list(tmp_path.iterdir()) == []


def test_every_suite_is_listed_with_what_it_shows():
    listed = base.suites()
    assert listed.index.name == "name"
    for name, (title, reference) in listed.iterrows():
        suite = base.get(name)
        assert (suite.name, suite.title, suite.reference) == (name, title, reference)
        jobs = suite(device="cpu").jobs(2)
        assert len({base.label(job) for job in jobs}) == len(jobs) > 1
        assert len({tuple(job) for job in jobs}) == 1


def test_labels_are_file_names_that_leave_out_the_size():
    job = {"full": True, "arm": "a/b, c + d", "seed": 3, "weight": 0.5}
    assert base.label(job) == "arm-a-b,-c-+-d_seed-3_weight-0.5"


def test_mean_and_standard_deviation():
    assert mean_sd(pd.Series([1.0, 3.0]), 2) == "2.00 ± 1.41"
    assert mean_sd(pd.Series([1.0])) == "1.000 ± nan"


def outcome():
    rows = pd.DataFrame(
        {"full": False, "device": ["cuda (H100)", "cpu", "cpu"], "celltransfer": "1.2.3", "seconds": [1.0, 2.0, 3.4]}
    )
    table = pd.DataFrame(
        {"found": [0.12345, float("nan")], "of": [3, 4], "how": ["a|b", None]}, index=pd.Index(["x", "y"], name="arm")
    )
    return Outcome("tiny", "Title", "Reference.", rows, table, Tiny().claims(rows), seconds=6.4)


def test_markdown_says_what_was_claimed_found_and_run():
    assert outcome().to_markdown().splitlines() == [
        "# Title",
        "",
        "Reference.",
        "",
        "| arm | found | of | how |",
        "|---|---:|---:|---:|",
        "| x | 0.123 | 3 | a\\|b |",
        "| y |  | 4 |  |",
        "",
        "- **holds:** Yes. Found: 1.",
        "- **does not hold:** No. Found: 2.",
        "- **cannot be told:** Who knows. Found: 3.",
        "",
        "3 runs at default sizes, 6 s in all, on cpu, cuda (H100); celltransfer 1.2.3.",
    ]


def test_only_what_does_not_hold_is_contradicted():
    assert [claim.text for claim in outcome().contradicted] == ["No."]


def test_a_full_disk_is_said_and_loses_no_earlier_row(tiny, tmp_path, monkeypatch):
    base.run("tiny", out=tmp_path, seeds=1)
    before = (tmp_path / "rows.csv").read_text()
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *args, **kwargs: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(WriteError, match=r"rows\.csv"):
        base.run("tiny", out=tmp_path)
    assert (tmp_path / "rows.csv").read_text() == before
