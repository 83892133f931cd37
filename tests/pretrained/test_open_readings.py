"""Weights without config.json whose names and shapes fit models that compute differently: refused until it is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn

from minivit import CheckpointError, Swin, ViT, export, from_pretrained, load
from minivit.pretrained.hidden import published_heads

SIZES: dict[str, Any] = {"img_size": 8, "patch_size": 4, "num_classes": 3, "depth": 1, "mlp_ratio": 0.5}
GAP = {"class_token": False, "global_pool": "avg", "fc_norm": False}
POST_NORM = {"class_token": False, "global_pool": "avg", "qkv_bias": False}


def written(folder: Path, layout: str = "timm", **options: Any) -> tuple[Path, ViT]:
    model = drawn(ViT, **{**SIZES, **options})
    path = folder / ("file.npz" if layout == "google" else "file.safetensors")
    export(model, path, layout)
    return path, model


def same(found: Any, model: Any) -> bool:
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(found.dtype)
    return bool(np.allclose(found.predict(x), model.predict(x), rtol=0, atol=1e-12))


# so400m has 16 heads of 72 channels, the giants' are 88 and 104 wide
@pytest.mark.parametrize(("dim", "heads"), [(1152, 16), (1088, 17), (96, 3)])
def test_heads_of_a_width_that_does_not_tell_are_not_guessed(tmp_path: Path, dim: int, heads: int) -> None:
    path, model = written(tmp_path, embed_dim=dim, num_heads=heads, mlp_ratio=0.1)
    with pytest.raises(CheckpointError, match=f"the number of heads of its {dim} channels: give num_heads="):
        from_pretrained(path)
    assert same(from_pretrained(path, num_heads=heads, report=pytest.fail), model)


def test_heads_in_which_published_sizes_differ_are_not_guessed(tmp_path: Path) -> None:
    path, model = written(
        tmp_path, embed_dim=768, depth=12, num_heads=16, **{**GAP, "fc_norm": True, "mlp_ratio": 0.01}
    )
    with pytest.raises(CheckpointError, match="models of this size have 12 or 16: give num_heads="):
        from_pretrained(path)
    assert same(from_pretrained(path, num_heads=16), model)
    assert published_heads({"embed_dim": 768, "depth": 12, "class_token": True}) == {12}


def test_heads_that_are_guessed_are_said(tmp_path: Path) -> None:
    path, _ = written(tmp_path, embed_dim=128, num_heads=2)
    lines: list[str] = []
    assert from_pretrained(path, report=lines.append).config["num_heads"] == 2
    assert lines == [
        "minivit: num_heads=2: assumed, as no array shows it; pass the value of the file's name or its authors"
    ]


@pytest.mark.parametrize("heads", [2, 3])
def test_heads_are_read_off_googles_arrays(tmp_path: Path, heads: int) -> None:
    path, model = written(tmp_path, "google", embed_dim=24, num_heads=heads, gelu="tanh")
    assert same(from_pretrained(path, report=pytest.fail), model)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 6}))
    with pytest.raises(CheckpointError, match=f"config.json says num_heads=6, and the arrays are of num_heads={heads}"):
        from_pretrained(path)


@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_the_gelu_of_a_model_with_the_norm_before_the_mean_is_not_guessed(tmp_path: Path, gelu: str) -> None:
    path, model = written(tmp_path, embed_dim=64, num_heads=1, gelu=gelu, **GAP)
    with pytest.raises(CheckpointError, match="one GELU or the other.*give num_heads= and gelu="):
        from_pretrained(path)
    with pytest.raises(CheckpointError, match="give gelu="):
        from_pretrained(path, num_heads=1)
    assert same(from_pretrained(path, num_heads=1, gelu=gelu), model)
    assert same(load(drawn(ViT, **{**SIZES, **GAP, "embed_dim": 64, "num_heads": 1, "gelu": gelu}), path), model)


@pytest.mark.parametrize("behind", [False, True])
def test_norms_that_may_stand_behind_the_branches_are_not_guessed(tmp_path: Path, behind: bool) -> None:
    path, model = written(tmp_path, embed_dim=64, num_heads=1, post_norm=behind, **POST_NORM)
    with pytest.raises(CheckpointError, match="precede or follow the branches.*vit_base_patch16_rpn.*give post_norm="):
        from_pretrained(path, num_heads=1)
    assert same(from_pretrained(path, num_heads=1, post_norm=behind), model)


def test_a_config_json_of_timm_tells_where_the_norms_stand(tmp_path: Path) -> None:
    path, model = written(tmp_path, embed_dim=64, num_heads=1, post_norm=True, **POST_NORM)
    config = {"architecture": "vit_base_patch16_rpn_224", "model_args": {"num_heads": 1, "embed_dim": 64, "depth": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same(from_pretrained(path, report=pytest.fail), model)


def test_load_compares_grids_also_of_a_file_that_leaves_heads_open(tmp_path: Path) -> None:
    sizes = {"embed_dim": 96, "num_heads": 3}
    path, _ = written(tmp_path, **sizes, img_size=(24, 24))
    with pytest.raises(CheckpointError, match="of a 6x6 grid, the model's of a 4x9 grid"):
        load(drawn(ViT, **{**SIZES, **sizes, "img_size": (16, 36)}), path)


# --- config.json of timm ---


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depth": 2}, "config.json says depth=2, and the arrays make a ViT"),
        ({"embed_dim": 32}, "config.json says embed_dim=32"),
        ({"patch_size": 8}, "config.json says patch_size=8"),
        ({"qkv_bias": False}, "config.json says qkv_bias=False"),
        ({"mlp_ratio": 4}, "config.json says mlp_ratio=4"),
        ({"global_pool": ""}, "model_args global_pool='': minivit's models pool"),
        ({"init_values": 1e-5}, "config.json says init_values=1e-05"),
        ({"head_dim": 32}, "model_args head_dim=32, which minivit does not have"),
    ],
)
def test_model_args_that_the_arrays_contradict_are_refused(tmp_path: Path, args: Any, message: str) -> None:
    path, _ = written(tmp_path, embed_dim=64, num_heads=2)
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 2, **args}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(path)


def test_model_args_in_timms_words_are_honored(tmp_path: Path) -> None:
    path, model = written(tmp_path, embed_dim=64, num_heads=2, gelu="tanh")
    args = {"num_heads": 2, "act_layer": "gelu_tanh", "pos_embed": "learn", "weight_init": "jax", "fix_init": True}
    args |= {"qk_norm": False, "patch_size": [4, 4], "mlp_ratio": 0.5, "dynamic_img_pad": False}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "model_args": args}))
    assert same(from_pretrained(path, report=pytest.fail), model)


@pytest.mark.parametrize("where", ["config.json", "argument"])
def test_always_partition_keeps_windows_and_shifts(tmp_path: Path, where: str) -> None:
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 2, "num_classes": 3, "embed_dim": 8, "depths": (2, 2)}
    sizes |= {"num_heads": (1, 2), "window_size": 4}  # which covers the second stage's map
    model = drawn(Swin, **sizes, covered="shift", pad_first=False, partial_patches="drop")
    export(model, tmp_path / "file.safetensors", "timm")
    config: dict[str, Any] = {"architecture": "swin_tiny_patch4_window7_224"}
    config["model_args"] = {"window_size": 4, "img_size": 16, "always_partition": where == "config.json"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    asked = {"always_partition": True} if where == "argument" else {}
    found = from_pretrained(tmp_path / "file.safetensors", report=pytest.fail, **asked)
    x = np.random.default_rng(1).standard_normal((2, 3, 16, 16))
    assert found.config["covered"] == "shift"
    assert np.allclose(found.predict(x), model.predict(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"global_pool": "max"}, "no maximum over positions; choose 'avg'"),
        ({"model_args": {"window_size": [4, 4, 2, 2]}}, "one for each of the 2 stages"),
        ({"model_args": {"window_size": [[2, 2], [2, 2]]}}, "windows of 4x4, 4x4, which a model with window_size=2"),
        ({"model_args": {"window_size": [[4, 4], [4, "2"]]}}, "window_size=.*makes no sense"),
        (
            {"architecture": "swinv2_tiny_window8_256"},
            "architecture='swinv2_tiny_window8_256', and the arrays make a Swin",
        ),
    ],
)
def test_what_config_json_says_of_a_swin_is_not_dropped(tmp_path: Path, config: Any, message: str) -> None:
    sizes: dict[str, Any] = {"img_size": 16, "patch_size": 2, "num_classes": 3, "embed_dim": 8, "depths": (2, 2)}
    export(drawn(Swin, **sizes, num_heads=(1, 2), window_size=4), tmp_path / "file.safetensors", "timm")
    args = {"window_size": 4, "img_size": 16}
    plain = {"architecture": "swin_tiny_patch4_window7_224", "model_args": args}
    (tmp_path / "config.json").write_text(
        json.dumps({**plain, **config, "model_args": args | config.get("model_args", {})})
    )
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(tmp_path / "file.safetensors")
