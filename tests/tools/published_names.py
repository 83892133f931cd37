"""Dictionaries of arrays as other projects name them, written out loop by loop, without `minivit.pretrained`.

Each function takes a model's arrays under minivit's names and the model, and returns them under the source's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit import SwinV2

PARTS = ("weight", "bias")


def drawn(kind: Any, **arguments: Any) -> Any:
    """A model with every parameter far from its start."""
    model, rng = kind(**arguments, dtype="float64"), np.random.default_rng(7)
    for name, param in model.parameters().items():
        start = np.log(10) if "logit_scale" in name else float("norm" in name and name.endswith("weight"))
        param.data = start + (0.1 if "cpb_mlp" in name else 0.3) * rng.standard_normal(param.shape)
    return model


def both(out: dict[str, Any], a: dict[str, Any], theirs: str, ours: str) -> None:
    """A weight and a bias, the latter where there is one."""
    for part in PARTS:
        if f"{ours}.{part}" in a:
            out[f"{theirs}.{part}"] = a[f"{ours}.{part}"]


def thirds(array: Any) -> Any:
    size = len(array) // 3
    return array[:size], array[size : 2 * size], array[2 * size :]


def sides(model: Any, stage: int) -> tuple[int, int]:
    """The window and the map of a stage."""
    grid = model.config["img_size"] // model.config["patch_size"] // 2**stage
    return min(model.config["window_size"], grid), grid


def tables(out: dict[str, Any], block: str, model: Any, stage: int, flat: bool) -> None:
    """What Microsoft and torchvision keep beside the parameters of a window's attention."""
    side, _ = sides(model, stage)
    index = np.zeros((side * side, side * side), np.int64)
    for q in range(side * side):
        for k in range(side * side):
            rows, columns = q // side - k // side + side - 1, q % side - k % side + side - 1
            index[q, k] = rows * (2 * side - 1) + columns
    out[f"{block}.attn.relative_position_index"] = index.reshape(-1) if flat else index
    if isinstance(model, SwinV2):
        trained = model.config["pretrained_window_sizes"][stage] or side
        steps = np.arange(1 - side, side) * 8 / (trained - 1)
        axis = np.sign(steps) * np.log2(np.abs(steps) + 1) / 3
        grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)[None]
        out[f"{block}.attn.relative_coords_table"] = grid.astype(np.float32)


