"""What config.json says is honored or refused by name, and nothing of a file is dropped without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn

from minivit import CheckpointError, ViT, export, from_pretrained, save
from minivit.io.safetensors import save_arrays

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
        ({"architecture": "vit_so400m_patch14_siglip_224"}, "architecture='vit_so400m.*does not know.*say num_heads"),
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
