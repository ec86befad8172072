"""The recipes by name, with their options, and the choice of one for a modality."""

from __future__ import annotations

import logging
import re
import warnings
from typing import TYPE_CHECKING, Literal

from celltransfer.errors import CelltransferWarning, InputError
from celltransfer.pp.kinds import KINDS, Components
from celltransfer.pp.recipe import Recipe
from celltransfer.pp.slots import OnMissing, Slot

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("celltransfer")

_WORDS = {
    "rna": {"rna", "mrna", "scrna", "snrna", "gex", "expression"},
    "atac": {"atac", "scatac", "snatac", "peak", "peaks"},
    "protein": {"protein", "proteins", "prot", "adt", "cite"},
    "methylation": {"methylation", "methyl", "meth", "met"},
}
_BY_VALUES = "its values"
_FEATURE_TYPES = {"Gene Expression": "rna", "Peaks": "atac", "Antibody Capture": "protein"}


def rna(
    *,
    layer: str | None = None,
    use_rep: str | None = None,
    n_top_features: int | None = 2000,
    n_components: Components = 50,
    whiten: bool = False,
    target_sum: float = 1e4,
    scale: bool = False,
    on_missing: OnMissing = "error",
    seed: int = 0,
) -> Recipe:
    """Gene counts: log-normalise, keep variable genes, PCA.

    Parameters
    ----------
    layer, use_rep, on_missing, seed
        As in `Recipe`. Size factors are sums over all training genes, so all of them are needed in new cells.
    n_top_features
        Highly variable genes to keep (`scanpy.pp.highly_variable_genes`, flavor ``"seurat"``); ``None``, or more
        than there are: all genes with a count.
    n_components
        Components of the PCA, at most what cells and genes allow; ``None``: no PCA.
    whiten
        Standardise the components. Without PCA, genes are divided by their standard deviation and not centred,
        so that they stay sparse.
    target_sum
        Counts per cell after normalisation.
    scale
        Divide genes by their standard deviation before the PCA.
    """
    return Recipe(
        "rna",
        layer=layer,
        use_rep=use_rep,
        on_missing=on_missing,
        seed=seed,
        n_top_features=n_top_features,
        n_components=n_components,
        whiten=whiten,
        target_sum=target_sum,
        scale=scale,
    )


def atac(
    *,
    layer: str | None = None,
    use_rep: str | None = None,
    n_top_features: int | None = None,
    n_components: Components = 50,
    whiten: bool = False,
    flavor: Literal["muon", "signac"] = "muon",
    binarize: bool = False,
    scale_factor: float = 1e4,
    depth_threshold: float | None = 0.75,
    on_missing: OnMissing = "error",
    seed: int = 0,
) -> Recipe:
    """Peak counts: TF-IDF, latent semantic indexing without its depth component.

    Parameters
    ----------
    layer, use_rep, on_missing, seed
        As in `Recipe`.
    n_top_features
        Peaks to keep, those open in most training cells; ``None``: all with a count.
    n_components
        Components of the truncated SVD, before depth components are left out; ``None``: no SVD.
    whiten
        Standardise the components. Without SVD, peaks are divided by their standard deviation and not centred.
    flavor
        ``"muon"``: log(TF) log(IDF); ``"signac"``: log(TF IDF). See `celltransfer.pp.transforms.TfIdf`.
    binarize
        Take every positive count as 1.
    scale_factor
        Factor of the term frequencies before the logarithm.
    depth_threshold
        Leave out components whose absolute correlation with log depth in the training cells is above this;
        ``None`` keeps all.
    """
    return Recipe(
        "atac",
        layer=layer,
        use_rep=use_rep,
        on_missing=on_missing,
        seed=seed,
        n_top_features=n_top_features,
        n_components=n_components,
        whiten=whiten,
        flavor=flavor,
        binarize=binarize,
        scale_factor=scale_factor,
        depth_threshold=depth_threshold,
    )


