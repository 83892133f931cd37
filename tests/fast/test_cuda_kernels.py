"""The CUDA kernels against the formulas: every kernel, sizes beside all its bounds, every order of threads.

Their source runs on the CPU here (tests/fake_device/cuda_emulator.py), which also finds races and accesses out of
bounds. NVRTC compiles it too, as it would for a GPU, where the package nvidia-cuda-nvrtc is installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cuda_emulator
import fake_cupy
import numpy as np
import nvrtc
import pytest
from table import PROFILE

import minivit
from minivit import functional as F
from minivit.fast.half import activation_dtype, is_floating
from minivit.fast.precision import current_precision
from minivit.optim import together
from minivit.optim.optimizers import Share, adamw_step, update

pytestmark = pytest.mark.skipif(
    cuda_emulator.compiler() is None, reason="g++ is not installed: it compiles the kernels"
)

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
ROUNDED = {"float16": 5e-3, "bfloat16": 4e-2}  # the result and what is kept between two products have 11 or 8 digits


def normal(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape)


def mask(*shape: int) -> Any:
    """Some keys hidden, and all of them from the first query."""
    hidden = np.random.default_rng(2).random(shape) < 0.6
    hidden[..., 0, :] = False
    return hidden


@contextmanager
def chosen(name: str) -> Iterator[Any]:
    """The fake device; attention that is not said to be by products runs in tiles."""
    with fake_cupy.installed() as device, pytest.MonkeyPatch.context() as patch:
        from minivit.fast.cupy import attention

        patch.setattr(attention, *(("_FEW_SCORES", 0) if "by products" in name else ("_MOST_SCORES", 0)))
        yield device


def attention(queries: int, keys: int, size: int, *, bias: bool = False, masked: bool = False) -> tuple[Any, ...]:
    q, k, v = normal(2, 3, queries, size), normal(2, 3, keys, size), normal(2, 3, keys, size) + 1
    return (
        F.scaled_dot_product_attention,
        (q, k, v, mask(2, 1, queries, keys) if masked else None, normal(3, queries, keys) if bias else None),
    )


def forbidden(*shape: int) -> Any:
    """Logits of -inf for the last class."""
    logits = normal(*shape)
    logits[:, -1] = -np.inf
    return logits


def residual(rate: float) -> Any:
    return lambda x, branch: F.residual(x, branch, rate, np.random.default_rng(3))


# name: a function and its arguments
CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    # a row in one warp, a full one, two, more than a block has threads; rows that fill groups and do not
    "layer_norm, 1 channel": (F.layer_norm, (normal(3, 1), normal(1), normal(1))),
    "layer_norm, 31 channels": (F.layer_norm, (normal(5, 31), normal(31), normal(31))),
    "layer_norm, 129 channels": (F.layer_norm, (normal(4, 129) + 1e3, normal(129), None)),
    "layer_norm, 1 row": (F.layer_norm, (normal(1, 64), normal(64), normal(64))),
    "layer_norm, 150 rows": (F.layer_norm, (normal(150, 33), normal(33), normal(33))),
    "layer_norm, no gain": (F.layer_norm, (normal(2, 3, 40), None, normal(40))),
    "group_norm": (F.group_norm, (normal(2, 6, 5, 5), 3, normal(6), normal(6))),
    "linear": (F.linear, (normal(2, 5, 7), normal(4, 7), normal(4))),
    "linear, no bias": (F.linear, (normal(130, 7), normal(1, 7))),
    "linear, more rows than one launch adds": (F.linear, (normal(8200, 2), normal(9, 2), normal(9))),
    "linear, 1 of each": (F.linear, (normal(1, 1), normal(1, 1), normal(1))),
    "linear_gelu": (F.linear_gelu, (normal(3, 47, 7), normal(33, 7), normal(33))),
    "linear_gelu, tanh": (F.linear_gelu, (5 * normal(2, 7), normal(3, 7), None, "tanh")),
    "gelu": (F.gelu, (5 * normal(3, 300),)),
    # samples that one thread could share, and rows of 16 bytes; of these samples some are dropped and some are not
    "residual": (residual(0.4), (normal(7, 5, 3), normal(7, 3, 5).swapaxes(1, 2))),
    "residual, 16 bytes at a time": (residual(0.4), (normal(5, 3, 8), normal(5, 3, 8))),
    "residual, past a block": (residual(0.6), (normal(9, 77), normal(9, 77))),
    "residual, 1 number": (residual(0.2), (normal(1), normal(1))),
    "residual, nothing dropped": (F.residual, (normal(2, 33), normal(2, 33))),
    "embedding": (F.embedding, (np.array([[3, 0, 3], [1, 3, 0]]), normal(5, 4))),
    # rows of a patch of 16 bytes, and others; a patch as large as its image, and patches of a pixel
    "patch_embed": (F.patch_embed, (normal(2, 3, 8, 8), normal(5, 3, 4, 4), normal(5))),
    "patch_embed, a patch of an image": (F.patch_embed, (normal(1, 2, 5, 3), normal(3, 2, 5, 3))),
    "patches": (lambda x: F.patchify(x, (2, 3)), (normal(3, 2, 6, 15),)),
    "patches, 16 bytes at a time": (lambda x: F.patchify(x, (3, 8)), (normal(2, 2, 6, 24),)),
    "patches of a pixel": (lambda x: F.patchify(x, 1), (normal(2, 3, 2, 5),)),
    "an image of patches": (lambda x: F.unpatchify(x, (3, 4), (2, 5)), (normal(2, 10, 24),)),
    "conv2d": (F.conv2d, (normal(2, 3, 7, 6), normal(4, 3, 3, 3), normal(4))),
    "relative_position_bias": (F.relative_position_bias, (normal(25, 2), F.relative_position_index(3))),
    "continuous_position_table": (
        F.continuous_position_table,
        (F.log_spaced_offsets(3), normal(8, 2), normal(8), normal(2, 8)),
    ),
    # a row of logits in one warp, two, more than a block has threads; a batch past the block that adds it up
    "cross_entropy, 1 class": (F.softmax_cross_entropy, (normal(1, 1), np.array([0]))),
    "cross_entropy, smoothed": (F.softmax_cross_entropy, (5 * normal(300, 10), np.arange(300) % 10, 0.1)),
    "cross_entropy, 33 classes": (F.softmax_cross_entropy, (normal(3, 33), np.array([32, 0, 7], "int32"))),
    "cross_entropy, 1100 classes": (F.softmax_cross_entropy, (100 * normal(2, 1100), np.array([3, 1099]), 0.2)),
    "cross_entropy, soft targets": (F.softmax_cross_entropy, (normal(5, 40), abs(normal(5, 40)), 0.3)),
    "cross_entropy, a forbidden class": (F.softmax_cross_entropy, (forbidden(4, 7), np.eye(7)[[0, 1, 0, 2]])),
    # tiles have 64 and 32 rows in float32, 32 and 16 in float64; head sizes are rounded up to 16
    "attention by products, 1 token": attention(1, 1, 1),
    "attention by products, masked": attention(9, 40, 20, bias=True, masked=True),
    "attention by products, 1100 keys": attention(2, 1100, 8),
    "attention of windows by products": (F.self_attention, (normal(2, 4, 9, 36), 3, mask(4, 1, 9, 9), normal(3, 9, 9))),
    "attention of a ViT by products": (F.self_attention, (normal(2, 10, 24), 2)),
    "attention, 1 token": attention(1, 1, 1),
    "attention, 1 query": attention(1, 33, 16),
    "attention, 1 key": attention(33, 1, 17, bias=True),
    "attention, full tiles": attention(64, 32, 32),
    "attention, past a tile": attention(65, 66, 8, bias=True),
    "attention, wide heads": attention(5, 17, 64, masked=True),
    "attention, masked": attention(9, 40, 20, bias=True, masked=True),
    "attention, heads too wide for the kernel": attention(5, 7, 65, bias=True),
    "attention, wide heads with a mask": attention(3, 40, 65, bias=True, masked=True),
    "attention, a bias for each batch": (
        F.scaled_dot_product_attention,
        (normal(2, 1, 5, 8), normal(2, 1, 7, 8), normal(2, 1, 7, 8), mask(5, 7), normal(2, 1, 5, 1)),
    ),
    "attention, six axes": (
        F.scaled_dot_product_attention,
        (
            normal(2, 1, 3, 2, 5, 8),
            normal(2, 1, 3, 2, 4, 8),
            normal(2, 1, 3, 2, 4, 8),
            mask(3, 1, 5, 4),
            normal(2, 1, 1, 2, 5, 4),
        ),
    ),
    "windows": (lambda x: F.shifted_windows(x, 2, (1, 1), (4, 6)), (normal(2, 3, 5, 3),)),
    "windows, 16 bytes at a time": (lambda x: F.shifted_windows(x, (2, 3), (0, 2), (4, 6)), (normal(2, 4, 6, 8),)),
    "windows, rolled before they are padded": (
        lambda x: F.shifted_windows(x, (2, 3), (1, 2), (4, 6), pad_first=False),
        (normal(2, 3, 5, 4),),
    ),
    "windows of a map of 1": (
        lambda x: F.shifted_windows(x, 2, (1, 1), (2, 2), pad_first=False),
        (normal(1, 1, 1, 1),),
    ),
    "windows to a map": (
        lambda x: F.shifted_windows_reverse(x, (2, 3), (1, 2), (4, 6), (3, 5)),
        (normal(8, 2, 3, 4),),
    ),
    "windows to a map, rolled before it was padded": (
        lambda x: F.shifted_windows_reverse(x, (2, 3), (1, 1), (4, 6), (4, 5), pad_first=False),
        (normal(8, 2, 3, 3),),
    ),
    "softmax, 1 number": (F.softmax, (normal(3, 1),)),
    "softmax, 33 numbers": (F.softmax, (100 * normal(2, 2, 33),)),
    "softmax, 1100 numbers": (F.softmax, (normal(1100),)),
    "softmax, nothing allowed": (F.softmax, (np.where(mask(4, 9), normal(4, 9), -np.inf),)),
    "attention, three axes": (F.scaled_dot_product_attention, (normal(3, 5, 8), normal(3, 7, 8), normal(3, 7, 8))),
    "layer_norm, 1100 channels": (F.layer_norm, (normal(3, 1100), normal(1100), normal(1100))),
    "attention of windows": (F.self_attention, (normal(2, 4, 9, 36), 3, mask(4, 1, 9, 9), normal(3, 9, 9))),
    "attention of a ViT": (F.self_attention, (normal(2, 10, 24), 2)),
    "cosine_attention": (
        F.cosine_attention,
        (normal(2, 3, 5, 8), normal(2, 3, 7, 8), normal(2, 3, 7, 8), normal(3, 1, 1), None, normal(3, 5, 7)),
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def cast(value: Any, dtype: Any) -> Any:
    return value.astype(dtype) if isinstance(value, np.ndarray) and is_floating(value.dtype) else value


def parts(value: Any) -> list[Any]:
    return [part for part in (value if isinstance(value, tuple) else (value,)) if part is not None]


def results(f: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
    """y and all gradients, on the host, from arguments on the host or the fake device."""
    y, back = f(*args)
    fake = isinstance(y, fake_cupy.ndarray)
    dy: Any = 0.7  # of a loss
    if y.ndim:
        dy = np.random.default_rng(5).standard_normal(y.shape).astype(y.dtype)
        dy = fake_cupy.asarray(dy) if fake else dy
    found = [y, *parts(back(dy))]
    return [part.get() if fake else part for part in found]


def difference(name: str, dtype: str) -> float:
    """The largest difference of a kernel's results from the formula's in float64, of the largest of all elements."""
    f, args = CASES[name]
    args = tuple(cast(arg, activation_dtype(dtype) if dtype in ROUNDED else dtype) for arg in args)
    with minivit.plain():
        expected = results(f, tuple(cast(arg, "float64") for arg in args))
    with chosen(name) as device:
        got = results(f, tuple(device.asarray(arg) if isinstance(arg, np.ndarray) else arg for arg in args))
    assert {part.dtype.name for part in got if part.ndim} == {dtype} and len(got) == len(expected)
    largest = max(np.abs(part).max() for part in expected) or 1.0
    return float(max(np.abs(a - b).max() for a, b in zip(got, expected)) / largest)


@every_case
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_kernel_gives_what_its_formula_gives(name: str, dtype: str) -> None:
    assert difference(name, dtype) <= TOLERANCE[dtype]


@every_case
@pytest.mark.parametrize("dtype", ROUNDED)
def test_a_kernel_for_half_precision_gives_what_its_formula_gives(name: str, dtype: str) -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it has bfloat16")
    assert difference(name, dtype) <= ROUNDED[dtype]


def wrongly_rounded(dtype: str) -> int:
    """How many of 4,000 results of a kernel are not the number of half precision that is nearest to theirs."""
    bias = np.concatenate([100 * np.random.default_rng(0).random(3998, "float32"), np.float32([0.25, np.nan])])
    hidden = np.full((1, bias.size), 64, activation_dtype(dtype))
    with fake_cupy.installed() as device:
        from minivit.fast.cupy.linear import bias_gelu

        y, _ = bias_gelu(device.asarray(hidden), device.asarray(bias), "none")  # GELU of what is large is itself
        found = y.get()[0]
    expected = (64 + bias).astype(hidden.dtype)
    return int((~((found == expected) | (np.isnan(found) & np.isnan(expected)))).sum())


@pytest.mark.parametrize("dtype", ROUNDED)
def test_half_precision_is_rounded_to_the_nearest(dtype: str) -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it has bfloat16")
    assert wrongly_rounded(dtype) == 0


@every_case
def test_no_order_of_threads_changes_a_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    f, args = CASES[name]
    found = []
    for order in cuda_emulator.ORDERS:
        monkeypatch.setattr(cuda_emulator, "order", order)
        with chosen(name) as device:
            found.append(results(f, tuple(device.asarray(a) if isinstance(a, np.ndarray) else a for a in args)))
    for other in found[1:]:
        for part, first in zip(other, found[0]):
            np.testing.assert_array_equal(part, first)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", [(1,), (3, 300, 1), (4096, 2), (4097, 40)])
def test_adamw_gives_what_its_formula_gives(sizes: tuple[int, ...], dtype: str) -> None:
    settings: Any = {"betas": (0.9, 0.99), "eps": 1e-8, "step": 3}
    starts = np.cumsum((0, *sizes))[:-1].tolist()

    def moments() -> list[Any]:
        return [cast(normal(sum(sizes)), dtype), cast(np.abs(normal(sum(sizes))), dtype)]

    def shares(put: Any) -> list[Share]:
        return [
            Share(
                put(cast(normal(size), dtype)),
                put(cast(normal(1, size)[0], dtype)),
                start,
                0.1 / (start + 1),
                start % 2,
            )
            for size, start in zip(sizes, starts)
        ]

    expected, there = moments(), shares(lambda array: array)
    adamw_step(*expected, there, **settings)
    with fake_cupy.installed() as device:
        got, here = [device.asarray(array) for array in moments()], shares(device.asarray)
        update(*got, here, **settings)
        pairs = [*zip(got, expected), *((ours.data, theirs.data) for ours, theirs in zip(here, there))]
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours.get(), theirs, rtol=10 * TOLERANCE[dtype], atol=TOLERANCE[dtype])


def of_all_parameters(sizes: tuple[int, ...], dtype: str, put: Any) -> dict[str, list[Any]]:
    """What clipping and averaging make of arrays of these sizes, the last of which is transposed."""
    grads, weights, averages = (
        [put(np.ascontiguousarray(cast(normal(2, size + each), dtype)[:, :size])) for size in sizes]
        for each in (0, 1, 2)
    )
    grads[-1] = grads[-1].T
    norm = together.squared_norm(*grads)
    together.scale(*grads, factor=0.3)
    together.average(*averages, *weights, decay=0.9)
    return {"norm": [norm], "scaled": grads, "averages": averages}


def of_all_difference(sizes: tuple[int, ...], dtype: str) -> float:
    """The largest difference from the formulas, relative to each array."""
    with minivit.plain():
        expected = of_all_parameters(sizes, "float64", lambda array: array)
    with fake_cupy.installed() as device:
        found = of_all_parameters(sizes, dtype, device.asarray)
        got = {name: [array.get() for array in arrays] for name, arrays in found.items()}
    assert {array.dtype.name for name in ("scaled", "averages") for array in got[name]} == {dtype}
    pairs = [pair for name, arrays in expected.items() for pair in zip(got[name], arrays)]
    return max(float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in pairs)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("sizes", [(1,), (3, 300, 1), (2048, 1), (2049, 40)])
def test_clipping_and_averaging_give_what_their_formulas_give(sizes: tuple[int, ...], dtype: str) -> None:
    assert of_all_difference(sizes, dtype) <= TOLERANCE[dtype]


def test_squares_beyond_float32_are_added() -> None:
    with fake_cupy.installed() as device:
        assert float(together.squared_norm(device.full(5000, 1e30, "float32"))) == pytest.approx(5e63, rel=1e-6)


def test_clipping_and_averaging_take_one_launch_or_two() -> None:
    with fake_cupy.installed() as device:
        arrays = [device.ones(size) for size in (3, 5000, 1)]
        others = [device.ones(size) for size in (3, 5000, 1)]
        before = fake_cupy.launches
        together.squared_norm(*arrays)
        assert fake_cupy.launches == before + 2
        together.scale(*arrays, factor=0.5)
        assert fake_cupy.launches == before + 3
        together.average(*arrays, *others, decay=0.5)
        assert fake_cupy.launches == before + 4


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_attention_drops_the_weights_that_its_formula_drops(dtype: str) -> None:
    def run(attend: Any, put: Any, dtype: str) -> list[Any]:
        q, k, v = (put(cast(normal(2, 3, count, 8), dtype)) for count in (5, 7, 7))
        y, back = attend(q, k, v, put(mask(5, 7)), dropout_rate=0.4, rng=np.random.default_rng(3))
        return [y, *parts(back(y))]

    expected = run(F.scaled_dot_product_attention.plain, lambda array: array, "float64")
    with fake_cupy.installed() as device:
        got = [array.get() for array in run(F.scaled_dot_product_attention, device.asarray, dtype)]
    for ours, theirs in zip(got, expected):
        np.testing.assert_allclose(ours, theirs, rtol=10 * TOLERANCE[dtype], atol=10 * TOLERANCE[dtype])


def test_rows_whose_squares_overflow_are_normalized() -> None:
    rows = np.array([[1e30, -1e30, 2e30, 0], [1, 2, 3, 5]], "float32")
    with fake_cupy.installed() as device:
        y, back = F.layer_norm(device.asarray(rows), None, None)
        dx, *_ = back(device.asarray(np.full_like(rows, 1e30)))
    expected, _ = F.layer_norm.plain(rows.astype("float64"), None, None)
    np.testing.assert_allclose(y.get(), expected, rtol=1e-6, atol=1e-6)
    assert np.isfinite(dx.get()).all()


def test_matmul_precision_sets_the_digits_of_float32_products() -> None:
    x, weight = normal(4, 64), normal(3, 64)
    expected = x @ weight.T

    def error(dtype: str) -> float:
        y, _ = F.linear(fake_cupy.asarray(x.astype(dtype)), fake_cupy.asarray(weight.astype(dtype)))
        return float(np.abs(y.get() - expected).max() / np.abs(expected).max())

    with fake_cupy.installed():
        assert error("float32") < 1e-6
        with minivit.matmul_precision("high"):
            assert 1e-5 < error("float32") < 1e-3 and error("float64") < 1e-14
            with minivit.matmul_precision("medium"):
                assert 1e-3 < error("float32") < 1e-2
            assert error("float32") < 1e-3
        assert error("float32") < 1e-6
        with minivit.matmul_precision("highest"):  # for the rest of the program, if it is not undone
            minivit.matmul_precision("high")
            assert error("float32") > 1e-5
    assert current_precision() == "highest"
    with pytest.raises(ValueError, match="'tf32': choose one of 'highest', 'high', 'medium'"):
        minivit.matmul_precision("tf32")


def test_products_are_put_into_a_formula_and_its_backward_pass() -> None:
    with fake_cupy.installed() as device:
        from minivit.fast.cupy import products

        shapes: list[tuple[int, ...]] = []

        def noted(a: Any, b: Any) -> Any:
            shapes.append((*a.shape, *b.shape))
            return a @ b

        formula = products.with_products(F.linear.plain)
        formula.__globals__["product"] = noted
        y, vjp = formula(device.ones((2, 3)), device.ones((4, 3)))
        vjp(y)
        assert shapes == [(2, 3, 3, 4), (2, 4, 4, 3), (4, 2, 2, 3)]


def test_no_launch_waits_for_the_device() -> None:
    with fake_cupy.installed() as device:
        for f, args in CASES.values():
            if f is F.embedding:
                continue  # looks at its indices
            on_host = "iu" if f is F.softmax_cross_entropy else ""  # looks at class numbers
            given = [
                device.asarray(arg) if isinstance(arg, np.ndarray) and arg.dtype.kind not in on_host else arg
                for arg in args
            ]
            before = fake_cupy.synchronizations
            y, back = f(*given)
            back(device.ones_like(y))
            assert fake_cupy.synchronizations == before


# --- bugs planted in the kernels -------------------------------------------------------------------------------------


class Bug(NamedTuple):
    """A kernel's file, its text and what a careless hand makes of it, the case that runs it, and the error."""

    file: str
    text: str
    planted: str
    case: str
    error: str | None  # None: the results differ from the formula's
    dtype: str = "float64"  # of the activations


