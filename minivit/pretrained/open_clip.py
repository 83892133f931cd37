"""open_clip_config.json in the words of config.json: heads, GELU and preprocessing, which no array shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from minivit.io.weights import Weights, read_config

_NAME = "open_clip_config.json"
# what OpenCLIP's image towers may have and minivit has not, and the values that stand for none
_ABSENT: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("attentional_pool", "input_patchnorm", "global_average_pool", "no_ln_pre"), (None, False)),
    "final_ln_after_pool": (None, False),
    "pool_type": (None, "tok"),
}


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
    found = _trunk(vision) if vision.get("timm_model_name") else _tower(model, vision)
    size = vision.get("image_size", 224)
    images: dict[str, Any] = {"input_size": [3, *(size if isinstance(size, list) else (size, size))]}
    said = config.get("preprocess_cfg") or {}
    if "mean" in said and "std" in said:
        mode = said.get("resize_mode") or "shortest"
        images |= {
            "mean": said["mean"],
            "std": said["std"],
            "interpolation": said.get("interpolation") or "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center" if mode == "shortest" else mode,
        }
    return {**found, "pretrained_cfg": images}


def _trunk(vision: dict[str, Any]) -> dict[str, Any]:
    """A model of timm's, of which OpenCLIP may set the pooling; "" keeps the model's own."""
    pool = vision.get("timm_pool", "avg")
    if pool in ("abs_attn", "rot_attn"):
        raise ValueError(f"timm_pool={pool!r:.60}")
    return {"architecture": vision["timm_model_name"], "model_args": {"global_pool": pool} if pool else {}}


def _tower(model: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """OpenCLIP's own tower, with its defaults for what is left out."""
    for name, none in _ABSENT.items():
        if vision.get(name) not in none:
            raise ValueError(f"{name}={vision[name]!r:.60}")
    width, activation = vision.get("width", 768), {**(vision.get("act_kwargs") or {})}
    gelu = {"": "gelu", "none": "gelu", "tanh": "gelu_pytorch_tanh"}[activation.pop("approximate", "")]
    norm = {**(vision.get("norm_kwargs") or {})}
    eps = norm.pop("eps", 1e-5)
    if activation or norm:
        raise ValueError(f"{[*activation, *norm][0]} among act_kwargs and norm_kwargs")
    return {
        "hidden_act": "quick_gelu" if model.get("quick_gelu") else gelu,
        "layer_norm_eps": eps,
        "hidden_size": width,
        "num_hidden_layers": vision.get("layers", 12),
        "num_attention_heads": width // vision.get("head_width", 64),
    }
