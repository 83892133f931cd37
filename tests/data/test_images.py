"""Image files become what a model takes as their source did: sizes, crops, filters, numbers, upright and in channels.

What each source does is written out here with Pillow's own calls.
"""

from __future__ import annotations

import json
import struct
import warnings
import zlib
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import CheckpointError, Swin, SwinV2, ViT
from minivit.data import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    DataError,
    Preprocess,
    normalize,
    preprocess,
    read_image,
    read_images,
)
from minivit.data.images import flattened
from minivit.data.labels import labels_beside, read_labels
from minivit.pretrained import export
from minivit.pretrained.layouts import LAYOUTS
from minivit.pretrained.preprocessing import preprocessing

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")
HALF = (0.5, 0.5, 0.5)


def photo(width: int = 61, height: int = 43) -> Any:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def array(image: Any, mean: Any = HALF, std: Any = HALF) -> Any:
    """(C, H, W) of a PIL image by the formula."""
    x = np.asarray(image, np.float64).reshape(image.height, image.width, -1) / 255
    return ((x - np.array(mean)) / np.array(std)).transpose(2, 0, 1)


def close(got: Any, expected: Any) -> bool:
    return got.dtype == np.float32 and got.shape == expected.shape and bool(np.abs(got - expected).max() < 1e-5)


# --- the steps ------------------------------------------------------------------------------------------------------


def test_the_short_side_is_resized_and_the_middle_is_kept():
    prepare = Preprocess(28, crop=0.875, mean=HALF, std=HALF)
    expected = photo().resize((45, 32), Image.Resampling.BICUBIC)  # 32 * 61 // 43 = 45
    assert close(prepare(photo()), array(expected.crop((8, 2, 36, 30))))  # (45 - 28)/2 = 8.5, to the even 8
    tall = photo().transpose(Image.Transpose.ROTATE_90)
    expected = tall.resize((32, 45), Image.Resampling.BICUBIC)
    assert close(prepare(tall), array(expected.crop((2, 8, 30, 36))))


def test_squash_resizes_both_sides():
    prepare = Preprocess((20, 30), interpolation="bilinear", mean=HALF, std=HALF, squash=True)
    assert close(prepare(photo()), array(photo().resize((30, 20), Image.Resampling.BILINEAR)))
    prepare = Preprocess((14, 28), crop=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD, squash=True)
    expected = photo().resize((32, 16), Image.Resampling.BICUBIC).crop((2, 1, 30, 15))
    assert close(prepare(photo()), array(expected, IMAGENET_MEAN, IMAGENET_STD))


def test_a_target_that_is_no_square_is_covered():
    prepare = Preprocess((40, 20), interpolation="nearest", mean=HALF, std=HALF)
    expected = photo().resize((57, 40), Image.Resampling.NEAREST).crop((18, 0, 38, 40))  # 61 * 40 / 43 = 56.7
    assert close(prepare(photo()), array(expected))
    wide = Preprocess((10, 40), interpolation="nearest", mean=HALF, std=HALF)
    expected = photo().resize((40, 28), Image.Resampling.NEAREST).crop((0, 9, 40, 19))  # 43 * 40 // 61 = 28
    assert close(wide(photo()), array(expected))


@pytest.mark.parametrize("beside", range(8))
def test_the_offset_of_the_crop_is_that_of_torchvision_or_of_transformers(beside):
    image = photo(20 + beside, 20 + beside)
    for offset, corner in (("round", round(beside / 2)), ("floor", int(beside / 2))):
        prepare = Preprocess(20, resized=20 + beside, offset=offset)
        expected = np.asarray(image)[corner : corner + 20, corner : corner + 20]
        assert np.array_equal(prepare.pixels(image), expected)


