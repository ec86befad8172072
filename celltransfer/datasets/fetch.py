"""From a registry entry to its files and its data: mirror, then cache, then network, by hash wherever one is known.

Nothing is ever half there: downloads and built datasets are written under another name and moved into place.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celltransfer.errors import ConfigError, DatasetError
from celltransfer.settings import settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from anndata import AnnData
    from mudata import MuData

    from celltransfer.datasets.registry import Entry, RemoteFile

RETRIES = 2
"""How often a failed download is tried again."""

TIMEOUT = 30
"""Seconds without an answer after which a download fails."""

BUILDER_VERSION = 1
"""Part of the cache key; raise it when a builder gives another result."""

_log = logging.getLogger(__name__)


def load(entry: Entry, **kwargs: Any) -> MuData | AnnData:
    """Build a dataset, or read it from the cache of built ones; only cells take longer to build than to read.

    Raises
    ------
    DatasetError
        A file can neither be found nor downloaded, or has a wrong hash.
    ConfigError
        ``kwargs`` are given that the dataset does not take; only a generated one takes any.
    """
    module, function = entry.builder.split(":")
    build: Callable[..., MuData | AnnData] = getattr(import_module(module), function)
    if entry.type == "generated":
        return _generate(entry.name, build, kwargs)
    if kwargs:
        raise ConfigError(f"Dataset {entry.name!r} takes no arguments, got {', '.join(kwargs)}.")
    path = built_path(entry)
    if _is_intact(path):
        return _read(path)
    data = build({file.name: locate(file) for file in entry.files})
    if entry.kind == "cells":
        _store(data, path)
    return data


def _generate(name: str, build: Callable[..., MuData | AnnData], kwargs: dict[str, Any]) -> MuData | AnnData:
    try:
        inspect.signature(build).bind(**kwargs)
    except TypeError as error:
        raise ConfigError(f"Dataset {name!r}: {error}.") from error
    return build(**kwargs)


def export(entry: Entry, path: Path) -> MuData | AnnData:
    """Load a dataset and write it to a file: cells as MuData, ``.h5mu``, all else as AnnData, ``.h5ad``.

    Raises
    ------
    ConfigError
        The name of the file has another ending; nothing is downloaded.
    """
    from celltransfer.data.writeback import write_h5ad, write_h5mu

    if path.suffix.lower() != entry.suffix:
        raise ConfigError(f"{entry.name!r} ({entry.kind}) is written as {entry.suffix} file, not {path.name!r}.")
    data = load(entry)
    write = write_h5mu if entry.kind == "cells" else write_h5ad
    write(data, path)
    return data


def is_local(entry: Entry) -> bool:
    """Whether :func:`load` needs no network."""
    return built_path(entry).exists() or all(_find(file) is not None for file in entry.files)


def locate(file: RemoteFile) -> Path:
    """Path of a verified copy of an upstream file: in the mirror, in the cache, or downloaded into the cache.

    An ``alternative`` beside the mirror is returned in place of the file where the mirror lacks it; its name tells.

    Raises
    ------
    DatasetError
        The file in the mirror has a wrong hash, or there is none and the download fails.
    """
    found = _find(file)
    if found is None:
        return _download(file)
    path, expected = found
    actual = _hash(path, expected)
    if actual == expected:
        return path
    if path == cache_path(file):
        path.unlink()
        return _download(file)
    raise DatasetError(
        f"{path} in the data mirror is not the file that {file.dataset!r} needs: expected {expected}, "
        f"found {actual}. Replace or remove it."
    )


def cache_path(file: RemoteFile) -> Path:
    """Where a downloaded file is kept."""
    return settings.cache_dir / file.path


def built_path(entry: Entry) -> Path:
    """Where the built dataset is kept; the name holds a key of its sources and of the builder's version."""
    parts = [str(BUILDER_VERSION), *(file.hash for file in entry.files)]
    key = hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]
    return settings.cache_dir / "built" / f"{entry.name}-{key}.h5mu"


def _find(file: RemoteFile) -> tuple[Path, str] | None:
    """The first place that has the file, not yet verified, and the hash it should have there."""
    places = [(cache_path(file), file.hash)]
    mirror = settings.data_mirror
    if mirror is not None:
        if file.alternative is not None:
            places.insert(0, (Path(mirror).parent / file.alternative[0], file.alternative[1]))
        places.insert(0, (Path(mirror) / file.path, file.hash))
    return next(((path, expected) for path, expected in places if path.is_file()), None)


def _hash(path: Path, like: str) -> str:
    """Hash of a file, of the kind and length of ``like``; see :class:`celltransfer.datasets.registry.RemoteFile`."""
    kind, _, digits = like.partition(":")
    if kind == "git_commit":  # There is none to compare with.
        return like
    content = path.read_bytes()
    if kind == "git_blob":
        content, algorithm = b"blob %d\0" % len(content) + content, "sha1"
    else:
        algorithm = kind
    return f"{kind}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()[: len(digits)]}"


def _download(file: RemoteFile) -> Path:
    import pooch

    path = cache_path(file)
    known_hash = None if file.hash.startswith("git_") else file.hash
    try:
        downloader = pooch.HTTPDownloader(progressbar=_show_progress(), timeout=TIMEOUT)
        source = pooch.create(
            path.parent,
            base_url="",
            registry={file.name: known_hash},
            urls={file.name: file.url},
            retry_if_failed=RETRIES,
        )
        source.fetch(file.name, downloader=downloader)
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{file.path} is not in the cache {settings.cache_dir} and could not be downloaded from "
            f"{file.url}: {error}. Without a network, set CELLTRANSFER_DATA_MIRROR (now {settings.data_mirror}) to a "
            f"folder that holds {file.path}."
        ) from error
    found = _hash(path, file.hash)
    if found != file.hash:
        path.unlink()
        raise DatasetError(f"{file.url} gave a file with {found}, expected {file.hash}; it was not kept.")
    return path


def _show_progress() -> bool:
    if settings.progress is not None:
        return settings.progress
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_intact(path: Path) -> bool:
    """Whether a built dataset is complete: it has the checksum that was written after it."""
    checksum = _checksum_path(path)
    if not (path.is_file() and checksum.is_file()):
        return False
    return hashlib.sha256(path.read_bytes()).hexdigest() == checksum.read_text().strip()


def _read(path: Path) -> MuData:
    import mudata

    from celltransfer.data.writeback import no_pull

    with no_pull():
        return mudata.read_h5mu(path)


def _store(mdata: MuData, path: Path) -> None:
    """Cache a built dataset; a cache that cannot be written costs time, not the dataset."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            mdata.write_h5mu(temporary)
            checksum = _checksum_path(temporary)
            checksum.write_text(hashlib.sha256(temporary.read_bytes()).hexdigest())
            os.replace(temporary, path)
            os.replace(checksum, _checksum_path(path))
    except OSError as error:
        _log.info("The built dataset was not cached in %s: %s", path.parent, error)
