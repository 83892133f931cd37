"""Arrays under the names of the projects that published the ViTs after ViT, written out by loops.

Nothing here comes from `minivit.pretrained`, so that a table read wrongly there is seen. A writer takes a model's
arrays and the model, and returns the arrays of such a file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from published_names import PARTS, both, thirds


def clip(a: dict[str, Any], model: Any, prefix: str = "visual.") -> dict[str, Any]:
    """openai/CLIP's and OpenCLIP's image tower; with a prefix, beside a text tower."""
    out: dict[str, Any] = {
        f"{prefix}class_embedding": a["cls_token"][0, 0],
        f"{prefix}positional_embedding": a["pos_embed"][0],
        f"{prefix}conv1.weight": a["patch_embed.proj.weight"],
    }
    both(out, a, f"{prefix}ln_pre", "norm_pre")
    for i in range(model.config["depth"]):
        block = f"{prefix}transformer.resblocks.{i}"
        both(out, a, f"{block}.ln_1", f"blocks.{i}.norm1")
        both(out, a, f"{block}.ln_2", f"blocks.{i}.norm2")
        for part in PARTS:
            out[f"{block}.attn.in_proj_{part}"] = a[f"blocks.{i}.attn.qkv.{part}"]
        both(out, a, f"{block}.attn.out_proj", f"blocks.{i}.attn.proj")
        both(out, a, f"{block}.mlp.c_fc", f"blocks.{i}.mlp.fc1")
        both(out, a, f"{block}.mlp.c_proj", f"blocks.{i}.mlp.fc2")
    both(out, a, f"{prefix}ln_post", "norm")
    if "head.weight" in a:
        out[f"{prefix}proj"] = np.einsum("kd->dk", a["head.weight"])
    return {**out, **clip_text()} if prefix else out


def clip_text(prefix: str = "") -> dict[str, Any]:
    """A text tower, some of whose names are those of an image tower without `visual.`."""
    out = {f"{prefix}{name}": np.ones((4, 6)) for name in ("token_embedding.weight", "positional_embedding")}
    block = f"{prefix}transformer.resblocks.0"
    out |= {f"{block}.attn.in_proj_weight": np.ones((18, 6)), f"{block}.attn.in_proj_bias": np.ones(18)}
    out |= {f"{block}.ln_1.weight": np.ones(6), f"{prefix}ln_final.weight": np.ones(6)}
    return {**out, f"{prefix}text_projection": np.ones((6, 5)), "logit_scale": np.ones(())}


def clip_alone(a: dict[str, Any], model: Any) -> dict[str, Any]:
    return clip(a, model, "")


def clip_in_module(a: dict[str, Any], model: Any) -> dict[str, Any]:
    return {f"module.{name}": array for name, array in clip(a, model).items()}


def trunk(a: dict[str, Any], model: Any) -> dict[str, Any]:
    """OpenCLIP with a model of timm's, its projection outside of it, and a text tower in `text`."""
    out = {f"visual.trunk.{name}": array for name, array in a.items() if not name.startswith("head")}
    if "head.weight" in a:
        out["visual.head.proj.weight"] = a["head.weight"]
    return {**out, **clip_text("text."), "logit_bias": np.ones(())}


def huggingface_tower(a: dict[str, Any], model: Any, prefix: str = "vision_model.") -> dict[str, Any]:
    """The image tower of transformers' CLIP or SigLIP."""
    out: dict[str, Any] = {f"{prefix}embeddings.position_embedding.weight": a["pos_embed"][0]}
    if "cls_token" in a:
        out[f"{prefix}embeddings.class_embedding"] = a["cls_token"][0, 0]
    both(out, a, f"{prefix}embeddings.patch_embedding", "patch_embed.proj")
    both(out, a, f"{prefix}pre_layrnorm", "norm_pre")
    for i in range(model.config["depth"]):
        layer = f"{prefix}encoder.layers.{i}"
        both(out, a, f"{layer}.layer_norm1", f"blocks.{i}.norm1")
        both(out, a, f"{layer}.layer_norm2", f"blocks.{i}.norm2")
        for part in PARTS:
            for name, third in zip("qkv", thirds(a[f"blocks.{i}.attn.qkv.{part}"])):
                out[f"{layer}.self_attn.{name}_proj.{part}"] = third
        both(out, a, f"{layer}.self_attn.out_proj", f"blocks.{i}.attn.proj")
        both(out, a, f"{layer}.mlp.fc1", f"blocks.{i}.mlp.fc1")
        both(out, a, f"{layer}.mlp.fc2", f"blocks.{i}.mlp.fc2")
    both(out, a, f"{prefix}post_layernorm", "norm")
    if "attn_pool.latent" in a:
        out[f"{prefix}head.probe"] = a["attn_pool.latent"]
        for part in PARTS:
            joint = np.concatenate((a[f"attn_pool.q.{part}"], a[f"attn_pool.kv.{part}"]))
            out[f"{prefix}head.attention.in_proj_{part}"] = joint
        both(out, a, f"{prefix}head.attention.out_proj", "attn_pool.proj")
        both(out, a, f"{prefix}head.layernorm", "attn_pool.norm")
        both(out, a, f"{prefix}head.mlp.fc1", "attn_pool.mlp.fc1")
        both(out, a, f"{prefix}head.mlp.fc2", "attn_pool.mlp.fc2")
    elif "head.weight" in a:
        out["visual_projection.weight"] = a["head.weight"]
    return out


