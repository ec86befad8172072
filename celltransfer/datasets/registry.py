"""The dataset registry: ``data_registry/*.yaml``, read and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from celltransfer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping

_HASHES = {
    "sha256": re.compile(r"[0-9a-f]{64}"),
    "md5": re.compile(r"[0-9a-f]{32}"),
    "git_blob": re.compile(r"[0-9a-f]{8,40}"),
    "git_commit": re.compile(r"[0-9a-f]{40}"),
}
_TYPES = ("files", "generated")


@dataclass(frozen=True)
class RemoteFile:
    """One upstream file and how to recognise it.

    Attributes
    ----------
    dataset
        The dataset it belongs to.
    name
        File name.
    url
        Where it is downloaded from.
    hash
        ``sha256:`` and its SHA-256, ``md5:`` and its MD5, or ``git_blob:`` and leading digits of its git blob SHA-1.
        ``git_commit:`` and the commit in its url where no hash of the file is known: nothing is checked then but
        what its builder checks.
    bytes
        Its size, if known.
    alternative
        Name and hash of a file beside the mirror that can stand in for it.
    folder
        Its folder in mirror and cache; empty where that is named like the dataset.
    """

    dataset: str
    name: str
    url: str
    hash: str
    bytes: int | None = None
    alternative: tuple[str, str] | None = None
    folder: str = ""

    @property
    def path(self) -> str:
        """Where it stands in mirror and cache: ``<folder>/<name>``."""
        return f"{self.folder or self.dataset}/{self.name}"


@dataclass(frozen=True)
class Entry:
    """One dataset of the registry; the fields are the keys of its YAML file.

    ``kind`` says which keys there are besides those that every dataset has. ``cells`` is a co-assay, which loads as
    MuData; ``images`` has the one modality ``image`` of ``image_shape`` (height, width), and loads as AnnData; so does
    ``table``, whose ``columns`` are given with their means, and ``mesh``, a table of vertices of ``n_faces``
    triangles.
    ``files`` may name a file of another dataset, which is then that dataset's :class:`RemoteFile`.
    ``test_indices`` are the cells of a published test split, as row positions.
    """

    name: str
    type: str
    title: str
    n_obs: int
    split: str
    labels: str
    licence: str
    citation: str
    builder: str
    kind: str = "cells"
    assay: str = ""
    organism: str = ""
    accession: str = ""
    modalities: tuple[str, ...] = ("image",)
    shape: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    pairing: str = ""
    source: str = ""
    target: str = ""
    condition: str | None = None
    genome: str | None = None
    image_shape: tuple[int, ...] = ()
    columns: Mapping[str, float] = field(default_factory=dict)
    n_faces: int = 0
    notes: str = ""
    doi: tuple[str, ...] = ()
    files: tuple[RemoteFile, ...] = ()
    test_indices: tuple[int, ...] = ()

    @property
    def suffix(self) -> str:
        """Ending of the file that the loaded dataset is written to."""
        return ".h5mu" if self.kind == "cells" else ".h5ad"

    def describe(self) -> dict[str, str]:
        """Plain strings for ``uns["celltransfer_dataset"]``; empty where there is none."""
        return {key: str(getattr(self, key) or "") for key in _DESCRIPTION}


_DESCRIPTION = "name source target labels condition split licence citation assay organism accession genome".split()
_REQUIRED = tuple("name type title n_obs split labels licence citation builder".split())
_OPTIONAL = ("kind", "notes", "doi", "files")
# Keys by kind, besides those: required, then optional.
_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "cells": (
        ("assay", "organism", "accession", "modalities", "shape", "pairing", "source", "target"),
        ("condition", "genome", "test_indices"),
    ),
    "images": (("image_shape",), ()),
    "table": (("columns",), ()),
    "mesh": (("columns", "n_faces"), ()),
}


def folder() -> Path:
    """The folder of the YAML files: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    for candidate in (package / "data_registry", package.parent / "data_registry"):
        if candidate.is_dir():
            return candidate
    raise DatasetError(
        f"The dataset registry is missing: no folder 'data_registry' in or beside {package}. Reinstall celltransfer."
    )


@cache
def entries() -> Mapping[str, Entry]:
    """All datasets by name, in alphabetical order.

    Raises
    ------
    DatasetError
        A YAML file is malformed.
    """
    return parse({path.name: path.read_text(encoding="utf-8") for path in sorted(folder().glob("*.yaml"))})


def get(name: str) -> Entry:
    """The entry of one dataset.

    Raises
    ------
    DatasetError
        There is none of this name.
    """
    known = entries()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DatasetError(f"There is no dataset {name!r}; there are {', '.join(known)}.{hint}")
    return known[name]


def parse(texts: Mapping[str, str]) -> dict[str, Entry]:
    """Parse and check registry files.

    Parameters
    ----------
    texts
        YAML text by file name. A file may refer to the files of any other one.

    Raises
    ------
    DatasetError
        A file is malformed; the message names file, key and what is expected.
    """
    raw = {where: _mapping(where, text) for where, text in texts.items()}
    owned = {where: _own_files(where, entry) for where, entry in raw.items()}
    by_name = {(file.dataset, file.name): file for files in owned.values() for file in files}
    return {entry["name"]: _entry(where, entry, by_name) for where, entry in raw.items()}


