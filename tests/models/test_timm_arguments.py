"""timm's arguments in `create_model`: what means the same is taken, the rest is refused with what to do instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minivit
from minivit.models.timm_arguments import in_our_words

VIT: dict[str, Any] = {"img_size": 8, "patch_size": 4, "num_classes": 3, "embed_dim": 8, "depth": 1, "num_heads": 2}
SWIN: dict[str, Any] = {"img_size": 16, "num_classes": 3, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2)}
SWIN |= {"window_size": 2}


def vit(**changes: Any) -> Any:
    return minivit.create_model("vit_tiny_patch16_224", **VIT | changes)


def swin(name: str = "swin_tiny_patch4_window7_224", **changes: Any) -> Any:
    return minivit.create_model(name, **SWIN | changes)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"pos_embed": "learn"}, {"pos_embed": "learned_1d"}),
        ({"pos_embed": ""}, {"pos_embed": "none"}),
        ({"weight_init": ""}, {"weight_init": "timm"}),
        ({"weight_init": "skip"}, {"weight_init": "timm"}),
        ({"act_layer": "gelu"}, {"gelu": "none"}),
        ({"act_layer": "gelu_tanh"}, {"gelu": "tanh"}),
        ({"act_layer": None, "norm_layer": None}, {}),
        ({"norm_layer": "layernorm"}, {}),
        ({"dynamic_img_pad": True}, {"partial_patches": "pad"}),
        ({"dynamic_img_pad": False}, {}),
        ({"qk_norm": False, "init_values": None, "reg_tokens": 0, "final_norm": True, "pre_norm": False}, {}),
    ],
)
def test_what_means_the_same_in_a_vit_is_taken(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert vit(**theirs).config == vit(**ours).config


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"always_partition": True}, {"covered": "shift"}),
        ({"always_partition": False}, {}),
        ({"strict_img_size": True}, {}),
        ({"strict_img_size": True, "dynamic_img_size": False}, {}),
        ({"weight_init": "", "head_dim": None, "norm_layer": None}, {}),
        ({"weight_init": "skip", "norm_layer": "layernorm"}, {}),
        ({"head_dim": 8}, {}),
        ({"window_size": [2, 2]}, {"window_size": (2, 2)}),
        ({"depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": (2, 2, 2)},
         {"depths": (2, 2, 2), "num_heads": (1, 2, 4)}),
        ({"window_size": [[2, 4], 2]}, {"window_size": ((2, 4), (2, 2))}),
    ],
)  # fmt: skip
def test_what_means_the_same_in_a_swin_is_taken(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert swin(**theirs).config == swin(**ours).config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": ""}, r"global_pool='': minivit's models pool; .*model.body.*choose 'token' or 'avg' or 'map'"),
        ({"global_pool": "max"}, "no maximum over positions; choose 'token' or 'avg'"),
        ({"global_pool": "avgmax"}, "no maximum over positions; choose 'token' or 'avg'"),
        ({"global_pool": "prr"}, "attention pooling is global_pool='map'; choose 'token' or 'avg' or 'map'"),
        ({"act_layer": "silu"}, "act_layer='silu': minivit has act_layer='gelu', 'gelu_tanh' and 'quick_gelu'"),
        ({"act_layer": ["gelu"]}, "act_layer=.*minivit has"),
        ({"norm_layer": "batchnorm"}, "norm_layer='batchnorm': choose 'layernorm' or 'rmsnorm'"),
        ({"block_fn": "res_post"}, "block_fn='res_post': choose 'block' or"),
        ({"reg_tokens": -1}, "reg_tokens=-1 must be an integer of at least 0"),
        ({"reg_tokens": 1, "distilled": True}, "distilled=True has no register tokens"),
        ({"init_values": 0.0}, "init_values=0.0 must be positive, or None"),
        ({"qkv_bias": "q"}, "qkv_bias='q': choose True or False, or in other blocks 'qv'"),
        ({"qkv_bias": "qv", "block_fn": "parallel_scaling"}, "qkv_bias='qv': choose True or False"),
        ({"post_norm": True, "init_values": 0.1}, "post_norm=True is for plain blocks"),
        ({"global_pool": "map", "mlp_layer": "swiglu"}, "attention pooling has a plain MLP"),
        ({"block_fn": "parallel_scaling", "mlp_layer": "swiglu"}, "has attention and MLP in one: leave"),
        ({"attn_layer": "diff", "pos_embed": "relative"}, "differential attention has no relative positions"),
        ({"embed_norm_layer": "layernorm"}, "use patch_norm=True"),
        ({"weight_init": "moco"}, "weight_init='moco': choose one of"),
        ({"dynamic_img_pad": "yes"}, "dynamic_img_pad='yes' must be True or False"),
        ({"act_layer": "gelu_tanh", "gelu": "none"}, "gelu='none' .*'tanh' was given too"),
    ],
)
def test_what_a_vit_has_not_is_refused_with_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "max"}, "no maximum over positions; choose 'avg'"),
        ({"global_pool": "token"}, "global_pool='token': choose 'avg'"),
        ({"head_dim": 4}, "head_dim=4: minivit's heads share the channels of their stage: give num_heads="),
        ({"weight_init": "jax"}, "weight_init='jax': minivit's Swin starts as timm's does"),
        ({"norm_layer": "rmsnorm"}, "norm_layer='rmsnorm'"),
        ({"reg_tokens": 4}, "reg_tokens=4: .*choose a model without it"),
        ({"global_pool": "map"}, "no attention pooling; choose 'avg'"),
        ({"window_size": (7, 7, 14, 7)}, r"window_size=\(7, 7, 14, 7\) must be one .*each of the 2 stages"),
        ({"strict_img_size": 224}, "strict_img_size=224 must be True or False"),
        ({"strict_img_size": False}, "strict_img_size=False: .*plans windows and shifts for each.*: leave it out"),
        ({"dynamic_img_size": True}, "dynamic_img_size=True: .*: leave it out"),
    ],
)
def test_what_a_swin_has_not_is_refused_with_the_remedy(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        swin(**options)


def test_what_only_a_vit_has_a_swin_takes_where_it_is_off() -> None:
    off: dict[str, Any] = {
        "qk_norm": False, "scale_attn_norm": False, "scale_mlp_norm": False, "no_embed_class": False, "pre_norm": False,
        "init_values": None, "block_fn": None, "mlp_layer": None, "attn_layer": None, "proj_bias": True,
        "final_norm": True, "pool_include_prefix": False, "reg_tokens": 0,
    }  # fmt: skip
    assert in_our_words("Swin", off) == {}
    for name, value in {**dict.fromkeys(off, True), "proj_bias": False, "final_norm": False}.items():
        with pytest.raises(ValueError, match=name):
            in_our_words("Swin", {name: value})


def test_odd_depths_are_built_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"depths=\(1, 2\).*allow_odd_depths=True"):
        model = swin(depths=(1, 2))
    assert model.config["depths"] == (1, 2)
    with pytest.warns(UserWarning, match="depths") as warned:
        minivit.Swin(img_size=8, patch_size=2, embed_dim=4, depths=(1,), num_heads=(1,), window_size=2)
    assert warned[0].filename == __file__, "it names the line that built the model"


def test_a_vit_without_blocks_reads_its_embedding() -> None:
    model = vit(depth=0)
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    logits, back = model(x)
    assert logits.shape == (2, 3) and np.array_equal(model.predict(x), logits)
    assert back(np.ones_like(logits)).shape == x.shape


def test_arguments_of_neither_library_stay_for_the_class_to_refuse() -> None:
    assert in_our_words("ViT", {"bogus": 1, "embed_dim": 8}) == {"bogus": 1, "embed_dim": 8}


def test_a_dtype_is_saved_by_its_name() -> None:
    assert vit(dtype=np.float64).config["dtype"] == swin(dtype=np.float64).config["dtype"] == "float64"
