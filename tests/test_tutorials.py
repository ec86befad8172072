"""Every tutorial runs from top to bottom, and is stored with the outputs that the documentation shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from nbclient import NotebookClient

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

pytestmark = pytest.mark.skipif(not NOTEBOOKS, reason="the tutorials are not here")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


def _outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    noise = [output.text for output in _outputs(notebook) if output.get("name") == "stderr"]
    assert noise == []
    assert list(tmp_path.iterdir()) == [], "a tutorial leaves no files behind"


def test_is_stored_with_its_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.language_info.name == "python"
    assert path.stat().st_size < 1_000_000
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "run it from top to bottom and save"
    kinds = {output.output_type for output in _outputs(notebook)}
    assert kinds <= {"execute_result", "display_data", "stream"}
    assert any("image/png" in output.get("data", {}) for output in _outputs(notebook))


def test_has_one_title_and_sections(path: Path) -> None:
    text = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings[0].startswith("# ")
    assert sum(line.startswith("# ") for line in headings) == 1
    assert sum(line.startswith("## ") for line in headings) >= 3
