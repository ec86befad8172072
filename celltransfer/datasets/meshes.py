"""Triangle meshes, whose vertices are samples of a law in space: one function per mesh, as AnnData.

A builder takes the verified local path of each file of its registry entry, by file name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from celltransfer.datasets import registry
from celltransfer.datasets.readers import read_off
from celltransfer.datasets.tables import checked_columns
from celltransfer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def bunny(files: Mapping[str, Path]) -> AnnData:
    """Build :func:`celltransfer.datasets.bunny`."""
    (path,) = files.values()
    return _mesh("bunny", path)


def armadillo(files: Mapping[str, Path]) -> AnnData:
    """Build :func:`celltransfer.datasets.armadillo` from the prepared file; upstream has ten times the vertices.

    Raises
    ------
    DatasetError
        Only the upstream file is there.
    """
    (path,) = files.values()
    if path.suffix != ".off":
        raise DatasetError(
            f"'armadillo' is {path} after quadric decimation to 8,000 faces (fast-simplification: target_count=8000, "
            "agg=5), which celltransfer does not do. Save the result as armadillo.off beside the folder "
            "CELLTRANSFER_DATA_MIRROR."
        )
    return _mesh("armadillo", path)


def _mesh(name: str, path: Path) -> AnnData:
    """The AnnData of a mesh, checked against its registry entry."""
    entry = registry.get(name)
    vertices, faces = read_off(path)
    if len(faces) != entry.n_faces:
        raise DatasetError(f"{name!r}: {path} has {len(faces)} faces, expected {entry.n_faces}.")
    values = checked_columns(name, pd.DataFrame(vertices, columns=[*entry.columns]))
    values.index = pd.Index([f"{name}_{i:04d}" for i in range(len(values))], name="vertex")
    adata = AnnData(values.astype(np.float32))
    adata.uns |= {"faces": faces, "celltransfer_dataset": entry.describe()}
    return adata
