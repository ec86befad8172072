"""Simulated RNA and ATAC with a known sparse regulatory map."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.special import expit

from celltransfer.datasets.assemble import assemble, counts
from celltransfer.errors import ConfigError

if TYPE_CHECKING:
    from mudata import MuData

_STEP = 2.0  # length of a branch in latent space
_NOISE = 0.5  # standard deviation of a cell around its branch, per program
_SHIFT = 1.0  # effect of the treatment on each program it touches
_REPRESSORS = 0.2  # share of the peaks that lower their gene
_TEST = 0.25


class _Cells(NamedTuple):
    obs: pd.DataFrame
    latent: np.ndarray
    shift: np.ndarray


def simulate(
    n_obs: int = 2000,
    n_genes: int = 300,
    n_peaks: int = 600,
    n_types: int = 5,
    *,
    coassayed: float = 1.0,
    n_anchors: int | None = None,
    n_programs: int = 10,
    peaks_per_gene: int = 3,
    rna_depth: float = 400.0,
    atac_depth: float = 250.0,
    depth_sd: float = 0.4,
    dispersion: float = 0.2,
    dropout: float = 0.3,
    seed: int = 0,
) -> MuData:
    r"""Simulate RNA and ATAC counts of cells on a branching trajectory, with all truth kept.

    Cell :math:`i` of type :math:`t` sits at position :math:`u_i \sim U(0, 1)` of branch :math:`t`, which runs from the
    end of its parent branch, :math:`s_t`, to :math:`e_t` in the space of :math:`d` regulatory programs. The treatment
    :math:`c_i \in \{0, 1\}` shifts a third of the programs by :math:`\delta`:

    .. math:: z_i = s_t + u_i (e_t - s_t) + c_i \delta + \epsilon_i, \qquad \epsilon_i \sim N(0, 0.5^2 I_d)

    Each peak :math:`j` follows one or two programs, :math:`W` being sparse; each gene :math:`g` follows
    ``peaks_per_gene`` peaks, :math:`M` being the sparse **regulatory map** (80 % enhancers, 20 % repressors):

    .. math:: a_{ij} = \sigma(b_j + W_j z_i), \qquad \mu_{ig} = \exp(\beta_g + M_g (a_i - \bar a))

    Counts have log-normal depths :math:`\ell_i` (log correlation 0.5 between the modalities), negative binomial noise
    in RNA, Poisson noise in ATAC, and dropout of entries, more often of low ones, in RNA:

    .. math::

        \lambda_{ig} = \ell^R_i \frac{\mu_{ig}}{\sum_h \mu_{ih}}, \quad y_{ig} \sim B_{ig} NB(\lambda_{ig}, \phi), \quad
        P(B_{ig} = 0) = \pi e^{-\lambda_{ig}}, \qquad x_{ij} \sim Pois\Big(\ell^A_i \frac{a_{ij}}{\sum_k a_{ik}}\Big)

    Parameters
    ----------
    n_obs
        Number of cells in all.
    n_genes, n_peaks
        Number of features.
    n_types
        Number of branches; the parent of branch :math:`t` is branch :math:`\lfloor (t - 1) / 2 \rfloor`.
    coassayed
        Share of cells measured in both modalities; of the rest one half has RNA only and the other ATAC only.
    n_anchors
        Mark this many co-assayed training cells in the boolean column ``obs["anchor"]``. ``None``: no such column.
    n_programs
        Dimension :math:`d` of the latent space.
    peaks_per_gene
        Non-zeros in each row of the map.
    rna_depth, atac_depth
        Median counts per cell, before dropout.
    depth_sd
        Standard deviation of the log depth.
    dispersion
        :math:`\phi` of the negative binomial, whose variance is :math:`\lambda + \phi \lambda^2`; 0 gives Poisson.
    dropout
        :math:`\pi`.
    seed
        Seed of the one generator that everything is drawn from.

    Returns
    -------
    MuData with ``rna`` and ``atac``, counts as CSR ``float32``, and

    - ``obs``: ``cell_type``, ``pseudotime`` (in [0, 1], from the root), ``condition`` (control, treated), ``split``
      (75 % train, 25 % test), and ``anchor`` where asked for;
    - ``layers["rate"]`` in both: noise-free expected counts at the median depth;
    - ``obsm["truth_latent"]``: :math:`z`, shape ``(n_obs, n_programs)``;
    - ``uns["truth"]``: ``regulatory_map`` :math:`M` (CSR, genes x peaks), ``peak_loadings`` :math:`W` (CSR,
      peaks x programs), ``peak_offset`` :math:`b`, ``gene_offset`` :math:`\beta`, ``mean_accessibility``
      :math:`\bar a`, ``condition_shift`` :math:`\delta`.

    Raises
    ------
    ConfigError
        A number is out of range.

    Examples
    --------
    >>> import celltransfer as ct
    >>> mdata = ct.datasets.simulate(n_obs=200, coassayed=0.2, n_anchors=10, seed=1)
    >>> mdata["rna"].n_obs, mdata["atac"].n_obs, int(mdata.obs["anchor"].sum())
    (120, 120, 10)
    """
    _check(n_obs, n_genes, n_peaks, n_types, n_programs, peaks_per_gene, rna_depth, atac_depth)
    _check_shares(coassayed=coassayed, dropout=dropout)
    rng = np.random.default_rng(seed)
    cells = _cells(rng, n_obs, n_types, n_programs)
    loadings = _loadings(rng, n_peaks, n_programs)
    regulation = _regulatory_map(rng, n_genes, n_peaks, peaks_per_gene)
    peak_offset, gene_offset = rng.normal(-1.0, 1.0, n_peaks), rng.normal(0.0, 1.0, n_genes)
    access = expit(peak_offset + cells.latent @ loadings.T)
    mean_access = access.mean(axis=0)
    expression = np.exp(gene_offset + (access - mean_access) @ regulation.T)
    depth_rna, depth_atac = _depths(rng, n_obs, depth_sd)
    rates = {"rna": _proportions(expression) * rna_depth, "atac": _proportions(access) * atac_depth}
    matrices = {
        "rna": _draw_rna(rng, rates["rna"] * depth_rna[:, None], dispersion, dropout),
        "atac": rng.poisson(rates["atac"] * depth_atac[:, None]),
    }
    truth = {
        "regulatory_map": regulation,
        "peak_loadings": loadings,
        "peak_offset": peak_offset,
        "gene_offset": gene_offset,
        "mean_accessibility": mean_access,
        "condition_shift": cells.shift,
    }
    measured = _measured(rng, n_obs, coassayed)
    if n_anchors is not None:
        cells.obs["anchor"] = _anchors(
            rng, n_anchors, measured["rna"] & measured["atac"] & (cells.obs["split"] == "train")
        )
    modalities = {
        name: _modality(name, matrices[name], rates[name], cells.obs.index, measured[name]) for name in ("rna", "atac")
    }
    mdata = assemble("simulate", modalities, cells.obs, {"truth": truth})
    mdata.obsm["truth_latent"] = cells.latent[cells.obs.index.get_indexer(mdata.obs_names)]
    return mdata


def _check(
    n_obs: int, n_genes: int, n_peaks: int, n_types: int, n_programs: int, peaks_per_gene: int, *depths: float
) -> None:
    if min(n_obs, n_genes, n_peaks, n_types, n_programs, peaks_per_gene) < 1 or min(depths) <= 0:
        raise ConfigError(
            "simulate: all numbers of cells, features, types and programs, and the depths, must be positive."
        )
    if n_peaks < peaks_per_gene:
        raise ConfigError(f"simulate: peaks_per_gene={peaks_per_gene} is more than n_peaks={n_peaks}.")


def _check_shares(**shares: float) -> None:
    for name, value in shares.items():
        if not 0.0 <= value <= 1.0:
            raise ConfigError(f"simulate: {name}={value} must lie between 0 and 1.")


def _cells(rng: np.random.Generator, n_obs: int, n_types: int, n_programs: int) -> _Cells:
    start, end, depth = _branches(rng, n_types, n_programs)
    kind = rng.permutation(np.arange(n_obs) % n_types)
    position = rng.uniform(size=n_obs)
    treated = rng.permutation(np.arange(n_obs) % 2)
    shift = np.zeros(n_programs)
    touched = rng.choice(n_programs, max(1, n_programs // 3), replace=False)
    shift[touched] = _SHIFT * rng.choice([-1.0, 1.0], len(touched))
    latent = start[kind] + position[:, None] * (end - start)[kind] + treated[:, None] * shift
    latent += rng.normal(0.0, _NOISE, latent.shape)
    obs = pd.DataFrame(
        {
            "cell_type": [f"type_{t}" for t in kind],
            "pseudotime": (depth[kind] + position) / (depth.max() + 1),
            "condition": np.where(treated == 1, "treated", "control"),
            "split": np.where(rng.permutation(n_obs) < round(_TEST * n_obs), "test", "train"),
        },
        index=pd.Index([f"cell_{i:06d}" for i in range(n_obs)], name="cell"),
    )
    return _Cells(obs, latent, shift)


def _branches(rng: np.random.Generator, n_types: int, n_programs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Start and end of each branch, ``(n_types, n_programs)``, and the number of branches before it."""
    direction = rng.normal(size=(n_types, n_programs))
    direction *= _STEP / np.linalg.norm(direction, axis=1, keepdims=True)
    start, depth = np.zeros_like(direction), np.zeros(n_types, dtype=np.int64)
    for t in range(1, n_types):
        parent = (t - 1) // 2
        start[t], depth[t] = start[parent] + direction[parent], depth[parent] + 1
    return start, start + direction, depth


