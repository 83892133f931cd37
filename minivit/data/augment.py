"""Augmentation of batches of images: shifts, crops, flips, erasing and affine maps.

Random numbers are drawn on the host. Images on a GPU are changed there, and have the same bits as on the host.
"""

# Notation: B images in the batch, C channels, H height, W width.

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from minivit.data.batches import Augment
from minivit.data.warp import warp
from minivit.device import array_module, constant

Array: TypeAlias = NDArray[Any]
Rng: TypeAlias = np.random.Generator
ImageFunction: TypeAlias = Callable[[Array, Rng], Array]

ERASE_TRIES = 10  # attempts to find a rectangle before an image is left unchanged; torchvision's number


def chain(*functions: ImageFunction, mix: Augment | None = None) -> Augment:
    """Compose functions of images into an `augment` for `batches`.

    Args:
        functions: each called as `f(images, rng)`, in this order.
        mix: called last as `mix(images, labels, rng)`, returning both; `mixup` or `cutmix` with
            their `num_classes` given.

    Returns:
        `augment(images, labels, rng)`, which returns images and labels or soft targets.

    Example:
        chain(partial(affine, degrees=10), partial(shift, max_shift=2),
              mix=partial(mixup, num_classes=10))
    """

    return _Chain(functions, mix)


@dataclass(frozen=True, repr=False)
class _Chain:
    """The result of `chain`; its repr is the call that made it."""

    functions: tuple[ImageFunction, ...]
    mix: Augment | None

    def __call__(self, images: Array, labels: Array, rng: Rng) -> tuple[Array, Array]:
        for function in self.functions:
            images = function(images, rng)
        return (images, labels) if self.mix is None else self.mix(images, labels, rng)

    def __repr__(self) -> str:
        mix = [] if self.mix is None else [f"mix={_call_text(self.mix)}"]
        return f"chain({', '.join([*map(_call_text, self.functions), *mix])})"


def _call_text(function: Any) -> str:
    """The text of a function: its name, a partial with its arguments, or its repr."""
    if not isinstance(function, partial):
        return getattr(function, "__name__", repr(function))
    named = [f"{name}={value!r}" for name, value in function.keywords.items()]
    return f"{_call_text(function.func)}({', '.join([*map(repr, function.args), *named])})"


def shift(images: Array, rng: Rng, max_shift: int = 2, fill: float = 0.0) -> Array:
    """Shift each image by integer numbers of pixels, -max_shift ... max_shift in each direction.

    Args:
        images: (B, C, H, W), floating or uint8.
        rng: the source of randomness.
        max_shift: pixels, 0 or more; all 2 max_shift + 1 shifts are equally likely.
        fill: value of the pixels from outside; 0 is the background of images in [0, 1].

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ValueError: another shape or dtype, a bad `max_shift`, or a `fill` that the dtype cannot
            hold.
    """
    check_images(images)
    _check_pixels("max_shift", max_shift)
    return _random_windows(_pad(images, max_shift, fill), rng, *images.shape[2:])


def crop(
    images: Array,
    rng: Rng,
    padding: int = 4,
    size: tuple[int, int] | None = None,
    fill: float = 0.0,
    reflect: bool = False,
) -> Array:
    """Pad each image on all sides and crop a random window (He et al. 2016, section 4.2).

    Args:
        images: (B, C, H, W), floating or uint8.
        rng: the source of randomness.
        padding: pixels on each side, 0 or more.
        size: height and width of the result; those of `images` if None.
        fill: value of the padding.
        reflect: pad with the mirrored image instead of `fill`.

    Returns:
        A new array (B, C, *size) of the same dtype.

    Raises:
        ValueError: another shape or dtype, a window larger than the padded image, padding that
            reflection cannot provide, or a `fill` that the dtype cannot hold.
    """
    check_images(images)
    _check_pixels("padding", padding)
    H, W = images.shape[2:]
    height, width = (H, W) if size is None else size
    if not (1 <= height <= H + 2 * padding and 1 <= width <= W + 2 * padding):
        raise ValueError(
            f"size=({height}, {width}) cannot be cropped from images {H}x{W} padded by {padding}: "
            "choose a smaller size or more padding"
        )
    if reflect and padding >= min(H, W):
        raise ValueError(f"padding={padding} cannot be reflected from images {H}x{W}: pad by at most {min(H, W) - 1}")
    if reflect:
        sides = ((0, 0), (0, 0), (padding, padding), (padding, padding))
        padded = array_module(images).pad(images, sides, mode="reflect")
    else:
        padded = _pad(images, padding, fill)
    return _random_windows(padded, rng, height, width)


