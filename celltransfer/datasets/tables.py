"""Tables that are neither cells nor images: one function per set, as AnnData.

A builder takes the verified local path of each file of its registry entry, by file name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from celltransfer.datasets import registry
from celltransfer.datasets.readers import read_rda
from celltransfer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FIRST_DAY = "2015-01-02"
# Of a column's mean, relative: the prepared file keeps seven digits of every value.
_TOLERANCE = 1e-4


def weather_hannover(files: Mapping[str, Path]) -> AnnData:
    """Build :func:`celltransfer.datasets.weather_hannover` from the upstream file or from the prepared one."""
    (path,) = files.values()
    frame = pd.read_csv(path) if path.name.endswith(".csv.gz") else read_rda(path)["station"]
    dates = pd.date_range(_FIRST_DAY, periods=len(frame), name="date")
    # Dates have another form in each file; the day of the year has not.
    if "doy" not in frame or not np.array_equal(frame["doy"], dates.dayofyear):
        raise DatasetError(
            f"{path} does not hold one row for each day from {_FIRST_DAY} on, as 'weather_hannover' has."
        )
    values = checked_columns("weather_hannover", frame)
    obs = pd.DataFrame({"year": dates.year, "day_of_year": dates.dayofyear}, index=dates.strftime("%Y-%m-%d"))
    parts = [str(name).partition("_")[::2] for name in values]
    var = pd.DataFrame(
        {
            "quantity": ["t2m" if name == "obs" else name for name, _ in parts],
            "statistic": [statistic or "observed" for _, statistic in parts],
        },
        index=values.columns,
    )
    adata = AnnData(values.to_numpy(np.float32), obs=obs.rename_axis("date"), var=var)
    adata.uns["celltransfer_dataset"] = registry.get("weather_hannover").describe()
    return adata


def checked_columns(name: str, frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table's registry entry, in its order.

    Raises
    ------
    DatasetError
        One is missing, has another mean than registered or a missing value, or the number of rows differs.
    """
    entry = registry.get(name)
    missing = [column for column in entry.columns if column not in frame]
    if missing or len(frame) != entry.n_obs:
        found = f"has no column {missing[0]!r}" if missing else f"has {len(frame)} rows, expected {entry.n_obs}"
        raise DatasetError(f"{name!r}: the file {found}.")
    for column, mean in entry.columns.items():
        if not abs(frame[column].mean(skipna=False) - mean) <= _TOLERANCE * abs(mean):
            raise DatasetError(f"{name!r}: the mean of {column!r} is {frame[column].mean():.7g}, expected {mean:.7g}.")
    return frame[[*entry.columns]]
