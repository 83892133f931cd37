"""The switches of examples/break_it.py: each breaks what it says and nothing else, and the check judges it rightly.
Read docs/lessons/10_break_it.py for what comes of training the broken models.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minivit
from minivit import data, nn
from minivit.sizes import pair

ROOT = Path(minivit.__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "break_it.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not installed with the package")


def load():
    spec = importlib.util.spec_from_file_location("break_it", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


break_it = load() if EXAMPLE.is_file() else None
NAMES = list(break_it.SWITCHES) if break_it else []
WRONG_GRADIENTS = ["softmax_over_batch", "gain_outside", "residual_forgotten"]
SAME_IN_INFERENCE = ["whole", "dropout", "dropout_at_test", "whole_swin", *WRONG_GRADIENTS]


def whole_of(name):
    return "whole_swin" if break_it.SWITCHES[name].swin else "whole"


def features(name, images=None, **options):
    """The pooled features of a model in float64, at parameters that are all different."""
    model = break_it.build(name, dtype="float64", **options)
    for key, param in model.parameters().items():  # the same for a name, whatever else the model has
        rng = np.random.default_rng(list(key.encode()))
        param.data = param.data + 0.2 * rng.standard_normal(param.shape)
    if images is None:
        images = np.random.default_rng(0).standard_normal((3, 1, *pair(model.config["img_size"])))
    return model.features(images)


@pytest.mark.parametrize("name", NAMES)
def test_the_check_finds_wrong_gradients_and_nothing_else(name):
    verdict = break_it.check(name)
    assert (verdict != "passes") == (name in WRONG_GRADIENTS)
    assert verdict == "passes" or re.search(r"the gradient of \S+ .* is wrong in \d+ of \d+ elements", verdict)


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_model_computes_something_else_and_a_wrong_gradient_does_not(name):
    same = np.abs(features(name) - features(whole_of(name))).max() < 1e-9
    assert same == (name in SAME_IN_INFERENCE)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_weights_are_those_of_the_whole_model(name):
    broken, whole = break_it.build(name, 3).state_dict(), break_it.build(whole_of(name), 3).state_dict()
    gone = {key for key in whole if key not in broken}
    assert gone == {
        "no_norm": {key for key in whole if "norm" in key},
        "no_position": {"pos_embed"},
    }.get(name, set())
    assert not broken.keys() - whole.keys()
    if name != "no_position":  # whose generator draws one array less
        assert all(np.array_equal(broken[key], whole[key]) for key in broken)


def test_no_scale_is_a_factor_of_the_scores():
    """Dividing q's rows by sqrt(d) beforehand makes the layer without a scale the library's own."""
    layer = nn.Attention(8, 2, dtype="float64", seed=0)
    x = np.random.default_rng(0).standard_normal((2, 5, 8))
    expected = layer(x)[0]
    layer.qkv.weight.data[:8] /= 2  # d = 4
    assert np.allclose(break_it.swap(break_it.NoScale)(layer)(x)[0], expected, rtol=1e-12)


def test_no_residual_forgets_its_input():
    """Where the last layers of both branches are 0, so is the output; the library's block is then the identity."""
    norms = [nn.LayerNorm(8, dtype="float64") for _ in range(2)]
    attention, mlp = nn.Attention(8, 2, dtype="float64", seed=0), nn.Mlp(8, 16, dtype="float64", seed=1)
    block = nn.Block(norms[0], attention, norms[1], mlp)
    x = np.random.default_rng(0).standard_normal((2, 5, 8))
    for last in (attention.proj, mlp.fc2):
        last.weight.data = np.zeros(last.weight.shape)
    assert (block(x)[0] == x).all()
    assert (break_it.swap(break_it.NoResidual)(block)(x)[0] == 0).all()
    forgetful = break_it.swap(break_it.ResidualForgotten)(block)
    y, back = forgetful(x)
    assert (y == x).all() and (back(x) == 0).all()


def test_post_norm_ends_every_block_with_a_norm():
    model = break_it.build("post_norm", dtype="float64")
    x = np.random.default_rng(0).standard_normal((2, 16, 32))
    for block in model.blocks:
        x, _ = block(x)
        assert np.allclose(x.mean(axis=-1), 0, atol=1e-9) and np.allclose(x.std(axis=-1), 1, rtol=1e-3)


