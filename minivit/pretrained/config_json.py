"""config.json beside a file, as transformers and timm write it, in the words of our classes.

Shapes do not tell everything: what this file tells is used where they are silent.
"""

from __future__ import annotations

from typing import Any

from minivit.models import configs

_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}
# transformers' names for the arguments of ours that no shape shows
_TRANSFORMERS = {
    "num_heads": "num_heads",
    "num_attention_heads": "num_heads",
    "image_size": "img_size",
    "window_size": "window_size",
    "pretrained_window_sizes": "pretrained_window_sizes",
    "layer_norm_eps": "norm_eps",
}
_TIMM = ("num_heads", "img_size", "window_size", "pretrained_window_sizes")


def options_of(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `ViT`, `Swin` or `SwinV2` that a config.json gives; what is none of ours is left out.

    Raises:
        ValueError: for a value that makes no sense there, or an activation that minivit lacks.
    """
    found = _timm(config)
    for theirs, ours in _TRANSFORMERS.items():
        if config.get(theirs) is not None:
            found[ours] = config[theirs]
    if "hidden_act" in config:
        known = isinstance(config["hidden_act"], str) and config["hidden_act"] in _ACTIVATIONS
        if not known:
            raise ValueError(f"config.json says hidden_act={config['hidden_act']!r}, and minivit has only GELU")
        found["gelu"] = _ACTIVATIONS[config["hidden_act"]]
    for name in ("img_size", "window_size", "pretrained_window_sizes", "num_heads"):
        if isinstance(found.get(name), list):
            found[name] = tuple(found[name])
    for name, value in found.items():
        numbers = value if isinstance(value, tuple) else (value,)
        kinds = float if name == "norm_eps" else int
        plain = name == "gelu" or all(type(each) in (int, kinds) and 0 <= each < 1e6 for each in numbers)
        plain = plain and not (name == "norm_eps" and value == 0)
        if not plain:
            raise ValueError(f"config.json says {name}={value!r:.60}, which is no size: mend it, or remove the file")
    return found


def _timm(config: dict[str, Any]) -> dict[str, Any]:
    """By the architecture's name, then what differs from it."""
    name = config.get("architecture")
    published = dict(configs.published()).get(name, {}) if isinstance(name, str) else {}
    found = {key: published[key] for key in _TIMM if key in published}
    pretrained, args = config.get("pretrained_cfg"), config.get("model_args")
    size = pretrained.get("input_size") if isinstance(pretrained, dict) else None
    if isinstance(size, list) and len(size) == 3:
        found["img_size"] = size[1] if size[1] == size[2] else tuple(size[1:])
    if isinstance(args, dict):
        found |= {key: args[key] for key in _TIMM if args.get(key) is not None}
    return found
