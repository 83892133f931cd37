"""Where a source's model computes otherwise than its arrays suggest, it is honored, refused by name, or said."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn

from minivit import CheckpointError, Swin, SwinV2, ViT, create_model, export, from_pretrained, functional as F
from minivit.io.safetensors import save_arrays
from minivit.io.weights import read_weights
from minivit.sizes import pair

VIT: dict[str, Any] = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 8, "depth": 1, "num_heads": 2}


def written(folder: Path, model: Any, layout: str, config: dict[str, Any] | None = None) -> Path:
    """The folder, with the model's file in that layout and a config.json beside it."""
    export(model, folder / "model.safetensors", layout)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def silent(line: str) -> None:
    """Where reports go that are not looked at."""


def test_a_distilled_model_has_no_norm_behind_its_tokens(tmp_path: Path) -> None:
    # timm's reads its tokens after `norm`, and with fc_norm=True it has no norm at all
    with pytest.raises(ValueError, match="distilled=True has its norm before .*: leave fc_norm out"):
        create_model("deit_tiny_distilled_patch16_224", fc_norm=True)
    config = {"architecture": "deit_tiny_distilled_patch16_224", "model_args": {"num_heads": 2, "fc_norm": True}}
    path = written(tmp_path, drawn(ViT, **VIT, distilled=True), "timm", config)
    arrays = dict(drawn(ViT, **VIT, distilled=True).state_dict())
    arrays |= {f"fc_norm.{part}": arrays.pop(f"norm.{part}") for part in ("weight", "bias")}
    save_arrays(path / "model.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match="leave fc_norm out"):
        from_pretrained(path)


@pytest.mark.parametrize("name", ["num_attention_heads", "num_heads"])
@pytest.mark.parametrize("heads", [0, -2, 2.0, True])
def test_a_number_of_heads_that_is_none_is_not_taken_for_unsaid(tmp_path: Path, name: str, heads: Any) -> None:
    path = written(tmp_path, drawn(ViT, **VIT), "timm", {name: heads})
    with pytest.raises(CheckpointError, match=f"config.json says num_heads={heads}, which makes no sense"):
        from_pretrained(path)
    (path / "config.json").unlink()
    if heads is not True:
        with pytest.raises(CheckpointError, match=f"num_heads={heads} must be an integer of at least 1"):
            from_pretrained(path, num_heads=heads)


# what transformers 5.24 takes for what a config.json leaves out
LEFT_OUT = {
    "vit": {"num_heads": 12, "norm_eps": 1e-12},
    "deit": {"num_heads": 12, "norm_eps": 1e-12},
    "vit_mae": {"num_heads": 12, "norm_eps": 1e-12},
    "ijepa": {"num_heads": 12, "norm_eps": 1e-12},
    "vit_msn": {"num_heads": 12, "norm_eps": 1e-6},
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_transformers_config_json_leaves_out_has_its_default(tmp_path: Path, kind: str) -> None:
    model = drawn(ViT, **{**VIT, "img_size": 224, "patch_size": 56, "embed_dim": 24})
    path = written(tmp_path, model, "huggingface", {"model_type": kind})
    found = from_pretrained(path, report=pytest.fail).config
    assert {name: found[name] for name in LEFT_OUT[kind]} == LEFT_OUT[kind]
    (path / "config.json").write_text(json.dumps({"model_type": kind, "image_size": 112}))
    with pytest.raises(CheckpointError, match="img_size=112"):
        from_pretrained(path)


def test_what_transformers_config_json_of_a_swin_leaves_out_has_its_default(tmp_path: Path) -> None:
    sizes = {"img_size": 56, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 5}
    path = written(tmp_path, drawn(SwinV2, **sizes, window_size=7), "huggingface", {"model_type": "swinv2"})
    found = from_pretrained(path, report=silent).config
    assert (found["window_size"], found["img_size"], found["pretrained_window_sizes"]) == (7, 224, (0, 0))


@pytest.mark.parametrize("kind", [Swin, SwinV2])
def test_transformers_swin_with_another_epsilon_in_its_blocks_alone_is_refused(tmp_path: Path, kind: Any) -> None:
    sizes = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
    config = {"model_type": kind.__name__.lower(), "window_size": 4, "image_size": 16}
    path = written(tmp_path, drawn(kind, **sizes), "huggingface", {**config, "layer_norm_eps": 1e-5})
    assert from_pretrained(path, report=silent).config["norm_eps"] == 1e-5
    for eps in (1e-6, None):
        (path / "config.json").write_text(json.dumps({**config, "layer_norm_eps": eps}))
        with pytest.raises(CheckpointError, match=f"says layer_norm_eps={eps}, and .* keeps 1e-05 in the norms of the"):
            from_pretrained(path)


@pytest.mark.parametrize(("name", "eps"), [("vit_base_patch16_clip_224", 1e-5), ("vit_tiny_patch16_224", 1e-6)])
def test_a_norm_by_name_has_timms_usual_epsilon(tmp_path: Path, name: str, eps: float) -> None:
    sizes = {"img_size": 32, "embed_dim": 12, "depth": 1, "num_heads": 3, "num_classes": 5}
    model = create_model(name, **sizes)
    assert model.config["norm_eps"] == eps
    assert create_model(name, **sizes, norm_layer="layernorm").config["norm_eps"] == 1e-6
    assert create_model(name, **sizes, norm_layer=None).config["norm_eps"] == eps
    assert create_model(name, **sizes, norm_layer="layernorm", norm_eps=1e-3).config["norm_eps"] == 1e-3
    path = written(tmp_path, model, "timm")
    for args, expected in (({}, eps), ({"norm_layer": "layernorm"}, 1e-6)):
        (path / "config.json").write_text(json.dumps({"architecture": name, "model_args": {**sizes, **args}}))
        assert from_pretrained(path).config["norm_eps"] == expected


def test_a_norm_by_name_that_would_leave_two_epsilons_is_refused(tmp_path: Path) -> None:
    sizes = {"img_size": 28, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5}
    with pytest.raises(ValueError, match="norm_layer='rmsnorm': timm's epsilon is then 1e-06 .*leave norm_layer out"):
        create_model("aimv2_large_patch14_224", **sizes, norm_layer="rmsnorm")
    args = {"architecture": "aimv2_large_patch14_224", "model_args": {**sizes, "norm_layer": "rmsnorm"}}
    save_arrays(tmp_path / "model.safetensors", create_model("aimv2_large_patch14_224", **sizes).state_dict(), None)
    (tmp_path / "config.json").write_text(json.dumps(args))
    with pytest.raises(CheckpointError, match="model_args norm_layer='rmsnorm'.*leave norm_layer out"):
        from_pretrained(tmp_path)


def test_the_image_of_a_swin_v2_that_is_assumed_is_said(tmp_path: Path) -> None:
    sizes = {"img_size": 32, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "num_classes": 5}
    model = drawn(SwinV2, **sizes, window_size=8)  # whose second map is 4x4
    path = written(tmp_path, model, "timm")
    lines: list[str] = []
    assert from_pretrained(path, window_size=8, report=lines.append).config["img_size"] == 256
    assert lines == [
        "minivit: img_size=256: assumed, as no array shows it; pass the value of the file's name or its authors"
    ]
    found = from_pretrained(path, window_size=8, img_size=32, report=pytest.fail)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32))
    assert np.array_equal(found.predict(x), model.predict(x))


