"""Recipes: from the cells of a modality to features for a translator, and back."""

from celltransfer.pp.factories import atac, methylation, none, protein, resolve, rna
from celltransfer.pp.proximity import links_by_distance
from celltransfer.pp.recipe import Recipe
from celltransfer.pp.shared import conditions

__all__ = ["Recipe", "atac", "conditions", "links_by_distance", "methylation", "none", "protein", "resolve", "rna"]
