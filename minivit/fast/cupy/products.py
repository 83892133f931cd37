"""Matrix products through a cuBLAS handle of our own.

CuPy's takes some 150 microseconds of the host's time for a stacked product, and none can be captured in a graph.
cuBLAS is loaded from where CuPy finds it and called by ctypes: its arguments are all numbers and addresses.
"""

from __future__ import annotations

import ast
import ctypes
import inspect
import threading
from collections.abc import Callable
from functools import lru_cache
from textwrap import dedent
from typing import Any, cast

import cupy

from minivit.fast.precision import current_precision
from minivit.protocol import Array

# cublasOperation_t, cudaDataType and cublasComputeType_t, as cublas_api.h and library_types.h number them; the last of
# float32 factors by the level of minivit.matmul_precision. Sums of half precision are float32
_PLAIN, _TRANSPOSED = 0, 1
_DATA = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}
_FLOAT32, _FLOAT64 = 68, 70
_LEVEL = {"highest": _FLOAT32, "high": 77, "medium": 75}
_DEFAULT_ALGORITHM = -1
_WORKSPACE = 32 << 20  # bytes; what NVIDIA recommends for Hopper, and more than older cards need

_handles = threading.local()


def product(a: Array, b: Array, scale: float = 1.0, dtype: Any = None, out: Array | None = None) -> Array:
    """scale * a @ b, (..., N, K) (..., K, M) -> (..., N, M); transposed views cost no copy.

    Args:
        a, b: both float64, float32, float16 or bfloat16.
        dtype: of the result: that of the factors, the default, or float32 for factors of half precision.
        out: a contiguous array for the result.
    """
    batch, n, k, m = _broadcast(a, b), a.shape[-2], a.shape[-1], b.shape[-1]
    factors = a.dtype.name
    y: Any = cupy.empty((*batch, n, m), dtype or a.dtype) if out is None else out
    if y.size == 0 or k == 0:
        y[...] = 0
        return y
    (a, a_rows, a_transposed, a_step), (b, b_rows, b_transposed, b_step) = _layout(a, batch), _layout(b, batch)
    scalar: Any = ctypes.c_double if factors == "float64" else ctypes.c_float
    compute = {"float32": _LEVEL[current_precision()], "float64": _FLOAT64}.get(factors, _FLOAT32)
    # cuBLAS counts columns first, and so sees every matrix here transposed: y^T = b^T a^T
    status = cublas().cublasGemmStridedBatchedEx(
        _handle(), _TRANSPOSED if b_transposed else _PLAIN, _TRANSPOSED if a_transposed else _PLAIN, m, n, k,
        ctypes.byref(scalar(scale)), _address(b), _DATA[b.dtype.name], b_rows, ctypes.c_longlong(b_step),
        _address(a), _DATA[factors], a_rows, ctypes.c_longlong(a_step),
        ctypes.byref(scalar(0)), _address(y), _DATA[y.dtype.name], m, ctypes.c_longlong(n * m),
        y.size // (n * m), compute, _DEFAULT_ALGORITHM,
    )  # fmt: skip
    _check(status, f"the product of {a.shape} and {b.shape}")
    return y


def with_products(formula: Callable[..., Any]) -> Callable[..., Any]:
    """The same formula, read from its source, with `product(a, b)` for each `a @ b`, also in its backward pass."""
    tree = _Products().visit(ast.parse(dedent(inspect.getsource(formula))))
    names = {**formula.__globals__, "product": product}
    file = inspect.getsourcefile(formula) or formula.__module__
    exec(compile(ast.fix_missing_locations(tree), file, "exec"), names)
    return cast(Callable[..., Any], names[formula.__name__])


class _Products(ast.NodeTransformer):
    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        if not isinstance(node.op, ast.MatMult):
            return node
        return ast.copy_location(ast.Call(ast.Name("product", ast.Load()), [node.left, node.right], []), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None  # annotations are not evaluated in the source, and need not be here
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg):
                argument.annotation = None
        return node


def _broadcast(a: Array, b: Array) -> tuple[int, ...]:
    """The leading axes of a @ b."""
    if a.ndim == b.ndim == 2:
        return ()
    return tuple(cupy.broadcast_shapes(a.shape[:-2], b.shape[:-2]))


def _layout(x: Array, batch: tuple[int, ...]) -> tuple[Array, int, bool, int]:
    """x as cuBLAS can read it: the array, numbers from row to row, whether it is transposed, and from one to the next.

    One matrix for the whole batch has step 0. What has no such layout is copied.
    """
    size = x.dtype.itemsize
    if x.ndim > 2 and x.size == x.shape[-2] * x.shape[-1]:
        x = x.reshape(x.shape[-2:])
    rows, columns = x.strides[-2] // size, x.strides[-1] // size
    height, width = x.shape[-2:]
    stacked = x.ndim == 2 or (x.shape[:-2] == batch and _one_step(x) is not None)
    if stacked and (columns == 1 or width == 1) and (rows >= width or height == 1):
        return x, max(rows, width, 1), False, 0 if x.ndim == 2 else (_one_step(x) or 0) // size
    if stacked and (rows == 1 or height == 1) and (columns >= height or width == 1):
        return x, max(columns, height, 1), True, 0 if x.ndim == 2 else (_one_step(x) or 0) // size
    x = cupy.ascontiguousarray(x if x.ndim == 2 else cupy.broadcast_to(x, (*batch, height, width)))
    return x, width, False, 0 if x.ndim == 2 else height * width


def _one_step(x: Array) -> int | None:
    """Bytes from one matrix of a stack to the next, if that is one number for all leading axes."""
    step, expected = None, None
    for length, stride in zip(reversed(x.shape[:-2]), reversed(x.strides[:-2])):
        if length == 1:
            continue
        if step is None:
            step, expected = stride, stride * length
        elif stride != expected:
            return None
        else:
            expected = stride * length
    return 0 if step is None else step


def _address(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.data.ptr)


def _handle() -> ctypes.c_void_p:
    """This thread's handle for CuPy's current device and stream: two streams may not share a workspace."""
    key = (cupy.cuda.Device().id, cupy.cuda.get_current_stream().ptr)
    found = vars(_handles).setdefault("found", {})
    if key not in found:
        handle, workspace = ctypes.c_void_p(), cupy.empty(_WORKSPACE, "uint8")
        _check(cublas().cublasCreate_v2(ctypes.byref(handle)), "creating a handle")
        _check(cublas().cublasSetStream_v2(handle, ctypes.c_void_p(key[1])), "choosing a stream")
        size = ctypes.c_size_t(_WORKSPACE)
        _check(cublas().cublasSetWorkspace_v2(handle, _address(workspace), size), "giving a workspace")
        found[key] = (handle, workspace)
    return found[key][0]


def _check(status: int, what: str) -> None:
    if status:
        raise RuntimeError(f"cuBLAS failed with status {status} at {what}; status 3 and 13 mean too little GPU memory")


@lru_cache(maxsize=1)
def cublas() -> Any:
    """The library, as CuPy finds it."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
