"""Triangle meshes: what is read, and what is refused."""

from __future__ import annotations

import celltransfer as ct
import numpy as np
import pytest
from celltransfer.datasets import fetch, meshes, registry
from celltransfer.datasets.readers import read_off
from celltransfer.errors import DatasetError

TETRAHEDRON = "OFF\n4 4 6\n0 0 0\n1 0 0\n0 1 0\n0 0 1.5\n3 0 2 1\n3 0 1 3\n3 0 3 2\n3 1 2 3\n"


def save(tmp_path, text, name="mesh.off"):
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        TETRAHEDRON,
        "# made by hand\n" + TETRAHEDRON.replace("1 0 0\n", "1 0 0  # the second\n\n"),
        TETRAHEDRON.replace("OFF\n", "OFF "),
        TETRAHEDRON.replace("3 1 2 3\n", "3 1 2 3 255 0 0\n"),  # a colour
    ],
)
def test_vertices_and_faces_are_read(tmp_path, text):
    vertices, faces = read_off(save(tmp_path, text))
    np.testing.assert_array_equal(vertices, [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.5]])
    np.testing.assert_array_equal(faces, [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    assert np.issubdtype(faces.dtype, np.integer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "OFF",
        "PLY\n4 4 6\n",
        TETRAHEDRON.replace("4 4 6", "4 5 6"),
        TETRAHEDRON.replace("4 4 6", "4 x 6"),
        TETRAHEDRON.replace("4 4 6", "-1 4 6"),
        TETRAHEDRON.replace("1.5", "high"),
        TETRAHEDRON.replace("1.5", "nan"),
        TETRAHEDRON.replace("3 1 2 3", "4 1 2 3 0"),
        TETRAHEDRON.replace("3 1 2 3", "3 1 2 4"),
        TETRAHEDRON.replace("3 1 2 3", "3 1 2 -1"),
        TETRAHEDRON.replace("0 1 0\n", "0 1\n"),
        "OFF\n\xff\xfe",
    ],
)
def test_anything_else_is_refused(tmp_path, text):
    path = tmp_path / "mesh.off"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match=r"mesh\.off"):
        read_off(path)


def test_another_mesh_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="has 4 faces, expected 6966"):
        meshes.bunny({"bunny.off": save(tmp_path, TETRAHEDRON)})
    faces = "".join(f"3 {i} {i + 1} {i + 2}\n" for i in range(6966))
    moved = "OFF\n6968 6966 0\n" + "0 0 0\n" * 6968 + faces
    with pytest.raises(DatasetError, match="has 6968 rows, expected 3485"):
        meshes.bunny({"bunny.off": save(tmp_path, moved)})


def test_the_upstream_armadillo_is_too_fine(tmp_path):
    with pytest.raises(DatasetError, match="fast-simplification.*beside the folder"):
        meshes.armadillo({"armadillo.obj": save(tmp_path, "v 0 0 0\n", "armadillo.obj")})


@pytest.mark.parametrize("name", ["bunny", "armadillo"])
def test_real_meshes_are_closed_surfaces(real_dataset, tmp_path, name):
    adata, entry = real_dataset(name), registry.get(name)
    faces = adata.uns["faces"]
    assert adata.shape == entry.shape["mesh"]
    assert faces.shape == (entry.n_faces, 3)
    assert set(faces.ravel()) == set(range(adata.n_obs))
    edges = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    kinds, counts = np.unique(edges, axis=0, return_counts=True)
    assert counts.max() == 2
    # The Euler characteristic of a surface like a ball's is 2; the bunny has holes in its base.
    assert adata.n_obs - len(kinds) + len(faces) == 2 or name == "bunny"
    assert fetch.export(entry, tmp_path / f"{name}.h5ad").shape == adata.shape
    assert getattr(ct.datasets, name)().uns["celltransfer_dataset"]["name"] == name
