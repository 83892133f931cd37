"""`forward_intermediates`: the features of chosen blocks or stages, and their backward pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device_tools import Device
from hypothesis import given, strategies as st
from table import MODEL_ELEMENTS

import minivit
from minivit import check_complex_step, check_vjp, nn
from minivit.models.intermediates import take_indices
from minivit.models.options import prefix_tokens
from minivit.protocol import compose, inference, once
from minivit.strategies import seeds

SMALL = {"in_chans": 2, "num_classes": 3, "embed_dim": 4, "num_heads": 2, "mlp_ratio": 1.5, "dtype": "float64"}
VIT = {**SMALL, "img_size": (4, 6), "patch_size": 2, "depth": 3}  # a grid of 2 x 3
SWIN = {**SMALL, "img_size": (10, 8), "patch_size": 2, "depths": (2, 1, 1), "num_heads": (1, 2, 2), "window_size": 2}
SWIN |= {"allow_odd_depths": True, "drop_path_rate": 0.0}  # maps of 5 x 4, 3 x 2 and 2 x 1
NOISE = {"pos_drop_rate": 0.1, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.3}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "vit": (minivit.ViT, VIT),
    "noise": (minivit.ViT, {**VIT, **NOISE}),
    "distilled": (minivit.ViT, {**VIT, "distilled": True}),
    "patches alone": (minivit.ViT, {**VIT, "global_pool": "avg", "class_token": False}),
    "norm before the mean": (minivit.ViT, {**VIT, "global_pool": "avg", "fc_norm": False}),
    "relative": (minivit.ViT, {**VIT, "pos_embed": "relative"}),
    "dynamic": (minivit.ViT, {**VIT, "img_size": 8, "dynamic_img_size": True}),
    "registers": (minivit.ViT, {**VIT, "reg_tokens": 2, "no_embed_class": True, "init_values": 0.3}),
    "norm in front": (minivit.ViT, {**VIT, "pre_norm": True, "norm_layer": "rmsnorm"}),
    "no last norm": (minivit.ViT, {**VIT, "final_norm": False, "block_fn": "parallel_scaling"}),
    "attention pooling": (minivit.ViT, {**VIT, "global_pool": "map", "class_token": False}),
    "hybrid": (
        minivit.ViT,
        {**VIT, "img_size": (8, 12), "patch_size": 1, "resnet_layers": (), "resnet_width": 4, "resnet_groups": 2},
    ),
    "swin": (minivit.Swin, SWIN),
    "swin noise": (minivit.Swin, {**SWIN, **NOISE}),
    "swin v2": (minivit.SwinV2, {**SWIN, "cpb_hidden": 3}),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, **changes: Any) -> Any:
    make, options = KINDS[kind]
    return make(**{**options, "seed": 3, **changes})


def images(kind: str, batch: int = 2) -> Any:
    make, options = KINDS[kind]
    size = (4, 6) if kind == "dynamic" else options["img_size"]
    return np.random.default_rng(1).standard_normal((batch, 2, *size))


def start(model: Any, x: Any) -> Any:
    """What the first block reads."""
    return compose(x, model.embed, getattr(model, "norm_pre", None))


def blocks_of(model: Any) -> list[Any]:
    return model.blocks if isinstance(model, minivit.ViT) else model.layers


class Features(nn.Layer):
    """Every array that a model's `forward_intermediates` returns, as one layer for the checks of gradients."""

    def __init__(self, model: Any, indices: Any, **options: Any) -> None:
        self.embed, self.norm_pre, self.norm = model.embed, getattr(model, "norm_pre", None), model.norm
        self.blocks = list(blocks_of(model))
        self.run = lambda x, rng: model.forward_intermediates(x, indices, **options, rng=rng)

    def forward(self, x: Any, rng: Any = None) -> Any:
        features, back = self.run(x, rng)
        return tuple(flat(features)), back


def flat(features: Any) -> list[Any]:
    """The arrays of a nest of tuples and lists, in order."""
    return [features] if hasattr(features, "dtype") else [part for each in features for part in flat(each)]


