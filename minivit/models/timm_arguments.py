"""timm's argument names translated to minivit's, for `create_model`, `from_pretrained` and timm's config.json.

Equivalent arguments are translated; those that minivit's models lack are refused, with a remedy. Names and
defaults are those of timm 1.0.31, `VisionTransformer`, `SwinTransformer` and `SwinTransformerV2`.
"""

from __future__ import annotations

from typing import Any

# values of a ViT's arguments that have timm's name -> ours
_VALUES: dict[str, dict[Any, str]] = {
    "pos_embed": {"learn": "learned_1d", "": "none"},
    "weight_init": {"": "timm", "skip": "timm"},  # "skip" leaves the weights to a later load
}
_ACTIVATIONS = {"gelu": "none", "gelu_tanh": "tanh", "quick_gelu": "quick"}
_NAMED_EPS = 1e-6  # of timm's norms; an architecture with another has it bound to its norm
_ONLY_GELU = "minivit has act_layer='gelu', 'gelu_tanh' and 'quick_gelu', as gelu='none', 'tanh' and 'quick'"
_ONLY_LAYER_NORM = "minivit's Swin has LayerNorm; leave norm_layer out, and set its epsilon with norm_eps="
_ELSEWHERE = "minivit's models have no such part: leave it out, or choose a model without it"

# arguments that minivit lacks, the value that its models implement, and the remedy for any other
_ABSENT: dict[str, tuple[Any, str]] = {
    "patch_drop_rate": (0, "minivit drops no patches: use pos_drop_rate= or drop_path_rate="),
    "fix_init": (False, "minivit does not scale weights by depth: scale attn.proj and mlp.fc2 yourself"),
    "embed_norm_layer": (None, "use patch_norm=True for a norm after the patch embedding"),
    "embed_layer": (None, _ELSEWHERE),
}
# arguments that only ViT has, and the value that Swin implements
_ONLY_VIT: dict[str, Any] = {
    **dict.fromkeys(("qk_norm", "scale_attn_norm", "scale_mlp_norm", "no_embed_class", "pre_norm"), False),
    **dict.fromkeys(("init_values", "block_fn", "mlp_layer", "attn_layer")),
    "proj_bias": True,
    "final_norm": True,
    "pool_include_prefix": False,
    "reg_tokens": 0,
}
_POOLING = {
    "": "minivit's models pool; the layers of `model.body()` before `model.pool` give what timm returns",
    "max": "minivit's models have no maximum over positions",
    "avgmax": "minivit's models have no maximum over positions",
    "map": "minivit's Swin has no attention pooling",
    "prr": "minivit's attention pooling is global_pool='map'",
}


