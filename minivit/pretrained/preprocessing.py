"""The preprocessing of images for published weights: other sizes or means lower a model's accuracy.

It comes from a file next to the weights, else from the source's code for its published models.
"""

from __future__ import annotations

from math import floor
from pathlib import Path
from typing import Any

from minivit.data.batches import MNIST_MEAN, MNIST_STD
from minivit.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, before_crop
from minivit.io.budget import parse_json, read_small
from minivit.io.safetensors import CheckpointError
from minivit.io.text import printable
from minivit.io.weights import read_weights
from minivit.models import Model, ViT
from minivit.pretrained.hidden import is_plain
from minivit.pretrained.image_processor import CLIP_MEAN, CLIP_STD, arguments
from minivit.pretrained.recognition import Recognized, StrPath, recognize
from minivit.sizes import Size, pair

# in transformers' order: the first holds settings of texts too, and those of images only in newer versions
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TIMM_KEYS = {"input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode"}
_BEYOND_TIMM = "minivit_preprocess"  # an entry of config.json beside timm's pretrained_cfg

_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # (x - 127.5)/127.5 of bytes

_CLIP: dict[str, Any] = {"mean": CLIP_MEAN, "std": CLIP_STD}

# (source, class or family): the default without a file; in a ratio of sizes the second is that to which the short side
# is resized
_DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    # timm, vision_transformer.py and swin_transformer.py: crop_pct 0.9, at 384 pixels all of it (see `_default`)
    ("timm", "ViT"): {**_HALF, "crop": 0.9},  # Google's weights ("augreg")
    ("timm", "DeiT"): {**_IMAGENET, "crop": 0.9},
    ("timm", "Swin"): {**_IMAGENET, "crop": 0.9},
    ("timm", "SwinV2"): {**_IMAGENET, "crop": 0.9},
    # microsoft/Swin-Transformer, data/build.py: 256 to 224, and other sizes in proportion
    ("microsoft", "Swin"): {**_IMAGENET, "crop": 224 / 256},
    ("microsoft", "SwinV2"): {**_IMAGENET, "crop": 224 / 256},
    # google-research/vision_transformer, input_pipeline.py: both sides to the size, without a crop. TensorFlow's
    # bilinear filter skips pixels when downsampling, Pillow's does not: logits differ a little from Google's own
    ("google", "ViT"): {**_HALF, "interpolation": "bilinear", "squash": True},
    # preprocessor_config.json of google/vit-..., facebook/deit-...-distilled-... and microsoft/swin...
    ("huggingface", "ViT"): {**_HALF, "interpolation": "bilinear", "squash": True},
    ("huggingface", "DeiT"): {**_IMAGENET, "crop": 224 / 256, "squash": True, "offset": "floor"},
    ("huggingface", "Swin"): {**_IMAGENET, "squash": True},
    ("huggingface", "SwinV2"): {**_IMAGENET, "squash": True},
    # preprocessor_config.json of openai/clip-..., google/siglip-... and facebook/dinov2-...
    ("huggingface", "CLIP"): {**_CLIP, "offset": "floor"},
    ("huggingface", "SigLIP"): {**_HALF, "squash": True},
    ("huggingface", "DINOv2"): {**_IMAGENET, "crop": 224 / 256, "offset": "floor"},
    # preprocessor_config.json of facebook/dinov3-...
    ("huggingface", "DINOv3"): {**_IMAGENET, "interpolation": "bilinear", "squash": True},
    ("huggingface", "BEiT"): {**_HALF, "squash": True},  # preprocessor_config.json of microsoft/beit-...
    # openai/CLIP, clip.py; open_clip_config.json of the SigLIPs
    ("openclip", "CLIP"): _CLIP,
    ("openclip", "SigLIP"): {**_HALF, "squash": True},
    # facebookresearch: eval_linear.py of dino, transforms.py of dinov2, main_finetune.py of mae; DeiT III keeps it all
    ("meta", "DINO"): {**_IMAGENET, "crop": 224 / 256},
    ("meta", "DINOv2"): {**_IMAGENET, "crop": 224 / 256},
    ("meta", "DINOv3"): {**_IMAGENET, "interpolation": "bilinear", "squash": True},  # README.md of dinov3
    ("meta", "MAE"): {**_IMAGENET, "crop": 224 / 256},
    ("meta", "DeiT III"): _IMAGENET,
    ("apple", "AIMv2"): {**_CLIP, "offset": "floor"},  # preprocessor_config.json of apple/aimv2-...
    # torchvision, models/vision_transformer.py and swin_transformer.py; more in _TORCHVISION
    ("torchvision", "ViT"): {**_IMAGENET, "interpolation": "bilinear", "crop": 224 / 256},
    ("torchvision", "Swin"): {**_IMAGENET, "crop": 224 / 232},
    ("torchvision", "SwinV2"): {**_IMAGENET, "crop": 256 / 260},
    # WZMIAOMIAO/deep-learning-for-image-processing, predict.py of each model
    ("wzmiaomiao", "ViT"): {**_HALF, "interpolation": "bilinear", "crop": 224 / 256},
    ("wzmiaomiao", "Swin"): {**_IMAGENET, "interpolation": "bilinear", "crop": 1 / 1.14},
}
# torchvision searched a size for each model: (class, embed_dim, blocks, patch)
_TORCHVISION: dict[tuple[str, int, int, int], float] = {
    ("ViT", 1024, 24, 16): 224 / 242,
    ("Swin", 96, 24, 4): 224 / 246,
    ("Swin", 128, 24, 4): 224 / 238,
    ("SwinV2", 128, 24, 4): 256 / 272,
}


