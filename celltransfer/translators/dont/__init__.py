"""Dynamic optimal neural translation."""
