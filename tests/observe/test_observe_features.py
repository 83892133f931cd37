"""Patches as colors, the attention of prefix tokens, and near images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import minivit
from minivit import explain, nn
from minivit.observe.features import principal_components
from minivit.strategies import seeds

VIT = {"img_size": (4, 6), "patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 3, "num_heads": 2}
SWIN = {"img_size": 16, "patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 4}
SWIN |= {"depths": (2, 2), "num_heads": (1, 2), "window_size": 4}


def images(model: Any, batch: int = 2) -> Any:
    size = model.config["img_size"]
    return np.random.default_rng(1).standard_normal((batch, 1, *(size if isinstance(size, tuple) else (size, size))))


# --- principal components ---


@given(count=st.integers(2, 12), width=st.integers(1, 8), seed=seeds())
def test_components_are_the_projections_of_largest_variance(count: int, width: int, seed: int) -> None:
    """Against the eigenvectors of the covariance matrix."""
    x = np.random.default_rng(seed).standard_normal((count, width)) * 3 + 5
    components, shares = principal_components(x, 3)
    covariance = np.atleast_2d(np.cov(x.T, bias=True))
    values = np.sort(np.linalg.eigvalsh(covariance))[::-1][:3]
    values = np.pad(values, (0, 3 - len(values)))
    assert components.shape == (count, 3)
    assert np.allclose((components**2).mean(axis=0), values, atol=1e-10)
    assert np.allclose(components.mean(axis=0), 0, atol=1e-10)
    assert np.allclose(shares, values / np.trace(covariance), atol=1e-10)
    products = components.T @ components
    assert np.allclose(products, np.diag(np.diag(products)), atol=1e-8), "they are uncorrelated"
    same, _ = principal_components(x + 7, 3)
    assert np.allclose(same, components, atol=1e-8), "the sign does not depend on the mean"


def test_equal_patches_have_no_components() -> None:
    colors, shares = explain.patch_colors(np.ones((1, 4, 2, 3)))
    assert np.array_equal(shares, np.zeros(3)) and np.array_equal(colors, np.zeros((1, 2, 3, 3)))


def test_rounding_is_no_component() -> None:
    """Patches of two kinds differ in one component; those of one kind by rounding, which gets no color."""
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((1, 5, 1, 2)).astype(np.float32).repeat(20, axis=3)
    maps *= 1 + rng.uniform(-6e-8, 6e-8, maps.shape).astype(np.float32)
    colors, shares = explain.patch_colors(maps)
    assert np.array_equal(shares[1:], [0, 0]) and np.ptp(colors[..., 1:]) == 0
    assert shares[0] > 0.999


# --- colors ---


def scene() -> Any:
    """Two images (8 channels, 6 x 8 patches): an object of two halves on one background."""
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    kinds = np.zeros((2, 6, 8), int)
    kinds[0, 1:5, 2:4], kinds[0, 1:5, 4:6] = 1, 2
    kinds[1, 2:5, 1:3], kinds[1, 2:5, 3:5] = 1, 2
    values = np.stack([np.zeros(8), 10 * directions[0] + 2 * directions[1], 10 * directions[0] - 2 * directions[1]])
    maps = values[kinds] + 0.01 * rng.standard_normal((2, 6, 8, 8))
    return np.moveaxis(maps, -1, 1), kinds


def test_equal_colors_are_equal_features_in_all_images() -> None:
    maps, kinds = scene()
    colors, shares = explain.patch_colors(maps)
    assert colors.shape == (2, 6, 8, 3) and colors.min() >= 0 and colors.max() <= 1
    assert shares[0] > 0.8 and shares[0] > shares[1] > shares[2]
    means = [[colors[image][kinds[image] == kind][:, :2].mean(axis=0) for kind in range(3)] for image in range(2)]
    assert np.allclose(means[0], means[1], atol=0.05)
    assert min(np.abs(means[0][a] - means[0][b]).max() for a, b in ((0, 1), (0, 2), (1, 2))) > 0.4


@pytest.mark.parametrize("sign", [1, -1])
def test_the_foreground_is_the_side_away_from_the_borders(sign: int) -> None:
    maps, kinds = scene()
    colors, shares = explain.patch_colors(sign * maps, foreground=True)
    colored = ~np.isnan(colors).any(axis=-1)
    assert np.array_equal(colored, kinds > 0)
    assert shares[0] > 0.9, "within the object only its halves differ"
    red = colors[..., 0]
    assert abs(red[kinds == 1].mean() - red[kinds == 2].mean()) > 0.9


def test_an_outlier_does_not_take_the_whole_range() -> None:
    maps = np.random.default_rng(0).uniform(-1, 1, (1, 1, 20, 20))
    maps[0, 0, 3, 4] = 1e4
    red = explain.patch_colors(maps).colors[0, ..., 0]
    assert red.std() > 0.2 and red[3, 4] == 1


@pytest.mark.parametrize("shape", [(4, 2, 3), (1, 4, 1, 1), (0, 4, 2, 2)])
def test_maps_of_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="maps must be"):
        explain.patch_colors(np.ones(shape))


# --- attention ---


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("block", [0, -1])
def test_the_attention_of_prefix_tokens(distilled: bool, block: int) -> None:
    """Also of those of the last block that the head does not need."""
    model = minivit.ViT(**VIT, distilled=distilled, dtype="float64", skip_unused_tokens=True)
    whole = minivit.ViT(**VIT, distilled=distilled, dtype="float64", skip_unused_tokens=False)
    x = images(model)
    maps = explain.token_attention(model, x, block)
    assert list(maps) == ["class token", "distillation token"][: 1 + distilled]
    weights = explain.attention_weights(whole, x)[block].weights
    for number, each in enumerate(maps.values()):
        assert each.shape == (2, 2, 2, 3)
        assert np.allclose(each.reshape(2, 2, 6), weights[:, :, number, 1 + distilled :], rtol=1e-12)
    assert model.blocks[-1].attn.queries is not None, "the model itself goes on leaving them out"


def test_the_attention_of_registers() -> None:
    model = minivit.ViT(**VIT, reg_tokens=2, no_embed_class=True, dtype="float64")
    whole = minivit.ViT(**VIT, reg_tokens=2, no_embed_class=True, dtype="float64", skip_unused_tokens=False)
    x = images(model)
    maps = explain.token_attention(model, x)
    assert list(maps) == ["class token", "register 1", "register 2"]
    weights = explain.attention_weights(whole, x)[-1].weights
    for number, each in enumerate(maps.values()):
        assert np.allclose(each.reshape(2, 2, 6), weights[:, :, number, 3:], rtol=1e-12)


def test_recomputed_blocks_show_the_same_attention() -> None:
    model = minivit.ViT(**VIT, dtype="float64")
    x = images(model)
    expected = explain.token_attention(model, x)["class token"]
    model.blocks[-1] = nn.Recompute(model.blocks[-1])
    assert np.array_equal(explain.token_attention(model, x)["class token"], expected)


@pytest.mark.parametrize("kind", ["swin", "patches"])
def test_models_without_prefix_tokens(kind: str) -> None:
    options = {**VIT, "global_pool": "avg", "class_token": False}
    model = minivit.Swin(**SWIN) if kind == "swin" else minivit.ViT(**options)
    x = images(model).astype(np.float32)
    maps = explain.token_attention(model, x, 1)
    assert list(maps) == ["all patches"]
    assert np.array_equal(maps["all patches"], explain.head_maps(model, x)[1])


@pytest.mark.parametrize(("kind", "block"), [("vit", 3), ("vit", -4), ("swin", 4)])
def test_a_block_that_is_not_there(kind: str, block: int) -> None:
    model = minivit.ViT(**VIT) if kind == "vit" else minivit.Swin(**SWIN)
    with pytest.raises(ValueError, match=f"block={block}: the model has"):
        explain.token_attention(model, images(model).astype(np.float32), block)


# --- near images ---


@given(count=st.integers(1, 9), wanted=st.integers(1, 12), seed=seeds())
def test_the_nearest_embeddings(count: int, wanted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    embeddings, query = rng.standard_normal((count, 3)), rng.standard_normal(3)
    cosines = [float(query @ each / np.linalg.norm(query) / np.linalg.norm(each)) for each in embeddings]
    order = sorted(range(count), key=lambda index: -cosines[index])[:wanted]
    found, values = explain.nearest_embeddings(query, embeddings, wanted)
    assert found.tolist() == order
    assert np.allclose(values, [cosines[index] for index in order], rtol=1e-6)


def test_embeddings_of_another_width() -> None:
    with pytest.raises(ValueError, match="embeddings"):
        explain.nearest_embeddings(np.ones(3), np.ones((2, 4)), 1)
