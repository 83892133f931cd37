"""The preprocessing of images for published weights: other sizes or means lower a model's accuracy.

It comes from a file next to the weights, else from the source's code for its published models.
"""

from __future__ import annotations

from typing import Any

from minivit.data.batches import MNIST_MEAN, MNIST_STD
from minivit.data.preprocess import FILTERS, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from minivit.io.budget import parse_json, read_small
from minivit.io.safetensors import CheckpointError
from minivit.io.text import printable
from minivit.io.weights import read_weights
from minivit.models import Model, ViT
from minivit.pretrained.hidden import is_plain
from minivit.pretrained.recognition import Recognized, StrPath, recognize
from minivit.sizes import Size, pair

_IMAGENET: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # (x - 127.5)/127.5 of bytes

_CLIP: dict[str, Any] = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}

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

    It comes from preprocessor_config.json next to the file (Hugging Face's keys), else from config.json (timm's
    `pretrained_cfg`), else from the defaults of the source. A file of minivit's has no default: one channel is taken to
    mean MNIST-like digits, light on dark, with the numbers of `minivit.data.normalize`; three channels pixels scaled to
    -1 to 1.

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
    file = found.weights.path.with_name("preprocessor_config.json")
    config = found.weights.config
    cfg = config.get("pretrained_cfg", config)  # older files of timm's have its keys at the top level
    try:
        if file.exists():
            settings = _huggingface(parse_json(read_small(file).decode("utf-8-sig")))
        elif isinstance(cfg, dict) and "mean" in cfg:
            file = file.with_name("config.json")
            settings = _timm(cfg)
        else:
            file = found.weights.path
            settings = _default(found.source, model, found.layout.family if found.layout else "")
        stated = settings.pop("size", None)
        if stated is None or (isinstance(model, ViT) and not model.config["dynamic_img_size"]):
            stated = pair(model.config["img_size"])
        for name in ("mean", "std"):
            settings[name] = _in_channels(tuple(settings[name]), channels)
        return Preprocess(stated, **settings)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        reason = printable(f"{type(error).__name__}: {error}"[:300])
        raise CheckpointError(
            f"{file} has no usable preprocessing ({reason}): correct it, or build a minivit.data.Preprocess"
        ) from None


def _huggingface(config: dict[str, Any]) -> dict[str, Any]:
    """Settings from preprocessor_config.json, with the defaults of the processor that it names, or ViT's."""
    kind = str(config.get("image_processor_type", config.get("feature_extractor_type", "")))
    deit, short, siglip = (kind.startswith(each) for each in ("DeiT", ("CLIP", "Bit"), "Siglip"))
    size = config.get("size", 256 if deit else 224)
    # a number is the short side in CLIP's processor, and in that of DINOv2, else both
    squash = not (short if isinstance(size, int) else "shortest_edge" in size if isinstance(size, dict) else False)
    resized = _size(size)
    kept = _size(config.get("crop_size", 224)) if config.get("do_center_crop", deit or short) else resized
    scale = 255 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255
    # (scale x - mean)/std of x in [0, 1] is (x - mean/scale)/(std/scale)
    usual = _CLIP if short else _IMAGENET if deit else _HALF
    mean, std = config.get("image_mean", usual["mean"]), config.get("image_std", usual["std"])
    if not config.get("do_normalize", True):
        mean, std = (0.0,), (1.0,)
    numbers = {int(number): name for name, number in FILTERS.items()}
    return {
        "size": kept,
        "crop": kept[0] / resized[0],
        "interpolation": numbers[config.get("resample", FILTERS["bicubic" if deit or short or siglip else "bilinear"])],
        "mean": [number / scale for number in mean],
        "std": [number / scale for number in std],
        "squash": squash,
        "offset": "floor",
    }


def _size(config: Any) -> Size:
    """A size as preprocessor_config.json gives it: a number, two, or a dict of sides."""
    if isinstance(config, dict):
        config = config["shortest_edge"] if "shortest_edge" in config else (config["height"], config["width"])
    return pair(config)


def _timm(cfg: dict[str, Any]) -> dict[str, Any]:
    """Settings from timm's pretrained_cfg; its defaults are 0.875 and bilinear (data/constants.py)."""
    mode = cfg.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ValueError(f"crop_mode={mode!r} is not known here, only 'center' and 'squash'")
    return {
        "size": tuple(cfg["input_size"][1:]) if "input_size" in cfg else None,
        "crop": cfg.get("crop_pct") or 0.875,
        "interpolation": cfg.get("interpolation") or "bilinear",
        "mean": cfg["mean"],
        "std": cfg["std"],
        "squash": mode == "squash",
    }


def pretrained_cfg(preprocess: Preprocess) -> dict[str, Any]:
    """The preprocessing under timm's keys, as in a config.json."""
    return {
        "input_size": [preprocess.channels, *pair(preprocess.size)],
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "interpolation": preprocess.interpolation,
        "crop_pct": preprocess.crop,
        "crop_mode": "squash" if preprocess.squash else "center",
    }


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
    if len(numbers) == channels:
        return numbers
    return (sum(numbers) / len(numbers),) * channels
