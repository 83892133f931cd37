"""Attention that is shown is the attention that was paid: weights @ v, mixed, is what the layer itself gives.

Rollout against a chain of products written out, Grad-CAM against a planted patch and against differences of the logit.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import numpy as np
import pytest

from minivit import Swin, SwinV2, ViT, explain, functional as F
from minivit.draw import attention as attention_pictures
from minivit.models.options import prefix_tokens
from minivit.nn import Recompute

VIT = {"img_size": (12, 16), "patch_size": 4, "in_chans": 2, "num_classes": 3, "embed_dim": 12, "depth": 3}
VIT |= {"num_heads": 2, "mlp_ratio": 2.0, "dtype": "float64"}
MEAN = {"class_token": False, "global_pool": "avg"}
# 3 x 4 and 2 x 2 windows of maps of 9 x 10 and 5 x 5: shifted, padded, and reduced on no axis
SWIN = {"img_size": (18, 20), "patch_size": 2, "in_chans": 2, "num_classes": 3, "embed_dim": 8, "depths": (2, 2)}
SWIN |= {"num_heads": (2, 4), "window_size": (4, 3), "mlp_ratio": 2.0, "dtype": "float64"}

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "class token": (ViT, VIT),
    "every token": (ViT, VIT | {"skip_unused_tokens": False}),
    "relative": (ViT, VIT | {"pos_embed": "relative"}),
    "distilled": (ViT, VIT | {"distilled": True}),
    "mean": (ViT, VIT | MEAN),
    "mean beside a class token": (ViT, VIT | {"global_pool": "avg"}),
    "registers": (ViT, VIT | {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.5}),
    "norms of q and k": (ViT, VIT | {"qk_norm": True}),
    "rotary": (ViT, VIT | {"pos_embed": "rotary", "embed_dim": 16, "reg_tokens": 1, "qkv_bias": "qv"}),
    "relative, no bias of k": (ViT, VIT | MEAN | {"pos_embed": "relative", "qkv_bias": "qv"}),
    "any size": (ViT, VIT | {"dynamic_img_size": True, "img_size": 20}),
    "layer scale": (ViT, VIT | {"init_values": 0.5}),
    "biases of q and v": (ViT, VIT | {"qkv_bias": "qv"}),
    "swin": (Swin, SWIN),
    "swin, padding hidden": (Swin, SWIN | {"mask_padding": True, "mask_value": -np.inf}),
    "swin, rolled before it is padded": (Swin, SWIN | {"pad_first": False}),
    "swin v2": (SwinV2, SWIN | {"cpb_hidden": 5}),
}
VITS = [name for name in MODELS if MODELS[name][0] is ViT]
everyone = pytest.mark.parametrize("name", MODELS)


def made(name: str, **changes: Any) -> Any:
    """A model whose parameters are far from their start."""
    kind, arguments = MODELS[name]
    model, rng = kind(**arguments | changes), np.random.default_rng(3)
    for param in model.parameters().values():
        param.data = param.data + 0.4 * rng.standard_normal(param.shape)
    return model


def some_images(model: Any, batch: int = 3) -> Any:
    size = (18, 20) if isinstance(model, Swin) else (12, 16)
    return np.random.default_rng(5).standard_normal((batch, 2, *size)).astype(model.config["dtype"])


def blocks_and_inputs(model: Any, images: Any) -> Any:
    """(block, what its attention reads), by hand."""
    x = images
    for _, layer in model.leaves():
        if hasattr(layer, "attn"):
            yield layer, x if layer.post_norm else layer.norm1(x)[0]
        x = layer(x)[0]


def mixed(attention: Any, each: Any) -> Any:
    """The heads' outputs (..., N, d) side by side, through the output projection."""
    heads = each.weights @ each.values
    joined = np.concatenate([heads[..., h, :, :] for h in range(heads.shape[-3])], axis=-1)  # (..., n, D)
    return joined @ attention.proj.weight.data.T + attention.proj.bias.data


