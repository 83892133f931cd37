"""Whole models against transformers' Swin and Swin v2, with the same random parameters in every tensor.

In float64 the logits, the gradient of the images and the gradients of all parameters agree to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parity_tools import MODEL_FORWARD, check_forward, check_gradients, tensor, torch
from swin_pairs import swin_arrays, swin_name, transformers_twin

from minivit.models import Swin, SwinV2

VERSIONS = {"v1": Swin, "v2": SwinV2}

SMALL: dict[str, Any] = {
    "img_size": (24, 20),  # maps of 12x10 and 6x5
    "patch_size": 2,
    "in_chans": 3,
    "num_classes": 5,
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
    "mlp_ratio": 2.0,
}

THREE = {"depths": (2, 2, 2), "num_heads": (2, 4, 2)}

# In transformers a window shrinks on both axes, and its shift goes, where the shorter side of the map is no longer than
# the window; here each axis is judged alone. They agree where both sides are longer than the window, or both no longer
# and equal, so every map below is of one of these kinds.
BOTH = {
    "padded_maps": {},
    "fitting_maps": {"img_size": 32},  # 16x16 and 8x8: nothing is padded
    "window_covers_the_last_map": {"img_size": 16},  # 8x8 and 4x4
    "window_covers_the_only_map": {"img_size": 8, "depths": (2,), "num_heads": (2,)},
    "one_stage": {"depths": (2,), "num_heads": (4,)},
    "deep_first_stage": {"depths": (4, 2)},
    "deep_last_stage": {"depths": (2, 6)},
    "three_stages": {"img_size": 32, "window_size": 3, **THREE},  # 16x16, 8x8 and 4x4
    "odd_depths": {"depths": (1, 3), "allow_odd_depths": True},
    "window_5": {"img_size": (24, 26), "window_size": 5},  # 12x13 and 6x7: the shift of 2 is less than half
    "wide_patch_one_channel": {"img_size": (20, 48), "patch_size": (2, 4), "in_chans": 1},
    "no_qkv_bias": {"qkv_bias": False},
    "tanh_gelu": {"gelu": "tanh"},
    "wide_mlp": {"mlp_ratio": 3.5},
    "absolute_positions": {"ape": True},
    "absolute_positions_square": {"ape": True, "img_size": 16},
    "features": {"num_classes": 0},
}

# in these version 1 of transformers fails: its table of positions does not shrink with the window
V2_ONLY = {
    "window_larger_than_the_last_map": {"img_size": 16, **THREE},  # 8x8, 4x4 and 2x2
    "window_of_one_place": {"img_size": 4, "depths": (2, 2), "window_size": 2},  # 2x2 and 1x1
    "larger_pretrained_windows": {"pretrained_window_sizes": (6, 5)},
    "smaller_pretrained_windows": {"pretrained_window_sizes": (3, 2)},
    "pretrained_window_of_one_stage": {"pretrained_window_sizes": (0, 6), "img_size": 16},
}

# Options, and the image size that transformers is given: when it decides on windows, it rounds half of an odd map down,
# not up as the merging does, and a part of a patch likewise. The size given is one that needs no rounding.
ODD = {
    "odd_map": ({"img_size": (22, 18)}, (24, 20)),  # 11x9 and 6x5
    "odd_rows": ({"img_size": (22, 20)}, (24, 20)),
    "odd_columns": ({"img_size": (24, 18)}, (24, 20)),
    "partial_patches": ({"img_size": (21, 17)}, (24, 20)),
    "partial_patches_even_map": ({"img_size": (23, 19)}, (24, 20)),
    "one_pixel_more": ({"img_size": (25, 33)}, (28, 36)),  # 13x17 and 7x9
    "partial_wide_patches": ({"img_size": (21, 45), "patch_size": (2, 4), "in_chans": 1}, (24, 48)),
    "three_stages_odd_window": ({"img_size": (28, 36), "window_size": 3, **THREE}, (32, 40)),  # 14x18, 7x9 and 4x5
    "window_covers_what_was_odd": ({"img_size": 14}, (16, 16)),  # 7x7 and 4x4
    "no_qkv_bias": ({"img_size": (21, 17), "qkv_bias": False}, (24, 20)),  # padded pixels are zero in version 2
}


def images_for(config: dict[str, Any], dtype: str, size: tuple[int, int] | None = None) -> Any:
    side = config["img_size"] if size is None else size
    height, width = (side, side) if isinstance(side, int) else side
    images = np.random.default_rng(5).standard_normal((2, config["in_chans"], height, width)).astype(dtype)
    images[1] *= 0.01  # a nearly black image
    return images


def compare(
    version: str,
    options: dict[str, Any],
    size: tuple[int, int] | None = None,
    dtype: str = "float64",
    limit: float | None = None,
    **twin: Any,
) -> None:
    """Logits of the images (of the model's size, or another) and all gradients under a random dy."""
    ours = VERSIONS[version](**{**SMALL, **options, "dtype": dtype})
    theirs = transformers_twin(ours, np.random.default_rng(4), **twin)
    images = images_for(ours.config, dtype, size)
    timages = tensor(images)
    expected = theirs(timages).logits
    logits, back = ours(images)
    check_forward(logits, expected, MODEL_FORWARD[dtype])
    dy = np.random.default_rng(6).standard_normal(logits.shape).astype(dtype)
    expected.backward(torch.tensor(dy))
    got = {"images": back(dy)} | {name: param.grad for name, param in ours.parameters().items()}
    wanted = swin_arrays({name: param.grad for name, param in theirs.named_parameters()})
    check_gradients(got, {"images": timages.grad} | wanted, limit)
    check_forward(ours.predict(images), expected, MODEL_FORWARD[dtype])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", BOTH)
def test_shapes_and_options(name: str, version: str) -> None:
    compare(version, BOTH[name])


@pytest.mark.parametrize("name", V2_ONLY)
def test_version_2_with_small_and_pretrained_windows(name: str) -> None:
    compare("v2", V2_ONLY[name])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ODD)