def preprocessing(source: StrPath | Recognized, model: Model) -> Preprocess:
    """The preprocessing for a model that `from_pretrained` built from a file.

    It comes from the `image_processor` in processor_config.json next to the file, else from preprocessor_config.json
    (Hugging Face's keys, in transformers' order), else from config.json (timm's `pretrained_cfg`), else from the
    defaults of the source. What a file leaves out is its library's default; an entry that may change pixels and that
    `Preprocess` cannot express is an error. A file of minivit's has no default: one channel is taken to mean MNIST-like
    digits, light on dark, with the numbers of `minivit.data.normalize`; three channels pixels scaled to -1 to 1.

    The size is that of a ViT of fixed size. For one channel, each number is the mean over red, green and blue. The
    arrays of DeiT without distillation do not differ from ViT's: its files from facebookresearch need
    `dataclasses.replace(preprocess, mean=IMAGENET_MEAN, std=IMAGENET_STD)`.

    Args:
        source: the file or folder, or the result of `recognize`.
        model: the model built from it.

    Raises:
        CheckpointError: if the file, or a configuration next to it, is unreadable or invalid.
        ValueError: for a model of other than 1 or 3 channels.
    """
    found = source if isinstance(source, Recognized) else recognize(read_weights(source))
    channels = model.config["in_chans"]
    if channels not in (1, 3):
        raise ValueError(f"in_chans={channels}: an image has 3 channels, or 1 if it is gray")
    config = found.weights.config
    cfg = config.get("pretrained_cfg", config)  # older files of timm's have its keys at the top level
    file = found.weights.path
    family = found.layout.family if found.layout else ""
    try:
        for name in _PROCESSOR_FILES:
            file = found.weights.path.with_name(name)
            stated = _read(file)
            if stated is not None:
                settings = _fitted(arguments(stated, "DeiT" if model.config.get("distilled") else family), model)
                break
        else:
            if isinstance(cfg, dict) and ("pretrained_cfg" in config or _TIMM_KEYS & {*cfg}):
                file = file.with_name("config.json")
                settings = _fitted(_beyond_timm(_timm(cfg, model), config), model)
            else:
                file = found.weights.path
                settings = {"size": model.config["img_size"], **_default(found.source, model, family)}
        for name in ("mean", "std"):
            settings[name] = _in_channels(tuple(settings[name]), channels)
        return Preprocess(**settings)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = printable(f"{type(error).__name__}: {error}"[:300])
        raise CheckpointError(
            f"{file} has no usable preprocessing ({reason}): correct it, or build a minivit.data.Preprocess"
        ) from None


def _read(file: Path) -> dict[str, Any] | None:
    """The entries for images in one of transformers' files; None if there are none."""
    if not file.exists():
        return None
    content = parse_json(read_small(file).decode("utf-8-sig"))
    found: dict[str, Any] | None = content.get("image_processor") if file.name == _PROCESSOR_FILES[0] else content
    return found


def _own_size(model: Model) -> Size | None:
    """The one size of images that a model takes; None if it takes several."""
    fixed = isinstance(model, ViT) and not model.config["dynamic_img_size"]
    return pair(model.config["img_size"]) if fixed else None


