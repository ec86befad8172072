"""Pictures. Each function returns a matplotlib figure and shows nothing by itself."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from celltransfer.data.pair import dense
from celltransfer.errors import ModalityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from mudata import MuData

    from celltransfer.model.model import TransferModel

_NAMES = "measured", "translated"
# Okabe & Ito's colours, told apart by colour-blind eyes, black last; for more labels there is no such set, and Paul
# Tol's muted colours follow.
COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
_MORE_COLORS = [
    "#332288",
    "#88CCEE",
    "#117733",
    "#DDCC77",
    "#882255",
    "#44AA99",
    "#AA4499",
    "#999933",
    "#CC6677",
    "#661100",
]
_ORIGIN = {"measured": "#0072B2", "translated": "#E69F00"}
_GREY, _SHADOW, _OTHER = "#9e9e9e", "#e4e4e4", "other"


class _Figure(Figure):
    """A figure that notebooks show whether or not pyplot was imported."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, dpi=80)
        return buffer.getvalue()


def translation(
    mdata: MuData,
    model: TransferModel,
    *,
    color: str | None = None,
    key: str | None = None,
    max_cells: int = 2000,
    seed: int = 0,
) -> Figure:
    """Measured and translated target cells in one UMAP: each by `color` over the other's shadow, and both by origin.

    A good translation lies on the measured cells AND has its colours where theirs are; two clouds that overlap with
    the colours elsewhere are the translation that looks fine and is wrong. Smooth translations, such as those of a
    regression, lack the noise of measured cells and may lie beside them without being wrong: `celltransfer.report`
    has the figures.

    Parameters
    ----------
    mdata
        MuData with the translation and, where there are any, true target cells.
    model
        The model that translated.
    color
        Column of obs, such as the cell type or a number; ``None`` draws the origin only. Beyond 18 labels the rarest
        share one grey.
    key
        Modality with the translation; ``"{target}_from_{source}"`` if ``None``.
    max_cells
        Cells drawn of each side at most.
    seed
        Seed of the sample and the UMAP.

    Returns
    -------
    matplotlib.figure.Figure
        Save it with ``.savefig("translation.png")``.

    Raises
    ------
    ModalityError
        The translation, the measured target or the column is not there.
    """
    key = key or f"{model.target}_from_{model.source}"
    for name in (key, model.target):
        if name not in mdata.mod:
            raise ModalityError(
                f"The MuData has no modality {name!r}; call model.translate(mdata) on the full MuData first."
            )
    rng = np.random.default_rng(seed)
    points, values = [], []
    for name in (model.target, key):
        adata = mdata.mod[name]
        part = adata[np.sort(rng.choice(adata.n_obs, size=min(adata.n_obs, max_cells), replace=False))]
        points.append(_points(part, model, translated=name == key))
        values.append(
            pd.Series(_NAMES[name == key], index=part.obs_names) if color is None else _column(mdata, part, color)
        )
    layout = _umap(np.vstack(points), seed)
    translated = np.repeat([False, True], [len(side) for side in points])
    figure = blank(13.5 if color else 6.2, 4.6)
    if color is None:
        by_origin(figure.add_subplot(), layout, translated)
    else:
        axes = figure.subplots(1, 3)
        titles = f"measured {model.target}, by {color}", f"translated from {model.source}, by {color}"
        by_value(axes[:2], layout, translated, pd.concat(values, ignore_index=True), titles)
        by_origin(axes[2], layout, translated, "both, by origin")
    method = model.translator.label
    figure.suptitle(f"{model.source} \N{RIGHTWARDS ARROW} {model.target}, {method}: {model.verdict_.level}")
    return figure


