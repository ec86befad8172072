"""The score test: whether two sets of cells share mean and covariance, from one shared model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import chi2

from celltransfer.errors import ConfigError, InputError

FAMILIES = ("gaussian",)
MAX_CELLS = 2000
# Whitened directions are as many as cells allow: where they are as many as cells, all labels look alike.
CELLS_PER_COMPONENT = 4
# Directions with less than this share of the largest variance are rounding.
RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class ScoreTest:
    """Result of `score_test`.

    Attributes
    ----------
    statistic
        The Lagrange multiplier statistic.
    df
        Free parameters of the shared model: r + r (r + 1) / 2 with r the number of directions compared.
    p_value
        Share of relabellings where means or covariances stand out as much, the observed one among them.
    p_chi2
        Its upper tail in the chi-square law with `df` degrees of freedom: right for Gaussian cells that outnumber the
        parameters, and for no others.
    contributions
        What each feature adds to the statistic, shape (d,); they sum to it. A pair of features shares its part.
    """

    statistic: float
    df: int
    p_value: float
    p_chi2: float
    contributions: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return {**vars(self), "contributions": [float(value) for value in self.contributions]}


def score_test(
    a: np.ndarray, b: np.ndarray, *, family: str = "gaussian", n_permutations: int = 999, seed: int = 0
) -> ScoreTest:
    r"""Test whether one shared model fits two sets of cells equally: the cheap form of the log-likelihood ratio.

    One model is fitted to both sets together, and the mean gradients of the sets at its optimum are compared. They
    cancel there, and each is zero only if the model is the best of its family for either set. For the Gaussian family,
    with z the cells whitened by the pooled moments,

    .. math::
        LM = \frac{nm}{n+m} \Big( |\Delta \bar z|^2 + \tfrac12 \|\Delta \overline{z z^T}\|_F^2 \Big),

    with the difference of the two sets' means. Written with the Gram matrix of z this is a kernel statistic, so
    the cost does not grow with the number of parameters. Its chi-square law needs Gaussian cells, many more of them
    than parameters; labels permuted need neither. It sees means and covariances alone, so a large p says nothing of
    other differences. Of more features than one for 4 cells, the leading principal components are compared. Where there
    are more than 2,000 cells of a set, that many are drawn.

    Parameters
    ----------
    a, b
        The two sets, shapes (n, d) and (m, d), at least 4 cells each.
    family
        ``"gaussian"``.
    n_permutations
        Relabellings behind `p_value`, which is at least 1 / (n_permutations + 1).
    seed
        Seed of subsample and relabellings.

    Raises
    ------
    InputError
        If widths differ, values are missing, cells are too few, or nothing varies.

    References
    ----------
    Usman et al. 2020, Log-likelihood ratio minimizing flows, section 8.4; Rao 1948, the score test.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> test = score_test(rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + [1, 0, 0])
    >>> test.p_value, int(test.contributions.argmax())
    (0.001, 0)
    """
    if family not in FAMILIES:
        raise ConfigError(f"family={family!r} has no score test; choose one of {', '.join(FAMILIES)}.")
    rng = np.random.default_rng(seed)
    a, b = (_cells(side, name, rng) for side, name in ((a, "first set"), (b, "second set")))
    if a.shape[1] != b.shape[1]:
        raise InputError(f"The sets have {a.shape[1]} and {b.shape[1]} features; they must be the same features.")
    z, rank = _whiten(np.vstack([a, b]))
    label = np.repeat([1 / len(a), -1 / len(b)], [len(a), len(b)])
    scale = len(a) * len(b) / len(z)
    gram = z @ z.T
    labels = np.vstack([label, rng.permuted(np.tile(label, (n_permutations, 1)), axis=1)])
    parts = scale * np.stack([np.einsum("ri,ri->r", labels @ k, labels) for k in (gram, gram**2 / 2)])
    mean, second = label @ z, (z * label[:, None]).T @ z
    statistic, df = float(parts[:, 0].sum()), rank + rank * (rank + 1) // 2
    return ScoreTest(
        statistic=statistic,
        df=df,
        p_value=_share_as_large(parts),
        p_chi2=float(chi2.sf(statistic, df)),
        contributions=scale * (mean**2 + (second**2).sum(axis=1) / 2),
    )


def _cells(side: np.ndarray, name: str, rng: np.random.Generator) -> np.ndarray:
    side = np.asarray(side, dtype=np.float64)
    if side.ndim != 2 or len(side) < 4 or not side.shape[1]:
        raise InputError(f"The {name} has shape {side.shape}; the score test needs (4 or more cells, features).")
    if not np.isfinite(side).all():
        raise InputError(
            f"The {name} holds {int((~np.isfinite(side)).sum())} NaN or infinite values; drop those cells."
        )
    return side if len(side) <= MAX_CELLS else side[rng.choice(len(side), MAX_CELLS, replace=False)]


def _share_as_large(parts: np.ndarray) -> float:
    """Share of labellings, columns of (2, r), in which one part stands out at least as much as in the first.

    The parts have unlike numbers of degrees of freedom: in their sum, those of the covariance drown a shift.
    """
    sd = parts.std(axis=1, keepdims=True)
    standing = ((parts - parts.mean(axis=1, keepdims=True)) / np.where(sd > 0, sd, 1)).max(axis=0)
    # Labellings that equal the first up to rounding are on its side.
    return float(np.mean(standing >= standing[0] - 1e-9))


def _whiten(cells: np.ndarray) -> tuple[np.ndarray, int]:
    """Cells with mean 0 and covariance 1, each coordinate as near its feature as can be (ZCA-cor), and their rank."""
    centred = cells - cells.mean(axis=0)
    sd = centred.std(axis=0)
    standard = np.divide(centred, sd, out=np.zeros_like(centred), where=sd > 0)
    u, s, vt = np.linalg.svd(standard, full_matrices=False)
    kept = s**2 > RANK_TOLERANCE * s[:1] ** 2
    if not kept.any():
        raise InputError("No feature varies over the cells of both sets; there is nothing to test.")
    rank = min(int(kept.sum()), max(1, len(cells) // CELLS_PER_COMPONENT))
    return np.sqrt(len(cells)) * u[:, :rank] @ vt[:rank], rank