def test_the_size_before_the_crop_need_not_be_in_proportion():
    prepare = Preprocess(32, resized=(36, 40), mean=HALF, std=HALF, squash=True)
    expected = photo().resize((40, 36), Image.Resampling.BICUBIC).crop((4, 2, 36, 34))
    assert close(prepare(photo()), array(expected))
    wide = Preprocess((20, 30), resized=32, mean=HALF, std=HALF)
    expected = photo().resize((45, 32), Image.Resampling.BICUBIC).crop((8, 6, 38, 26))  # 7.5, to the even 8
    assert close(wide(photo()), array(expected))
    assert str(prepare).startswith("resize both sides to 36 x 40 (bicubic), keep the middle 32 x 32, ")


@pytest.mark.parametrize(
    "size, crop, resized",
    [(224, 0.9, 248), (224, 0.875, 256), (224, 224 / 232, 232), (224, 224 / 246, 246), (224, 224 / 238, 238),
     (256, 256 / 260, 260), (256, 256 / 272, 272), (224, 224 / 242, 242), (384, 1.0, 384), (160, 0.95, 168),
     (384, 384 / 438, 438), (384, 384 / 450, 450), (224, 1 / 1.14, 255)],
)  # fmt: skip
def test_a_share_gives_the_sizes_that_the_sources_write(size, crop, resized):
    assert f"the short side to {resized} " in str(Preprocess(size, crop))


@pytest.mark.parametrize("width", [1, 2, 3, 1000])
def test_any_shape_gives_the_same_size(width):
    for image in (photo(width, 7), photo(7, width)):
        for squash in (False, True):
            assert Preprocess((9, 11), 0.8, squash=squash)(image).shape == (3, 9, 11)


def test_an_image_of_mnists_size_is_left_alone():
    pixels = np.random.default_rng(1).integers(0, 256, (28, 28), dtype=np.uint8)
    prepare = Preprocess(28, mean=(0.1307,), std=(0.3081,), squash=True)
    assert np.array_equal(prepare(Image.fromarray(pixels)), normalize(pixels[None])[0])
    assert np.array_equal(prepare.pixels(Image.fromarray(pixels))[:, :, 0], pixels)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ({"size": (0, 3)}, "both sides must be at least 1"),
        ({"size": 2.5}, "2.5 is no size"),
        ({"size": 4, "crop": 0.0}, "above 0, at most 1"),
        ({"size": 4, "crop": 1.5}, "above 0, at most 1"),
        ({"size": 4, "interpolation": "cubic"}, "choose one of 'nearest'"),
        ({"size": 4, "mean": (0.5, 0.5), "std": (1, 1)}, "three numbers each for colors"),
        ({"size": 4, "mean": (0.5,)}, "three numbers each for colors"),
        ({"size": 4, "std": (1, 1, 0)}, "must be above 0"),
        ({"size": 4, "mean": (0.5, np.nan, 0.5)}, "must be finite"),
        ({"size": 4, "crop": 0.5, "resized": 8}, "resized=.8, 8. and crop=0.5 say the same"),
        ({"size": (4, 6), "resized": 5}, "resized=.5, 5. is smaller than size=.4, 6."),
        ({"size": 4, "resized": 10**5}, "more than 16,777,216 pixels"),
        ({"size": 4, "offset": "ceil"}, "offset='ceil': choose one of 'round', 'floor'"),
    ],
)
def test_arrays_that_are_no_image_are_refused(arguments, word):
    with pytest.raises(ValueError, match=word):
        Preprocess(**arguments)


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_rotated_image_is_put_upright(tmp_path):
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # the sensor lay on its side: turn by 90 degrees clockwise
    photo().transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    assert np.array_equal(np.asarray(read_image(path)), np.asarray(photo()))
    with Image.open(path) as opened:
        assert np.array_equal(np.asarray(read_image(opened)), np.asarray(photo()))


RED = (255, 0, 0)