choices = st.one_of(st.none(), st.integers(1, 3), st.lists(st.integers(-3, 2), min_size=1, max_size=4))


@kinds
@given(indices=choices, norm=st.booleans(), prefix=st.booleans(), seed=seeds())
def test_the_gradient_of_any_choice_of_blocks(kind: str, indices: Any, norm: bool, prefix: bool, seed: int) -> None:
    layer = Features(build(kind), indices, norm=norm, return_prefix_tokens=prefix)
    check_vjp(layer, images(kind), seed=seed, rng_seed=seed if "noise" in kind else None)


@kinds
@pytest.mark.parametrize("final", [False, True])
def test_every_element_of_the_gradient_of_several_blocks(kind: str, final: bool) -> None:
    options = {"norm": True, "return_prefix_tokens": True, "intermediates_only": not final}
    fewer = {"depths": (1, 1), "num_heads": (1, 2)} if "swin" in kind else {}  # one forward pass for each number
    layer = Features(build(kind, **fewer), [0, -1], **options)
    noise = 5 if "noise" in kind else None
    check_complex_step(layer, images(kind), seed=2, rng_seed=noise, elements=MODEL_ELEMENTS)


@kinds
def test_the_maps_are_what_the_blocks_give(kind: str) -> None:
    model, x = build(kind, **({} if "swin" in kind else {"skip_unused_tokens": False})), images(kind)
    (final, maps), _ = model.forward_intermediates(x)
    prefix = None
    if isinstance(model, minivit.ViT) and model.embed.prefix:
        (_, pairs), _ = model.forward_intermediates(x, return_prefix_tokens=True)
        assert all(np.array_equal(pair[0], each) for pair, each in zip(pairs, maps))
        prefix = [tokens for _, tokens in pairs]
    y, _ = start(model, x)
    p = prefix_tokens(model.config)
    assert len(maps) == len(blocks_of(model)) == 3
    for number, block in enumerate(blocks_of(model)):
        y, _ = block(y)
        if y.ndim == 3:
            assert maps[number].shape == (2, 4, 2, 3)
            for row, column in np.ndindex(2, 3):
                assert np.array_equal(maps[number][:, :, row, column], y[:, p + 3 * row + column])
            if prefix is not None:
                assert np.array_equal(prefix[number], y[:, :p])
        else:
            assert np.array_equal(maps[number], np.moveaxis(y, -1, 1))
    assert np.array_equal(final, y if model.norm is None else model.norm(y)[0])


@kinds
def test_the_final_features_lead_to_the_output_and_the_gradients_of_the_model(kind: str) -> None:
    """Also where the model's own forward pass leaves out the tokens that its head does not read."""
    model, x = build(kind), images(kind)
    rng = (lambda: np.random.default_rng(4)) if kind == "swin noise" else (lambda: None)
    logits, back = model(x, rng())
    dlogits = np.random.default_rng(2).standard_normal(logits.shape)
    dx = back(dlogits)
    expected = {name: param.grad for name, param in model.parameters().items()}

    model.zero_grad()
    (y, _), back = model.forward_intermediates(x, rng=rng())
    assert np.allclose(y, model.forward_features(x)) or rng() is not None
    behind = [part for name, part in model.parts() if name in ("pool", "attn_pool", "fc_norm", "head_drop", "head")]
    backs = []
    for layer in behind:
        y, back_layer = layer(y)
        backs.append(back_layer)
    assert np.allclose(y, logits, rtol=1e-12, atol=1e-12)
    for back_layer in reversed(backs):
        dlogits = back_layer(dlogits)
    assert np.allclose(back(dlogits, None, None, None), dx, rtol=1e-10, atol=1e-12)
    for name, param in model.parameters().items():
        assert np.allclose(param.grad, expected[name], rtol=1e-10, atol=1e-12), name