def test_maps_of_odd_size_and_partial_patches(name: str, version: str) -> None:
    options, told = ODD[name]
    compare(version, options, image_size=told)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("size", [(36, 20), (21, 27)])
def test_images_of_another_size(size: tuple[int, int], version: str) -> None:
    compare(version, {"img_size": 32}, size)


@pytest.mark.parametrize(("built", "size"), [(24, (16, 16)), (16, (32, 32))])
def test_an_image_decides_whether_the_window_covers_the_last_map(built: int, size: tuple[int, int]) -> None:
    # the last map is 4x4 instead of 6x6 and nothing shifts, or 8x8 instead of 4x4 and it does; version 2 of
    # transformers decides on the shift when it is built
    compare("v1", {"img_size": built}, size)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["padded_maps", "window_covers_the_last_map"])
def test_layers_of_so_low_variance_that_eps_counts(name: str, version: str) -> None:
    compare(version, BOTH[name], low=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_larger_parameters(version: str) -> None:
    compare(version, {}, scale=0.8)


@pytest.mark.parametrize(("version", "attention"), [("v1", "eager"), ("v1", "sdpa"), ("v2", "eager")])
@pytest.mark.parametrize("name", ["padded_maps", "window_covers_the_last_map"])
def test_in_float32(name: str, version: str, attention: str) -> None:
    # dividing by short lengths of q and k costs version 2 digits: both programs are 1.2e-5 from the float64 gradients
    limit = 1e-4 if version == "v2" else None
    compare(version, BOTH[name], dtype="float32", limit=limit, attention=attention)


@pytest.mark.parametrize("version", VERSIONS)
def test_features_are_the_pooled_last_map(version: str) -> None:
    ours = VERSIONS[version](**SMALL, dtype="float64")
    theirs = transformers_twin(ours, np.random.default_rng(4))
    images = images_for(ours.config, "float64")
    pooled = theirs.base_model(torch.tensor(images)).pooler_output
    check_forward(ours.features(images), pooled, MODEL_FORWARD["float64"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("swin.encoder.layers.2.blocks.5.attention.self.query.bias", "layers.2.blocks.5.attn.q_proj.bias"),
        ("swin.encoder.layers.2.blocks.5.attention.output.dense.weight", "layers.2.blocks.5.attn.proj.weight"),
        ("swin.encoder.layers.2.blocks.5.intermediate.dense.bias", "layers.2.blocks.5.mlp.fc1.bias"),
        ("swin.encoder.layers.2.blocks.5.output.dense.bias", "layers.2.blocks.5.mlp.fc2.bias"),
        (
            "swin.encoder.layers.2.blocks.5.attention.self.relative_position_bias_table",
            "layers.2.blocks.5.attn.relative_position_bias_table",
        ),
        ("swin.encoder.layers.2.downsample.norm.weight", "layers.3.downsample.norm.weight"),
    ],
)
def test_the_older_names_are_understood(theirs: str, ours: str) -> None:
    # transformers 4 named the same parameters of version 1 as those of version 2
    assert swin_name(theirs) == ours
