"""A model is exported only to a project whose model computes the same: what it has otherwise is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn

from minivit import Swin, SwinV2, ViT, export, from_pretrained
from minivit.pretrained.expressible import _TAKEN, _differing
from minivit.pretrained.layouts import LAYOUTS

VIT: dict[str, Any] = {"img_size": 8, "patch_size": 4, "num_classes": 5, "embed_dim": 8, "depth": 2, "num_heads": 2}
SWIN: dict[str, Any] = {"img_size": 32, "patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2, 2)}
SWIN |= {"num_heads": (1, 2), "window_size": 4}
CLIP: dict[str, Any] = {**VIT, "num_classes": 0, "pre_norm": True, "norm_eps": 1e-5}
SIGLIP: dict[str, Any] = {**VIT, "num_classes": 0, "class_token": False, "global_pool": "map", "gelu": "tanh"}
DINO: dict[str, Any] = {**VIT, "num_classes": 0, "init_values": 1e-5}
BEIT: dict[str, Any] = {**VIT, "init_values": 0.1, "pos_embed": "relative", "qkv_bias": "qv", "global_pool": "avg"}
GAP: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False}
MEAN: dict[str, Any] = {"global_pool": "avg", "fc_norm": False}

REFUSED: list[tuple[str, Any, dict[str, Any], str]] = [
    ("torchvision", ViT, {**VIT, **MEAN}, "ViT has global_pool='token', and this model 'avg': export it as 'timm'"),
    ("huggingface", ViT, {**VIT, **MEAN}, "ViT has global_pool='token', and this model 'avg': export it as 'timm'"),
    ("google", ViT, {**VIT, **MEAN, "gelu": "tanh"}, "ViT has global_pool='token', and this model 'avg'"),
    ("wzmiaomiao", ViT, {**VIT, **MEAN}, "ViT has global_pool='token', and this model 'avg'"),
    ("openclip", ViT, {**CLIP, **MEAN}, "CLIP has global_pool='token', and this model 'avg'"),
    ("torchvision", ViT, {**VIT, "post_norm": True}, "ViT has post_norm=False, and this model True: export it as"),
    ("huggingface", ViT, {**VIT, "post_norm": True}, "ViT has post_norm=False, and this model True"),
    ("google", ViT, {**VIT, "post_norm": True, "gelu": "tanh"}, "ViT has post_norm=False, and this model True"),
    ("wzmiaomiao", ViT, {**VIT, "post_norm": True}, "ViT has post_norm=False, and this model True"),
    ("torchvision", ViT, {**VIT, "gelu": "quick"}, "ViT has gelu='none', and this model 'quick'"),
    ("torchvision", ViT, {**VIT, "gelu": "tanh"}, "ViT has gelu='none', and this model 'tanh'"),
    ("google", ViT, VIT, "ViT has gelu='tanh', and this model 'none'"),
    ("google", ViT, {**VIT, "gelu": "tanh", "norm_eps": 1e-5}, "ViT has norm_eps=1e-06, and this model 1e-05"),
    ("torchvision", ViT, {**VIT, "qkv_bias": False}, "ViT has qkv_bias=True, and this model False"),
    ("torchvision", ViT, {**VIT, "proj_bias": False}, "ViT has proj_bias=True, and this model False"),
    ("torchvision", ViT, {**VIT, **GAP}, "ViT has class_token=True and global_pool='token', and this model False and"),
    ("huggingface", ViT, {**VIT, **GAP}, "ViT has class_token=True and global_pool='token', and this model False and"),
    ("torchvision", ViT, {**VIT, "mlp_layer": "swiglu_packed"}, "ViT has mlp_layer='mlp', and this model 'swiglu_pack"),
    ("huggingface", ViT, {**VIT, "norm_layer": "rmsnorm"}, "ViT has norm_layer='layernorm', and this model 'rmsnorm'"),
    ("huggingface", ViT, {**VIT, "final_norm": False}, "ViT has final_norm=True, and this model False"),
    ("torchvision", ViT, {**VIT, "final_norm": False}, "ViT has final_norm=True, and this model False"),
    ("wzmiaomiao", ViT, {**VIT, "reg_tokens": 2}, "ViT has reg_tokens=0, and this model 2"),
    ("wzmiaomiao", ViT, {**VIT, "init_values": 0.1}, "ViT has init_values=None, and this model 0.1"),
    ("huggingface", ViT, {**VIT, "depth": 0, "post_norm": True}, "ViT has post_norm=False, and this model True"),
    ("huggingface", ViT, {**CLIP, "qkv_bias": False}, "CLIP has qkv_bias=True, and this model False"),
    ("huggingface", ViT, {**SIGLIP, "proj_bias": False}, "SigLIP has proj_bias=True, and this model False"),
    ("huggingface", ViT, {**DINO, "norm_layer": "rmsnorm"}, "DINOv2 has norm_layer='layernorm', and this model 'rmsno"),
    ("huggingface", ViT, {**BEIT, "post_norm": True, "init_values": None}, "BEiT has post_norm=False, and this model"),
    (
        "torchvision",
        ViT,
        {**VIT, "img_size": 10, "partial_patches": "pad"},
        "ViT has partial_patches='refuse', and this",
    ),
    ("huggingface", ViT, {**VIT, "img_size": 10, "partial_patches": "pad"}, "ViT has partial_patches='drop', and"),
    ("timm", ViT, {**VIT, "patch_norm": True}, "ViT has patch_norm=False, and this model True: keep it with minivit"),
    (
        "torchvision",
        Swin,
        {**SWIN, "window_size": 8, "covered": "shift"},
        "Swin has covered='stay', and this model 'sh",
    ),
    ("microsoft", Swin, {**SWIN, "window_size": 8, "covered": "shift"}, "Swin has covered='shrink_both', and"),
    ("wzmiaomiao", Swin, {**SWIN, "window_size": 8}, "Swin has covered='shift', and this model 'shrink': export it"),
    ("wzmiaomiao", Swin, {**SWIN, "window_size": 16}, "Swin has covered='shift', and this model 'shrink'"),
    ("timm", Swin, {**SWIN, "window_size": 8, "img_size": 24, "covered": "stay"}, "Swin has covered='shrink'.*'stay'"),
    *(
        (layout, Swin, {**SWIN, "window_size": 3, "pad_first": False}, "Swin has pad_first=True, and this model False")
        for layout in ("torchvision", "huggingface", "microsoft", "wzmiaomiao")
    ),
    ("timm", Swin, {**SWIN, "window_size": 3}, "Swin has pad_first=False, and this model True: keep it with minivit."),
    (
        "torchvision",
        SwinV2,
        {**SWIN, "window_size": 3, "mask_padding": True},
        "SwinV2 has mask_padding=False, and this",
    ),
    ("torchvision", Swin, {**SWIN, "img_size": 33}, "Swin has .*partial_patches='drop', and this model .*'pad'"),
    (
        "huggingface",
        Swin,
        {**SWIN, "img_size": 33, "partial_patches": "drop"},
        "Swin has partial_patches='pad', and thi",
    ),
    ("torchvision", Swin, {**SWIN, "gelu": "tanh"}, "Swin has gelu='none', and this model 'tanh'"),
    ("timm", Swin, {**SWIN, "gelu": "tanh"}, "Swin has gelu='none', and this model 'tanh': keep it with minivit.save"),
    ("torchvision", Swin, {**SWIN, "qkv_bias": False}, "Swin has qkv_bias=True, and this model False"),
    (
        "huggingface",
        Swin,
        {**SWIN, "norm_eps": 1e-3},
        "Swin has norm_eps=1e-05, and this model 0.001: export it as 'tim",
    ),
    ("huggingface", Swin, {**SWIN, "patch_norm": False}, "Swin has patch_norm=True, and this model False"),
    ("timm", Swin, {**SWIN, "ape": True}, "Swin has ape=False, and this model True: keep it with minivit.save"),
]


@pytest.mark.parametrize(("layout", "kind", "arguments", "message"), REFUSED)
def test_what_the_project_computes_otherwise_is_refused_by_name(
    tmp_path: Path, layout: str, kind: Any, arguments: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{layout}'s {message}"):
        export(kind(**arguments), tmp_path / ("x.npz" if layout == "google" else "x.safetensors"), layout)
    assert not list(tmp_path.iterdir())


# what is exported, and what must then be said of it, because the project's code takes it
HELD: list[tuple[str, Any, dict[str, Any], set[str]]] = [
    ("timm", ViT, {**VIT, **MEAN, "post_norm": True, "gelu": "quick"}, {"global_pool", "fc_norm", "post_norm", "gelu"}),
    ("timm", Swin, {**SWIN, "window_size": 8, "covered": "shift", "pad_first": True}, {"covered"}),
    ("torchvision", ViT, {**VIT, "norm_eps": 1e-3}, {"norm_eps"}),
    ("huggingface", ViT, {**VIT, "norm_eps": 1e-3, "gelu": "quick"}, {"norm_eps", "gelu"}),
    ("google", ViT, {**VIT, **GAP, "gelu": "tanh"}, set()),
    ("google", ViT, {**VIT, "gelu": "tanh", "reg_tokens": 0}, set()),
    ("huggingface", ViT, {**VIT, "pool_include_prefix": True, "rotary_periods": "bfloat16"}, {"norm_eps"}),
    ("torchvision", Swin, {**SWIN, "pad_first": False, "covered": "shrink_both", "partial_patches": "drop"}, set()),
    ("torchvision", SwinV2, {**SWIN, "pretrained_window_sizes": (2, 2)}, set()),
    ("microsoft", Swin, {**SWIN, "window_size": 8, "pad_first": False}, set()),
    ("wzmiaomiao", Swin, {**SWIN, "window_size": 8, "covered": "shift"}, set()),
    ("huggingface", Swin, {**SWIN, "window_size": 3}, set()),
]


@pytest.mark.parametrize(("layout", "kind", "arguments", "said"), HELD)
def test_what_the_project_computes_too_is_exported(
    tmp_path: Path, layout: str, kind: Any, arguments: Any, said: set[str]
) -> None:
    model, path = drawn(kind, **arguments), tmp_path / ("x.npz" if layout == "google" else "x.safetensors")
    export(model, path, layout)
    more = {name: model.config[name] for name in said | ({"num_heads"} if kind is ViT else set())}
    found = from_pretrained(path, img_size=arguments["img_size"], dtype="float64", **more)
    side = arguments["img_size"]
    x = np.random.default_rng(5).standard_normal((2, 3, side, side))
    assert np.allclose(found.predict(x), model.predict(x), rtol=0, atol=1e-12)


def test_every_layout_that_is_written_says_what_its_code_takes() -> None:
    written = {(layout.source, layout.model, layout.family) for layout in LAYOUTS if layout.written}
    assert set(_TAKEN) == written
    for layout in LAYOUTS:
        if layout.written and layout.source == "timm":
            kind, arguments = {"ViT": (ViT, VIT), "Swin": (Swin, SWIN), "SwinV2": (SwinV2, SWIN)}[layout.model]
            assert _differing(kind(**arguments).config, layout, {}) == {}
