"""The rules of the fake CuPy, one by one: what it refuses, what it counts, what it returns.

A test that runs the library on the fake proves nothing unless these hold.
"""

from __future__ import annotations

import copy
import operator
import pickle
import sys
import weakref

import fake_cupy
import numpy as np
import pytest
from fake_cupy import FakeDeviceError


@pytest.fixture
def cp():
    with fake_cupy.installed() as module:
        yield module


def assign(target, key, value):
    target[key] = value


OPERATORS = [
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.pow,
    operator.matmul,
    operator.eq,
    operator.ne,
    operator.lt,
    operator.ge,
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
]

MIXES = {
    "np.exp": lambda cp, dev, host: np.exp(dev),
    "np.add": lambda cp, dev, host: np.add(host, dev),
    "np.add.out": lambda cp, dev, host: np.add(host, host, out=dev),
    "np.sum": lambda cp, dev, host: np.sum(dev),
    "np.asarray": lambda cp, dev, host: np.asarray(dev),
    "np.array list": lambda cp, dev, host: np.array([dev, dev]),
    "np.concatenate": lambda cp, dev, host: np.concatenate([dev]),
    "np.stack mixed": lambda cp, dev, host: np.stack([host, dev]),
    "np.where": lambda cp, dev, host: np.where(host > 0, dev, host),
    "np.testing": lambda cp, dev, host: np.testing.assert_allclose(dev, host),
    "dev[host]": lambda cp, dev, host: dev[np.array([0, 1])],
    "dev[host mask]": lambda cp, dev, host: dev[host > 0],
    "host[dev]": lambda cp, dev, host: host[cp.arange(2)],
    "host[0-d dev]": lambda cp, dev, host: host[cp.asarray(1)],
    "host[:] = dev": lambda cp, dev, host: assign(host, slice(None), dev),
    "dev[:] = host": lambda cp, dev, host: assign(dev, slice(None), host),
    "dev[host] = 0": lambda cp, dev, host: assign(dev, np.array([0]), 0.0),
    "range": lambda cp, dev, host: range(cp.asarray(3)),
    "exp": lambda cp, dev, host: cp.exp(host),
    "add": lambda cp, dev, host: cp.add(dev, host),
    "add.out": lambda cp, dev, host: cp.add(dev, dev, out=host),
    "add.at": lambda cp, dev, host: cp.add.at(dev, np.array([0]), dev[:1]),
    "sum": lambda cp, dev, host: cp.sum(host),
    "sum list": lambda cp, dev, host: cp.sum([1.0, 2.0]),
    "exp list": lambda cp, dev, host: cp.exp([1.0]),
    "concatenate": lambda cp, dev, host: cp.concatenate([dev, host]),
    "stack": lambda cp, dev, host: cp.stack([host]),
    "array": lambda cp, dev, host: cp.array([dev, host]),
    "where": lambda cp, dev, host: cp.where(dev > 0, host, dev),
    "where condition": lambda cp, dev, host: cp.where(host > 0, dev, dev),
    "copyto": lambda cp, dev, host: cp.copyto(dev, host),
    "zeros_like": lambda cp, dev, host: cp.zeros_like(host),
    "matmul": lambda cp, dev, host: cp.matmul(host, dev),
    "einsum": lambda cp, dev, host: cp.einsum("ij,ij->i", dev, host),
    "dot": lambda cp, dev, host: dev.dot(host),
    "take": lambda cp, dev, host: dev.take(np.array([0])),
    "reshape": lambda cp, dev, host: cp.reshape(host, -1),
    "linalg.norm": lambda cp, dev, host: cp.linalg.norm(host),
    "shape": lambda cp, dev, host: cp.zeros(cp.asarray(3)),
    "list operand": lambda cp, dev, host: dev + [1.0, 2.0],
    "list equal": lambda cp, dev, host: dev == [1.0, 2.0],
}


@pytest.mark.parametrize("operate", OPERATORS)
def test_operators_refuse_host_arrays_on_either_side(cp, operate):
    host = np.ones((2, 2))
    dev = cp.asarray(host)
    for left, right in ((dev, host), (host, dev), (dev, host[0, 0:1]), (dev, np.array(1.0))):
        with pytest.raises(TypeError):
            operate(left, right)


@pytest.mark.parametrize("mix", MIXES)
def test_mixing_host_and_device_is_refused(cp, mix):
    host = np.ones((2, 2))
    with pytest.raises(TypeError):
        MIXES[mix](cp, cp.asarray(host), host)