def _random_rows(rng: np.random.Generator, n_rows: int, n_columns: int, per_row: int) -> np.ndarray:
    """``per_row`` distinct column numbers for each row, shape ``(n_rows, per_row)``."""
    return np.argpartition(rng.random((n_rows, n_columns)), per_row - 1, axis=1)[:, :per_row]


def _sparse(columns: np.ndarray, values: np.ndarray, n_columns: int) -> sparse.csr_matrix:
    n_rows, per_row = columns.shape
    indptr = np.arange(0, n_rows * per_row + 1, per_row)
    matrix = sparse.csr_matrix((values.ravel(), columns.ravel(), indptr), shape=(n_rows, n_columns))
    matrix.sort_indices()
    matrix.eliminate_zeros()
    return matrix


def _loadings(rng: np.random.Generator, n_peaks: int, n_programs: int) -> sparse.csr_matrix:
    """One program for half of the peaks and two for the others, where there are two."""
    columns = _random_rows(rng, n_peaks, n_programs, min(2, n_programs))
    values = rng.normal(0.0, 1.5, columns.shape)
    values[: n_peaks // 2, 1:] = 0.0
    return _sparse(columns, values, n_programs)


def _regulatory_map(rng: np.random.Generator, n_genes: int, n_peaks: int, per_gene: int) -> sparse.csr_matrix:
    columns = _random_rows(rng, n_genes, n_peaks, per_gene)
    sign = np.where(rng.random(columns.shape) < _REPRESSORS, -1.0, 1.0)
    return _sparse(columns, sign * rng.uniform(1.0, 3.0, columns.shape), n_peaks)


def _depths(rng: np.random.Generator, n_obs: int, sd: float) -> np.ndarray:
    """Relative depths of both modalities, shape ``(2, n_obs)``, median 1, log correlation 0.5."""
    common, own = rng.normal(size=n_obs), rng.normal(size=(2, n_obs))
    return np.exp(sd * (common + own) / np.sqrt(2.0))


def _proportions(values: np.ndarray) -> np.ndarray:
    return values / values.sum(axis=1, keepdims=True)


def _draw_rna(rng: np.random.Generator, rate: np.ndarray, dispersion: float, dropout: float) -> np.ndarray:
    noisy = rate if dispersion == 0 else rate * rng.gamma(1.0 / dispersion, dispersion, rate.shape)
    kept = rng.random(rate.shape) >= dropout * np.exp(-rate)
    return rng.poisson(noisy) * kept


def _measured(rng: np.random.Generator, n_obs: int, coassayed: float) -> dict[str, np.ndarray]:
    order, both = rng.permutation(n_obs), round(coassayed * n_obs)
    middle = both + (n_obs - both) // 2
    return {"rna": order < middle, "atac": (order < both) | (order >= middle)}


def _anchors(rng: np.random.Generator, n_anchors: int, candidates: pd.Series) -> np.ndarray:
    rows = np.flatnonzero(candidates)
    if not 0 <= n_anchors <= len(rows):
        raise ConfigError(f"simulate: n_anchors={n_anchors}, but there are {len(rows)} co-assayed training cells.")
    anchor = np.zeros(len(candidates), dtype=bool)
    anchor[rng.choice(rows, n_anchors, replace=False)] = True
    return anchor


def _modality(name: str, matrix: np.ndarray, rate: np.ndarray, cells: pd.Index, measured: np.ndarray) -> AnnData:
    prefix = {"rna": "gene", "atac": "peak"}[name]
    var = pd.DataFrame(index=[f"{prefix}_{j:04d}" for j in range(matrix.shape[1])])
    obs = pd.DataFrame(index=cells[measured])
    return AnnData(counts(matrix[measured]), obs=obs, var=var, layers={"rate": rate[measured].astype(np.float32)})
