"""The pixels of an image are those of transformers' image processors and of timm's evaluation transform.

The configurations are written by these libraries, or are theirs with an entry left out; nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_tools import torch

from minivit.models import Model, Swin, ViT
from minivit.pretrained import export, from_pretrained
from minivit.pretrained.image_processor import arguments
from minivit.pretrained.preprocessing import preprocess_entries, preprocessing

Image = pytest.importorskip("PIL.Image")
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "num_classes": 5, "embed_dim": 12, "depth": 1, "num_heads": 3}
SHAPES = ((97, 41), (41, 97), (64, 64), (33, 75), (70, 71))  # (width, height)


def pictures() -> list[Any]:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (9, 13, 3), dtype=np.uint8) for _ in SHAPES]
    return [Image.fromarray(pixels).resize(shape) for pixels, shape in zip(noise, SHAPES)]


def side(height: int, width: int | None = None) -> dict[str, int]:
    return {"height": height, "width": width or height}


def folder_of(folder: Path, model: Model | None = None) -> tuple[Path, Model]:
    model = ViT(**VIT) if model is None else model
    export(model, folder / "model.safetensors", "timm")
    return folder / "model.safetensors", model


# --- transformers ---

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "CLIP": ("CLIP", {"size": {"shortest_edge": 32}, "crop_size": side(32)}),
    "CLIP with a margin": ("CLIP", {"size": {"shortest_edge": 39}, "crop_size": side(32)}),
    "both sides to a size of another shape": ("CLIP", {"size": side(36, 43), "crop_size": side(32)}),
    "without a crop": ("CLIP", {"size": side(32), "do_center_crop": False}),
    "DINOv2": ("Bit", {"size": {"shortest_edge": 37}, "crop_size": side(32)}),
    "DeiT": ("DeiT", {"size": side(39), "crop_size": side(32)}),
    "ViT": ("ViT", {"size": side(32)}),
    "ViT with a crop": ("ViT", {"size": side(35), "crop_size": side(32), "do_center_crop": True}),
    "SigLIP": ("Siglip", {"size": side(32)}),
    "BEiT": ("Beit", {"size": side(32)}),
    "one number for all channels": ("ViT", {"size": side(32), "image_mean": 0.25, "image_std": 0.4}),
    "no rescaling": ("ViT", {"size": side(32), "do_rescale": False, "image_mean": [99.0] * 3, "image_std": [50.0] * 3}),
    "no normalization": ("ViT", {"size": side(32), "do_normalize": False}),
    "bilinear": ("CLIP", {"size": {"shortest_edge": 35}, "crop_size": side(32), "resample": 2}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_pixels_of_transformers_processors(tmp_path: Path, case: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind, options = CASES[case]
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**options)
    processor.save_pretrained(tmp_path)
    prepare = preprocessing(*folder_of(tmp_path))
    for picture in pictures():
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(prepare(picture), theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "CLIP", "Bit", "Siglip", "Beit", "DINOv3ViT"])
def test_what_a_file_leaves_out_is_the_default_of_its_processor(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": f"{kind}ImageProcessor"}))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    prepare = preprocessing(*folder_of(tmp_path, ViT(**{**VIT, "img_size": 224, "patch_size": 56})))
    np.testing.assert_allclose((prepare.mean, prepare.std), (processor.image_mean, processor.image_std), rtol=1e-12)
    for picture in pictures()[:2]:  # torchvision's resampling rounds a level otherwise than Pillow's
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
        assert np.abs(prepare(picture) - theirs).max() < 2.5 / 255 / min(prepare.std)


FAMILIES = {"vit": "", "swin": "", "swinv2": "", "vit_mae": "", "ijepa": "", "deit": "DeiT", "clip": "CLIP"}
FAMILIES |= {"siglip": "SigLIP", "dinov2": "DINOv2", "dinov3_vit": "DINOv3", "beit": "BEiT", "aimv2": "AIMv2"}


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_file_without_a_processor_has_that_of_its_model(kind: str) -> None:
    auto = pytest.importorskip("transformers.models.auto.image_processing_auto")
    processor = auto.IMAGE_PROCESSOR_MAPPING_NAMES[kind]["torchvision"]
    said = {"size": side(40), "crop_size": side(40)}
    expected = arguments({"image_processor_type": processor, **said}, "")
    assert arguments(said, FAMILIES[kind]) == expected


@pytest.mark.parametrize("nested", [True, False])
def test_processor_config_is_read_as_transformers_reads_it(tmp_path: Path, nested: bool) -> None:
    """Its `image_processor` comes before preprocessor_config.json; without one it says nothing of images."""
    transformers = pytest.importorskip("transformers")
    first = transformers.ViTImageProcessor(size=side(32), image_mean=[0.1, 0.2, 0.3]).to_dict()
    content = {"processor_class": "CLIPProcessor", **({"image_processor": first} if nested else {})}
    (tmp_path / "processor_config.json").write_text(json.dumps(content, default=dict))
    transformers.ViTImageProcessor(size=side(32), image_mean=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path).image_mean
    assert preprocessing(*folder_of(tmp_path)).mean == pytest.approx(theirs)
    assert theirs[0] == (0.1 if nested else 0.4)


# --- timm ---

CFG: dict[str, Any] = {"input_size": [3, 32, 32], "interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "center"}
CFG |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4], "fixed_input_size": True}


def check_as_timm(path: Path, model: Model, cfg: dict[str, Any]) -> None:
    data = pytest.importorskip("timm.data")
    resolved = data.resolve_data_config({}, pretrained_cfg=cfg)
    transform, prepare = data.create_transform(**resolved), preprocessing(path, model)
    for picture in pictures():
        np.testing.assert_allclose(prepare(picture), transform(picture).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("left_out", ["none", "all", *sorted({*CFG} - {"fixed_input_size"})])
def test_what_timms_pretrained_cfg_leaves_out_is_timms_default(tmp_path: Path, left_out: str) -> None:
    sizes = {**VIT, "img_size": 224, "patch_size": 56} if left_out in ("all", "input_size") else VIT
    path, model = folder_of(tmp_path, ViT(**sizes))
    cfg = {"num_classes": 5} | {name: value for name, value in CFG.items() if left_out not in (name, "all")}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
    check_as_timm(path, model, cfg)
    if left_out != "all":
        (tmp_path / "config.json").write_text(json.dumps(cfg))  # as older files have it
        check_as_timm(path, model, cfg)


@pytest.mark.parametrize("size", [(32, 48), (48, 32), (32, 32)])
@pytest.mark.parametrize("crop", [1.0, 0.9, 0.56])  # 28/0.56 is 49.99999999999999
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_the_pixels_of_timms_transform(tmp_path: Path, size: tuple[int, int], crop: float, mode: str) -> None:
    size = (28, 28) if (crop, size) == (0.56, (32, 32)) else size
    path, model = folder_of(tmp_path, ViT(**{**VIT, "img_size": size, "patch_size": 4}))
    cfg = {**CFG, "input_size": [3, *size], "crop_pct": crop, "crop_mode": mode, "interpolation": "bicubic"}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": cfg}))
    check_as_timm(path, model, cfg)


@pytest.mark.parametrize("fixed", [True, False])
def test_the_size_of_timms_swin_is_the_models_own_if_it_is_fixed(tmp_path: Path, fixed: bool) -> None:
    timm = pytest.importorskip("timm")
    from timm.models._hub import save_for_hf

    args = {"img_size": 64, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "num_classes": 5}
    save_for_hf(timm.create_model("swin_tiny_patch4_window7_224", **args), tmp_path, model_args=args)
    config = json.loads((tmp_path / "config.json").read_text())
    config["pretrained_cfg"] |= {"input_size": [3, 96, 96], "fixed_input_size": fixed}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = timm.data.resolve_data_config({}, model=timm.create_model(f"local-dir:{tmp_path}", pretrained=True))
    model = from_pretrained(tmp_path, report=lambda line: None)
    assert isinstance(model, Swin)
    assert preprocessing(tmp_path, model).size == theirs["input_size"][1:] == ((64, 64) if fixed else (96, 96))


def test_timm_reads_a_config_with_more_than_its_keys(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    transformers = pytest.importorskip("transformers")
    transformers.CLIPImageProcessor(size=side(36, 43), crop_size=side(32)).save_pretrained(tmp_path)
    path, model = folder_of(tmp_path)
    prepare = preprocessing(path, model)
    (tmp_path / "preprocessor_config.json").unlink()
    entries = {"architecture": "vit_tiny_patch16_224", "model_args": VIT, **preprocess_entries(prepare)}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    assert preprocessing(path, model) == prepare
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 5


assert torch  # PyTorch is needed by both libraries