def flip(images: Array, rng: Rng, p: float = 0.5) -> Array:
    """Mirror each image left to right with probability `p`. Not for digits: a mirrored 2 is not a 2.

    Args:
        images: (B, C, H, W), floating or uint8.
        rng: the source of randomness.
        p: probability, 0 to 1.

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ValueError: another shape or dtype, or `p` out of range.
    """
    check_images(images)
    _check_interval("p", (p, p), 0.0, 1.0)
    flipped = constant(np.flatnonzero(rng.random(len(images)) < p), images)
    out: Array = images.copy()
    out[flipped] = images[flipped, :, :, ::-1]
    return out


def erase(
    images: Array,
    rng: Rng,
    p: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    fill: float | None = 0.0,
) -> Array:
    """Overwrite a random rectangle of each image (Zhong et al. 2017, algorithm 1).

    The defaults are the paper's, except that height / width is drawn uniformly on a logarithmic
    scale, as in torchvision: wide and tall rectangles are then equally likely.

    Args:
        images: (B, C, H, W), floating or uint8.
        rng: the source of randomness.
        p: probability that an image is changed.
        area: smallest and largest part of the image to erase.
        aspect: smallest and largest height / width.
        fill: the value written; None for noise, uniform over [0, 1) or 0 ... 255.

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ValueError: another shape or dtype, an interval out of range or reversed, or a `fill` that
            the dtype cannot hold.
    """
    check_images(images)
    _check_interval("p", (p, p), 0.0, 1.0)
    _check_interval("area", area, 0.0, 1.0)
    _check_interval("aspect", aspect, 1e-3, 1e3)  # beyond, no rectangle of complete pixels exists
    B, _, H, W = images.shape
    tries = (ERASE_TRIES, B)
    pixels = rng.uniform(area[0], area[1], tries) * (H * W)
    ratio = np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1]), tries))
    height, width = np.rint(np.sqrt(pixels * ratio)), np.rint(np.sqrt(pixels / ratio))
    fits = (height > 0) & (height < H) & (width > 0) & (width < W)  # (tries, B)
    first = fits.argmax(axis=0), np.arange(B)
    touched = fits[first] & (rng.random(B) < p)
    height, width = height[first] * touched, width[first] * touched  # (B,)
    top = np.floor(rng.random(B) * (H - height + 1))
    left = np.floor(rng.random(B) * (W - width + 1))
    inside = rectangles(top, top + height, left, left + width, H, W)
    value = constant(_noise(images, rng), images) if fill is None else _fill_value(fill, images.dtype)
    changed: Array = array_module(images).where(constant(inside, images), value, images)
    return changed


def affine(
    images: Array,
    rng: Rng,
    degrees: float = 10.0,
    scale: tuple[float, float] = (0.9, 1.1),
    shear: float = 0.0,
    max_shift: float = 0.0,
    fill: float = 0.0,
) -> Array:
    """Rotate, scale and shear each image about its center, and shift it, with bilinear interpolation.

    128 digits of 28x28 take about 1.5 ms (one core).

    Args:
        images: (B, C, H, W), floating or uint8 (computed in float32, rounded).
        rng: the source of randomness.
        degrees: angles are uniform in -degrees ... degrees.
        scale: smallest and largest factor, above 0; 2 doubles the size of the objects.
        shear: horizontal shear angles are uniform in -shear ... shear degrees, below 90.
        max_shift: shifts are uniform in -max_shift ... max_shift pixels in each direction.
        fill: value outside the image.

    Returns:
        A new array of the same shape and dtype.

    Raises:
        ValueError: another shape or dtype, a range out of bounds, or a `fill` that the dtype
            cannot hold.
    """
    check_images(images)
    _check_interval("degrees", (0.0, degrees), 0.0, 360.0)
    _check_interval("scale", scale, 1e-3, 1e3)  # 0 has no inverse
    _check_interval("shear", (0.0, shear), 0.0, 89.0)
    _check_interval("max_shift", (0.0, max_shift), 0.0, float(1 << 16))
    B = len(images)
    angle = np.radians(rng.uniform(-degrees, degrees, B))
    slant = np.tan(np.radians(rng.uniform(-shear, shear, B)))
    factor = rng.uniform(scale[0], scale[1], B)
    move = rng.uniform(-max_shift, max_shift, (B, 2))
    cos, sin = np.cos(angle), np.sin(angle)
    # In (y, x) with y down: first shear x by y, then turn counterclockwise, then scale.
    matrix = np.empty((B, 2, 2))
    matrix[:, 0, 0], matrix[:, 0, 1] = cos - sin * slant, -sin
    matrix[:, 1, 0], matrix[:, 1, 1] = sin + cos * slant, cos
    matrix *= factor[:, None, None]
    return warp(images, matrix, move, _fill_value(fill, images.dtype))


