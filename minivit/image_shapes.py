"""Images (B, C, H, W), and what an array of another shape probably is, with how to make images of it."""

from __future__ import annotations

from minivit.protocol import Array

Shape = tuple[int, ...]

_CHANNELS = (1, 3, 4)  # of gray, RGB and RGBA images: as the last axis they tell images that are stored channels-last


def check_images(name: str, x: Array, channels: int) -> None:
    """Refuse an array that is no batch of images with so many channels.

    Raises:
        ValueError: in the words of the layer or function `name`, with what the array looks like and the remedy.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        remedy = layout_remedy(x.shape, channels)
        if not remedy:
            remedy = f"{_converted(x.shape[1], channels)}, or build the model with in_chans={x.shape[1]}"
        raise ValueError(f"{name}: images must be (B, C, H, W) with {channels} channels, got shape {x.shape}: {remedy}")


def layout_remedy(shape: Shape, channels: int) -> str:
    """What an array looks like whose axes are not (B, channels, H, W), and the expression that makes it so.

    Returns:
        "" where the axes look right, and at most the number of channels is another.
    """
    if len(shape) == 4 and looks_channels_last(shape, channels):
        return "it looks channels-last, use x.transpose(0, 3, 1, 2)" + _then(shape[3], channels)
    if len(shape) == 4:
        return ""
    if len(shape) == 3 and looks_channels_last(shape, channels):
        return "it is one image and looks channels-last, use x.transpose(2, 0, 1)[None]" + _then(shape[2], channels)
    if len(shape) == 3 and (shape[0] == channels or (shape[0] in _CHANNELS and shape[0] < min(shape[1:]))):
        return "it is one image without a batch axis, use x[None]" + _then(shape[0], channels)
    if len(shape) == 3:
        return "it has no channel axis, use x[:, None]" + _then(1, channels)
    if len(shape) == 2:
        return "an image without batch and channel axes becomes one by x[None, None]" + _then(1, channels)
    return "give it these four axes with x.reshape"


def looks_channels_last(shape: Shape, channels: int | None = None) -> bool:
    """Whether the last axis of an array (..., C, H, W), not the one in front of the pixels, seems to hold the channels.

    Args:
        channels: how many there should be, if that is known.
    """
    if len(shape) < 3 or shape[-3] == channels:
        return False
    return shape[-1] == channels or (shape[-1] in _CHANNELS and shape[-1] < min(shape[-3:-1]))


def _then(found: int, channels: int) -> str:
    return "" if found == channels else f", then {_converted(found, channels)}"


def _converted(found: int, channels: int) -> str:
    """How images (B, found, H, W) get another number of channels."""
    if found == 1:
        return f"repeat the gray channel, numpy.repeat(x, {channels}, axis=1)"
    if found == 4 and channels == 3:
        return "drop the transparency, x[:, :3]"
    if channels == 1:
        return "average the channels, x.mean(axis=1, keepdims=True)"
    return f"convert the images from {found} channels to {channels}"
