"""The options of a ViT that leave no trace in names and shapes: heads, GELU, epsilon, and what else changes its logits.

They come from config.json, else from the published models with the same arrays where these agree, else they must be
given.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from minivit.models import configs
from minivit.models.vit_options import ViTOptions

Arguments = dict[str, Any]

# the options, and their values in a plain ViT
HIDDEN: Arguments = {
    "num_heads": None,
    "gelu": "none",
    "norm_eps": 1e-6,
    "post_norm": False,
    "pool_include_prefix": False,
    "global_pool": "token",  # with a class token and the norm before the pooling; else the arrays show it
}
# options that the arrays leave open only in models that are not published
TOLD: Arguments = {**HIDDEN, "norm_layer": "layernorm", "mlp_layer": "mlp", "pos_embed": "learned_1d"}
# the options that names and shapes show, besides sizes, and their values in a plain ViT
_SHOWN: Arguments = {
    "reg_tokens": 0,
    "no_embed_class": False,
    "pre_norm": False,
    "final_norm": True,
    "proj_bias": True,
    "qk_norm": False,
    "scale_attn_norm": False,
    "scale_mlp_norm": False,
    "attn_layer": "",
    "block_fn": "block",
    "mlp_layer": "mlp",
    "norm_layer": "layernorm",
    "init_values": None,
    "patch_norm": False,
}
# the width of a head in every published plain ViT of up to 1,024 channels but two; wider ones have heads of 72 to 104
_HEAD, _WIDEST = 64, 1024


def options(found: Arguments, config: Arguments, requested: Arguments) -> Arguments:
    """The hidden options of a ViT whose arrays show the arguments `found`.

    Args:
        config: the arguments in config.json or of the source's rules, which come first.
        requested: the requested ones, which come next.

    Raises:
        ValueError: naming the options that nothing decides.
    """
    told = {**requested, **config}
    said = {name: told[name] for name in (*HIDDEN, "pos_embed") if told.get(name) is not None}
    if "num_heads" in found:  # shown by a norm of q, or by the factors of differential attention
        said["num_heads"] = found["num_heads"]
    same = published_alike(found)
    open_names = [*HIDDEN, *(["pos_embed"] if found["pos_embed"] == "none" else [])]  # rotary ones have no table either
    known = {name: {getattr(each, name) for each in same} for name in open_names}
    plain = is_plain(found)
    differ = [name for name, values in known.items() if name not in said and len(values) > 1]
    if differ:
        values = ", ".join(f"{name}={' or '.join(sorted(map(repr, known[name])))}" for name in differ)
        raise ValueError(f"published models of these arrays differ in {values}: give {_named(differ)}")
    if not same and not plain:
        unsaid = [name for name in _asked(found) if name not in said and name not in told]
        if unsaid:
            raise ValueError(f"no published model has these arrays, and none shows {_named(unsaid)}: give them")
    if plain:
        _check_one_reading(found, said)
    chosen = {**{name: values.pop() for name, values in known.items() if values}, **said}
    rotary = found["pos_embed"] == "none" and chosen.get("pos_embed") == "rotary"
    chosen["pos_embed"] = "rotary" if rotary else found["pos_embed"]
    heads = chosen.get("num_heads")
    return {**chosen, "num_heads": _heads(found) if heads is None else heads}


def heads_are_assumed(found: Arguments, said: Arguments) -> bool:
    """Whether only a convention gives the number of heads: no array, no argument, and no published model."""
    shown = not is_plain(found) or found["pos_embed"] == "relative"
    return not shown and "num_heads" not in said and not published_heads(found)


def is_plain(options: Arguments) -> bool:
    """Whether a ViT has none of the parts that came after the first one."""
    first = all(options.get(name, usual) == usual for name, usual in _SHOWN.items())
    return first and options["global_pool"] != "map"


def published_alike(found: Arguments) -> list[ViTOptions]:
    """The published ViTs whose arrays have the same names and, patches and positions aside, the same shapes."""
    signature = _signature(found)
    return [each for each in _published() if _signature(vars(each)) == signature]


@cache
def _published() -> tuple[ViTOptions, ...]:
    return tuple(ViTOptions(**sizes) for name, sizes in configs.published() if configs.class_of(name) == "ViT")


def _signature(options: Arguments) -> tuple[Any, ...]:
    shown = {**_SHOWN, **{name: options[name] for name in _SHOWN if name in options}}
    shown["init_values"] = shown["init_values"] is None
    shown["no_embed_class"] = shown["no_embed_class"] and (options["class_token"] or bool(shown["reg_tokens"]))
    sizes = (options["embed_dim"], options["depth"], int(options["embed_dim"] * options["mlp_ratio"]))
    tokens = (options["class_token"], options["distilled"], options["fc_norm"], options["global_pool"] == "map")
    positions = "none" if options["pos_embed"] == "rotary" else options["pos_embed"]  # neither has a table
    return (*sizes, *tokens, positions, options["qkv_bias"], *shown.values())


def _asked(found: Arguments) -> list[str]:
    """The options without which the logits of such arrays are unknown."""
    names = ["num_heads", "norm_eps"]
    if found.get("mlp_layer", "mlp") == "mlp":
        names.append("gelu")
    elif found["mlp_layer"] == "swiglu_packed":
        names.append("mlp_layer")
    if found["norm_layer"] == "rmsnorm":
        names.append("norm_layer")
    if found["reg_tokens"] and found["global_pool"] != "token":
        names.append("pool_include_prefix")
    if found["pos_embed"] == "none":
        names += ["pos_embed", "global_pool"]
    return names


def published_heads(found: Arguments) -> set[int]:
    """The numbers of heads of the published ViTs of this width, depth and class token."""
    same = [each for each in _published() if (each.embed_dim, each.depth) == (found["embed_dim"], found["depth"])]
    return {each.num_heads for each in same if each.class_token or not found["class_token"]}


def _heads(found: Arguments) -> int:
    """The number of heads of the published size, or one for each 64 channels.

    Raises:
        ValueError: if published sizes differ, or there is none for such a width.
    """
    heads = published_heads(found)
    if len(heads) == 1:
        return heads.pop()
    dim = int(found["embed_dim"])
    if heads or dim > _WIDEST or dim > _HEAD and dim % _HEAD:
        known = f", and published models of this size have {' or '.join(map(str, sorted(heads)))}" if heads else ""
        raise ValueError(f"no array shows the number of heads of its {dim} channels{known}: give num_heads=")
    return max(1, dim // _HEAD)


def _check_one_reading(found: Arguments, said: Arguments) -> None:
    """Refuse a plain ViT without class token whose names fit several computations, unless the arguments decide.

    timm's SigLIP "gap" models have one GELU or the other, and a vit_base_patch16_gap_224 has heads of 48 channels;
    its residual-post-norm models have the names of any ViT without class token and biases of q, k and v.
    """
    if found["class_token"]:
        return
    unsaid = [name for name in ("num_heads", "gelu") if name not in said]
    if unsaid and found["global_pool"] == "avg" and not found["fc_norm"]:
        raise ValueError(
            "models of these names, without a class token and with the norm before the mean, have one GELU or the "
            f"other and heads of several widths: give {_named(unsaid)}"
        )
    if found["fc_norm"] and not found["qkv_bias"] and "post_norm" not in said:
        raise ValueError(
            "no array shows whether the norms of its blocks precede or follow the branches, as in timm's "
            "vit_base_patch16_rpn_224: give post_norm="
        )


def _named(names: list[str]) -> str:
    return " and ".join(f"{name}=" for name in names)
