"""Tables in Markdown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd


def markdown_table(table: pd.DataFrame, number: Callable[[float], str] = "{:.3g}".format) -> list[str]:
    """Lines of a Markdown table: the index as first column, numbers by `number`, nothing where a value is missing."""
    head = [str(table.index.name or ""), *map(str, table.columns)]
    rows = [[name, *values] for name, values in zip(table.index, table.to_numpy(object), strict=True)]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    return lines + [_line([_cell(value, number) for value in row]) for row in rows]


def _cell(value: Any, number: Callable[[float], str]) -> str:
    if value is None or value != value:  # NaN
        return ""
    return number(value) if isinstance(value, float) else str(value)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
