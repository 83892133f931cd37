"""Models written as other projects name their arrays, and read back: the same arrays to the last bit, the same logits.

A few names of each project are spelled out here, so that a table read wrongly in both directions is seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minivit
from minivit import pretrained
from minivit.io.safetensors import CheckpointError
from minivit.io.weights import read_weights
from minivit.pretrained.layouts import LAYOUTS

VIT: dict[str, Any] = {"img_size": 8, "patch_size": 4, "in_chans": 3, "num_classes": 5, "embed_dim": 8, "depth": 2}
VIT |= {"num_heads": 2, "mlp_ratio": 2.0}
SWIN: dict[str, Any] = {"img_size": 32, "patch_size": 2, "in_chans": 3, "num_classes": 5, "embed_dim": 8}
SWIN |= {"depths": (2, 2), "num_heads": (1, 2), "window_size": 8, "mlp_ratio": 2.0, "drop_path_rate": 0.0}
MODELS: dict[str, Any] = {
    "ViT": lambda **more: minivit.ViT(**(VIT | more), dtype="float64"),
    "Swin": lambda **more: minivit.Swin(**(SWIN | more), dtype="float64"),
    "SwinV2": lambda **more: minivit.SwinV2(**(SWIN | more), cpb_hidden=6, dtype="float64"),
}
# families after the first ViT: test_families.py
CASES = sorted({(layout.source, layout.model) for layout in LAYOUTS if layout.written and not layout.family})
# where some arrays stand in each project's files: their name, ours, and how ours becomes theirs
SPELLED = {
    ("huggingface", "ViT"): [
        ("vit.encoder.layer.1.attention.attention.key.weight", "blocks.1.attn.qkv.weight", lambda a: a[8:16]),
        ("vit.embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight", lambda a: a),
        ("vit.encoder.layer.0.output.dense.bias", "blocks.0.mlp.fc2.bias", lambda a: a),
        ("classifier.weight", "head.weight", lambda a: a),
    ],
    ("torchvision", "ViT"): [
        ("encoder.layers.encoder_layer_1.self_attention.in_proj_weight", "blocks.1.attn.qkv.weight", lambda a: a),
        ("encoder.layers.encoder_layer_0.mlp.3.weight", "blocks.0.mlp.fc2.weight", lambda a: a),
        ("class_token", "cls_token", lambda a: a),
        ("heads.head.bias", "head.bias", lambda a: a),
    ],
    ("google", "ViT"): [
        (
            "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/value/kernel",
            "blocks.1.attn.qkv.weight",
            lambda a: a[16:].T.reshape(8, 2, 4),
        ),
        (
            "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/out/kernel",
            "blocks.0.attn.proj.weight",
            lambda a: a.T.reshape(2, 4, 8),
        ),
        (
            "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias",
            "blocks.0.attn.qkv.bias",
            lambda a: a[:8].reshape(2, 4),
        ),
        ("embedding/kernel", "patch_embed.proj.weight", lambda a: a.transpose(2, 3, 1, 0)),
        ("Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel", "blocks.1.mlp.fc1.weight", lambda a: a.T),
        ("head/kernel", "head.weight", lambda a: a.T),
    ],
    ("microsoft", "Swin"): [
        ("layers.0.downsample.reduction.weight", "layers.1.downsample.reduction.weight", lambda a: a),
        ("head.weight", "head.fc.weight", lambda a: a),
    ],
    ("microsoft", "SwinV2"): [
        ("layers.1.blocks.0.attn.cpb_mlp.2.weight", "layers.1.blocks.0.attn.cpb_mlp.2.weight", lambda a: a),
        ("layers.0.blocks.1.attn.q_bias", "layers.0.blocks.1.attn.q_bias", lambda a: a),
    ],
    ("torchvision", "Swin"): [
        ("features.3.1.attn.qkv.weight", "layers.1.blocks.1.attn.qkv.weight", lambda a: a),
        ("features.2.norm.bias", "layers.1.downsample.norm.bias", lambda a: a),
        ("features.0.2.weight", "patch_embed.norm.weight", lambda a: a),
        ("features.1.0.mlp.3.bias", "layers.0.blocks.0.mlp.fc2.bias", lambda a: a),
    ],
    ("torchvision", "SwinV2"): [
        (
            "features.1.0.attn.qkv.bias",
            "layers.0.blocks.0.attn.q_bias",
            lambda a: np.concatenate((a, np.zeros(8), V_BIAS)),
        ),
        ("features.3.0.attn.logit_scale", "layers.1.blocks.0.attn.logit_scale", lambda a: a),
    ],
    ("huggingface", "Swin"): [
        (
            "swin.encoder.layers.1.blocks.0.attention.self.value.bias",
            "layers.1.blocks.0.attn.qkv.bias",
            lambda a: a[32:],
        ),
        ("swin.encoder.layers.0.downsample.norm.weight", "layers.1.downsample.norm.weight", lambda a: a),
    ],
    ("huggingface", "SwinV2"): [
        (
            "swinv2.encoder.layers.0.blocks.1.attention.self.continuous_position_bias_mlp.0.bias",
            "layers.0.blocks.1.attn.cpb_mlp.0.bias",
            lambda a: a,
        ),
        (
            "swinv2.encoder.layers.0.blocks.1.attention.self.key.weight",
            "layers.0.blocks.1.attn.qkv.weight",
            lambda a: a[8:16],
        ),
    ],
}
V_BIAS = np.arange(8.0)
# what a project's models have always, unlike a new one of minivit
ALWAYS = {("google", "ViT"): {"gelu": "tanh"}, ("wzmiaomiao", "Swin"): {"covered": "shift"}}


def filled(kind: str, **more: Any) -> Any:
    model = MODELS[kind](**more)
    rng = np.random.default_rng(3)
    for name, param in model.parameters().items():
        param.data = V_BIAS if name == "layers.0.blocks.0.attn.v_bias" else 0.3 * rng.standard_normal(param.shape)
    return model


def images(size: int) -> Any:
    return np.random.default_rng(4).standard_normal((2, 3, size, size))


@pytest.mark.parametrize(("source", "kind"), CASES)
def test_a_model_survives_the_journey(source: str, kind: str, tmp_path: Any) -> None:
    always = ALWAYS.get((source, kind), {})
    model, path = filled(kind, **always), tmp_path / f"weights.{'npz' if source == 'google' else 'safetensors'}"
    pretrained.export(model, path, source)
    twin = pretrained.load(MODELS[kind](**always), path)
    assert all(np.array_equal(param.data, twin.parameters()[name].data) for name, param in model.parameters().items())
    more = {"num_heads": 2} if kind == "ViT" else {"img_size": 32, "window_size": 8}
    more |= {name: model.config[name] for name in ("norm_eps", "gelu", "covered", "mask_value") if name in model.config}
    found = pretrained.from_pretrained(path, dtype="float64", **more)
    assert type(found) is type(model)
    x = images(model.config["img_size"])
    assert np.array_equal(found.predict(x), model.predict(x))


@pytest.mark.parametrize(("source", "kind"), SPELLED)
def test_names_and_axes_are_the_projects_own(source: str, kind: str, tmp_path: Any) -> None:
    always = ALWAYS.get((source, kind), {})
    model, path = filled(kind, **always), tmp_path / f"weights.{'npz' if source == 'google' else 'safetensors'}"
    pretrained.export(model, path, source)
    theirs = read_weights(path).arrays
    ours = model.state_dict()
    for name, our_name, change in SPELLED[source, kind]:
        assert np.array_equal(theirs[name], change(ours[our_name])), name


def test_every_project_is_spelled_out() -> None:
    assert set(SPELLED) == {case for case in CASES if case[0] not in ("timm", "wzmiaomiao")}


def test_an_unknown_project_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="layout='google' has no Swin.*timm"):
        pretrained.export(filled("Swin"), tmp_path / "x", "google")
    with pytest.raises(ValueError, match="'keras'.*choose"):
        pretrained.export(filled("ViT"), tmp_path / "x", "keras")


def test_other_classes_sizes_and_channels(tmp_path: Any) -> None:
    model, path, said = filled("ViT"), tmp_path / "weights.safetensors", list[str]()
    pretrained.export(model, path)
    other = pretrained.from_pretrained(
        path, num_classes=7, img_size=16, in_chans=1, num_heads=2, dtype="float64", report=said.append
    )
    assert other.predict(images(16)[:, :1]).shape == (2, 7)
    changed = {line.split(":")[1].split()[0] for line in said}
    assert changed == {"pos_embed", "patch_embed.proj.weight", "head.weight", "head.bias"} and len(said) == 4
    kernel = model.parameters()["patch_embed.proj.weight"].data
    gray = other.parameters()["patch_embed.proj.weight"].data
    assert np.allclose(gray, kernel.sum(axis=1, keepdims=True), rtol=1e-15)
    features = pretrained.from_pretrained(path, num_classes=0, num_heads=2, dtype="float64")
    assert np.allclose(features.predict(images(8)), model.features(images(8)), rtol=1e-12)


def test_another_window_resamples_the_bias(tmp_path: Any) -> None:
    model, path, said = filled("Swin"), tmp_path / "weights.safetensors", list[str]()
    pretrained.export(model, path)
    other = pretrained.from_pretrained(path, img_size=32, window_size=4, dtype="float64", report=said.append)
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert other.parameters()[name].shape == (49, 1) and any(name in line for line in said)


def test_what_is_no_model_says_so(tmp_path: Any) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.zeros(3), b=np.ones(2))
    with pytest.raises(CheckpointError, match="first 'a'.*known source.*huggingface"):
        pretrained.load(filled("ViT"), path)
    with pytest.raises(CheckpointError, match="no such file"):
        pretrained.from_pretrained(tmp_path / "nowhere.pth")
    pretrained.export(filled("Swin"), path.with_suffix(".safetensors"), "microsoft")
    with pytest.raises(CheckpointError, match="does not fit this ViT.*This is a microsoft checkpoint of a Swin"):
        pretrained.load(filled("ViT"), path.with_suffix(".safetensors"))