def in_our_words(model: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments by timm's or minivit's names, translated for minivit's class; unknown names are kept.

    Args:
        model: the name of the class, "ViT", "Swin" or "SwinV2".
        given: by timm's names and minivit's.

    Raises:
        ValueError: for an argument that minivit's models lack, and for two names of one argument that contradict.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        for ours, translated in _one(model, name, value, given).items():
            if ours in found and found[ours] != translated:
                raise ValueError(f"{name}={value!r:.60} is {ours}={translated!r}, and {found[ours]!r} was given too")
            found[ours] = translated
    return found


def beside_architecture(model: str, published: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Arguments given beside the name of an architecture, as `in_our_words` translates them.

    A norm that is given by name has timm's usual epsilon, also where the architecture's own norms have another.

    Args:
        model: the name of the class.
        published: the architecture's arguments by our names, whose sizes other arguments may refer to.
        given: by timm's names and minivit's.

    Raises:
        ValueError: as `in_our_words`; for a norm by name where the norm after the patches would keep its epsilon.
    """
    sizes: dict[str, Any] = {name: published[name] for name in ("embed_dim", "num_heads") if name in published}
    words = in_our_words(model, {**sizes, **given})
    words = {name: value for name, value in words.items() if name in given or name not in sizes}
    named = model == "ViT" and words.get("norm_layer") is not None and "norm_eps" not in words
    if named and published.get("norm_eps", _NAMED_EPS) != _NAMED_EPS:
        if published.get("patch_norm"):
            raise ValueError(
                f"norm_layer={words['norm_layer']!r:.60}: timm's epsilon is then {_NAMED_EPS:g} in all norms but the "
                "one after the patch embedding: leave norm_layer out, which is the architecture's"
            )
        words["norm_eps"] = _NAMED_EPS
    return words


def _one(model: str, name: str, value: Any, given: dict[str, Any]) -> dict[str, Any]:
    """One of timm's arguments as ours, or None."""
    if name in _ABSENT:
        usual, remedy = _ABSENT[name]
        _same(name, value, usual, remedy)
        return {}
    if name == "global_pool":
        if value not in (choices := ("token", "avg", "map") if model == "ViT" else ("avg",)):
            why = _POOLING.get(value) if isinstance(value, str) else None
            choose = f"choose {' or '.join(map(repr, choices))}"
            raise ValueError(f"global_pool={value!r:.60}: {why + '; ' if why else ''}{choose}")
        return {name: value}
    if name == "act_layer":
        gelu = _ACTIVATIONS.get(value) if isinstance(value, str) else None
        if value is not None and gelu is None:
            raise ValueError(f"act_layer={value!r:.60}: {_ONLY_GELU}")
        return {"gelu": gelu} if gelu else {}
    if name == "norm_layer" and model != "ViT":
        _same(name, value, "layernorm", _ONLY_LAYER_NORM)
        return {}
    if name in _ONLY_VIT and model != "ViT":
        _same(name, value, _ONLY_VIT[name], _ELSEWHERE)
        return {}
    return _of_vit(name, value) if model == "ViT" else _of_swin(name, value, given)


def _same(name: str, value: Any, usual: Any, remedy: str) -> None:
    """Refuse a value other than the usual one; 0 equals False, and 1 equals True."""
    if value is not None and value != usual:
        raise ValueError(f"{name}={value!r:.60}: {remedy}")


def _of_vit(name: str, value: Any) -> dict[str, Any]:
    if name == "dynamic_img_pad":
        return {"partial_patches": "pad"} if _flag(name, value) else {}
    if value is None and name in ("norm_layer", "mlp_layer", "block_fn", "attn_layer"):
        return {}
    translated = _VALUES.get(name, {}).get(value) if isinstance(value, str) else None
    return {name: value if translated is None else translated}


def _of_swin(name: str, value: Any, given: dict[str, Any]) -> dict[str, Any]:
    if name in ("strict_img_size", "dynamic_img_size"):
        if value is not None and _flag(name, value) != (name == "strict_img_size"):
            raise ValueError(
                f"{name}={value}: minivit's Swin takes images of any size and plans windows and shifts for each, where "
                "timm's keeps those of img_size, so their logits differ: leave it out"
            )
        return {}
    if name == "always_partition":
        return {"covered": "shift"} if _flag(name, value) else {}
    if name == "weight_init":
        if value not in (None, "", "skip"):
            raise ValueError(f"weight_init={value!r:.60}: minivit's Swin starts as timm's does; leave it out")
        return {}
    if name == "head_dim":
        if value is not None and not _divides(value, given):
            raise ValueError(
                f"head_dim={value!r:.60}: minivit's heads share the channels of their stage: give num_heads= and "
                "embed_dim= with embed_dim 2^i = head_dim num_heads[i] in each stage i, or leave it out"
            )
        return {}
    return {name: value}


def _flag(name: str, value: Any) -> bool:
    if value not in (None, True, False):
        raise ValueError(f"{name}={value!r:.60} must be True or False")
    return bool(value)


def _divides(head_dim: Any, given: dict[str, Any]) -> bool:
    """Whether heads of `head_dim` channels make up the channels of each stage."""
    dim, heads = given.get("embed_dim"), given.get("num_heads")
    if not isinstance(dim, int) or not isinstance(heads, tuple | list):
        return False
    each = head_dim if isinstance(head_dim, tuple | list) else [head_dim] * len(heads)
    return list(each) == [dim * 2**stage / count for stage, count in enumerate(heads)]
