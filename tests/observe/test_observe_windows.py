"""What is printed and drawn about Swin's windows is true: golden labels and masks, and a receptive field measured by
gradients against one that is counted without any of the functions under test.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minivit
from minivit import explain
from minivit.draw import windows as window_pictures

ROOT = Path(minivit.__file__).parents[1]
EXAMPLE = ROOT / "examples" / "explain_swin.py"
IMAGES = ROOT / "docs" / "images"

SMALL = explain.layout((4, 4), (2, 2), (1, 1))
LAYOUTS = [
    ((8, 8), (4, 4), (2, 2)),
    ((12, 8), (4, 2), (1, 1)),
    ((6, 6), (2, 3), (1, 0)),
    ((7, 9), (4, 4), (2, 2)),  # padded on both axes
    ((5, 4), (2, 4), (1, 3)),  # the window covers the columns
    ((3, 3), (7, 7), (3, 3)),  # and here everything
]


def layouts(test):
    return pytest.mark.parametrize("real, window, shift", LAYOUTS)(test)


def cells(real, window, shift, shifted):
    """For each place of the map the window that it is in, counted on the plane: no roll, no label, no mask."""
    cell = {}
    for y, x in np.ndindex(*real):
        name = []
        for place, length, side, step in zip((y, x), real, window, shift):
            if length <= side:
                name.append(0)  # one window, never shifted
            else:
                name.append((place - (step if shifted else 0)) // side)
        cell[y, x] = tuple(name)
    return cell


def reach_by_sets(real, window, shift, blocks, place):
    """{place of the input: the number of blocks after which the output at `place` knows of it}."""
    by_block = [cells(real, window, shift, shifted=bool(number % 2)) for number in range(blocks)]
    first = {}
    for depth in range(1, blocks + 1):
        known = {place}
        for cell in reversed(by_block[:depth]):
            windows = {cell[here] for here in known}
            known = {here for here in cell if cell[here] in windows}
        for here in known:
            first.setdefault(here, depth)
    return first


# --- golden ---------------------------------------------------------------------------------------------------------


def test_labels():
    on_map, rolled = explain.regions(SMALL)
    assert rolled.tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 5], [6, 6, 7, 8]]
    assert on_map.tolist() == [[8, 6, 6, 7], [2, 0, 0, 1], [2, 0, 0, 1], [5, 3, 3, 4]]


def test_positions():
    assert explain.positions(SMALL).tolist() == np.arange(16).reshape(4, 4).tolist()
    rolled = [[5, 6, 7, 4], [9, 10, 11, 8], [13, 14, 15, 12], [1, 2, 3, 0]]
    assert explain.positions_after_roll(SMALL).tolist() == rolled
    padded = explain.layout((3, 3), (2, 2), (1, 1))
    assert explain.positions(padded).tolist() == [[0, 1, 2, -1], [3, 4, 5, -1], [6, 7, 8, -1], [-1, -1, -1, -1]]
    assert explain.positions_after_roll(padded)[3].tolist() == [1, 2, -1, 0]


def test_masked_pairs():
    masks = explain.window_masks(SMALL)
    assert (~masks).sum(axis=(1, 2)).tolist() == [0, 8, 8, 12]
    assert explain.mask_text(masks[1]).split() == ["#.#.", ".#.#", "#.#.", ".#.#"]
    assert explain.mask_text(masks[2]).split() == ["##..", "##..", "..##", "..##"]
    assert explain.mask_text(masks[3]).split() == ["#...", ".#..", "..#.", "...#"]


def test_padding_can_be_hidden():
    at = explain.layout((3, 4), (2, 2), (0, 0))
    assert explain.window_masks(at).all()
    hidden = explain.window_masks(at, mask_padding=True)
    assert (~hidden).sum(axis=(1, 2)).tolist() == [0, 0, 8, 8]  # in the lower windows 2 pixels are real, 2 are not


def test_windows_of_a_kind_stand_together():
    masks = explain.window_masks(explain.layout((6, 6), (2, 2), (1, 1)))
    assert explain.kinds(masks) == [[0, 1, 3, 4], [2, 5], [6, 7], [8]]
    assert explain.mask_title(masks, [0, 1, 3, 4]) == "windows 0, 1, 3, ...: 0 masked"
    assert explain.mask_title(masks, [8]) == "window 8: 12 masked"


@layouts
def test_masks_are_the_moved_grid(real, window, shift):
    """Two real pixels attend to each other exactly if the grid that was moved by the shift has them in one cell."""
    at = explain.layout(real, window, shift)
    numbers = explain.in_windows(explain.positions_after_roll(at), at)  # (nW, N)
    cell = {y * real[1] + x: name for (y, x), name in cells(real, window, shift, shifted=True).items()}
    met = set()
    for places, mask in zip(numbers.tolist(), explain.window_masks(at)):
        pairs = ((i, j) for i in range(len(places)) for j in range(len(places)))
        for i, j in pairs:
            if places[i] >= 0 and places[j] >= 0:
                assert mask[i, j] == (cell[places[i]] == cell[places[j]])
                met.add((places[i], places[j]))
    assert met >= {(i, j) for i in cell for j in cell if cell[i] == cell[j]}, "a pair of one cell never meets"


# --- the receptive field --------------------------------------------------------------------------------------------


@layouts
def test_the_measured_receptive_field_is_the_counted_one(real, window, shift):
    at = explain.layout(real, window, shift)
    for place in {(real[0] // 2, real[1] // 2), (0, 0), (real[0] - 1, 0)}:
        field = explain.receptive_field(at, 4, place)
        expected = reach_by_sets(real, window, shift, 4, place)
        assert {here: int(field[here]) for here in np.ndindex(*real) if field[here]} == expected


def test_without_shift_nothing_leaves_the_window():
    field = explain.receptive_field(explain.layout((8, 8), (4, 4), (0, 0)), 4, (5, 2))
    assert set(map(tuple, np.argwhere(field))) == {(y, x) for y in range(4, 8) for x in range(4)}
    assert set(field[field > 0].tolist()) == {1}


def test_with_shift_each_block_adds_a_window_to_each_axis():
    field = explain.receptive_field(explain.layout((1, 32), (1, 4), (0, 2)), 5, (0, 13))[0]
    spans = [np.flatnonzero((field > 0) & (field <= depth)) for depth in range(1, 6)]
    assert [(int(span[0]), int(span[-1])) for span in spans] == [(12, 15), (8, 15), (8, 19), (4, 19), (4, 23)]


def test_another_seed_measures_the_same():
    at = explain.layout((7, 9), (4, 4), (2, 2))
    assert (explain.receptive_field(at, 3, seed=0) == explain.receptive_field(at, 3, seed=1)).all()


# --- text -----------------------------------------------------------------------------------------------------------


def test_grid_text_draws_windows_and_blanks():
    grid = np.array([[0, 1, 12], [-1, 4, 5], [6, 7, 8]])
    assert explain.grid_text(grid, (2, 2)) == " 0  1 | 12\n--  4 |  5\n------+---\n 6  7 |  8"


def test_side_by_side_wraps_and_leaves_out_what_is_too_wide():
    text = explain.side_by_side([("a", "1\n2"), ("bb", "3"), ("c", "x" * 99)], columns=60)
    assert text.splitlines()[:3] == ["a    bb", "1    3", "2"]
    assert "xxx" not in text and "more than 60 columns" in text
    assert explain.side_by_side([("a", "12345"), ("b", "12345")], columns=12) == "a\n12345\n\nb\n12345"


@layouts
def test_the_story_fits_a_terminal(real, window, shift):
    text = explain.describe(explain.layout(real, window, shift), 3)
    assert max(map(len, text.splitlines())) <= 120
    for heading in ("1. CYCLIC", "2. LABELS", "3. MASKS", "4. RELATIVE", "5. RECEPTIVE", "6. MERGING"):
        assert heading in text


def test_the_story_of_the_smallest_map():
    text = explain.describe(SMALL, 2)
    for line in ("5  6 |  7  4", "0 0 | 1 2", "window 3: 12 masked", "4 3 1 0", "joins the pixels 0, 4, 1, 5: down"):
        assert line in text, line
    assert "joins the pixels 0, --, 1, --" in explain.describe(explain.layout((1, 2), (1, 2), (0, 0)), 1)


def test_a_large_window_shows_what_three_queries_read():
    text = explain.describe(explain.layout((14, 14), (7, 7), (3, 3)), 1)
    assert "rows that query 24 reads" in text and "more than" not in text


@pytest.mark.parametrize(
    "real, window, shift, word",
    [
        ((0, 4), (2, 2), (1, 1), "map 0 x 4"),
        ((99, 4), (2, 2), (1, 1), "make it smaller"),
        ((4, 4), (2, 0), (1, 0), "window 2 x 0"),
        ((4, 4), (2, 2), (1, 2), "half a window, 1"),
        ((4, 4), (2, 2), (-1, 0), "shift -1 x 0"),
    ],
)
def test_impossible_layouts_are_refused(real, window, shift, word):
    with pytest.raises(ValueError, match=re.escape(word)):
        explain.layout(real, window, shift)


def test_impossible_questions_are_refused():
    with pytest.raises(ValueError, match="blocks 0"):
        explain.receptive_field(SMALL, 0)
    for place in ((4, 0), (0, -1)):
        with pytest.raises(ValueError, match="not on the map of 4 x 4"):
            explain.receptive_field(SMALL, 1, place)
    with pytest.raises(ValueError, match="part swin_padding .* nothing is both padded and rolled"):
        window_pictures.write_pictures(".", SMALL, 1, part="swin_padding")


# --- figures and the program ----------------------------------------------------------------------------------------


def words(svg):
    return re.findall(r">([^<>\n]+)</(?:text|tspan)>", svg.read_text(encoding="utf-8"))


@pytest.mark.parametrize("part", window_pictures.PARTS)
def test_the_figures_of_the_documentation_are_up_to_date(part, tmp_path):
    """Words and numbers are compared: how they are written as SVG may change with matplotlib's version."""
    pytest.importorskip("matplotlib")
    if not IMAGES.is_dir():
        pytest.skip("the documentation is not installed with the package")
    side = {"swin_padding": 7, "swin_reach": 16}.get(part, 8)
    at = explain.layout((side, side), (4, 4), (2, 2))
    (file,) = window_pictures.write_pictures(tmp_path, at, 4, part=part)
    assert file.name == f"{part}.svg"
    assert len(words(file)) > 8
    assert words(file) == words(IMAGES / file.name)


