"""What config.json says is honored or refused by name, and nothing of a file is dropped without a word."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn

from minivit import CheckpointError, ViT, export, from_pretrained, load, save
from minivit.io.safetensors import save_arrays
from minivit.io.weights import read_weights
from minivit.pretrained.preprocessing import preprocessing

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
        ({"architecture": "vit_base_mci_224"}, "architecture='vit_base_mci.*does not know.*give num_heads"),
        ({"model_args": {"act_layer": "silu"}}, "model_args act_layer='silu'"),
        ({"model_args": {"reg_tokens": 4}}, "says reg_tokens=4, and the arrays make a ViT with reg_tokens=0"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "says norm_layer='rmsnorm', and the arrays make a ViT"),
        ({"model_args": {"init_values": 0.1}}, "says init_values=0.1, and the arrays make a ViT with init_values=None"),
        ({"global_pool": "map"}, "global_pool='map', and the arrays have no attention pooling"),
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
    "storage_tokens": "register tokens under another name",
    "blocks.0.mlp.w1.weight": "a gated MLP under another name",
    "blocks.0.attns.2.attn.qkv.weight": "more than two parallel branches",
    "blocks.0.attn.lambda_a": "one factor for each softmax of differential attention",
}


@pytest.mark.parametrize("name", OTHER_PARTS)
def test_a_part_that_minivit_lacks_is_named_and_not_the_positions(tmp_path: Path, name: str) -> None:
    arrays = drawn(ViT, **SIZES).state_dict() | {name: np.ones(8)}
    arrays["pos_embed"] = arrays["pos_embed"][:, 1:]  # as models with these parts often have it
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match=rf"it has {OTHER_PARTS[name]} \({name}\).*no such parts") as error:
        from_pretrained(tmp_path / "x.safetensors")
    assert "pos_embed" not in str(error.value)


# options that the arrays show, and what must be given with them where no published model has such arrays
PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "LayerScale": ({"init_values": 0.1}, "num_heads= and norm_eps= and gelu="),
    "registers": ({"reg_tokens": 2, "no_embed_class": True}, "num_heads= and norm_eps= and gelu="),
    "pooled registers": (
        {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
        "num_heads= and norm_eps= and gelu= and pool_include_prefix=",
    ),
    "pre_norm": ({"pre_norm": True, "gelu": "quick", "norm_eps": 1e-5}, "num_heads= and norm_eps= and gelu="),
    "map": ({"class_token": False, "global_pool": "map"}, "num_heads= and norm_eps= and gelu="),
    "qk_norm": ({"qk_norm": True}, "norm_eps= and gelu="),  # whose size shows the heads
    "norms within": ({"scale_attn_norm": True, "scale_mlp_norm": True}, "num_heads= and norm_eps= and gelu="),
    "RMSNorm": ({"norm_layer": "rmsnorm"}, "num_heads= and norm_eps= and gelu= and norm_layer="),
    "SwiGLU": ({"mlp_layer": "swiglu"}, "num_heads= and norm_eps="),
    "packed SwiGLU": ({"mlp_layer": "swiglu_packed"}, "num_heads= and norm_eps= and mlp_layer="),
    "no projection biases": ({"proj_bias": False}, "num_heads= and norm_eps= and gelu="),
    "no last norm": ({"final_norm": False}, "num_heads= and norm_eps= and gelu="),
    "differential": ({"attn_layer": "diff"}, "norm_eps= and gelu="),
    "parallel_things": ({"block_fn": "parallel_things", "init_values": 1.0}, "num_heads= and norm_eps= and gelu="),
    "parallel_scaling": ({"block_fn": "parallel_scaling", "qkv_bias": False}, "num_heads= and norm_eps= and gelu="),
    "diff_parallel": ({"block_fn": "diff_parallel_scaling"}, "norm_eps= and gelu="),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_the_arrays_show_is_read_and_what_they_hide_is_asked_for(tmp_path: Path, part: str) -> None:
    options, asked = PARTS[part]
    model = drawn(ViT, **SIZES, **options)
    save_arrays(tmp_path / "x.safetensors", model.state_dict(), None)
    with pytest.raises(CheckpointError, match=f"none shows {asked}: give them"):
        from_pretrained(tmp_path / "x.safetensors")
    given = {name: model.config[name] for name in re.findall(r"(\w+)=", asked)}
    found = from_pretrained(tmp_path / "x.safetensors", **given)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(found.dtype)
    np.testing.assert_array_equal(found.predict(x), model.predict(x))
    with pytest.raises(CheckpointError, match="families with these parts differ in it: put the config.json"):
        preprocessing(tmp_path / "x.safetensors", found)


def test_rows_that_fit_with_and_without_prefix_tokens_are_asked_for(tmp_path: Path) -> None:
    """Nine rows: a grid of 3x3, or five prefix tokens and a grid of 2x2."""
    model = drawn(ViT, **{**SIZES, "img_size": 8, "patch_size": 4}, reg_tokens=4)
    save_arrays(tmp_path / "x.safetensors", model.state_dict(), None)
    given = {"num_heads": 2, "norm_eps": 1e-6, "gelu": "none"}
    with pytest.raises(CheckpointError, match="9 rows, with or without those of prefix tokens: give no_embed_class="):
        from_pretrained(tmp_path / "x.safetensors", **given)
    found = from_pretrained(tmp_path / "x.safetensors", **given, no_embed_class=False)
    assert found.config["img_size"] == 8


def test_a_class_token_without_a_position_is_read_from_the_number_of_rows(tmp_path: Path) -> None:
    model = drawn(ViT, **SIZES, no_embed_class=True)
    save_arrays(tmp_path / "x.safetensors", model.state_dict(), None)
    found = from_pretrained(tmp_path / "x.safetensors", num_heads=2, norm_eps=1e-6, gelu="none")
    assert found.config["no_embed_class"] is True
    larger = from_pretrained(tmp_path / "x.safetensors", num_heads=2, norm_eps=1e-6, gelu="none", img_size=32)
    assert larger.parameters()["pos_embed"].shape[1] == 4 * model.parameters()["pos_embed"].shape[1]


@pytest.mark.parametrize("options", [{"qkv_bias": "qv"}, {"mlp_layer": "swiglu_packed", "mlp_ratio": 64.0}])
def test_a_file_of_our_own_says_the_new_options(tmp_path: Path, options: dict[str, Any]) -> None:
    """Biases of q and v alone, and a gate whose second layer is half as large as the sizes suggest."""
    model = drawn(ViT, **SIZES, **options)
    save(model, tmp_path / "x.safetensors")
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
    np.testing.assert_array_equal(from_pretrained(tmp_path / "x.safetensors").predict(x), model.predict(x))
