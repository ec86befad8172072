"""Experiments: those of the papers, and methods side by side on co-assayed cells.

`suites.suites` lists the papers' experiments and `suites.run` runs one, as ``celltransfer validate`` does; `grid` is
the benchmark of methods, as ``celltransfer benchmark``. Both keep rows in one kind of store, go on where they stopped,
and read claims by one rule, see `celltransfer.experiments.claims`.
"""
