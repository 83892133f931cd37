"""The windows of a Swin's file: those of v2, which no array shows, and Microsoft's, which tell it from WZMIAOMIAO's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn, microsoft

from minivit import CheckpointError, Swin, SwinV2, create_model, export, from_pretrained, save
from minivit.io.safetensors import save_arrays
from minivit.pretrained.window_sizes import check_windows_told, window_sizes

SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2, 2)}
SMALL |= {"num_heads": (2, 2), "mlp_ratio": 1.0}


def images(side: int) -> Any:
    return np.random.default_rng(5).standard_normal((2, 3, side, side))


def same(found: Any, model: Any, side: int = 32) -> bool:
    x = images(side)
    return bool(np.allclose(found.predict(x), model.predict(x), rtol=0, atol=1e-12))


def test_a_window_that_was_asked_for_is_the_one_that_v2_was_trained_in(tmp_path: Path) -> None:
    model = drawn(SwinV2, **SMALL, window_size=16)
    export(model, tmp_path / "model.safetensors", "timm")
    found = from_pretrained(tmp_path / "model.safetensors", window_size=16, img_size=32, report=pytest.fail)
    assert found.config["pretrained_window_sizes"] == (0, 0) and same(found, model)
    # a larger one than it was trained in
    larger = from_pretrained(
        tmp_path / "model.safetensors", window_size=16, pretrained_window_sizes=(8, 8), img_size=32
    )
    assert larger.config["pretrained_window_sizes"] == (8, 8) and not same(larger, model)


def test_a_window_of_v2_that_nothing_tells_is_not_guessed(tmp_path: Path) -> None:
    export(drawn(SwinV2, **SMALL), tmp_path / "model.safetensors", "timm")
    with pytest.raises(CheckpointError, match="no array shows the windows of a Swin v2: give window_size=,"):
        from_pretrained(tmp_path / "model.safetensors")
    assert from_pretrained(tmp_path / "model.safetensors", window_size=8).config["window_size"] == 8
    (tmp_path / "config.json").write_text(json.dumps({"window_size": 8, "image_size": 32}))
    from_pretrained(tmp_path / "model.safetensors", report=pytest.fail)


# swinv2_base_window12to16 has the same arrays as window16, and window12 has images of 192 pixels, whose last map is 6x6
@pytest.mark.parametrize(("window", "image", "said"), [(16, 256, 1), (12, 192, 0), (24, 384, 0)])
def test_a_published_v2_without_config_json_has_its_published_image(window: int, image: int, said: int) -> None:
    found = {"embed_dim": 128, "depths": (2, 2, 18, 2), "patch_size": 4}
    sizes = window_sizes([None] * 4, found, {}, {}, {}, {"window_size": window})
    assert sizes == {"window_size": window, "img_size": image}
    asked: dict[str, Any] = {"window_size": window}
    if said:
        with pytest.raises(ValueError, match="windows of a Swin v2: give pretrained_window_sizes="):
            check_windows_told("SwinV2", {**found, **sizes}, {}, {}, asked)
        asked["pretrained_window_sizes"] = 0
    check_windows_told("SwinV2", {**found, **sizes}, {}, {}, asked)


def test_offsets_of_a_pretraining_in_windows_that_were_not_square(tmp_path: Path) -> None:
    model = drawn(SwinV2, **SMALL, window_size=(4, 8), pretrained_window_sizes=((2, 4), (4, 8)), covered="shrink_both")
    export(model, tmp_path / "file", "microsoft")
    found = from_pretrained(tmp_path / "file")
    assert found.config["pretrained_window_sizes"] == ((2, 4), 0)
    assert same(found, model)


@pytest.mark.parametrize("image", [8, 16])
def test_a_swin_of_microsoft_whose_windows_cover_every_map_is_microsofts(tmp_path: Path, image: int) -> None:
    model = drawn(Swin, **{**SMALL, "img_size": image}, window_size=8, covered="shrink_both")
    arrays = microsoft(model.state_dict(), model)
    assert not any("attn_mask" in name for name in arrays)
    save_arrays(tmp_path / "file", arrays, None)
    found = from_pretrained(tmp_path / "file")
    assert found.config["covered"] == "shrink_both"
    assert same(found, model, image) and same(found, model, 24)


def test_equal_windows_without_masks_are_wzmiaomiaos(tmp_path: Path) -> None:
    model = drawn(Swin, **SMALL, window_size=8, covered="shift")
    arrays = {name: array for name, array in microsoft(model.state_dict(), model).items() if "attn_mask" not in name}
    save_arrays(tmp_path / "file", arrays, None)
    found = from_pretrained(tmp_path / "file")
    assert found.config["covered"] == "shift" and same(found, model)


THREE: dict[str, Any] = {**SMALL, "depths": (2, 2, 2), "num_heads": (2, 2, 2)}


@pytest.mark.parametrize("window", [(2, 4, 2), (2, 4, 4), (4, 2, 2), (8, (4, 2), 4)])
def test_windows_of_each_stage_are_read_off_the_tables(tmp_path: Path, window: Any) -> None:
    model = drawn(Swin, **THREE, window_size=window)
    path = tmp_path / "file.safetensors"
    export(model, path, "timm")
    if any(isinstance(each, tuple) for each in window):
        with pytest.raises(CheckpointError, match="21 offsets, which is of no square window: give window_size="):
            from_pretrained(path)
    else:
        assert same(from_pretrained(path, report=pytest.fail), model)
    asked = from_pretrained(path, window_size=window, report=pytest.fail)
    assert asked.config["window_size"] == window and same(asked, model)
    save(model, tmp_path / "own.safetensors")
    own = from_pretrained(tmp_path / "own.safetensors", report=pytest.fail)
    assert own.config == model.config and same(own, model)


def test_tables_of_a_stage_are_resampled_to_its_own_window(tmp_path: Path) -> None:
    export(drawn(Swin, **THREE, window_size=(2, 4, 2)), tmp_path / "file.safetensors", "timm")
    said: list[str] = []
    found = from_pretrained(tmp_path / "file.safetensors", window_size=(2, 4, 3), img_size=32, report=said.append)
    assert found.config["window_size"] == (2, 4, 3)
    assert len(said) == 2 and all("layers.2." in line and "from 2x2 window to 3x3 window" in line for line in said)


@pytest.mark.parametrize("said", ["model_args", "architecture"])
def test_windows_of_each_stage_are_those_of_config_json(tmp_path: Path, said: str) -> None:
    sizes = {**SMALL, "patch_size": 4, "img_size": 224, "depths": (2, 2, 2, 2), "num_heads": (2, 2, 2, 2)}
    model = drawn(Swin, **sizes, window_size=(7, 7, 14, 7))
    export(model, tmp_path / "model.safetensors", "timm")
    name = "swin_s3_tiny_224" if said == "architecture" else "swin_tiny_patch4_window7_224"
    args = {"window_size": [7, 7, 14, 7]} if said == "model_args" else {}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "model_args": args}))
    found = from_pretrained(tmp_path, report=pytest.fail)
    assert (found.config["window_size"], found.config["img_size"]) == ((7, 7, 14, 7), 224)
    assert np.array_equal(found.state_dict()["layers.2.blocks.0.attn.qkv.weight"],
                          model.state_dict()["layers.2.blocks.0.attn.qkv.weight"])  # fmt: skip
    args = {"window_size": [7, 7, 7, 7]}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": name, "model_args": args}))
    with pytest.raises(CheckpointError, match="windows of 7x7, 7x7, 14x14, 7x7, which a model with window_size=7"):
        from_pretrained(tmp_path)


def test_a_v2_with_a_window_for_each_stage_needs_to_be_told(tmp_path: Path) -> None:
    model = drawn(SwinV2, **THREE, window_size=(2, 4, 2))
    export(model, tmp_path / "model.safetensors", "timm")
    with pytest.raises(CheckpointError, match="no array shows the windows of a Swin v2: give window_size=,"):
        from_pretrained(tmp_path / "model.safetensors")
    found = from_pretrained(tmp_path / "model.safetensors", window_size=[2, 4, 2], img_size=32, report=pytest.fail)
    assert found.config["window_size"] == (2, 4, 2) and same(found, model)
    (tmp_path / "config.json").write_text(json.dumps({"window_size": [2, 4, 2], "image_size": 32}))
    assert same(from_pretrained(tmp_path, report=pytest.fail), model)


@pytest.mark.parametrize("layout", ["huggingface", "torchvision", "microsoft", "wzmiaomiao"])
def test_no_other_project_has_a_window_for_each_stage(tmp_path: Path, layout: str) -> None:
    with pytest.raises(ValueError, match=rf"window_size=\(2, 4, 2\): {layout} has one window for all stages"):
        export(drawn(Swin, **THREE, window_size=(2, 4, 2)), tmp_path / "file.safetensors", layout)


def test_under_microsofts_names_a_window_for_each_stage_must_be_asked_for(tmp_path: Path) -> None:
    state = drawn(Swin, **SMALL, window_size=((4, 4), (8, 8))).state_dict()
    arrays = microsoft(state, drawn(Swin, **SMALL, window_size=8, covered="shift"))
    arrays = {name: array for name, array in arrays.items() if "attn_mask" not in name}
    arrays = {name: array for name, array in arrays.items() if "relative_position_index" not in name}
    save_arrays(tmp_path / "file", arrays | {name: state[name] for name in arrays if "table" in name}, None)
    with pytest.raises(CheckpointError, match="windows of 4x4, 8x8, which a model with window_size=8"):
        from_pretrained(tmp_path / "file")
    found = from_pretrained(tmp_path / "file", window_size=((4, 4), (8, 8)), report=pytest.fail)
    assert found.config["window_size"] == ((4, 4), (8, 8))


@pytest.mark.parametrize("depths", [(2,), (1, 2)])
def test_a_swin_that_may_be_of_two_projects_is_refused_unless_one_is_named(tmp_path: Path, depths: Any) -> None:
    sizes = {**SMALL, "depths": depths, "num_heads": (2,) * len(depths), "allow_odd_depths": True}
    model = drawn(Swin, **sizes, window_size=8)
    arrays = {name: array for name, array in microsoft(model.state_dict(), model).items() if "attn_mask" not in name}
    arrays["head.weight"], arrays["head.bias"] = model.state_dict()["head.fc.weight"], np.zeros(5)
    save_arrays(tmp_path / "file", arrays, None)
    with pytest.raises(
        CheckpointError, match="may be WZMIAOMIAO's, or Microsoft's.*profile='wzmiaomiao' or profile='mic"
    ):
        from_pretrained(tmp_path / "file")
    for profile, covered in (("microsoft", "shrink_both"), ("wzmiaomiao", "shift")):
        assert from_pretrained(tmp_path / "file", profile=profile).config["covered"] == covered


@pytest.mark.parametrize("depths", [(2,), (2, 2), (2, 2, 2, 2, 2)])
def test_the_windows_of_pretraining_fit_any_number_of_stages(tmp_path: Path, depths: Any) -> None:
    heads = (2,) * len(depths)
    model = create_model("swinv2_tiny_window8_256", embed_dim=8, depths=depths, num_heads=heads, num_classes=3)
    assert model.config["pretrained_window_sizes"] == (0,) * len(depths)
    assert SwinV2(**{**SMALL, "depths": depths, "num_heads": heads}, pretrained_window_sizes=6).config[
        "pretrained_window_sizes"
    ] == (6,) * len(depths)
    export(model, tmp_path / "model.safetensors", "timm")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "swinv2_tiny_window8_256"}))
    found = from_pretrained(tmp_path)
    assert found.config["pretrained_window_sizes"] == (0,) * len(depths)


def test_a_position_table_of_swin_that_is_not_square_fits_the_image_that_is_said(tmp_path: Path) -> None:
    model = drawn(Swin, **{**SMALL, "img_size": (16, 24)}, window_size=4, ape=True)
    save_arrays(tmp_path / "file.safetensors", model.state_dict(), None)
    with pytest.raises(CheckpointError, match=r"absolute_pos_embed has 96 positions.*give img_size=\(H, W\)"):
        from_pretrained(tmp_path / "file.safetensors")
    found = from_pretrained(tmp_path / "file.safetensors", img_size=(16, 24), report=pytest.fail)
    x = np.random.default_rng(5).standard_normal((2, 3, 16, 24))
    assert np.allclose(found.predict(x), model.predict(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["timm", "huggingface", "torchvision"])
def test_a_window_that_is_not_square_is_taken_where_it_is_said(tmp_path: Path, layout: str) -> None:
    model = drawn(Swin, **SMALL, window_size=(2, 4))
    export(model, tmp_path / "file.safetensors", layout)
    found = from_pretrained(tmp_path / "file.safetensors", window_size=[2, 4], report=pytest.fail)
    assert found.config["window_size"] == (2, 4) and same(found, model)
    if layout == "huggingface":
        with pytest.raises(
            CheckpointError, match=r"21 offsets, which is of no square window: give window_size=\(Mh, Mw\)"
        ):
            from_pretrained(tmp_path / "file.safetensors")
        (tmp_path / "config.json").write_text(json.dumps({"window_size": [2, 4]}))
        assert same(from_pretrained(tmp_path / "file.safetensors"), model)
