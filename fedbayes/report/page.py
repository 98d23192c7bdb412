"""A page that stands alone: one HTML file with its style inside it, and tables and sections that all pages share.

Whatever comes from a run is escaped here or by whoever makes the piece of HTML; pieces are never escaped twice.
"""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from fedbayes.storage import files

_HERE = Path(__file__).parent


def document(title: str, lead: str, sections: Sequence[tuple[str, str, str]], scripts: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        title: plain text.
        lead: HTML below the title.
        sections: an identifier, a plain heading and HTML of each; those without HTML are left out.
        scripts: names of files of this folder to run in it.
    """
    sections = [section for section in sections if section[2]]
    links = "".join(f'<li><a href="#{mark}">{html.escape(heading)}</a></li>' for mark, heading, _ in sections)
    body = "\n".join(
        f'<section aria-labelledby="{mark}"><h2 id="{mark}">{html.escape(heading)}</h2>\n{text}</section>'
        for mark, heading, text in sections
    )
    style = (_HERE / "page.css").read_text(encoding="utf-8")
    code = "".join(f"<script>{(_HERE / script).read_text(encoding='utf-8')}</script>\n" for script in scripts)
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        "<meta name=color-scheme content='light dark'>"
        f"<link rel=icon href='data:,'><title>{html.escape(title)}</title>\n<style>{style}</style></head>\n<body>\n"
        "<a class=skip href='#main'>Skip to the results</a>\n"
        f"<header><h1>{html.escape(title)}</h1>{lead}</header>\n"
        f"<nav aria-label=Contents><ul>{links}</ul></nav>\n<main id=main tabindex=-1>\n{body}\n</main>\n"
        "<footer><p class=soft>Made by fedbayes from the files of the runs alone.</p></footer>\n"
        f"{code}</body></html>\n"
    )


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    hide_caption: bool = False,
    sortable: bool = False,
    groups: Sequence[int] = (),
) -> str:
    """A table of plain texts whose first column names the rows and whose others are numbers.

    Args:
        caption: plain text.
        head: names of the columns.
        rows: their cells.
        hide_caption: whether only screen readers say the caption, where a heading already does.
        sortable: whether buttons in the head sort it; the page then needs `sorting.js`.
        groups: of a comparison, which rows belong to; they are filtered with them.
    """
    lines = [
        f'<tr{_group(groups, index)}><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for index, row in enumerate(rows)
    ]
    return scroll(
        caption,
        f"<table{' class=sortable' if sortable else ''}>{caption_of(caption, hidden=hide_caption)}"
        f"<thead><tr>{heads(head, sortable=sortable)}</tr></thead><tbody>{''.join(lines)}</tbody></table>",
    )


def facts(caption: str, head: tuple[str, str], rows: Sequence[Sequence[str]], *, hide_caption: bool = False) -> str:
    """A table of names and texts, whose texts wrap where the page is narrow."""
    lines = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(text)}</td></tr>' for name, text in rows
    )
    return (
        f"<table class=facts>{caption_of(caption, hidden=hide_caption)}"
        f"<thead><tr>{heads(head)}</tr></thead><tbody>{lines}</tbody></table>"
    )


def heat_table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[tuple[str, Sequence[tuple[str, float | None]]]],
    ends: tuple[float, float] = (0.0, 1.0),
    groups: Sequence[int] = (),
) -> str:
    """A table whose cells are shaded by their values, and which buttons in its head sort; it needs `sorting.js`.

    Args:
        caption: plain text.
        head: names of the columns, that of the rows first.
        rows: a name, and for each cell its text and its value; None for an empty one.
        ends: the values that are not shaded at all and shaded most.
        groups: of a comparison, which rows belong to; they are filtered with them.
    """
    low, high = ends
    lines = []
    for index, (name, cells) in enumerate(rows):
        shown = "".join(
            "<td class=none>–</td>"
            if value is None
            else f'<td data-value="{value!r}" style="--heat:{(value - low) / ((high - low) or 1.0):.3f}">'
            f"{html.escape(text)}</td>"
            for text, value in cells
        )
        lines.append(f'<tr{_group(groups, index)}><th scope="row">{html.escape(name)}</th>{shown}</tr>')
    return scroll(
        caption,
        f'<table class="heat sortable">{caption_of(caption)}'
        f"<thead><tr>{heads(head, sortable=True)}</tr></thead><tbody>{''.join(lines)}</tbody></table>",
    )


def caption_of(text: str, *, hidden: bool = False) -> str:
    """A table's caption, which stays in sight where the table is wider than the page."""
    css = " class=hidden" if hidden else ""
    return f"<caption{css}><span>{html.escape(text)}</span></caption>"


def heads(names: Sequence[str], *, sortable: bool = False, texts: int = 1, better: Sequence[int] = ()) -> str:
    """The cells of a table's head.

    Args:
        names: of the columns.
        sortable: whether they are buttons that sort the table.
        texts: how many of the first columns are texts; the others are numbers.
        better: for each column, 1 where more is better: a first click sorts the largest to the top.
    """
    cells = []
    for index, name in enumerate(names):
        text = html.escape(name) or "<span class=hidden>name</span>"
        kind = "text" if index < texts else "number"
        more = f' data-better="{better[index]}"' if better else ""
        inner = f"<button type=button>{text}</button>" if sortable else text
        cells.append(f'<th scope="col" class={kind}{more}>{inner}</th>')
    return "".join(cells)


def _group(groups: Sequence[int], index: int) -> str:
    return f' data-group="{groups[index]}"' if groups else ""


def scroll(name: str, inner: str) -> str:
    """Something wide, in a box that scrolls by itself and can be reached with the keyboard."""
    return f'<div class=scroll role=group tabindex=0 aria-label="{html.escape(name)}">{inner}</div>'


def folded(summary: str, inner: str, *, opened: bool = False) -> str:
    """Something long behind a line that opens it."""
    return f"<details{' open' if opened else ''}><summary>{html.escape(summary)}</summary>{inner}</details>"


def charts(*figures: str, small: bool = False) -> str:
    """Figures side by side where there is room; small ones more of them."""
    shown = "".join(figures)
    return f'<div class="charts{" small" if small else ""}">{shown}</div>' if shown else ""


def legend(names: Sequence[tuple[str, str]]) -> str:
    """Names beside their swatches."""
    items = "".join(f"<li>{mark}{html.escape(name)}</li>" for mark, name in names)
    return f"<ul class=legend>{items}</ul>" if names else ""


def picture(data: bytes | str, alt: str, css: str = "") -> str:
    """A PNG inside the page, given as bytes or already in base 64."""
    text = base64.b64encode(data).decode() if isinstance(data, bytes) else html.escape(data)
    return f'<img class="{css}" alt="{html.escape(alt)}" src="data:image/png;base64,{text}">'


def write(path: Path, text: str) -> Path:
    """Write a page whole or not at all, and return its path."""
    files.replace(path, text)
    return path