@kinds
def test_none_is_a_gradient_of_zeros_and_skips_the_blocks_above(kind: str) -> None:
    model, x = build(kind), images(kind)
    grads = []
    for skip in (False, True):
        model.zero_grad()
        features, back = model.forward_intermediates(x, [0, 1, 2])
        arrays = flat(features)
        dmap = np.random.default_rng(6).standard_normal(arrays[1].shape)
        others = [None if skip else np.zeros_like(array) for array in arrays]
        grads.append([back(others[0], dmap, *others[2:]), {n: p.grad for n, p in model.parameters().items()}])
    (dx, params), (same_dx, same_params) = grads
    assert np.allclose(dx, same_dx, rtol=1e-12, atol=1e-15) and np.abs(dx).max() > 0
    above = [param for block in blocks_of(model)[1:] for param in block.parameters().values()]
    assert above and all(param.grad is None for param in above)
    for name, grad in same_params.items():
        if grad is not None:
            assert np.allclose(grad, params[name], rtol=1e-12, atol=1e-15), name


@pytest.mark.parametrize(
    ("indices", "taken"),
    [
        (None, [0, 1, 2, 3]),
        (1, [3]),
        (np.int64(2), [2, 3]),
        (4, [0, 1, 2, 3]),
        ([0], [0]),
        ((2, 0), [0, 2]),
        ([-1, 3, -4], [0, 3]),
        (np.array([1, 2]), [1, 2]),
        (range(2), [0, 1]),
    ],
)
def test_indices(indices: Any, taken: list[int]) -> None:
    assert take_indices(4, indices) == taken


@pytest.mark.parametrize("indices", [0, 5, -1, [4], [-5], [], True, "all", 1.5, [0.5]])
def test_indices_out_of_range(indices: Any) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        take_indices(4, indices)
    assert "indices" in str(error.value)


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="no blocks"):
        build("norm before the mean", depth=0).forward_intermediates(images("vit"))


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_stop_early(kind: str) -> None:
    model, x = build(kind), images(kind)
    (_, maps), _ = model.forward_intermediates(x)
    (final, (first, second)), back = model.forward_intermediates(x, [0, 1], stop_early=True)
    assert np.array_equal(first, maps[0]) and np.array_equal(second, maps[1])
    y, _ = start(model, x)
    for block in blocks_of(model)[:2]:
        y, _ = block(y)
    assert np.array_equal(final, model.norm(y)[0] if kind == "vit" else y)  # a Swin's norm fits its last stage alone
    assert back(final, None, None).shape == x.shape
    ran: list[int] = []
    setattr(model, "blocks" if kind == "vit" else "layers", [Counted(block, ran) for block in blocks_of(model)])
    model.forward_intermediates(x, [0], stop_early=True)
    assert ran == [0]


class Counted(nn.Layer):
    """A block that notes that it ran."""

    def __init__(self, block: Any, ran: list[int]) -> None:
        self.block, self.note = block, lambda: ran.append(len(ran))

    def forward(self, x: Any, rng: Any = None) -> Any:
        self.note()
        return self.block(x, rng)


@pytest.mark.parametrize("kind", ["vit", "norm before the mean", "swin"])
def test_the_norm_of_the_maps(kind: str) -> None:
    model, x = build(kind), images(kind)
    maps, _ = model.forward_intermediates(x, intermediates_only=True)
    normed, _ = model.forward_intermediates(x, intermediates_only=True, norm=True)
    for number, (plain, with_norm) in enumerate(zip(maps, normed)):
        fits = kind != "swin" or number == 2
        expected = np.moveaxis(model.norm(np.moveaxis(plain, 1, -1))[0], -1, 1) if fits else plain
        assert np.allclose(with_norm, expected, rtol=1e-12, atol=1e-14), number


def test_without_a_norm_before_the_pooling_there_is_none_to_apply() -> None:
    model, x = build("patches alone"), images("patches alone")
    assert model.norm is None
    (final, maps), _ = model.forward_intermediates(x, norm=True)
    assert np.array_equal(final.reshape(2, 2, 3, 4).transpose(0, 3, 1, 2), maps[-1])


