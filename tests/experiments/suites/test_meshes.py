"""Meshes: what is measured of a surface, and how rows become claims."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import meshes
from celltransfer.experiments.suites.meshes import AFFINE, ARMS, BACK, CEILING, CHANCE, OURS, Mesh, Meshes

TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])


def sheet(n=12):
    """A flat square of n x n vertices, two faces to each cell."""
    x, y = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    corner = (np.arange(n - 1)[:, None] * n + np.arange(n - 1)).ravel()
    faces = np.concatenate(
        [np.stack([corner, corner + n, corner + n + 1], 1), np.stack([corner, corner + n + 1, corner + 1], 1)]
    )
    return Mesh(np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], axis=1).astype(np.float32), faces)


def test_edges_and_neighbouring_faces_of_a_closed_surface():
    edges, pairs = meshes.edges_of(TETRAHEDRON)
    assert len(edges) == len(pairs) == 6
    assert {tuple(edge) for edge in edges} == {(i, j) for i in range(4) for j in range(i + 1, 4)}
    assert {tuple(sorted(pair)) for pair in pairs} == {(i, j) for i in range(4) for j in range(i + 1, 4)}
    for one, other in pairs:
        assert len(set(TETRAHEDRON[one]) & set(TETRAHEDRON[other])) == 2


def test_a_rigid_motion_and_a_scale_keep_the_surface():
    mesh = sheet()
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    found = meshes.surface(mesh, 7 * mesh.vertices @ turn + 3)
    assert found["stretch"] == pytest.approx(0, abs=1e-5)
    assert found["folded"] == 0
    assert found["kept"] == 1


def test_stretching_folding_and_tearing_are_seen():
    mesh = sheet()
    wide = meshes.surface(mesh, mesh.vertices * [4, 1, 1])
    assert wide["stretch"] > 0.4
    assert wide["folded"] == 0
    folded = mesh.vertices.copy()
    folded[:, 0] = np.abs(folded[:, 0] - 5)
    crease = meshes.surface(mesh, folded)
    # 11 of the pairs of neighbouring faces lie across the crease.
    assert crease["folded"] == pytest.approx(11 / len(meshes.edges_of(mesh.faces)[1]))
    assert crease["stretch"] == pytest.approx(0, abs=1e-6)
    torn = meshes.surface(mesh, mesh.vertices[np.random.default_rng(0).permutation(144)])
    assert torn["kept"] < 0.4
    assert torn["folded"] > 0.3


def rows(values, n=3):
    """Rows with the figures of each arm, which differ a little between seeds."""
    wiggle = np.random.default_rng(0).normal(size=(n, len(ARMS))) * 1e-4
    made = [
        {"arm": arm, "seed": seed, "loss": 0.1, "verdict": "not aligned"}
        | {name: value + wiggle[seed, i] for name, value in values[arm].items()}
        for i, arm in enumerate(ARMS)
        for seed in range(n)
    ]
    return pd.DataFrame(made)


def figures(stretch, folded, kept, distance, auc):
    return {"stretch": stretch, "folded": folded, "kept": kept, "energy_distance": distance, "auc": auc}


CONTROLS = {
    AFFINE: figures(0.1, 0.01, 0.9, 0.2, 0.9),
    CHANCE: figures(1.0, 0.5, 0.0, 0.0, 0.5),
    CEILING: figures(0.0, 0.0, 0.98, np.nan, np.nan),
}


def test_claims_of_a_paper_that_is_right_and_of_one_that_is_not():
    good, bad = figures(0.2, 0.02, 0.9, 0.01, 0.55), figures(0.9, 0.3, 0.5, 0.01, 0.55)
    claims = Meshes().claims(rows(CONTROLS | {OURS: good, BACK: bad}))
    assert [claim.holds for claim in claims] == [True] * len(claims)
    off = {"energy_distance": 0.5, "auc": 0.9}
    claims = Meshes().claims(rows(CONTROLS | {OURS: bad | off, BACK: good | off | {"kept": 0.99}}))
    assert [claim.holds for claim in claims] == [False] * len(claims)


def test_the_table_has_every_arm_and_one_seed_tells_nothing():
    made = rows(CONTROLS | {arm: figures(0.2, 0.02, 0.9, 0.01, 0.55) for arm in (OURS, BACK)}, n=1)
    assert list(Meshes().table(made).index) == list(ARMS)
    assert {claim.holds for claim in Meshes().claims(made)} == {None}


def test_a_short_run_from_end_to_end(real_dataset, monkeypatch, tmp_path):
    for name in (meshes.SOURCE, meshes.TARGET):
        real_dataset(name)
    meshes.fitted.cache_clear()
    monkeypatch.setattr(meshes, "STEPS", 3)
    monkeypatch.setattr("celltransfer.translators.lrmf.lrmf.DENSITY_STEPS", 3)
    outcome = base.run("meshes", seeds=1, out=tmp_path, device="cpu")
    meshes.fitted.cache_clear()
    scores = outcome.rows.set_index("arm")
    assert scores.loc[CEILING, "stretch"] == 0
    assert scores.loc[CHANCE, "kept"] < 0.1 < scores.loc[OURS, "kept"]
    assert abs(scores.loc[CHANCE, "auc"] - 0.5) < 0.1
    assert [axes.get_title() for axes in outcome.figure.axes] == ["bunny", "armadillo", *meshes.DRAWN]
