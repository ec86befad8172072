"""One small translation and its report, for all tests of reports; not to be changed."""

from __future__ import annotations

import celltransfer as ct
import pytest
from celltransfer.datasets.unpairing import unpair


@pytest.fixture(scope="session")
def full():
    return ct.datasets.simulate(n_obs=480, n_genes=60, n_peaks=90, n_types=3, seed=0)


@pytest.fixture(scope="session")
def cells(full):
    return unpair(full, 60, seed=0)


@pytest.fixture(scope="session")
def model(cells):
    return ct.fit(cells, train="train", method="ridge", verdict=False)


@pytest.fixture(scope="session")
def result(model, cells):
    return ct.report(model, cells)


@pytest.fixture(scope="session")
def whole(cells):
    """A report with everything: conditions, a verdict, a curve."""
    model = ct.fit(cells, train="train", method="ridge", conditions="condition", seed=1)
    return ct.report(model, cells, curve=True, anchors=(1, 5, 20))
