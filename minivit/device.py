"""The library of an array, determined by the array itself, and moves of arrays between host and GPU.

There is no global device.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from minivit.protocol import Array


def array_module(x: Any) -> Any:
    """The module (`numpy` or `cupy`) whose functions work on `x`.

    An array cannot be CuPy's if CuPy was never imported, so CPU users never wait for the import.
    """
    cupy = sys.modules.get("cupy")
    if cupy is not None and isinstance(x, cupy.ndarray):
        return cupy
    return np


_moved: dict[tuple[Any, ...], tuple[Array, Array]] = {}  # constants of the host, with their copies on a GPU
_MOST_MOVED = 1 << 28  # bytes, 256 MiB: many times a network's need; images of many sizes would otherwise fill a GPU


def constant(array: Array, like: Array) -> Array:
    """A read-only array of NumPy's, such as a table of indices, in the library of `like`.

    It is copied to a GPU once and then reused: a copy in every step would make the host wait. A writeable array is
    copied each time.
    """
    xp = array_module(like)
    if xp is np or array_module(array) is not np:
        return array
    if array.flags.writeable:
        return xp.asarray(array)
    address = array.__array_interface__["data"][0]
    key = (xp, xp.cuda.Device().id, address, array.shape, array.strides, array.dtype)
    if key not in _moved:
        while _moved and array.nbytes + sum(copy.nbytes for _, copy in _moved.values()) > _MOST_MOVED:
            del _moved[next(iter(_moved))]
        _moved[key] = (array, xp.asarray(array))  # the host's array is kept too, so that its address is not reused
    return _moved[key][1]


def moved_constants() -> list[Array]:
    """The copies that `constant` keeps, for callers that need them longer."""
    return [copy for _, copy in _moved.values()]


def owner(array: Array) -> Array:
    """The array that owns this array's memory."""
    base: Any = getattr(array, "base", None)
    return owner(base) if isinstance(base, type(array)) else array


def gpu_available() -> bool:
    """Whether CuPy can be imported AND a GPU answers (CuPy imports without a driver, then fails on first use)."""
    try:
        import cupy

        return bool(cupy.cuda.is_available()) and cupy.cuda.runtime.getDeviceCount() > 0
    except Exception:  # the driver's errors are not ImportErrors; each means that no GPU is usable
        return False


def to_numpy(x: Any) -> Array:
    """`x` on the host, as a NumPy array; a copy if it came from a GPU, `x` itself if it was NumPy's."""
    return np.asarray(x) if array_module(x) is np else x.get()


def check_device(device: str) -> None:
    """Refuse an unavailable device; programs call it before they load anything.

    Raises:
        ValueError: for another name than "cpu" and "gpu".
        RuntimeError: for `"gpu"` if CuPy is missing or no GPU answers.
    """
    if device not in ("cpu", "gpu"):
        raise ValueError(f"unknown device {device!r}: choose 'cpu' or 'gpu'")
    if device == "gpu" and not gpu_available():
        raise RuntimeError(f"device 'gpu' was requested, but no GPU answers: {_remedy()}, or use 'cpu'")


def _remedy() -> str:
    """What to do where no GPU answers."""
    try:
        import cupy
    except ImportError:
        return "install CuPy for your CUDA version (pip install cupy-cuda12x or cupy-cuda13x)"
    try:
        cupy.cuda.runtime.getDeviceCount()
        reason = "it finds none"
    except Exception as error:  # the driver's
        reason = str(error)
    return (
        f"CuPy {cupy.__version__} is installed ({reason}): check that nvidia-smi shows a GPU and that CuPy is built "
        "for a CUDA version that the driver has (cupy-cuda12x or cupy-cuda13x)"
    )


def to_device(x_or_model: Any, device: str) -> Any:
    """Move an array, or a model in place, to `"gpu"` or `"cpu"`; returns it.

    Raises:
        ValueError: for another device name.
        RuntimeError: for `"gpu"` if CuPy is missing or no GPU answers.
    """
    check_device(device)
    if hasattr(x_or_model, "move_to"):  # a Layer, which finds its parameters and constant arrays
        x_or_model.move_to(lambda array: to_device(array, device))
        return x_or_model
    if device == "cpu":
        return to_numpy(x_or_model)
    import cupy

    return cupy.asarray(x_or_model)
