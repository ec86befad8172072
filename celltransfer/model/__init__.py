"""A fitted model: the record of what a fit found, what can be asked of it, and its files."""
