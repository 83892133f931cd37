"""config.json next to a file, as transformers and timm write it, as arguments of our classes.

It is used for arguments that shapes do not determine.
"""

from __future__ import annotations

from typing import Any

from minivit.models import configs
from minivit.models.timm_arguments import beside_architecture
from minivit.nn.rotary import TEMPERATURE as ROTARY_TEMPERATURE
from minivit.pretrained.hidden import TOLD
from minivit.sizes import pair

_ACTIVATIONS = {"gelu": "none", "gelu_new": "tanh", "gelu_fast": "tanh", "gelu_pytorch_tanh": "tanh"}
_ACTIVATIONS |= {"quick_gelu": "quick"}
# transformers' names for our arguments that no shape shows
_TRANSFORMERS = {
    "num_heads": "num_heads",
    "num_attention_heads": "num_heads",
    "image_size": "img_size",
    "window_size": "window_size",
    "pretrained_window_sizes": "pretrained_window_sizes",
    "layer_norm_eps": "norm_eps",
    "rms_norm_eps": "norm_eps",
}
_SWIN_EPS = 1e-5
_TIMM_SIZES = ("num_heads", "img_size", "window_size", "pretrained_window_sizes")
# defaults of a timm architecture, which its model_args and the arrays may contradict
_USUAL = {"img_size": "input_size", "window_size": "usual_window"}
# timm's model_args by our names: those that are used, those that the arrays show too, and those that matter only
# before training
_HONORED = {*_TIMM_SIZES, "norm_eps", "gelu", "global_pool", "fc_norm", "post_norm", "dynamic_img_size"}
_HONORED |= {"pool_include_prefix", "no_embed_class", "init_values"}
_HONORED |= {"partial_patches", "covered", "drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate"}
_HONORED |= {"drop_path_rate"}
_IN_ARRAYS = {"patch_size", "in_chans", "embed_dim", "depth", "depths", "mlp_ratio", "qkv_bias", "class_token"}
_IN_ARRAYS |= {"reg_tokens", "pre_norm", "final_norm", "proj_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm"}
_IN_ARRAYS |= {"norm_layer", "mlp_layer", "block_fn", "attn_layer", "ape", "patch_norm", "distilled"}
_IN_ARRAYS |= {"num_classes", "representation_size", "pos_embed"}
# those of them that a request may contradict too, as by another head
_REPLACED = {"num_classes", "representation_size", "pos_embed"}
_FLAGS = {"fc_norm", "dynamic_img_size", "post_norm", "pool_include_prefix", "no_embed_class"}
_BEFORE_TRAINING = {"weight_init", "fix_init"}
# transformers' model_type of each class
_MODEL_TYPES = {"vit": "ViT", "deit": "ViT", "vit-hybrid": "ViT", "vit_msn": "ViT", "swin": "Swin", "swinv2": "SwinV2"}
_MODEL_TYPES |= dict.fromkeys(("clip", "clip_vision_model", "siglip", "siglip_vision_model"), "ViT")
_MODEL_TYPES |= dict.fromkeys(
    ("dinov2", "dinov2_with_registers", "vit_mae", "ijepa", "aimv2", "aimv2_vision_model", "dinov3_vit", "beit"), "ViT"
)
# transformers' names of what the arrays show too, by our names
_CLAIMS = {"patch_size": "patch_size", "num_channels": "in_chans", "qkv_bias": "qkv_bias"}
_CLAIMS_OF = {
    "ViT": {"hidden_size": "embed_dim", "num_hidden_layers": "depth", "intermediate_size": "intermediate_size"},
    "Swin": {"use_absolute_embeddings": "ape", "hidden_size": "hidden_size"}
    | {name: name for name in ("embed_dim", "depths", "num_heads", "mlp_ratio")},
}
# transformers' values of what a config.json of these types leaves out
_LEFT_OUT: dict[str, dict[str, Any]] = {
    "vit": {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "num_attention_heads": 12},
    "swin": {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "image_size": 224, "window_size": 7},
}
_LEFT_OUT |= dict.fromkeys(("deit", "vit_mae", "ijepa", "beit"), _LEFT_OUT["vit"])
_LEFT_OUT["dinov2"] = _LEFT_OUT["vit"] | {"layer_norm_eps": 1e-6}
_LEFT_OUT |= dict.fromkeys(("vit_msn", "dinov2_with_registers"), _LEFT_OUT["dinov2"])
_LEFT_OUT["clip_vision_model"] = _LEFT_OUT["vit"] | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_LEFT_OUT["siglip_vision_model"] = _LEFT_OUT["dinov2"] | {"hidden_act": "gelu_pytorch_tanh"}
_LEFT_OUT["dinov3_vit"] = _LEFT_OUT["vit"] | {"layer_norm_eps": 1e-5, "num_attention_heads": 6}
_LEFT_OUT["swinv2"] = _LEFT_OUT["swin"] | {"pretrained_window_sizes": 0}
_TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}


