"""Tables as text with aligned columns, and as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Cells = Sequence[str]

# No colors: text and lines have the notebook's, light or dark. `pre` keeps the spaces that indent parts.
_TABLE = "font-size:small;border-collapse:collapse;margin:0.5em 0"
_CELL = "padding:0.15em 0.6em;white-space:pre;text-align:"
_TALLEST = "max-height:40em;overflow:auto"


def aligned(rows: Sequence[Cells], left: Collection[int]) -> list[str]:
    """Rows of cells as lines of text, columns two spaces apart and flush right, except those in `left`."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def html(head: Cells, rows: Sequence[Cells], left: Collection[int], *, title: str = "", note: str = "") -> str:
    """The same as an HTML table under a title and above a note, everything escaped; a tall one scrolls.

    Args:
        head: the names of the columns.
        rows: as many cells each.
        left: the columns that are flush left.
    """
    from html import escape  # only for notebooks: it brings the names of all entities

    head, rows = [escape(cell) for cell in head], [[escape(cell) for cell in row] for row in rows]
    caption = f'<caption style="text-align:left">{escape(title)}</caption>' if title else ""
    body = "".join(f"<tr>{_cells('td', row, left)}</tr>" for row in rows)
    header = f"<thead><tr>{_cells('th', head, left)}</tr></thead>"
    table = f'<table style="{_TABLE}">{caption}{header}<tbody>{body}</tbody></table>'
    return f'<div style="{_TALLEST}">{table}</div>' + (f"<p>{escape(note)}</p>" if note else "")


def _cells(tag: str, cells: Cells, left: Collection[int]) -> str:
    return "".join(
        f'<{tag} style="{_CELL}{"left" if number in left else "right"}">{cell}</{tag}>'
        for number, cell in enumerate(cells)
    )