@pytest.mark.parametrize("name", ["whole_swin", "no_mask", "no_shift"])
def test_only_the_whole_swin_knows_where_the_image_ends(name):
    images = break_it.dots(2).test[:4].astype(np.float64)
    difference = np.abs(features(name, images) - features(name, np.roll(images, 4, axis=3))).max()
    assert (difference > 1e-6) == (name == "whole_swin")


def test_dots_differ_only_in_who_meets_whom():
    images = break_it.dots(400, seed=1)
    assert images.learn.shape == (400, 1, 8, 8) and images.learn.dtype == np.float32
    assert images.test.shape == (1000, 1, 8, 8) and set(images.answers) == {0, 1}
    assert 0.4 < images.labels.mean() < 0.6
    places = np.sort(np.abs(images.learn[:, 0]).max(axis=1).argsort(axis=1)[:, -2:])  # the two columns of the dots
    assert all(row.tolist() == ([3, 4] if label else [0, 7]) for row, label in zip(places, images.labels))
    bright, dark = (
        order(axis=1) % 8 for order in (images.learn.reshape(400, 64).argmax, images.learn.reshape(400, 64).argmin)
    )
    for label in (0, 1):  # which of the dots is the bright one says nothing
        assert 0.3 < (bright < dark)[images.labels == label].mean() < 0.7


def test_learning_learns_and_repeats():
    first = break_it.learn("whole_swin", break_it.dots(), 4)
    assert len(first.losses) == 4 * 48 and np.mean(first.losses[-10:]) < 0.5 < first.losses[0]
    assert first.accuracy > 0.9 and 0 < first.first < 10 and 0 < first.last < 10
    small = break_it.dots(100)
    assert break_it.learn("no_mask", small, 1) == break_it.learn("no_mask", small, 1)
    assert break_it.learn("no_mask", small, 1).losses != break_it.learn("no_mask", small, 1, seed=1).losses


def test_a_noisy_test_uses_the_generator():
    model = break_it.build("dropout_at_test")
    model.head.weight.data = np.random.default_rng(0).standard_normal(model.head.weight.shape)  # it starts at 0
    rng = np.random.default_rng(1)
    tests = rng.standard_normal((200, 1, 28, 28), dtype=np.float32)
    images = break_it.Images(tests, np.zeros(200, int), tests, model.predict(tests).argmax(axis=1))
    assert break_it.accuracy(model, images) == 1.0
    assert break_it.accuracy(model, images, np.random.default_rng(2)) < 1.0


def test_settings_that_train_nothing_are_refused():
    with pytest.raises(ValueError, match="epochs=0"):
        break_it.learn("no_mask", break_it.dots(100), 0)
    with pytest.raises(ValueError, match="batch_size=50"):
        break_it.learn("no_mask", break_it.dots(10), 1)


# --- as its reader runs it ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the four files of MNIST's form."""
    folder, rng = tmp_path_factory.mktemp("digits"), np.random.default_rng(0)
    for stem, count in (("train", 200), ("t10k", 40)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = (labels[:, None, None] * 20 + rng.integers(30, size=(count, 28, 28))).astype(np.uint8)
        data.write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        data.write_idx(folder / f"{stem}-labels-idx1-ubyte", labels)
    return folder


def run(folder, *options):
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLE), "--data", str(folder), *map(str, options)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_program_prints_a_row_for_each_switch_beside_the_whole_model(folder):
    done = run(folder, "--switch", "residual_forgotten", "no_mask", "--images", 200, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "files in" in lines[0] or str(folder) in lines[0]
    assert lines[1] == break_it.HEAD
    rows = [line for line in lines[2:] if not line.startswith(" ")]
    assert [row.split()[0] for row in rows] == ["whole", "residual_forgotten", "whole_swin", "no_mask"]
    assert [row.split()[5] for row in rows] == ["passes", "FAILS", "passes", "passes"]
    assert sum("is wrong in" in line for line in lines) == 1


def test_the_program_refuses_in_one_line(folder):
    done = run(folder, "--switch", "no_shift", "--images", 10)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "batch_size=50" in done.stderr
    assert run(folder, "--switch", "no_brakes").returncode == 2