def _of_image_tower(config: dict[str, Any], model: str) -> dict[str, Any]:
    """The configuration of the image tower, where it stands beside a text tower's, with what it leaves out."""
    inner = config.get("vision_config")
    if isinstance(inner, dict):
        inner = {"model_type": _TOWERS.get(str(config.get("model_type")), ""), **inner}
        config = {name: value for name, value in inner.items() if value != ""}
    kind = str(config.get("model_type"))
    return {**(_LEFT_OUT.get(kind, {}) if _MODEL_TYPES.get(kind) == model else {}), **config}


def options_of(config: dict[str, Any], model: str) -> dict[str, Any]:
    """Arguments of the class `model` in a config.json; other entries are ignored.

    Two more are only defaults: "input_size" of the images, and "usual_window" of the architecture.

    Raises:
        ValueError: for an invalid value, or an activation that minivit lacks.
    """
    config = _of_image_tower(config, model)
    if config.get("quantization_config"):
        raise ValueError("config.json says quantization_config, and minivit reads weights in floating point only")
    found = _timm(config, model)
    for theirs, ours in _TRANSFORMERS.items():
        if config.get(theirs) is not None:
            found[ours] = config[theirs]
    if config.get("rope_theta", ROTARY_TEMPERATURE) != ROTARY_TEMPERATURE:
        raise ValueError(
            f"config.json says rope_theta={config['rope_theta']!r:.60}, and minivit's rotary positions have "
            f"{ROTARY_TEMPERATURE:g}: choose another file"
        )
    if model != "ViT" and config.get("layer_norm_eps", _SWIN_EPS) != _SWIN_EPS:
        raise ValueError(
            f"config.json says layer_norm_eps={config['layer_norm_eps']!r:.60}, and transformers' Swin keeps "
            f"{_SWIN_EPS:g} in the norms of the patch embedding and of the merging, where minivit's has one epsilon: "
            "choose another file"
        )
    gated = config.get("use_gated_mlp") is True  # of DINOv3, whose gate has the activation
    if gated and config.get("hidden_act") != "silu":
        raise ValueError(
            f"config.json says hidden_act={config.get('hidden_act')!r:.60} of a gated MLP, and minivit has only 'silu'"
        )
    if "hidden_act" in config and not gated:
        if not isinstance(config["hidden_act"], str) or config["hidden_act"] not in _ACTIVATIONS:
            raise ValueError(f"config.json says hidden_act={config['hidden_act']!r}, and minivit has only GELU")
        found["gelu"] = _ACTIVATIONS[config["hidden_act"]]
    for name in _TIMM_SIZES:
        if isinstance(found.get(name), list):
            found[name] = tuple(tuple(each) if isinstance(each, list) else each for each in found[name])
    for name, value in found.items():
        if not _makes_sense(name, value):
            raise ValueError(f"config.json says {name}={value!r:.60}, which makes no sense: correct or remove the file")
    return found


def _makes_sense(name: str, value: Any) -> bool:
    if name in (*_TIMM_SIZES, *_USUAL.values()):
        several = value if isinstance(value, tuple) else (value,)
        numbers = [each for part in several for each in (part if isinstance(part, tuple) else (part,))]
        least = 0 if name == "pretrained_window_sizes" else 1  # where 0 is the window itself
        return all(type(each) is int and least <= each < 1e6 for each in numbers)
    if name in ("norm_eps", "init_values"):
        return type(value) in (int, float) and 0 < value < 1e6
    if name.endswith("_rate"):
        return type(value) in (int, float) and 0 <= value < 1
    return isinstance(value, bool if name in _FLAGS else str)


def _architecture(config: dict[str, Any]) -> str | None:
    """timm's name of the architecture; its own `pretrained_cfg` has it too."""
    pretrained = config.get("pretrained_cfg")
    names = [config.get("architecture"), pretrained.get("architecture") if isinstance(pretrained, dict) else None]
    return next((name for name in names if isinstance(name, str)), None)


def _timm(config: dict[str, Any], model: str) -> dict[str, Any]:
    """The arguments of the architecture's name, then those that differ."""
    name, published = _architecture(config), None
    found: dict[str, Any] = {}
    if name is not None:
        published = configs.sizes_of(name)
        if published is None:
            raise ValueError(
                f"config.json says architecture={name!r:.80}, which minivit does not know: under a plain model's names "
                "it may compute something else. If it is a plain ViT or Swin, remove config.json and give num_heads"
            )
        decided = (*_TIMM_SIZES, "init_values", "no_embed_class")
        found |= {_USUAL.get(key, key): published[key] for key in decided if published.get(key) is not None}
        if model == "ViT":
            found |= {key: published.get(key, usual) for key, usual in TOLD.items() if usual is not None}
    pretrained = config.get("pretrained_cfg")
    size = pretrained.get("input_size") if isinstance(pretrained, dict) else None
    if isinstance(size, list) and len(size) == 3:
        found["input_size"] = size[1] if size[1] == size[2] else tuple(size[1:])
    for key, value in _model_args(config, model, published or {}).items():
        if key in _HONORED:
            found[key] = value
        elif key not in _IN_ARRAYS:
            raise ValueError(f"config.json says model_args {key}={value!r:.60}, which minivit does not have")
    return found