@pytest.mark.parametrize(
    "image, color, gray",
    [
        (Image.new("RGB", (4, 4), RED), RED, 76),
        (Image.new("L", (4, 4), 9), (9, 9, 9), 9),
        (Image.new("1", (4, 4), 1), (255, 255, 255), 255),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), (255, 255, 255), 255),  # what cannot be seen is white
        (Image.new("LA", (4, 4), (0, 51)), (204, 204, 204), 204),
        (Image.new("P", (4, 4), 0), (0, 0, 0), 0),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), RED, 76),
        (Image.fromarray(np.full((4, 4), 513, np.uint16)), (1, 1, 1), 1),  # 16 bits, 257 to each level
        (Image.new("I", (4, 4), 65535), (255, 255, 255), 255),
    ],
    ids=["RGB", "L", "1", "RGBA", "LA", "P", "CMYK", "I;16", "I"],
)
def test_every_mode_becomes_colors_or_gray(image, color, gray):
    got = Preprocess(4).pixels(image)
    assert got.shape == (4, 4, 3) and (got == np.array(color)).all()
    got = Preprocess(4, mean=(0.5,), std=(0.5,)).pixels(image)
    assert got.shape == (4, 4, 1) and (got == gray).all()


def test_a_palette_with_a_transparent_color_lies_on_white(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.save(tmp_path / "palette.png", transparency=bytes([255, 0]))
    assert (Preprocess(4).pixels(tmp_path / "palette.png") == 255).all()


def test_a_file_that_is_no_image_is_refused_with_the_reason(tmp_path, monkeypatch):
    prepare = Preprocess(4)
    with pytest.raises(DataError, match="none.png: no such file"):
        prepare(tmp_path / "none.png")
    with pytest.raises(DataError, match="is a folder"):
        prepare(str(tmp_path))
    path = tmp_path / "text.png"
    path.write_text("not an image")
    with pytest.raises(DataError, match="text.png is not an image that Pillow can read"):
        prepare(path)
    photo().save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="text.png is damaged"):
        prepare(path)
    with pytest.raises(DataError, match="floating-point"):
        prepare(Image.new("F", (4, 4)))
    with pytest.raises(ValueError, match="ndarray is not an image: give a path or a PIL image"):
        prepare(np.zeros((4, 4, 3), np.uint8))
    for limit in (61 * 43 - 1, 61 * 43 // 3):  # a warning of Pillow's, and its error
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match="claims more than .* pixels"):
            prepare(tmp_path / "whole.png")


def test_without_pillow_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install Pillow"):
        Preprocess(4)("any.png")


# --- what the sources do --------------------------------------------------------------------------------------------

VIT = {"img_size": 32, "patch_size": 16, "num_classes": 2, "embed_dim": 64, "depth": 1, "num_heads": 1}
SWIN = {"img_size": 32, "num_classes": 2, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4}


def exported(folder: Any, model: Any, layout: str = "timm") -> Any:
    path = folder / ("model.npz" if layout == "google" else "model.safetensors")
    export(model, path, layout)
    return path


def known(folder: Any, layout: str, model: Any, **files: Any) -> Preprocess:
    path = exported(folder, model, layout)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return preprocessing(path, model)


def test_every_source_has_a_default():
    from minivit.pretrained.preprocessing import _DEFAULTS

    known = {(layout.source, layout.family or layout.model) for layout in LAYOUTS if layout.family or layout.written}
    assert known <= set(_DEFAULTS)


def test_defaults_of_the_sources(tmp_path):
    vit = ViT(**VIT)
    assert known(tmp_path, "timm", vit) == Preprocess(32, 0.9, "bicubic", HALF, HALF)
    assert known(tmp_path, "google", ViT(**VIT, gelu="tanh")) == Preprocess(32, 1, "bilinear", HALF, HALF, squash=True)
    assert known(tmp_path, "huggingface", vit) == Preprocess(32, 1, "bilinear", HALF, HALF, squash=True)
    assert known(tmp_path, "torchvision", vit) == Preprocess(32, 224 / 256, "bilinear")
    deit = ViT(**VIT, distilled=True)
    assert known(tmp_path, "timm", deit) == Preprocess(32, 0.9)
    assert known(tmp_path, "huggingface", deit) == Preprocess(32, 224 / 256, squash=True, offset="floor")
    swin, second = Swin(**SWIN), SwinV2(**SWIN)
    assert known(tmp_path, "timm", swin) == Preprocess(32, 0.9)
    assert known(tmp_path, "huggingface", swin) == Preprocess(32, squash=True)
    assert known(tmp_path, "torchvision", swin) == Preprocess(32, 224 / 232)
    assert known(tmp_path, "torchvision", second) == Preprocess(32, 256 / 260)


