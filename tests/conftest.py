"""Fixtures for every test: no network, real datasets where they can be had, and a small simulated one."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import celltransfer as ct
import pytest
from celltransfer.data.writeback import no_pull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mudata import MuData

DOWNLOADS = bool(os.environ.get("CELLTRANSFER_TEST_DOWNLOAD"))
# Processes that tests start know nothing of the guard below: their downloads end at a port where nobody listens.
NOBODY = "127.0.0.1", 9


class NetworkError(RuntimeError):
    """A test wanted to leave this machine; no `OSError`, which would be taken for a network that is down."""


class Guard:
    """An audit hook of Python, which sees every socket whoever made it, and refuses all but the loopback.

    Such hooks cannot be removed, so there is one for all tests, which knows the one that runs.
    """

    def __init__(self) -> None:
        self.test = "The collection of the tests"
        self.refused: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not event.startswith("socket."):
            return
        if event in ("socket.getaddrinfo", "socket.gethostbyname"):
            self.check(args[0])
        elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and isinstance(args[1], tuple):
            self.check("the network, through a proxy" if args[1] == NOBODY else args[1][0])

    def check(self, host: Any) -> None:
        """Raise unless `host` is this machine."""
        name = host.decode() if isinstance(host, bytes) else host
        if is_loopback(name):
            return
        self.refused.append(f"{self.test} tried to reach {name}; tests may not use the network.")
        raise NetworkError(self.refused[-1])


def is_loopback(host: str | None) -> bool:
    """Whether a host, by name or address, is this machine."""
    if host in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


guard = Guard()


def pytest_configure(config: pytest.Config) -> None:
    """Shut the network off, for child processes too, and keep the user's cache out of the tests."""
    if DOWNLOADS:
        return
    sys.addaudithook(guard)
    for name in ("http_proxy", "https_proxy"):
        os.environ[name] = os.environ[name.upper()] = "http://{}:{}".format(*NOBODY)
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "localhost,127.0.0.1"
    if "CELLTRANSFER_CACHE_DIR" not in os.environ:
        # Workers of pytest-xdist find it set, and share it.
        folder = tempfile.mkdtemp(prefix="celltransfer-tests-")
        os.environ["CELLTRANSFER_CACHE_DIR"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        ct.settings.reset()


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for a real dataset is marked so."""
    for item in items:
        if "real_dataset" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real_data)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    """Let the guard know whom to name, before any fixture is made."""
    guard.test, guard.refused = item.nodeid, []
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Fail the test that wanted to reach another machine, even where it caught the error."""
    result = yield
    if guard.refused:
        pytest.fail(guard.refused[0], pytrace=False)
    return result


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
