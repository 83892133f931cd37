"""What the Swin Transformers do with images of any size, in pieces, in threads, recomputed, and from files."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
from swin_tools import KINDS, images, settings, tiny

import minivit
from minivit import functional as F, nn
from minivit.functional import windows as moves  # the formula of a block calls them
from minivit.models import Swin, SwinV2
from minivit.nn.kept_memory import Kept
from minivit.parallel import DataParallel

NOISE = {
    "drop_rate": 0.2,
    "pos_drop_rate": 0.2,
    "proj_drop_rate": 0.2,
    "attn_drop_rate": 0.2,
    "drop_path_rate": 0.3,
}


def step(model: Any, x: Any, rng: Any = None) -> Any:
    """Logits, the gradient of the images, and the parameters' gradients by name."""
    for param in model.parameters().values():
        param.grad = None
    y, back = model(x, rng)
    dy = np.random.default_rng(2).standard_normal(y.shape).astype(y.dtype)
    return {"y": y, "dx": back(dy), **{name: param.grad for name, param in model.parameters().items()}}


def same(found: Any, expected: Any, tolerance: float = 0.0) -> bool:
    return found.keys() == expected.keys() and all(
        np.allclose(found[name], expected[name], rtol=tolerance, atol=tolerance) for name in expected
    )


# --- images of any size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 16), (13, 15), (22, 9), (40, 26)])
def test_another_image_size_is_the_model_built_for_it(kind: Any, size: Any) -> None:
    model, built = tiny(kind), tiny(kind, img_size=size)
    built.load_state_dict(model.state_dict())
    found, expected = step(model, images(size=size)), step(built, images(size=size))
    assert same(found, expected) and found["dx"].shape == (3, 2, *size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 1), (1, 16), (5, 40), (17, 17)])
def test_odd_and_small_images_have_right_gradients(kind: Any, size: Any) -> None:
    model = tiny(kind, window_size=3)
    y, back = model(images(size=size))
    dx = back(np.ones_like(y))
    assert y.shape == (3, 3) and dx.shape == (3, 2, *size) and np.isfinite(y).all() and dx.any()
    minivit.check_vjp(tiny(kind, window_size=3), images(2, size))


def test_a_smaller_window_reads_the_middle_of_the_table() -> None:
    """A model for large images on small ones is the model for small ones, whose tables are the middles of its own."""
    large = tiny(Swin, window_size=4, img_size=(64, 64))
    small = tiny(Swin, window_size=4, img_size=(12, 4))  # maps 6 x 2 and 3 x 1
    state = large.state_dict()
    for name, (mh, mw) in {"layers.0": (4, 2), "layers.1": (3, 1)}.items():
        for block in (0, 1):
            key = f"{name}.blocks.{block}.attn.relative_position_bias_table"
            table = state[key].reshape(7, 7, -1)
            state[key] = table[4 - mh : 3 + mh, 4 - mw : 3 + mw].reshape((2 * mh - 1) * (2 * mw - 1), -1)
    small.load_state_dict(state)
    x = images(size=(12, 4))
    np.testing.assert_allclose(large.predict(x), small.predict(x), rtol=1e-12)


def test_a_pretrained_window_keeps_the_bias_of_each_offset() -> None:
    """A model trained with windows of 3 and moved to 4 gives the offsets that it knows the biases that it learned."""
    trained = tiny(SwinV2, window_size=3, img_size=48)
    moved = tiny(SwinV2, window_size=4, img_size=64, pretrained_window_sizes=(3, 3))
    unmoved = tiny(SwinV2, window_size=4, img_size=64)
    for model in (moved, unmoved):
        model.load_state_dict(trained.state_dict())
    x = images(size=(6, 6))  # a map of 3 x 3, one window, and then 2 x 2
    np.testing.assert_allclose(moved.predict(x), trained.predict(x), rtol=1e-12)
    assert np.abs(unmoved.predict(x) - trained.predict(x)).max() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_absolute_positions_are_resampled_for_another_size(kind: Any) -> None:
    model, built = tiny(kind, ape=True), tiny(kind, ape=True, img_size=(24, 10))
    state = model.state_dict()
    table = state["absolute_pos_embed"].reshape(8, 8, 4)
    state["absolute_pos_embed"] = F.resize_grid(table, (12, 5))[0].reshape(1, 60, 4)
    built.load_state_dict(state)
    x = images(size=(24, 10))
    np.testing.assert_allclose(model.predict(x), built.predict(x), rtol=1e-11)
    minivit.check_vjp(tiny(kind, ape=True), images(2, (6, 10)))


@pytest.mark.parametrize("kind", KINDS)
def test_partial_patches_are_padded_with_zeros(kind: Any) -> None:
    model, x = tiny(kind), images(size=(15, 11))
    padded = np.zeros((3, 2, 16, 12))
    padded[:, :, :15, :11] = x
    assert np.array_equal(model.predict(x), model.predict(padded))