def test_prefix_tokens_of_a_model_that_has_none() -> None:
    for kind in ("patches alone", "swin"):
        maps, _ = build(kind).forward_intermediates(images(kind), return_prefix_tokens=True, intermediates_only=True)
        assert all(isinstance(each, np.ndarray) for each in maps)


def test_recomputed_blocks_give_the_same() -> None:
    model, x = build("noise"), images("noise")
    results = []
    for recompute in (False, True):
        if recompute:
            model.blocks[-1].attn = nn.Recompute(model.blocks[-1].attn)
            model.blocks = [nn.Recompute(block) for block in model.blocks]
        model.zero_grad()
        features, back = model.forward_intermediates(x, return_prefix_tokens=True, rng=np.random.default_rng(8))
        arrays = flat(features)
        results.append([*arrays, back(*arrays), *(param.grad for param in model.parameters().values())])
    for ours, same in zip(*results, strict=True):
        assert (ours is None and same is None) or np.array_equal(ours, same)


def test_writing_into_the_features_does_not_change_the_gradients() -> None:
    model, x = build("vit", post_norm=True), images("vit")  # whose attention keeps the tokens themselves
    for param in model.parameters().values():  # the norms start at 0, which lets no gradient through
        param.data = param.data + np.random.default_rng(5).standard_normal(param.shape)
    results = []
    for write in (False, True):
        model.zero_grad()
        (final, pairs), back = model.forward_intermediates(x, return_prefix_tokens=True)
        gradients = [np.ones_like(part) for part in flat((final, pairs))]
        if write:
            for part in flat((final, pairs)):
                part[...] = 7
        results.append([back(*gradients), *(param.grad for param in model.parameters().values())])
    for untouched, written in zip(*results, strict=True):
        assert (untouched is None and written is None) or np.array_equal(untouched, written)


def test_a_wrong_call_of_back() -> None:
    model, x = build("vit"), images("vit")
    dfinal, dmap = np.ones((2, 7, 4)), np.ones((2, 4, 2, 3))

    def fresh() -> Any:
        return model.forward_intermediates(x, [0])[1]

    assert isinstance(fresh(), once) and "ViT.forward_intermediates" in repr(fresh())
    for gradients, message in [
        ((dfinal,), "1 gradients, but takes 2, one for each returned array in order; None"),
        ((None, None), "without any gradient"),
        ((dfinal, dfinal), "gradient 2 of 2: dy has shape"),
        ((dfinal.astype("float32"), dmap), "gradient 1 of 2: dy is float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            fresh()(*gradients)
    back = fresh()
    back(dfinal, dmap)
    with pytest.raises(RuntimeError, match="already run"):
        back(dfinal, dmap)


def test_a_wrong_input() -> None:
    model, x = build("vit"), images("vit")
    with pytest.raises(ValueError, match="float32"):
        model.forward_intermediates(x.astype("float32"))
    with pytest.raises(ValueError, match="channels"):
        model.forward_intermediates(x[:, :1])
    with pytest.raises(ValueError, match="fit"):
        model.forward_intermediates(np.ones((1, 2, 8, 8)))
    with pytest.raises(ValueError, match="generator"):
        model.forward_intermediates(x, rng=True)


def test_in_inference_nothing_is_kept() -> None:
    model, x = build("swin"), images("swin")
    expected = flat(model.forward_intermediates(x)[0])
    with inference():
        features, back = model.forward_intermediates(x)
    assert all(np.array_equal(one, other) for one, other in zip(flat(features), expected, strict=True))
    with pytest.raises(RuntimeError, match="inference"):
        back(*expected)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_on_a_device(device: Device, kind: str) -> None:
    model, x = build(kind), images(kind)
    features, back = model.forward_intermediates(x, return_prefix_tokens=True)
    expected = [*flat(features), back(*flat(features))]
    if not device.on_host:
        minivit.to_device(model, "gpu")
    features, back = model.forward_intermediates(device.put(x), return_prefix_tokens=True)
    for ours, wanted in zip([*flat(features), back(*flat(features))], expected, strict=True):
        assert np.allclose(device.get(ours), wanted, rtol=1e-10, atol=1e-12)
