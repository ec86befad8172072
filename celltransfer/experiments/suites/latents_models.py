"""Suite ``latents``: the generator whose latents are known, and what is fitted to it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn.functional import one_hot

from celltransfer.nn.blocks import MLP
from celltransfer.train.loop import Trainer
from celltransfer.translators.sparse_mixing.domains import gaussian_divergence
from celltransfer.translators.sparse_mixing.networks import draw
from celltransfer.translators.sparse_mixing.sparse_mixing import SparseMixing

CONTENT, STYLE, OBSERVED, NOISE = 2, 4, 20, 0.1
# Standard deviation the decoder is told to leave: a learned one lets it give up when the penalty is strong.
ALLOWED = 0.15
# Cells a step.
BATCH = 128


class Sample(NamedTuple):
    """Observations (n, `OBSERVED`), domains (n,), latents (n, `CONTENT` + `STYLE`), and the edges (observed, latents).

    Content comes first among the latents.
    """

    x: np.ndarray
    u: np.ndarray
    z: np.ndarray
    edges: np.ndarray


def generate(seed: int, n_domains: int, n: int) -> Sample:
    r"""Dataset A: style with means and variances of its own in every domain, and a sparse nonlinear mixing.

    Content is standard normal. Style j of domain u is N(m, s^2) with m uniform on (-2, 2) and log s on (-.7, .7). All
    latents are brought to unit variance over the domains. Every observation depends on one or two latents S_i,

    .. math:: x_i = t_i + \tanh(2 t_i + b_i) + \tfrac12 \sin(1.5 \, t'_i), \quad t_i = w_i^\top z_{S_i}

    (t' with weights of its own; all weights uniform on .5 to 1.5 with random signs; every latent is the first of its
    share of the observations), is brought to unit variance, and gets noise of standard deviation `NOISE`.
    """
    rng, d = np.random.default_rng([seed, n_domains, 7]), CONTENT + STYLE
    mean, sd = rng.uniform(-2, 2, (n_domains, STYLE)), np.exp(rng.uniform(-0.7, 0.7, (n_domains, STYLE)))
    u, z = rng.integers(n_domains, size=n), rng.normal(size=(n, d))
    z[:, CONTENT:] = z[:, CONTENT:] * sd[u] + mean[u]
    z = (z - z.mean(0)) / z.std(0)
    edges = np.zeros((OBSERVED, d), bool)
    for i in range(OBSERVED):
        edges[i, i % d] = True
        edges[i, rng.choice(np.delete(np.arange(d), i % d), rng.integers(2), replace=False)] = True
    first, second = (rng.uniform(0.5, 1.5, edges.shape) * rng.choice([-1, 1], edges.shape) * edges for _ in range(2))
    t = z @ first.T
    x = t + np.tanh(2 * t + rng.normal(size=OBSERVED)) + 0.5 * np.sin(1.5 * (z @ second.T))
    x = (x - x.mean(0)) / x.std(0) + NOISE * rng.normal(size=x.shape)
    return Sample(x.astype(np.float32), u, z, edges)


def fit(data: Sample, options: dict[str, Any], *, seed: int, steps: int, device: str = "cpu") -> np.ndarray:
    """Latents of all cells that `SparseMixing` recovers, posterior means (n, d), content first.

    The model has seen the first half alone. A domain is a condition, and its cells are source or target at random: of
    one modality, with no anchors.
    """
    rng, seen = np.random.default_rng([seed, 3]), len(data.x) // 2
    source = rng.permuted(np.arange(seen) % 2 == 0)
    x, u = data.x[:seen], data.u[:seen]
    f = SparseMixing(n_content=CONTENT, n_style=STYLE, shared=True, **options)
    trainer = Trainer(max_steps=steps, batch_size=BATCH // 2, device=device, progress=False)  # cells a side
    f.fit(x[source], x[~source], condition_x=u[source], condition_y=u[~source], seed=seed, trainer=trainer)
    return np.hstack(f.split(data.x))


def fit_conditional(data: Sample, *, seed: int, steps: int, hidden: int = 64, lr: float = 3e-3) -> np.ndarray:
    """The same by a plain conditional VAE: encoder and decoder are told the domain, and latents are N(0, I).

    As many cells a step, networks, noise and learning rate are those of `fit`; its last state is kept, where that keeps
    the best on held-out cells. On the CPU, whatever the device of the suite.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, told = torch.as_tensor(data.x), one_hot(torch.as_tensor(data.u)).float()
    d, seen, n_domains = CONTENT + STYLE, len(x) // 2, told.shape[1]
    encoder = MLP(OBSERVED + n_domains, 2 * d, (hidden, hidden), "silu")
    decoder = MLP(d + n_domains, OBSERVED, (hidden, hidden), "silu")
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=lr)
    for _ in range(steps):
        rows = torch.randint(seen, (BATCH,), generator=generator)
        mean, log_sd = _encoded(encoder, x[rows], told[rows])
        z = draw(mean, log_sd, generator)
        error = (decoder(torch.cat([z, told[rows]], dim=1)) - x[rows]).square().mean()
        divergence = gaussian_divergence(mean, log_sd).sum(1).mean() / OBSERVED
        loss = 0.5 * error / ALLOWED**2 + divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return _encoded(encoder, x, told)[0].numpy()


def supervised(data: Sample, seed: int) -> np.ndarray:
    """The ceiling: latents regressed on observations, with the true latents of the first half."""
    from sklearn.neural_network import MLPRegressor

    seen = len(data.x) // 2
    model = MLPRegressor(hidden_layer_sizes=(64, 64), early_stopping=True, random_state=seed, max_iter=60)
    return np.asarray(model.fit(data.x[:seen], data.z[:seen]).predict(data.x))


def rotated(data: Sample, seed: int) -> np.ndarray:
    """The chance level: the true latents, turned at random, which explains the data as well and finds nothing."""
    rng = np.random.default_rng(seed)
    return data.z @ np.linalg.qr(rng.normal(size=(data.z.shape[1],) * 2))[0]


def mcc(truth: np.ndarray, found: np.ndarray, *, ranks: bool = False) -> float:
    """Mean absolute correlation of true and recovered latents, matched one to one for the largest sum.

    Pearson's, or with `ranks` Spearman's, which does not ask that a latent be found on its own scale.
    """
    if ranks:
        truth, found = rankdata(truth, axis=0), rankdata(found, axis=0)
    m = truth.shape[1]
    between = np.nan_to_num(np.abs(np.corrcoef(truth.T, found.T)[:m, m:]))
    return float(between[linear_sum_assignment(between, maximize=True)].mean())


def explained(of: np.ndarray, by: np.ndarray) -> float:
    """R^2 of some latents given others, by 20 nearest neighbours fitted on the first half, on the second."""
    from sklearn.neighbors import KNeighborsRegressor

    by = by / np.maximum(by.std(0), 1e-6)
    half = len(of) // 2
    return float(KNeighborsRegressor(20).fit(by[:half], of[:half]).score(by[half:], of[half:]))


def _encoded(encoder: nn.Module, x: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_sd = encoder(torch.cat([x, told], dim=1)).chunk(2, dim=1)
    return mean, log_sd.clamp(-6, 2)