@pytest.mark.parametrize("kind", KINDS)
def test_masked_padding_makes_padded_positions_invisible(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever stands in the padding of the maps: it changes the published models, and not the strict ones."""
    x = images(size=(20, 14))  # 10 x 7 patches, then 5 x 4; windows of 3
    models = [
        tiny(kind, window_size=3, mask_padding=hide, mask_value=value)
        for hide, value in ((True, -math.inf), (False, -100.0))
    ]
    clean, zeros = [model.predict(x) for model in models], moves.pad

    def garbage(a: Any, size: Any, axis: Any = (1, 2)) -> Any:
        y, vjp = zeros(a, size, axis)
        y[:, a.shape[1] :], y[:, :, a.shape[2] :] = 7.0, -9.0
        return y, vjp

    monkeypatch.setattr(moves, "pad", garbage)
    strict, published = (model.predict(x) for model in models)
    np.testing.assert_allclose(strict, clean[0], rtol=1e-10)
    assert np.abs(published - clean[1]).max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_minus_100_is_as_good_as_minus_infinity(kind: Any) -> None:
    x = images(size=(22, 18))
    found, expected = (step(tiny(kind, mask_value=value), x) for value in (-100.0, -math.inf))
    assert same(found, expected, 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_shift_and_the_mask_change_the_logits(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, unshifted = tiny(kind), tiny(kind)
    for stage in unshifted.layers:
        for block in stage.blocks:
            block.attn.shift_size = (0, 0)
    found = model.predict(images())
    assert np.abs(found - unshifted.predict(images())).max() > 1e-4
    monkeypatch.setattr(F, "shift_mask", lambda *_: None)
    assert np.abs(found - model.predict(images())).max() > 1e-4


def test_fresh_blocks_of_version_2_are_the_identity() -> None:
    model = SwinV2(**settings(SwinV2, dtype="float64", seed=5))
    x, _ = model.embed(images())
    for stage in model.layers:
        if stage.downsample:
            x, _ = stage.downsample(x)
        for block in stage.blocks:
            assert np.array_equal(block(x)[0], x)
            assert not np.array_equal(block.mlp(x)[0], 0 * x), "the branch itself is not zero"
    x, _ = model.norm(x)
    np.testing.assert_allclose(model.features(images()), x.mean(axis=(1, 2)), rtol=1e-12)
    first = Swin(**settings(Swin, dtype="float64", seed=5))
    x, _ = first.embed(images())
    assert not np.array_equal(first.layers[0].blocks[0](x)[0], x)


@pytest.mark.parametrize("kind", KINDS)
def test_norms_stand_before_the_branches_or_behind(kind: Any) -> None:
    model = tiny(kind)
    block = model.layers[0].blocks[1]
    x = np.random.default_rng(0).standard_normal((2, 5, 4, 4))

    def through(x: Any, layer: Any, norm: Any) -> Any:
        first, last = (layer, norm) if kind is SwinV2 else (norm, layer)
        return last(first(x)[0])[0]

    middle = x + through(x, block.attn, block.norm1)
    middle = middle + through(middle, block.mlp, block.norm2)
    np.testing.assert_allclose(block(x)[0], middle, rtol=1e-12)
    merging = model.layers[1].downsample
    joined = through(F.patch_merging(x)[0], merging.reduction, merging.norm)
    np.testing.assert_allclose(merging(x)[0], joined, rtol=1e-12)


# --- the same in pieces, in threads, with less memory, in float32, from files ---------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_predict_equals_forward(kind: Any, dtype: str) -> None:
    model, x = tiny(kind, dtype=dtype, **NOISE), images(7, (18, 13), dtype)
    whole = model(x)[0]
    assert np.array_equal(model.predict(x), whole)
    for size in (1, 3, 7, 100):
        parts = model.predict(x, batch_size=size)
        assert parts.dtype == dtype and parts.shape == (7, 3)
        assert np.abs(parts - whole).max() < 1e-5
    assert model.predict(x[:0]).shape == (0, 3)
    assert all(param.grad is None for param in model.parameters().values())


@pytest.mark.parametrize("kind", KINDS)
def test_without_classes_the_features_come_out(kind: Any) -> None:
    with_head, without = tiny(kind), tiny(kind, num_classes=0)
    without.load_state_dict(with_head.state_dict(), strict=False)
    features = with_head.features(images())
    assert features.shape == (3, 8) and np.array_equal(without.predict(images()), features)
    state = with_head.state_dict()
    np.testing.assert_allclose(
        features @ state["head.fc.weight"].T + state["head.fc.bias"], with_head.predict(images())
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [{}, NOISE])
def test_images_do_not_see_each_other(kind: Any, noise: Any) -> None:
    """Windows of all images stand in one array: a mask or a reshape gone wrong would mix them."""
    model, x = tiny(kind, **noise), images(4, (18, 14))
    found = step(model, x)
    other = x.copy()
    other[2] = 99
    changed = step(model, other)
    for name in ("y", "dx"):
        np.testing.assert_allclose(found[name][[0, 1, 3]], changed[name][[0, 1, 3]], rtol=1e-9, atol=1e-12)
        assert not np.allclose(found[name][2], changed[name][2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("what", ["blocks", "stages", "attention"])
def test_recomputing_gives_the_same_bits(kind: Any, training: bool, what: str) -> None:
    x, found = images(4, (18, 14)), []
    for wrap in (False, True):
        model = tiny(kind, **NOISE)
        if wrap and what == "stages":
            model.layers = [nn.Recompute(stage) for stage in model.layers]
        elif wrap and what == "blocks":
            for stage in model.layers:
                stage.blocks = [nn.Recompute(block) for block in stage.blocks]
        elif wrap:
            for stage in model.layers:
                for block in stage.blocks:
                    block.attn.attention = nn.Recompute(block.attn.attention)
        macs = nn.multiply_adds(model, x.shape)
        rng = np.random.default_rng(3) if training else None
        found.append(step(model, x, rng))
        _, back = model(x, np.random.default_rng(3))
        found[-1]["kept"] = Kept(()).add(back)
        found[-1]["macs"] = macs
    assert found[1].pop("kept") < found[0].pop("kept") / (1 if what == "attention" else 2)
    assert list(found[0]) == list(found[1])
    assert all(np.array_equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 2])
def test_two_shards_equal_one(kind: Any, threads: int) -> None:
    x, labels, found = images(5, (18, 14)), np.arange(5) % 3, []
    for shards in (1, 2):
        model = tiny(kind)
        parallel = DataParallel(model, threads=threads, shards=shards)
        for _ in range(2):  # the second time with replicas that have been used
            loss = parallel.loss_and_grad(x, labels, label_smoothing=0.1)
        found.append({"loss": loss, **{name: param.grad for name, param in model.parameters().items()}})
    assert same(found[0], found[1], 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_shares_parameters_and_constants(kind: Any) -> None:
    model = tiny(kind)
    twin = model.replica()
    ours, theirs = list(model.constants()), list(twin.constants())
    assert len(ours) == 4 and all(a is b for a, b in zip(ours, theirs)), "a table or index for each block, not copied"
    for param, other in zip(model.parameters().values(), twin.parameters().values()):
        assert param is not other and param.data is other.data
    assert copy.deepcopy(model).head.fc.weight.data is not model.head.fc.weight.data


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"ape": True, "gelu": "tanh", "mask_padding": True, "mask_value": -math.inf}])
def test_float32_is_float32_throughout_and_near_float64(kind: Any, changes: Any) -> None:
    double = tiny(kind, **NOISE, **changes)
    single = tiny(kind, **NOISE, **changes, dtype="float32")
    single.load_state_dict(double.state_dict())
    for size in ((16, 16), (18, 13)):
        expected = step(double, images(size=size), np.random.default_rng(0))
        found = step(single, images(size=size, dtype="float32"), np.random.default_rng(0))
        assert {value.dtype for value in found.values()} == {np.dtype("float32")}
        assert {array.dtype.name for array in single.constants()} <= {"float32", "int64"}
        for name, value in expected.items():
            assert np.abs(found[name] - value).max() <= 2e-4 * max(np.abs(value).max(), 1e-3), name


@pytest.mark.parametrize("kind", KINDS)
def test_seeds_are_reproducible_and_the_same_in_both_dtypes(kind: Any) -> None:
    first, again, other = (kind(**settings(kind, seed=seed)).state_dict() for seed in (3, 3, 4))
    double = kind(**settings(kind, seed=np.random.default_rng(3), dtype="float64")).state_dict()
    for name, value in first.items():
        assert value.dtype == np.float32 and np.array_equal(value, again[name])
        assert np.array_equal(value, double[name].astype(np.float32))
    assert not np.array_equal(first["head.fc.weight"], other["head.fc.weight"])


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (Swin, {}),
        (Swin, {"mask_value": -math.inf, "img_size": (18, 13), "window_size": (3, 2), "ape": True}),
        (Swin, {"num_classes": 0, "depths": (1, 2), "allow_odd_depths": True}),
        (SwinV2, {}),
        (SwinV2, {"mask_value": -math.inf, "mask_padding": True, "dtype": "float64"}),
        (SwinV2, {"pretrained_window_sizes": ((3, 4), 2), "qkv_bias": False}),
    ],
)
def test_saving_and_loading(kind: Any, changes: Any, tmp_path: Any) -> None:
    model = tiny(kind, **{"dtype": "float32", **changes})
    minivit.save(model, tmp_path / "model.safetensors")
    loaded = minivit.from_pretrained(tmp_path / "model.safetensors")
    assert type(loaded) is kind and loaded.config == model.config
    x = images(size=(18, 14), dtype=model.config["dtype"])
    assert np.array_equal(loaded.predict(x), model.predict(x))
    assert list(loaded.state_dict()) == list(model.state_dict())
