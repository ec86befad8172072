"""Pictures. Each function returns a matplotlib figure and shows nothing by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from celltransfer.data.pair import dense
from celltransfer.errors import ModalityError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from mudata import MuData

    from celltransfer.model import TransferModel


def translation(
    mdata: MuData,
    model: TransferModel,
    *,
    color: str | None = None,
    key: str | None = None,
    max_cells: int = 2000,
    seed: int = 0,
) -> Figure:
    """Translated and true target cells in one UMAP, by `color` and by where they come from.

    A good translation lies on the true cells AND has its colours where theirs are; two clouds that overlap with the
    colours elsewhere are the translation that looks fine and is wrong.

    Parameters
    ----------
    mdata
        MuData with the translation and, where there are any, true target cells.
    model
        The model that translated.
    color
        Column of obs, such as the cell type; ``None`` draws the origin only.
    key
        Modality with the translation; ``"{target}_from_{source}"`` if ``None``.
    max_cells
        Cells drawn of each side at most.
    seed
        Seed of the sample and the UMAP.
    """
    from matplotlib.figure import Figure

    key = key or f"{model.target}_from_{model.source}"
    if key not in mdata.mod:
        raise ModalityError(f"The MuData has no modality {key!r}; call model.translate(mdata) first.")
    rng = np.random.default_rng(seed)
    sides = {}
    for origin, name in (("measured", model.target), ("translated", key)):
        adata = mdata.mod[name]
        rows = np.sort(rng.choice(adata.n_obs, size=min(adata.n_obs, max_cells), replace=False))
        part = adata[rows]
        points = part.obsm["X_translated"] if name == key else dense(model.recipes[model.target].transform(part))
        sides[origin] = points, _colors(mdata, part.obs, part.obs_names, color)
    layout = _umap(np.vstack([points for points, _ in sides.values()]), seed)
    origin = np.repeat(list(sides), [len(points) for points, _ in sides.values()])
    panels = [("origin", origin)]
    if color is not None:
        panels = [(color, np.concatenate([values for _, values in sides.values()])), *panels]
    figure = Figure(figsize=(5.5 * len(panels), 4.6), layout="constrained")
    for position, (title, values) in enumerate(panels, start=1):
        _panel(figure.add_subplot(1, len(panels), position), layout, values, title, measured=origin == "measured")
    figure.suptitle(f"{model.source} \N{RIGHTWARDS ARROW} {model.target}, {model.method}: {model.verdict_.level}")
    return figure


def history(model: TransferModel) -> Figure:
    """Losses and monitors over the steps of the fit, one panel each."""
    from matplotlib.figure import Figure

    curves = {name: rows for name, rows in model.result_.history.items() if rows}
    columns = min(3, max(1, len(curves)))
    rows_needed = -(-max(1, len(curves)) // columns)
    figure = Figure(figsize=(4 * columns, 2.8 * rows_needed), layout="constrained")
    for position, (name, rows) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows_needed, columns, position)
        axes.plot(*np.array(rows).T, lw=1)
        axes.set(title=name, xlabel="step")
    return figure


def _colors(mdata: MuData, obs: pd.DataFrame, names: pd.Index, color: str | None) -> np.ndarray:
    if color is None:
        return np.full(len(names), "")
    if color in obs:
        return obs[color].astype(str).to_numpy()
    found = [mdata.obs[color]] if color in mdata.obs else []
    found += [adata.obs[color] for adata in mdata.mod.values() if color in adata.obs]
    if not found:
        raise ModalityError(f"There is no column {color!r} in obs of the MuData or its modalities.")
    column = found[0]
    for other in found[1:]:
        column = column.astype(object).combine_first(other.astype(object))
    return column.reindex(names).astype(object).where(lambda c: c.notna(), "unknown").astype(str).to_numpy()


def _umap(points: np.ndarray, seed: int) -> np.ndarray:
    import scanpy as sc
    from anndata import AnnData

    stacked = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(points))]), obsm={"X": points})
    sc.pp.neighbors(stacked, use_rep="X", n_neighbors=min(15, len(points) - 1), metric="cosine", random_state=seed)
    sc.tl.umap(stacked, random_state=seed)
    return np.asarray(stacked.obsm["X_umap"])


def _panel(axes: Axes, layout: np.ndarray, values: np.ndarray, title: str, *, measured: np.ndarray) -> None:
    from matplotlib import colormaps

    levels = sorted(set(values))
    palette = colormaps["tab10" if len(levels) <= 10 else "tab20"]
    order = np.random.default_rng(0).permutation(len(values))
    colors = np.array([palette(levels.index(v) % palette.N) for v in values])
    for marker, mask in (("o", measured), ("^", ~measured)):
        rows = order[mask[order]]
        axes.scatter(*layout[rows].T, c=colors[rows], s=7, lw=0, alpha=0.7, marker=marker)
    for i, level in enumerate(levels[:20]):
        axes.scatter([], [], color=palette(i % palette.N), s=20, label=level)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.set(title=f"{title} (o measured, \N{WHITE UP-POINTING TRIANGLE} translated)", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
