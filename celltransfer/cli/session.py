"""What all commands do alike: logging, warnings and errors on stderr, and tables of names."""

from __future__ import annotations

import logging
import sys
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from celltransfer.errors import CelltransferError, VerdictWarning

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from celltransfer.model.model import TransferModel


@contextmanager
def session(verbose: bool = True) -> Iterator[None]:
    """Log to stderr, print warnings as one line, and turn our errors into one line and exit code 1."""
    logger, handler = logging.getLogger("celltransfer"), logging.StreamHandler(sys.stderr)
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.propagate = False  # some library we import gives the root logger a handler of its own
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            # A translated modality has the target's feature names on purpose; mudata warns about shared names.
            warnings.filterwarnings("ignore", message=".*var_names", category=UserWarning, module="mudata")
            warnings.filterwarnings("ignore", category=VerdictWarning)  # printed with the result
            warnings.showwarning = lambda message, *_: say(f"warning: {message}")
            yield
    except (CelltransferError, MemoryError) as error:
        notes = getattr(error, "__notes__", [])
        say(" ".join(["error:", str(error) or "out of memory", *notes]))
        raise typer.Exit(1) from error
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def say(text: str) -> None:
    """Print one line on stderr."""
    print(" ".join(text.split()), file=sys.stderr)


def conclude(model: TransferModel, strict: bool) -> None:
    """Say on stderr what should not be believed; an exit code of its own with --strict."""
    verdict = model.verdict_
    if not model.doubtful:
        return
    unlike = ", and translated cells are not like target cells" if verdict.level == "identified" else ""
    say(f"warning: the verdict is {verdict.level}{unlike}. {' '.join(verdict.reasons)}")
    if strict:
        say(f"The verdict is {verdict.level!r}{unlike}; --strict asks for 'identified', and for no such difference.")
        raise typer.Exit(3)


def print_columns(table: pd.DataFrame) -> None:
    """Print a table as aligned columns, its header first; the last column is not padded."""
    rows = [list(table.columns), *table.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        padded = (text.ljust(width) for text, width in zip(row[:-1], widths[:-1], strict=True))
        print("  ".join([*padded, row[-1]]))
