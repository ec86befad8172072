"""Translators on arrays: one method per file, one registry."""

from celltransfer.translators.base import Translator, available, get, make, register

__all__ = ["Translator", "available", "get", "make", "register"]