BUGS = {
    "a missing barrier before the numbers of the warps are overwritten": Bug(
        "common",
        "    __syncthreads();  // the numbers of the call before have been read\n",
        "",
        "cross_entropy, 1100 classes",
        "race in shared",
    ),
    "a missing barrier after the numbers of the warps were written": Bug(
        "common",
        "        of_warp[threadIdx.x / 32] = value;\n    }\n    __syncthreads();\n    REAL total",
        "        of_warp[threadIdx.x / 32] = value;\n    }\n    REAL total",
        "cross_entropy, 1100 classes",
        "race in shared",
    ),
    "a reduction that drops the last warp": Bug(
        "common",
        "warp < int(blockDim.x / 32); ++warp) {\n        total",
        "warp < int(blockDim.x / 32) - 1; ++warp) {\n        total",
        "cross_entropy, 1100 classes",
        None,
    ),
    "a reduction that drops half of the lanes": Bug(
        "common",
        "int lanes = width / 2; lanes > 0; lanes /= 2) {\n        value +=",
        "int lanes = width / 4; lanes > 0; lanes /= 2) {\n        value +=",
        "layer_norm, 31 channels",
        None,
    ),
    "an off-by-one bound of the columns": Bug(
        "sums",
        "if (column < columns) {",
        "if (column <= columns) {",
        "linear_gelu",
        "outside of all arrays|race",
    ),
    "an off-by-one bound of the rows": Bug(
        "sums",
        "row < stop",
        "row <= stop",
        "linear",
        "outside of all arrays|race",
    ),
    "a group that forgets where the rows end": Bug(
        "sums",
        "min(first + group, rows)",
        "first + group",
        "linear, more rows than one launch adds",
        "outside of all arrays|race",
    ),
    "a barrier in a branch": Bug(
        "sums",
        "        __syncthreads();\n        if (threadIdx.y < half) {",
        "        if (threadIdx.y < half) {\n            __syncthreads();",
        "linear",
        "never reach",
    ),
    "a return before a barrier": Bug(
        "sums",
        "    REAL total = 0;\n    if (column",
        "    if (column >= columns) {\n        return;\n    }\n    REAL total = 0;\n    if (column",
        "linear_gelu",
        "never reach",
    ),
    "sums that are added before all threads have written theirs": Bug(
        "sums",
        "        __syncthreads();\n        if (threadIdx.y < half) {",
        "        if (threadIdx.y < half) {",
        "linear, more rows than one launch adds",
        "race in shared",
    ),
    "one row of threads that does not wait": Bug(
        "layer_norm",
        "    sums[1][threadIdx.y][threadIdx.x] = dbias;\n    __syncthreads();",
        "    sums[1][threadIdx.y][threadIdx.x] = dbias;",
        "layer_norm, 1100 channels",
        "race in shared",
    ),
    "a warp that does not wait for its turn": Bug(
        "layer_norm",
        "                }\n            }\n            __syncthreads();",
        "                }\n            }",
        "layer_norm, 150 rows",
        "race in shared",
    ),
    "a group of rows whose last is not read": Bug(
        "layer_norm", "number < stop; number +=", "number < stop - 1; number +=", "layer_norm, 150 rows", None
    ),
    "warps that overwrite one another's sums": Bug(
        "layer_norm", "warp ? sums[1][c] + dbias[k] : dbias[k]", "dbias[k]", "layer_norm, 150 rows", None
    ),
    "all threads write one number": Bug(
        "layer_norm",
        "    if (threadIdx.x == 0) {\n        statistics",
        "    {\n        statistics",
        "layer_norm, 31 channels",
        "race in global",
    ),
    "two blocks write one row": Bug(
        "layer_norm",
        "y + (long long)number * channels",
        "y",
        "layer_norm, 31 channels",
        "race in global",
    ),
    "a tile overwritten while it is read": Bug(
        "attention",
        "        __syncthreads();  // the tiles before have been read\n",
        "",
        "attention, past a tile",
        "race in shared",
    ),
    "weights read before the warp has written them": Bug(
        "attention",
        "        __syncwarp();  // a row of weights belongs to one warp\n",
        "",
        "attention, past a tile",
        "race in shared",
    ),
    "a sum past the 16 lanes of a row": Bug(
        "attention", "warp_sum(sum, 16)", "warp_sum(sum)", "attention, past a tile", None
    ),
    "a tile that reads past the last row": Bug(
        "attention",
        "first + row < count && channel",
        "channel",
        "attention, past a tile",
        "outside of all arrays|race",
    ),
    "keys beyond the last count": Bug(
        "attention",
        "query < queries && key < keys ? scale",
        "query < queries ? scale",
        "attention, 1 query",
        None,
    ),
    "sums that are not scaled when the maximum grows": Bug(
        "attention",
        "sums[r][c] *= shrink",
        "sums[r][c] *= 1",
        "attention, past a tile",
        None,
    ),
    "a query that sees nothing": Bug(
        "attention",
        "top == -INFINITE ? REAL(0) : top",
        "top",
        "attention, masked",
        None,
    ),
    "the gradient without delta": Bug(
        "attention",
        "weight * (dweights[r][c] - delta[row + query]);\n                    if (ds)",
        "weight * dweights[r][c];\n                    if (ds)",
        "attention, past a tile",
        None,
    ),
    "a gradient without the scale": Bug(
        "attention",
        "store<WIDE>(dk_sums, scale",
        "store<WIDE>(dk_sums, 1",
        "attention, past a tile",
        None,
    ),
    "a loss that forgets half of the batch": Bug(
        "sums",
        "i < count; i += blockDim.x) {\n        sum",
        "i < count / 2; i += blockDim.x) {\n        sum",
        "cross_entropy, smoothed",
        None,
    ),
    "a batch read past its end": Bug(
        "sums",
        "i < count; i += blockDim.x) {\n        sum",
        "i <= count; i += blockDim.x) {\n        sum",
        "cross_entropy, smoothed",
        "outside of all arrays|race",
    ),
    "a stretch that begins where its array does": Bug(
        "parameters",
        "addresses[mine.number]) + mine.first",
        "addresses[mine.number])",
        "all parameters",
        "race|outside",
    ),
    "a stretch that is longer than its array": Bug(
        "parameters",
        "i < mine.count; i += blockDim.x) {\n        a[i]",
        "i <= mine.count; i += blockDim.x) {\n        a[i]",
        "all parameters",
        "race|outside",
    ),
    "a norm without the last number of each stretch": Bug(
        "parameters",
        "i < mine.count; i += blockDim.x) {\n        sum",
        "i < mine.count - 1; i += blockDim.x) {\n        sum",
        "all parameters",
        None,
    ),
    "weights that are taken for the average": Bug(
        "parameters", "addresses[2 * mine.number + 1]", "addresses[2 * mine.number]", "all parameters", None
    ),
    "a softmax of a row of nothing": Bug(
        "softmax", "total == 0 ? REAL(0) : 1 / total", "1 / total", "softmax, nothing allowed", None
    ),
    "a mask read along the wrong axis": Bug(
        "softmax", "query * strides[3]", "query * strides[2]", "attention, wide heads with a mask", "outside"
    ),
    "a softmax that drops its last numbers": Bug(
        "softmax",
        "c < count; c += 32) {\n        along",
        "c < count - 1; c += 32) {\n        along",
        "softmax, 1100 numbers",
        None,
    ),
    "a row past the last": Bug(
        "softmax",
        "    if (number >= rows) {\n        return;\n    }\n    Row<Score>",
        "    Row<Score>",
        "softmax, 1 number",
        "outside of all arrays|race",
    ),
    "heads that take another's numbers": Bug(
        "heads", "row / tokens % heads", "row / tokens % 2", "attention of windows by products", "race"
    ),
    "heads that are read past the last": Bug(
        "heads", "i < count;", "i <= count;", "attention of windows by products", "outside of all arrays|race"
    ),
    "a sum that forgets its last numbers": Bug("add", "i < count;", "i < count - 1;", "linear", None),
    "a bias whose last numbers are not read": Bug("add", "row[i % columns]", "row[i % (columns - 1)]", "linear", None),
    "a draw for each number instead of each sample": Bug(
        "add", "draws[i / size]", "draws[i]", "residual", "outside of all arrays|race"
    ),
    "a sample that takes its neighbor's draw": Bug("add", "draws[i / size]", "draws[0]", "residual", None),
    "a branch that is kept where it should be dropped": Bug("add", "< keep ?", "> keep ?", "residual", None),
    "a branch that is not scaled": Bug(
        "add", "keep ? factor", "keep ? REAL(1)", "residual, 16 bytes at a time", None, "bfloat16"
    ),
    "the gradient of a branch that was dropped": Bug("add", ": scaled;", ": in[i];", "residual, past a block", None),
    "a softmax that is computed again with another scale": Bug(
        "softmax",
        "queries, count, scale, mask_value), count);\n    Row<decl",
        "queries, count, scale / 2, mask_value), count);\n    Row<decl",
        "attention by products, masked",
        None,
    ),
    "a gradient that is not centered": Bug(
        "softmax", "weight * (given.at(k, c) - along)", "weight * given.at(k, c)", "attention by products, masked", None
    ),
    "padding that is read from the map": Bug(
        "windows", "if (row < rows.real && column < columns.real)", "if (row < rows.real)", "windows", "outside|race"
    ),
    "a shift in the wrong direction": Bug(
        "windows", "at + length - shift % length", "at + shift % length", "windows to a map", None
    ),
    "patches that are read row by row": Bug("patches", "* gw * Pw + gx * Pw", "* gw * Pw + gx", "patches", None),
    "patches of another image": Bug(
        "patches", "patch / gw % gh", "patch / gw", "patches", "outside of all arrays|race"
    ),
    "channels in another order": Bug(
        "patches", "c = rest / Ph % C, patch", "c = C - 1 - rest / Ph % C, patch", "patch_embed", None
    ),
    "patches past the last": Bug("patches", "i < count;", "i <= count;", "patches of a pixel", "outside|race"),
    "a map that is rolled as if it were padded": Bug(
        "windows", "(at + shift) % real", "(at + shift) % padded", "windows, rolled before they are padded", None
    ),
    "16 bits that are cut off instead of rounded": Bug(
        "common", "(word + 0x7fff + (word >> 16 & 1)) >> 16", "word >> 16", "rounding", None
    ),
    "a class of probability 0 that counts": Bug(
        "cross_entropy", "p == 0 ? REAL(0) : p *", "p *", "cross_entropy, a forbidden class", None
    ),
    "targets that are taken to add up to 1": Bug(
        "cross_entropy", "- total) * mass -", "- total) * (mass > 0) -", "cross_entropy, soft targets", None
    ),
    "a largest logit that is not subtracted": Bug(
        "cross_entropy", "top == -INFINITE ? REAL(0) : top", "REAL(-800)", "cross_entropy, 1100 classes", None
    ),
    "the slope of GELU without its second term": Bug(
        "gelu",
        "below + z * density",
        "below",
        "gelu",
        None,
    ),
    "the tanh formula's root": Bug(
        "gelu",
        "0.79788456080286535588",
        "0.79788",
        "linear_gelu, tanh",
        None,
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_a_kernel_is_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file, text, planted, case, error, dtype = BUGS[bug]
    read = Path.read_text

    def read_text(path: Path, *args: Any, **named: Any) -> str:
        found = read(path, *args, **named)
        if path.stem == file and path.suffix in (".cu", ".cuh"):
            assert found.count(text) >= 1, "the text is no longer in the kernel"
            return found.replace(text, planted)
        return found

    def run() -> float:
        if case == "rounding":
            return wrongly_rounded("bfloat16")
        return of_all_difference((2049, 40), dtype) if case == "all parameters" else difference(case, dtype)

    monkeypatch.setattr(Path, "read_text", read_text)
    if error is None:
        assert not run() <= ROUNDED.get(dtype, 1e-7)
    else:
        with pytest.raises(cuda_emulator.KernelError, match=error):
            run()


# --- as a GPU would compile them -------------------------------------------------------------------------------------

KERNELS = Path(minivit.__file__).parent / "fast" / "cupy" / "kernels"
SOURCES = (
    "adamw",
    "cross_entropy",
    "gelu",
    "layer_norm",
    "parameters",
    "patches",
    "softmax",
    "sums",
    "windows",
    "add",
    "heads",
    *(f"attention, heads of {size}" for size in ((16, 64) if PROFILE == "quick" else (16, 32, 48, 64))),
)
MOST_REGISTERS = 255  # of a thread: all that there are
MOST_SPILLED = 96  # bytes; NVRTC chose to for LayerNorm on sm_80, with 48 registers and rows of 768 numbers


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("dtype", [*TOLERANCE, *ROUNDED])
@pytest.mark.parametrize("source", SOURCES)
def test_nvrtc_compiles_without_warnings(source: str, dtype: str, architecture: str) -> None:
    file, _, size = source.partition(", heads of ")
    if dtype in ROUNDED and "STORED" not in (KERNELS / f"{file}.cu").read_text():
        pytest.skip("computes from float32 and float64 alone")
    with fake_cupy.installed():
        from minivit.fast.cupy import attention, launch

        code = launch.code(file)
        common = {"HEAD": int(size or 0), "NARROW": attention._NARROW.get(dtype, 0), "THREADS": attention._THREADS}
        tiles = (
            [{"WIDE": wide} | common for wide in attention._WIDE[dtype]]
            if size
            else [{"CHUNKED": 0, "KEPT": 0}, {"CHUNKED": 1, "KEPT": 2}, {"CHUNKED": 1, "KEPT": launch._MOST_KEPT}]
        )
        variants = [launch.options(dtype, **defines) for defines in tiles]
    log = "".join(nvrtc.compile_log(code, (*options, f"--gpu-architecture={architecture}")) for options in variants)
    assert not [line for line in log.splitlines() if "warning" in line and "Registers are spilled" not in line]
    used = re.findall(r"entry function '(\w+)'(?:.|\n)*?Used (\d+) registers", log)
    assert {name for name, _ in used} == cuda_emulator.kernels(code).keys()
    assert max(int(registers) for _, registers in used) <= MOST_REGISTERS
    assert max(map(int, re.findall(r"(\d+) bytes (?:spill|stack)", log))) <= MOST_SPILLED


def test_the_page_on_gpus_counts_kernels_cases_and_bugs() -> None:
    page = Path(minivit.__file__).parents[1] / "docs" / "gpu.md"
    if not page.exists():
        pytest.skip("the documentation is not installed with the package")
    text = " ".join(page.read_text("utf-8").split())
    kernels = sum(len(cuda_emulator.kernels(path.read_text())) for path in KERNELS.glob("*.cu"))
    assert f"each of the {kernels} kernels with its formula, in {len(CASES)} cases of functions" in text
    assert f"It plants {len(BUGS)} bugs" in text


@pytest.mark.skipif(not nvrtc.available(), reason="NVRTC is not installed: pip install nvidia-cuda-nvrtc")
def test_nvrtc_reports_an_error() -> None:
    with pytest.raises(ValueError, match="undefined"):
        nvrtc.compile_log('extern "C" __global__ void f(float* x) { x[0] = missing; }', ())
