"""Faces: the distance in closed form, the claims, and a short run."""

import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import faces
from celltransfer.experiments.suites.faces import ARMS, CONTROLS, DENSE, IDENTITY, OURS, UNMASKED, VAE


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200_000, 2))
    assert faces.frechet(a, a) == pytest.approx(0, abs=1e-9)
    # Shift (3, 0), scales 1 and 2 against 1 and 1: 9 + (2 - 1)^2.
    assert faces.frechet(a, rng.normal(size=(200_000, 2)) * [1, 2] + [3, 0]) == pytest.approx(10, abs=0.1)


def test_what_is_kept_of_a_face():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(200, 64))
    assert faces.kept(a + 5, a) == pytest.approx(1)
    assert abs(faces.kept(rng.normal(size=(200, 64)), a)) < 0.05


def test_claims_follow_the_figures():
    good = {OURS: 1.0, VAE: 3.0, DENSE: 2.0, UNMASKED: 2.0}
    wiggle = np.random.default_rng(0).normal(size=100) * 1e-3
    made = [
        {"arm": arm, "seed": seed, "male": 0.5, "content": 5.0}
        | {"frechet_made": good.get(arm, 4.0) + wiggle[seed + 4 * i], "frechet_translated": good.get(arm, 4.0)}
        | {"kept": 1 / good.get(arm, 4.0) + wiggle[50 + seed + 4 * i]}
        for i, arm in enumerate((*ARMS, *CONTROLS))
        for seed in range(3)
    ]
    claims = faces.Faces().claims(pd.DataFrame(made))
    assert [claim.holds for claim in claims] == [True] * 5
    nothing = faces.Faces().claims(pd.DataFrame(made).assign(content=0.0))
    assert [claim.holds for claim in nothing] == [True] * 3 + [None] * 2
    assert all("no latent became content" in claim.found for claim in nothing[3:])


def test_a_short_run_from_end_to_end(real_dataset, monkeypatch, tmp_path):
    real_dataset("faces_utk32")
    monkeypatch.setattr(faces, "STEPS", 3)
    outcome = base.run("faces", seeds=1, out=tmp_path, device="cpu")
    scores = outcome.rows.set_index("arm")
    assert scores.loc[IDENTITY, "kept"] == pytest.approx(1)
    assert scores.loc[IDENTITY, "male"] < 0.5 < scores.loc["ceiling: other real faces", "male"]
    assert np.isfinite(scores.loc[list(ARMS), "frechet_made"].astype(float)).all()
