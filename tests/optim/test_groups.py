"""Groups of parameters: which decay, how far each layer lies below the head, and which names a pattern means."""

from __future__ import annotations

import re

import pytest

import minivit
from minivit import nn, optim

VIT_LAYERS = [
    r"norm\.|fc_norm\.|pre_logits\.|head",
    r"blocks\.2\.",
    r"blocks\.1\.",
    r"blocks\.0\.",
    r"patch_embed|cls|dist|pos",
]
SWIN_LAYERS = [
    r"norm\.|head\.",
    r"layers\.1\.blocks\.3\.",
    r"layers\.1\.blocks\.2\.",
    r"layers\.1\.blocks\.1\.",
    r"layers\.1\.(blocks\.0|downsample)\.",  # the merging belongs to the block that follows it
    r"layers\.0\.blocks\.1\.",
    r"layers\.0\.blocks\.0\.",
    r"patch_embed\.|absolute_pos_embed",
]
VIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 3, "num_heads": 2}
SWIN = {"img_size": 16, "in_chans": 1, "num_classes": 3, "embed_dim": 4, "depths": (2, 4), "num_heads": (1, 2)}
LAYERED = {
    "vit": (lambda: minivit.ViT(**VIT), VIT_LAYERS),
    "average": (lambda: minivit.ViT(**VIT, global_pool="avg"), VIT_LAYERS),
    "distilled": (lambda: minivit.ViT(**VIT, distilled=True, patch_norm=True), VIT_LAYERS),
    "pre_logits": (lambda: minivit.ViT(**VIT, representation_size=5), VIT_LAYERS),
    "no head": (lambda: minivit.ViT(**{**VIT, "num_classes": 0}), VIT_LAYERS),
    "swin": (lambda: minivit.Swin(**SWIN, window_size=2, ape=True), SWIN_LAYERS),
    "swin v2": (lambda: minivit.SwinV2(**SWIN, window_size=2), SWIN_LAYERS),
}


def recomputed(model):
    model.blocks = [nn.Recompute(block) for block in model.blocks]
    return model


LAYERED["recompute"] = (lambda: recomputed(minivit.ViT(**VIT)), VIT_LAYERS)


@pytest.mark.parametrize("case", LAYERED)
def test_layer_decay_counts_the_layers_above(case):
    build, patterns = LAYERED[case]
    names = list(build().parameters())
    factors = optim.layer_decay(build(), 0.5)
    assert list(factors) == names
    for name in names:
        (above,) = [place for place, pattern in enumerate(patterns) if re.match(pattern, name)]
        assert factors[name] == 0.5**above, name
    assert min(factors.values()) == 0.5 ** (len(patterns) - 1)
    assert set(optim.layer_decay(build(), 1).values()) == {1}
    optim.AdamW(build().parameters(), lr_scale=factors)


def test_layer_decay_of_the_last_stage_of_one_block_each():
    model = minivit.Swin(**{**SWIN, "depths": (1, 1)}, window_size=2, allow_odd_depths=True)
    factors = optim.layer_decay(model, 0.5)
    assert factors["layers.1.downsample.reduction.weight"] == factors["layers.1.blocks.0.mlp.fc1.weight"] == 0.5
    assert factors["layers.0.blocks.0.mlp.fc1.weight"] == 0.25 and factors["patch_embed.proj.weight"] == 0.125


def test_matching():
    names = minivit.ViT(**VIT).parameters()
    assert optim.matching(names, []) == set()
    assert optim.matching(names, ["*"]) == set(names)
    assert optim.matching(names, ["head.*", "*.qkv.bias"]) == {
        *("head.weight", "head.bias"),
        *(f"blocks.{block}.attn.qkv.bias" for block in range(3)),
    }
    low = optim.matching(names, ["blocks.[0-1].*"])
    assert low == {name for name in names if name.startswith(("blocks.0.", "blocks.1."))}


@pytest.mark.parametrize(
    "pattern, near",
    [
        ("block.0.*", "'blocks.0.*'"),
        ("patch_embd.*", "'patch_embed.*'"),
        ("Head.weight", "'head.weight'"),
        ("zzz", "begin with blocks, cls_token, head"),
        ("", "begin with blocks"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern, near):
    with pytest.raises(ValueError, match=f"no parameter matches {pattern!r}".replace("*", ".")) as error:
        optim.matching(minivit.ViT(**VIT).parameters(), ["head.*", pattern])
    assert near in str(error.value)


def test_no_decay_rules():
    options = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 1}
    model = minivit.ViT(**options, num_heads=2, distilled=True, patch_norm=True)
    weights = {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
        "head_dist.weight",
    }
    assert set(model.parameters()) - optim.no_decay(model) == weights
    for kind in ("learned_2d", "relative"):
        model = minivit.ViT(**options, num_heads=2, pos_embed=kind)
        decayed = set(model.parameters()) - optim.no_decay(model)
        assert decayed == {name for name in weights if "dist" not in name}


@pytest.mark.parametrize("rate", [0.0, -0.5, 1.1, float("nan")])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(ValueError, match=rf"rate={rate} must lie in \(0, 1\]"):
        optim.layer_decay(minivit.ViT(**VIT), rate)


def test_a_model_without_blocks_has_no_layers_to_count():
    with pytest.raises(ValueError, match="Sequential has no blocks"):
        optim.layer_decay(nn.Sequential(nn.Linear(2, 3)), 0.5)


def test_parameter_count():
    assert optim.parameter_count(nn.Linear(3, 2).parameters()) == 3 * 2 + 2