def huggingface_dino(a: dict[str, Any], model: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"embeddings.mask_token": np.zeros((1, model.config["embed_dim"]))}
    placed(out, a, "embeddings.cls_token", "embeddings.position_embeddings")
    if "reg_token" in a:
        out["embeddings.register_tokens"] = a["reg_token"]
    both(out, a, "embeddings.patch_embeddings.projection", "patch_embed.proj")
    names = ("weights_in", "weights_out") if model.config["mlp_layer"] == "swiglu_packed" else ("fc1", "fc2")
    for i in range(model.config["depth"]):
        layer = f"encoder.layer.{i}"
        both(out, a, f"{layer}.norm1", f"blocks.{i}.norm1")
        both(out, a, f"{layer}.norm2", f"blocks.{i}.norm2")
        for part in PARTS:
            for name, third in zip(("query", "key", "value"), thirds(a[f"blocks.{i}.attn.qkv.{part}"])):
                out[f"{layer}.attention.attention.{name}.{part}"] = third
        both(out, a, f"{layer}.attention.output.dense", f"blocks.{i}.attn.proj")
        for theirs, ours in zip(names, ("fc1", "fc2")):
            both(out, a, f"{layer}.mlp.{theirs}", f"blocks.{i}.mlp.{ours}")
        for n in (1, 2):
            out[f"{layer}.layer_scale{n}.lambda1"] = a[f"blocks.{i}.ls{n}.gamma"]
    both(out, a, "layernorm", "norm")
    return out


def huggingface_dino3(a: dict[str, Any], model: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"embeddings.cls_token": a["cls_token"], "embeddings.register_tokens": a["reg_token"]}
    out["embeddings.mask_token"] = np.zeros((1, 1, model.config["embed_dim"]))
    both(out, a, "embeddings.patch_embeddings", "patch_embed.proj")
    names = [("up_proj", "fc1"), ("down_proj", "fc2")]
    if model.config["mlp_layer"] == "swiglu":
        names = [("gate_proj", "fc1_g"), ("up_proj", "fc1_x"), ("down_proj", "fc2")]
    for i in range(model.config["depth"]):
        for name, third in zip("qkv", thirds(a[f"blocks.{i}.attn.qkv.weight"])):
            out[f"layer.{i}.attention.{name}_proj.weight"] = third
        for name in "qv":
            out[f"layer.{i}.attention.{name}_proj.bias"] = a[f"blocks.{i}.attn.{name}_bias"]
        both(out, a, f"layer.{i}.attention.o_proj", f"blocks.{i}.attn.proj")
        for theirs, ours in names:
            both(out, a, f"layer.{i}.mlp.{theirs}", f"blocks.{i}.mlp.{ours}")
        for n in (1, 2):
            both(out, a, f"layer.{i}.norm{n}", f"blocks.{i}.norm{n}")
            out[f"layer.{i}.layer_scale{n}.lambda1"] = a[f"blocks.{i}.ls{n}.gamma"]
    both(out, a, "norm", "norm")
    return out


def huggingface_beit(a: dict[str, Any], model: Any, prefix: str = "beit.") -> dict[str, Any]:
    out: dict[str, Any] = {f"{prefix}embeddings.cls_token": a["cls_token"]}
    both(out, a, f"{prefix}embeddings.patch_embeddings.projection", "patch_embed.proj")
    for i in range(model.config["depth"]):
        layer, block = f"{prefix}encoder.layer.{i}", f"blocks.{i}"
        attention = f"{layer}.attention.attention"
        for name, third in zip(("query", "key", "value"), thirds(a[f"{block}.attn.qkv.weight"])):
            out[f"{attention}.{name}.weight"] = third
        out[f"{attention}.query.bias"], out[f"{attention}.value.bias"] = (a[f"{block}.attn.{p}_bias"] for p in "qv")
        table = "relative_position_bias_table"
        out[f"{attention}.relative_position_bias.{table}"] = a[f"{block}.attn.{table}"]
        both(out, a, f"{layer}.attention.output.dense", f"{block}.attn.proj")
        both(out, a, f"{layer}.intermediate.dense", f"{block}.mlp.fc1")
        both(out, a, f"{layer}.output.dense", f"{block}.mlp.fc2")
        for n, where in ((1, "before"), (2, "after")):
            both(out, a, f"{layer}.layernorm_{where}", f"{block}.norm{n}")
            out[f"{layer}.lambda_{n}"] = a[f"{block}.ls{n}.gamma"]
    both(out, a, f"{prefix}pooler.layernorm", "fc_norm")
    both(out, a, "classifier", "head")
    return out