def _random_windows(padded: Array, rng: Rng, height: int, width: int) -> Array:
    """Crop from each padded image one window (height, width), all positions equally likely."""
    B, C, H, W = padded.shape
    top, left = rng.integers(H - height + 1, size=B), rng.integers(W - width + 1, size=B)
    if array_module(padded) is not np:
        first = constant(np.arange(B * C).reshape(B, C, 1, 1) * (H * W), padded)
        rows = constant(((top[:, None] + np.arange(height)) * W)[:, None, :, None], padded)  # (B, 1, height, 1)
        columns = constant((left[:, None] + np.arange(width))[:, None, None, :], padded)  # (B, 1, 1, width)
        return padded.reshape(-1).take(first + rows + columns)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    # One gather of B strided windows: no loop over images, no index for each pixel.
    return windows[np.arange(B), :, top, left]  # (B, C, height, width)


def _pad(images: Array, margin: int, fill: float) -> Array:
    B, C, H, W = images.shape
    shape = B, C, H + 2 * margin, W + 2 * margin
    padded: Array = array_module(images).full(shape, _fill_value(fill, images.dtype), images.dtype)
    padded[:, :, margin : margin + H, margin : margin + W] = images
    return padded


def rectangles(top: Array, bottom: Array, left: Array, right: Array, H: int, W: int) -> Array:
    """Masks (B, 1, H, W), true in rows top ... bottom-1 and columns left ... right-1."""
    y, x = np.arange(H), np.arange(W)
    rows = (top[:, None] <= y) & (y < bottom[:, None])  # (B, H)
    columns = (left[:, None] <= x) & (x < right[:, None])  # (B, W)
    inside: Array = rows[:, None, :, None] & columns[:, None, None, :]
    return inside


def _noise(images: Array, rng: Rng) -> Array:
    if images.dtype == np.uint8:
        return rng.integers(256, size=images.shape, dtype=np.uint8)
    return rng.random(images.shape).astype(images.dtype)


def _fill_value(fill: float, dtype: np.dtype[Any]) -> Any:
    """`fill` as a scalar of `dtype`; ValueError if uint8 cannot hold it."""
    if dtype == np.uint8 and fill not in range(256):
        raise ValueError(f"fill={fill} is not a uint8: choose an integer from 0 to 255")
    return dtype.type(fill)


def check_images(images: Array) -> None:
    """Raise the ValueError that every function here documents for another shape or dtype."""
    if images.ndim != 4 or (images.dtype.kind != "f" and images.dtype != np.uint8):
        raise ValueError(
            f"images have shape {images.shape} and dtype {images.dtype}, expected (B, C, H, W) "
            "floating or uint8: reshape, or convert with astype"
        )


def _check_pixels(name: str, value: int) -> None:
    if not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name}={value!r}, expected an integer number of pixels, 0 or more")


def _check_interval(name: str, interval: tuple[float, float], least: float, most: float) -> None:
    low, high = interval
    if not least <= low <= high <= most:
        raise ValueError(
            f"{name}={interval if low != high else low} is out of range: expected "
            f"{least:g} to {most:g}, the smaller bound first"
        )
