"""Sphinx configuration."""

import shutil
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent

project = "celltransfer"
author = "celltransfer developers"
copyright = "2026, celltransfer developers"
release = version = installed("celltransfer")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "_templates", "**.ipynb_checkpoints"]
default_role = "py:obj"

autosummary_generate = True
# Autodoc cannot read the signature of SciPy's decorated svds, which it meets where it is imported.
autodoc_default_options = {"members": True, "member-order": "bysource", "exclude-members": "svds"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_ivar = True
napoleon_use_rtype = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # notebooks are stored with their outputs, and run by the tests

html_theme = "sphinx_book_theme"
html_title = f"celltransfer {release}"

# Sphinx reads below this folder only; tutorials live at the top of the repository.
shutil.rmtree(HERE / "tutorials", ignore_errors=True)
shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials", ignore=shutil.ignore_patterns("*.py", ".*"))