@pytest.mark.parametrize("prefix", ["", "vit.", "deit.", "model.vit."])
def test_the_pooler_of_transformers_vit_is_said_to_be_omitted(tmp_path: Path, prefix: str) -> None:
    model = drawn(ViT, **{**VIT, "num_classes": 0})
    export(model, tmp_path / "x.safetensors", "huggingface")
    arrays = read_weights(tmp_path / "x.safetensors").arrays
    arrays = {prefix + name.removeprefix("vit."): array for name, array in arrays.items()}
    arrays |= {f"{prefix}pooler.dense.weight": np.ones((8, 8)), f"{prefix}pooler.dense.bias": np.ones(8)}
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    lines: list[str] = []
    found = from_pretrained(tmp_path / "x.safetensors", num_heads=2, norm_eps=1e-6, report=lines.append)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
    assert np.array_equal(found.predict(x), model.predict(x))
    omitted = sorted(lines[0].partition("omitted, as not part of the model: ")[2].split(", "))
    assert omitted == [f"'{prefix}pooler.dense.bias'", f"'{prefix}pooler.dense.weight'"]
    assert len(lines) == 1


def test_transformers_beit_of_an_image_that_is_not_square_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beit = {"pos_embed": "relative", "global_pool": "avg", "init_values": 0.1, "qkv_bias": "qv", "norm_eps": 1e-12}
    for size in (16, (16, 24)):
        model = drawn(ViT, **{**VIT, "img_size": size}, **beit)
        config = {"model_type": "beit", "num_attention_heads": 2, "image_size": size}
        if size != 16:
            with pytest.raises(
                ValueError, match=r"img_size=\(16, 24\) makes a grid of 4x6 patches.*export it as 'timm'"
            ):
                export(model, tmp_path / "no.safetensors", "huggingface")
            assert not (tmp_path / "no.safetensors").exists()
            writing = import_module("minivit.pretrained.export")
            monkeypatch.setattr(writing, "check_expressible", lambda *given: None)  # as another program writes it
        path = written(tmp_path, model, "huggingface", config)
        if size == 16:
            assert from_pretrained(path, img_size=(16, 24), report=silent).config["img_size"] == (16, 24)
    reason = "grid of 4x6 patches, and transformers' BEiT reads its table .* width by height.*: choose a file"
    with pytest.raises(CheckpointError, match=reason):
        from_pretrained(path)
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=reason):
        from_pretrained(path, img_size=(16, 24), num_heads=2, gelu="none")