@pytest.mark.parametrize("scalar", [2, 2.0, True, np.float32(2), np.float64(2), np.int64(2)])
def test_scalars_are_operands_on_either_side(cp, scalar):
    x = cp.ones(3, np.float32)
    for operate in OPERATORS[:4]:
        for result in (operate(x, scalar), operate(scalar, x)):
            assert isinstance(result, cp.ndarray)
    assert isinstance(scalar < x, cp.ndarray)
    assert isinstance(scalar == x, cp.ndarray)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ("f4", 2.0, "f4"),
        ("f4", 2, "f4"),
        ("f2", 3.0, "f2"),
        ("f4", 1j, "c8"),
        ("i4", 2.0, "f8"),
        ("f4", np.float64(2), "f8"),
        ("f4", np.float32(2), "f4"),
        ("f4", "f8", "f8"),
        ("i8", "f4", "f8"),
        ("?", "f4", "f4"),
    ],
)
def test_promotion(cp, left, right, expected):
    x = cp.ones(3, left)
    y = cp.ones((), right) if isinstance(right, str) else right  # a 0-d array is not weak
    assert (x * y).dtype == (y * x).dtype == np.dtype(expected)
    assert cp.where(x > 0, x, y).dtype == np.dtype(expected)
    assert cp.result_type(x, y) == np.dtype(expected)


def test_inplace_operators_keep_dtype_and_identity(cp):
    x = cp.zeros((), np.float32)
    same = x
    x += 1.5
    assert x is same
    assert x.dtype == np.float32
    assert x.item() == 1.5
    with pytest.raises(TypeError):
        cp.zeros(2, np.int64).__iadd__(cp.ones(2))


@pytest.mark.parametrize(
    "reduce",
    [
        lambda cp, x: x.sum(),
        lambda cp, x: x.mean(),
        lambda cp, x: x.max(),
        lambda cp, x: x.var(ddof=1),
        lambda cp, x: x.argmax(),
        lambda cp, x: (x > 0).all(),
        lambda cp, x: x[0, 0],
        lambda cp, x: x[0] @ x[0],
        lambda cp, x: cp.sum(x),
        lambda cp, x: cp.einsum("ij->", x),
        lambda cp, x: cp.linalg.norm(x),
        lambda cp, x: cp.allclose(x, x),
        lambda cp, x: cp.array_equal(x, x),
        lambda cp, x: cp.count_nonzero(x),
        lambda cp, x: cp.exp(1.0),
        lambda cp, x: next(iter(x[0])),
    ],
)
def test_results_are_0d_device_arrays(cp, reduce):
    result = reduce(cp, cp.ones((2, 2), np.float32))
    assert type(result) is cp.ndarray
    assert result.shape == ()
    assert fake_cupy.synchronizations == 0


@pytest.mark.parametrize(
    "view",
    [
        lambda cp, x: x[1:],
        lambda cp, x: x[0, 1],
        lambda cp, x: x[..., None],
        lambda cp, x: x.T,
        lambda cp, x: x.reshape(-1),
        lambda cp, x: x.ravel(),
        lambda cp, x: x.swapaxes(0, 1),
        lambda cp, x: x.view(np.int64),
        lambda cp, x: x.real,
        lambda cp, x: cp.transpose(x)[0],
        lambda cp, x: cp.moveaxis(x, 0, 1),
        lambda cp, x: cp.expand_dims(x, 0),
        lambda cp, x: cp.split(x, 2)[1],
        lambda cp, x: cp.broadcast_to(x, (4, 2, 3)),
        lambda cp, x: cp.asarray(x),
    ],
)
def test_views_share_memory(cp, view):
    x = cp.arange(6.0).reshape(2, 3).copy()
    part = view(cp, x)
    assert cp.shares_memory(part, x)
    assert part is x or part.base is x
    assert part is x or not part.flags.owndata
    x[...] = 7
    assert (part.view(np.float64) == 7).all()


@pytest.mark.parametrize(
    "fresh",
    [
        lambda cp, x: x.copy(),
        lambda cp, x: x.astype(np.float64),
        lambda cp, x: x[cp.asarray([0, 1])],
        lambda cp, x: x[cp.asarray(1)],
        lambda cp, x: x[x > 0],
        lambda cp, x: x.flatten(),
        lambda cp, x: x + 0,
        lambda cp, x: cp.array(x),
        lambda cp, x: copy.deepcopy(x),
        lambda cp, x: pickle.loads(pickle.dumps(x)),
    ],
)
def test_copies_own_their_memory(cp, fresh):
    x = cp.arange(6.0).reshape(2, 3).copy()
    other = fresh(cp, x)
    assert not cp.may_share_memory(other, x)
    assert other.base is None


