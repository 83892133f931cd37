"""The kernels in `kernels/`: compiled when first used, for the dtype of their arrays, and launched."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from minivit.fast.half import is_half
from minivit.protocol import Array

_FOLDER = Path(__file__).parent / "kernels"
_TYPES = {  # of arrays and of what is computed, by the dtype of activations
    "float32": ("float", "float"),
    "float64": ("double", "double"),
    "float16": ("Float16", "float"),
    "bfloat16": ("BFloat16", "float"),
}
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
        dtype: of the activations. STORED is this, REAL what the kernels compute in: float for half precision.
        grid, block: blocks, and threads of a block.
        arguments: arrays; None for a null pointer; Python's bool for a bool, int for an int, float for a REAL; NumPy's
            scalars for themselves.
        shared: bytes of dynamic shared memory.
        defines: what else the source leaves open.
    """
    function = _function(source, name, dtype.name, tuple(sorted(defines.items())), shared)
    function(grid, block, tuple(_argument(argument, dtype) for argument in arguments), shared_mem=shared)


def _argument(value: Any, dtype: np.dtype[Any]) -> Any:
    if value is None:
        return np.intp(0)
    if isinstance(value, int):
        return np.bool_(value) if isinstance(value, bool) else np.int32(value)
    return real(dtype).type(value) if isinstance(value, float) else value


def real(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of sums, statistics and parameters beside activations of this dtype."""
    return np.dtype(np.float32) if is_half(dtype) else dtype


def in_real(array: Array | None) -> Any:
    """A parameter as kernels take it."""
    return None if array is None else array.astype(real(array.dtype), copy=False)


def code(source: str) -> str:
    """The text of a file of kernels, after what all share."""
    return (_FOLDER / "common.cuh").read_text() + (_FOLDER / f"{source}.cu").read_text()


def options(dtype: str, **defines: int) -> tuple[str, ...]:
    """The compiler's options for one dtype of activations."""
    stored, computed = _TYPES[dtype]
    return ("--std=c++17", f"-DREAL={computed}", f"-DSTORED={stored}", *(f"-D{n}={v}" for n, v in defines.items()))


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
    """Grid and block of a kernel that walks over `count` numbers or chunks in a loop: enough to fill any card."""
    return (max(1, min(-(-_index(count) // 256), 4096)),), (256,)


def warp_grid(rows: int) -> tuple[tuple[int], tuple[int, int]]:
    """Grid and block of a kernel with a warp for each row, four rows in a block."""
    return (-(-_index(rows) // 4),), (32, 4)


_MOST_KEPT = 24  # numbers of a lane: with two rows in registers, more of them would spill


def kept(length: int) -> int:
    """KEPT for rows of this length, the numbers that each lane of a warp keeps in registers; 0 for long rows."""
    count = -(-length // 32)
    return count if count <= _MOST_KEPT else 0


def _index(count: int) -> int:
    """The count, which kernels index by 32 bits: a division of 64 bits takes several times as long."""
    if count >= 1 << 31:
        raise RuntimeError(f"{count:,} is more than a kernel can count: give it fewer images at a time")
    return count


def row_groups(rows: int, least: int, most: int) -> tuple[int, int]:
    """(groups, rows in each), into which a sum over rows is cut: fixed by their number, so sums repeat.

    A group has at least `least` rows, and there are at most `most` groups.
    """
    length = max(least, -(-rows // most))
    return -(-rows // length), length


_SECTOR = 32  # bytes, the least that a GPU reads: of a row, a block adds so many
_ROWS_AT_ONCE = 8192  # so many rows take one launch less time than two, by estimate; not measured on a GPU
_ROWS_OF_A_GROUP, _ROWS_OF_A_THREAD = 2048, 16  # so that a usual batch fills a GPU


def column_sums(x: Array) -> Array:
    """(R, C) -> (C,): the sum over the rows, in a fixed order; float32 for half precision."""
    rows, columns = x.shape
    if not x.size:
        return cupy.zeros(columns, real(x.dtype))
    groups, length = (1, rows) if rows <= _ROWS_AT_ONCE else row_groups(rows, _ROWS_OF_A_GROUP, _ROWS_AT_ONCE)
    # an array of its own, not a view of one row: it may become a parameter's gradient without a copy
    y = cupy.empty(columns if groups == 1 else (groups, columns), real(x.dtype))
    across = _SECTOR // x.itemsize
    down = 32 // across  # rows of threads, a power of 2: of one warp at least, of 1,024 threads at most
    while down < min(1024 // across, -(-length // _ROWS_OF_A_THREAD)):
        down *= 2
    grid = (-(-columns // across), groups)
    launch("sums", "column_sums", x.dtype, grid, (across, down), cupy.ascontiguousarray(x), y, rows, columns, length)
    return y if groups == 1 else column_sums(y)


def total(x: Array) -> Array:
    """(R,) -> (): the sum, in a fixed order; R is at least 1."""
    y = cupy.empty((), x.dtype)
    launch("sums", "total", x.dtype, (1,), (256,), x, y, x.size)
    return y
