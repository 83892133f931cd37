"""A published file in a model that is not quite its own: other classes, image sizes, windows and channels.

Nothing that changes goes unsaid.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import minivit
from minivit import CheckpointError, Swin, SwinV2, ViT, functional as F
from minivit.pretrained import PROFILES, from_pretrained
from minivit.pretrained.adaptation import stretch_matrix
from minivit.sizes import pair

VIT = {
    "img_size": 12,
    "patch_size": 4,
    "num_classes": 5,
    "embed_dim": 128,
    "depth": 1,
    "num_heads": 2,
    "mlp_ratio": 1.0,
}
SWIN = {"img_size": 24, "patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 4)}
SWIN |= {"window_size": 6, "mlp_ratio": 2.0}


def drawn(kind: Any, **arguments: Any) -> Any:
    model, rng = kind(**arguments, dtype="float64"), np.random.default_rng(7)
    for name, param in model.parameters().items():
        param.data = float("norm" in name and name.endswith("weight")) + 0.3 * rng.standard_normal(param.shape)
    return model


@pytest.fixture(params=["timm", "minivit"])
def fitted(request: Any, tmp_path: Any) -> Any:
    """Saves a model, without its configuration or with it, and reads it with other arguments: the model and the report.

    What is read off the names alone and what a configuration says are changed in the same way.
    """

    def save_and_read(model: Any, **arguments: Any) -> tuple[Any, list[str]]:
        path, lines = tmp_path / "model.safetensors", []
        if request.param == "minivit":
            minivit.save(model, path)
        else:
            safetensors.numpy.save_file(model.state_dict(), path)
            if isinstance(model, ViT):
                arguments["num_heads"] = model.config["num_heads"]  # which no array shows
        return from_pretrained(path, dtype="float64", report=lines.append, **arguments), lines

    return save_and_read


def differing(model: Any, other: Any) -> list[str]:
    """The names whose arrays are not the same."""
    ours, theirs = model.state_dict(), other.state_dict()
    names = [*ours, *(name for name in theirs if name not in ours)]
    return [name for name in names if name not in theirs or not np.array_equal(ours.get(name), theirs[name])]


def images(side: int, channels: int = 3) -> Any:
    return np.random.default_rng(5).standard_normal((2, channels, side, side))


# --- classes ---


def test_other_classes_start_a_head_anew_and_say_so(fitted: Any) -> None:
    model = drawn(ViT, **VIT)
    other, lines = fitted(model, num_classes=7)
    assert differing(model, other) == ["head.weight", "head.bias"]
    assert np.array_equal(model.features(images(12)), other.features(images(12)))
    assert not other.predict(images(12)).any()
    assert sorted(lines) == [
        "minivit: head.bias: 5 classes in the file, 7 in the model: starts at 0",
        "minivit: head.weight: 5 classes in the file, 7 in the model: starts at 0",
    ]


@pytest.mark.parametrize("kind", [Swin, SwinV2])
def test_other_classes_for_swin(fitted: Any, kind: Any) -> None:
    model = drawn(kind, **SWIN)
    other, lines = fitted(model, num_classes=2, window_size=6)
    assert differing(model, other) == ["head.fc.weight", "head.fc.bias"]
    assert [line.split(".")[0] for line in lines if "assumed" not in line] == ["minivit: head"] * 2


def test_both_heads_of_a_distilled_model_start_anew(fitted: Any) -> None:
    model = drawn(ViT, **VIT, distilled=True)
    other, lines = fitted(model, num_classes=2)
    assert differing(model, other) == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert len(lines) == 4


@pytest.mark.parametrize(("kind", "arguments"), [(ViT, VIT), (ViT, {**VIT, "distilled": True}), (Swin, SWIN)])
def test_no_classes_leave_the_head_out(fitted: Any, kind: Any, arguments: Any) -> None:
    model = drawn(kind, **arguments)
    other, lines = fitted(model, num_classes=0)
    side = arguments["img_size"]
    assert np.array_equal(other.predict(images(side)), model.features(images(side)))
    assert lines == []


def test_the_same_number_of_classes_changes_nothing(fitted: Any) -> None:
    model = drawn(ViT, **VIT)
    other, lines = fitted(model, num_classes=5, img_size=12, in_chans=3)
    assert differing(model, other) == [] and lines == []


def test_a_file_without_a_head_gets_a_new_one(fitted: Any) -> None:
    model = drawn(ViT, **{**VIT, "num_classes": 0})
    other, lines = fitted(model, num_classes=4)
    assert np.array_equal(other.features(images(12)), model.features(images(12)))
    assert other.num_classes == 4 and any("head" in line for line in lines)


def test_the_report_is_printed_unless_it_goes_elsewhere(tmp_path: Any, capsys: Any) -> None:
    minivit.save(drawn(ViT, **VIT), tmp_path / "file")
    from_pretrained(tmp_path / "file", num_classes=7)
    assert "minivit: head.weight: 5 classes in the file, 7 in the model" in capsys.readouterr().out


# --- positions ---


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("size", [8, 20, (8, 16), (16, 12)])
def test_positions_are_resampled_as_the_profile_says(fitted: Any, profile: str, size: Any) -> None:
    model = drawn(ViT, **VIT)
    other, lines = fitted(model, img_size=size, profile=profile)
    table, grid = model.state_dict()["pos_embed"], tuple(side // 4 for side in pair(size))
    corners = profile in ("google", "torchvision")
    rule = (
        "bilinear" if profile == "google" else "bicubic",
        profile in ("timm", "openclip"),
        corners,
        0.1 * (profile == "meta"),
    )
    expected, _ = F.resize_grid(table[0, 1:].reshape(3, 3, -1), grid, *rule)
    got = other.state_dict()["pos_embed"]
    assert np.array_equal(got[0, 0], table[0, 0])  # the class token has no place
    assert np.allclose(got[0, 1:], expected.reshape(-1, 128), rtol=0, atol=1e-13)
    assert lines == [f"minivit: pos_embed: resampled from 3x3 grid to {grid[0]}x{grid[1]} grid"]
    assert differing(model, other) == ["pos_embed"]
    assert other.config["img_size"] == size


def test_equal_positions_stay_equal(fitted: Any) -> None:
    model = drawn(ViT, **VIT, distilled=True)
    table = model.parameters()["pos_embed"]
    table.data = np.broadcast_to(table.data[:, 2:3], table.shape)
    other, _ = fitted(model, img_size=28)
    got = other.state_dict()["pos_embed"]
    assert got.shape == (1, 2 + 49, 128)
    assert np.allclose(got, table.data[:, :1], rtol=0, atol=1e-13)


def test_swins_positions_are_resampled(fitted: Any) -> None:
    model = drawn(Swin, **SWIN, ape=True)
    other, lines = fitted(model, img_size=32)
    expected, _ = F.resize_grid(model.state_dict()["absolute_pos_embed"].reshape(12, 12, -1), (16, 16))
    assert np.allclose(other.state_dict()["absolute_pos_embed"][0], expected.reshape(256, 8), rtol=0, atol=1e-13)
    assert lines == ["minivit: absolute_pos_embed: resampled from 12x12 grid to 16x16 grid"]


def test_a_file_of_an_image_that_is_not_square(fitted: Any) -> None:
    model = drawn(ViT, **{**VIT, "img_size": (8, 12)})
    other, lines = fitted(model, img_size=(8, 12))
    assert differing(model, other) == [] and lines == []


def test_an_image_that_is_not_square_is_resampled_or_refused(tmp_path: Any) -> None:
    model = drawn(ViT, **{**VIT, "img_size": (8, 12)})
    minivit.save(model, tmp_path / "file")  # which says the grid
    other = from_pretrained(tmp_path / "file", dtype="float64", img_size=(16, 12), report=lambda line: None)
    expected, _ = F.resize_grid(model.state_dict()["pos_embed"][0, 1:].reshape(2, 3, -1), (4, 3))
    assert np.allclose(other.state_dict()["pos_embed"][0, 1:], expected.reshape(12, -1), rtol=0, atol=1e-13)
    safetensors.numpy.save_file(model.state_dict(), tmp_path / "file")
    other = from_pretrained(tmp_path / "file", img_size=(8, 12))
    assert other.config["img_size"] == (8, 12) and differing(model, other) == []
    (tmp_path / "config.json").write_text('{"image_size": [8, 12]}')
    assert from_pretrained(tmp_path / "file").config["img_size"] == (8, 12)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"file.*6 positions, which make no square: give img_size=\(H, W\)"):
        from_pretrained(tmp_path / "file")


# --- windows ---


@pytest.mark.parametrize("window", [3, 4, 5, 8])
def test_the_table_of_a_window_is_resampled(fitted: Any, window: int) -> None:
    model = drawn(Swin, **SWIN)
    other, lines = fitted(model, window_size=window)
    sides = [window, min(window, 6)]
    changed = [stage for stage in (0, 1) if sides[stage] != 6]
    for stage in (0, 1):
        for block in (0, 1):
            name = f"layers.{stage}.blocks.{block}.attn.relative_position_bias_table"
            old, side = model.state_dict()[name], 2 * sides[stage] - 1
            stretch = stretch_matrix(11, side) if stage in changed else np.eye(11)
            expected = np.einsum("ij,jkh,lk->ilh", stretch, old.reshape(11, 11, -1), stretch)
            assert np.allclose(other.state_dict()[name], expected.reshape(side * side, -1), rtol=0, atol=1e-13)
            line = f"minivit: {name}: resampled from 6x6 window to {sides[stage]}x{sides[stage]} window"
            assert (line in lines) == (stage in changed)
    assert len(lines) == 2 * len(changed)


def test_equal_biases_stay_equal(fitted: Any) -> None:
    model = drawn(Swin, **SWIN)
    for name, param in model.parameters().items():
        if name.endswith("bias_table"):
            param.data = np.full(param.shape, 1.5)
    other, _ = fitted(model, window_size=4)
    tables = [array for name, array in other.state_dict().items() if name.endswith("bias_table")]
    assert len(tables) == 4 and all(np.allclose(table, 1.5, rtol=0, atol=1e-13) for table in tables)


def test_version_2_moves_to_another_window_without_a_table(fitted: Any) -> None:
    model = drawn(SwinV2, **SWIN)
    other, lines = fitted(model, window_size=4, img_size=16)
    assert differing(model, other) == [] and lines == []
    assert other.config["window_size"] == 4
    # a file without its configuration cannot say its window: the requested one is taken to be its own
    assert other.config["pretrained_window_sizes"] in (((6, 6),) * 2, (0, 0))


# --- channels ---


@pytest.mark.parametrize(("kind", "arguments"), [(ViT, VIT), (Swin, SWIN)])
def test_one_channel_is_the_sum_of_three(fitted: Any, kind: Any, arguments: Any) -> None:
    model = drawn(kind, **arguments)
    other, lines = fitted(model, in_chans=1)
    gray = images(arguments["img_size"], 1)
    expected = model.predict(np.repeat(gray, 3, axis=1))
    assert np.abs(other.predict(gray) - expected).max() <= 1e-12 * np.abs(expected).max()
    assert lines == ["minivit: patch_embed.proj.weight: from 3 to 1 channels"]


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_more_channels_repeat_the_kernels_and_keep_their_weight(fitted: Any, channels: int) -> None:
    model = drawn(ViT, **VIT)
    other, lines = fitted(model, in_chans=channels)
    old, new = (each.state_dict()["patch_embed.proj.weight"] for each in (model, other))
    for channel in range(channels):
        assert np.allclose(new[:, channel], old[:, channel % 3] * 3 / channels, rtol=1e-15, atol=0)
    assert lines == [f"minivit: patch_embed.proj.weight: from 3 to {channels} channels"]


# --- the rest ---


def test_pre_logits_are_left_out_when_asked(fitted: Any) -> None:
    model = drawn(ViT, **VIT, representation_size=128)
    other, lines = fitted(model, representation_size=None)
    assert np.array_equal(other.features(images(12)), _run_without_pre_logits(model))
    assert sorted(lines) == [
        f"minivit: pre_logits.fc.{part}: omitted, the model has no layer before its head" for part in ("bias", "weight")
    ]


def _run_without_pre_logits(model: Any) -> Any:
    plain = ViT(**VIT, dtype="float64")
    plain.load_state_dict({name: a for name, a in model.state_dict().items() if "pre_logits" not in name})
    return plain.features(images(12))


def test_several_changes_at_once(fitted: Any) -> None:
    other, lines = fitted(drawn(ViT, **VIT), num_classes=2, img_size=16, in_chans=1, drop_path_rate=0.2)
    assert other.predict(images(16, 1)).shape == (2, 2)
    assert other.config["drop_path_rate"] == 0.2
    names = sorted(line.split(": ")[1] for line in lines)
    assert names == ["head.bias", "head.weight", "patch_embed.proj.weight", "pos_embed"]


def test_what_cannot_be_made_to_fit_is_refused(fitted: Any) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors does not fit this ViT.*blocks\.0\.mlp\.fc1\.weight"):
        fitted(drawn(ViT, **VIT), mlp_ratio=2.0)
    with pytest.raises(CheckpointError, match=r"blocks\.1\."):
        fitted(drawn(ViT, **VIT), depth=2)
    with pytest.raises(CheckpointError, match=r"patch_embed\.proj\.weight"):
        fitted(drawn(ViT, **VIT), patch_size=2, img_size=6)


def test_an_unknown_argument_or_profile_is_a_value_error(fitted: Any) -> None:
    with pytest.raises(ValueError, match="profile='nonsense': choose one of 'timm'"):
        fitted(drawn(ViT, **VIT), profile="nonsense")
    with pytest.raises((ValueError, TypeError), match="nonsense"):
        fitted(drawn(ViT, **VIT), nonsense=1)
    with pytest.raises(ValueError, match=re.escape("image 10x10 is not divisible by patch 4x4")):
        fitted(drawn(ViT, **VIT), img_size=10)


def test_a_profile_sets_how_the_model_computes(tmp_path: Any) -> None:
    safetensors.numpy.save_file(drawn(ViT, **VIT).state_dict(), tmp_path / "file")
    for profile, expected in {"google": ("tanh", 1e-6), "huggingface": ("none", 1e-12), "timm": ("none", 1e-6)}.items():
        config = from_pretrained(tmp_path / "file", profile=profile).config
        assert (config["gelu"], config["norm_eps"]) == expected
    assert from_pretrained(tmp_path / "file", profile="google", gelu="none").config["gelu"] == "none"
