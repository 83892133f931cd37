"""The transform from an image to a model's input: resized, cropped and normalized.

Needs Pillow (`pip install Pillow`), whose resampling is what the published models were tested with.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import floor, prod
from typing import Any

import numpy as np

from minivit.data.batches import Array, normalize
from minivit.data.idx import DataError
from minivit.data.images import flattened, is_image, named, read_image
from minivit.io.budget import MAX_RESIZED
from minivit.io.text import printable
from minivit.sizes import Size, pair

# Pillow's filters by their numbers there, which Hugging Face's files use too
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

_MAX_BETWEEN = 4 * MAX_RESIZED  # pixels between the two passes of a resize, over rows and columns
_OFFSETS: dict[str, Callable[[float], int]] = {"round": round, "floor": floor}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training pixels, in [0, 1]


@dataclass(frozen=True)
class Preprocess:
    """The transform from an image to a model's input: `preprocess(path_or_image)` is (C, H, W) float32.

    Attributes:
        size: (H, W) of the model's input, or one number for both.
        crop: the share of the resized image that the center crop keeps (timm's crop_pct). The image is first resized
            to size/crop, rounded down.
        interpolation: "bicubic", "bilinear" or another of `FILTERS`.
        mean, std: of pixels in [0, 1], one number for each channel: three for colors, one for gray.
        squash: resize both sides to size/crop. Otherwise the aspect ratio is kept: the short side is resized, and the
            long side cropped at both ends.
        resized: (H, W) of the resized image, or one number for both, where it is not size/crop; `crop` is then 1.
        offset: where half a pixel remains beside the crop, "round" to the nearest even pixel, as torchvision and timm
            do, or "floor", as transformers does.

    Raises:
        ValueError: for values that make no image.
    """

    size: Size | int
    crop: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    squash: bool = False
    resized: Size | int | None = None
    offset: str = "round"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", pair(self.size))
        if self.resized is not None:
            object.__setattr__(self, "resized", pair(self.resized))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(number) for number in getattr(self, name)))
        if min(pair(self.size)) < 1:
            raise ValueError(f"size={self.size}: both sides must be at least 1")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop={self.crop} is the share of the image to keep: above 0, at most 1")
        if prod(pair(self.size)) / self.crop**2 > MAX_RESIZED:
            raise ValueError(f"size={self.size} and crop={self.crop} make more than {MAX_RESIZED:,} pixels: lower size")
        if self.resized is not None:
            if self.crop != 1:
                raise ValueError(f"resized={self.resized} and crop={self.crop} say the same: give one of them")
            if any(whole < side for whole, side in zip(pair(self.resized), pair(self.size))):
                raise ValueError(f"resized={self.resized} is smaller than size={self.size}, which is cropped from it")
            if prod(pair(self.resized)) > MAX_RESIZED:
                raise ValueError(f"resized={self.resized} has more than {MAX_RESIZED:,} pixels: lower it")
        if self.offset not in _OFFSETS:
            raise ValueError(f"offset={self.offset!r}: choose one of {', '.join(map(repr, _OFFSETS))}")
        if self.interpolation not in FILTERS:
            raise ValueError(f"interpolation={self.interpolation!r}: choose one of {', '.join(map(repr, FILTERS))}")
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(
                f"mean={self.mean}, std={self.std}: give three numbers each for colors, or one each for gray"
            )
        if not np.isfinite(self.mean).all():
            raise ValueError(f"mean={self.mean} must be finite")
        if not (np.isfinite(self.std).all() and min(self.std) > 0):
            raise ValueError(f"std={self.std} must be above 0, as a divisor")

    @property
    def channels(self) -> int:
        """C: 3, or 1 for gray."""
        return len(self.mean)

    def __call__(self, image: Any) -> Array:
        """(C, H, W) float32 of a file or of a PIL image, which is rotated upright first.

        Raises:
            DataError: if there is no such file, or it is not a readable image; names the file.
            ImportError: if Pillow is missing.
        """
        pixels = self.pixels(image)  # (H, W, C)
        return normalize(pixels.transpose(2, 0, 1)[None], self.mean, self.std)[0]

    def pixels(self, image: Any) -> Array:
        """(H, W, C) uint8: the model's input before normalization; arguments and errors as in a call."""
        try:
            resized = self._resized(_in_channels(read_image(image), self.channels))
        except (DataError, ImportError):
            raise
        except MemoryError:
            raise DataError(f"{named(image)} needs more memory than there is: make it smaller") from None
        except (OSError, SyntaxError, ValueError) as error:
            if not isinstance(image, str | os.PathLike) and not is_image(image):
                raise  # neither a path nor an image
            raise DataError(f"{named(image)} is damaged ({printable(str(error))}): copy or fetch it again") from None
        high, wide = pair(self.size)
        top, left = self._corner((resized.height, resized.width))
        pixels = np.asarray(resized).reshape(resized.height, resized.width, self.channels)
        return pixels[top : top + high, left : left + wide]

    def _resized(self, image: Any) -> Any:
        """The image resized for the crop; of a very thin image, which would become long, only the middle."""
        height, width = self._target if self.squash else _around((image.height, image.width), self._target)
        box = None
        if height * width > MAX_RESIZED:
            corner = self._corner((height, width))
            box, height, width = _middle((image.height, image.width), (height, width), pair(self.size), corner)
        elif (height, width) == (image.height, image.width):
            return image
        if width * image.height > _MAX_BETWEEN and box is None:  # Pillow resizes the rows first
            image = image.resize((image.width, height), FILTERS[self.interpolation])
        return image.resize((width, height), FILTERS[self.interpolation], box=box)

    def _corner(self, resized: Size) -> tuple[int, int]:
        """The first row and column of a resized image that the crop keeps."""
        whole = _OFFSETS[self.offset]
        top, left = (whole((side - kept) / 2) for side, kept in zip(resized, pair(self.size)))
        return top, left

    @property
    def _target(self) -> Size:
        """The size before the crop."""
        return _before(pair(self.size), self.crop) if self.resized is None else pair(self.resized)

    def __str__(self) -> str:
        high, wide = self._target
        resized = f"both sides to {high} x {wide}" if self.squash else f"the short side to {min(high, wide)}"
        values = ", ".join(
            f"{name} {' '.join(f'{number:.4g}' for number in (numbers[:1] if len(set(numbers)) == 1 else numbers))}"
            for name, numbers in (("mean", self.mean), ("std", self.std))
        )
        whole = self.squash and self._target == pair(self.size)
        cut = "" if whole else f"keep the middle {' x '.join(map(str, pair(self.size)))}, "
        return f"resize {resized} ({self.interpolation}), {cut}{values}"


def _in_channels(image: Any, channels: int) -> Any:
    """A PIL image of 8-bit gray or of red, green and blue."""
    image, wanted = flattened(image), "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _middle(
    size: Size, resized: Size, kept: Size, corner: tuple[int, int]
) -> tuple[tuple[float, float, float, float], int, int]:
    """The box (left, top, right, bottom) of an image that becomes the kept pixels, and their height and width."""
    (height, width), (tall, long), (high, wide), (top, left) = size, resized, kept, corner
    down, across = height / tall, width / long
    box = (left * across, top * down, min((left + wide) * across, width), min((top + high) * down, height))
    return box, high, wide


def before_crop(kept: Size, resized: Size, crop: float | None = None) -> dict[str, Any]:
    """The argument `crop`, or `resized` where no such share gives that size before the crop.

    Args:
        kept: the size after the crop.
        resized: the size before it.
        crop: the share; None is that of the heights.
    """
    crop = kept[0] / resized[0] if crop is None else crop
    return {"crop": crop} if _before(kept, crop) == resized else {"resized": resized}


def _before(kept: Size, crop: float) -> Size:
    """The size before a crop that keeps this share."""
    high, wide = (floor(side / crop + 1e-6) for side in kept)  # 384 / (384/450) is 449.99999999999994
    return high, wide


def _around(size: Size, target: Size) -> Size:
    """The smallest size of the image's aspect ratio that covers the target: one side equals the target's.

    For a square the long side is rounded down, as torchvision's Resize does; else to the nearest pixel, as timm's
    ResizeKeepRatio does.
    """
    (height, width), (high, wide) = size, target
    if high != wide:
        ratio = min(height / high, width / wide)
        return max(high, round(height / ratio)), max(wide, round(width / ratio))
    if height <= width:
        return high, width * high // height
    return height * wide // width, wide
