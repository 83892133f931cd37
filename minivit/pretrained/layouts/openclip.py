"""The names of OpenAI's CLIP and of OpenCLIP: the image tower `visual`, beside a text tower or alone.

OpenCLIP has its own tower, with OpenAI's names, or one of timm's models (`visual.trunk`). No array shows whether a
tower has QuickGELU, as OpenAI's weights need, or GELU, as LAION's; `open_clip.py` reads it from the configuration.
"""

from __future__ import annotations

import re

from minivit.pretrained.layouts.layout import IGNORED, MASK_TOKEN, Layout, with_bias, without_bias
from minivit.pretrained.layouts.microsoft import TIMM
from minivit.pretrained.renaming import ROWS, TOKEN, TRANSPOSED, Rule
from minivit.protocol import Array

_BLOCK, _THEIR_BLOCK = "blocks.{i}", "transformer.resblocks.{i}"
_TOWER = (
    Rule("cls_token", "class_embedding", TOKEN),
    Rule("pos_embed", "positional_embedding", ROWS),
    Rule("patch_embed.proj.weight", "conv1.weight"),
    Rule("norm_pre.{p}", "ln_pre.{p}"),
    Rule(f"{_BLOCK}.norm1.{{p}}", f"{_THEIR_BLOCK}.ln_1.{{p}}"),
    Rule(f"{_BLOCK}.norm2.{{p}}", f"{_THEIR_BLOCK}.ln_2.{{p}}"),
    Rule(f"{_BLOCK}.attn.qkv.{{p}}", f"{_THEIR_BLOCK}.attn.in_proj_{{p}}"),
    Rule(f"{_BLOCK}.attn.proj.{{p}}", f"{_THEIR_BLOCK}.attn.out_proj.{{p}}"),
    Rule(f"{_BLOCK}.mlp.fc1.{{p}}", f"{_THEIR_BLOCK}.mlp.c_fc.{{p}}"),
    Rule(f"{_BLOCK}.mlp.fc2.{{p}}", f"{_THEIR_BLOCK}.mlp.c_proj.{{p}}"),
    *(Rule(f"{_BLOCK}.ls{n}.gamma", f"{_THEIR_BLOCK}.ls_{n}.gamma") for n in (1, 2)),
    Rule("norm.{p}", "ln_post.{p}"),
    Rule("head.weight", "proj", TRANSPOSED),
    Rule("head.bias", "proj.bias"),
)
# the text tower, also within `text`; the scale and the bias of the similarities; what OpenAI's archives add
_TEXT = (
    r"(text|text_decoder|transformer|token_embedding|ln_final|text_projection)\..*|positional_embedding|text_projection"
    r"|logit_scale|logit_bias|attn_mask|input_resolution|context_length|vocab_size"
)


def _with_head(arrays: dict[str, Array]) -> dict[str, Array]:
    """The projection beside a trunk, which has a bias or none, as the trunk's head."""
    inside = re.compile(r"visual\.head\.proj\.(weight|bias)")
    arrays = with_bias(arrays, "visual.head.proj")
    return {inside.sub(r"head.\1", name): array for name, array in arrays.items()}


OPENCLIP = [
    Layout(
        "openclip",
        "ViT",
        (r"class_embedding", r"conv1\.weight", r"ln_pre\.weight", r"transformer\.resblocks\.0\.attn\.in_proj_weight"),
        _TOWER,
        IGNORED,
        ("visual.", ""),
        family="CLIP",
        settings={"norm_eps": 1e-5, "no_embed_class": False, "global_pool": "token"},
        prepare=lambda arrays: with_bias(arrays, "proj", axis=-1),
        finish=lambda arrays: without_bias(arrays, "proj"),
        beyond=_TEXT,
    ),
    *(
        Layout(
            "openclip",
            "ViT",
            (*TIMM[1].signs, *signs),
            ignored=IGNORED,
            prefixes=("visual.trunk.",),
            absent=absent,
            prepare=_with_head,
            family=family,
            omitted=MASK_TOKEN,
            beyond=_TEXT,
            written=False,
        )
        for signs, absent, family in (
            ((r"attn_pool\.latent",), "cls_token", "SigLIP"),
            ((r"norm_pre\.weight",), "", "CLIP"),
            ((), "", ""),
        )
    ),
]
