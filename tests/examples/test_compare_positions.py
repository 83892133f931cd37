"""The comparison of positions runs on tiny data, and its table says what was measured.
Read test_examples.py first, which makes the digits.
"""

from __future__ import annotations

import argparse
import json
import re

import numpy as np
import pytest
from test_examples import ROOT, digits, run

from minivit import data, functional as F

EXAMPLE = ROOT / "examples" / "compare_positions.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not installed with the package")

NUMBER = r"([+-]?\d+\.\d+)(?: ± (\d+\.\d+))?"
ROW = re.compile(
    rf"^\| ([a-z]+(?:, \d-D)?) \| ([\d,]+) \| {NUMBER} \| (?:{NUMBER})? ?\| {NUMBER} \| (?:{NUMBER})? ?\|$"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    for stem, count in (("train", 256), ("t10k", 50)):
        images, labels = digits(count, count)
        data.write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        data.write_idx(folder / f"{stem}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="module")
def program():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE.parent))
        import compare_positions

        yield compare_positions


def rows_of(printed):
    return [match.groups() for match in map(ROW.match, printed.splitlines()) if match]


def test_the_quick_comparison_makes_its_table_and_repeats_nothing(folder, tmp_path):
    kept, picture = tmp_path / "kept" / "scores.json", tmp_path / "picture.svg"
    options = ["--data", folder, "--quick", "--seeds", 0, 3, "--json", kept]
    done = run(tmp_path, *options, "--figure", picture, bare=False, example=EXAMPLE)
    assert done.returncode == 0 and done.stderr == "", done.stderr

    rows = rows_of(done.stdout)
    assert [row[0] for row in rows] == [
        "none", "learned, 1-D", "learned, 2-D", "relative", "sines, 1-D", "sines, 2-D",
    ]  # fmt: skip
    scores = {tuple(key): score for *key, score in json.loads(kept.read_text())["scores"]}
    assert len(scores) == 6 * 2 * 2
    for row, kind in zip(rows, ("none", "learned_1d", "learned_2d", "relative", "sincos_1d", "sincos_2d")):
        for order, cells in (("image", row[2:6]), ("shuffled", row[6:10])):
            values = np.array([scores[kind, order, seed] for seed in (0, 3)])
            gains = values - [scores["none", order, seed] for seed in (0, 3)]
            expected = [values.mean(), values.std(ddof=1), gains.mean(), gains.std(ddof=1)]
            found = [float(cell) for cell in cells if cell is not None]
            assert found == pytest.approx([100 * value for value in expected[: len(found)]], abs=0.006)
            assert len(found) == (2 if kind == "none" else 4)
    assert "patches shuffled" in picture.read_text(encoding="utf-8")

    again = run(tmp_path, *options, example=EXAMPLE)
    assert " after " not in again.stdout.split("Accuracy on")[0], "what the file holds is not run again"
    assert rows_of(again.stdout) == rows
    other = run(tmp_path, *options, "--lr", 1e-3, example=EXAMPLE)
    assert other.returncode == 1 and "other settings" in other.stderr and len(other.stderr.splitlines()) == 1


def test_only_the_kinds_that_are_asked_for(folder, tmp_path):
    done = run(tmp_path, "--data", folder, "--quick", "--seeds", 1, "--kinds", "relative", example=EXAMPLE)
    assert done.returncode == 0 and [row[0] for row in rows_of(done.stdout)] == ["relative"]
    refused = run(tmp_path, "--data", folder, "--kinds", "none", "--write", example=EXAMPLE)
    assert refused.returncode == 1 and "leave --kinds and --quick out" in refused.stderr


def test_shuffled_moves_whole_patches_alike_in_all_images(program):
    images = np.random.default_rng(0).integers(256, size=(3, 28, 28)).astype(np.uint8)
    moved = program.shuffled(images)
    assert moved.shape == images.shape and moved.dtype == np.uint8 and not np.array_equal(moved, images)
    before, after = (F.patchify(part[:, None], 7)[0] for part in (images, moved))
    assert np.array_equal(after, before[:, program.NEW_ORDER])
    assert sorted(program.NEW_ORDER) == list(range(16))


def test_without_positions_shuffling_changes_nothing_but_rounding(program):
    images = np.random.default_rng(0).integers(256, size=(4, 28, 28)).astype(np.uint8)
    for kind in program.KINDS:
        model = program.minivit.ViT(**program.MODEL, pos_embed=kind, seed=0)
        for name, param in model.parameters().items():
            if "pos" in name:
                param.data = 50 * param.data  # as far from 0 as training takes them
        logits = model.predict(data.normalize(images))
        difference = np.abs(model.predict(data.normalize(program.shuffled(images))) - logits).max()
        assert (difference < 1e-5 * np.abs(logits).max()) == (kind == "none"), kind


def test_each_kind_learns_and_is_tested_in_the_same_order(folder, program, monkeypatch):
    mnist, seen, built = data.load_mnist(folder), {}, []
    learn, vit = program.accuracy_of, program.minivit.ViT

    def spy(kind, seed, parts, recipe, threads):
        seen[kind, len(built)] = parts
        return learn(kind, seed, parts, recipe, threads)

    def build(**options):
        built.append((options["pos_embed"], options["seed"]))
        return vit(**options)

    monkeypatch.setattr(program, "accuracy_of", spy)
    monkeypatch.setattr(program.minivit, "ViT", build)
    args = argparse.Namespace(json=None, seeds=[4, 5], kinds=["none", "relative"], threads=1)
    scores = program.measure(mnist, program.Recipe(epochs=1, limit=128), args)

    assert built == [("none", 4), ("relative", 4), ("none", 5), ("relative", 5)] * 2
    assert {(kind, seed) for kind, _, seed in scores} == set(built) and len(scores) == 8
    train, test = mnist.train_images[:128], mnist.test_images
    for number, parts in enumerate(seen.values()):
        turn = np.asarray if number < 4 else program.shuffled
        assert np.array_equal(parts[0], turn(train)) and np.array_equal(parts[2], turn(test))
        assert np.array_equal(parts[1], mnist.train_labels[:128]) and np.array_equal(parts[3], mnist.test_labels)


def test_the_page_holds_what_the_program_writes(program):
    page = program.PAGE.read_text(encoding="utf-8")
    begin, end = program.MARKERS
    between = page[page.index(begin) : page.index(end)]
    assert [row[0] for row in rows_of(between)] == list(program.KINDS.values())
    assert program.FIGURE.name in page and program.FIGURE.exists()
