"""The package as a whole: what importing costs, what is public, what is shipped, how large a file may grow."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import celltransfer as ct
import pytest
from celltransfer.datasets import registry

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGE = Path(ct.__file__).parent
ROOT = PACKAGE.parent
HEAVY = ("anndata", "matplotlib", "mudata", "numba", "pandas", "scanpy", "scipy", "sklearn", "torch")
MAX_LINES = 500

in_checkout = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(), reason="celltransfer is not run from a checkout"
)


def _python(code: str, *, cwd: Path = ROOT, path: Path = ROOT) -> str:
    """Standard output of `code` in a new interpreter that imports celltransfer from `path`."""
    env = os.environ | {"PYTHONPATH": str(path), "PYTHONSAFEPATH": "1"}
    run = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


def _modules() -> Iterator[ModuleType]:
    for info in pkgutil.walk_packages([str(PACKAGE)], "celltransfer."):
        if info.name != "celltransfer.__main__":
            yield importlib.import_module(info.name)


def _public(owner: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public functions and classes defined in a module, and the public methods of the classes."""
    for name, value in vars(owner).items():
        if name.startswith("_") or getattr(value, "__module__", None) != owner.__name__:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            yield f"{owner.__name__}.{name}", value
        if inspect.isclass(value):
            for method, member in vars(value).items():
                function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
                function = function.fget if isinstance(function, property) else function
                if not method.startswith("_") and inspect.isfunction(function):
                    yield f"{owner.__name__}.{name}.{method}", getattr(value, method, function)


@pytest.mark.parametrize("statement", ["", "ct.settings; ct.errors; dir(ct)"])
def test_import_loads_nothing_heavy(statement: str) -> None:
    loaded = _python(f"import sys, celltransfer as ct; {statement}\nprint([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_listing_datasets_needs_no_torch() -> None:
    code = "import sys, celltransfer as ct; ct.datasets.list(); print('torch' in sys.modules)"
    assert _python(code).strip() == "False"


@pytest.mark.parametrize("name", ct.__all__)
def test_public_name_resolves(name: str) -> None:
    assert getattr(ct, name) is not None
    assert name in dir(ct)


def test_public_names_of_the_namespaces_resolve() -> None:
    for module in (value for name in ct.__all__ if isinstance(value := getattr(ct, name), ModuleType)):
        for name in getattr(module, "__all__", ()):
            assert hasattr(module, name), f"{module.__name__}.{name}"


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ct.nonsense  # noqa: B018


@in_checkout
def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ct.__version__ == project["version"]
    assert f"\nversion: {ct.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{ct.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_version_is_that_of_the_installed_distribution() -> None:
    try:
        installed = metadata.version("celltransfer")
    except metadata.PackageNotFoundError:
        pytest.skip("celltransfer is imported from a folder and not installed")
    assert ct.__version__ == installed


def test_everything_public_is_documented() -> None:
    bare = [name for module in _modules() for name, value in _public(module) if not inspect.getdoc(value)]
    assert not bare


def test_everything_returns_a_declared_type() -> None:
    untyped = []
    for module in _modules():
        for name, value in _public(module):
            if inspect.isfunction(value) and "return" not in value.__annotations__:
                untyped.append(name)
    assert not untyped


def test_no_file_holds_more_than_one_idea() -> None:
    sources = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    long = {str(path): n for path in sources if (n := len(path.read_text().splitlines())) > MAX_LINES}
    assert not long


def test_registry_is_found_here() -> None:
    assert {"simulate", "scgem"} <= {path.stem for path in registry.folder().glob("*.yaml")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout with the backend of this environment; no network."""
    missing = [name for name in ("build", "hatchling") if util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("celltransfer-*.whl"))


@in_checkout
def test_wheel_ships_code_data_and_licence_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    code = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*.py")}
    data = {f"celltransfer/data_registry/{path.name}" for path in (ROOT / "data_registry").glob("*.yaml")}
    info = {name for name in names if name.split("/")[0] == f"celltransfer-{ct.__version__}.dist-info"}
    assert names == code | data | {"celltransfer/py.typed"} | info
    assert any(name.endswith("/LICENSE") for name in info)
    assert any(name.endswith("/entry_points.txt") for name in info)


@in_checkout
def test_installed_package_finds_its_registry(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import json, celltransfer; from celltransfer.datasets import registry\n"
        "print(json.dumps([celltransfer.__file__, str(registry.folder()), list(registry.entries())]))"
    )
    file, folder, names = json.loads(_python(code, cwd=tmp_path, path=site))
    assert Path(file).is_relative_to(site)
    assert Path(folder).is_relative_to(site)
    assert names == list(registry.entries())