def test_upload_copies_and_download_copies(cp):
    host = np.zeros(3)
    dev = cp.asarray(host)
    host += 1
    assert dev.tolist() == [0, 0, 0]
    back = dev.get()
    back += 1
    assert dev.tolist() == [0, 0, 0]
    assert cp.asnumpy(dev).tolist() == [0, 0, 0]
    assert cp.asarray(dev) is dev
    assert dev.astype(np.float64, copy=False) is dev


@pytest.mark.parametrize(
    "wait",
    [
        lambda cp, x: bool(x[0]),
        lambda cp, x: float(x[0]),
        lambda cp, x: int(x[0]),
        lambda cp, x: x[0].item(),
        lambda cp, x: assign(np.zeros(2), 0, x[0]),  # NumPy calls __float__, with CuPy as well
        lambda cp, x: x.get(),
        lambda cp, x: x.tolist(),
        lambda cp, x: repr(x),
        lambda cp, x: f"{x[0]:.1f}",
        lambda cp, x: cp.asnumpy(x),
        lambda cp, x: x[x > 0],
        lambda cp, x: assign(x, x > 0, 0.0),
        lambda cp, x: x.nonzero(),
        lambda cp, x: cp.where(x),
        lambda cp, x: cp.unique(x),
        lambda cp, x: cp.cuda.Device().synchronize(),
    ],
)
def test_waiting_for_the_device_is_counted(cp, wait):
    x = cp.ones(3)
    assert fake_cupy.synchronizations == 0
    wait(cp, x)
    assert fake_cupy.synchronizations == 1


def test_only_one_element_converts(cp):
    with pytest.raises(ValueError, match="ambiguous"):
        bool(cp.ones(2))
    with pytest.raises(TypeError, match="size-1"):
        float(cp.ones(2))
    assert float(cp.ones((1, 1))) == 1


@pytest.mark.parametrize(
    "read",
    [
        lambda cp, x, i: x[i],
        lambda cp, x, i: x[:, None][i, 0],
        lambda cp, x, i: x.take(i),
        lambda cp, x, i: cp.take_along_axis(x, i, 0),
        lambda cp, x, i: assign(x, i, 0.0),
        lambda cp, x, i: cp.add.at(x, i, 1.0),
    ],
)
@pytest.mark.parametrize("bad", [3, -4])
def test_indices_out_of_range_are_refused(cp, read, bad):
    x = cp.zeros(3)
    read(cp, x, cp.asarray([2, -3]))
    with pytest.raises(FakeDeviceError, match="wrap silently"):
        read(cp, x, cp.asarray([0, bad]))
    with pytest.raises(IndexError):  # integers of the host are checked by CuPy itself
        x[bad]


def test_duplicate_indices_in_an_assignment_are_refused(cp):
    x = cp.zeros((3, 2))
    i = cp.asarray([0, 2, -3])
    with pytest.raises(FakeDeviceError, match="duplicate"):
        x[i] = cp.ones((3, 2))
    with pytest.raises(FakeDeviceError, match="duplicate"):
        x[i] += 1
    with pytest.raises(FakeDeviceError, match="duplicate"):
        cp.put_along_axis(x, cp.asarray([[1, 1]]), 0.0, 1)
    x[cp.asarray([0, 0]), cp.asarray([0, 1])] += 1
    assert x.tolist() == [[1, 1], [0, 0], [0, 0]]


def test_strided_views_stay_in_their_memory_and_are_not_written_where_they_overlap(cp):
    x, as_strided = cp.arange(6.0), cp.lib.stride_tricks.as_strided
    view = as_strided(x, (2, 3), (16, 8))  # 0 1 2, 2 3 4
    assert view.tolist() == [[0, 1, 2], [2, 3, 4]] and cp.shares_memory(view, x)
    for shape, strides in (((2, 5), (16, 8)), ((2,), (-8,))):
        with pytest.raises(FakeDeviceError, match="leaves the memory"):
            as_strided(x, shape, strides)
    assert as_strided(x[::-1], (2,), (-8,)).tolist() == [5, 4]
    assert as_strided(x, (0, 9), (8, 8)).shape == (0, 9)
    for write in (lambda: assign(view, ..., 0.0), lambda: cp.add(view, 1, out=view), lambda: cp.copyto(view, 0.0)):
        with pytest.raises(FakeDeviceError, match="race"):
            write()
    view[:, 1] += 10
    view[:, ::2][0] = 7.0
    assert x.tolist() == [7, 11, 7, 13, 4, 5]


