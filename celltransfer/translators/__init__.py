"""Translators on arrays: one method per file, one registry."""

from celltransfer.translators.base import Translator, available, get, make, register
from celltransfer.translators.dont.attribute_costs import cost_weights_from

__all__ = ["Translator", "available", "cost_weights_from", "get", "make", "register"]