def history(model: TransferModel) -> Figure:
    """Losses and monitors over the steps of the fit, one panel each; empty for methods that take no steps."""
    curves = {name: rows for name, rows in model.result_.history.items() if rows}
    columns = min(3, max(1, len(curves)))
    rows_needed = -(-max(1, len(curves)) // columns)
    figure = blank(4 * columns, 2.8 * rows_needed)
    for position, (name, rows) in enumerate(curves.items(), start=1):
        axes = figure.add_subplot(rows_needed, columns, position)
        axes.plot(*np.array(rows).T, lw=1, color=COLORS[0])
        axes.set(title=name, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plain(name: str) -> str:
    """A name that is drawn as it is: matplotlib takes ``$`` for the start of a formula."""
    return name.replace("$", r"\$")


def blank(width: float, height: float) -> Figure:
    """An empty figure of so many inches, whose parts make room for each other."""
    return _Figure(figsize=(width, height), layout="constrained")


def by_origin(axes: Axes, layout: np.ndarray, translated: np.ndarray, title: str = "") -> None:
    """Measured and translated cells in one panel, told apart by colour.

    Parameters
    ----------
    layout
        Where the cells are, shape (n, 2).
    translated
        Which of them are translations, shape (n,).
    """
    origin = _palette(pd.Series(np.where(translated, _NAMES[1], _NAMES[0])), _ORIGIN)
    _panel(axes, layout, origin, np.ones(len(layout), dtype=bool), title)


def by_value(
    panels: Sequence[Axes], layout: np.ndarray, translated: np.ndarray, values: pd.Series, titles: tuple[str, str]
) -> None:
    """Measured cells in one panel and translated ones in another, each coloured by `values` over the others' shadow.

    Parameters as in `by_origin`; `values` has n rows, labels or numbers.
    """
    colors = _palette(values)
    _panel(panels[0], layout, colors, ~translated, titles[0], legend=False)
    _panel(panels[1], layout, colors, translated, titles[1])


@dataclass(frozen=True)
class _Palette:
    """One colour per cell, shape (n, 4), and what the legend says: levels, or the scale of a number."""

    rgba: np.ndarray
    levels: dict[str, str] = field(default_factory=dict)
    scale: ScalarMappable | None = None


def _points(part: AnnData, model: TransferModel, *, translated: bool) -> np.ndarray:
    """Cells in the target recipe's feature space, shape (n, d)."""
    if not translated:
        return dense(model.recipes[model.target].transform(part))
    if "X_translated" not in part.obsm:
        raise ModalityError("The modality has no obsm['X_translated']; key= must name what model.translate wrote.")
    return np.asarray(part.obsm["X_translated"])


def _column(mdata: MuData, part: AnnData, color: str) -> pd.Series:
    """Column `color` of some cells, wherever the MuData has it."""
    if color in part.obs:
        return part.obs[color]
    found = [mdata.obs[color]] if color in mdata.obs else []
    found += [adata.obs[color] for adata in mdata.mod.values() if color in adata.obs]
    if not found:
        raise ModalityError(f"There is no column {color!r} in obs of the MuData or its modalities.")
    column = found[0]
    for other in found[1:]:
        column = column.astype(object).combine_first(other.astype(object))
    return column.reindex(part.obs_names).infer_objects()


def _palette(values: pd.Series, fixed: dict[str, str] | None = None) -> _Palette:
    """Colours of labels, or of numbers where they have too many values to be labels."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize, to_rgba_array

    numbers = pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype)
    if numbers and values.nunique() > len(COLORS):
        scale = ScalarMappable(Normalize(values.min(), values.max()), "viridis")
        rgba = scale.to_rgba(values.to_numpy(dtype=float))
        rgba[values.isna()] = to_rgba_array(_GREY)
        return _Palette(rgba, scale=scale)
    levels = fixed or _level_colors(values)
    named = values.map(_label, na_action="ignore").astype(object)
    named = named.where(named.isin(levels), _OTHER)
    shown = levels | ({_OTHER: _GREY} if (named == _OTHER).any() else {})
    return _Palette(to_rgba_array([shown[str(value)] for value in named]), shown)


def _level_colors(values: pd.Series) -> dict[str, str]:
    """Colour by label, in the labels' own order; the rarest go without one where there are more than colours."""
    counts = values.dropna().value_counts()
    kept = counts[counts > 0].index[: len(COLORS) + len(_MORE_COLORS)]
    order = [level for level in values.cat.categories if level in kept] if hasattr(values, "cat") else _sorted(kept)
    return dict(zip(map(_label, order), COLORS + _MORE_COLORS, strict=False))


def _sorted(levels: pd.Index) -> list[Any]:
    """Numbers by size, everything else by name."""
    try:
        return sorted(levels)
    except TypeError:
        return sorted(levels, key=str)


def _label(value: Any) -> str:
    """Whole numbers without the ``.0`` that missing values elsewhere in the column give them."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _umap(points: np.ndarray, seed: int) -> np.ndarray:
    from anndata import AnnData

    stacked = AnnData(obs=pd.DataFrame(index=[str(i) for i in range(len(points))]), obsm={"X": points})
    n_neighbors = min(15, len(points) - 1)
    with warnings.catch_warnings():
        # About missing notebook widgets and, where many cells are alike, about the layout's start: of no consequence.
        warnings.simplefilter("ignore")
        import scanpy as sc

        sc.pp.neighbors(stacked, use_rep="X", n_neighbors=n_neighbors, metric="cosine", random_state=seed)
        sc.tl.umap(stacked, random_state=seed)
    return np.asarray(stacked.obsm["X_umap"])


def _panel(
    axes: Axes, layout: np.ndarray, palette: _Palette, shown: np.ndarray, title: str, *, legend: bool = True
) -> None:
    """The cells of `shown` in colour, over the others as a grey shadow."""
    size = float(np.clip(20000 / len(layout), 4, 20))
    axes.scatter(layout[~shown, 0], layout[~shown, 1], s=size, lw=0, color=_SHADOW, rasterized=True)
    # In random order, so that no group hides another.
    rows = np.random.default_rng(0).permutation(np.flatnonzero(shown))
    axes.scatter(layout[rows, 0], layout[rows, 1], s=size, lw=0, alpha=0.8, c=palette.rgba[rows], rasterized=True)
    axes.set(title=title, xticks=[], yticks=[])
    axes.spines[:].set_color(_SHADOW)
    if legend and palette.scale is not None:
        axes.figure.colorbar(palette.scale, ax=axes, shrink=0.6)
    elif legend:
        for level, color in palette.levels.items():
            axes.scatter([], [], color=color, s=30, lw=0, label=plain(level))
        columns = 1 if len(palette.levels) <= 18 else 2
        axes.legend(
            frameon=False, fontsize=9, ncols=columns, loc="center left", bbox_to_anchor=(1, 0.5), handletextpad=0.2
        )
