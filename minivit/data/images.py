"""Pictures from files: read, turned upright, resized, cropped and normalized into the array that a model takes.

Needs Pillow (`pip install 'minivit[examples]'`), whose resampling is what the published models were tested with.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from math import floor
from typing import Any

import numpy as np

from minivit.data.batches import Array, normalize
from minivit.data.idx import DataError
from minivit.sizes import Size, pair

# Pillow's filters by their numbers there, which Hugging Face's files use too
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training pixels, in [0, 1]


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes what a model takes: `preprocess(path_or_image)` is (C, H, W) float32.

    Attributes:
        size: (H, W) that the model takes, or one number for both.
        crop: the share of the resized picture that is kept, from its middle (timm's crop_pct). The picture is first
            resized to size/crop, rounded down; 1 keeps all that fits.
        interpolation: "bicubic", "bilinear" or another of `FILTERS`.
        mean, std: of pixels in [0, 1], one number for each channel: three for colors, one for gray.
        squash: resize both sides to size/crop whatever the picture's shape; else its shape stays, the short side is
            resized, and what is too long is cut off at both ends.

    Raises:
        ValueError: for numbers that make no picture.
    """

    size: Size | int
    crop: float = 1.0
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    squash: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", pair(self.size))
        for name in ("mean", "std"):
            object.__setattr__(self, name, tuple(float(number) for number in getattr(self, name)))
        if min(pair(self.size)) < 1:
            raise ValueError(f"size={self.size}: both sides must be at least 1")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop={self.crop} is the share that is kept: above 0, at most 1")
        if self.interpolation not in FILTERS:
            raise ValueError(f"interpolation={self.interpolation!r}: choose one of {', '.join(map(repr, FILTERS))}")
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(
                f"mean={self.mean}, std={self.std}: give three numbers each for colors, or one each for gray"
            )
        if not np.isfinite(self.mean).all():
            raise ValueError(f"mean={self.mean} must be finite")
        if not (np.isfinite(self.std).all() and min(self.std) > 0):
            raise ValueError(f"std={self.std} must be above 0: it divides")

    @property
    def channels(self) -> int:
        """C: 3, or 1 for gray."""
        return len(self.mean)

    def __call__(self, image: Any) -> Array:
        """(C, H, W) float32 of a file or of a PIL image, which is turned upright first.

        Raises:
            DataError: if there is no such file, or it is no picture that can be read.
            ImportError: if Pillow is missing.
        """
        picture = self.pixels(image)  # (H, W, C)
        return normalize(picture.transpose(2, 0, 1)[None], self.mean, self.std)[0]

    def pixels(self, image: Any) -> Array:
        """(H, W, C) uint8: what the model sees, before it is normalized; arguments and errors as in a call."""
        opened = read_image(image)
        try:
            picture = _in_channels(opened, self.channels)
        except (ValueError, OSError) as error:  # DataError, and what Pillow says of colors that it cannot convert
            name = image if isinstance(image, str | os.PathLike) else getattr(opened, "filename", "") or "the picture"
            raise DataError(f"{os.fspath(name)}: {error}") from None
        high, wide = pair(self.size)
        height, width = self._target if self.squash else _around((picture.height, picture.width), self._target)
        if (height, width) != (picture.height, picture.width):
            picture = picture.resize((width, height), FILTERS[self.interpolation])
        top, left = round((height - high) / 2), round((width - wide) / 2)
        return np.asarray(picture).reshape(height, width, self.channels)[top : top + high, left : left + wide]

    @property
    def _target(self) -> Size:
        """What the picture is resized to before the crop."""
        high, wide = (
            floor(side / self.crop + 1e-6) for side in pair(self.size)
        )  # 384 / (384/450) is 449.99999999999994
        return high, wide

    def __str__(self) -> str:
        high, wide = self._target
        resized = f"both sides to {high} x {wide}" if self.squash else f"the short side to {min(high, wide)}"
        values = ", ".join(
            f"{name} {' '.join(f'{number:.4g}' for number in (numbers[:1] if len(set(numbers)) == 1 else numbers))}"
            for name, numbers in (("mean", self.mean), ("std", self.std))
        )
        cut = " x ".join(map(str, pair(self.size)))
        return f"resize {resized} ({self.interpolation}), keep the middle {cut}, {values}"


def read_image(image: Any) -> Any:
    """A file as an upright PIL image, all of it in memory; a PIL image is only turned upright.

    Cameras store pictures as the sensor lay and note the turn in the file (EXIF orientation); it is applied here.

    Args:
        image: a path, or a PIL image.

    Raises:
        DataError: if there is no such file, it is no picture or a damaged one, or it has more pixels than Pillow takes
            for a decompression bomb (`PIL.Image.MAX_IMAGE_PIXELS`).
        ImportError: if Pillow is missing, with how to install it.
        ValueError: if `image` is neither.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise ImportError("reading pictures needs Pillow: pip install 'minivit[examples]'") from None
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image)
    if not isinstance(image, str | os.PathLike):
        raise ValueError(
            f"{type(image).__name__} is no picture: give a path or a PIL image (PIL.Image.fromarray makes one of an "
            "array)"
        )
    name = os.fspath(image)
    if not os.path.isfile(name):
        raise DataError(f"{name}: {'is a folder, not a picture' if os.path.isdir(name) else 'no such file'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(name) as opened:
                opened.load()
                return ImageOps.exif_transpose(opened)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"{name} claims more than {Image.MAX_IMAGE_PIXELS:,} pixels, which could fill the memory: make it "
            "smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is no picture that Pillow can read: convert it to PNG or JPEG") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise DataError(f"{name} is damaged ({error}): copy or fetch it again") from None


def _in_channels(image: Any, channels: int) -> Any:
    """A PIL image of 8-bit gray or of red, green and blue; what is transparent lies on white, as viewers show it."""
    from PIL import Image

    if image.mode == "F":
        raise DataError("a picture of floating-point pixels has no fixed range: convert it to 8 bits first")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255 instead of scaling
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535) // 257  # 65535 = 257 * 255
        image = Image.fromarray(levels.astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    wanted = "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _around(size: Size, target: Size) -> Size:
    """The size, in the picture's own shape, that just covers the target: one side equals it, the other is no shorter.

    The long side is rounded down, as torchvision does.
    """
    (height, width), (high, wide) = size, target
    if height * wide <= width * high:  # the picture is wider than the target
        return high, max(wide, width * high // height)
    return max(high, height * wide // width), wide
