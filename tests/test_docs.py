"""The complete examples of the documentation run as they stand there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the documentation is not here")


def _blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", ["index.md", "extending.md"])
def test_first_example_runs(page: str, tmp_path: Path) -> None:
    script = tmp_path / "example.py"
    script.write_text(_blocks(page)[0])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(DOCS.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert "verdict" in run.stdout


def test_every_example_is_valid_python() -> None:
    for page in DOCS.glob("*.md"):
        for block in _blocks(page.name):
            compile(block, page.name, "exec")


def test_tables_of_methods_and_datasets_are_complete() -> None:
    import celltransfer as ct
    from celltransfer.translators import base

    methods, datasets = (DOCS / "choosing-a-method.md").read_text(), (DOCS / "datasets.md").read_text()
    assert [name for name in base._BUILTIN if f'`"{name}"`' not in methods] == []
    assert [name for name in ct.datasets.list()["name"] if datasets.count(f"`{name}`") < 2] == []
