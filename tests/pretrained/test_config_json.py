"""What config.json says is honored or refused by name, and nothing of a file is dropped without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn

from minivit import CheckpointError, ViT, export, from_pretrained, load, save
from minivit.io.safetensors import save_arrays
from minivit.io.weights import read_weights

TIMM = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 16, 16]}}
SIZES = {"img_size": 16, "patch_size": 4, "in_chans": 3, "num_classes": 5, "embed_dim": 8, "depth": 1, "num_heads": 2}


def beside(folder: Path, config: dict[str, Any], **options: Any) -> tuple[Path, ViT]:
    """A ViT's file under timm's names with a config.json beside it."""
    model = drawn(ViT, **{**SIZES, **options})
    export(model, folder / "model.safetensors", "timm")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder, model


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ({"act_layer": "gelu_tanh"}, {"gelu": "tanh"}),
        ({"norm_eps": 1e-2}, {"norm_eps": 1e-2}),
        ({"global_pool": "avg", "fc_norm": False}, {"global_pool": "avg", "fc_norm": False}),
        ({"drop_path_rate": 0.25}, {"drop_path_rate": 0.25}),
        ({"norm_layer": "layernorm", "weight_init": "skip", "depth": 1}, {}),
    ],
)
def test_timms_model_args_are_honored(tmp_path: Path, args: Any, options: Any) -> None:
    path, model = beside(tmp_path, {**TIMM, "model_args": {"num_heads": 2, **args}}, **options)
    found = from_pretrained(path)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(found.dtype)
    np.testing.assert_array_equal(found.predict(x), model.predict(x))
    assert {name: found.config[name] for name in options} == options


def test_timms_pooling_at_the_top_of_config_json_is_honored(tmp_path: Path) -> None:
    config = {**TIMM, "global_pool": "avg", "model_args": {"num_heads": 2, "fc_norm": False}}
    path, _ = beside(tmp_path, config, global_pool="avg", fc_norm=False)
    assert from_pretrained(path).config["global_pool"] == "avg"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vit_so400m_patch14_siglip_224"}, "architecture='vit_so400m.*does not know.*give num_heads"),
        ({"model_args": {"act_layer": "silu"}}, "model_args act_layer='silu'"),
        ({"model_args": {"reg_tokens": 4}}, "model_args reg_tokens=4"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "model_args norm_layer='rmsnorm'"),
        ({"global_pool": "map"}, "global_pool='map'"),
        ({"model_type": "swin"}, "model_type='swin'.*belongs to another file"),
        ({"hidden_size": 192}, "embed_dim=192, and the arrays make a ViT with embed_dim=8.*belongs to another file"),
        ({"num_hidden_layers": 12}, "depth=12, and the arrays make a ViT with depth=1"),
    ],
)
def test_what_cannot_be_honored_is_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    path, _ = beside(tmp_path, {**TIMM, **change})
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(path)


@pytest.mark.parametrize("head", ["head.0", "head.1", "head.fc", "head.mlp.0", "heads", "fc", "classifier"])
def test_a_head_under_another_name_is_never_dropped(tmp_path: Path, head: str) -> None:
    model = drawn(ViT, **SIZES)
    arrays = {name.replace("head.", f"{head}."): array for name, array in model.state_dict().items()}
    save_arrays(tmp_path / "model.safetensors", arrays, None)
    found = from_pretrained(tmp_path, num_heads=2)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(found.dtype)
    np.testing.assert_array_equal(found.predict(x), model.predict(x))
    features = from_pretrained(tmp_path, num_heads=2, num_classes=0)
    assert features.num_classes == 0


def test_a_head_of_two_layers_is_refused(tmp_path: Path) -> None:
    arrays = drawn(ViT, **SIZES).state_dict()
    arrays |= {f"head.{layer}.{part}": arrays[f"head.{part}"] for layer in (0, 2) for part in ("weight", "bias")}
    del arrays["head.weight"], arrays["head.bias"]
    save_arrays(tmp_path / "model.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match="4 names are not the model's"):
        from_pretrained(tmp_path)


def test_of_several_files_none_is_guessed(tmp_path: Path) -> None:
    for name in ("epoch_2", "epoch_10", "best"):
        save(drawn(ViT, **SIZES), tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"3 files of weights \('best.safetensors'.*choose one and pass its path"):
        from_pretrained(tmp_path)


# --- parts that minivit's models have, under other conditions, and parts that they have not ---


def test_a_distilled_model_without_classes_gives_the_mean_of_its_tokens(tmp_path: Path) -> None:
    model = drawn(ViT, **SIZES, distilled=True)
    export(model, tmp_path / "x.safetensors", "timm")
    found = from_pretrained(tmp_path / "x.safetensors", num_classes=0, num_heads=2)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
    tokens = x
    for layer in (model.embed, *model.blocks, model.norm):
        tokens, _ = layer(tokens)
    np.testing.assert_allclose(found.predict(x), tokens[:, :2].mean(axis=1), rtol=1e-12)


def test_a_token_of_masked_pretraining_is_left_out_and_said(tmp_path: Path) -> None:
    model = drawn(ViT, **SIZES)
    for layout, name in (("timm", "mask_token"), ("huggingface", "vit.embeddings.mask_token")):
        export(model, tmp_path / "x.safetensors", layout)
        arrays = read_weights(tmp_path / "x.safetensors").arrays | {name: np.ones((1, 8))}
        save_arrays(tmp_path / "y.safetensors", arrays, None)
        lines: list[str] = []
        found = from_pretrained(tmp_path / "y.safetensors", num_heads=2, norm_eps=1e-6, report=lines.append)
        x = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
        np.testing.assert_array_equal(found.predict(x), model.predict(x))
        assert lines == [f"minivit: omitted, as not part of the model: '{name}'"]
        load(drawn(ViT, **SIZES), tmp_path / "y.safetensors")


OTHER_PARTS = {
    "blocks.0.ls1.gamma": "LayerScale",
    "blocks.0.gamma_1": "LayerScale",
    "reg_token": "register tokens",
    "attn_pool.latent": "attention pooling",
    "norm_pre.weight": "a norm before the blocks",
    "blocks.0.attn.q_norm.weight": "norms of queries and keys",
    "blocks.0.mlp.norm.weight": "norms within attention or MLP",
    "blocks.0.mlp.fc1_g.weight": "a gated MLP",
    "blocks.0.attns.0.qkv.weight": "parallel branches",
}


@pytest.mark.parametrize("name", OTHER_PARTS)
def test_a_part_that_minivit_lacks_is_named_and_not_the_positions(tmp_path: Path, name: str) -> None:
    arrays = drawn(ViT, **SIZES).state_dict() | {name: np.ones(8)}
    arrays["pos_embed"] = arrays["pos_embed"][:, 1:]  # as models with these parts often have it
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match=rf"it has {OTHER_PARTS[name]} \({name}\).*no such parts") as error:
        from_pretrained(tmp_path / "x.safetensors")
    assert "pos_embed" not in str(error.value)


def test_positions_without_one_for_the_class_token_are_refused_as_such(tmp_path: Path) -> None:
    arrays = drawn(ViT, **SIZES).state_dict()
    arrays["pos_embed"] = arrays["pos_embed"][:, 1:]
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match="16 positions, a square, so none for the class token"):
        from_pretrained(tmp_path / "x.safetensors")
