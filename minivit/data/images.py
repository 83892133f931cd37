"""Images from files: read, rotated upright, and flattened to 8-bit gray or colors. Needs Pillow."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from minivit.data.idx import DataError
from minivit.io.budget import MAX_TEXT, open_file
from minivit.io.text import printable


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
        return _upright(image, named(image))
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


def is_image(image: Any) -> bool:
    """Whether it is a PIL image."""
    from PIL import Image

    return isinstance(image, Image.Image)


def named(image: Any) -> str:
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
            f"{named(image)}: an image of floating-point pixels has no fixed range: convert it to 8 bits first"
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