def test_add_at_adds_duplicates_for_the_dtypes_of_the_atomics(cp):
    x = cp.zeros(3, np.float32)
    cp.add.at(x, cp.asarray([0, 0, 2]), cp.asarray([1.0, 2.0, 4.0]))
    assert x.tolist() == [3, 0, 4]
    for dtype in (np.complex64, np.int64, np.bool_):
        with pytest.raises(TypeError, match="does not support"):
            cp.add.at(cp.zeros(3, dtype), cp.asarray([0]), 1)
    with pytest.raises(NotImplementedError):
        cp.multiply.at(x, cp.asarray([0]), 1.0)
    assert not hasattr(cp.add, "reduceat")


def test_out_and_cupy_only_keywords(cp):
    x, out = cp.ones((2, 3)), cp.empty(3)
    assert x.sum(axis=0, out=out) is out
    assert cp.add(out, 1, out=out) is out
    assert cp.matmul(x, x.T, out=cp.empty((2, 2))).tolist() == [[3, 3], [3, 3]]
    with pytest.raises(TypeError):
        cp.add(x, 1, where=x > 0)
    with pytest.raises(TypeError):
        x.max(initial=0.0)
    with pytest.raises(TypeError):
        cp.sum(x, where=x > 0)


def test_uninitialized_memory_is_poisoned_and_nothing_warns(cp):
    assert cp.isnan(cp.empty(3, np.float32)).all()
    assert cp.isinf(cp.exp(cp.asarray(1e9))).all()
    assert cp.isnan(cp.zeros((0, 2)).mean(axis=0)).all()
    assert cp.isnan(cp.zeros(2) / 0).all()


def test_readonly_mode(cp):
    x = cp.ones(3)
    assert getattr(x.flags, "writeable", True)
    with pytest.raises(AttributeError, match="getattr"):
        assert x.flags.writeable
    fake_cupy.set_readonly(x)
    assert x.flags.writeable is False
    for write in (lambda: x.fill(0), lambda: operator.iadd(x, 1), lambda: assign(x[1:], 0, 2)):
        with pytest.raises(ValueError, match="read-only"):
            write()


def test_identity_of_arrays(cp):
    x = cp.ones(3)
    assert weakref.ref(x)() is x
    assert not isinstance(x, np.ndarray)
    with pytest.raises(TypeError):
        hash(x)
    with pytest.raises(AttributeError):
        x.note = 1
    with pytest.raises(ValueError, match="Unsupported dtype"):
        cp.asarray(["text"])
    assert cp.get_array_module(1, x) is cp
    assert cp.get_array_module(np.ones(1)) is np


def test_random_and_erf(cp):
    from cupyx.scipy.special import erf

    rng = cp.random.default_rng(0)
    assert rng.random((2, 3), dtype=np.float32).dtype == np.float32
    assert rng.standard_normal(4).shape == (4,)
    assert rng.integers(0, 5, size=7).max() < 5
    assert not hasattr(rng, "permutation")
    x = cp.asarray([0.0, 0.5], np.float32)
    assert erf(x).dtype == np.float32
    assert cp.allclose(erf(x), cp.asarray([0.0, 0.5204999]))
    assert cp.cuda.is_available()
    assert cp.cuda.runtime.getDeviceCount() == 1


@pytest.mark.parametrize(
    "name",
    [
        "errstate",
        "geomspace",
        "block",
        "insert",
        "frompyfunc",
        "seterr",
        "einsum_path",
        "ElementwiseKernel",
        "fuse",
    ],
)
def test_absent_names(cp, name):
    with pytest.raises(AttributeError):
        getattr(cp, name)


def test_installed_leaves_nothing_behind():
    before = {name for name in sys.modules if name.startswith("cupy")}
    package = "minivit.fast"
    with fake_cupy.installed() as module:
        import cupy

        assert cupy is module
        if package in sys.modules:
            sys.modules[package].cupy = sys.modules[fake_cupy.REPLACEMENTS] = cupy
    assert {name for name in sys.modules if name.startswith("cupy")} == before
    assert fake_cupy.REPLACEMENTS not in sys.modules
    assert not hasattr(sys.modules.get(package), "cupy")
