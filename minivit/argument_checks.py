"""Checks of arguments: each refuses an invalid argument, with a description of it and the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Like = tuple[type[Any], Shape, Any]  # the type, shape and dtype of an array

_CHANNELS = (1, 3, 4)  # of gray, RGB and RGBA images: as the last axis they show that images are channels-last


def names_like(name: str, known: Iterable[str], cutoff: float = 0.5) -> list[str]:
    """At most three of the known names that resemble a mistyped one, the nearest first.

    Args:
        cutoff: of difflib's similarity, from 0 (any name) to 1 (the same).
    """
    from difflib import get_close_matches  # only where a name is wrong: `import minivit` need not load it

    return get_close_matches(name, list(known), n=3, cutoff=cutoff)


def check_array(name: str, argument: str, x: Any) -> None:
    """Refuse an argument that is not an array of NumPy or of the GPU, with its conversion.

    Raises:
        ValueError: naming the layer or function `name` and its argument.
    """
    if hasattr(x, "dtype") and hasattr(x.dtype, "kind"):
        return
    if isinstance(x, tuple) and len(x) == 2 and callable(x[1]):
        raise ValueError(
            f"{name}: {argument} is the pair (y, back) that a layer returns: unpack it, y, back = layer(x)"
        )
    raise ValueError(f"{name}: {argument} is a {type(x).__name__}: convert it with numpy.asarray")


def check_generator(rng: Any) -> None:
    """Refuse an argument that is not a generator of `numpy.random.default_rng`, such as a flag or a seed."""
    if isinstance(rng, np.random.Generator):
        return
    if not hasattr(rng, "random") or hasattr(rng, "seed"):  # NumPy's old generators can be seeded again
        what = repr(rng) if isinstance(rng, int) else f"a {type(rng).__name__}"
        raise ValueError(
            f"rng is {what}: give a generator, numpy.random.default_rng(0), for training, and nothing for inference"
        )


# --- gradients -----------------------------------------------------------------------------------------------------


def check_gradients(name: str, outputs: list[Like], gradients: tuple[Any, ...]) -> None:
    """Refuse gradients whose types, shapes or dtypes differ from those of the outputs.

    Args:
        name: of the layer or function of the backward pass.
        outputs: (type, shape, dtype) of each.
        gradients: the arguments of the backward pass; a scalar output, a loss, may have none.

    Raises:
        ValueError: naming the gradient and its expected form.
    """
    if len(gradients) != len(outputs) and (gradients or outputs[0][1] != ()):
        _, shape, dtype = outputs[0]
        wanted = f"dy, dLoss/dy of shape {shape} and dtype {dtype}"
        wanted = wanted if len(outputs) == 1 else f"{len(outputs)} gradients, one for each output"
        raise ValueError(f"{name}: back was called with {len(gradients)} gradients, but takes {wanted}")
    for number, (dy, (kind, shape, dtype)) in enumerate(zip(gradients, outputs), 1):
        if type(dy) is kind and dy.shape == shape and dy.dtype == dtype:
            continue
        if shape == () and (isinstance(dy, int | float | complex) or getattr(dy, "shape", None) == ()):
            continue  # a loss accepts any number
        dy_is = _misfit(dy, kind, shape, dtype)
        if dy_is:
            which = "dy" if len(outputs) == 1 else f"gradient {number}"
            raise ValueError(f"{name}: {which} {dy_is}")


def _misfit(dy: Any, kind: type, shape: tuple[int, ...], dtype: Any) -> str:
    """The fault of a gradient of an output of this type, shape and dtype, with the remedy; "" if there is none."""
    if not hasattr(dy, "dtype") or (dy.shape == () and shape != ()):
        remedy = "a loss gives it, loss, back_loss = F.softmax_cross_entropy(y, labels), then back(back_loss())"
        return f"is a {type(dy).__name__}, but must be dLoss/dy, an array of shape {shape} and dtype {dtype}: {remedy}"
    if dy.shape != shape:
        return (
            f"has shape {dy.shape}, but must have that of the output, {shape}: it is dLoss/dy, a number for each of y's"
        )
    if isinstance(dy, np.ndarray) != issubclass(kind, np.ndarray):
        where = "host" if isinstance(dy, np.ndarray) else "GPU"
        return f"is on the {where} and the output is not: move it with minivit.to_device"
    if dy.dtype != dtype and dy.dtype.kind != "c" and dtype.kind != "c":  # complex numbers are for checks
        return f"is {dy.dtype}, but the output is {dtype}: convert it with dy.astype({str(dtype)!r})"
    return ""


# --- images --------------------------------------------------------------------------------------------------------


def check_images(name: str, x: Any, channels: int) -> None:
    """Refuse an array that is not a batch of images with `channels` channels.

    Raises:
        ValueError: naming the layer or function `name`, with a description of the array and the remedy.
    """
    if x.ndim != 4 or x.shape[1] != channels:
        remedy = layout_remedy(x.shape, channels)
        if not remedy:
            remedy = f"{_converted(x.shape[1], channels)}, or build the model with in_chans={x.shape[1]}"
        raise ValueError(f"{name}: images must be (B, C, H, W) with {channels} channels, got shape {x.shape}: {remedy}")


def layout_remedy(shape: Shape, channels: int) -> str:
    """The likely axes of an array other than (B, channels, H, W), and the expression that converts it.

    Returns:
        "" if the axes look right, except perhaps for the number of channels.
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
    """Whether the last axis of an array seems to hold the channels, instead of the third from the end.

    Args:
        channels: their expected number, if known.
    """
    if len(shape) < 3 or shape[-3] == channels:
        return False
    return shape[-1] == channels or (shape[-1] in _CHANNELS and shape[-1] < min(shape[-3:-1]))


def _then(found: int, channels: int) -> str:
    return "" if found == channels else f", then {_converted(found, channels)}"


def _converted(found: int, channels: int) -> str:
    """The expression that gives images (B, found, H, W) another number of channels."""
    if found == 1:
        return f"repeat the gray channel, numpy.repeat(x, {channels}, axis=1)"
    if found == 4 and channels == 3:
        return "drop the transparency, x[:, :3]"
    if channels == 1:
        return "average the channels, x.mean(axis=1, keepdims=True)"
    return f"convert the images from {found} channels to {channels}"
