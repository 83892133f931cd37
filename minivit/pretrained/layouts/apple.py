"""The names of apple's AIMv2: RMSNorm, a gated MLP in three matrices, and no class token."""

from __future__ import annotations

from minivit.pretrained.layouts.layout import IGNORED, Layout
from minivit.pretrained.renaming import Rule

_BLOCK, _THEIR_BLOCK = "blocks.{i}", "trunk.blocks.{i}"
APPLE = [
    Layout(
        "apple",
        "ViT",
        (r"preprocessor\.patchifier\.proj\.weight", r"trunk\.blocks\.0\.attn\.qkv\.weight"),
        (
            Rule("patch_embed.{part}.{p}", "preprocessor.patchifier.{part}.{p}"),
            Rule("pos_embed", "preprocessor.pos_embed"),
            *(Rule(f"{_BLOCK}.norm{n}.{{p}}", f"{_THEIR_BLOCK}.norm_{n}.{{p}}") for n in (1, 2)),
            *(Rule(f"{_BLOCK}.attn.{each}.{{p}}", f"{_THEIR_BLOCK}.attn.{each}.{{p}}") for each in ("qkv", "proj")),
            Rule(f"{_BLOCK}.mlp.fc1_g.{{p}}", f"{_THEIR_BLOCK}.mlp.fc1.{{p}}"),
            Rule(f"{_BLOCK}.mlp.fc1_x.{{p}}", f"{_THEIR_BLOCK}.mlp.fc3.{{p}}"),
            Rule(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_THEIR_BLOCK}.mlp.fc2.{{p}}"),
            Rule("norm.{p}", "trunk.post_trunk_norm.{p}"),
        ),
        IGNORED,
        family="AIMv2",
        settings={"norm_eps": 1e-5, "norm_layer": "rmsnorm"},
        written=False,
    )
]