def protein(
    *,
    layer: str | None = None,
    use_rep: str | None = None,
    n_components: Components = "auto",
    whiten: bool = False,
    axis: Literal["cell", "feature"] = "cell",
    on_missing: OnMissing = "error",
    seed: int = 0,
) -> Recipe:
    """Antibody counts: centred log ratio; PCA only of more than 50 proteins.

    Parameters
    ----------
    layer, use_rep, on_missing, seed
        As in `Recipe`.
    n_components
        Components of a PCA; ``"auto"``: 50 where there are more proteins than that; ``None``: no PCA.
    whiten
        Standardise components or proteins.
    axis
        ``"cell"``: ratio to the geometric mean of the cell (``muon.prot.pp.clr(axis=1)``);
        ``"feature"``: to that of the protein over the training cells (``axis=0``).
    """
    return Recipe(
        "protein",
        layer=layer,
        use_rep=use_rep,
        on_missing=on_missing,
        seed=seed,
        n_components=n_components,
        whiten=whiten,
        axis=axis,
    )


def methylation(
    *,
    layer: str | None = None,
    use_rep: str | None = None,
    n_components: Components = "auto",
    whiten: bool = False,
    on_missing: OnMissing = "error",
    seed: int = 0,
) -> Recipe:
    """Binary or beta values between 0 and 1, as they are; PCA only of more than 50 loci.

    Parameters are those of `protein`; missing values (NaN) are an error.
    """
    return Recipe(
        "methylation",
        layer=layer,
        use_rep=use_rep,
        on_missing=on_missing,
        seed=seed,
        n_components=n_components,
        whiten=whiten,
    )


def none(
    *,
    layer: str | None = None,
    use_rep: str | None = None,
    n_components: Components = None,
    whiten: bool = False,
    on_missing: OnMissing = "error",
    seed: int = 0,
) -> Recipe:
    """Any finite values, as they are: for embeddings and for data that are normalised already.

    Parameters are those of `protein`. Standardising without PCA makes a sparse matrix dense.
    """
    return Recipe(
        "none",
        layer=layer,
        use_rep=use_rep,
        on_missing=on_missing,
        seed=seed,
        n_components=n_components,
        whiten=whiten,
    )


def resolve(recipe: str | Recipe, modality: str, adata: AnnData) -> Recipe:
    """An unfitted recipe for `modality`.

    Parameters
    ----------
    recipe
        A recipe, which is copied without its fit; the name of one; or ``"auto"``: guessed from the name of the
        modality, then from ``var["feature_types"]``, then from the values (whole numbers are taken for RNA). A guess
        that the values contradict becomes 'none' with standardised features (components of more than 50). What was
        chosen, and why, is logged.
    modality
        Name of the modality.
    adata
        Its cells.
    """
    if isinstance(recipe, Recipe):
        return Recipe(**{**recipe.get_config(), "modality": modality})
    if recipe != "auto":
        return Recipe(recipe, modality=modality)
    kind, reason = _guess(modality, adata)
    objection = _objection(kind, modality, adata)
    if objection is None:
        logger.info("Modality %r: recipe %r, because of %s.", modality, kind, reason)
        return Recipe(kind, modality=modality)
    fallback = Recipe("none", modality=modality, whiten=True, n_components="auto")
    if _objection("none", modality, adata) is not None:  # no recipe takes such values, and its fit says so
        return fallback
    message = f"Modality {modality!r}: {fallback!r}; {reason} suggested {kind!r}, but {objection}"
    if reason == _BY_VALUES:
        logger.info(message)
    else:
        warnings.warn(f"{message} Pass recipes= to decide.", CelltransferWarning, stacklevel=3)
    return fallback


def _guess(modality: str, adata: AnnData) -> tuple[str, str]:
    """Kind and the reason for it."""
    words = set(re.split(r"[^a-z]+", modality.lower()))
    for kind, known in _WORDS.items():
        if words & known:
            return kind, "its name"
    types = set(adata.var["feature_types"].astype(str)) if "feature_types" in adata.var else set()
    if len(types) == 1 and (kind := _FEATURE_TYPES.get(types.pop(), "")):
        return kind, "var['feature_types']"
    return "rna", _BY_VALUES


def _objection(kind: str, modality: str, adata: AnnData) -> str | None:
    """Why the values of `adata` cannot be of this kind; ``None`` where they can."""
    try:
        for _ in Slot(modality=modality).blocks(adata, KINDS[kind].scale_, None, "error"):
            pass
    except InputError as error:
        return str(error)
    return None
