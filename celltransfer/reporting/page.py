"""A report as HTML: one file, no scripts, nothing loaded from elsewhere, readable in the dark and on paper."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

from celltransfer.reporting import document, tables, words
from celltransfer.reporting import pictures as drawn

if TYPE_CHECKING:
    from collections.abc import Mapping

    from celltransfer.reporting.result import Report

# White text on each is easy to read.
_LEVELS = {"identified": "#2e7d32", "ambiguous": "#955400", "failed": "#c62828"}
_UNKNOWN_LEVEL = "#555555"
_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #ffffff; --soft: #5d6066; --line: #d9dbe0; --tint: #f4f5f7; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e7e7ea; --paper: #17181b; --soft: #a9adb5; --line: #3a3d43; --tint: #222429; }
  figure img { filter: brightness(.92); }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0; overflow-wrap: anywhere; }
.meta, caption, figcaption { color: var(--soft); font-size: .9rem; }
.level { color: #fff; border-radius: 1rem; padding: .15rem .75rem; font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0;
  padding: 0; }
.figures div { background: var(--tint); border-radius: .5rem; padding: .7rem .9rem; }
.figures dt { color: var(--soft); font-size: .85rem; }
.figures dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.figures small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; caption-side: top; }
th, td { padding: .28rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { vertical-align: bottom; white-space: normal; }
tbody th, thead th:first-child { text-align: left; font-weight: 500; white-space: normal; overflow-wrap: break-word;
  max-width: 22rem; }
tr.strong > * { font-weight: 700; background: var(--tint); }
figure { margin: 1.25rem 0; }
figure img { max-width: 100%; height: auto; background: #fff; border-radius: .5rem; }
@media print {
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; }
  h2 { break-after: avoid; } figure, tr, .figures { break-inside: avoid; } .wide { overflow: visible; }
  table { font-size: 7.5pt; } thead { display: table-header-group; }
  th, td { padding: .15rem .3rem; } td { white-space: normal; }
  .level, .figures div, tr.strong > * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def page(report: Report) -> str:
    """The whole report as an HTML document."""
    title = f"{report.about['source']} \N{RIGHTWARDS ARROW} {report.about['target']}"
    pictures = drawn.pictures(report)
    body = [_heading(report, title), _figures(report)]
    body += [_section(section, pictures) for section in document.sections(report)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: translation report</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def fragment(report: Report) -> str:
    """Sentences and the headline table, as a piece of HTML for a notebook."""
    lines = [escape(line) for line in report.summary()]
    lines[1] = f'<b style="color:{_color(report)}">{lines[1]}</b>'
    table = (
        ""
        if report.table.empty
        else report.headline().rename(columns=words.short).to_html(float_format=words.number, na_rep="")
    )
    return f"<p>{'<br>'.join(lines)}</p>{table}"


def _color(report: Report) -> str:
    return _LEVELS.get(report.verdict.level, _UNKNOWN_LEVEL)


def _heading(report: Report, title: str) -> str:
    about = report.about
    meta = f"Method {about['method']}, {about['n_anchors']} anchors, seed {about['seed']}."
    return (
        f"<header>\n<h1>{escape(title)}</h1>\n"
        f'<p><span class="level" style="background:{_color(report)}">{escape(report.verdict.level)}</span> '
        f'<span class="meta">{escape(meta)}</span></p>\n</header>\n'
    )


def _figures(report: Report) -> str:
    """The few figures that everybody looks for."""
    if report.overall.empty:
        return ""
    row, knn = (report.overall.loc[name] for name in ("foscttm", "knn_accuracy@10"))
    tenths = document.tenths
    found = [
        ("FOSCTTM", words.number(row["translation"]), f"{row['low']:.3f} to {row['high']:.3f}; chance 0.5"),
        (
            "Partner among the 10 nearest",
            tenths(knn["translation"]),
            f"{tenths(knn['low'])} to {tenths(knn['high'])}; chance {tenths(knn['chance'])}",
        ),
        (
            "Share of the ceiling (FOSCTTM)",
            words.percent(row["share"]) or "no ceiling",
            f"{row['ceiling']:.3f}, trained on all pairs{_rival(report)}",
        ),
        ("Scored cells", f"{report.about['n_cells']:,}", escape(report.about["cells"])),
    ]
    boxes = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>\n" for name, value, more in found)
    return f'<dl class="figures">\n{boxes}</dl>\n'


def _rival(report: Report) -> str:
    """Which control takes from the ceiling that it is one."""
    rivals = tables.beat_ceiling(report.table, "foscttm")
    return f"; {escape(str(rivals.index[0]))} {rivals.iloc[0]:.3f}" if len(rivals) else ""


def _section(section: document.Section, pictures: Mapping[str, drawn.Picture]) -> str:
    blocks = []
    for block in section.blocks:
        if isinstance(block, document.Table):
            blocks.append(_table(block))
        elif isinstance(block, str):
            blocks.append(f"<p>{escape(block)}</p>\n")
        elif block.name in pictures:
            blocks.append(_picture(pictures[block.name]))
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{''.join(blocks)}</section>\n"


def _table(table: document.Table) -> str:
    head = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in (table.frame.index.name or "", *table.frame))
    rows = []
    for name, values in zip(table.frame.index, table.frame.to_numpy(object), strict=True):
        strong = ' class="strong"' if name == table.strong else ""
        cells = "".join(f"<td>{escape(str(value))}</td>" for value in values)
        rows.append(f'<tr{strong}><th scope="row">{escape(str(name))}</th>{cells}</tr>\n')
    return (
        f'<div class="wide" tabindex="0"><table>\n<caption>{escape(table.caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table></div>\n"
    )


def _picture(picture: drawn.Picture) -> str:
    """A vector picture inside the page; its text is drawn, so that it looks the same without the fonts."""
    import matplotlib

    buffer = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "celltransfer"}):
        picture.figure().savefig(buffer, format="svg", dpi=150, metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{escape(picture.alt)}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>\n"
    )