@pytest.mark.parametrize(
    "layout, kind, changes, expected",
    [
        ("timm", ViT, {"img_size": 384, "patch_size": 128}, Preprocess(384, 1, mean=HALF, std=HALF)),
        ("torchvision", ViT, {"img_size": 384, "patch_size": 128}, Preprocess(384, 1)),
        (
            "torchvision",
            ViT,
            {"embed_dim": 1024, "depth": 24, "mlp_ratio": 0.01},
            Preprocess(32, 224 / 242, "bilinear"),
        ),
        ("torchvision", Swin, {"embed_dim": 128, "depths": (24,), "mlp_ratio": 0.1}, Preprocess(32, 224 / 238)),
        ("torchvision", SwinV2, {"embed_dim": 128, "depths": (24,), "mlp_ratio": 0.1}, Preprocess(32, 256 / 272)),
        ("torchvision", Swin, {"embed_dim": 96, "depths": (24,), "mlp_ratio": 0.1}, Preprocess(32, 224 / 246)),
    ],
)
def test_sizes_that_have_their_own_numbers(layout, kind, changes, expected):
    from minivit.pretrained.preprocessing import _default

    model = kind(**(VIT if kind is ViT else SWIN) | changes)
    assert Preprocess(model.config["img_size"], **_default(layout, model)) == expected


def test_what_timm_says_is_used(tmp_path):
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "crop_pct": 0.95, "interpolation": "bicubic"}
    cfg |= {"crop_mode": "center", "input_size": [3, 48, 64]}
    expected = Preprocess(32, 0.95, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert known(tmp_path, "timm", ViT(**VIT), config={"pretrained_cfg": cfg}) == expected
    assert known(tmp_path, "timm", ViT(**VIT), config=cfg) == expected  # as older files have it
    any_size = known(tmp_path, "timm", ViT(**VIT, dynamic_img_size=True), config={"pretrained_cfg": cfg})
    assert any_size.size == (48, 64)
    cfg["crop_mode"] = "squash"
    assert known(tmp_path, "timm", Swin(**SWIN), config={"pretrained_cfg": cfg}) == Preprocess(
        (48, 64), 0.95, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), squash=True
    )
    cfg["crop_mode"] = "border"
    with pytest.raises(CheckpointError, match="config.json has no usable preprocessing .* crop_mode='border'"):
        known(tmp_path, "timm", Swin(**SWIN), config={"pretrained_cfg": cfg})


@pytest.mark.parametrize(
    "said, expected",
    [
        ({"size": 224, "image_mean": HALF, "image_std": HALF}, Preprocess(224, 1, "bilinear", HALF, HALF, squash=True)),
        (
            {"size": {"height": 24, "width": 48}, "resample": 3, "image_mean": IMAGENET_MEAN,
             "image_std": IMAGENET_STD},
            Preprocess((24, 48), squash=True),
        ),
        (
            {"feature_extractor_type": "DeiTFeatureExtractor", "do_center_crop": True, "size": 256, "crop_size": 224,
             "resample": 3, "image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
            Preprocess(224, 0.875, squash=True),
        ),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
            Preprocess(224, 0.875, "bilinear", HALF, HALF),
        ),
        ({"do_normalize": False}, Preprocess(224, 1, "bilinear", (0, 0, 0), (1, 1, 1), squash=True)),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]},
         Preprocess(224, 1, "bilinear", HALF, HALF, squash=True)),
        ({"do_rescale": False, "image_mean": [255] * 3, "image_std": [51] * 3},
         Preprocess(224, 1, "bilinear", (1, 1, 1), (0.2, 0.2, 0.2), squash=True)),
    ],
)  # fmt: skip
def test_what_hugging_face_says_is_used(tmp_path, said, expected):
    got = known(tmp_path, "huggingface", Swin(**SWIN), preprocessor_config=said)
    assert (got.size, got.squash, got.interpolation) == (expected.size, expected.squash, expected.interpolation)
    assert np.allclose([got.crop, *got.mean, *got.std], [expected.crop, *expected.mean, *expected.std], atol=1e-12)


