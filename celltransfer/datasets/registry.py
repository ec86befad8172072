"""The dataset registry: ``data_registry/*.yaml``, read and checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from celltransfer.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SHA256 = re.compile(r"[0-9a-f]{64}")
_GIT_BLOB = re.compile(r"[0-9a-f]{8,40}")
_TYPES = ("files", "generated")


@dataclass(frozen=True)
class RemoteFile:
    """One upstream file and how to recognise it.

    Attributes
    ----------
    dataset
        Folder of the file in mirror and cache.
    name
        File name.
    url
        Where it is downloaded from.
    sha256
        Its SHA-256, if known.
    bytes
        Its size, if known.
    git_blob
        Leading hex digits of its git blob SHA-1, where no SHA-256 is known.
    alternative
        Name and SHA-256 of a file beside the mirror that can stand in for it.
    """

    dataset: str
    name: str
    url: str
    sha256: str | None = None
    bytes: int | None = None
    git_blob: str | None = None
    alternative: tuple[str, str] | None = None

    @property
    def fingerprint(self) -> str:
        """What identifies the content of the file."""
        return self.sha256 or str(self.git_blob)


@dataclass(frozen=True)
class Entry:
    """One dataset of the registry; the fields are the keys of its YAML file.

    ``files`` may name a file of another dataset, which is then that dataset's :class:`RemoteFile`.
    ``test_indices`` are the cells of a published test split, as row positions.
    """

    name: str
    type: str
    title: str
    assay: str
    organism: str
    accession: str
    modalities: tuple[str, ...]
    n_obs: int
    shape: Mapping[str, tuple[int, int]]
    pairing: str
    split: str
    labels: str
    source: str
    target: str
    licence: str
    citation: str
    builder: str
    condition: str | None = None
    genome: str | None = None
    notes: str = ""
    doi: tuple[str, ...] = ()
    files: tuple[RemoteFile, ...] = ()
    test_indices: tuple[int, ...] = ()

    def describe(self) -> dict[str, str]:
        """Plain strings for ``mdata.uns["celltransfer_dataset"]``; empty where there is none."""
        return {key: str(getattr(self, key) or "") for key in _DESCRIPTION}


_DESCRIPTION = "name source target labels condition split licence citation assay organism accession genome".split()
_OPTIONAL = ("condition", "genome", "notes", "doi", "files", "test_indices")
_REQUIRED = tuple(field.name for field in fields(Entry) if field.name not in _OPTIONAL)


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
    for key in _REQUIRED:
        _require(key in entry, where, key, "given")
    for key in entry:
        _require(key in _REQUIRED + _OPTIONAL, where, key, f"one of {', '.join(_REQUIRED + _OPTIONAL)}")
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
    extra = set(file) - {"name", "url", "sha256", "bytes", "git_blob", "alternative"}
    _require(not extra, where, "files", f"without the unknown keys {sorted(extra)}")
    name, url = file.get("name", ""), file.get("url", "")
    _require(
        isinstance(name, str) and name != "" and Path(name).name == name, where, "files: name", "a plain file name"
    )
    _require(isinstance(url, str) and url.startswith("https://"), where, f"files: {name}: url", "an https address")
    _require(("sha256" in file) != ("git_blob" in file), where, f"files: {name}", "given either sha256 or git_blob")
    _check_hash(where, f"files: {name}: sha256", file.get("sha256"), _SHA256)
    _check_hash(where, f"files: {name}: git_blob", file.get("git_blob"), _GIT_BLOB)
    alternative = file.get("alternative")
    if alternative is not None:
        _require(set(alternative) == {"name", "sha256"}, where, f"files: {name}: alternative", "name and sha256")
        _check_hash(where, f"files: {name}: alternative", alternative["sha256"], _SHA256)
        alternative = (alternative["name"], alternative["sha256"])
    return RemoteFile(dataset, name, url, file.get("sha256"), file.get("bytes"), file.get("git_blob"), alternative)


def _check_hash(where: str, key: str, value: Any, pattern: re.Pattern[str]) -> None:
    _require(value is None or bool(pattern.fullmatch(str(value))), where, key, f"a lower-case hash ({pattern.pattern})")


def _entry(where: str, entry: dict[str, Any], by_name: Mapping[tuple[str, str], RemoteFile]) -> Entry:
    name, modalities, shape = entry["name"], entry["modalities"], entry["shape"]
    _require(where == f"{name}.yaml", where, "name", "the name of the file")
    _require(entry["type"] in _TYPES, where, "type", f"one of {', '.join(_TYPES)}")
    _require(
        (entry["type"] == "files") == bool(entry.get("files")), where, "files", "given for type 'files', and only there"
    )
    _require(isinstance(entry["n_obs"], int), where, "n_obs", "an integer")
    _require(isinstance(modalities, list), where, "modalities", "a list")
    _require(isinstance(shape, dict), where, "shape", "a mapping")
    _require(list(shape) == list(modalities), where, "shape", "given for each of the modalities, in their order")
    _require({entry["source"], entry["target"]} <= set(modalities), where, "source and target", "two of the modalities")
    references = [(file.get("dataset", name), file["name"]) for file in entry.get("files", [])]
    for reference in references:
        _require(reference in by_name, where, "files", f"in the registry; {'/'.join(reference)} is not")
    return Entry(
        **{
            **entry,
            "modalities": tuple(modalities),
            "shape": {modality: tuple(shape[modality]) for modality in modalities},
            "doi": tuple(entry.get("doi", ())),
            "files": tuple(by_name[reference] for reference in references),
            "test_indices": tuple(entry.get("test_indices", ())),
        }
    )
