"""Writes docs/model_list.md: every published name by family, with its parameters, multiply-adds, images and weights.
`python docs/write_model_list.py`; the tests compare the page.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import minivit
from minivit import nn, optim
from minivit.pretrained.hub import repository_of
from minivit.pretrained.tags import DEFAULT_TAGS
from minivit.random import UNSET
from minivit.sizes import pair

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "model_list.md"

# family -> patterns of its names; the first family that fits has the name
FAMILIES = {
    "Swin v2": ("swinv2_*",),
    "Swin": ("swin_*",),
    "DINOv3": ("*_dinov3*",),
    "DINOv2": ("*_dinov2",),
    "TIPSv2": ("*_tipsv2",),
    "RADIO and InternViT": ("*_radio_*", "vit_intern*"),
    "SigLIP": ("*_siglip_*",),
    "CLIP": ("*_clip_*",),
    "AIMv2": ("aimv2_*",),
    "BEiT-3": ("beit3_*",),
    "BEiT": ("beit_*", "beitv2_*"),
    "EVA": ("eva_*",),
    "DeiT III": ("deit3_*",),
    "DeiT": ("deit_*",),
    "FlexiViT": ("flexivit_*",),
    "Hybrids": ("vit_*_r_*", "vit_*_r26_*", "vit_*_r50_*"),
    "Parallel branches": ("*_18x2_*", "*_36x1_*", "*_xp_*", "vit_pwee_*", "vit_dpwee_*"),
    "Differential attention": ("vit_dlittle_*", "vit_dwee_*"),
    "Registers, without a class token": ("*_reg1_*", "*_reg4_*"),
    "For tests": ("test_*",),
    "ViT": ("vit_*",),
}
INTRODUCTION = """\
# All models

The {count} names of `minivit.list_models()`, by family. [Families after ViT](families.md) says what each family
changes, and [published weights](published_weights.md) how to read other files of the same architectures.

Parameters are those of a model with 1,000 classes, as `minivit.create_model(name)` builds it; published weights may
have another head, or none. Multiply-adds (G: $10^9$) are those of one image of the size in the table, with every token
counted in every block, as papers do. `minivit.from_pretrained(name)` fetches the weights in the last column; most
names have further ones, with other tags.

This page is written by `python docs/write_model_list.py`.
"""
HEAD = """\
| name | parameters | multiply-adds | image | weights |
|---|--:|--:|--:|---|
"""
ORDER = ("ViT", "DeiT", "Hybrids", "Swin", "Swin v2")  # the first networks; then those after ViT, as above


def family_of(name: str) -> str:
    """The family of a published name."""
    return next(family for family, patterns in FAMILIES.items() if any(fnmatch(name, each) for each in patterns))


def counts(name: str) -> tuple[int, int, Any]:
    """Parameters, multiply-adds of one image, and the size of the images; no weight is drawn."""
    model = minivit.create_model(name, seed=UNSET)
    size = model.config["img_size"]
    macs = nn.multiply_adds(model, (1, model.config["in_chans"], *pair(size)))
    return optim.parameter_count(model.parameters()), macs, size


def line_of(name: str) -> str:
    """The row of a name."""
    parameters, macs, size = counts(name)
    repository = repository_of(name)[0] if name in DEFAULT_TAGS else None
    weights = f"[`{repository}`](https://huggingface.co/{repository})" if repository else "none"
    return f"| `{name}` | {parameters:,} | {macs / 1e9:.2f} G | {size} | {weights} |\n"


def page() -> str:
    """The page's text."""
    names = minivit.list_models()
    text = INTRODUCTION.format(count=len(names))
    for family in sorted(FAMILIES, key=lambda each: ORDER.index(each) if each in ORDER else len(ORDER)):
        text += f"\n## {family}\n\n{HEAD}" + "".join(line_of(name) for name in names if family_of(name) == family)
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(DOCS.parent)}: {len(minivit.list_models())} models")