def _mapping(where: str, text: str) -> dict[str, Any]:
    try:
        entry = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DatasetError(f"{where} is not valid YAML: {error}") from error
    _require(isinstance(entry, dict), where, "the file", "a mapping")
    kind = entry.get("kind", "cells")
    _require(kind in _KINDS, where, "kind", f"one of {', '.join(_KINDS)}")
    required, optional = _KINDS[kind]
    for key in _REQUIRED + required:
        _require(key in entry, where, key, f"given for kind {kind!r}")
    known = _REQUIRED + required + _OPTIONAL + optional
    for key in entry:
        _require(key in known, where, key, f"one of {', '.join(known)}")
    return entry


def _require(condition: bool, where: str, key: str, expected: str) -> None:
    if not condition:
        raise DatasetError(f"{where}: {key!r} must be {expected}.")


def _own_files(where: str, entry: dict[str, Any]) -> list[RemoteFile]:
    files = entry.get("files", [])
    _require(
        isinstance(files, list) and all(isinstance(file, dict) for file in files), where, "files", "a list of mappings"
    )
    return [_remote_file(where, entry["name"], file) for file in files if "dataset" not in file]


def _remote_file(where: str, dataset: str, file: dict[str, Any]) -> RemoteFile:
    extra = set(file) - {"name", "url", "bytes", "alternative", "folder", *_HASHES}
    _require(not extra, where, "files", f"without the unknown keys {sorted(extra)}")
    name, url, alternative = file.get("name"), file.get("url"), file.get("alternative")
    _require(_is_plain(name), where, "files: name", "a plain file name")
    _require(_is_plain(file.get("folder", dataset)), where, f"files: {name}: folder", "a plain folder name")
    _require(isinstance(url, str) and url.startswith("https://"), where, f"files: {name}: url", "an https address")
    known = _hash(where, f"files: {name}", file)
    _require(str(file.get("git_commit", "")) in str(url), where, f"files: {name}: git_commit", "in the url")
    if alternative is not None:
        key = f"files: {name}: alternative"
        _require(set(alternative) == {"name", "sha256"}, where, key, "name and sha256")
        alternative = (alternative["name"], _hash(where, key, alternative))
    return RemoteFile(dataset, str(name), str(url), known, file.get("bytes"), alternative, file.get("folder", ""))


def _is_plain(name: Any) -> bool:
    return isinstance(name, str) and name != "" and Path(name).name == name


def _hash(where: str, key: str, file: Mapping[str, Any]) -> str:
    """The hash of a file with its kind before it, e.g. ``md5:...``."""
    given = [kind for kind in _HASHES if kind in file]
    _require(len(given) == 1, where, key, f"given one of {', '.join(_HASHES)}")
    kind, value = given[0], str(file[given[0]])
    pattern = _HASHES[kind]
    _require(bool(pattern.fullmatch(value)), where, f"{key}: {kind}", f"a lower-case hash ({pattern.pattern})")
    return f"{kind}:{value}"


def _entry(where: str, entry: dict[str, Any], by_name: Mapping[tuple[str, str], RemoteFile]) -> Entry:
    name = entry["name"]
    _require(where == f"{name}.yaml", where, "name", "the name of the file")
    _require(entry["type"] in _TYPES, where, "type", f"one of {', '.join(_TYPES)}")
    _require(
        (entry["type"] == "files") == bool(entry.get("files")), where, "files", "given for type 'files', and only there"
    )
    _require(isinstance(entry["n_obs"], int), where, "n_obs", "an integer")
    references = [(file.get("dataset", name), file["name"]) for file in entry.get("files", [])]
    for reference in references:
        _require(reference in by_name, where, "files", f"in the registry; {'/'.join(reference)} is not")
    return Entry(
        **{
            **entry,
            **_KEYS[entry.get("kind", "cells")](where, entry),
            "doi": tuple(entry.get("doi", ())),
            "files": tuple(by_name[reference] for reference in references),
        }
    )


def _cell_keys(where: str, entry: dict[str, Any]) -> dict[str, Any]:
    modalities, shape = entry["modalities"], entry["shape"]
    _require(isinstance(modalities, list), where, "modalities", "a list")
    _require(isinstance(shape, dict), where, "shape", "a mapping")
    _require(list(shape) == list(modalities), where, "shape", "given for each of the modalities, in their order")
    _require({entry["source"], entry["target"]} <= set(modalities), where, "source and target", "two of the modalities")
    return {
        "modalities": tuple(modalities),
        "shape": {modality: tuple(shape[modality]) for modality in modalities},
        "test_indices": tuple(entry.get("test_indices", ())),
    }


def _image_keys(where: str, entry: dict[str, Any]) -> dict[str, Any]:
    sides = entry["image_shape"]
    valid = isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
    _require(valid, where, "image_shape", "two positive integers, height and width")
    return {"image_shape": tuple(sides), "shape": {"image": (entry["n_obs"], sides[0] * sides[1])}}


def _table_keys(where: str, entry: dict[str, Any]) -> dict[str, Any]:
    columns = entry["columns"]
    valid = isinstance(columns, dict) and all(isinstance(mean, (int, float)) for mean in columns.values())
    _require(valid and bool(columns), where, "columns", "names and means")
    return {"modalities": (entry["kind"],), "shape": {entry["kind"]: (entry["n_obs"], len(columns))}}


def _mesh_keys(where: str, entry: dict[str, Any]) -> dict[str, Any]:
    _require(isinstance(entry["n_faces"], int) and entry["n_faces"] > 0, where, "n_faces", "a positive integer")
    return _table_keys(where, entry)


_KEYS = {"cells": _cell_keys, "images": _image_keys, "table": _table_keys, "mesh": _mesh_keys}
