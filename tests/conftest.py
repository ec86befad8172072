"""Fixtures for every test: real datasets where they can be had, and a small simulated one."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import celltransfer as ct
import pytest
from celltransfer.data.writeback import no_pull

if TYPE_CHECKING:
    from collections.abc import Callable

    from mudata import MuData


def pytest_sessionstart(session: pytest.Session) -> None:
    """Let Ctrl-C be heard in the processes that pytest-xdist starts, which ignore it: some tests send one."""
    if hasattr(session.config, "workerinput"):
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def real_dataset() -> Callable[[str], MuData]:
    """``real_dataset(name)``: a fresh copy of a dataset; skips the test where it would need the network.

    Downloads are made only if ``CELLTRANSFER_TEST_DOWNLOAD`` is set.
    """
    loaded: dict[str, MuData] = {}

    def load(name: str) -> MuData:
        if name not in loaded:
            if not (ct.datasets.available(name) or os.environ.get("CELLTRANSFER_TEST_DOWNLOAD")):
                pytest.skip(
                    f"dataset {name} is neither cached nor in a mirror; set CELLTRANSFER_DATA_MIRROR to a folder that "
                    "has it, or CELLTRANSFER_TEST_DOWNLOAD=1 to download it"
                )
            loaded[name] = ct.datasets.load(name)
        with no_pull():
            return loaded[name].copy()

    return load


@pytest.fixture(scope="session")
def _simulated() -> MuData:
    return ct.datasets.simulate(n_obs=400, n_genes=120, n_peaks=200, n_types=4, seed=0)


@pytest.fixture
def simulated(_simulated: MuData) -> MuData:
    """400 simulated cells with RNA and ATAC, all co-assayed; a fresh copy for each test."""
    with no_pull():
        return _simulated.copy()


@pytest.fixture(scope="session")
def full() -> MuData:
    """600 simulated cells with few features, all co-assayed; not to be changed."""
    return ct.datasets.simulate(n_obs=600, n_genes=60, n_peaks=90, seed=0)


@pytest.fixture
def cells(full: MuData) -> MuData:
    """`full` unpaired: different training cells for each modality, and 150 anchors; a fresh one for each test."""
    return ct.datasets.unpair(full, 150, seed=0)


@pytest.fixture(scope="session")
def model(full: MuData) -> ct.TransferModel:
    """A good translation of `cells`; not to be changed."""
    return ct.fit(ct.datasets.unpair(full, 150, seed=0), train="train", method="ridge", verdict=False)
