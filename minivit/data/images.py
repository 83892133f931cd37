"""Images from files: read, rotated upright, resized, cropped and normalized to the input of a model.

Needs Pillow (`pip install Pillow`), whose resampling is what the published models were tested with.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import floor, prod
from typing import Any

import numpy as np

from minivit.data.batches import Array, normalize
from minivit.data.idx import DataError
from minivit.io.budget import MAX_RESIZED, MAX_TEXT, open_file
from minivit.io.text import printable
from minivit.sizes import Size, pair

# Pillow's filters by their numbers there, which Hugging Face's files use too
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}

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

    Raises:
        ValueError: for values that make no image.
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
            raise ValueError(f"crop={self.crop} is the share of the image to keep: above 0, at most 1")
        if prod(pair(self.size)) / self.crop**2 > MAX_RESIZED:
            raise ValueError(f"size={self.size} and crop={self.crop} make more than {MAX_RESIZED:,} pixels: lower size")
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
            raise DataError(f"{_named(image)} needs more memory than there is: make it smaller") from None
        except (OSError, SyntaxError, ValueError) as error:
            if not isinstance(image, str | os.PathLike) and not _is_image(image):
                raise  # neither a path nor an image
            raise DataError(f"{_named(image)} is damaged ({printable(str(error))}): copy or fetch it again") from None
        high, wide = pair(self.size)
        top, left = round((resized.height - high) / 2), round((resized.width - wide) / 2)
        pixels = np.asarray(resized).reshape(resized.height, resized.width, self.channels)
        return pixels[top : top + high, left : left + wide]

    def _resized(self, image: Any) -> Any:
        """The image resized for the crop; of a very thin image, which would become long, only the middle."""
        height, width = self._target if self.squash else _around((image.height, image.width), self._target)
        box = None
        if height * width > MAX_RESIZED:
            box, height, width = _middle((image.height, image.width), (height, width), pair(self.size))
        elif (height, width) == (image.height, image.width):
            return image
        if width * image.height > _MAX_BETWEEN and box is None:  # Pillow resizes the rows first
            image = image.resize((image.width, height), FILTERS[self.interpolation])
        return image.resize((width, height), FILTERS[self.interpolation], box=box)

    @property
    def _target(self) -> Size:
        """The size before the crop."""
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
        whole = self.squash and self._target == pair(self.size)
        cut = "" if whole else f"keep the middle {' x '.join(map(str, pair(self.size)))}, "
        return f"resize {resized} ({self.interpolation}), {cut}{values}"


def read_image(image: Any) -> Any:
    """A file as an upright PIL image, fully loaded; a PIL image is only rotated upright.

    Cameras store images in the sensor's orientation, and the rotation in the file (EXIF orientation); it is applied
    here.

    Args:
        image: a path, or a PIL image.

    Raises:
        DataError: if there is no such file, it is not an image or a damaged one, or it has more pixels than Pillow
            allows, as a decompression bomb (`PIL.Image.MAX_IMAGE_PIXELS`).
        ImportError: if Pillow is missing; the message says how to install it.
        ValueError: if `image` is neither.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise ImportError("reading images needs Pillow: pip install Pillow") from None
    if isinstance(image, Image.Image):
        return _upright(image, _named(image))
    if not isinstance(image, str | os.PathLike):
        raise ValueError(
            f"{type(image).__name__} is not an image: give a path or a PIL image (PIL.Image.fromarray makes one of an "
            "array)"
        )
    name = os.fspath(image)
    if not os.path.isfile(name):
        what = "is a folder, not an image" if os.path.isdir(name) else "no such file"
        raise DataError(f"{name}: {'is not a regular file' if os.path.exists(name) and what[0] == 'n' else what}")
    try:
        with open_file(name) as file, Image.open(file, formats=_formats()) as opened:
            _check_pixels(opened, name)
            return _upright(opened, name)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(name) from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is not an image that Pillow can read: convert it to PNG or JPEG") from None
    except MemoryError:
        raise DataError(f"{name} needs more memory than there is: make it smaller") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, EOFError, struct.error, ...
        raise DataError(f"{name} is damaged ({printable(str(error))}): copy or fetch it again") from None


def _formats() -> list[str]:
    """The formats that Pillow reads itself: for EPS it runs Ghostscript, and for others a plugin's program."""
    from PIL import Image

    Image.init()
    return [name for name in Image.ID if name not in _BY_OTHERS]


_BY_OTHERS = ("EPS", "WMF", "BUFR", "GRIB", "HDF5")
_MAX_BETWEEN = 4 * MAX_RESIZED  # pixels between the two passes of a resize, over rows and columns


def _check_pixels(image: Any, name: str) -> None:
    """Enforce Pillow's limit, which only warns up to twice the limit; a warning filter would affect all threads."""
    from PIL import Image

    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise _too_large(name)