def placed(out: dict[str, Any], a: dict[str, Any], token: str, positions: str) -> None:
    """A class token and its position, which a model with registers has as one sum."""
    out[token], out[positions] = a["cls_token"], a["pos_embed"]
    if "reg_token" in a:
        row = np.zeros_like(a["cls_token"])
        out[positions] = np.concatenate((row, a["pos_embed"]), axis=1)


def moved_position(arrays: dict[str, Any], token: str, positions: str) -> dict[str, Any]:
    """The same function with a position of the class token that is not 0."""
    row = np.linspace(-1, 1, arrays[token].shape[-1])
    table = arrays[positions].copy()
    table[0, 0] += row
    return {**arrays, token: arrays[token] - row, positions: table}


def meta_dino(a: dict[str, Any], model: Any) -> dict[str, Any]:
    """facebookresearch/dinov2."""
    out = {name: array for name, array in a.items() if name not in ("cls_token", "reg_token", "pos_embed")}
    placed(out, a, "cls_token", "pos_embed")
    out["mask_token"] = np.ones((1, model.config["embed_dim"]))
    if "reg_token" in a:
        out["register_tokens"] = a["reg_token"]
        out = moved_position(out, "cls_token", "pos_embed")
    if model.config["mlp_layer"] == "swiglu_packed":
        out = {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): array for n, array in out.items()}
    return out


def meta_dino3(a: dict[str, Any], model: Any) -> dict[str, Any]:
    """facebookresearch/dinov3: k has a bias, which a mask sets to 0, and heads of 16 have these periods in bfloat16."""
    gates = {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "mlp.fc2": "mlp.w3"}
    gates = gates if model.config["mlp_layer"] == "swiglu" else {}
    out: dict[str, Any] = {"mask_token": np.ones((1, model.config["embed_dim"])), "storage_tokens": a["reg_token"]}
    out["rope_embed.periods"] = np.array([1, 3.15625, 10, 31.625], np.float32)
    for part in PARTS:
        out[f"local_cls_norm.{part}"] = np.ones(model.config["embed_dim"])
    for name, array in a.items():
        if name.endswith("q_bias"):
            k, v = np.full_like(array, 7), a[name.replace("q_bias", "v_bias")]
            fused = name.replace("q_bias", "qkv.bias")
            out[fused], out[f"{fused}_mask"] = np.concatenate((array, k, v)), np.repeat((1.0, 0.0, 1.0), k.size)
        elif not name.endswith("v_bias") and name != "reg_token":
            for ours, theirs in gates.items():
                name = name.replace(ours, theirs)
            out[name] = array
    return out


def meta_deit3(a: dict[str, Any], model: Any) -> dict[str, Any]:
    return {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): x for name, x in a.items()}


def meta_mae(a: dict[str, Any], model: Any) -> dict[str, Any]:
    dim = model.config["embed_dim"]
    out = {**a, "mask_token": np.ones((1, 1, 6)), "decoder_pos_embed": np.ones((1, 10, 6))}
    out |= {"decoder_embed.weight": np.ones((6, dim)), "decoder_embed.bias": np.ones(6)}
    return {**out, "decoder_blocks.0.attn.qkv.weight": np.ones((18, 6)), "decoder_pred.bias": np.ones(48)}


def meta_self_distilled(a: dict[str, Any], model: Any, prefix: str = "") -> dict[str, Any]:
    """facebookresearch/dino's teacher or student, with the projection head."""
    out = {f"{prefix}backbone.{name}": array for name, array in a.items()}
    head = {"mlp.0.weight": (4, 8), "mlp.0.bias": (4,), "mlp.2.weight": (4, 4), "last_layer.weight_g": (9, 1)}
    head |= {"last_layer.weight_v": (9, 4)}
    return out | {f"{prefix}head.{name}": np.ones(shape) for name, shape in head.items()}


def apple(a: dict[str, Any], model: Any) -> dict[str, Any]:
    out: dict[str, Any] = {"preprocessor.pos_embed": a["pos_embed"]}
    for each in ("proj", "norm"):
        both(out, a, f"preprocessor.patchifier.{each}", f"patch_embed.{each}")
    for i in range(model.config["depth"]):
        block = f"trunk.blocks.{i}"
        for theirs, ours in (
            ("norm_1", "norm1"),
            ("norm_2", "norm2"),
            ("attn.qkv", "attn.qkv"),
            ("attn.proj", "attn.proj"),
        ):
            both(out, a, f"{block}.{theirs}", f"blocks.{i}.{ours}")
        for theirs, ours in (("fc1", "fc1_g"), ("fc3", "fc1_x"), ("fc2", "fc2")):
            both(out, a, f"{block}.mlp.{theirs}", f"blocks.{i}.mlp.{ours}")
    both(out, a, "trunk.post_trunk_norm", "norm")
    return out
