"""Half precision: activations of 16 bits, parameters of 32.

    y, back = linear(x, weight, bias)    # x and y in float16 or bfloat16, weight and bias in float32
    dx, dweight, dbias = back(dy)        # dy and dx as x, dweight and dbias in float32

The dtype of the images decides: a model with float32 parameters computes in the dtype of its input. What holds a batch
has 16 bits; sums, statistics, losses and the gradients of parameters have 32. bfloat16 has float32's range and 8
significant bits; float16 has 11, and no number between 0 and 6e-8, so its gradients need a scale (`optim.LossScale`).
NumPy has no bfloat16: the package ml_dtypes adds it, and CuPy uses that.

Source: Micikevicius et al. 2018, mixed precision training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from minivit.protocol import Array, once

HALF = ("float16", "bfloat16")
PRECISIONS = ("float32", "bfloat16", "float16")  # of activations


def is_half(dtype: Any) -> bool:
    """Whether a dtype has 16 bits."""
    return dtype is not None and dtype.itemsize == 2 and dtype.name in HALF


def is_floating(dtype: Any) -> bool:
    """Whether a dtype is floating or complex; bfloat16, which NumPy does not know, among them."""
    return dtype is not None and (dtype.kind in "fc" or is_half(dtype))


@cache
def activation_dtype(name: str) -> np.dtype[Any]:
    """The dtype "float32", "bfloat16" or "float16", for `images.astype(...)`.

    Raises:
        ValueError: for another name.
        RuntimeError: for "bfloat16" without the package ml_dtypes.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision={name!r}: choose one of {', '.join(map(repr, PRECISIONS))}")
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise RuntimeError("bfloat16 needs the package ml_dtypes: pip install ml_dtypes, or use 'float16'") from error
    return np.dtype(ml_dtypes.bfloat16)


def in_dtype_of(x: Array, array: Array) -> Array:
    """A parameter as it is added to x: rounded where x has half precision."""
    return array.astype(x.dtype) if is_half(x.dtype) else array


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` for half precision: it computes in float32, and what has the shape of activations is rounded.

    A result of shape (), a loss, stays float32, and so do the gradients of float32 arguments.
    """

    def rounded_after(*arguments: Any, **options: Any) -> Any:
        given: Any = [each for each in (*arguments, *options.values()) if is_floating(getattr(each, "dtype", None))]
        half = next(each.dtype for each in given if is_half(each.dtype))
        y, back = function(*map(_wide, arguments), **{name: _wide(each) for name, each in options.items()})

        @once
        def vjp(*dy: Any) -> Any:
            gradients = back(*map(_wide, dy))
            rounded = tuple(_as_given(gradients if isinstance(gradients, tuple) else (gradients,), given))
            return rounded if isinstance(gradients, tuple) else rounded[0]

        return y.astype(half) if y.ndim else y, vjp

    return rounded_after


def _wide(value: Any) -> Any:
    return value.astype(np.float32) if is_half(getattr(value, "dtype", None)) else value


def _as_given(gradients: tuple[Array | None, ...], given: list[Array]) -> Iterator[Array | None]:
    """The gradients in the dtypes of their arguments; both are in the same order, but some arguments have none."""
    remaining = iter(given)
    for gradient in gradients:
        if gradient is not None:
            argument = next(each for each in remaining if each.shape == gradient.shape)
            gradient = gradient.astype(argument.dtype) if is_half(argument.dtype) else gradient
        yield gradient
