"""`load` refuses a file whose configuration says a setting that the model has otherwise, and integers as weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn

from minivit import CheckpointError, Swin, ViT, export, from_pretrained, load, save
from minivit.io.safetensors import save_arrays

VIT: dict[str, Any] = {"img_size": 8, "patch_size": 4, "num_classes": 5, "embed_dim": 8, "depth": 2, "num_heads": 2}
MEAN: dict[str, Any] = {"global_pool": "avg", "fc_norm": False}
SWIN: dict[str, Any] = {"img_size": 16, "patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2,)}
SWIN |= {"num_heads": (2,), "window_size": 8}
PLAIN = {"architecture": "vit_tiny_patch16_224", "model_args": {"embed_dim": 8, "depth": 2, "num_heads": 2}}
SAID: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
    ("huggingface", {"hidden_act": "quick_gelu"}, {}, {"gelu": "quick"}),
    ("huggingface", {"layer_norm_eps": 1e-3}, {}, {"norm_eps": 1e-3}),
    ("timm", {"act_layer": "gelu_tanh"}, {}, {"gelu": "tanh"}),
    ("timm", {"norm_eps": 1e-3}, {}, {"norm_eps": 1e-3}),
    ("timm", {"global_pool": "avg", "fc_norm": False}, {}, {"global_pool": "avg"}),
    ("timm", {"global_pool": "token"}, MEAN, {"global_pool": "token"}),
    ("timm", {**MEAN, "pool_include_prefix": True}, MEAN, {"pool_include_prefix": True}),
]


@pytest.mark.parametrize(("layout", "said", "arguments", "settings"), SAID)
def test_what_config_json_says_otherwise_is_refused_by_name(
    tmp_path: Path, layout: str, said: Any, arguments: Any, settings: Any
) -> None:
    model = drawn(ViT, **VIT)
    export(model, tmp_path / "model.safetensors", layout)
    config = {**PLAIN, "model_args": {**PLAIN["model_args"], **said}} if layout == "timm" else said  # type: ignore[dict-item]
    (tmp_path / "config.json").write_text(json.dumps(config))
    other = ViT(**{**VIT, **arguments}, seed=3)
    before = other.state_dict()["head.weight"].copy()
    named = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    with pytest.raises(CheckpointError, match=f"config.json says {named}, .*build the model with {named}, or use from"):
        load(other, tmp_path / "model.safetensors")
    assert np.array_equal(other.state_dict()["head.weight"], before)
    load(
        ViT(**{**VIT, **arguments, **settings, **({"fc_norm": False} if "avg" in settings.values() else {})}), tmp_path
    )


def test_settings_without_effect_are_not_compared(tmp_path: Path) -> None:
    model = drawn(ViT, **VIT)
    export(model, tmp_path / "model.safetensors", "timm")
    rates = {"drop_rate": 0.5, "pool_include_prefix": True, "dynamic_img_size": True}
    (tmp_path / "config.json").write_text(json.dumps({**PLAIN, "model_args": {**rates, "num_heads": 2}}))
    load(ViT(**VIT), tmp_path)


def test_a_swin_that_always_partitions_is_refused_where_its_windows_cover_a_map(tmp_path: Path) -> None:
    model = drawn(Swin, **SWIN, covered="shift")
    export(model, tmp_path / "model.safetensors", "timm")
    said = {"architecture": "swin_tiny_patch4_window7_224", "model_args": {"always_partition": True}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="config.json says covered='shift', and the model has covered='shrink'"):
        load(Swin(**SWIN), tmp_path)
    load(Swin(**SWIN, covered="shift"), tmp_path)
    load(Swin(**{**SWIN, "window_size": 8, "img_size": 32}), tmp_path)  # which no window covers


def test_a_file_of_the_librarys_own_says_its_settings_too(tmp_path: Path) -> None:
    save(drawn(ViT, **VIT, gelu="tanh"), tmp_path / "own.safetensors")
    with pytest.raises(CheckpointError, match="the file says gelu='tanh', and the model has gelu='none'"):
        load(ViT(**VIT), tmp_path / "own.safetensors")
    load(ViT(**VIT, gelu="tanh", drop_rate=0.5), tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("kind", "message"),
    [("int8", "quantized weights without their scales"), ("int32", "integers, which no weights are"),
     ("int64", "integers, which no weights are")],
)  # fmt: skip
def test_integers_are_no_weights(tmp_path: Path, kind: str, message: str) -> None:
    arrays = drawn(ViT, **VIT).state_dict()
    arrays["blocks.1.mlp.fc1.weight"] = np.ones_like(arrays["blocks.1.mlp.fc1.weight"]).astype(kind)
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    for read in (lambda path: load(ViT(**VIT), path), lambda path: from_pretrained(path, num_heads=2)):
        with pytest.raises(CheckpointError, match=f"'blocks.1.mlp.fc1.weight' holds {kind}, {message}: use a file of"):
            read(tmp_path / "x.safetensors")
