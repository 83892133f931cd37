"""Tables that have as many entries as a model's and are of another grid or window are resampled or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn, google, microsoft

from minivit import CheckpointError, Swin, SwinV2, ViT, export, from_pretrained, functional as F, load, save
from minivit.io.safetensors import save_arrays
from minivit.pretrained.adaptation import stretch_matrix

VIT: dict[str, Any] = {"patch_size": 2, "num_classes": 5, "embed_dim": 8, "depth": 1, "num_heads": 2}
SWIN: dict[str, Any] = {"img_size": 32, "patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2, 2)}
SWIN |= {"num_heads": (2, 2), "mlp_ratio": 1.0}
TABLE = "layers.0.blocks.1.attn.relative_position_bias_table"
SQUARE, WIDE, TALL = (12, 12), (8, 18), (18, 8)  # 6x6, 4x9 and 9x4 patches


def silent(line: str) -> None:
    pass


def images(size: Any) -> Any:
    return np.random.default_rng(5).standard_normal((2, 3, *size))


@pytest.mark.parametrize(("old", "new"), [(SQUARE, WIDE), (WIDE, TALL), (WIDE, SQUARE)])
@pytest.mark.parametrize("options", [{}, {"distilled": True}, {"class_token": False, "global_pool": "avg"}])
def test_positions_of_as_many_patches_in_another_grid_are_resampled(
    tmp_path: Path, old: Any, new: Any, options: Any
) -> None:
    model = drawn(ViT, **VIT, img_size=old, **options)
    save(model, tmp_path / "file")
    lines: list[str] = []
    found = from_pretrained(tmp_path / "file", img_size=new, report=lines.append)
    before, after = (tuple(side // 2 for side in size) for size in (old, new))
    table, prefix = model.state_dict()["pos_embed"][0], len(model.embed.prefix)
    expected, _ = F.resize_grid(table[prefix:].reshape(*before, 8), after)
    got = found.state_dict()["pos_embed"][0]
    assert np.array_equal(got[:prefix], table[:prefix])
    assert np.allclose(got[prefix:], expected.reshape(36, 8), rtol=0, atol=1e-13)
    assert lines == [f"minivit: pos_embed: resampled from {before[0]}x{before[1]} grid to {after[0]}x{after[1]} grid"]


def test_positions_that_make_a_square_are_a_squares_whatever_is_asked_for(tmp_path: Path) -> None:
    model = drawn(ViT, **VIT, img_size=SQUARE)
    export(model, tmp_path / "file.safetensors", "timm")
    found = from_pretrained(tmp_path / "file.safetensors", img_size=WIDE, report=silent)
    expected, _ = F.resize_grid(model.state_dict()["pos_embed"][0, 1:].reshape(6, 6, 8), (4, 9))
    assert np.allclose(found.state_dict()["pos_embed"][0, 1:], expected.reshape(36, 8), rtol=0, atol=1e-13)
    # config.json can say another grid
    (tmp_path / "config.json").write_text(json.dumps({"image_size": WIDE, "num_attention_heads": 2}))
    found = from_pretrained(tmp_path / "file.safetensors", img_size=WIDE, report=pytest.fail)
    assert np.array_equal(found.state_dict()["pos_embed"], model.state_dict()["pos_embed"])


def test_a_dynamic_size_starts_from_the_grid_of_the_file(tmp_path: Path) -> None:
    model = drawn(ViT, **VIT, img_size=WIDE)
    save(model, tmp_path / "file")
    dynamic = from_pretrained(tmp_path / "file", dynamic_img_size=True)
    assert np.array_equal(dynamic.predict(images(WIDE)), model.predict(images(WIDE)))
    turned = from_pretrained(tmp_path / "file", img_size=TALL, report=silent)
    assert np.allclose(dynamic.predict(images(TALL)), turned.predict(images(TALL)), rtol=0, atol=1e-12)
    for size in (SQUARE, TALL):
        resized = from_pretrained(tmp_path / "file", img_size=size, dynamic_img_size=True, report=silent)
        assert np.allclose(resized.predict(images(size)), dynamic.predict(images(size)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("old", "new"), [(WIDE, TALL), (WIDE, SQUARE), (SQUARE, WIDE)])
def test_load_refuses_positions_of_another_grid(tmp_path: Path, old: Any, new: Any) -> None:
    save(drawn(ViT, **VIT, img_size=old), tmp_path / "file")
    model = drawn(ViT, **VIT, img_size=new)
    before = model.state_dict()
    was, is_ = (f"{height // 2}x{width // 2}" for height, width in (old, new))
    for strict in (True, False):
        with pytest.raises(
            CheckpointError, match=rf"'pos_embed' is of a {was} grid, the model's of a {is_} grid.*img_size"
        ):
            load(model, tmp_path / "file", strict=strict)
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())


def test_load_takes_a_file_of_published_names_for_a_square_grid(tmp_path: Path) -> None:
    export(drawn(ViT, **VIT, img_size=SQUARE), tmp_path / "file", "torchvision")
    with pytest.raises(CheckpointError, match="6x6 grid, the model's of a 4x9 grid"):
        load(ViT(**VIT, img_size=WIDE), tmp_path / "file")
    wide = drawn(ViT, **VIT, img_size=(4, 10))  # 2x5 positions make no square: the model's size decides
    export(wide, tmp_path / "file", "torchvision")
    model = load(ViT(**VIT, img_size=(4, 10), dtype="float64"), tmp_path / "file")
    assert np.array_equal(model.state_dict()["pos_embed"], wide.state_dict()["pos_embed"])


def test_relative_biases_of_another_grid_are_resampled_or_refused(tmp_path: Path) -> None:
    model = drawn(ViT, **VIT, img_size=(4, 6), pos_embed="relative")
    save(model, tmp_path / "file")
    name = "blocks.0.attn.relative_position_bias_table"
    with pytest.raises(CheckpointError, match="is of a 2x3 window, the model's of a 3x2 window"):
        load(ViT(**VIT, img_size=(6, 4), pos_embed="relative"), tmp_path / "file")
    for size, grid in (((6, 4), (3, 2)), ((8, 8), (4, 4))):
        found = from_pretrained(tmp_path / "file", img_size=size, report=silent)
        old, new = model.state_dict()[name], found.state_dict()[name]
        matrices = [stretch_matrix(2 * a - 1, 2 * b - 1) for a, b in zip((2, 3), grid)]
        expected = np.einsum("ij,jkh,lk->ilh", matrices[0], old[:15].reshape(3, 5, 2), matrices[1])
        assert np.allclose(new[:-3], expected.reshape(-1, 2), rtol=0, atol=1e-13)
        assert np.array_equal(new[-3:], old[-3:])  # the pairs with the class token have no offset


@pytest.mark.parametrize(("old", "new"), [((2, 4), (4, 2)), (2, (1, 5)), ((1, 5), 2), ((2, 4), 3)])
@pytest.mark.parametrize("profile", ["timm", "microsoft"])
def test_biases_of_as_many_offsets_in_another_window_are_resampled(
    tmp_path: Path, old: Any, new: Any, profile: str
) -> None:
    model = drawn(Swin, **SWIN, window_size=old)
    save(model, tmp_path / "file")
    lines: list[str] = []
    found = from_pretrained(tmp_path / "file", window_size=new, profile=profile, report=lines.append)
    sides = [
        (2 * h - 1, 2 * w - 1) for h, w in ((size, size) if isinstance(size, int) else size for size in (old, new))
    ]
    table = model.state_dict()[TABLE].reshape(*sides[0], 2)
    if profile == "timm":
        rows, columns = (stretch_matrix(a, b) for a, b in zip(*sides))
        expected = np.einsum("ij,jkh,lk->ilh", rows, table, columns)
    else:
        expected, _ = F.resize_grid(table, sides[1], "bicubic", False)
    assert np.allclose(found.state_dict()[TABLE], expected.reshape(-1, 2), rtol=0, atol=1e-13)
    assert len(lines) == 4 and not np.array_equal(found.state_dict()[TABLE], model.state_dict()[TABLE])


def test_load_refuses_biases_of_another_window(tmp_path: Path) -> None:
    save(drawn(Swin, **SWIN, window_size=(2, 4)), tmp_path / "file")
    with pytest.raises(CheckpointError, match="bias_table' is of a 2x4 window, the model's of a 4x2 window"):
        load(Swin(**SWIN, window_size=(4, 2)), tmp_path / "file")
    export(drawn(Swin, **SWIN, window_size=(2, 4)), tmp_path / "file", "torchvision")  # whose index shows the window
    with pytest.raises(CheckpointError, match="bias_table' is of a 2x4 window, the model's of a 4x2 window"):
        load(Swin(**SWIN, window_size=(4, 2)), tmp_path / "file")


@pytest.mark.parametrize("kind", [Swin, SwinV2])
@pytest.mark.parametrize("layout", ["microsoft", "torchvision"])
def test_a_window_that_is_not_square_is_read_off_its_index(tmp_path: Path, kind: Any, layout: str) -> None:
    model = drawn(kind, **SWIN, window_size=(2, 4))
    export(model, tmp_path / "file", layout)
    found = from_pretrained(tmp_path / "file")
    assert found.config["window_size"] == (2, 4)
    assert np.allclose(found.predict(images((32, 32))), model.predict(images((32, 32))), rtol=0, atol=1e-12)


def test_an_index_in_another_order_is_refused(tmp_path: Path) -> None:
    model = drawn(Swin, **{**SWIN, "img_size": 16}, window_size=4)
    arrays = microsoft(model.state_dict(), model)
    name = "layers.0.blocks.0.attn.relative_position_index"
    arrays[name] = arrays[name].T
    save_arrays(tmp_path / "file", arrays, None)
    with pytest.raises(CheckpointError, match="relative_position_index reads the table in another order"):
        from_pretrained(tmp_path / "file")


def test_the_masks_of_microsoft_tell_an_image_that_is_not_square(tmp_path: Path) -> None:
    # 16 windows, as of an image of 32x32
    model = drawn(Swin, **{**SWIN, "img_size": (16, 64)}, window_size=4, covered="shrink_both")
    export(model, tmp_path / "file", "microsoft")
    assert from_pretrained(tmp_path / "file").config["img_size"] == (16, 64)


@pytest.mark.parametrize("image", [36, 40, 72, (36, 20)])
def test_windows_that_cover_the_later_maps_tell_the_image(tmp_path: Path, image: Any) -> None:
    options = {**SWIN, "img_size": image, "depths": (1, 1, 1), "num_heads": (2, 2, 2), "allow_odd_depths": True}
    model = drawn(Swin, **options, window_size=7)  # 36 has maps of 18, 9 and 5
    export(model, tmp_path / "file.safetensors", "timm")
    size = (image, image) if isinstance(image, int) else image
    asked = {} if isinstance(image, int) else {"img_size": image}  # whose later windows are not square
    found = from_pretrained(tmp_path / "file.safetensors", report=pytest.fail, **asked)
    assert np.allclose(found.predict(images(size)), model.predict(images(size)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"window_size": 7, "image_size": 32}, r"windows of 4x4, 4x4, which .*window_size=7 .*belongs to another file"),
        ({"window_size": 4, "image_size": 4}, r"windows of 4x4, 4x4, which .*img_size=4 .*belongs to another file"),
    ],
)
def test_windows_that_config_json_contradicts_are_refused(tmp_path: Path, config: Any, message: str) -> None:
    export(drawn(Swin, **SWIN, window_size=4), tmp_path / "file.safetensors", "huggingface")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(tmp_path / "file.safetensors")


def test_positions_that_config_json_contradicts_are_refused(tmp_path: Path) -> None:
    export(drawn(ViT, **VIT, img_size=SQUARE), tmp_path / "file.safetensors", "huggingface")
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 16}))
    with pytest.raises(
        CheckpointError, match="img_size=16, a grid of 8x8, and pos_embed has 36 positions.*another file"
    ):
        from_pretrained(tmp_path / "file.safetensors")


def test_what_timm_expects_of_images_is_no_word_about_the_table(tmp_path: Path) -> None:
    # timm keeps the pretraining's input_size in config.json where a model was built for another size
    model = drawn(ViT, **VIT, img_size=SQUARE)
    export(model, tmp_path / "file.safetensors", "timm")
    config = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 2}}
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {"input_size": [3, 224, 224]}}))
    assert from_pretrained(tmp_path / "file.safetensors").config["img_size"] == 12
    (tmp_path / "config.json").write_text(json.dumps({**config, "pretrained_cfg": {"input_size": [3, *TALL]}}))
    assert from_pretrained(tmp_path / "file.safetensors").config["img_size"] == TALL


def test_nine_rows_of_googles_table_are_a_class_token_and_eight_patches(tmp_path: Path) -> None:
    model = drawn(ViT, **VIT, img_size=(4, 8), gelu="tanh")
    np.savez(tmp_path / "file.npz", **google(model.state_dict(), model))
    found = from_pretrained(tmp_path / "file.npz", img_size=(4, 8), num_heads=2)
    assert np.allclose(found.predict(images((4, 8))), model.predict(images((4, 8))), rtol=0, atol=1e-12)


def test_rows_of_prefix_tokens_are_no_rows_of_patches(tmp_path: Path) -> None:
    save(drawn(ViT, **VIT, img_size=(4, 8)), tmp_path / "file")  # 1 + 2x4 rows, as many as 3x3
    with pytest.raises(CheckpointError, match="1 rows of prefix tokens before its 2x4 grid, and the model's has 0"):
        from_pretrained(tmp_path / "file", img_size=(6, 6), no_embed_class=True)
    with pytest.raises(CheckpointError, match="2x4 grid, the model's of a 3x3 grid"):
        load(ViT(**VIT, img_size=(6, 6), no_embed_class=True), tmp_path / "file")


APE: dict[str, Any] = {**SWIN, "ape": True, "window_size": 4}


@pytest.mark.parametrize("new", [(24, 16), (8, 48)])
def test_swins_positions_of_another_grid_are_resampled_or_refused(tmp_path: Path, new: Any) -> None:
    model = drawn(Swin, **{**APE, "img_size": (16, 24)})
    save(model, tmp_path / "file")
    lines: list[str] = []
    found = from_pretrained(tmp_path / "file", img_size=new, report=lines.append)
    grid = tuple(side // 2 for side in new)
    expected, _ = F.resize_grid(model.state_dict()["absolute_pos_embed"].reshape(8, 12, 8), grid)
    assert np.allclose(found.state_dict()["absolute_pos_embed"][0], expected.reshape(96, 8), rtol=0, atol=1e-13)
    assert lines[0] == f"minivit: absolute_pos_embed: resampled from 8x12 grid to {grid[0]}x{grid[1]} grid"
    if new == (24, 16):  # the windows of the other image shrink, and have other tables
        with pytest.raises(CheckpointError, match="'absolute_pos_embed' is of a 8x12 grid, the model's of a 12x8 grid"):
            load(Swin(**{**APE, "img_size": new}), tmp_path / "file")


@pytest.mark.parametrize("size", [(16, 24), (8, 32)])  # 8x12 and 4x16 positions; these are as many as 8x8
def test_the_masks_of_microsoft_tell_the_grid_of_its_positions(tmp_path: Path, size: Any) -> None:
    model = drawn(Swin, **{**APE, "img_size": size, "window_size": 2}, covered="shrink_both")
    export(model, tmp_path / "file", "microsoft")
    assert from_pretrained(tmp_path / "file").config["img_size"] == size
    turned = size[::-1]
    lines: list[str] = []
    found = from_pretrained(tmp_path / "file", img_size=turned, report=lines.append)
    assert found.config["img_size"] == turned and lines[0].startswith("minivit: absolute_pos_embed: resampled")
    with pytest.raises(CheckpointError, match="'absolute_pos_embed' is of a .* grid, the model's of a "):
        load(Swin(**{**APE, "img_size": turned, "window_size": 2}), tmp_path / "file")


@pytest.mark.parametrize("layout", ["own", "huggingface"])
def test_load_refuses_other_heads(tmp_path: Path, layout: str) -> None:
    model = drawn(ViT, **VIT, img_size=SQUARE)
    if layout == "own":
        save(model, tmp_path / "file")
    else:
        export(model, tmp_path / "file", layout)
        (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    other = ViT(**{**VIT, "num_heads": 4}, img_size=SQUARE)
    before = other.state_dict()
    with pytest.raises(CheckpointError, match="num_heads=2 in the file, 4 in the model"):
        load(other, tmp_path / "file")
    assert all(np.array_equal(before[name], array) for name, array in other.state_dict().items())
    load(ViT(**VIT, img_size=SQUARE), tmp_path / "file")


@pytest.mark.parametrize(("window", "trained"), [(8, 0), ((4, 2), 0), (4, 2)])
def test_load_refuses_a_v2_that_was_trained_in_other_windows(tmp_path: Path, window: Any, trained: Any) -> None:
    model = drawn(SwinV2, **SWIN, window_size=4 if window in (4, 8) else (2, 4), covered="shrink_both")
    for write in (save, lambda model, path: export(model, path, "microsoft")):
        write(model, tmp_path / "file")
        with pytest.raises(CheckpointError, match="though its arrays .*: pretrained_window_sizes="):
            load(SwinV2(**SWIN, window_size=window, pretrained_window_sizes=trained), tmp_path / "file")
    own = model.config["window_size"]
    larger = load(SwinV2(**SWIN, window_size=8, pretrained_window_sizes=(own, own), dtype="float64"), tmp_path / "file")
    assert larger.config["window_size"] == 8
