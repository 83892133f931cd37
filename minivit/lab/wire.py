"""How the page's requests and the lab's answers travel: JSON, in which arrays of floating point are base64.

An array becomes {"shape": [...], "float32": base64}, which is exact and a quarter of the size of numbers as text.
"""

from __future__ import annotations

import base64
import binascii
from math import prod
from typing import Any

import numpy as np

from minivit.observe.trace import euclidean_norm
from minivit.protocol import Array

_SHOWN = 16_384  # numbers of a tensor that are sent: a map of 128 x 128


def packed(value: Any) -> Any:
    """An answer as JSON can hold it: arrays of floating point as base64 of float32, others as lists."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind != "f":
            return value.tolist()
        data = np.ascontiguousarray(value, dtype="<f4").tobytes()
        return {"shape": list(value.shape), "float32": base64.b64encode(data).decode("ascii")}
    if isinstance(value, dict):
        return {name: packed(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [packed(each) for each in value]
    return value


def unpacked_pixels(text: Any, size: tuple[int, int, int]) -> Array:
    """(C, H, W) float32 in [0, 1], from base64.

    Raises:
        ValueError: for anything but C H W finite numbers of float32 from 0 to 1.
    """
    count = prod(size)
    wanted = f"pixels must be base64 of {count:,} float32 numbers, {' x '.join(map(str, size))}"
    if not isinstance(text, str):
        raise ValueError(f"{wanted}; got {type(text).__name__}")
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"{wanted}; this is not base64") from None
    if len(raw) != 4 * count:
        raise ValueError(f"{wanted}; got {len(raw):,} bytes")
    pixels = np.frombuffer(raw, dtype="<f4").reshape(size)
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # NaN is neither
        raise ValueError("every pixel must be a number from 0 to 1")
    return pixels


def shown(array: Array) -> dict[str, Any]:
    """An array as a matrix of at most `_SHOWN` numbers, with the statistics of all of it."""
    rows = array.reshape(prod(array.shape[:-1]), array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
    if array.ndim == 4 and array.shape[1] in (1, 3):  # an image: one channel below the other
        rows = array.reshape(-1, array.shape[-1])
    columns = rows[:, :_SHOWN]
    return {
        "shape": list(array.shape),
        "matrix": columns[: max(1, _SHOWN // max(1, columns.shape[1]))],
        "rows": rows.shape[0],
        "columns": rows.shape[1],
        "norm": euclidean_norm(array),
        "mean": float(array.mean()),
        "least": float(array.min()),
        "most": float(array.max()),
    }


def whole_number(request: dict[str, Any], name: str, stop: int, optional: bool = False) -> int | None:
    """An integer from 0 to stop - 1 in a request; None where it is optional and left out.

    Raises:
        ValueError: for anything else.
    """
    value = request.get(name)
    if value is None and optional:
        return None
    if type(value) is not int or not 0 <= value < stop:
        raise ValueError(f"{name} must be an integer from 0 to {stop - 1}, got {value!r:.40}")
    return value