# --- weights --------------------------------------------------------------------------------------------------------


def test_differential_heads_have_no_weights_to_show():
    model = ViT(**VIT | {"attn_layer": "diff", "num_heads": 1})
    with pytest.raises(ValueError, match="DifferentialHeads have no weights whose product with v is their output"):
        explain.attention_weights(model, some_images(model))


@everyone
def test_weights_times_values_are_what_the_layer_gives(name):
    model = made(name)
    images = some_images(model)
    found = explain.attention_weights(model, images)
    assert [each.name for each in found] == explain.block_names(model)
    for each, (block, seen) in zip(found, blocks_and_inputs(model, images), strict=True):
        expected, _ = block.attn(seen)
        if isinstance(model, Swin):
            window, shift, size = block.attn.plan(*seen.shape[1:3])
            got = mixed(block.attn.attention, each)  # (B, nW, N, D)
            windows = got.reshape(-1, *window, got.shape[-1])
            got = F.window_reverse(windows, window, *size)[0]
            high, wide = seen.shape[1:3]
            if block.attn.pad_first:
                got = np.roll(got, shift, (1, 2))[:, :high, :wide]
            else:
                got = np.roll(got[:, :high, :wide], shift, (1, 2))
        else:
            got = mixed(block.attn, each)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() < 1e-12 * max(1, np.abs(expected).max())
        assert np.abs(each.weights.sum(axis=-1) - 1).max() < 1e-12
    if isinstance(model, Swin):
        plans = [block.attn.plan(*seen.shape[1:3]) for block, seen in blocks_and_inputs(model, images)]
        assert any(any(shift) for _, shift, _ in plans) and any(size != (9, 10) for _, _, size in plans[:2])


def test_a_last_block_that_computes_the_class_token_alone_shows_its_row():
    short, whole = (
        explain.attention_weights(made(name), some_images(made(name))) for name in ("class token", "every token")
    )
    assert short[-1].weights.shape == (3, 2, 1, 13) and whole[-1].weights.shape == (3, 2, 13, 13)
    assert np.abs(short[-1].weights - whole[-1].weights[:, :, :1]).max() < 1e-14


# --- maps of heads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VITS)
def test_a_head_map_is_the_row_of_the_tokens_that_the_head_reads(name):
    model = made(name)
    images = some_images(model)
    read = int(model.config["class_token"]) + model.config["distilled"]
    p = read + model.config["reg_tokens"]
    maps = explain.head_maps(model, images)
    assert np.stack(maps, 1).shape == (3, 3, 2, 3, 4)
    for grid, each in zip(maps, explain.attention_weights(model, images), strict=True):
        for b, h in np.ndindex(3, 2):
            asking = range(read) if model.config["global_pool"] == "token" else range(p, p + 12)
            rows = [each.weights[b, h, q, p:] for q in asking]
            assert np.abs(grid[b, h].reshape(-1) - sum(rows) / len(rows)).max() < 1e-15


@pytest.mark.parametrize("name", ["swin", "swin, padding hidden", "swin v2"])
def test_a_swin_head_map_is_the_weight_that_each_position_gets_from_the_real_positions_of_its_window(name):
    model = made(name)
    images = some_images(model)
    maps = explain.head_maps(model, images)
    assert [grid.shape for grid in maps] == [(3, 2, 9, 10)] * 2 + [(3, 4, 5, 5)] * 2
    walk = zip(maps, explain.attention_weights(model, images), blocks_and_inputs(model, images), strict=True)
    for grid, each, (block, seen) in walk:
        window, shift, size = block.attn.plan(*seen.shape[1:3])
        at = explain.Layout(seen.shape[1:3], size, window, shift)
        numbers = explain.in_windows(explain.positions_after_roll(at), at)  # (nW, N), PAD for padding
        expected = np.full((*grid.shape[:2], grid[0, 0].size), np.nan)
        for w, places in enumerate(numbers):
            real = places >= 0
            got = each.weights[:, w][:, :, real].mean(axis=2)  # (B, H, N)
            expected[:, :, places[real]] = got[:, :, real]
        assert np.abs(grid.reshape(expected.shape) - expected).max() < 1e-14