def test_a_preprocessor_that_makes_no_sense_is_refused(tmp_path):
    for said in (
        [],
        {"size": "big"},
        {"resample": 77},
        {"crop_size": 300, "do_center_crop": True},
        {"image_std": [0, 1, 1]},
    ):
        with pytest.raises(CheckpointError, match="preprocessor_config.json has no usable preprocessing"):
            known(tmp_path, "timm", ViT(**VIT), preprocessor_config=said)


def test_models_of_ones_own(tmp_path):
    digits = ViT(**VIT | {"in_chans": 1})
    minivit.save(digits, tmp_path / "digits.safetensors")
    got = preprocessing(tmp_path / "digits.safetensors", digits)
    assert got == Preprocess(32, 1, "bicubic", (0.1307,), (0.3081,), squash=True)
    colors = ViT(**VIT)
    minivit.save(colors, tmp_path / "colors.safetensors")
    assert preprocessing(tmp_path / "colors.safetensors", colors) == Preprocess(32, mean=HALF, std=HALF)


def test_gray_takes_the_mean_of_three_and_other_channels_are_refused(tmp_path):
    path = exported(tmp_path, Swin(**SWIN))
    got = preprocessing(path, Swin(**SWIN, in_chans=1))
    assert got.channels == 1 and got.mean == pytest.approx([0.449], abs=1e-12) and got.std == pytest.approx([0.226])
    with pytest.raises(ValueError, match="in_chans=2: an image has 3 channels, or 1"):
        preprocessing(path, Swin(**SWIN, in_chans=2))


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.txt", "tench\n goldfish \nshark\n"),
        ("a.json", '["tench", "goldfish", "shark"]'),
        ("a.json", '{"0": "tench", "2": "shark", "1": "goldfish"}'),
        ("a.json", '{"0": ["n01440764", "tench"], "1": ["n1", "goldfish"], "2": ["n2", "shark"]}'),
        ("a.json", '{"tench": 0, "shark": 2, "goldfish": 1}'),
    ],
)
def test_labels_are_read_in_every_form(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / name, 3) == ["tench", "goldfish", "shark"]


