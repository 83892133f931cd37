"""The kernels in `kernels/`: compiled when first used, for the dtype of their arrays, and launched."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from minivit.protocol import Array

_FOLDER = Path(__file__).parent / "kernels"
_STATIC_SHARED = 48 * 1024  # bytes of shared memory that a block may have without asking for more


def launch(
    source: str,
    name: str,
    dtype: np.dtype[Any],
    grid: tuple[int, ...],
    block: tuple[int, ...],
    *arguments: Any,
    shared: int = 0,
    **defines: int,
) -> None:
    """Run the kernel `name` of kernels/<source>.cu.

    Args:
        source, name: the file and the kernel.
        dtype: what REAL is, float32 or float64.
        grid, block: blocks, and threads of a block.
        arguments: arrays; None for a null pointer; a Python int for an int, a float for a REAL, and NumPy's scalars for
            themselves.
        shared: bytes of dynamic shared memory.
        defines: what else the source leaves open.
    """
    function = _function(source, name, dtype.name, tuple(sorted(defines.items())), shared)
    function(grid, block, tuple(_argument(argument, dtype) for argument in arguments), shared_mem=shared)


def _argument(value: Any, dtype: np.dtype[Any]) -> Any:
    if value is None:
        return np.intp(0)
    if isinstance(value, int):
        return np.int32(value)
    return dtype.type(value) if isinstance(value, float) else value


def code(source: str) -> str:
    """The text of a file of kernels, after what all share."""
    return (_FOLDER / "common.cuh").read_text() + (_FOLDER / f"{source}.cu").read_text()


def options(dtype: str, **defines: int) -> tuple[str, ...]:
    """The compiler's options for one dtype."""
    real = {"float32": "float", "float64": "double"}[dtype]
    return ("--std=c++17", f"-DREAL={real}", *(f"-D{name}={value}" for name, value in defines.items()))


@cache
def _module(source: str, dtype: str, defines: tuple[tuple[str, int], ...]) -> Any:
    return cupy.RawModule(code=code(source), options=options(dtype, **dict(defines)))


@cache
def _function(source: str, name: str, dtype: str, defines: tuple[tuple[str, int], ...], shared: int) -> Any:
    function = _module(source, dtype, defines).get_function(name)
    if shared > _STATIC_SHARED:
        function.max_dynamic_shared_size_bytes = shared
    return function


@lru_cache(maxsize=512)  # a model uses the same few at every step
def numbers(values: tuple[int, ...]) -> Array:
    """A read-only array on the host, the same one each time, so that `device.constant` moves it once."""
    array = np.array(values, np.int64)
    array.setflags(write=False)
    return array


def row_threads(length: int) -> int:
    """Threads of a block that works on one row: whole warps, about four numbers for each thread."""
    return min(1024, max(32, -(-length // 128) * 32))


def element_grid(count: int) -> tuple[tuple[int], tuple[int]]:
    """Grid and block of a kernel that walks over `count` numbers in a loop: enough to fill any card."""
    return (max(1, min(-(-count // 256), 4096)),), (256,)


# a group of rows as long as this keeps a thread busy, and this many groups keep a card busy
_LEAST_ROWS, _MOST_GROUPS = 64, 64


def row_groups(rows: int) -> tuple[int, int]:
    """(groups, rows in each), into which a sum over rows is cut: fixed by their number, so sums repeat."""
    groups = max(1, min(_MOST_GROUPS, rows // _LEAST_ROWS))
    length = -(-rows // groups)
    return -(-rows // length), length


def column_sums(x: Array) -> Array:
    """(R, C) -> (C,): the sum over the rows, in a fixed order."""
    rows, columns = x.shape
    if not x.size:
        return cupy.zeros(columns, x.dtype)
    groups, length = row_groups(rows)
    # an array of its own, not a view of one row: it may become a parameter's gradient without a copy
    y = cupy.empty(columns if groups == 1 else (groups, columns), x.dtype)
    grid = (-(-columns // 32), groups)
    launch("sums", "column_sums", x.dtype, grid, (32, 8), cupy.ascontiguousarray(x), y, rows, columns, length)
    return y if groups == 1 else column_sums(y)


def total(x: Array) -> Array:
    """(R,) -> (): the sum, in a fixed order; R is at least 1."""
    y = cupy.empty((), x.dtype)
    launch("sums", "total", x.dtype, (1,), (256,), x, y, x.size)
    return y
