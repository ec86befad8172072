"""The weather table: what is read, from either file, and what is refused."""

from __future__ import annotations

import celltransfer as ct
import numpy as np
import pandas as pd
import pytest
import rdata
from celltransfer.datasets import fetch, registry, tables
from celltransfer.datasets.readers import read_rda
from celltransfer.datasets.registry import RemoteFile
from celltransfer.errors import DatasetError

ENTRY = registry.get("weather_hannover")
COMMIT = ENTRY.files[0].hash


@pytest.fixture
def table():
    """A table with the days and means of the real one, and made values."""
    dates = pd.date_range("2015-01-02", "2020-12-31")
    noise = np.random.default_rng(0).normal(size=(len(dates), len(ENTRY.columns)))
    values = np.array([*ENTRY.columns.values()]) * (1 + 0.1 * (noise - noise.mean(axis=0)))
    frame = pd.DataFrame(values, columns=[*ENTRY.columns])
    return frame.assign(doy=dates.dayofyear, sin1=0.0, date=np.arange(16437.0, 16437.0 + len(dates)))


def save(frame, path):
    if path.suffix == ".RData":
        rdata.write_rda(path, {"station": frame})
    else:
        frame.to_csv(path, index=False)
    return {"station.RData": path}


@pytest.mark.parametrize("name", ["station.RData", "weather_hannover.csv.gz"])
def test_both_files_give_the_same_table(table, tmp_path, name):
    adata = tables.weather_hannover(save(table, tmp_path / name))
    assert adata.shape == ENTRY.shape["table"]
    assert list(adata.var_names) == list(ENTRY.columns)
    np.testing.assert_allclose(adata.X, table[[*ENTRY.columns]], rtol=1e-6)
    assert adata.X.dtype == np.float32
    assert (adata.obs_names[0], adata.obs_names[-1]) == ("2015-01-02", "2020-12-31")
    assert adata.obs["year"].value_counts().to_dict() == {
        2016: 366,
        2020: 366,
        2017: 365,
        2018: 365,
        2019: 365,
        2015: 364,
    }
    assert adata.var.loc["obs"].tolist() == ["t2m", "observed"]
    assert adata.var.loc["wg10m_sd"].tolist() == ["wg10m", "sd"]
    adata.write_h5ad(tmp_path / "table.h5ad")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.drop(columns="doy"), "one row for each day"),
        (lambda t: t.iloc[1:], "one row for each day"),
        (lambda t: t.iloc[::-1], "one row for each day"),
        (lambda t: t.iloc[:-1], "has 2190 rows, expected 2191"),
        (lambda t: t.drop(columns="p_sd"), "no column 'p_sd'"),
        (lambda t: t.assign(p_mean=t["p_mean"] / 100), "mean of 'p_mean' is 1008.654, expected 100865.4"),
        (lambda t: t.assign(obs=t["obs"].where(t.index > 0)), "mean of 'obs'"),
    ],
)
def test_another_table_is_refused(table, tmp_path, damage, message):
    with pytest.raises(DatasetError, match=message):
        tables.weather_hannover(save(damage(table), tmp_path / "weather_hannover.csv.gz"))


def test_r_dates_are_numbers(tmp_path):
    """A file of R itself: ``d <- as.Date(1:2, origin = "1970-01-01"); save(d, ascii = TRUE)``."""
    path = tmp_path / "d.RData"
    lines = (
        "RDA3 A 3 263168 197888 5 UTF-8 1026 1 262153 1 d 782 2 1 2 1026 1 262153 5 class 16 1 262153 4 Date 254 254"
    )
    path.write_text("\n".join(lines.split()) + "\n")
    assert read_rda(path)["d"].tolist() == [1, 2]


def test_a_file_known_by_its_commit_is_taken_as_it_is(tmp_path):
    file = RemoteFile("weather_hannover", "station.RData", "https://example.org", COMMIT)
    path = tmp_path / file.path
    path.parent.mkdir()
    path.write_bytes(b"anything")
    with ct.settings.override(data_mirror=tmp_path, cache_dir=tmp_path / "cache"):
        assert fetch.locate(file) == path


def test_real_weather(real_dataset, tmp_path):
    adata = real_dataset("weather_hannover")
    assert adata.uns["celltransfer_dataset"] == ENTRY.describe()
    frame = adata.to_df()
    assert frame.notna().all(axis=None)
    assert np.corrcoef(frame["obs"], frame["t2m_mean"])[0, 1] > 0.98
    summer = adata.obs["day_of_year"].between(170, 230)
    assert frame.loc[summer, "obs"].mean() > frame.loc[adata.obs["day_of_year"] < 50, "obs"].mean() + 10
    assert fetch.export(ENTRY, tmp_path / "weather.h5ad").shape == adata.shape