def test_a_figure_is_the_same_each_time(tmp_path):
    pytest.importorskip("matplotlib")
    first, second = (
        window_pictures.write_pictures(tmp_path / name, SMALL, 2, part="swin_roll")[0].read_bytes() for name in "ab"
    )
    assert first == second


@pytest.fixture
def run(tmp_path):
    """Run the example in a new process, warnings being errors, by default without matplotlib."""
    if not EXAMPLE.is_file():
        pytest.skip("the examples are not installed with the package")

    def start(*options, bare=True):
        blocker = tmp_path / "blocker"
        (blocker / "matplotlib").mkdir(parents=True, exist_ok=True)
        (blocker / "matplotlib" / "__init__.py").write_text("raise ImportError('no matplotlib here')")
        path = [str(blocker)] * bare + [str(ROOT), *filter(None, sys.path)]
        return subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLE), *map(str, options)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return start


def test_the_example_prints_and_draws(run, tmp_path):
    pytest.importorskip("matplotlib")
    done = run("--map", 3, 4, "--window", 2, bare=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "padded to 4 x 4" in done.stdout
    out = tmp_path / "runs" / "explain_swin"
    assert sorted(path.name for path in out.iterdir()) == ["explain_swin.png", "explain_swin.svg"]
    assert (out / "explain_swin.png").read_bytes().startswith(b"\x89PNG")
    assert "Why padding comes before the roll" in words(out / "explain_swin.svg")


def test_the_example_without_matplotlib_still_prints(run, tmp_path):
    done = run()
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "window 3: 192 masked" in done.stdout and "18 19 20 21 | 22 23 16 17" in done.stdout
    assert "pip install matplotlib" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_example_says_that_a_covering_window_does_not_shift(run):
    done = run("--map", 4, "--window", 7, "--shift", 3, "--blocks", 2, "--place", 1, 2, "--mask-padding")
    assert done.returncode == 0, done.stderr
    assert "windows of 4 x 4, shift 0 x 0" in done.stdout and "shrinks to the map and does not shift" in done.stdout
    assert "output at row 1, column 2" in done.stdout


@pytest.mark.parametrize(
    "options, word",
    [
        (["--map", 8, 8, 8], "--map 8 8 8: give one number, or two"),
        (["--shift", 4], "half a window, 2"),
        (["--place", 8, 0], "place 8 0 is not on the map"),
        (["--map", "big"], "invalid int value: 'big'"),
    ],
)
def test_the_example_refuses_with_a_remedy(options, word, monkeypatch, capsys):
    if not EXAMPLE.is_file():
        pytest.skip("the examples are not installed with the package")
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, options)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and word in printed.err and printed.out == ""
