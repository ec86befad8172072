from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import celltransfer as ct
import mudata
import numpy as np
import pytest
from celltransfer.datasets import fetch, registry
from celltransfer.datasets.registry import RemoteFile
from celltransfer.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from pathlib import Path

CONTENT = b"cells and genes\n"
SHA256 = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
MD5 = "md5:" + hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
GIT_BLOB = "git_blob:" + hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()[:8]
HASHES = pytest.mark.parametrize("known", [SHA256, MD5, GIT_BLOB], ids=["sha256", "md5", "git_blob"])


class Handler(BaseHTTPRequestHandler):
    """Serves the right file, a wrong one, one that breaks off, and one that works at the second request."""

    requests: list[str] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.path == "/missing" or (self.path == "/flaky" and self.requests.count("/flaky") == 1):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(1000 if self.path == "/cut" else len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT.upper() if self.path == "/wrong" else CONTENT)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def places(tmp_path, monkeypatch):
    """An empty cache and an empty mirror; no proxy and no retries."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "RETRIES", 0)
    cache, mirror = tmp_path / "cache", tmp_path / "data" / "mirror"
    (mirror / "toy").mkdir(parents=True)
    Handler.requests.clear()
    with ct.settings.override(cache_dir=cache, data_mirror=mirror, progress=False):
        yield cache, mirror


def remote(url: str = "https://localhost:1/never", **kwargs: object) -> RemoteFile:
    return RemoteFile("toy", "a.txt", url, **({"hash": SHA256} | kwargs))


def left_over(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()]


def test_mirror_is_read_in_place(places):
    cache, mirror = places
    (mirror / "toy" / "a.txt").write_bytes(CONTENT)
    assert fetch.locate(remote()) == mirror / "toy" / "a.txt"
    assert not cache.exists()


def test_mirror_goes_before_cache(places):
    cache, mirror = places
    for folder in (cache, mirror):
        (folder / "toy").mkdir(parents=True, exist_ok=True)
        (folder / "toy" / "a.txt").write_bytes(CONTENT)
    assert fetch.locate(remote()) == mirror / "toy" / "a.txt"


def test_wrong_file_in_mirror_is_named(places):
    _, mirror = places
    (mirror / "toy" / "a.txt").write_bytes(b"something else")
    with pytest.raises(DatasetError, match=r"toy/a\.txt") as caught:
        fetch.locate(remote())
    assert SHA256 in str(caught.value)
    assert hashlib.sha256(b"something else").hexdigest() in str(caught.value)


@HASHES
def test_every_kind_of_hash_identifies_a_file(places, known):
    _, mirror = places
    (mirror / "toy" / "a.txt").write_bytes(CONTENT)
    assert fetch.locate(remote(hash=known)).exists()
    kind, _, digits = known.partition(":")
    with pytest.raises(DatasetError, match=f"expected {kind}:{'0' * len(digits)}, found {known}"):
        fetch.locate(remote(hash=f"{kind}:{'0' * len(digits)}"))


def test_a_file_may_stand_in_another_folder(places, server):
    cache, mirror = places
    file = remote(f"{server}/good", folder="elsewhere")
    assert fetch.locate(file) == cache / "elsewhere" / "a.txt"
    (mirror / "elsewhere").mkdir()
    (mirror / "elsewhere" / "a.txt").write_bytes(CONTENT)
    assert fetch.locate(file) == mirror / "elsewhere" / "a.txt"


def test_alternative_beside_the_mirror_stands_in(places):
    _, mirror = places
    other = mirror.parent / "prepared.h5mu"
    other.write_bytes(CONTENT)
    file = remote(hash="git_blob:00000000", alternative=("prepared.h5mu", SHA256))
    assert fetch.locate(file) == other
    other.write_bytes(b"changed")
    with pytest.raises(DatasetError, match=r"prepared\.h5mu"):
        fetch.locate(file)


def test_download_into_cache_once(places, server):
    cache, _ = places
    for _ in range(2):
        assert fetch.locate(remote(f"{server}/good")).read_bytes() == CONTENT
    assert Handler.requests == ["/good"]
    assert left_over(cache) == [cache / "toy" / "a.txt"]


def test_corrupt_cache_is_downloaded_again(places, server):
    cache, _ = places
    (cache / "toy").mkdir(parents=True)
    (cache / "toy" / "a.txt").write_bytes(CONTENT[:5])
    assert fetch.locate(remote(f"{server}/good")).read_bytes() == CONTENT


def test_failed_downloads_are_tried_again(places, server, monkeypatch):
    monkeypatch.setattr(fetch, "RETRIES", 1)
    assert fetch.locate(remote(f"{server}/flaky")).read_bytes() == CONTENT
    assert Handler.requests == ["/flaky", "/flaky"]


@HASHES
@pytest.mark.parametrize("path", ["missing", "cut", "wrong"])
def test_failed_downloads_leave_nothing(places, server, path, known):
    cache, _ = places
    with pytest.raises(DatasetError, match=f"{server}/{path}"):
        fetch.locate(remote(f"{server}/{path}", hash=known))
    assert left_over(cache) == []


def test_offline_message_says_what_to_do(places):
    cache, mirror = places
    with pytest.raises(DatasetError, match="CELLTRANSFER_DATA_MIRROR") as caught:
        fetch.locate(remote())
    for part in ("https://localhost:1/never", str(cache), str(mirror), "toy/a.txt"):
        assert part in str(caught.value)


@pytest.fixture
def entry(places, monkeypatch):
    """A dataset whose builder simulates 40 cells and counts its calls."""
    _, mirror = places
    (mirror / "toy" / "a.txt").write_bytes(CONTENT)
    calls = []

    def build(files: dict[str, Path]) -> object:
        calls.append(files["a.txt"].read_bytes())
        return ct.datasets.simulate(n_obs=40, n_genes=8, n_peaks=9)

    monkeypatch.setattr("celltransfer.datasets.builders.toy", build, raising=False)
    toy = replace(registry.get("scgem"), files=(remote(),), builder="celltransfer.datasets.builders:toy")
    return toy, calls


def test_built_dataset_is_cached(entry):
    toy, calls = entry
    assert fetch.is_local(toy)
    first, second = fetch.load(toy), fetch.load(toy)
    assert calls == [CONTENT]
    assert (first["rna"].X != second["rna"].X).nnz == 0
    assert first.obs.equals(second.obs)
    assert [path.suffix for path in sorted(fetch.built_path(toy).parent.iterdir())] == [".h5mu", ".sha256"]


@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda content: content[:-1] + b"x", lambda _: b""])
def test_corrupt_built_dataset_is_rebuilt(entry, damage):
    toy, calls = entry
    first = fetch.load(toy)
    path = fetch.built_path(toy)
    path.write_bytes(damage(path.read_bytes()))
    assert (fetch.load(toy)["rna"].X != first["rna"].X).nnz == 0
    assert len(calls) == 2
    fetch.load(toy)
    assert len(calls) == 2


def test_new_builder_version_builds_again(entry, monkeypatch):
    toy, calls = entry
    fetch.load(toy)
    monkeypatch.setattr(fetch, "BUILDER_VERSION", fetch.BUILDER_VERSION + 1)
    fetch.load(toy)
    assert len(calls) == 2


def test_unwritable_cache_is_no_error(entry, tmp_path):
    toy, _ = entry
    (tmp_path / "file").write_text("not a folder")
    with ct.settings.override(cache_dir=tmp_path / "file"):
        assert fetch.load(toy).n_obs == 40


def test_images_are_not_cached(places):
    cache, mirror = places
    entry = registry.get("mnist")
    assert not fetch.is_local(entry)
    for file in entry.files:
        (mirror / file.path).parent.mkdir(exist_ok=True)
        (mirror / file.path).write_bytes(CONTENT)
    assert fetch.is_local(entry)
    assert left_over(cache) == []


def test_export_writes_each_kind_in_its_format(places, tmp_path):
    cells, images = registry.get("pbmc68k_panels"), registry.get("digits")
    for entry, name in ((cells, "x.h5ad"), (images, "x.h5mu"), (images, "x")):
        with pytest.raises(ConfigError, match=entry.suffix):
            fetch.export(entry, tmp_path / name)
    fetch.export(cells, tmp_path / "x.h5mu")
    assert list(mudata.read_h5mu(tmp_path / "x.h5mu").mod) == ["panel_a", "panel_b"]
    adata = fetch.export(images, tmp_path / "x.h5ad")
    read = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert np.array_equal(read.X, adata.X)
    assert read.obs.equals(adata.obs)
    assert list(read.uns["image_shape"]) == adata.uns["image_shape"] == [8, 8]
