"""Readers of the upstream formats that trust nothing, and the exact inverse of a log-normalisation."""

from __future__ import annotations

import gzip
import math
import pickle
import struct
import zlib
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd
from scipy import sparse

from celltransfer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_MAX_SMALLEST_COUNT = 12
_INTEGER_TOLERANCE = 1e-4
# Two zeros and the code of unsigned bytes; the number of dimensions follows.
_IDX_BYTES = b"\0\0\x08"


class _DataUnpickler(pickle.Unpickler):
    """An unpickler of plain data: it can name no class or function, so the pickle can run nothing."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DatasetError(f"The pickle asks for {module}.{name}; only plain data are read. It was not loaded.")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise DatasetError("The pickle holds a persistent id; only plain data are read. It was not loaded.")


def read_string_list(path: Path) -> list[str]:
    """A pickled list of strings, read without running anything the pickle asks for.

    Raises
    ------
    DatasetError
        The pickle is broken, refers to a class or function, or holds anything but a list of strings.
    """
    try:
        with path.open("rb") as stream:
            value = _DataUnpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError) as error:
        raise DatasetError(f"{path} is not a readable pickle: {error}") from error
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DatasetError(f"{path} must hold a list of strings.")
    return value


def read_lines(path: Path) -> list[str]:
    """Lines of a text file without surrounding blanks, the Unicode minus as ``-``."""
    return [line.strip().replace("\N{MINUS SIGN}", "-") for line in path.read_text(encoding="utf-8").splitlines()]


def read_feature_table(path: Path) -> tuple[sparse.csr_matrix, pd.Index, pd.Index]:
    """A gzipped ``features x cells`` table of small numbers, row by row, so that it is never dense in memory.

    Returns
    -------
    Matrix of shape ``(cells, features)``, the cells, the features.
    """
    with gzip.open(path, "rt") as stream:
        cells = pd.Index(stream.readline().rstrip("\n").split(",")[1:])
        features, rows = [], []
        for line in stream:
            feature, _, values = line.partition(",")
            features.append(feature)
            rows.append(sparse.csr_matrix(np.fromstring(values, dtype=np.float32, sep=",")))
    matrix = sparse.vstack(rows, format="csr").T.tocsr()
    return matrix, cells, pd.Index(features)


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes, the format of MNIST, as ``uint8`` array of the shape that it declares.

    Raises
    ------
    DatasetError
        The file is no gzip, is broken off or corrupt, is no IDX file of bytes, or has another length than declared.
    """
    try:
        with gzip.open(path, "rb") as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} is not a readable gzip file: {error}") from error
    if len(content) < 4 or content[:3] != _IDX_BYTES:
        raise DatasetError(f"{path} is not an IDX file of unsigned bytes: it starts with {content[:4].hex(' ')!r}.")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DatasetError(f"{path} ends in the middle of its header.")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DatasetError(f"{path} declares shape {shape}, but holds {len(content) - start} values.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def read_off(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vertices ``(n, 3)`` and triangles ``(m, 3)`` (rows of vertices) of a mesh in the text format OFF.

    Raises
    ------
    DatasetError
        The file is no OFF text, is broken off, has a face that is no triangle, or one with a vertex that is not there.
    """
    try:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in (line.partition("#")[0].split() for line in text.splitlines()) if line]
        counts = lines[0][1:] or lines.pop(1)
        n, m = (int(count) for count in counts[:2])
        vertices = np.array(lines[1 : n + 1], float).reshape(n, 3)
        faces = np.array([line[:4] for line in lines[n + 1 : n + m + 1]], int).reshape(m, 4)
    except (ValueError, IndexError) as error:
        raise DatasetError(f"{path} is not a readable OFF file of triangles: {error}") from error
    sides, faces = faces[:, 0], faces[:, 1:]
    if (
        lines[0][0] != "OFF"
        or not np.isfinite(vertices).all()
        or (sides != 3).any()
        or not np.isin(faces, range(n)).all()
    ):
        raise DatasetError(f"{path} is not an OFF file of triangles between finite vertices.")
    return vertices, faces


def read_rda(path: Path) -> dict[str, Any]:
    """Objects of an R data file by name; a date is a number.

    ``dgCMatrix`` becomes ``(csc_matrix, row names, column names)``.
    """
    import rdata

    times = dict.fromkeys(("Date", "POSIXct", "POSIXt"), lambda value, _: value)
    classes = {**rdata.conversion.DEFAULT_CLASS_MAP, **times, "dgCMatrix": _dgc_matrix}
    return rdata.conversion.convert(rdata.parser.parse_file(path), constructor_dict=classes)


def _dgc_matrix(_: Any, attributes: Mapping[str, Any]) -> tuple[sparse.csc_matrix, np.ndarray, np.ndarray]:
    parts = (attributes["x"], attributes["i"], attributes["p"])
    return sparse.csc_matrix(parts, shape=tuple(attributes["Dim"])), *attributes["Dimnames"]


def invert_log_normalisation(matrix: sparse.csr_matrix, scale: float = 1.0) -> tuple[sparse.csr_matrix, np.ndarray]:
    r"""Recover the integer counts behind :math:`x = \log(1 + 10^4 c / T) / s`.

    The smallest non-zero :math:`c / T` of a cell belongs to a small integer :math:`k`, which gives :math:`T`. The
    smallest :math:`k` for which every count of the cell comes out whole is taken: counts are recovered up to a common
    factor per cell, and exactly wherever their greatest common divisor is 1.

    Parameters
    ----------
    matrix
        Normalised values, shape ``(n_obs, n_vars)``, every row with at least one non-zero.
    scale
        The :math:`s` above.

    Returns
    -------
    Counts ``(n_obs, n_vars)`` and the totals :math:`T` ``(n_obs,)``, both whole numbers.

    Raises
    ------
    DatasetError
        No integer counts fit a cell.
    """
    ratio = np.expm1(matrix.data * scale) / 1e4
    starts, lengths = matrix.indptr[:-1], np.diff(matrix.indptr)
    smallest = np.minimum.reduceat(ratio, starts)
    total = np.full(matrix.shape[0], np.nan)
    for k in range(1, _MAX_SMALLEST_COUNT + 1):
        values = ratio * np.repeat(k / smallest, lengths)
        worst = np.maximum.reduceat(np.abs(values - np.rint(values)), starts)
        total[np.isnan(total) & (worst < _INTEGER_TOLERANCE)] = k
    total /= smallest
    if np.isnan(total).any() or np.abs(total - np.rint(total)).max() > 0.01:
        raise DatasetError(
            f"The normalisation of {int(np.isnan(total).sum())} cells cannot be inverted to whole counts."
        )
    whole = sparse.csr_matrix((np.rint(ratio * np.repeat(total, lengths)), matrix.indices, matrix.indptr), matrix.shape)
    return whole, np.rint(total).astype(np.int64)