def _fitted(settings: dict[str, Any], model: Model) -> dict[str, Any]:
    """The settings for the size of the model, of which the crop keeps the same share."""
    size = _own_size(model) or settings["size"]
    if size != settings["size"] and "resized" in settings:
        (high, wide), (tall, long) = settings["size"], settings["resized"]
        raise ValueError(f"it crops {high}x{wide} from {tall}x{long}, and the model takes {size[0]}x{size[1]}")
    return {**settings, "size": size}


def _timm(cfg: dict[str, Any], model: Model) -> dict[str, Any]:
    """Settings from timm's pretrained_cfg, with its defaults for the rest (timm 1.0.31, data/config.py)."""
    mode = cfg.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode={mode!r} is not known here, only 'center' and 'squash'")
    size, crop = _own_size(model), cfg.get("crop_pct") or 0.875
    if size is None:
        # models/_hub.py: a file that says both has the size of the model
        own = bool(cfg.get("fixed_input_size")) or not cfg.get("input_size")
        size = pair(model.config["img_size"] if own else tuple(cfg["input_size"][1:]))
    resized = floor(size[0] / crop), floor(size[1] / crop)
    return {
        "size": size,
        **before_crop(size, resized, crop),
        "interpolation": cfg.get("interpolation") or "bicubic",
        "mean": cfg.get("mean") or IMAGENET_MEAN,
        "std": cfg.get("std") or IMAGENET_STD,
        "squash": mode == "squash",
    }


def _beyond_timm(settings: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """The settings with those that timm's keys do not express, as `preprocess_entries` writes them."""
    more = dict(config.get(_BEYOND_TIMM) or {})
    unknown = {*more} - {"resized", "offset"}
    if unknown:
        raise ValueError(f"{_BEYOND_TIMM} has {min(unknown)!r:.60}: install the version that wrote it")
    if "resized" in more:  # of images of the size that is written beside it
        size, more["resized"] = pair(config["pretrained_cfg"]["input_size"][1:]), pair(more["resized"])
        settings = {**{name: value for name, value in settings.items() if name != "crop"}, "size": size}
    return {**settings, **more}


def preprocess_entries(preprocess: Preprocess) -> dict[str, Any]:
    """The preprocessing as entries of config.json: timm's "pretrained_cfg", and what its keys do not express."""
    size, resized = pair(preprocess.size), preprocess.resized
    cfg = {
        "input_size": [preprocess.channels, *size],
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop if resized is None else size[0] / pair(resized)[0],
        "crop_mode": "squash" if preprocess.squash else "center",
    }
    more: dict[str, Any] = {} if resized is None else {"resized": list(pair(resized))}
    if preprocess.offset != "round":
        more["offset"] = preprocess.offset
    return {"pretrained_cfg": cfg, **({_BEYOND_TIMM: more} if more else {})}


def _default(source: str, model: Model, family: str = "") -> dict[str, Any]:
    """The source's preprocessing of its published models of this kind, or family, and size."""
    config = model.config
    if source == "minivit":
        gray = config["in_chans"] == 1
        return {"mean": (MNIST_MEAN,), "std": (MNIST_STD,), "squash": True} if gray else dict(_HALF)
    unknown = isinstance(model, ViT) and not family and (not is_plain(config) or source == "openclip")
    if unknown:
        raise ValueError("families with these parts differ in it: put the config.json of its source beside the file")
    kind = "DeiT" if config.get("distilled") else type(model).__name__
    settings = dict(_DEFAULTS[source, family or kind])
    side, patch = min(pair(config["img_size"])), min(pair(config["patch_size"]))
    if source == "timm" and side >= 384:
        settings["crop"] = 1.0
    if source == "torchvision":
        blocks = sum(config["depths"]) if "depths" in config else config["depth"]
        settings["crop"] = _TORCHVISION.get((kind, config["embed_dim"], blocks, patch), settings["crop"])
        if kind == "ViT" and side > 224:  # the SWAG weights, at 384, 512 and 518
            settings |= {"crop": 1.0, "interpolation": "bicubic"}
    return settings


def _in_channels(numbers: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """One number for each channel: a single one for all, or the mean of three for gray."""
    if len(numbers) not in (1, 3):
        raise ValueError(f"{numbers!r:.60} has {len(numbers)} numbers, and an image has 3 channels")
    if len(numbers) == channels:
        return numbers
    return (sum(numbers) / len(numbers),) * channels