@pytest.mark.parametrize(
    "name, text, word",
    [
        ("a.txt", "one\ntwo\n", "holds 2 labels, and the model has 3 classes"),
        ("a.json", '{"1": "a", "2": "b", "3": "c"}', "no list or dict of labels"),
        ("a.json", "3", "no list or dict of labels"),
        ("a.json", "{", "no labels could be read"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path, name, text, word):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=word):
        read_labels(tmp_path / name, 3)
    with pytest.raises(DataError, match="no labels could be read"):
        read_labels(tmp_path / "missing.txt", 3)


def test_labels_beside_the_weights():
    assert labels_beside({"id2label": {"0": "a", "1": "b"}}, 2) == ["a", "b"]
    assert labels_beside({"label_names": ["a", "b"]}, 2) == ["a", "b"]
    assert labels_beside({"pretrained_cfg": {"label_names": ["a", "b"]}}, 2) == ["a", "b"]
    assert labels_beside({"id2label": {"0": "a"}, "pretrained_cfg": None}, 2) is None  # of another head
    assert labels_beside({}, 2) is None


# --- metadata that is broken, inks that can be lost, threads --------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish rubbish", b"Exif\0\0II*\0\xff\xff\0\0", b"Exif\0\0"])
def test_broken_exif_hides_no_pixels(tmp_path, kind, exif):
    path = tmp_path / "a.picture"
    photo().save(path, kind, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of a corrupt EXIF
        assert read_image(path).size == photo().size
        with Image.open(path) as opened:
            assert Preprocess(8)(opened).shape == (3, 8, 8)


def test_an_open_image_that_is_truncated_is_a_data_error(tmp_path):
    photo().save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "a.png") as opened, pytest.raises(DataError, match=r"a\.png is damaged"):
        Preprocess(8)(opened)


def test_an_image_without_a_range_is_named(tmp_path):
    Image.new("F", (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif.*floating-point"):
        Preprocess(4)(tmp_path / "a.tif")


def test_threads_leave_the_warning_filters_alone(tmp_path):
    for number in range(20):
        photo(61 + number).save(tmp_path / f"{number}.png")
    before = list(warnings.filters)
    for _ in range(5):
        read_images([str(path) for path in tmp_path.iterdir()], Preprocess(8), threads=4)
    assert list(warnings.filters) == before


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def scan(bits: int, color: int, row: bytes, width: int, transparent: bytes) -> bytes:
    """A PNG of one row, of these bits a level and this type of color, with a transparent color."""
    head = struct.pack(">IIBBBBB", width, 1, bits, color, 0, 0, 0)
    pixels = zlib.compress(b"\0" + row)
    parts = chunk(b"IHDR", head) + chunk(b"tRNS", transparent) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize(
    "png, expected",
    [
        (scan(16, 0, struct.pack(">3H", 0, 257 * 9, 65535), 3, struct.pack(">H", 0)), [255, 9, 255]),
        (scan(8, 0, bytes([0, 9, 255]), 3, struct.pack(">H", 0)), [255, 9, 255]),
        (scan(2, 0, bytes([0b01_10_00_00]), 3, struct.pack(">H", 1)), [255, 170, 0]),
        (scan(4, 0, bytes([0x12, 0x30]), 3, struct.pack(">H", 2)), [17, 255, 51]),
        (scan(1, 0, bytes([0b010_00000]), 3, struct.pack(">H", 0)), [255, 255, 255]),
        (scan(16, 2, struct.pack(">9H", *([9 * 257] * 3), *([65535] * 3), *([7 * 257] * 3)), 3,
              struct.pack(">3H", *([7 * 257] * 3))), [9, 255, 255]),
    ],
    ids=["16 bits", "8 bits", "2 bits", "4 bits", "1 bit", "colors of 16 bits"],
)  # fmt: skip
def test_what_is_transparent_lies_on_white_at_every_depth(tmp_path, png, expected):
    (tmp_path / "a.png").write_bytes(png)
    assert np.asarray(flattened(read_image(tmp_path / "a.png")).convert("L")).tolist() == [expected]


def test_ink_on_transparent_or_16_bit_paper_survives_inversion():
    ink = Image.new("LA", (3, 1), (0, 0))
    ink.putpixel((1, 0), (0, 255))
    assert np.asarray(ImageOps.invert(flattened(ink))).tolist() == [[0, 255, 0]]
    scanned = Image.fromarray(np.array([[60_000, 300, 60_000]], np.uint16))
    assert np.asarray(ImageOps.invert(flattened(scanned))).tolist() == [[22, 254, 22]]


def test_a_thin_image_gives_the_center_that_a_full_resize_gives(monkeypatch):
    """In two ways: of the middle alone, and of all of it; the first is for images that would become huge."""
    for picture in (photo(3, 400), photo(400, 3)):
        for name in ("bicubic", "bilinear"):
            prepare = Preprocess(20, 0.8, name)
            whole = prepare.pixels(picture).astype(int)
            monkeypatch.setattr(preprocess, "MAX_RESIZED", 1000)
            middle = prepare.pixels(picture).astype(int)
            monkeypatch.undo()
            off = np.abs(middle - whole)  # of noise, which a shift by one pixel changes by 80 on average
            assert middle.shape == whole.shape and off.mean() < 2
