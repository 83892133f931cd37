"""Charts: files in a script, figures with alternative text in a notebook, one style, and the same file each time."""

from __future__ import annotations

import base64
import re
import sys
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from minivit.draw import figures  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"


def a_figure(**options: Any) -> Any:
    figure, axes = figures.new(width=4, height=2, **options)
    axes.plot([1, 2, 3], [3, 1, 2])
    return figure


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A script's working folder, and no notebook."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "IPython", None)
    return tmp_path


class FakeShell:
    def __init__(self, kernel: bool) -> None:
        if kernel:
            self.kernel = object()


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """IPython as far as `show` knows it; what is displayed is collected."""
    monkeypatch.chdir(tmp_path)
    shown: list[Any] = []
    ipython, display = ModuleType("IPython"), ModuleType("IPython.display")
    ipython.shell = FakeShell(kernel=True)  # type: ignore[attr-defined]
    ipython.get_ipython = lambda: ipython.shell  # type: ignore[attr-defined]
    display.HTML = lambda text: ("HTML", text)  # type: ignore[attr-defined]
    display.display = shown.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return ipython, shown


# --- in a script ----------------------------------------------------------------------------------------------------


def test_a_script_writes_a_file_and_says_where(folder, capsys):
    figures.show(a_figure(), "03_scores", alt="Three points.")
    file = folder / "runs" / "pictures" / "03_scores.png"
    assert file.read_bytes().startswith(PNG)
    assert capsys.readouterr().out == f"[figure] {file.relative_to(folder)}: Three points.\n"
    from matplotlib.image import imread

    assert imread(file).shape == (300, 600, 4)  # 4 x 2 inches at 150 dots


def test_the_same_chart_is_the_same_file(folder):
    for name in ("one", "two"):
        figures.show(a_figure(), name, alt="Three points.")
    one, two = ((folder / "runs" / "pictures" / f"{name}.png").read_bytes() for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("alt", ["", "  \n "])
def test_a_figure_without_alternative_text_is_refused(folder, alt):
    with pytest.raises(ValueError, match="figure 'bare' has no alternative text"):
        figures.show(a_figure(), "bare", alt=alt)
    assert not (folder / "runs").exists()


# --- in a notebook --------------------------------------------------------------------------------------------------


class Images(HTMLParser):
    """The attributes of the images in a text, and all else that there is."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, Any]] = []
        self.rest: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs))
        else:
            self.rest.append(tag)

    def handle_data(self, data):
        self.rest.append(data)


def test_a_notebook_shows_it_with_its_alternative_text_escaped(notebook, tmp_path, capsys):
    alt = """ "a" < b & 'c' > d: <script>alert("x")</script> \u4e8c"""
    figures.show(a_figure(), "03_scores", alt=alt)
    _, shown = notebook
    [(kind, text)] = shown
    found = Images(text)
    [image] = found.images
    assert kind == "HTML" and found.rest == [] and image["alt"] == alt  # as it was, and nothing else came of it
    assert "<script>" not in text
    assert re.search(r"width: 360px", image["style"])  # 4 inches of 90 pixels
    head, _, data = image["src"].partition(",")
    assert head == "data:image/png;base64" and base64.b64decode(data).startswith(PNG)
    assert not (tmp_path / "runs").exists() and capsys.readouterr().out == ""


def test_a_notebook_too_needs_alternative_text(notebook):
    with pytest.raises(ValueError, match="no alternative text"):
        figures.show(a_figure(), "bare", alt="")
    assert notebook[1] == []


@pytest.mark.parametrize("shell", [None, FakeShell(kernel=False)], ids=["imported", "terminal"])
def test_ipython_without_a_kernel_is_no_notebook(notebook, tmp_path, shell):
    ipython, shown = notebook
    ipython.shell = shell
    figures.show(a_figure(), "plain", alt="Three points.")
    assert shown == [] and (tmp_path / "runs" / "pictures" / "plain.png").exists()


# --- the style ------------------------------------------------------------------------------------------------------


def test_a_figure_has_the_rows_columns_and_size_that_were_asked_for():
    figure, axes = figures.new(2, 3, width=5, height=4, sharey=True)
    assert axes.shape == (2, 3) and tuple(figure.get_size_inches()) == (5, 4)
    one = figures.new()[1]
    assert not isinstance(one, np.ndarray) and not one.spines["top"].get_visible()


def test_lines_differ_in_color_dash_and_mark_and_nothing_global_changes():
    import matplotlib

    before = dict(matplotlib.rcParams)
    _, axes = figures.new()
    lines = [axes.plot([0, 1], [n, n])[0] for n in range(len(figures.COLORS))]
    assert len({line.get_color() for line in lines}) == len(lines)
    assert len({str(line._dash_pattern) for line in lines}) == len(lines)
    assert len({line.get_marker() for line in lines}) == len(lines)
    assert dict(matplotlib.rcParams) == before


def test_colors_are_distinguishable_in_gray():
    """HEAT grows lighter all the way, so that a print in gray has the same order."""
    from matplotlib import colormaps

    steps = colormaps[figures.HEAT](np.linspace(0, 1, 64))[:, :3] @ [0.299, 0.587, 0.114]  # ITU-R BT.601 luma
    assert (np.diff(steps) > 0).all()