def test_shares_add_up_to_one_where_nothing_is_padded_and_no_token_stands_before():
    vit = made("mean")
    assert np.abs(np.stack(explain.head_maps(vit, some_images(vit))).sum(axis=(-1, -2)) - 1).max() < 1e-14
    swin = made("swin", window_size=(3, 5), img_size=(18, 20), depths=(2,), num_heads=(2,))
    (plain, _) = explain.head_maps(swin, some_images(swin))
    cut = plain.reshape(3, 2, 3, 3, 2, 5).sum(axis=(3, 5))  # (B, H, windows down, windows across)
    assert np.abs(cut - 1).max() < 1e-14


# --- rollout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VITS)
def test_rollout_is_the_product_of_all_blocks(name):
    whole = made(name, skip_unused_tokens=False)  # same parameters, every row
    images = some_images(whole)
    read, tokens = int(whole.config["class_token"]) + whole.config["distilled"], 12
    p = read + whole.config["reg_tokens"]
    got = explain.attention_rollout(made(name), images)
    assert got.shape == (3, 3, 4)
    for b in range(3):
        joint = np.eye(p + tokens)
        for each in explain.attention_weights(whole, images):
            a = sum(each.weights[b]) / 2 + np.eye(p + tokens)
            joint = (a / a.sum(axis=1, keepdims=True)) @ joint
        rows = joint[:read] if whole.config["global_pool"] == "token" else joint[p:]
        assert np.abs(got[b].reshape(-1) - rows.mean(axis=0)[p:]).max() < 1e-14


@pytest.mark.parametrize("name", ["swin", "swin v2"])
def test_rollout_over_windows_is_refused_with_a_remedy(name):
    model = made(name)
    with pytest.raises(ValueError, match="windows and merges its tokens: use grad_cam, or head_maps"):
        explain.attention_rollout(model, some_images(model))


# --- Grad-CAM -------------------------------------------------------------------------------------------------------


def planted(kind: Any, **arguments: Any) -> Any:
    """Channel 0 of a token is the sum of its patch, all others are 0, blocks hand on what they get, and class 1 reads
    channel 0. Where a class token is read, the last block brings it the mean of the patches."""
    model = kind(**{**arguments, "num_classes": 2, "in_chans": 1, "dtype": "float64"})
    for name, param in model.parameters().items():
        keep = name.startswith(("norm", "fc_norm")) or (".norm" in name and kind is ViT)
        param.data = np.ones(param.shape) if keep and name.endswith("weight") else np.zeros(param.shape)
    parameters = model.parameters()
    first = np.zeros(parameters["patch_embed.proj.weight"].shape)
    first[0] = 1
    parameters["patch_embed.proj.weight"].data = first
    for name in ("head.weight", "head_dist.weight", "head.fc.weight"):
        if name in parameters:
            parameters[name].data = _reads_channel_0(parameters[name])
    if kind is ViT and model.config["global_pool"] == "token":
        dim = model.config["embed_dim"]
        attention = model.blocks[-1].attn
        values = np.zeros((3 * dim, dim))
        values[2 * dim :] = np.eye(dim)
        attention.qkv.weight.data, attention.proj.weight.data = values, np.eye(dim)
    return model


def _reads_channel_0(weight: Any) -> Any:
    head = np.zeros(weight.shape)
    head[1, 0] = 1
    return head


