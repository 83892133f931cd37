"""The Swin Transformers as published: parameter counts, multiply-adds, names, and what the summary says of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from published_sizes import check_size
from swin_tools import KINDS, TINY, settings, shapes

import minivit
from minivit import nn, optim
from minivit.models import Swin, SwinV2, configs
from minivit.summary import summary

# --- the published sizes --------------------------------------------------------------------------------------------

# name: (parameters, thousand million multiply-adds at the size in the name)
PUBLISHED = {
    "swin_tiny_patch4_window7_224": (28_288_354, "4.49"),
    "swin_small_patch4_window7_224": (49_606_258, "8.74"),
    "swin_base_patch4_window7_224": (87_768_224, "15.43"),
    "swin_base_patch4_window12_384": (87_903_584, "47.08"),
    "swin_large_patch4_window7_224": (196_532_476, "34.48"),
    "swin_s3_tiny_224": (28_328_674, "4.62"),
    "swin_s3_small_224": (49_737_298, "9.40"),
    "swin_s3_base_224": (71_125_762, "13.66"),
    "swinv2_tiny_window8_256": (28_347_154, "5.92"),
    "swinv2_small_window8_256": (49_728_418, "11.51"),
    "swinv2_base_window8_256": (87_918_816, "20.28"),
}
# Chen et al. 2021, the windows of the searched models
WINDOWS_OF_S3 = {"swin_s3_tiny_224": (7, 7, 14, 7), "swin_s3_small_224": (14, 14, 14, 7)}
WINDOWS_OF_S3 |= {"swin_s3_base_224": (7, 7, 14, 7)}
NAMES = [name for name in configs.list_models() if name.startswith("swin")]


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts_and_multiply_adds(name: str) -> None:
    check_size(name, *PUBLISHED[name])


def count_by_hand(name: str) -> int:
    """Every weight matrix and vector of a published size, added up."""
    letter, searched = name.split("_")[2 if "_s3_" in name else 1], WINDOWS_OF_S3.get(name)
    width, third = {"tiny": (96, 6), "small": (96, 18), "base": (128, 18), "large": (192, 18)}[letter]
    width, third = (96, 30) if name == "swin_s3_base_224" else (width, third)
    windows = searched or (int(name.split("window")[1].split("_")[0].split("to")[-1]),) * 4
    side, second = int(name.split("_")[-1].split("to")[-1]) // 4, name.startswith("swinv2")
    total = 3 * 4 * 4 * width + width + 2 * width  # patch embedding and its norm
    for stage, (depth, window) in enumerate(zip((2, 2, third, 2), windows)):
        heads, reach = width // 32, min(window, side)
        block = 2 * 2 * width  # two norms
        block += 3 * width * width + width * width + width  # q, k, v; the output projection and its bias
        block += 2 * width if second else 3 * width  # biases of q and v, or of q, k and v
        block += heads + 512 * 2 + 512 + 512 * heads if second else (2 * reach - 1) ** 2 * heads
        block += 4 * width * width + 4 * width + 4 * width * width + width  # MLP
        total += depth * block
        if stage < 3:
            total += 4 * width * 2 * width + 2 * (2 * width if second else 4 * width)  # merging and its norm
            width, side = 2 * width, side // 2
    return total + 2 * width + 1000 * width + 1000


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", NAMES)
def test_every_listed_model_is_what_its_name_says(name: str) -> None:
    model = minivit.create_model(name)
    words = name.replace("to", "_").split("_")
    assert type(model) is (SwinV2 if name.startswith("swinv2") else Swin)
    assert sum(param.size for param in model.parameters().values()) == count_by_hand(name)
    assert model.config["img_size"] == int(words[-1]) and model.config["patch_size"] == 4
    window = model.config["window_size"]
    assert f"window{window}" in name or f"to{window}_" in name or window == WINDOWS_OF_S3[name]
    assert model.num_classes == 1000 and model.config["in_chans"] == 3
    if type(model) is SwinV2:
        moved = "to" in name.split("_")[2]
        assert model.config["pretrained_window_sizes"] == ((12, 12, 12, 6) if moved else (0, 0, 0, 0))


def test_there_are_21_published_swins() -> None:
    assert len(NAMES) == 21 and set(PUBLISHED) <= set(NAMES)


# --- names, shapes and order are timm's -----------------------------------------------------------------------------

LINEAR_BLOCK = [
    ("norm2.weight", (4,)),
    ("norm2.bias", (4,)),
    ("mlp.fc1.weight", (8, 4)),
    ("mlp.fc1.bias", (8,)),
    ("mlp.fc2.weight", (4, 8)),
    ("mlp.fc2.bias", (4,)),
]
BLOCK = {
    Swin: [
        ("norm1.weight", (4,)),
        ("norm1.bias", (4,)),
        ("attn.relative_position_bias_table", (9, 1)),
        ("attn.qkv.weight", (12, 4)),
        ("attn.qkv.bias", (12,)),
        ("attn.proj.weight", (4, 4)),
        ("attn.proj.bias", (4,)),
        *LINEAR_BLOCK,
    ],
    SwinV2: [
        ("norm1.weight", (4,)),
        ("norm1.bias", (4,)),
        ("attn.logit_scale", (1, 1, 1)),
        ("attn.cpb_mlp.0.weight", (512, 2)),
        ("attn.cpb_mlp.0.bias", (512,)),
        ("attn.cpb_mlp.2.weight", (1, 512)),
        ("attn.qkv.weight", (12, 4)),
        ("attn.q_bias", (4,)),
        ("attn.v_bias", (4,)),
        ("attn.proj.weight", (4, 4)),
        ("attn.proj.bias", (4,)),
        *LINEAR_BLOCK,
    ],
}


def plain_names(kind: Any) -> Any:
    """Names and shapes of a model with one block of width 4 and one merging to a second stage of one block."""
    first = [(f"layers.0.blocks.0.{name}", shape) for name, shape in BLOCK[kind]]
    wide = {(4,): (8,), (12,): (24,), (8,): (16,), (4, 4): (8, 8), (12, 4): (24, 8), (8, 4): (16, 8), (4, 8): (8, 16)}
    wide |= {(9, 1): (9, 2), (1, 1, 1): (2, 1, 1), (1, 512): (2, 512), (512, 2): (512, 2), (512,): (512,)}  # 2 heads
    norm = 16 if kind is Swin else 8  # before the merging's linear map, or behind
    return [
        ("patch_embed.proj.weight", (4, 2, 2, 2)),
        ("patch_embed.proj.bias", (4,)),
        ("patch_embed.norm.weight", (4,)),
        ("patch_embed.norm.bias", (4,)),
        *first,
        ("layers.1.downsample.norm.weight", (norm,)),
        ("layers.1.downsample.norm.bias", (norm,)),
        ("layers.1.downsample.reduction.weight", (8, 16)),
        *((f"layers.1.blocks.0.{name}", wide[shape]) for name, shape in BLOCK[kind]),
        ("norm.weight", (8,)),
        ("norm.bias", (8,)),
        ("head.fc.weight", (3, 8)),
        ("head.fc.bias", (3,)),
    ]


# option: (changes, what goes, what comes) compared with plain_names
RENAMED: dict[str, Any] = {
    "plain": ({}, [], []),
    "positions": ({"ape": True}, [], ["absolute_pos_embed"]),
    "no patch norm": ({"patch_norm": False}, ["patch_embed.norm.weight", "patch_embed.norm.bias"], []),
    "no head": ({"num_classes": 0}, ["head.fc.weight", "head.fc.bias"], []),
    "no qkv bias": ({"qkv_bias": False}, ["attn.qkv.bias", "attn.q_bias", "attn.v_bias"], []),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", RENAMED)
def test_names_and_shapes(kind: Any, option: str) -> None:
    changes, gone, new = RENAMED[option]
    found = shapes(kind(**{**TINY, "depths": (1, 1), "allow_odd_depths": True, **changes}))
    expected = [item for item in plain_names(kind) if not item[0].endswith(tuple(gone) or "!")]
    assert sorted(found) == sorted([*expected, *((name, (1, 64, 4)) for name in new)])
    blocks = [name for name, _ in found if ".blocks." not in name]  # the order within a block is free
    assert blocks == [*new, *(name for name, _ in expected if ".blocks." not in name)]


def test_a_window_larger_than_the_map_has_the_maps_table() -> None:
    found = dict(shapes(Swin(**{**TINY, "img_size": (16, 12), "window_size": 7})))
    assert found["layers.0.blocks.0.attn.relative_position_bias_table"] == (13 * 11, 1)  # 7 x 6
    assert found["layers.1.blocks.1.attn.relative_position_bias_table"] == (7 * 5, 2)  # 4 x 3


# --- what the parts add up to -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_drop_path_rises_linearly_over_the_blocks_of_all_stages(kind: Any) -> None:
    model = kind(**settings(kind, depths=(2, 4), drop_path_rate=0.5))
    assert np.allclose([block.drop_path for stage in model.layers for block in stage.blocks], np.arange(6) / 10)
    short = kind(**settings(kind, depths=(1,), num_heads=(1,), allow_odd_depths=True, drop_path_rate=0.5))
    assert short.layers[0].blocks[0].drop_path == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_every_second_block_is_shifted_by_half_a_window(kind: Any) -> None:
    model = kind(**settings(kind, depths=(4, 2), window_size=(5, 2), img_size=(24, 16)))
    found = [[(block.attn.window_size, block.attn.shift_size) for block in stage.blocks] for stage in model.layers]
    pair = [((5, 2), (0, 0)), ((5, 2), (2, 1))]
    assert found == [2 * pair, pair]


@pytest.mark.parametrize("kind", KINDS)
def test_no_decay_is_biases_norms_and_position_tables(kind: Any) -> None:
    model = kind(**settings(kind, ape=True))
    decayed = set(model.parameters()) - optim.no_decay(model)
    matrices = ("proj.weight", "qkv.weight", "fc1.weight", "fc2.weight", "reduction.weight", "head.fc.weight")
    assert decayed == {name for name in model.parameters() if name.endswith(matrices)}
    spared = ["absolute_pos_embed", "head.fc.bias", "layers.0.blocks.0.norm1.weight"]
    inside = ("relative_position_bias_table",) if kind is Swin else ("logit_scale", "cpb_mlp.0.weight", "q_bias")
    spared += [f"layers.0.blocks.1.attn.{name}" for name in inside]
    assert set(spared) <= optim.no_decay(model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changes", [{}, {"num_classes": 0}, {"ape": True, "patch_norm": False}])
def test_the_summary_adds_up(kind: Any, changes: Any) -> None:
    model = kind(**settings(kind, **changes))
    table = summary(model, quiet=True)
    assert table.macs == table.published_macs == nn.multiply_adds(model, (1, 2, 16, 16)) > 0
    assert table.parameters == optim.parameter_count(model.parameters())
    names = ["embed", "layers.0.blocks.0", "layers.0.blocks.1", "layers.1.downsample", "layers.1.blocks.0"]
    names += ["layers.1.blocks.1", "norm", "pool"] + ["head.drop", "head.fc"] * ("num_classes" not in changes)
    assert [row.name for row in table.rows] == names
    assert [row.shape for row in table.rows][:6] == 3 * [(1, 8, 8, 4)] + 3 * [(1, 4, 4, 8)]
    assert "papers" not in str(table)
    odd = summary(model, (9, 22), quiet=True)
    assert odd.macs == nn.multiply_adds(model, (1, 2, 9, 22)) and odd.rows[3].shape == (1, 3, 6, 8)


def test_multiply_adds_by_hand() -> None:
    model = Swin(**TINY)
    first = 64 * (4 + 2 * 2) * 16 + 2 * 16 * 4 * 4 * 4  # per token q, k, v, out and MLP; per window 4 x 4 scores twice
    second = 16 * (4 + 2 * 2) * 64 + 2 * 4 * 4 * 4 * 8
    assert nn.multiply_adds(model, (1, 2, 16, 16)) == 64 * 8 * 4 + 2 * first + 16 * 16 * 8 + 2 * second + 8 * 3
    # 17 x 15 pixels are 9 x 8 patches, padded to 10 x 8 for the scores, but not for the MLP
    first = 80 * 4 * 16 + 2 * 20 * 4 * 4 * 4 + 72 * 2 * 2 * 16
    second = 24 * 4 * 64 + 2 * 6 * 4 * 4 * 8 + 20 * 2 * 2 * 64  # 5 x 4, padded to 6 x 4
    assert nn.multiply_adds(model, (1, 2, 17, 15)) == 72 * 8 * 4 + 2 * first + 20 * 16 * 8 + 2 * second + 8 * 3
