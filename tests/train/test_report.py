"""Figures, the confusion matrix and the model card: written, right, and possible in the odd cases."""

from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest

import minivit
from minivit.train import METRICS, report

PICTURES = ["confusion_matrix.png", "curves.png", "mistakes.png"]


def history(epochs=3, accuracy=0.5):
    return [
        dict(zip(METRICS, (epoch, 0.1, 1 / epoch, accuracy, accuracy, 100.0, 1.0))) for epoch in range(1, epochs + 1)
    ]


def answers(count=60, classes=10, wrong=20):
    """Images, labels and logits of which the first `wrong` are mistaken."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=count)
    logits = rng.random((count, classes))
    given = labels.copy()
    given[:wrong] = (labels[:wrong] + 1) % classes
    logits[np.arange(count), given] += 2
    return rng.integers(256, size=(count, 28, 28), dtype=np.uint8), labels, logits


def figure():
    return pytest.importorskip("matplotlib.figure").Figure(layout="constrained")


@pytest.mark.parametrize(
    "epochs, accuracy, wrong",
    [(3, 0.5, 20), (1, 0.5, 60), (1, 1.0, 0), (0, 0.5, 1), (40, 0.99, 24)],
)
def test_three_figures_are_written(tmp_path, epochs, accuracy, wrong):
    pytest.importorskip("matplotlib")
    assert report.write_pictures(tmp_path, history(epochs, accuracy), *answers(wrong=wrong)) is True
    assert sorted(path.name for path in tmp_path.iterdir()) == PICTURES
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 5000


@pytest.mark.parametrize("missing", ["matplotlib", "matplotlib.figure"])
def test_without_matplotlib_nothing_is_drawn(tmp_path, monkeypatch, missing):
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name.startswith(missing):
            raise ImportError(name)
        return real(name, *arguments, **named)

    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    assert report.write_pictures(tmp_path, history(), *answers()) is False
    assert list(tmp_path.iterdir()) == []


def test_the_figures_need_no_display(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would choose a backend with windows
    assert report.write_pictures(tmp_path, history(), *answers())


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_confusion_matrix(dtype):
    labels, given = np.array([0, 0, 1, 2, 2, 2], dtype), np.array([0, 1, 1, 2, 0, 0])
    table = report.confusion_matrix(labels, given, 4)
    assert table.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 1, 0], [0, 0, 0, 0]]
    rng = np.random.default_rng(0)
    labels, given = rng.integers(10, size=500), rng.integers(10, size=500)
    table = report.confusion_matrix(labels, given, 10)
    for row, column in np.ndindex(10, 10):
        assert table[row, column] == ((labels == row) & (given == column)).sum()


def test_the_confusion_matrix_shows_every_count():
    table = np.array([[5, 1, 0], [0, 7, 0], [2, 0, 0]])
    axes = report.draw_confusion(figure(), table).axes[0]
    shown = {tuple(map(int, text.get_position()))[::-1]: text.get_text() for text in axes.texts}
    assert shown == {(row, column): str(n) for (row, column), n in np.ndenumerate(table) if n}
    assert axes.get_xlabel() == "predicted class" and axes.get_ylabel() == "true class"
    assert axes.get_title() == "Confusion matrix"
    colors = np.ma.filled(axes.images[0].get_array().astype(float), np.nan)
    assert np.isnan(np.diag(colors)).all()
    assert colors[0, 1] == pytest.approx(100 / 6) and colors[2, 0] == 100


def test_letters_on_dark_cells_of_the_confusion_matrix_are_white():
    """Dark is above 0.6 of the largest share of errors; the diagonal has no color, and its numbers are bold."""
    table = np.array([[10, 50, 40], [31, 69, 0], [29, 0, 71]])  # the limit is 30 %
    texts = {
        tuple(map(int, text.get_position()))[::-1]: text
        for text in report.draw_confusion(figure(), table).axes[0].texts
    }
    white = {cell for cell, text in texts.items() if text.get_color() == "white"}
    assert white == {(0, 1), (0, 2), (1, 0)}
    assert {cell for cell, text in texts.items() if text.get_weight() == "bold"} == {(0, 0), (1, 1), (2, 2)}


def test_the_curves_show_the_history():
    rows = history(4)
    for number, row in enumerate(rows):
        row["held_out_accuracy"] = 0.6 + 0.1 * number
    left, right = report.draw_curves(figure(), rows).axes
    assert np.allclose(left.lines[0].get_data(), [[1, 2, 3, 4], [1, 1 / 2, 1 / 3, 1 / 4]])
    assert np.allclose(right.lines[0].get_ydata(), 50)
    assert np.allclose(right.lines[1].get_ydata(), [40, 30, 20, 10])
    assert right.get_yscale() == "log"
    assert all(axes.get_xlabel() == "epoch" and axes.get_ylabel() for axes in (left, right))
    assert left.get_position().x1 < right.get_position().x0
    for accuracy, scale in ((1.0, "linear"), (0.999, "log")):  # a logarithm of 0 % cannot be drawn
        rows = [{**row, "held_out_accuracy": accuracy} for row in history(2, accuracy=accuracy)]
        assert report.draw_curves(figure(), rows).axes[1].get_yscale() == scale


@pytest.mark.parametrize("wrong, shown", [(0, 0), (3, 3), (24, 24), (40, 24)])
def test_the_surest_mistakes_are_shown(wrong, shown):
    images, labels, logits = answers(wrong=wrong)
    drawn = report.draw_mistakes(figure(), images, labels, logits)
    axes = [axis for axis in drawn.axes if axis.images]
    assert len(axes) == shown
    which = "the 24 most confident of" if wrong > 24 else "all"
    assert drawn.get_suptitle() == f"Mistakes: {which} {wrong} misclassified among 60 images"
    probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sure = probability[np.arange(60), logits.argmax(axis=1)]
    expected = sorted(range(wrong), key=lambda i: -sure[i])[:shown]
    for axis, which in zip(axes, expected):
        assert np.array_equal(axis.images[0].get_array(), images[which])
        answer = logits[which].argmax()
        assert axis.get_title() == f"{labels[which]} as {answer} ({sure[which]:.0%})"


def test_huge_logits_do_not_overflow():
    images, labels, logits = answers()
    report.draw_mistakes(figure(), images, labels, logits * 1e4)  # numpy's warning would be an error here


def test_the_model_card(tmp_path):
    report.write_model_card(tmp_path, "A title", {"test accuracy": "98.76 %", "data": "här"})
    text = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[:4] == ["# A title", "", "| | |", "|---|---|"]
    assert lines[4:6] == ["| test accuracy | 98.76 % |", "| data | här |"]
    assert all(line.startswith("| ") and line.endswith(" |") for line in lines[4:])
    assert f"minivit {minivit.__version__}" in text and f"NumPy {np.__version__}" in text
    assert set(report.versions()) == {"minivit", "NumPy", "Python"}