SMALL = {"img_size": (12, 16), "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
ONE_STAGE = {"img_size": (12, 16), "patch_size": 4, "embed_dim": 8, "depths": (2,), "num_heads": (2,)}
ONE_STAGE |= {"window_size": 2, "patch_norm": False}
PLANTED = {
    "class token": (ViT, SMALL),
    "distilled": (ViT, SMALL | {"distilled": True}),
    "mean": (ViT, SMALL | MEAN),
    "mean beside a class token": (ViT, SMALL | {"global_pool": "avg"}),
    "swin": (Swin, ONE_STAGE),
    "swin v2": (SwinV2, ONE_STAGE | {"cpb_hidden": 5}),
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("place", [(0, 0), (1, 2), (2, 3)])
def test_grad_cam_lights_exactly_the_patch_that_carries_the_feature(name, place):
    kind, arguments = PLANTED[name]
    model = planted(kind, **arguments)
    image = np.zeros((1, 1, 12, 16))
    y, x = place
    image[0, 0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = np.random.default_rng(0).random((4, 4))
    for block in (-1, -2, 0, 1):
        heat = explain.grad_cam(model, image, 1, block)
        assert heat.shape == (1, 3, 4) and [tuple(at) for at in np.argwhere(heat[0])] == [place]
    assert explain.grad_cam(model, image, 0).max() == 0  # class 0 reads nothing
    assert (explain.grad_cam(model, -image, 1) == 0).all()  # what lowers the logit is not shown


@everyone
def test_grad_cam_is_its_formula_with_the_gradient_by_differences(name):
    model = made(name)
    images = some_images(model, 2)
    layers = [layer for _, layer in model.leaves()]
    numbers = [number for number, layer in enumerate(layers) if hasattr(layer, "attn")]
    top = model.predict(images).argmax(axis=1)
    for block in (-1, 1):
        tokens = images
        for layer in layers[: numbers[block]]:
            tokens = layer(tokens)[0]

        def logit(tokens, rest=layers[numbers[block] :]):
            for layer in rest:
                tokens = layer(tokens)[0]
            return tokens[np.arange(2), top]

        p = 0 if tokens.ndim == 4 else prefix_tokens(model.config)
        a = tokens[:, p:] if tokens.ndim == 3 else tokens
        places = tuple(range(1, a.ndim - 1))
        weights = np.empty((2, a.shape[-1]))
        for channel in range(a.shape[-1]):  # the mean over pixels of the gradient is one directional derivative
            step = np.zeros_like(tokens)
            step[:, p:, ..., channel] = 1e-4
            slope = (
                8 * (logit(tokens + step) - logit(tokens - step)) - logit(tokens + 2 * step) + logit(tokens - 2 * step)
            ) / 12e-4
            weights[:, channel] = slope / np.prod([a.shape[axis] for axis in places])
        expected = np.maximum(np.einsum("b...d,bd->b...", a, weights), 0)
        got = explain.grad_cam(model, images, None, block)
        assert np.abs(got.reshape(expected.shape) - expected).max() < 1e-7 * max(1, expected.max())
    assert np.array_equal(explain.grad_cam(model, images, top), explain.grad_cam(model, images))


@everyone
def test_a_model_that_is_looked_at_stays_as_it_was(name):
    model = made(name)
    images = some_images(model)
    images.setflags(write=False)
    first, second, *_ = model.parameters().values()
    first.grad = np.ones(first.shape)
    second.grad = None
    before, parts = model.state_dict(), {id(layer) for _, layer in model.leaves()}
    expected = model.predict(images)
    explain.attention_weights(model, images)
    explain.head_maps(model, images)
    explain.grad_cam(model, images)
    if isinstance(model, ViT):
        explain.attention_rollout(model, images)
    assert (first.grad == 1).all() and first.grad.shape == first.shape
    assert [param.grad is None for param in model.parameters().values()] == [False] + [True] * (len(before) - 1)
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    assert parts == {id(layer) for _, layer in model.leaves()}
    assert np.array_equal(model.predict(images), expected)


def test_blocks_that_recompute_show_the_same():
    for name in ("class token", "swin"):
        model = made(name)
        twin = copy.deepcopy(model)
        blocks = twin.blocks if name == "class token" else twin.layers[0].blocks
        blocks[1] = Recompute(blocks[1])
        images = some_images(model)
        assert np.array_equal(explain.grad_cam(model, images), explain.grad_cam(twin, images))
        for one, other in zip(explain.head_maps(model, images), explain.head_maps(twin, images), strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize(
    "options, word",
    [
        ({"classes": 3}, r"class \[3\] does not exist: the model has 3, 0 to 2"),
        ({"classes": [0, -1, 2]}, r"class \[-1\] does not exist"),
        ({"classes": 0.5}, "classes=0.5: give one integer, or one for each of the 3 images"),
        ({"classes": [0, 1]}, "or one for each of the 3 images"),
        ({"block": 3}, "block=3: the model has 3 blocks, choose -3 to 2"),
    ],
)
def test_impossible_questions_are_refused(options, word):
    model = made("class token")
    with pytest.raises(ValueError, match=word):
        explain.grad_cam(model, some_images(model), **options)


def test_what_does_not_fit_the_model_is_refused():
    model = made("class token")
    for look in (explain.grad_cam, explain.attention_rollout, explain.head_maps, explain.attention_weights):
        with pytest.raises(ValueError, match="float32"):
            look(model, some_images(model).astype("float32"))
        with pytest.raises(ValueError, match="image 8x8 does not fit"):
            look(model, np.zeros((1, 2, 8, 8)))
    with pytest.raises(ValueError, match="no head"):
        explain.grad_cam(made("class token", num_classes=0), some_images(model))


@pytest.mark.parametrize("name", ["distilled", "swin", "swin v2"])
def test_on_every_device(name, device):
    model = made(name, dtype="float32")
    images = some_images(model)
    expected = [explain.grad_cam(model, images), *explain.head_maps(model, images)]
    if isinstance(model, ViT):
        expected.append(explain.attention_rollout(model, images))
    model.move_to(device.put)
    put = device.put(images)
    got = [explain.grad_cam(model, put), *explain.head_maps(model, put)]
    if isinstance(model, ViT):
        got.append(explain.attention_rollout(model, put))
    for one, other in zip(expected, got, strict=True):
        assert type(other) is type(put) and other.dtype == one.dtype == np.float32
        assert np.abs(one - device.get(other)).max() < 1e-5 * max(1, one.max())


# --- figures --------------------------------------------------------------------------------------------------------


def drawn(tmp_path, **maps):
    pytest.importorskip("matplotlib")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    (file,) = attention_pictures.write_explanation(tmp_path / "new" / "out.svg", "seven: 99%", pixels, **maps)
    return re.findall(r">([^<>\n]+)</(?:text|tspan)>", file.read_text(encoding="utf-8"))


def test_the_figure_says_what_it_shows(tmp_path):
    grid = np.zeros((2, 3))
    grid[1, 2] = 0.25
    heads = [np.ones((4, 2, 3)), np.zeros((2, 1, 2))]
    words = drawn(tmp_path, rollout=grid, cam=grid, class_name="seven", heads=heads)
    text = " ".join(words)
    assert "seven: 99%" in words and "Attention rollout" in words and "Grad-CAM" in words
    assert "Framed: 25%" in text and "would be 17%" in text and "raise the logit of seven most" in text
    assert "not what the model sees there" in text
    assert [word for word in words if word.startswith("block")] == ["block 1", "block 2"]
    assert [word for word in words if word.startswith("head")] == ["head 1", "head 2", "head 3", "head 4"]


def test_the_figure_omits_missing_parts(tmp_path):
    words = drawn(tmp_path, cam=np.zeros((2, 3)), class_name="seven")
    assert "Attention rollout" not in words and "No patch raises" in " ".join(words)
    assert not any(word.startswith(("block", "head")) for word in words)
    assert "Input of the model" in drawn(tmp_path) and "Grad-CAM" not in drawn(tmp_path)


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"out.pdf: the figure must be a .png or .svg file"):
        attention_pictures.write_explanation(tmp_path / "out.pdf", "", np.zeros((4, 4, 1), np.uint8))
