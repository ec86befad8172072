"""Before a sparse-mixing fit: scales, a look at counts, and a linear start from components, ridge and anchors."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch

from celltransfer.data.pair import ModalityPair, dense
from celltransfer.errors import CountsError
from celltransfer.nn.blocks import Residual
from celltransfer.pp.transforms import moments
from celltransfer.translators.baselines import anchor_and_condition_map, several_conditions
from celltransfer.translators.holdout import condition_codes
from celltransfer.translators.sparse_mixing.likelihoods import negative_binomial

if TYPE_CHECKING:
    from torch import nn

    from celltransfer.data.pair import Matrix
    from celltransfer.translators.sparse_mixing.likelihoods import Side
    from celltransfer.translators.sparse_mixing.networks import Mixing

# Log standard deviation of the encoders at the start, and the cells whose components are taken.
START_LOG_SD, MOST_CELLS = -1.0, 5000
# Cells and features up to which components are exact.
LARGE = 500


def start_linear(net: Mixing, pair: ModalityPair) -> None:
    """Set the linear parts of all encoders and decoders.

    The source's latents are its whitened principal components, turned so that the first ones hold what differs between
    the means of the domains: a latent that mixes content and style is hard to take apart later. With anchors or
    conditions the target's latents are what ridge regression says of the source's, from them; without, its own
    components. Counts start at random.
    """
    source, target = net.side(0), net.side(1)
    if "gaussian" != source.likelihood or "gaussian" != target.likelihood:
        return
    encode, decode = _components(net, pair, (0, 1) if source is target else (0,))
    _set(source, encode, np.zeros(encode.shape[1]), decode, np.zeros(len(encode)))
    if target is source:
        return
    if not pair.n_anchors and not several_conditions(pair):
        encode, decode = _components(net, pair, (1,))
        _set(target, encode, np.zeros(encode.shape[1]), decode, np.zeros(len(encode)))
        return
    forward, offset = _between(pair, source, target)
    back, offset_back = _between(_turned(pair), target, source)
    _set(target, back @ encode, offset_back @ encode, decode @ forward, offset)


def _between(pair: ModalityPair, one: Side, other: Side) -> tuple[np.ndarray, np.ndarray]:
    """Ridge from scaled features to scaled features: weight (d, D) and offset (D,)."""
    weight, offset = anchor_and_condition_map(pair)
    means = one.mean.double().numpy(), other.mean.double().numpy()
    scales = float(one.scale), float(other.scale)
    return weight * (scales[0] / scales[1]), (offset + means[0] @ weight - means[1]) / scales[1]


def _turned(pair: ModalityPair) -> ModalityPair:
    """The same from target to source."""
    return replace(
        pair,
        x=pair.y,
        y=pair.x,
        anchors=pair.anchors[:, ::-1],
        condition_x=pair.condition_y,
        condition_y=pair.condition_x,
        links=None,
    )


def _components(net: Mixing, pair: ModalityPair, sides: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Encoder (D, d) and decoder (d, D) of whitened components of the cells of some sides, domains' means first.

    Beyond the rank of the cells components are random and small.
    """
    codes, d = condition_codes(pair), net.latents.flow.d
    cells, domains = [], []
    for m in sides:
        matrix, side = (pair.x, pair.y)[m], net.side(m)
        rows = some(np.arange(matrix.shape[0]), MOST_CELLS)
        cells.append((dense(matrix[rows]) - side.mean.numpy()) / float(side.scale))
        domains.append(m * net.n_conditions + codes[m][rows])
    x, u = np.concatenate(cells), np.concatenate(domains)
    s, vt = _singular(x, d)
    rank = min(d, int((s > 1e-6 * max(s[0], 1e-12)).sum()))
    loadings = np.random.default_rng(0).normal(size=(x.shape[1], d)) / np.sqrt(x.shape[1])
    loadings[:, :rank] = vt[:rank].T
    spread = np.full(d, 0.1)
    spread[:rank] = s[:rank] / np.sqrt(len(x))
    turn = _means_first(x @ (loadings / spread), u, d - net.latents.n_content)
    return (loadings / spread) @ turn, turn.T @ (loadings * spread).T


def _singular(x: np.ndarray, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Singular values and right vectors of `x`, largest first; of a large `x` only `d`, by random projection."""
    if min(x.shape) <= LARGE:
        return np.linalg.svd(x, full_matrices=False)[1:]
    from sklearn.utils.extmath import randomized_svd

    return randomized_svd(x, min(d, LARGE), n_iter=4, random_state=0)[1:]


def _means_first(z: np.ndarray, u: np.ndarray, most: int) -> np.ndarray:
    """An orthogonal matrix whose first columns span the differences of the domains' means, at most so many.

    The others stay as near to the axes as they can, in their order.
    """
    codes, counts = np.unique(u, return_counts=True)
    means = np.stack([z[u == code].mean(0) for code in codes]) * np.sqrt(counts / len(u))[:, None]
    _, strength, directions = np.linalg.svd(means, full_matrices=False)
    first = directions[: min(most, len(codes) - 1)][strength[: min(most, len(codes) - 1)] > 1e-6]
    basis, _ = np.linalg.qr(np.concatenate([first.T, np.eye(z.shape[1])], axis=1))
    return basis


def _set(side: Side, encode: np.ndarray, centre: np.ndarray, decode: np.ndarray, offset: np.ndarray) -> None:
    d = encode.shape[1]
    weight = np.concatenate([encode, np.zeros_like(encode)], axis=1)
    bias = np.concatenate([centre, np.full(d, START_LOG_SD)])
    for network, w, b in ((side.encoder, weight, bias), (side.decoder, decode, offset)):
        layer = _linear(network)
        with torch.no_grad():
            layer.weight.copy_(torch.as_tensor(np.ascontiguousarray(w.T)))
            layer.bias.copy_(torch.as_tensor(b))


def _linear(network: nn.Module) -> nn.Linear:
    """The linear layer of a linear or residual map."""
    return network.linear if isinstance(network, Residual) else network[0]  # type: ignore[index]


def some(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, from all over."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def set_scale(side: Side, *matrices: Matrix) -> None:
    """Centre and scale of Gaussian features; the median depth of counts. Of all cells together."""
    matrix = matrices[0] if len(matrices) == 1 else _stacked(matrices)
    if side.likelihood != "gaussian":
        side.depth.fill_(max(float(np.median(np.asarray(matrix.sum(axis=1)))), 1.0))
        return
    mean, deviation = moments(matrix)
    side.mean.copy_(torch.as_tensor(mean))
    side.scale.fill_(max(float(np.square(deviation).mean()), 1e-12) ** 0.5)


def check_counts(matrix: Matrix, kind: str, what: str) -> None:
    """Refuse features that are no counts; look for what the likelihood needs before training starts."""
    values = matrix.data if not isinstance(matrix, np.ndarray) else matrix
    if (values < 0).any() or (kind == "nb" and not np.array_equal(values, np.round(values))):
        raise CountsError(
            f"likelihood_{what}={kind!r} needs counts, and the {what} features are normalised or reduced. Give that "
            'modality the recipe "none", on raw counts.'
        )
    if kind == "nb":
        negative_binomial()


def _stacked(matrices: tuple[Matrix, ...]) -> Matrix:
    return sp.vstack([sp.csr_matrix(matrix) for matrix in matrices]).tocsr()
