"""config.json beside a file, as transformers and timm write it, in the words of our classes.

Shapes do not tell everything: what this file tells is used where they are silent.
"""

from __future__ import annotations

from typing import Any

from minivit.models import configs

_ACTIVATIONS_OF_TIMM = {"gelu": "none", "gelu_tanh": "tanh"}
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
_TIMM_SIZES = ("num_heads", "img_size", "window_size", "pretrained_window_sizes")
# what a timm architecture usually has, which its model_args and the arrays may contradict
_USUAL = {"img_size": "input_size", "window_size": "usual_window"}
# timm's model_args that are honored under the same name, and those that the arrays tell or that change no result
_TIMM_ARGUMENTS = {*_TIMM_SIZES, "norm_eps", "global_pool", "fc_norm", "dynamic_img_size", "drop_rate", "pos_drop_rate"}
_TIMM_ARGUMENTS |= {"proj_drop_rate", "attn_drop_rate", "drop_path_rate"}
_FROM_ARRAYS = {"patch_size", "in_chans", "num_classes", "embed_dim", "depth", "depths", "mlp_ratio", "qkv_bias"}
_FROM_ARRAYS |= {"class_token", "representation_size", "ape", "patch_norm", "weight_init", "fix_init"}
# transformers' model_type of each class
_MODEL_TYPES = {"vit": "ViT", "deit": "ViT", "vit-hybrid": "ViT", "swin": "Swin", "swinv2": "SwinV2"}


def options_of(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `ViT`, `Swin` or `SwinV2` that a config.json gives; what is none of ours is left out.

    Two more are only expected: "input_size" of the images, and "usual_window" of the architecture.

    Raises:
        ValueError: for a value that makes no sense there, or an activation that minivit lacks.
    """
    found = _timm(config)
    for theirs, ours in _TRANSFORMERS.items():
        if config.get(theirs) is not None:
            found[ours] = config[theirs]
    if "hidden_act" in config:
        if not isinstance(config["hidden_act"], str) or config["hidden_act"] not in _ACTIVATIONS:
            raise ValueError(f"config.json says hidden_act={config['hidden_act']!r}, and minivit has only GELU")
        found["gelu"] = _ACTIVATIONS[config["hidden_act"]]
    for name in _TIMM_SIZES:
        if isinstance(found.get(name), list):
            found[name] = tuple(found[name])
    for name, value in found.items():
        if not _makes_sense(name, value):
            raise ValueError(f"config.json says {name}={value!r:.60}, which makes no sense: mend or remove the file")
    return found


def _makes_sense(name: str, value: Any) -> bool:
    if name in (*_TIMM_SIZES, *_USUAL.values()):
        numbers = value if isinstance(value, tuple) else (value,)
        return all(type(each) is int and 0 <= each < 1e6 for each in numbers)
    if name == "norm_eps":
        return type(value) in (int, float) and 0 < value < 1e6
    if name.endswith("_rate"):
        return type(value) in (int, float) and 0 <= value < 1
    return isinstance(value, bool if name in ("fc_norm", "dynamic_img_size") else str)


def _timm(config: dict[str, Any]) -> dict[str, Any]:
    """By the architecture's name, then what differs from it."""
    name, args = config.get("architecture"), config.get("model_args")
    args = args if isinstance(args, dict) else {}
    found: dict[str, Any] = {}
    if isinstance(name, str):
        published = dict(configs.published()).get(name.partition(".")[0])
        if published is None:
            raise ValueError(
                f"config.json says architecture={name!r:.80}, which minivit does not know: under a plain model's names "
                "it may compute something else. If it is a plain ViT or Swin, remove config.json and say num_heads"
            )
        found |= {_USUAL.get(key, key): published[key] for key in _TIMM_SIZES if key in published}
    pretrained = config.get("pretrained_cfg")
    size = pretrained.get("input_size") if isinstance(pretrained, dict) else None
    if isinstance(size, list) and len(size) == 3:
        found["input_size"] = size[1] if size[1] == size[2] else tuple(size[1:])
    if config.get("global_pool") is not None:
        found["global_pool"] = config["global_pool"]
    for key, value in args.items():
        if value is None or key in _FROM_ARRAYS:
            continue
        if key in _TIMM_ARGUMENTS:
            found[key] = value
        elif key == "act_layer" and value in _ACTIVATIONS_OF_TIMM:
            found["gelu"] = _ACTIVATIONS_OF_TIMM[value]
        elif key != "norm_layer" or value != "layernorm":
            raise ValueError(f"config.json says model_args {key}={value!r:.60}, which minivit does not have")
    return found


def check_same_model(config: dict[str, Any], model: str, arguments: dict[str, Any]) -> None:
    """Refuse a config.json of another model than the arrays make.

    Raises:
        ValueError: naming what differs.
    """
    kind = _MODEL_TYPES.get(config.get("model_type", ""), model) if "model_type" in config else model
    claims = {"embed_dim": "hidden_size", "depth": "num_hidden_layers"} if model == "ViT" else {"depths": "depths"}
    claims |= {} if model == "ViT" else {"embed_dim": "embed_dim"}
    claimed = {ours: config[theirs] for ours, theirs in claims.items() if config.get(theirs) is not None}
    claimed = {name: tuple(value) if isinstance(value, list) else value for name, value in claimed.items()}
    differs = [f"{name}={value!r:.60}" for name, value in claimed.items() if value != arguments.get(name)]
    if kind != model:
        differs.append(f"model_type={config['model_type']!r:.60}")
    if differs:
        has = ", ".join(f"{name}={arguments[name]!r}" for name in claimed if name in arguments)
        raise ValueError(
            f"config.json says {', '.join(differs)}, and the arrays make a {model} with {has or 'other names'}: it "
            "belongs to another file. Remove it, or fetch both again"
        )