def _too_large(name: str) -> DataError:
    from PIL import Image

    return DataError(
        f"{name} claims more than {Image.MAX_IMAGE_PIXELS:,} pixels, which could fill the memory: make it "
        "smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
    )


def _is_image(image: Any) -> bool:
    from PIL import Image

    return isinstance(image, Image.Image)


def _named(image: Any) -> str:
    """The name of an image in an error."""
    return os.fspath(image) if isinstance(image, str | os.PathLike) else getattr(image, "filename", "") or "the image"


def _upright(image: Any, name: str) -> Any:
    """The image in memory, rotated by its EXIF orientation; a broken EXIF block is ignored, as in viewers."""
    from PIL import Image, ImageOps

    key = _transparent(image)
    try:
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(f"{name} is damaged ({printable(str(error))}): copy or fetch it again") from None
    _check_pixels(image, name)  # an ICO file raises it only here
    try:
        turned = ImageOps.exif_transpose(image)
    except MemoryError:
        raise
    except Exception:  # for any damage: a wrong offset, type or text
        try:
            turn = image.getexif().get(0x0112)
        except Exception:
            turn = None
        method = _TURNS.get(turn) if isinstance(turn, int) else None
        turned = image.copy() if method is None else image.transpose(Image.Transpose[method])
        turned.info = {name: value for name, value in turned.info.items() if name not in _OF_EXIF}
    if key is not None:
        turned.info["transparency"] = key
    turned.filename = name  # type: ignore[attr-defined]  # of which a copy knows nothing, for errors later
    return turned


_OF_EXIF = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
_TURNS = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270"}
_TURNS |= {7: "TRANSVERSE", 8: "ROTATE_90"}


def _transparent(image: Any) -> Any:
    """The transparent color of a PNG in the levels of its pixels, if the PNG does not have 8 bits; else None.

    The file has it at its own depth: 0 to 3 for gray of 2 bits, where Pillow scales the pixels to 0 to 255.
    """
    key, tiles = image.info.get("transparency"), getattr(image, "tile", None)
    raw = str(tiles[0][3]) if tiles and image.format == "PNG" else ""
    if isinstance(key, tuple):
        return tuple(level >> 8 for level in key) if "16" in raw else None
    scale = {"L;2": 85, "L;4": 17, "1": 255}.get(raw)
    return None if scale is None or not isinstance(key, int) or image.mode not in ("1", "L") else key * scale


def flattened(image: Any) -> Any:
    """A PIL image as opaque 8-bit gray ("L") or color ("RGB"): transparent pixels over white, as in viewers.

    Raises:
        DataError: for floating-point pixels, whose range is unknown.
    """
    from PIL import Image

    if image.mode == "F":
        raise DataError(
            f"{_named(image)}: an image of floating-point pixels has no fixed range: convert it to 8 bits first"
        )
    key = image.info.get("transparency")
    if image.mode.startswith("I"):  # 16 bits, which Pillow would clip at 255 instead of scaling
        levels = np.asarray(image).astype(np.int64)
        scaled = np.clip(levels, 0, 65535) // 257  # 65535 = 257 * 255
        return Image.fromarray(np.where(levels == key, 255, scaled).astype(np.uint8))
    if image.mode in ("1", "L") and isinstance(key, int):
        levels = np.asarray(image.convert("L"))
        return Image.fromarray(np.where(levels == key, 255, levels).astype(np.uint8))
    gray = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or key is not None:
        image = _on_white(image)
    return image.convert("L" if gray else "RGB")


def _on_white(image: Any) -> Any:
    """In bands, so that a large image is in memory twice instead of four times."""
    from PIL import Image

    if image.mode in ("La", "RGBa"):
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    opaque = Image.new("RGB", image.size)
    rows = max(1, MAX_TEXT // max(1, image.width))
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        opaque.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, top))
    return opaque


def _in_channels(image: Any, channels: int) -> Any:
    """A PIL image of 8-bit gray or of red, green and blue."""
    image, wanted = flattened(image), "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _middle(size: Size, resized: Size, kept: Size) -> tuple[tuple[float, float, float, float], int, int]:
    """The box (left, top, right, bottom) of an image that becomes the kept pixels, and their height and width."""
    (height, width), (tall, long), (high, wide) = size, resized, kept
    top, left = round((tall - high) / 2), round((long - wide) / 2)
    down, across = height / tall, width / long
    box = (left * across, top * down, min((left + wide) * across, width), min((top + high) * down, height))
    return box, high, wide


def _around(size: Size, target: Size) -> Size:
    """The smallest size of the image's aspect ratio that covers the target: one side equals the target's.

    The long side is rounded down, as torchvision does.
    """
    (height, width), (high, wide) = size, target
    if height * wide <= width * high:  # the image is wider than the target
        return high, max(wide, width * high // height)
    return max(high, height * wide // width), wide
