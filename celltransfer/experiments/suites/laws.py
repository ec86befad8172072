"""How near a conditional law is to the truth, source by source: the right marginal law alone scores badly here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import pdist

from celltransfer.errors import InputError
from celltransfer.metrics import scores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Truth = np.ndarray | Sequence[np.ndarray]

__all__ = ["energy_distance", "energy_score", "frechet_distance", "modes_found"]

# Share of a law's samples that must be near a mode for it to count as found.
LEAST = 0.1


def energy_distance(samples: np.ndarray, truth: Truth) -> np.ndarray:
    """Energy distance of each source's samples to the truth, as a U-statistic: unbiased, and around 0 for the truth.

    Parameters
    ----------
    samples
        A law's samples, shape (n, cells, D).
    truth
        Samples of the true law, shape (m, cells, D), or for each cell an array (m_i, D) of its own. At least two each.

    Returns
    -------
    By cell, shape (cells,); take the mean.
    """
    return np.array([scores.energy_distance(ours, true) for ours, true in _cells(samples, truth)])


def energy_score(samples: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Energy score E|Y - y| - E|Y - Y'| / 2 of samples (n, cells, D) against one true cell each (cells, D).

    Proper: its mean is least for the true law, though there is but one true cell for each source. Lower is better.

    References
    ----------
    Gneiting & Raftery 2007, Strictly proper scoring rules, J Am Stat Assoc.
    """
    near = np.linalg.norm(samples - y, axis=2).mean(axis=0)
    if len(samples) < 2:
        return near
    return near - np.array([pdist(own).mean() for own in samples.transpose(1, 0, 2)]) / 2


def frechet_distance(samples: np.ndarray, truth: Truth) -> np.ndarray:
    r"""Fréchet distance of Gaussians with the moments of each source's samples and of the truth.

    .. math:: |m - m'|^2 + \operatorname{tr}\bigl(S + S' - 2 (S^{1/2} S' S^{1/2})^{1/2}\bigr)

    A squared distance, as in the Fréchet inception distance. With few samples it is biased upwards, so compare laws
    with the same numbers of samples only. Arguments and result as for `energy_distance`; one sample has variance 0.
    """
    return np.array([frechet(ours, true) for ours, true in _cells(samples, truth)])


def modes_found(samples: np.ndarray, modes: np.ndarray, radius: float | np.ndarray, least: float = LEAST) -> np.ndarray:
    """Whether each source's law has at least the share `least` of its samples near every mode.

    A sample is near its nearest mode if it is not further than the mode's `radius` from it.

    Parameters
    ----------
    samples
        Shape (n, cells, D).
    modes
        The modes of the truth, shape (modes, cells, D).
    radius
        One for all, or of every mode, shape (modes, cells).
    least
        See above.

    Returns
    -------
    Truth values, shape (cells,).
    """
    distance = np.linalg.norm(samples[None] - modes[:, None], axis=3)
    nearest = distance.argmin(axis=0) == np.arange(len(modes))[:, None, None]
    radii = np.broadcast_to(radius, modes.shape[:2])[:, None]
    return ((nearest & (distance <= radii)).mean(axis=1) >= least).all(axis=0)


def _cells(samples: np.ndarray, truth: Truth) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Samples (n, D) and truth (m, D) of one cell after the other."""
    true = truth.transpose(1, 0, 2) if isinstance(truth, np.ndarray) else truth
    if samples.ndim != 3 or len(true) != samples.shape[1]:
        raise InputError(f"The samples have shape {samples.shape} and the truth {len(true)} cells; expected as many.")
    return zip(samples.transpose(1, 0, 2), true, strict=True)


def frechet(ours: np.ndarray, true: np.ndarray) -> float:
    r"""Squared 2-Wasserstein distance of the Gaussians with the moments of two samples, shapes (n, d) and (m, d).

    .. math:: \|\mu - \mu'\|^2 + \operatorname{tr}(S + S' - 2 (S^{1/2} S' S^{1/2})^{1/2})

    With factors S = R^T R, the trace of the root is the sum of the singular values of R R'^T: no root is taken.
    """
    gap = ours.mean(axis=0) - true.mean(axis=0)
    a, b = _factor(ours), _factor(true)
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(gap @ gap + np.square(a).sum() + np.square(b).sum() - 2 * root)


def _factor(points: np.ndarray) -> np.ndarray:
    """An R with R^T R the covariance of the points."""
    centred = np.asarray(points, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    return np.linalg.qr(centred, mode="r") / np.sqrt(max(len(points) - 1, 1))
