"""Reports to read: points, tables and plots, as Markdown or as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

# Sections that belong together stand beside each other as far as the width allows; plots shrink before they wrap.
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
.row, .pair { display: flex; flex-wrap: wrap; gap: 0 2rem; align-items: flex-start }
section { min-width: 0; max-width: 100%; overflow-wrap: anywhere }
.row > section { flex: 0 1 auto } .row > section.plot { flex: 1 1 20rem; max-width: 36rem }
.row > section.plot.table { flex: 1 1 100%; max-width: 100% }
.pair > img { flex: 1 1 18rem; min-width: 0; max-width: min(100%, 36rem) }
.row > section.plot:only-child { max-width: 100% }
.row > section.plot:only-child:not(.table) img { flex: 0 1 auto; max-width: 100% }
.pair > table { flex: 0 1 auto; min-width: 0 } .pair > img + table { font-size: .88rem }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; max-width: 100%;
  font-size: .94rem }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .5rem; text-align: right; white-space: nowrap }
th:first-child, td:first-child, .words th, .words td { text-align: left }
.words th, .words td { white-space: normal } .words td:nth-child(2) { white-space: nowrap }
img { max-width: 100%; height: auto } pre { overflow-x: auto; background: #f5f5f5; padding: .6rem }
li { margin: .3rem 0; max-width: 60rem } h2 { margin-top: 2.5rem }
@media (max-width: 40rem) { ul { padding-left: 1.2rem } }
"""
_WORDS = 5  # a cell of more is a sentence, which is broken into lines instead of being cut off


@dataclass
class Table:
    """Cells of text; the first column names the rows."""

    header: list[str]
    rows: list[list[str]]


@dataclass
class Section:
    """A heading with points, a table, a plot (by file name) and code, each of which may be absent.

    Args:
        code: with its language in front, e.g. ("python", "import polyrec").
        beside: it belongs to the section before it, and stands beside it on a page that is wide enough.
    """

    title: str
    points: Sequence[str] = ()
    table: Table | None = None
    plot: str | None = None
    code: tuple[str, str] | None = None
    beside: bool = False


def plain(value: Any) -> Any:
    """Values of JSON, with NaN and infinity as null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(title: str, found: Sequence[Section], pictures: bool = False) -> str:
    """Sections as Markdown.

    Args:
        pictures: show plots, too, which lie beside the text under their file names.
    """
    lines = [f"# {title}"]
    for section in found:
        plot = section.plot if pictures else None
        if not section.points and section.table is None and plot is None and section.code is None:
            continue
        lines += ["", f"## {section.title}", *(f"- {p}" for p in section.points)]
        if plot is not None:
            lines += ["", f"![{section.title}]({plot})"]
        if section.table is not None:
            cells = [section.table.header, ["---"] * len(section.table.header), *section.table.rows]
            lines += ["", *(f"| {' | '.join(row)} |" for row in cells)]
        if section.code is not None:
            language, text = section.code
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))  # no text ends it early
            lines += ["", f"{fence}{language}", text.rstrip(), fence]
    return "\n".join(lines) + "\n"


def html_page(title: str, found: Sequence[Section], plots: Mapping[str, bytes]) -> str:
    """One page; it asks for nothing outside itself, and fits a telephone.

    Args:
        found: its sections.
        plots: {name that a section has: PNG}.
    """
    rows: list[list[str]] = []
    for section in found:
        if not (section.beside and rows):
            rows.append([])
        rows[-1].append(_html(section, plots))
    body = [f"<h1>{_inline(title)}</h1>", *(f'<div class="row">{"".join(row)}</div>' for row in rows)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'  # or a browser asks for one
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _html(section: Section, plots: Mapping[str, bytes]) -> str:
    kinds = " ".join(["plot"] * (section.plot is not None) + ["table"] * (section.table is not None))
    level = 3 if section.beside else 2
    parts = [f'<section class="{kinds}"><h{level}>{_inline(section.title)}</h{level}>']
    if section.points:
        parts.append("<ul>" + "".join(f"<li>{_inline(p)}</li>" for p in section.points) + "</ul>")
    parts.append('<div class="pair">')
    if section.plot is not None:
        data = b64encode(plots[section.plot]).decode()
        parts.append(f'<img alt="{escape(section.title)}" src="data:image/png;base64,{data}">')
    if section.table is not None:
        rows = "".join("<tr>" + "".join(f"<td>{_inline(c)}</td>" for c in row) + "</tr>" for row in section.table.rows)
        head = "".join(f"<th>{_inline(c)}</th>" for c in section.table.header)
        words = any(len(cell.split()) > _WORDS for row in section.table.rows for cell in row)
        # A box that scrolls must be reachable without a mouse.
        parts.append(f'<table tabindex="0"{" class=words" * words}><tr>{head}</tr>{rows}</table>')
    parts.append("</div>")
    if section.code is not None:
        parts.append(f"<pre><code>{escape(section.code[1])}</code></pre>")
    return "".join(parts) + "</section>"


def _inline(text: str) -> str:
    """The little Markdown that our texts use: `code` and **bold**."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)
