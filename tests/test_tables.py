"""Tables as text and as HTML: aligned, escaped, whole, and without anything that runs."""

from __future__ import annotations

import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import minivit
from minivit import explain, nn, tables


class Table(HTMLParser):
    """The cells of the tables of a page; refuses tags that are not closed in order, and those that run something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[tuple[str, str]]] = []  # (text, style)
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("div", "table", "caption", "thead", "tbody", "tr", "th", "td", "p"), tag
        assert {name for name, _ in attrs} <= {"style"}
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.rows[-1].append(("", str(dict(attrs)["style"])))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if self.open and self.open[-1] in ("th", "td"):
            before, style = self.rows[-1][-1]
            self.rows[-1][-1] = (before + data, style)

    @property
    def texts(self) -> list[list[str]]:
        return [[cell for cell, _ in row] for row in self.rows]


HEAD, ROWS = ("name", "count"), [("a", "1"), ("  <b onclick='x'>&amp;", "1,000")]


def test_columns_are_aligned() -> None:
    lines = tables.aligned([HEAD, *ROWS], left=(0,))
    assert len({len(line) for line in lines}) == 1 and lines[2].startswith("  <b") and lines[1].endswith(" 1")


def test_html_has_every_cell_escaped_and_numbers_flush_right() -> None:
    text = tables.html(HEAD, ROWS, left=(0,), title="<i>", note="a < b")
    page = Table(text)
    assert page.texts == [list(HEAD), *map(list, ROWS)]
    assert page.words.startswith("<i>") and page.words.endswith("a < b")
    assert all("left" in row[0][1] and "right" in row[1][1] for row in page.rows)
    assert "<thead><tr><th" in text and "color" not in text  # the notebook's own, light or dark


def tiny() -> minivit.ViT:
    return minivit.ViT(img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)


def test_a_summary_shows_in_a_notebook_what_it_prints() -> None:
    table = minivit.summary(tiny(), quiet=True)
    assert repr(table) == str(table)
    page = Table(table._repr_html_())
    lines = str(table).splitlines()
    assert [" ".join(row).split() for row in page.texts] == [
        line.split() for line in lines[:-1] if not line.startswith("---")
    ]
    assert page.words.endswith(lines[-1])


@pytest.mark.parametrize(("quiet", "prints"), [(None, False), (False, True), (True, False)])
def test_an_interactive_session_shows_a_summary_once(
    quiet: bool | None, prints: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    minivit.summary(tiny(), quiet=quiet)
    assert bool(capsys.readouterr().out) == prints


def test_a_trace_shows_in_a_notebook_what_it_prints() -> None:
    kind = type("<script>alert(1)</script>", (nn.Linear,), {})
    model = nn.Sequential(nn.LayerNorm(4), kind(4, 3, seed=0))
    x = np.random.default_rng(0).standard_normal((2, 4), dtype=np.float32)
    trace = explain.trace(model, x, np.array([0, 1]))
    assert repr(trace) == str(trace) == trace.table()
    page = Table(trace._repr_html_())
    printed = [line.split() for line in str(trace).splitlines() if line and not line.startswith("---")]
    cells = [" ".join(row).split() for row in page.texts]
    rows = len(trace.rows) + 1
    assert cells[:rows] == printed[1 : rows + 1] and cells[rows:] == printed[rows + 2 : -1]
    assert any(kind.__name__ in row[1] for row in page.texts) and page.words.endswith("are kept")
