"""Plain charts in one style: lines, bars and maps whose axes are named, readable in print and for color-blind readers.

`new` makes a figure, `show` displays it in a notebook or page, or writes it to a file.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from pathlib import Path
from typing import Any

from minivit.draw.style import BLUE, INK, QUIET, RED, check_matplotlib

# Okabe and Ito 2008, without yellow, which is too faint for lines on white; LINES tell them apart without color
COLORS = (BLUE, RED, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 3)), (0, (1, 1)))
MARKS = ("o", "s", "^", "D", "v", "P", "X")
HEAT = "cividis"  # equal with and without red-green blindness, and monotone in gray
SIGNED = "RdBu_r"  # for values around 0
FOLDER = Path("runs") / "pictures"

STYLE: dict[Any, Any] = {
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "minivit",  # equal calls write equal files
}


def new(rows: int = 1, columns: int = 1, *, width: float = 8.0, height: float = 3.2, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes in the style of the documentation: one Axes, or an array (rows, columns) of them.

    Lines cycle through colors, dashes and marks, so that they differ in gray too.

    Args:
        width, height: inches of the figure.
        options: of matplotlib's `Figure.subplots`, such as sharey=True.
    """
    check_matplotlib()
    from cycler import cycler
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    turns = cycler(color=COLORS) + cycler(linestyle=LINES) + cycler(marker=MARKS)
    with rc_context({**STYLE, "axes.prop_cycle": turns, "lines.markersize": 4}):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(rows, columns, **options)


def show(figure: Any, name: str, alt: str) -> None:
    """Display a figure in a notebook or page, with `alt` for screen readers; a script writes it to a file.

    Args:
        name: of the file in runs/pictures/, without its suffix; the path is printed.
        alt: a description of the figure, in a sentence or two.

    Raises:
        ValueError: if alt is empty.
    """
    check_matplotlib()
    from matplotlib import rc_context

    if not alt.strip():
        raise ValueError(f"figure {name!r} has no alternative text: describe it in a sentence")
    for axes in figure.axes:  # settings that matplotlib reads when the figure is written
        if title := axes.get_title():
            axes.set_title("")
            axes.set_title(title, loc="left", fontsize=11)
        if legend := axes.get_legend():
            legend.set_frame_on(False)
    with rc_context(STYLE):
        if _in_notebook():
            from IPython.display import HTML, display

            png = io.BytesIO()
            figure.savefig(png, format="png", dpi=150, metadata={"Software": None})
            data = base64.b64encode(png.getvalue()).decode()
            width = int(figure.get_figwidth() * 90)  # CSS pixels: sharp on screens of twice the density
            display(
                HTML(
                    f'<img class="figure" style="max-width: 100%; width: {width}px" '
                    f'alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}">'
                )
            )
        else:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path = FOLDER / f"{name}.png"
            figure.savefig(path, dpi=150, metadata={"Software": None})
            print(f"[figure] {path}: {alt}")


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this code."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")