def _model_args(config: dict[str, Any], model: str, published: dict[str, Any]) -> dict[str, Any]:
    """The arguments in timm's config.json besides the architecture, by our names.

    Raises:
        ValueError: for an argument that minivit lacks.
    """
    args = config.get("model_args")
    said = {key: value for key, value in (args if isinstance(args, dict) else {}).items() if value is not None}
    said = {key: value for key, value in said.items() if key not in _BEFORE_TRAINING}
    if config.get("global_pool") is not None:
        said.setdefault("global_pool", config["global_pool"])
    try:
        return beside_architecture(model, published, said)
    except ValueError as error:
        raise ValueError(f"config.json says model_args {error}") from None


def _agrees(name: str, value: Any, arguments: dict[str, Any]) -> bool:
    """Whether config.json's value of an argument equals that of the arrays."""
    if name == "mlp_ratio":
        dim = arguments["embed_dim"]
        return type(value) in (int, float) and int(dim * value) == round(dim * arguments[name])
    if name == "init_values":
        return arguments[name] is not None  # the arrays hold what became of it
    if name == "patch_size":
        return "resnet_layers" in arguments or pair(value) == pair(arguments[name])  # else it is of a stem's map
    if name == "qkv_bias":
        return value == bool(arguments[name])  # BEiT's True is ours of q and v alone
    if name == "intermediate_size":
        return arguments["mlp_layer"] != "mlp" or value == int(arguments["embed_dim"] * arguments["mlp_ratio"])
    if name == "hidden_size":  # of a Swin's last stage
        return value == arguments["embed_dim"] * 2 ** (len(arguments["depths"]) - 1)
    return (tuple(value) if isinstance(value, list) else value) == arguments.get(name, False)


def _differing(claimed: dict[str, Any], arguments: dict[str, Any]) -> list[str]:
    return [f"{name}={value!r:.60}" for name, value in claimed.items() if not _agrees(name, value, arguments)]


def _of_architecture(name: str | None, model: str, args: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The width of timm's architecture, where heads or windows that no array shows are those of its name.

    A Swin v2 has the windows of its name in any width, unless it has the width of another published size.
    """
    published = configs.sizes_of(name) if name else None
    hidden = {"ViT": "num_heads", "SwinV2": "window_size"}.get(model)
    if published is None or hidden is None or args.get(hidden) is not None:
        return {}
    widths = {sizes["embed_dim"] for other, sizes in configs.published() if configs.class_of(other) == model}
    return {"embed_dim": published["embed_dim"]} if model == "ViT" or arguments["embed_dim"] in widths else {}


def check_same_model(config: dict[str, Any], model: str, arguments: dict[str, Any], requested: dict[str, Any]) -> None:
    """Refuse a config.json of another model than the arrays make.

    Args:
        arguments: those that the arrays show.
        requested: the requested ones; another head may be requested of any file.

    Raises:
        ValueError: naming what differs.
    """
    config = _of_image_tower(config, model)
    kind, architecture = config.get("model_type"), _architecture(config)
    args = _model_args(config, model, configs.sizes_of(architecture or "") or {})
    claims = _CLAIMS | _CLAIMS_OF["ViT" if model == "ViT" else "Swin"]
    claimed = {ours: config[theirs] for theirs, ours in claims.items() if config.get(theirs) is not None}
    shown = (*_IN_ARRAYS, "init_values") if model == "ViT" else (*_IN_ARRAYS, "num_heads")
    claimed |= {"num_classes": config["num_classes"]} if config.get("num_classes") is not None else {}
    claimed |= {name: args[name] for name in shown if args.get(name) is not None}
    claimed = {name: value for name, value in claimed.items() if name not in _REPLACED.intersection(requested)}
    differs = _differing(claimed, arguments)
    if kind is not None and (not isinstance(kind, str) or _MODEL_TYPES.get(kind) != model and kind != "timm_wrapper"):
        differs.append(f"model_type={kind!r:.60}")
    if architecture and configs.class_of(architecture.partition(".")[0]) not in (None, model):
        differs.append(f"architecture={architecture!r:.80}")
    if not differs:
        claimed = _of_architecture(architecture, model, args, arguments)
        differs = _differing(claimed, arguments)
    if differs:
        has = ", ".join(f"{name}={arguments[name]!r}" for name in claimed if name in arguments)
        raise ValueError(
            f"config.json says {', '.join(differs)}, and the arrays make a {model} with {has or 'other names'}: it "
            "belongs to another file. Remove it, or fetch both again"
        )
