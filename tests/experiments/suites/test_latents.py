"""Latents: the generator is what it says, scores know truth from rotations, rows become claims."""

import numpy as np
import pandas as pd
import pytest
from celltransfer.experiments import suites as base
from celltransfer.experiments.suites import latents
from celltransfer.experiments.suites.latents import ARMS, CEILING, CHANCE, DOMAINS, ELSEWHERE, OFF, ON, PLAIN
from celltransfer.experiments.suites.latents_models import (
    CONTENT,
    explained,
    fit,
    fit_conditional,
    generate,
    mcc,
    rotated,
)


def test_generator_mixes_sparsely_and_changes_style_alone():
    data = generate(0, 4, 20_000)
    assert set(data.edges.sum(1)) <= {1, 2}
    assert data.edges.sum(0).min() >= 3
    np.testing.assert_allclose(data.z.std(0), 1)
    means = np.stack([data.z[data.u == u].mean(0) for u in range(4)])
    assert np.abs(means[:, :CONTENT]).max() < 0.06
    assert means[:, CONTENT:].std(0).min() > 0.1
    # An observation is explained by the latents that it has edges to, up to the noise.
    for x, edges in zip(data.x.T[:6], data.edges[:6], strict=True):
        assert explained(x, data.z[:, edges]) > 0.95


def test_mcc_finds_permuted_and_bent_latents_and_not_rotated_ones():
    data = generate(1, 2, 2000)
    bent = np.exp(-data.z[:, ::-1])
    assert mcc(data.z, bent, ranks=True) == pytest.approx(1)
    assert mcc(data.z, bent) < 0.95
    assert mcc(data.z, -3 * data.z[:, ::-1]) == pytest.approx(1)
    assert mcc(data.z, rotated(data, 0)) < 0.85


def test_a_short_fit_returns_latents_content_first():
    data = generate(0, 2, 400)
    fits = [fit(data, options, seed=0, steps=5) for options in ({"alpha": 0.1}, {"mask": "fixed"}, {"norm": "l2"})]
    for found in (*fits, fit_conditional(data, seed=0, steps=5)):
        assert found.shape == data.z.shape
        assert np.isfinite(found).all()


@pytest.mark.slow
def test_the_method_finds_latents_by_sparsity_and_not_without():
    data = generate(10, 9, 4000)
    sparse, plain = (fit(data, ARMS[arm], seed=10, steps=1500)[2000:] for arm in (ON, OFF))
    assert mcc(data.z[2000:], sparse) > 0.9
    assert mcc(data.z[2000:], plain) < 0.9


def rows(values):
    wiggle = np.random.default_rng(0).normal(size=500) * 1e-3
    made = []
    for arm in (*ARMS, PLAIN, CHANCE, CEILING):
        for domains in ELSEWHERE.get(arm, DOMAINS):
            for seed in range(4):
                score = values(arm, domains) + wiggle[len(made)]
                scores = {"mcc": score, "mcc_spearman": score, "mcc_style": score, "content": 0.5, "leak": 0.1}
                made.append({"arm": arm, "domains": domains, "seed": seed, "seconds": 1.0} | scores)
    return pd.DataFrame(made)


def paper(arm, domains):
    """Sparsity makes up for few domains, and many make up for no sparsity."""
    if arm == ON:
        return 0.98 - 0.2 * (domains == 1)
    return 0.5 + 0.05 * domains if arm == OFF else 0.6


def test_claims_of_a_paper_that_is_right_and_of_one_that_is_not():
    claims = {claim.text: claim.holds for claim in latents.Latents().claims(rows(paper))}
    assert list(claims.values()).count(True) == len(claims) - 1  # .95 at nine domains is neither above .95 nor below
    wrong = latents.Latents().claims(rows(lambda arm, domains: 0.9 - paper(arm, domains)))
    assert not any(claim.holds for claim in wrong)


def test_a_short_run_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(latents, "STEPS", 3)
    monkeypatch.setattr(latents, "CELLS", 200)
    outcome = base.run("latents", seeds=1, out=tmp_path, device="cpu")
    assert {claim.holds for claim in outcome.claims} == {None}
    assert len(outcome.figure.axes) == 3
    assert outcome.rows.loc[outcome.rows["arm"] == CEILING, "mcc"].notna().all()