CONTRADICTIONS = [
    ({"num_classes": 9}, "num_classes=9, and the arrays make a ViT with num_classes=5", {"num_classes": 7}),
    ({"num_classes": 0}, "num_classes=0, and the arrays make a ViT with num_classes=5", {"num_classes": 5}),
    ({"model_args": {"num_classes": 9}}, "num_classes=9, and", {"num_classes": 0}),
    (
        {"model_args": {"pos_embed": "none"}},
        "pos_embed='none', and .* make a ViT with pos_embed='learned_1d'",
        {},
    ),
    ({"model_args": {"pos_embed": ""}}, "pos_embed='none', and .* make a ViT with pos_embed='learned_1d'", {}),
    ({"model_args": {"representation_size": 4}}, "representation_size=4, and", {"representation_size": None}),
    ({"model_args": {"distilled": True}}, "distilled=True, and the arrays make a ViT with distilled=False", {}),
    ({"model_args": {"patch_norm": True}}, "patch_norm=True, and the arrays make a ViT with patch_norm=False", {}),
]


@pytest.mark.parametrize(("said", "message", "remedy"), CONTRADICTIONS)
def test_a_part_that_config_json_contradicts_is_refused_unless_it_is_requested(
    tmp_path: Path, said: dict[str, Any], message: str, remedy: dict[str, Any]
) -> None:
    config = {"architecture": "vit_tiny_patch16_224", **said}
    config["model_args"] = {"num_heads": 2, **said.get("model_args", {})}
    path = written(tmp_path, drawn(ViT, **VIT), "timm", config)
    with pytest.raises(CheckpointError, match=f"config.json says {message}"):
        from_pretrained(path)
    if remedy:
        found = from_pretrained(path, report=silent, **remedy).config
        assert {name: found[name] for name in remedy} == remedy


@pytest.mark.parametrize("said", [{}, {"num_classes": 5, "pos_embed": "learn", "distilled": False, "ape": False}])
def test_what_config_json_says_of_the_arrays_truly_is_no_contradiction(tmp_path: Path, said: dict[str, Any]) -> None:
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 5, "model_args": {"num_heads": 2, **said}}
    assert from_pretrained(written(tmp_path, drawn(ViT, **VIT), "timm", config)).num_classes == 5