def microsoft(a: dict[str, Any], model: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    both(out, a, "patch_embed.proj", "patch_embed.proj")
    both(out, a, "patch_embed.norm", "patch_embed.norm")
    depths = model.config["depths"]
    for stage, depth in enumerate(depths):
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}"
            side, grid = sides(model, stage)
            if number % 2 and grid > side:
                out[f"{block}.attn_mask"] = np.full(((grid // side) ** 2, side**2, side**2), -100.0, np.float32)
            tables(out, block, model, stage, flat=False)
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2", "attn.qkv", "attn.proj"):
                both(out, a, f"{block}.{name}", f"{block}.{name}")
            if isinstance(model, SwinV2):
                for name in (
                    "q_bias",
                    "v_bias",
                    "logit_scale",
                    "cpb_mlp.0.weight",
                    "cpb_mlp.0.bias",
                    "cpb_mlp.2.weight",
                ):
                    out[f"{block}.attn.{name}"] = a[f"{block}.attn.{name}"]
            else:
                out[f"{block}.attn.relative_position_bias_table"] = a[f"{block}.attn.relative_position_bias_table"]
        if stage + 1 < len(depths):
            out[f"layers.{stage}.downsample.reduction.weight"] = a[f"layers.{stage + 1}.downsample.reduction.weight"]
            both(out, a, f"layers.{stage}.downsample.norm", f"layers.{stage + 1}.downsample.norm")
    both(out, a, "norm", "norm")
    both(out, a, "head", "head.fc")
    return out


def torchvision_vit(a: dict[str, Any], model: Any, fc1: str = "mlp.0", fc2: str = "mlp.3") -> dict[str, Any]:
    out = {"class_token": a["cls_token"], "encoder.pos_embedding": a["pos_embed"]}
    both(out, a, "conv_proj", "patch_embed.proj")
    for i in range(model.config["depth"]):
        block = f"encoder.layers.encoder_layer_{i}"
        both(out, a, f"{block}.ln_1", f"blocks.{i}.norm1")
        for part in PARTS:
            out[f"{block}.self_attention.in_proj_{part}"] = a[f"blocks.{i}.attn.qkv.{part}"]
        both(out, a, f"{block}.self_attention.out_proj", f"blocks.{i}.attn.proj")
        both(out, a, f"{block}.ln_2", f"blocks.{i}.norm2")
        both(out, a, f"{block}.{fc1}", f"blocks.{i}.mlp.fc1")
        both(out, a, f"{block}.{fc2}", f"blocks.{i}.mlp.fc2")
    both(out, a, "encoder.ln", "norm")
    both(out, a, "heads.pre_logits", "pre_logits.fc")
    both(out, a, "heads.head", "head")
    return out


def torchvision_old(a: dict[str, Any], model: Any) -> dict[str, Any]:
    return torchvision_vit(a, model, "mlp.linear_1", "mlp.linear_2")


def torchvision_swin(a: dict[str, Any], model: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    both(out, a, "features.0.0", "patch_embed.proj")
    both(out, a, "features.0.2", "patch_embed.norm")
    for stage, depth in enumerate(model.config["depths"]):
        if stage:
            out[f"features.{2 * stage}.reduction.weight"] = a[f"layers.{stage}.downsample.reduction.weight"]
            both(out, a, f"features.{2 * stage}.norm", f"layers.{stage}.downsample.norm")
        for number in range(depth):
            block, ours = f"features.{2 * stage + 1}.{number}", f"layers.{stage}.blocks.{number}"
            tables(out, block, model, stage, flat=True)
            for theirs, name in (("norm1", "norm1"), ("norm2", "norm2"), ("mlp.0", "mlp.fc1"), ("mlp.3", "mlp.fc2")):
                both(out, a, f"{block}.{theirs}", f"{ours}.{name}")
            both(out, a, f"{block}.attn.qkv", f"{ours}.attn.qkv")
            both(out, a, f"{block}.attn.proj", f"{ours}.attn.proj")
            if isinstance(model, SwinV2):
                query, value = a[f"{ours}.attn.q_bias"], a[f"{ours}.attn.v_bias"]
                out[f"{block}.attn.qkv.bias"] = np.array([*query, *[0.0] * len(query), *value])
                for name in ("logit_scale", "cpb_mlp.0.weight", "cpb_mlp.0.bias", "cpb_mlp.2.weight"):
                    out[f"{block}.attn.{name}"] = a[f"{ours}.attn.{name}"]
            else:
                out[f"{block}.attn.relative_position_bias_table"] = a[f"{ours}.attn.relative_position_bias_table"]
    both(out, a, "norm", "norm")
    both(out, a, "head", "head.fc")
    return out


def huggingface_vit(a: dict[str, Any], model: Any, prefix: str = "vit.") -> dict[str, Any]:
    e = f"{prefix}embeddings."
    out = {f"{e}cls_token": a["cls_token"], f"{e}position_embeddings": a["pos_embed"]}
    both(out, a, f"{e}patch_embeddings.projection", "patch_embed.proj")
    for i in range(model.config["depth"]):
        block = f"{prefix}encoder.layer.{i}"
        for part in PARTS:
            for name, third in zip(("query", "key", "value"), thirds(a[f"blocks.{i}.attn.qkv.{part}"])):
                out[f"{block}.attention.attention.{name}.{part}"] = third
        both(out, a, f"{block}.attention.output.dense", f"blocks.{i}.attn.proj")
        both(out, a, f"{block}.intermediate.dense", f"blocks.{i}.mlp.fc1")
        both(out, a, f"{block}.output.dense", f"blocks.{i}.mlp.fc2")
        both(out, a, f"{block}.layernorm_before", f"blocks.{i}.norm1")
        both(out, a, f"{block}.layernorm_after", f"blocks.{i}.norm2")
    both(out, a, f"{prefix}layernorm", "norm")
    if "dist_token" in a:
        out[f"{e}distillation_token"] = a["dist_token"]
        both(out, a, "cls_classifier", "head")
        both(out, a, "distillation_classifier", "head_dist")
    else:
        both(out, a, "classifier", "head")
    return out


def huggingface_deit(a: dict[str, Any], model: Any) -> dict[str, Any]:
    return huggingface_vit(a, model, "deit.")


def huggingface_base(a: dict[str, Any], model: Any) -> dict[str, Any]:
    """google/vit-base-patch16-224-in21k: no prefix, no classifier, and a pooler that nothing here reads."""
    pooler = {"pooler.dense.weight": np.ones((24, 24)), "pooler.dense.bias": np.ones(24)}
    return huggingface_vit(a, model, "") | pooler


def huggingface_swin(a: dict[str, Any], model: Any, prefix: str | None = None) -> dict[str, Any]:
    second = isinstance(model, SwinV2)
    prefix = ("swinv2." if second else "swin.") if prefix is None else prefix
    out: dict[str, Any] = {}
    both(out, a, f"{prefix}embeddings.patch_embeddings.projection", "patch_embed.proj")
    both(out, a, f"{prefix}embeddings.norm", "patch_embed.norm")
    depths = model.config["depths"]
    for stage, depth in enumerate(depths):
        for number in range(depth):
            block, ours = f"{prefix}encoder.layers.{stage}.blocks.{number}", f"layers.{stage}.blocks.{number}"
            both(out, a, f"{block}.layernorm_before", f"{ours}.norm1")
            for name, third in zip(("query", "key", "value"), thirds(a[f"{ours}.attn.qkv.weight"])):
                out[f"{block}.attention.self.{name}.weight"] = third
            if second:
                out[f"{block}.attention.self.query.bias"] = a[f"{ours}.attn.q_bias"]
                out[f"{block}.attention.self.value.bias"] = a[f"{ours}.attn.v_bias"]
                out[f"{block}.attention.self.logit_scale"] = a[f"{ours}.attn.logit_scale"]
                for name in ("0.weight", "0.bias", "2.weight"):
                    mlp = f"{block}.attention.self.continuous_position_bias_mlp.{name}"
                    out[mlp] = a[f"{ours}.attn.cpb_mlp.{name}"]
            else:
                for name, third in zip(("query", "key", "value"), thirds(a[f"{ours}.attn.qkv.bias"])):
                    out[f"{block}.attention.self.{name}.bias"] = third
                table = "relative_position_bias_table"
                out[f"{block}.attention.self.{table}"] = a[f"{ours}.attn.{table}"]
                out[f"{block}.attention.self.relative_position_index"] = np.zeros((9, 9), np.int64)
            both(out, a, f"{block}.attention.output.dense", f"{ours}.attn.proj")
            both(out, a, f"{block}.layernorm_after", f"{ours}.norm2")
            both(out, a, f"{block}.intermediate.dense", f"{ours}.mlp.fc1")
            both(out, a, f"{block}.output.dense", f"{ours}.mlp.fc2")
        if stage + 1 < len(depths):
            merging = f"{prefix}encoder.layers.{stage}.downsample"
            out[f"{merging}.reduction.weight"] = a[f"layers.{stage + 1}.downsample.reduction.weight"]
            both(out, a, f"{merging}.norm", f"layers.{stage + 1}.downsample.norm")
    both(out, a, f"{prefix}layernorm", "norm")
    both(out, a, "classifier", "head.fc")
    return out


def google(a: dict[str, Any], model: Any, prefix: str = "") -> dict[str, Any]:
    out = {"cls": a["cls_token"], "Transformer/posembed_input/pos_embedding": a["pos_embed"]}
    out["embedding/kernel"] = np.einsum("oihw->hwio", a["patch_embed.proj.weight"])
    out["embedding/bias"] = a["patch_embed.proj.bias"]
    if model.config["resnet_layers"] is not None:
        google_stem(out, a, model.config["resnet_layers"])
    heads, dim = model.config["num_heads"], model.config["embed_dim"]

    def norm(theirs: str, ours: str) -> None:
        out[f"{theirs}/scale"], out[f"{theirs}/bias"] = a[f"{ours}.weight"], a[f"{ours}.bias"]

    def dense(theirs: str, ours: str) -> None:
        out[f"{theirs}/kernel"], out[f"{theirs}/bias"] = np.einsum("oi->io", a[f"{ours}.weight"]), a[f"{ours}.bias"]

    for i in range(model.config["depth"]):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        norm(f"{block}/LayerNorm_0", f"blocks.{i}.norm1")
        norm(f"{block}/LayerNorm_2", f"blocks.{i}.norm2")
        weights, biases = thirds(a[f"blocks.{i}.attn.qkv.weight"]), thirds(a[f"blocks.{i}.attn.qkv.bias"])
        for name, weight, bias in zip(("query", "key", "value"), weights, biases):
            # (D, H, d): a channel of the input, a head, and a channel within the head
            kernel = np.einsum("hdc->chd", weight.reshape(heads, dim // heads, dim))
            out[f"{attention}/{name}/kernel"], out[f"{attention}/{name}/bias"] = kernel, bias.reshape(heads, -1)
        proj = a[f"blocks.{i}.attn.proj.weight"].reshape(dim, heads, dim // heads)
        out[f"{attention}/out/kernel"] = np.einsum("chd->hdc", proj)
        out[f"{attention}/out/bias"] = a[f"blocks.{i}.attn.proj.bias"]
        dense(f"{block}/MlpBlock_3/Dense_0", f"blocks.{i}.mlp.fc1")
        dense(f"{block}/MlpBlock_3/Dense_1", f"blocks.{i}.mlp.fc2")
    norm("Transformer/encoder_norm", "norm")
    if "pre_logits.fc.weight" in a:
        dense("pre_logits", "pre_logits.fc")
    dense("head", "head")
    return {f"{prefix}{name}": array for name, array in out.items()}


def google_stem(out: dict[str, Any], a: dict[str, Any], layers: tuple[int, ...]) -> None:
    """The root, and the units of each block; both count from 1."""

    def convolution(conv: str, norm: str, ours: str, our_norm: str) -> None:
        out[f"{conv}/kernel"] = np.einsum("oihw->hwio", a[f"patch_embed.backbone.{ours}.weight"])
        for theirs, part in (("scale", "weight"), ("bias", "bias")):
            out[f"{norm}/{theirs}"] = a[f"patch_embed.backbone.{our_norm}.{part}"]

    root = "stem." if layers else ""
    convolution("conv_root", "gn_root", f"{root}conv", f"{root}norm")
    for i, depth in enumerate(layers):
        for j in range(depth):
            theirs, ours = f"block{i + 1}/unit{j + 1}", f"stages.{i}.blocks.{j}"
            for n in (1, 2, 3):
                convolution(f"{theirs}/conv{n}", f"{theirs}/gn{n}", f"{ours}.conv{n}", f"{ours}.norm{n}")
            if j == 0:
                convolution(
                    f"{theirs}/conv_proj", f"{theirs}/gn_proj", f"{ours}.downsample.conv", f"{ours}.downsample.norm"
                )


def google_old_norms(a: dict[str, Any], model: Any) -> dict[str, Any]:
    """As the first Flax wrote it: a GroupNorm's numbers with three axes of 1 before them."""
    return {
        name: x.reshape(1, 1, 1, -1) if "/gn" in name or "gn_" in name else x for name, x in google(a, model).items()
    }


def timm(a: dict[str, Any], model: Any) -> dict[str, Any]:
    return dict(a)
