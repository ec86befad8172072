"""The cross-modal autoencoder of Yang et al. 2021, written anew from the paper and its published settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from celltransfer.data.pair import dense
from celltransfer.experiments.peers.base import Peer, Translated, anchor_rows, kind
from celltransfer.pp import Recipe

if TYPE_CHECKING:
    from anndata import AnnData

    from celltransfer.metrics.protocol import Task
    from celltransfer.train.stopping import Clock

# The hidden layers are as wide as the input: with more features than this, they are components.
MAX_FEATURES = 1000


class CrossModalAutoencoder(Peer):
    """Two autoencoders with one latent space, held together by a discriminator, the classes and the pairs."""

    title = "Cross-modal autoencoder"
    reference = "Yang et al. 2021 (Nature Communications 12:31)"
    package = "celltransfer"
    licence = "own implementation"
    modules = ("torch",)
    needs = "any two modalities; classes (here: the conditions) and pairs where there are any"
    given = (
        "settings of the published configuration for RNA and ATAC (weights: reconstruction 10, adversary 10, classes "
        "10, pairs .1; Adam 1e-4, batches of 32, 4,000 epochs or until time is up); all features where they are at "
        f"most {MAX_FEATURES:,}, otherwise 50 components, standardised; conditions as classes; batches of the two "
        "modalities drawn independently (the published loaders walk through both in the same order, which pairs the "
        "cells)"
    )

    def translate(self, task: Task, seed: int, clock: Clock) -> Translated:
        """Encode the source, decode as target."""
        from celltransfer.experiments.peers.crossmodal import fit

        sides = [_Side(task, name) for name in (task.source, task.target)]
        x, y = (side.encode(task.mdata.mod[name]) for side, name in zip(sides, (task.source, task.target), strict=True))
        model = fit(x, y, anchor_rows(task), _classes(task), seed=seed, clock=clock)
        z = model.translate(sides[0].encode(task.source_test))
        return sides[1].decode(z), sides[1].recipe.feature_names_


class _Side:
    """Standardised features of a modality, and the way back."""

    def __init__(self, task: Task, modality: str) -> None:
        cells, found = task.mdata.mod[modality], kind(task, modality)
        few = cells.n_vars <= MAX_FEATURES
        self.recipe = Recipe(found, n_components=None if few else 50).fit(cells)
        z = dense(self.recipe.transform(cells))
        self.mean, self.deviation = z.mean(axis=0), np.maximum(z.std(axis=0), 1e-6)

    def encode(self, adata: AnnData) -> np.ndarray:
        return ((dense(self.recipe.transform(adata)) - self.mean) / self.deviation).astype(np.float32)

    def decode(self, z: np.ndarray) -> np.ndarray:
        return self.recipe.inverse_transform(z * self.deviation + self.mean)


def _classes(task: Task) -> tuple[np.ndarray, np.ndarray] | None:
    """Codes of the conditions of source and target cells."""
    if task.condition is None:
        return None
    values = [task.mdata.mod[name].obs[task.condition].to_numpy(dtype=str) for name in (task.source, task.target)]
    known = np.unique(np.concatenate(values))
    return np.searchsorted(known, values[0]), np.searchsorted(known, values[1])
