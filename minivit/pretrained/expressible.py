"""What the models of another project can compute: settings that its arrays show, its code takes, or it has always.

`export` compares a model with it, so that a file is written only for a project whose model computes the same from it.
"""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

from minivit.models import MODELS
from minivit.models.options import patch_grid, prefix_tokens, stage_grids, window_of_each
from minivit.models.vit_options import ViTOptions
from minivit.nn import Layer, ShiftedWindows
from minivit.pretrained.layouts import Layout
from minivit.pretrained.profiles import PROFILES
from minivit.protocol import Array
from minivit.sizes import pair

Arguments = dict[str, Any]

# sizes, which the arrays show or every project's constructor takes
SIZES = {"img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "depths", "num_heads", "mlp_ratio"}
SIZES |= {"window_size", "pretrained_window_sizes", "cpb_hidden"}
# of training and of speed; whether other sizes of images are taken; and the value of a mask, -100 or less, behind
# which a softmax leaves nothing
ANYWHERE = {"drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init", "dtype"}
ANYWHERE |= {"skip_unused_tokens", "allow_odd_depths", "dynamic_img_size", "mask_value"}
ANYWHERE |= {"no_embed_class"}  # an export adds the rows that are missing, or moves those that are too many
# (source, class, family) -> the further settings that a project's arrays show, or that its code takes as arguments
_TAKEN: dict[tuple[str, str, str], set[str]] = {
    ("timm", "ViT", ""): {each.name for each in fields(ViTOptions)} - {"resnet_eps", "rotary_periods", "patch_norm"},
    ("timm", "Swin", ""): {"qkv_bias", "norm_eps"},
    ("timm", "SwinV2", ""): {"qkv_bias", "norm_eps", "gelu"},
    ("wzmiaomiao", "ViT", ""): {"qkv_bias", "norm_eps", "gelu", "representation_size", "distilled"},
    ("wzmiaomiao", "Swin", ""): {"qkv_bias", "norm_eps", "patch_norm"},
    ("torchvision", "ViT", ""): {"norm_eps", "representation_size"},
    ("torchvision", "Swin", ""): {"norm_eps"},
    ("torchvision", "SwinV2", ""): {"norm_eps"},
    ("microsoft", "Swin", ""): {"qkv_bias", "norm_eps", "ape", "patch_norm"},
    ("microsoft", "SwinV2", ""): {"qkv_bias", "norm_eps", "ape", "patch_norm"},
    ("google", "ViT", ""): {"representation_size", "class_token", "resnet_layers", "resnet_width", "resnet_groups"},
    ("openclip", "ViT", "CLIP"): {"gelu", "norm_eps", "init_values"},
    ("huggingface", "Swin", ""): {"qkv_bias", "gelu", "ape"},  # its epsilon is not that of all norms
    ("huggingface", "SwinV2", ""): {"qkv_bias", "gelu", "ape"},
    ("huggingface", "ViT", ""): {"qkv_bias", "gelu", "norm_eps", "distilled"},
    ("huggingface", "ViT", "CLIP"): {"gelu", "norm_eps"},
    ("huggingface", "ViT", "SigLIP"): {"gelu", "norm_eps"},
    ("huggingface", "ViT", "DINOv2"): {"qkv_bias", "gelu", "norm_eps", "init_values", "reg_tokens"},
    ("huggingface", "ViT", "DINOv3"): {
        *("qkv_bias", "gelu", "norm_eps", "init_values", "reg_tokens", "proj_bias", "mlp_layer")
    },
    ("huggingface", "ViT", "BEiT"): {"gelu", "norm_eps", "init_values"},
}
# what a family has always, beside the settings of its layout
_ALWAYS: dict[str, Arguments] = {
    "CLIP": {"pre_norm": True},
    "SigLIP": {"class_token": False, "global_pool": "map"},
    "BEiT": {"qkv_bias": "qv"},
}


def check_expressible(config: Arguments, layout: Layout, arrays: dict[str, Array]) -> None:
    """Refuse a model that computes, for images of its `img_size`, what no model of the layout's project computes.

    Args:
        config: the model's.
        layout: of the project.
        arrays: under the project's names.

    Raises:
        ValueError: naming the settings, and what the project has instead.
    """
    if layout.square and len(set(patch_grid(config))) > 1:
        raise ValueError(
            f"img_size={config['img_size']} makes a grid of {'x'.join(map(str, patch_grid(config)))} patches, and "
            f"{layout.square}: export it as 'timm', or keep it with minivit.save"
        )
    differ = _differing(config, layout, arrays)
    if not differ:
        return
    theirs = " and ".join(f"{name}={value!r}" for name, value in differ.items())
    ours = " and ".join(repr(config[name]) for name in differ)
    elsewhere = layout.source == "timm" or _differing(config, _TIMM[layout.model], {})
    remedy = "keep it with minivit.save" if elsewhere else "export it as 'timm'"
    raise ValueError(
        f"{layout.source}'s {layout.family or layout.model} has {theirs}, and this model {ours}: {remedy}, or build "
        f"it with that {' and '.join(differ)}"
    )


def unsaid(config: Arguments, read: Arguments) -> Arguments:
    """The settings of a model with an effect on its logits, for images of any size, that another has otherwise."""
    unseen = _idle_in_vit(config) if "depth" in config else set()
    return {name: value for name, value in config.items() if read[name] != value and name not in unseen}


_TIMM = {model: Layout("timm", model, ()) for model in MODELS}


def _differing(config: Arguments, layout: Layout, arrays: dict[str, Array]) -> Arguments:
    """The settings that the project has otherwise, with an effect on the model's logits, and the project's values."""
    always = _always(config, layout, arrays)
    taken = SIZES | ANYWHERE | _TAKEN[layout.source, layout.model, layout.family]
    unseen = taken | idle(config, always, layout.source)
    return {name: always[name] for name, value in config.items() if name not in unseen and value != always[name]}


def _always(config: Arguments, layout: Layout, arrays: dict[str, Array]) -> Arguments:
    """The value of each setting in the project's model of these arrays, if no argument of its code changes it."""
    parameters = inspect.signature(MODELS[layout.model]).parameters
    found = {name: each.default for name, each in parameters.items()}
    found |= PROFILES[layout.source].settings(layout.model)
    if layout.model != "ViT":
        return found
    if layout.source != "torchvision":  # which takes no other images
        found["partial_patches"] = "drop"
    if layout.source == "google" and not config["class_token"]:  # its classifier "gap"
        found["global_pool"] = "avg"
    found |= {**_ALWAYS.get(layout.family, {}), **layout.settings, **(layout.arguments(arrays) if arrays else {})}
    if found["pos_embed"] not in WITHIN:
        found["pos_embed"] = config["pos_embed"]  # whose table is written
    found["fc_norm"] = layout.family == "BEiT" and found["global_pool"] == "avg"
    return found


WITHIN = ("relative", "rotary")  # positions within attention


def idle(config: Arguments, other: Arguments, source: str = "") -> set[str]:
    """Settings of a model without effect on images of its size, beside those of another model, of a source's rules."""
    return _idle_in_vit(config) if "depth" in config else _idle_in_swin(config, other, source)


def _idle_in_vit(config: Arguments) -> set[str]:
    """Settings of a ViT without effect on images of its size."""
    idle = set()
    if config["resnet_layers"] is None:
        idle |= {name for name in config if name.startswith("resnet_")}
    if config["pos_embed"] != "rotary":
        idle.add("rotary_periods")
    if config["global_pool"] == "token" or not prefix_tokens(config):
        idle.add("pool_include_prefix")
    if config["mlp_layer"] != "mlp":
        idle.add("gelu")  # its gate has SiLU
    if config["resnet_layers"] is not None or _divides(config):
        idle.add("partial_patches")
    return idle


def _divides(config: Arguments) -> bool:
    return all(side % patch == 0 for side, patch in zip(pair(config["img_size"]), pair(config["patch_size"])))


def _idle_in_swin(config: Arguments, always: Arguments, source: str) -> set[str]:
    """Settings of a Swin without effect on images of its size, beside those of a project that has `always`."""
    idle, plans = set(), _plans(config, config["covered"])
    rules = ("shrink", "shift") if source == "timm" else (always["covered"],)  # timm's always_partition
    if plans in [_plans(config, rule) for rule in rules]:
        idle.add("covered")
    padded, rolled = False, False
    for (_, shift, size), grid, depth in zip(plans, stage_grids(config), config["depths"]):
        axes = [after != before for after, before in zip(size, grid)]
        padded |= any(axes)
        rolled |= depth > 1 and any(axis and side for axis, side in zip(axes, shift))
    if not padded:
        idle.add("mask_padding")
    if not rolled:
        idle.add("pad_first")
    return idle | ({"partial_patches"} if _divides(config) else set())


def _plans(config: Arguments, covered: str) -> list[tuple[Any, ...]]:
    """The window, the shift, and the padded map of each stage's second block."""
    plans = []
    for grid, window in zip(stage_grids(config), window_of_each(config["window_size"], len(config["depths"]))):
        half = (window[0] // 2, window[1] // 2)
        plans.append(ShiftedWindows(Layer(), window, half, covered=covered).plan(*grid))
    return plans
