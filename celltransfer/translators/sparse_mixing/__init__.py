"""Sufficient changes and sparse mixing."""
