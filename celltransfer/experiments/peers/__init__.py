"""Methods of others behind one interface, each at its own defaults.

Adapters are thin: they hand over data in the shape a peer asks for, and bring what it returns to the target's
normalised scale. A peer that is not installed, or not made for a task, says so and is skipped.

>>> from celltransfer.experiments import peers
>>> peers.missing("cmae") is None
True
"""

from __future__ import annotations

import contextlib
import io
import logging
import random
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from celltransfer.errors import ConfigError, InputError
from celltransfer.experiments.peers.cmae import CrossModalAutoencoder
from celltransfer.experiments.peers.moscot import Moscot
from celltransfer.experiments.peers.multivi import MultiVI
from celltransfer.experiments.peers.pot import EntropicGromov, FusedGromov
from celltransfer.experiments.peers.scglue import Glue
from celltransfer.experiments.peers.totalvi import TotalVI
from celltransfer.experiments.peers.unioncom import UnionCom
from celltransfer.experiments.peers.uniport import UniPort

if TYPE_CHECKING:
    from collections.abc import Iterator

    from celltransfer.experiments.peers.base import Peer
    from celltransfer.metrics.protocol import Prediction, Task

__all__ = ["about", "applies", "missing", "names", "translate", "versions"]

_PEERS: dict[str, Peer] = {
    "pot_egw": EntropicGromov(),
    "pot_fgw": FusedGromov(),
    "moscot": Moscot(),
    "unioncom": UnionCom(),
    "uniport": UniPort(),
    "cmae": CrossModalAutoencoder(),
    "multivi": MultiVI(),
    "totalvi": TotalVI(),
    "scglue": Glue(),
}
_FACTS = ("title", "reference", "package", "licence", "transductive", "uses_anchors", "needs", "given")


def names() -> list[str]:
    """Every peer."""
    return list(_PEERS)


def missing(name: str) -> str | None:
    """Why a peer cannot run here, ``None`` if it can. Imports nothing."""
    return _peer(name).missing()


def applies(name: str, task: Task) -> str | None:
    """Why a peer cannot do this task, ``None`` if it can."""
    return _peer(name).applies(task)


def about(name: str) -> dict[str, Any]:
    """Facts on a peer.

    ``title``, ``reference``, ``package``, ``licence``; ``transductive``: it sees the source side of the test cells in
    its fit; ``uses_anchors``; ``needs``: which data; ``given``: what it was given, at which settings.
    """
    return {fact: getattr(_peer(name), fact) for fact in _FACTS}


def versions(name: str) -> str:
    """Distribution and version, for example ``"scvi-tools 1.4.2"``."""
    return _peer(name).versions()


def translate(name: str, task: Task, *, seed: int, max_seconds: float) -> Prediction:
    """Fit a peer and translate ``task.source_test``, on one thread.

    Parameters
    ----------
    name
        One of `names`.
    task
        The problem; the peer sees ``mdata``, ``anchors`` and ``source_test`` only.
    seed
        Seed of everything random.
    max_seconds
        Wall time. Training ends at the limit, and what it has learned by then counts.

    Returns
    -------
    Matrix on the target's normalised scale, rows in the order of ``task.source_test``, and the names of its features.

    Raises
    ------
    ConfigError
        The peer is unknown or missing here.
    InputError
        It does not apply to this task.
    """
    from celltransfer.train.stopping import Clock

    peer = _peer(name)
    reason = peer.missing()
    if reason is not None:
        raise ConfigError(f"The peer {name!r} cannot run here: {reason}.")
    reason = peer.applies(task)
    if reason is not None:
        raise InputError(f"The peer {name!r} does not apply to this task: {reason}.")
    with _quiet_and_seeded(seed):
        return peer.translate(task, seed, Clock(max_seconds))


def _peer(name: str) -> Peer:
    if name not in _PEERS:
        raise ConfigError(f"There is no peer {name!r}. Known peers: {', '.join(_PEERS)}.")
    return _PEERS[name]


@contextlib.contextmanager
def _quiet_and_seeded(seed: int) -> Iterator[None]:
    """One thread, global generators seeded and put back, and none of the peers' chatter."""
    import torch
    from threadpoolctl import threadpool_limits

    threads, disabled = torch.get_num_threads(), logging.root.manager.disable
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - peers draw from it
    try:
        with (
            threadpool_limits(1),
            torch.random.fork_rng(devices=[]),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            torch.set_num_threads(1)
            torch.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        torch.set_num_threads(threads)
        logging.disable(disabled)
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002