DINOV2 = {"mask_token": np.zeros((1, 8))}
DINO = {"head.last_layer.weight_v": np.zeros((2, 2)), "head.mlp.0.weight": np.zeros((2, 8))}
MAE = {"decoder_embed.weight": np.zeros((4, 8)), "mask_token": np.zeros((1, 1, 8))}


@pytest.mark.parametrize("size", [24, 8, (16, 32)])
@pytest.mark.parametrize(
    ("options", "prefix", "beside", "offset"),
    [({"init_values": 1.0}, "", DINOV2, 0.1), ({}, "backbone.", DINO, 0.1), ({}, "", MAE, 0.0)],
)
def test_metas_positions_are_resampled_by_the_rule_of_their_family(
    tmp_path: Path, options: Any, prefix: str, beside: Any, offset: float, size: Any
) -> None:
    arrays = drawn(ViT, **{**VIT, "num_classes": 0}, **options).state_dict()
    path = tmp_path / "x.safetensors"
    save_arrays(path, {**{prefix + name: array for name, array in arrays.items()}, **beside}, None)
    told = {"num_heads": 2, "norm_eps": 1e-6, "gelu": "none", "img_size": size}
    found = from_pretrained(path, report=silent, **told)
    grid = tuple(side // 4 for side in pair(size))
    table = arrays["pos_embed"][0, 1:].reshape(4, 4, 8)
    expected, _ = F.resize_grid(table, grid, antialias=False, offset=offset)
    np.testing.assert_array_equal(found.state_dict()["pos_embed"][0, 1:], expected.reshape(-1, 8))


@pytest.mark.parametrize(
    ("layout", "honored"), [("timm", True), ("openclip", True), ("huggingface", False), ("torchvision", False)]
)
def test_dynamic_sizes_are_for_sources_that_resample_as_the_model_does(
    tmp_path: Path, layout: str, honored: bool
) -> None:
    options = {"pre_norm": True, "norm_eps": 1e-5} if layout == "openclip" else {}
    model = drawn(ViT, **VIT, **options)
    model.parameters()["head.bias"].data[:] = 0  # as openclip's projection has none
    path = written(tmp_path, model, layout) / "model.safetensors"
    told = {"num_heads": 2, "gelu": "none", "norm_eps": 1e-5}
    if not honored:
        with pytest.raises(CheckpointError, match=rf"dynamic_img_size=True .* {layout} by another: give .*img_size="):
            from_pretrained(path, dynamic_img_size=True, **told)
        return
    x = np.random.default_rng(0).standard_normal((2, 3, 24, 32))
    dynamic = from_pretrained(path, dynamic_img_size=True, report=silent, **told)
    built = from_pretrained(path, img_size=(24, 32), report=silent, **told)
    np.testing.assert_allclose(dynamic.predict(x), built.predict(x), rtol=0, atol=1e-12)


def test_positions_of_a_swin_that_other_sizes_resample_otherwise_are_said(tmp_path: Path) -> None:
    sizes = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
    path = written(tmp_path, drawn(Swin, **sizes, ape=True), "microsoft")
    lines: list[str] = []
    from_pretrained(path, profile="microsoft", report=lines.append)
    assert lines == [
        "minivit: absolute_pos_embed: resampled by timm's rule for images that are not 16x16: pass img_size="
    ]
    from_pretrained(path, profile="timm", report=pytest.fail)


def test_windows_that_transformers_swin_v2_keeps_for_other_sizes_are_said(tmp_path: Path) -> None:
    sizes = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
    config = {"model_type": "swinv2", "window_size": 4, "image_size": 16}
    path = written(tmp_path, drawn(SwinV2, **sizes), "huggingface", config)
    lines: list[str] = []
    from_pretrained(path, report=lines.append)
    line = "windows and shifts follow the size of the images, and transformers' Swin v2 keeps those of 16x16 for all"
    assert lines == [f"minivit: {line}"]
    from_pretrained(path, profile="timm", report=pytest.fail)
