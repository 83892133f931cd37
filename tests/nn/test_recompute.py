"""Recompute changes memory and time and nothing else: outputs, gradients and names stay the same to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

import minivit
from minivit import nn
from minivit.nn.kept_memory import Kept
from minivit.parallel import DataParallel
from minivit.summary import summary


def vit(wrap=False, dtype="float32", **options):
    model = minivit.ViT(8, 4, 1, 3, 16, 3, 2, dtype=dtype, **options)
    if wrap:
        model.blocks = [nn.Recompute(block) for block in model.blocks]
    return model


def images(size=5, dtype="float32"):
    return np.random.default_rng(0).standard_normal((size, 1, 8, 8)).astype(dtype)


NOISE = {"proj_drop_rate": 0.3, "attn_drop_rate": 0.3, "drop_path_rate": 0.3, "pos_drop_rate": 0.3, "drop_rate": 0.3}


@pytest.mark.parametrize("options", [{}, NOISE, {**NOISE, "pos_embed": "relative"}])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_gradients_are_bit_equal(options, training):
    found = []
    for wrap in (False, True):
        model = vit(wrap, **options)
        rng = np.random.default_rng(3) if training else None
        y, back = model(images(), rng)
        after = rng.random() if training else None  # a later layer draws the same numbers too
        dx = back(np.arange(15, dtype="float32").reshape(5, 3))
        later = rng.random() if training else None  # the replay must not draw from the caller's generator
        found.append({"y": y, "dx": dx, **{name: p.grad for name, p in model.parameters().items()}})
        found[-1]["draws"] = np.array([after, later], dtype=float)
    assert list(found[0]) == list(found[1])
    for name, value in found[0].items():
        assert np.array_equal(value, found[1][name], equal_nan=True), name


def test_the_noise_matters():
    model = vit(**NOISE)
    assert not np.array_equal(model(images(), np.random.default_rng(3))[0], model(images())[0])


def test_names_parameters_and_multiply_adds_are_the_same():
    plain, wrapped = vit(), vit(wrap=True)
    assert list(plain.parameters()) == list(wrapped.parameters())
    assert nn.multiply_adds(plain, (1, 1, 8, 8)) == nn.multiply_adds(wrapped, (1, 1, 8, 8))
    wrapped.load_state_dict(plain.state_dict())
    assert np.array_equal(plain.predict(images()), wrapped.predict(images()))
    assert [row.macs for row in summary(plain, quiet=True).rows] == [r.macs for r in summary(wrapped, quiet=True).rows]


def test_parameters_that_have_their_parents_name_keep_it():
    class Parent(nn.Layer):
        def __init__(self, part):
            self.part = part

    part = nn.RelativePositionBias((2, 2), 1)
    assert list(Parent(part).parameters()) == list(Parent(nn.Recompute(part)).parameters())
    assert list(Parent(nn.Recompute(nn.Linear(2, 2))).parameters()) == ["part.weight", "part.bias"]


def test_only_the_input_is_kept():
    for inner in (nn.Mlp(8, 32, drop=0.5, seed=0), nn.Attention(8, 2, attn_drop=0.5, seed=0), nn.LayerNorm(8)):
        x = np.ones((3, 4, 8), np.float32)
        _, back = nn.Recompute(inner)(x, np.random.default_rng(0))
        assert Kept(()).add(back) == x.nbytes


def test_a_wrapped_model_keeps_less():
    x = images(32)
    kept = [Kept(()).add(vit(wrap, **NOISE)(x, np.random.default_rng(0))[1]) for wrap in (False, True)]
    assert kept[1] < kept[0] / 3


def test_in_data_parallel():
    x, y = images(7), np.arange(7) % 3
    found = []
    for wrap in (False, True):
        model = vit(wrap, **NOISE)
        loss = DataParallel(model, threads=2, shards=3).loss_and_grad(x, y, np.random.default_rng(1))
        found.append((loss, {name: param.grad for name, param in model.parameters().items()}))
    assert found[0][0] == found[1][0]
    assert all(np.array_equal(grad, found[1][1][name]) for name, grad in found[0][1].items())


def test_its_back_is_single_use():
    y, back = nn.Recompute(nn.Linear(2, 2, seed=0))(np.ones((1, 2), np.float32))
    back(y)
    with pytest.raises(RuntimeError, match="single-use"):
        back(y)
