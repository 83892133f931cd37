"""The image processors of transformers, as preprocessor_config.json and processor_config.json write them.

What such a file says either becomes an argument of `Preprocess`, or changes no pixel, or is refused.
"""

from __future__ import annotations

import re
from typing import Any

from minivit.data.preprocess import FILTERS, IMAGENET_MEAN, IMAGENET_STD, before_crop
from minivit.sizes import Size, pair

_HALF: dict[str, Any] = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_IMAGENET: dict[str, Any] = {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CROPPED: dict[str, Any] = {"do_center_crop": True, "crop_size": 224}
_CLIP = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD, "resample": 3, "size": {"shortest_edge": 224}, **_CROPPED}
_CLIP |= {"default_to_square": False}

# what a file leaves out: the attributes of BaseImageProcessor of transformers 5, and of the classes on it
_ALL: dict[str, Any] = {"do_resize": True, "do_center_crop": False, "do_rescale": True, "do_normalize": True}
_ALL |= {"rescale_factor": 1 / 255, "size": {"height": 224, "width": 224}, "default_to_square": True}
_PROCESSORS: dict[str, dict[str, Any]] = {
    "ViT": {**_HALF, "resample": 2},
    "DeiT": {**_HALF, "resample": 3, "size": 256, **_CROPPED},
    "CLIP": _CLIP,
    "Bit": _CLIP,
    "ViTHybrid": _CLIP,
    "Siglip": {**_HALF, "resample": 3, "default_to_square": False},
    "Beit": {**_HALF, "resample": 3, "crop_size": 224},
    "DINOv3ViT": {**_IMAGENET, "resample": 2},
}
# our families -> the processor that transformers takes where a file does not name it; ViT's for all others
_OF_FAMILY = {"DeiT": "DeiT", "CLIP": "CLIP", "AIMv2": "CLIP", "SigLIP": "Siglip", "DINOv2": "Bit", "BEiT": "Beit"}
_OF_FAMILY |= {"DINOv3": "DINOv3ViT"}

_HONORED = {*_ALL, "image_mean", "image_std", "resample", "crop_size"}
# names of classes, labels, the layout and device of tensors, and channels: every image becomes gray or RGB here
_WITHOUT_PIXELS = {"image_processor_type", "feature_extractor_type", "processor_class", "_processor_class"}
_WITHOUT_PIXELS |= {"do_convert_rgb", "do_reduce_labels", "reduce_labels", "data_format", "input_data_format"}
_WITHOUT_PIXELS |= {"return_tensors", "device", "disable_grouping", "model_input_names", "_valid_processor_keys"}
_WITHOUT_PIXELS |= {"image_seq_length", "transformers_version", "pad_size"}  # pad_size matters to do_pad alone
_NAMES = ("image_processor_type", "feature_extractor_type")


def arguments(stated: dict[str, Any], family: str) -> dict[str, Any]:
    """Arguments of `Preprocess` from the content of preprocessor_config.json.

    Args:
        stated: the content; an entry null is one that is left out, as for transformers.
        family: of the model, for a file that does not name its processor.

    Raises:
        ValueError: for what `Preprocess` cannot express; the message names the entry.
    """
    stated = {name: value for name, value in stated.items() if value is not None}
    name = next((stated[key] for key in _NAMES if key in stated), None)
    known = _WITHOUT_PIXELS | ({"auto_map"} if name else set())  # a named class comes before a repository's code
    for key, value in stated.items():
        if key not in _HONORED | known and value is not False:
            raise ValueError(f"{key}={value!r:.60} may change pixels, and minivit does not have it")
    config = {**_ALL, **_PROCESSORS[_OF_FAMILY.get(family, "ViT") if name is None else _kind(name)], **stated}
    if not config["do_resize"]:
        raise ValueError("do_resize=False leaves images of any size, and a model's input has one")
    resized, squash = _resized(config)
    kept = resized
    if config["do_center_crop"]:
        kept = _cropped(config, resized)
    elif not squash:
        raise ValueError(f"size={config['size']!r:.60} without do_center_crop leaves images of any shape")
    scale = 255 * config["rescale_factor"] if config["do_rescale"] else 255
    # (scale x - mean)/std of x in [0, 1] is (x - mean/scale)/(std/scale)
    mean, std = (0.0, 1.0) if not config["do_normalize"] else (config["image_mean"], config["image_std"])
    return {
        "size": kept,
        **before_crop(kept, resized),
        "interpolation": {number: name for name, number in FILTERS.items()}[config["resample"]],
        "mean": _divided(mean, scale),
        "std": _divided(std, scale),
        "squash": squash,
        "offset": "round" if squash and kept == resized else "floor",  # without a crop there is none
    }


def _kind(name: Any) -> str:
    """The processor of a class's name, such as "ViTImageProcessorFast" or "ViTFeatureExtractor"."""
    found = re.fullmatch(r"(\w+?)(?:ImageProcessor(?:Fast|Pil)?|FeatureExtractor)", str(name))
    if not found or found[1] not in _PROCESSORS:
        raise ValueError(f"{name!r:.60} is a processor that minivit does not have: it has {', '.join(_PROCESSORS)}")
    return found[1]


def _resized(config: dict[str, Any]) -> tuple[Size, bool]:
    """The size before the crop, and whether both sides are resized to it, else the short side."""
    size = config["size"]
    if isinstance(size, dict):
        given = {side: pixels for side, pixels in size.items() if pixels is not None}
        if {*given} == {"height", "width"}:
            return pair((given["height"], given["width"])), True
        if {*given} == {"shortest_edge"}:
            return pair((given["shortest_edge"],) * 2), False
        raise ValueError(f"size={size!r:.80}: minivit has only height with width, and shortest_edge alone")
    return pair(size), bool(config["default_to_square"]) or not isinstance(size, int)


def _cropped(config: dict[str, Any], resized: Size) -> Size:
    """The size of the center crop, which must lie within every resized image."""
    if "crop_size" not in config:
        raise ValueError("do_center_crop needs a crop_size")
    size = config["crop_size"]
    kept = pair((size["height"], size["width"]) if isinstance(size, dict) else size)
    if any(side > whole for side, whole in zip(kept, resized)):
        raise ValueError(
            f"crop_size={kept[0]}x{kept[1]} exceeds size={config['size']!r:.60}, where transformers adds a black border"
        )
    return kept


def _divided(numbers: Any, scale: float) -> tuple[float, ...]:
    """The numbers of channels, or one for all, divided."""
    several = numbers if isinstance(numbers, list | tuple) else (numbers,)
    return tuple(number / scale for number in several)
