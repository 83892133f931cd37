"""The published sizes under timm's names, and `create_model`, which builds one of them.

The sizes of ViT are in `vit_configs.py`. Sources: Liu et al. 2021 and 2022 (Swin, section 3.3; Swin v2, section 3.4),
Chen et al. 2021 (Swin's S3: windows that a search chose), timm (the names).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

from minivit.argument_checks import names_like
from minivit.models.model import Model
from minivit.models.swin import Swin, SwinV2
from minivit.models.timm_arguments import beside_architecture
from minivit.models.vit import ViT
from minivit.models.vit_configs import VITS

MODELS: dict[str, type[Model]] = {"ViT": ViT, "Swin": Swin, "SwinV2": SwinV2}  # by the name in a file

_SWIN_TINY = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)}
_SWIN_SMALL = {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)}
_SWIN_BASE = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)}
_SWIN_LARGE = {"embed_dim": 192, "depths": (2, 2, 18, 2), "num_heads": (6, 12, 24, 48)}


def _swin(size: dict[str, Any], window: int | tuple[int, ...], image: int) -> tuple[type[Model], dict[str, Any]]:
    return Swin, {**size, "window_size": window, "img_size": image}


def _swin_v2(
    size: dict[str, Any], window: int, image: int, pretrained: int | tuple[int, ...] = 0
) -> tuple[type[Model], dict[str, Any]]:
    return SwinV2, {**size, "window_size": window, "img_size": image, "pretrained_window_sizes": pretrained}


_FROM_192 = (12, 12, 12, 6)  # the windows at 192 pixels, where the last stage's map is 6x6

_CONFIGS: dict[str, tuple[type[Model], dict[str, Any]]] = {
    **VITS,
    "swin_tiny_patch4_window7_224": _swin(_SWIN_TINY, 7, 224),
    "swin_small_patch4_window7_224": _swin(_SWIN_SMALL, 7, 224),
    "swin_base_patch4_window7_224": _swin(_SWIN_BASE, 7, 224),
    "swin_base_patch4_window12_384": _swin(_SWIN_BASE, 12, 384),
    "swin_large_patch4_window7_224": _swin(_SWIN_LARGE, 7, 224),
    "swin_large_patch4_window12_384": _swin(_SWIN_LARGE, 12, 384),
    "swin_s3_tiny_224": _swin(_SWIN_TINY, (7, 7, 14, 7), 224),
    "swin_s3_small_224": _swin(_SWIN_SMALL, (14, 14, 14, 7), 224),
    "swin_s3_base_224": _swin({**_SWIN_SMALL, "depths": (2, 2, 30, 2)}, (7, 7, 14, 7), 224),
    "swinv2_tiny_window8_256": _swin_v2(_SWIN_TINY, 8, 256),
    "swinv2_tiny_window16_256": _swin_v2(_SWIN_TINY, 16, 256),
    "swinv2_small_window8_256": _swin_v2(_SWIN_SMALL, 8, 256),
    "swinv2_small_window16_256": _swin_v2(_SWIN_SMALL, 16, 256),
    "swinv2_base_window8_256": _swin_v2(_SWIN_BASE, 8, 256),
    "swinv2_base_window16_256": _swin_v2(_SWIN_BASE, 16, 256),
    "swinv2_base_window12_192": _swin_v2(_SWIN_BASE, 12, 192),
    "swinv2_base_window12to16_192to256": _swin_v2(_SWIN_BASE, 16, 256, _FROM_192),
    "swinv2_base_window12to24_192to384": _swin_v2(_SWIN_BASE, 24, 384, _FROM_192),
    "swinv2_large_window12_192": _swin_v2(_SWIN_LARGE, 12, 192),
    "swinv2_large_window12to16_192to256": _swin_v2(_SWIN_LARGE, 16, 256, _FROM_192),
    "swinv2_large_window12to24_192to384": _swin_v2(_SWIN_LARGE, 24, 384, _FROM_192),
}


def published() -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, arguments) of each published size."""
    for name, (_, config) in _CONFIGS.items():
        yield name, config


def sizes_of(name: str) -> dict[str, Any] | None:
    """The arguments of a published size, or None; its name may have a tag behind a dot."""
    found = _CONFIGS.get(name.partition(".")[0])
    return None if found is None else found[1]


def class_of(name: str) -> str | None:
    """The name of the class of a published size; None for a name that `create_model` does not know."""
    return _CONFIGS[name][0].__name__ if name in _CONFIGS else None


def name_of(config: dict[str, Any]) -> str | None:
    """The published name of a model's configuration, whatever its images, classes, dropout and dtype."""
    free = ("img_size", "in_chans", "num_classes", "dtype", "skip_unused_tokens", "dynamic_img_size", "weight_init")
    own = {name: value for name, value in config.items() if name not in free and not name.endswith("_rate")}
    for name, (kind, sizes) in _CONFIGS.items():
        if own.items() <= kind.options(**sizes).config().items():
            return name
    return None


def list_models(pattern: str = "*") -> list[str]:
    """The names that `create_model` knows, in alphabetical order.

    Args:
        pattern: with the wildcards of file names, such as "*dinov2*" or "swin*".
    """
    return sorted(fnmatch.filter(_CONFIGS, pattern))


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    dtype: Any = "float32",
    seed: Any = 0,
    **overrides: Any,
) -> Model:
    """A model of a published size, with fresh weights.

    Args:
        name: one of `list_models()`.
        num_classes: 1000 as published; 0 gives pooled features.
        in_chans: image channels.
        img_size: int or (H, W); None is the size in the name.
        dtype: "float32" or "float64".
        seed: of the initial weights.
        overrides: any other argument of the model's class, such as drop_path_rate=0.1, or an equivalent one of timm,
            such as act_layer="gelu_tanh"; see `timm_arguments.py`.

    Raises:
        ValueError: for an unknown name, with the nearest known ones, and for an argument of timm's that minivit's
            models lack, with a remedy.
    """
    if name not in _CONFIGS:
        near = names_like(name, _CONFIGS, 0.4)
        hint = f"did you mean {', '.join(near)}?" if near else "see minivit.list_models()"
        raise ValueError(f"unknown model {name!r}: {hint}")
    kind, config = _CONFIGS[name]
    changed = beside_architecture(kind.__name__, config, overrides)
    arguments = {**config, "num_classes": num_classes, "in_chans": in_chans, "dtype": dtype, "seed": seed, **changed}
    if img_size is not None:
        arguments["img_size"] = img_size
    return kind(**arguments)
