"""Plain charts in one style: lines, bars and maps whose axes are named, readable in print and for color-blind readers.

`new` makes a figure, `show` puts it where its reader is: into a notebook or page, or into a file beside the run.
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
HEAT = "cividis"  # the same to readers with and without red-green blindness, and monotone in gray
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
    "svg.fonttype": "none",  # words stay words
    "svg.hashsalt": "minivit",  # the same call writes the same file
}


def new(rows: int = 1, columns: int = 1, *, width: float = 8.0, height: float = 3.2, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes in the style of the documentation: one Axes, or an array (rows, columns) of them.

    Lines take their color, dash and mark in turn, so that each can be told from the others in gray as well.

    Args:
        width, height: inches of the whole figure.
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
    """In a notebook or page the figure appears, with `alt` for those who cannot see it; a script writes it to a file.

    Args:
        name: of the file without its ending; it stands in runs/pictures/, and its path is printed.
        alt: what there is to see, in a sentence or two.

    Raises:
        ValueError: if alt is empty.
    """
    check_matplotlib()
    from matplotlib import rc_context

    if not alt.strip():
        raise ValueError(f"figure {name!r} has no alternative text: say in a sentence what there is to see")
    for axes in figure.axes:  # what matplotlib decides when it is written, whatever the style was
        if title := axes.get_title():
            axes.set_title("")
            axes.set_title(title, loc="left", fontsize=11)
        if legend := axes.get_legend():
            legend.set_frame_on(False)
    with rc_context(STYLE):
        if _in_notebook():
            from IPython.display import HTML, display

            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=150, metadata={"Software": None})
            data = base64.b64encode(picture.getvalue()).decode()
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
            print(f"[picture] {path}: {alt}")


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this: only then is IPython's kernel application there."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")
