"""open_clip_config.json in the words of config.json: heads, GELU and preprocessing, which no array shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minivit.io.weights import Weights, read_config
from minivit.pretrained.image_processor import CLIP_MEAN, CLIP_STD
from minivit.sizes import Size, pair

_NAME = "open_clip_config.json"
# entries of OpenCLIP's CLIPVisionCfg (model.py) that minivit lacks, and their values that mean nothing
_NONE = (None, False)
_ABSENT: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attentional_pool", "input_patchnorm", "global_average_pool", "no_ln_pre"), _NONE),
    **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner"), _NONE),
    **dict.fromkeys(("scale_attn", "scale_fc", "final_ln_after_pool"), _NONE),
    "pool_type": (None, "tok"),
    "pos_embed_type": (None, "learnable"),
    "block_type": (None, "default"),
}
_TOWER = {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "in_chans", "ls_init_value"}
_TOWER |= {"act_kwargs", "norm_kwargs"}
_TRUNK = {"timm_model_name", "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop_path", "timm_model_kwargs"}
# what matters to training alone, to more outputs, or to a pooling that is absent
_WITHOUT_EFFECT = {"patch_dropout", "output_tokens", "image_seq_len", "attn_pooler_queries", "attn_pooler_heads"}
_WITHOUT_EFFECT |= {"timm_model_pretrained", "timm_drop"}
_KNOWN = _TOWER | _TRUNK | _WITHOUT_EFFECT | {*_ABSENT}


def with_open_clip_config(weights: Weights) -> Weights:
    """The weights with OpenCLIP's configuration, if it stands next to the file, instead of config.json."""
    path = weights.path.parent / _NAME
    config, fault = read_config(path)
    if not config and not fault:
        return weights
    try:
        return replace(weights, config=_in_words_of_config_json(config) if config else {}, config_fault=fault)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return replace(
            weights, config={}, config_fault=f"{path} describes no image tower that minivit has ({why:.200})"
        )


def _in_words_of_config_json(config: dict[str, Any]) -> dict[str, Any]:
    """timm's or transformers' entries for the image tower.

    Raises:
        ValueError: for a part that minivit has not.
    """
    model = config["model_cfg"]
    vision = model["vision_cfg"]
    for name, value in vision.items():
        if name not in _KNOWN and value not in _NONE:
            raise ValueError(f"{name}={value!r:.60}")
    size = pair(_or(vision, "image_size", 224))
    found = _trunk(vision) if vision.get("timm_model_name") else _tower(model, vision, size)
    return {**found, "pretrained_cfg": _preprocess(config.get("preprocess_cfg") or {}, size)}


def _or(given: dict[str, Any], name: str, usual: Any) -> Any:
    """An entry, or the usual value of one that is left out or null."""
    return usual if given.get(name) is None else given[name]


def _preprocess(said: dict[str, Any], size: Size) -> dict[str, Any]:
    """timm's entries for OpenCLIP's, with the defaults of its PreprocessCfg (transform.py) for what is left out."""
    mode, mean, std = (said.get(name) for name in ("resize_mode", "mean", "std"))
    smooth = "bilinear" if said.get("interpolation") == "bilinear" else "bicubic"  # "random" is of training
    keeps_shape = mode in (None, "shortest")
    if keeps_shape and size[0] != size[1]:
        smooth = "bicubic"  # its ResizeKeepRatio gets no filter
    return {
        "input_size": [3, *size],
        "mean": _of_channels(mean or CLIP_MEAN),
        "std": _of_channels(std or CLIP_STD),
        "interpolation": smooth,
        "crop_pct": 1.0,
        "crop_mode": "center" if keeps_shape else mode,
    }


def _of_channels(numbers: Any) -> list[Any]:
    return list(numbers) if isinstance(numbers, list | tuple) else [numbers] * 3


def _trunk(vision: dict[str, Any]) -> dict[str, Any]:
    """A model of timm's with arguments, of which OpenCLIP may set the pooling; "" keeps the model's own."""
    pool, args = _or(vision, "timm_pool", "avg"), {**_or(vision, "timm_model_kwargs", {})}
    if pool in ("abs_attn", "rot_attn"):
        raise ValueError(f"timm_pool={pool!r:.60}")
    if vision.get("timm_drop_path") is not None:
        args.setdefault("drop_path_rate", vision["timm_drop_path"])
    return {
        "architecture": vision["timm_model_name"],
        "model_args": {**args, **({"global_pool": pool} if pool else {})},
    }


def _tower(model: dict[str, Any], vision: dict[str, Any], size: Size) -> dict[str, Any]:
    """OpenCLIP's own tower, with its defaults for what is left out."""
    for name, none in _ABSENT.items():
        if vision.get(name) not in none:
            raise ValueError(f"{name}={vision[name]!r:.60}")
    width, activation = _or(vision, "width", 768), {**(vision.get("act_kwargs") or {})}
    gelu = {"": "gelu", "none": "gelu", "tanh": "gelu_pytorch_tanh"}[activation.pop("approximate", "")]
    norm = {**(vision.get("norm_kwargs") or {})}
    eps = norm.pop("eps", 1e-5)
    if activation or norm:
        raise ValueError(f"{[*activation, *norm][0]} among act_kwargs and norm_kwargs")
    # what the arrays show too, and must agree with
    shown = {"mlp_ratio": _or(vision, "mlp_ratio", 4.0), "init_values": vision.get("ls_init_value")}
    return {
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else gelu,
        "layer_norm_eps": eps,
        "hidden_size": width,
        "num_hidden_layers": _or(vision, "layers", 12),
        "num_attention_heads": width // _or(vision, "head_width", 64),
        "image_size": list(size) if size[0] != size[1] else size[0],
        "patch_size": _or(vision, "patch_size", 16),
        "num_channels": _or(vision, "in_chans", 3),
        "model_args": shown,
    }
