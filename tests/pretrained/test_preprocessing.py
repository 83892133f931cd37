"""What stands beside the weights about images is honored, or refused by name; nothing changes pixels without a word.

tests/parity/test_preprocessing.py compares the pixels with transformers' and timm's.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from published_names import drawn

from minivit import CheckpointError, Swin, ViT, export
from minivit.data import Preprocess
from minivit.pretrained.preprocessing import preprocess_entries, preprocessing

VIT: dict[str, Any] = {"img_size": 32, "patch_size": 16, "num_classes": 2, "embed_dim": 64, "depth": 1, "num_heads": 1}
SWIN: dict[str, Any] = {"img_size": 32, "num_classes": 2, "embed_dim": 8, "depths": (2,), "num_heads": (2,)}
HALF = (0.5, 0.5, 0.5)
SIDES = {"height": 32, "width": 32}


def read(folder: Path, model: Any = None, **files: Any) -> Preprocess:
    """The preprocessing for a ViT of 32 x 32, with JSON files of these names beside its weights."""
    model = drawn(ViT, **VIT) if model is None else model
    export(model, folder / "model.safetensors", "timm")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return preprocessing(folder, model)


def clip(**options: Any) -> dict[str, Any]:
    return {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 36}, "crop_size": 32, **options}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (clip(do_resize=False), "do_resize=False leaves images of any size"),
        (clip(size={"shortest_edge": 36, "longest_edge": 50}), "size=.*longest_edge.*: minivit has only height with"),
        (clip(size={"longest_edge": 50}), "size=.*longest_edge.*: minivit has only height with width"),
        (clip(size={"max_height": 40, "max_width": 40}), "size=.*max_height.*: minivit has only height with width"),
        (clip(do_center_crop=False), "size=.*shortest_edge.*without do_center_crop leaves images of any shape"),
        (clip(crop_size=40), "crop_size=40x40 exceeds size=.*36.*black border"),
        (clip(crop_size={"height": 32, "width": 40}), "crop_size=32x40 exceeds size="),
        (clip(crop_pct=0.875), "crop_pct=0.875 may change pixels"),
        (clip(do_pad=True), "do_pad=True may change pixels"),
        (clip(do_flip_channel_order=True), "do_flip_channel_order=True may change pixels"),
        (clip(do_something_new=1), "do_something_new=1 may change pixels"),
        (clip(size={"height": 36, "width": 40}, crop_size={"height": 28, "width": 28}),
         "it crops 28x28 from 36x40, and the model takes 32x32"),
        (clip(image_mean=[0.5, 0.5]), "has 2 numbers, and an image has 3 channels"),
        ({"do_center_crop": True}, "do_center_crop needs a crop_size"),
        ({"image_processor_type": "MobileViTImageProcessor"}, "'MobileViTImageProcessor' is a processor that minivit"),
        ({"auto_map": {"AutoImageProcessor": "own.Processor"}}, "auto_map=.*may change pixels"),
    ],
)  # fmt: skip
def test_what_changes_pixels_and_minivit_lacks_is_refused_by_name(tmp_path: Path, said: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json .*{message}.*build a minivit.data.Preproc"):
        read(tmp_path, preprocessor_config=said)
    with pytest.raises(CheckpointError, match=rf"/processor_config\.json .*{message}.*build a minivit.data.Preprocess"):
        read(tmp_path, processor_config={"image_processor": said})


def test_entries_that_change_no_pixel_are_read_over(tmp_path: Path) -> None:
    expected = read(tmp_path, preprocessor_config=clip())
    assert (expected.crop, expected.offset) == (32 / 36, "floor")
    without = {"do_pad": False, "pad_size": SIDES, "do_flip_channel_order": False, "crop_pct": None, "do_resize": None}
    without |= {"do_convert_rgb": True, "data_format": "channels_first", "device": "cpu", "processor_class": "X"}
    without |= {"auto_map": {"AutoImageProcessor": "own.Processor"}, "do_reduce_labels": True, "image_mean": None}
    assert read(tmp_path, preprocessor_config=clip(**without)) == expected


@pytest.mark.parametrize("name", ["CLIPImageProcessorFast", "CLIPFeatureExtractor", "CLIPImageProcessorPil"])
def test_a_processor_is_known_by_each_of_its_names(tmp_path: Path, name: str) -> None:
    expected = read(tmp_path, preprocessor_config=clip())
    assert read(tmp_path, preprocessor_config=clip(image_processor_type=name)) == expected
    older = clip(feature_extractor_type=name)
    del older["image_processor_type"]
    assert read(tmp_path, preprocessor_config=older) == expected


def test_a_size_and_a_crop_of_different_shapes_are_honored(tmp_path: Path) -> None:
    said = clip(size={"height": 36, "width": 40}, image_mean=HALF, image_std=HALF)
    found = read(tmp_path, preprocessor_config=said)
    assert (found.size, found.resized, found.squash, found.offset) == ((32, 32), (36, 40), True, "floor")
    wide = drawn(ViT, **{**VIT, "img_size": (16, 32)})
    found = read(tmp_path, wide, preprocessor_config=clip(crop_size={"height": 16, "width": 32}))
    assert (found.size, found.resized, found.squash, found.offset) == ((16, 32), (36, 36), False, "floor")


def test_a_model_of_another_size_keeps_the_share_of_its_files_crop(tmp_path: Path) -> None:
    found = read(tmp_path, drawn(ViT, **{**VIT, "img_size": 64}), preprocessor_config=clip())
    assert (found.size, found.crop, found.resized) == ((64, 64), 32 / 36, None)


def test_processor_config_comes_first_and_may_be_silent(tmp_path: Path) -> None:
    first, second = {"size": SIDES, "image_mean": [0.1] * 3}, {"size": SIDES, "image_mean": [0.9] * 3}
    both = {"preprocessor_config": second, "processor_config": {"image_processor": first}}
    assert read(tmp_path, **both).mean == pytest.approx((0.1,) * 3)
    silent = {"processor_class": "CLIPProcessor", "image_processor": None}
    assert read(tmp_path, **both | {"processor_config": silent}).mean == pytest.approx((0.9,) * 3)
    (tmp_path / "processor_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"/processor_config\.json has no usable preprocessing"):
        preprocessing(tmp_path, drawn(ViT, **VIT))


def test_a_pretrained_cfg_that_is_not_complete_is_completed_as_timm_does(tmp_path: Path) -> None:
    imagenet = Preprocess(32).mean, Preprocess(32).std
    for cfg, expected in (
        ({}, Preprocess(32, 0.875, "bicubic", *imagenet)),
        ({"crop_pct": 1.0, "std": HALF}, Preprocess(32, 1.0, "bicubic", imagenet[0], HALF)),
        ({"mean": HALF}, Preprocess(32, 0.875, "bicubic", HALF, imagenet[1])),
        ({"crop_mode": "squash"}, Preprocess(32, 0.875, "bicubic", *imagenet, squash=True)),
    ):
        assert read(tmp_path, config={"pretrained_cfg": cfg}) == expected
        if cfg:
            assert read(tmp_path, config=cfg) == expected  # as older files have it


def test_a_swin_has_its_own_size_where_its_file_fixes_it(tmp_path: Path) -> None:
    for fixed, size in ((True, (32, 32)), (False, (48, 64))):
        cfg = {"input_size": [3, 48, 64], "fixed_input_size": fixed}
        model = drawn(Swin, **SWIN, window_size=4)
        assert read(tmp_path, model, config={"pretrained_cfg": cfg}).size == size


@pytest.mark.parametrize(
    "prepare",
    [
        Preprocess(32, 0.9, "bilinear", HALF, HALF),
        Preprocess(32, 0.9, offset="floor"),
        Preprocess(32, resized=(36, 43), offset="floor", squash=True),
        Preprocess(32, resized=40),
    ],
)
def test_every_preprocessing_survives_config_json(tmp_path: Path, prepare: Preprocess) -> None:
    assert read(tmp_path, config=preprocess_entries(prepare)) == prepare
    larger = drawn(ViT, **{**VIT, "img_size": 48})
    if prepare.resized is None:
        assert read(tmp_path, larger, config=preprocess_entries(prepare)) == replace(prepare, size=48)
    else:
        with pytest.raises(CheckpointError, match="it crops 32x32 from .*, and the model takes 48x48"):
            read(tmp_path, larger, config=preprocess_entries(prepare))


def test_entries_of_a_newer_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="minivit_preprocess has 'padding': install the version that wrote it"):
        read(tmp_path, config={"pretrained_cfg": {}, "minivit_preprocess": {"padding": 3}})
