"""A strict stand-in for CuPy: a device array in host memory that refuses whatever a GPU refuses.

It is stricter than CuPy wherever CuPy is silently wrong (indices out of range, duplicate indices in
an assignment, memory read before it is written), so code that passes here needs no luck on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import sys
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cuda_emulator
import numpy as np

REPLACEMENTS = "minivit.fast.cupy"  # imports CuPy, so it is imported again for the fake

# How often the host waited for the device since `installed()` was entered: conversions to a Python
# value, downloads, and the operations whose result shape depends on the data.
synchronizations = 0

# How much work the host gave to the device since then: kernels, copies and products.
launches = 0


class FakeDeviceError(AssertionError):
    """CuPy would go on here, with a wrong or an undefined result."""


def _synchronize() -> None:
    global synchronizations
    if _recording is not None:
        raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")
    synchronizations += 1


# What a graph that is being recorded will do at each launch, with the memory that it writes to; None: none is recorded.
_recording: list[tuple[Callable[[], Any], Any]] | None = None


def _do(work: Callable[[], Any]) -> Any:
    """One launch: the result of some work on host memory."""
    result = work()
    _note(work, result)
    return result


def _launch(work: Callable[[], Any]) -> None:
    """A kernel of ours: a graph that is being recorded only notes it, as a GPU does."""
    if _recording is None:
        work()
    _note(work, None)


def _note(work: Callable[[], Any], result: Any) -> None:
    """Count some work that was done; a graph that is being recorded will do it again."""
    global launches
    launches += 1
    if _recording is not None:
        _recording.append((work, result))


def _words(text: str) -> list[str]:
    return text.split()


_SCALARS = (bool, int, float, complex, np.bool_, np.number)
_DTYPES = "?bhilqBHILQefdFD"
_IMPLICIT = (
    "Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array explicitly."
)

# NumPy 1 decides dtypes by the values of scalars; its switch to the rules of NumPy 2, which CuPy
# follows, has no public name.
_OLD_NUMPY = int(np.__version__.split(".")[0]) < 2


@contextlib.contextmanager
def _device_rules() -> Iterator[None]:
    """CuPy never warns of an overflow or a division by zero, and treats Python scalars as weak."""
    with np.errstate(all="ignore"):
        if not _OLD_NUMPY:
            yield
            return
        before = np._get_promotion_state()
        np._set_promotion_state("weak")
        try:
            yield
        finally:
            np._set_promotion_state(before)


def _supported(dtype: Any) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype.char not in _DTYPES and dtype.name != "bfloat16":  # which CuPy has where ml_dtypes is installed
        raise ValueError(f"Unsupported dtype {dtype}")
    return dtype


def _owner(host: np.ndarray) -> np.ndarray:
    while isinstance(host.base, np.ndarray):
        host = host.base
    return host


def _new(host: np.ndarray, base: ndarray | None = None) -> ndarray:
    _supported(host.dtype)
    array = object.__new__(ndarray)
    array._host = host
    array._base = base
    return _noted(array)


# every array that there is, by its address and id: kernels reach some through tables of addresses
_live: dict[int, dict[int, weakref.ref[ndarray]]] = {}


def _noted(array: ndarray) -> ndarray:
    if _recording is not None:
        _recording.append(
            (functools.partial(id, array._host), None)
        )  # the graph has its address, so its memory must stay
    here, key = _live.setdefault(_address(array._host), {}), id(array)
    here[key] = weakref.ref(array, lambda _: here.pop(key, None))
    return array


def _address(host: np.ndarray) -> int:
    address: int = host.__array_interface__["data"][0]
    return address


def _at_address(address: int) -> np.ndarray | None:
    """The memory of the largest live array that begins there."""
    arrays = [reference() for reference in list(_live.get(address, {}).values())]
    return max((array._host for array in arrays if array is not None), key=lambda host: host.size, default=None)


def _wrap(result: Any, *sources: ndarray) -> Any:
    """Device arrays for what NumPy returned; views of the `sources` whose memory they share."""
    if isinstance(result, (tuple, list)):
        return type(result)([_wrap(part, *sources) for part in result])
    host = np.asarray(result)
    for source in sources:
        if host is source._host:
            return source
    for source in sources:
        if _owner(host) is _owner(source._host):
            return _new(host, source if source._base is None else source._base)
    return _new(host)


def _arrays(result: Any) -> Any:
    """What NumPy returned, with arrays for scalars."""
    return type(result)(map(np.asarray, result)) if isinstance(result, (tuple, list)) else np.asarray(result)


def _computed(work: Callable[[], Any], *sources: ndarray) -> Any:
    """What an operation returns: the device works for it unless it is a view."""
    result = work()
    wrapped = _wrap(result, *sources)
    parts = wrapped if isinstance(wrapped, (tuple, list)) else (wrapped,)
    if any(part._base is None and not any(part is source for source in sources) for part in parts):
        _note(work, result)
    return wrapped


def _operand(x: Any) -> Any:
    """What NumPy shall compute with: the memory of a device array, or a scalar; nothing else."""
    if isinstance(x, ndarray):
        return x._host
    if isinstance(x, _SCALARS):
        return x
    raise TypeError(f"Unsupported type {type(x)}")


def _memory(x: Any) -> np.ndarray:
    if not isinstance(x, ndarray):
        raise TypeError(f"Expected a device array, got {type(x)}")
    return x._host


def _lower(x: Any, found: list[ndarray]) -> Any:
    """`x` with each device array replaced by its memory; the arrays are appended to `found`."""
    if isinstance(x, ndarray):
        found.append(x)
        return x._host
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}: a host array where a device array is needed")
    if isinstance(x, (tuple, list)):
        return type(x)([_lower(part, found) for part in x])
    return x


class ufunc:
    """An elementwise function over device arrays and scalars; CuPy takes no `where` here."""

    def __init__(self, host: np.ufunc) -> None:
        self._host = host
        self.name = self.__name__ = host.__name__
        self.nin, self.nout = host.nin, host.nout

    def __call__(self, *args: Any, out: Any = None, dtype: Any = None, casting: str = "same_kind") -> Any:
        if len(args) == self.nin + 1 and self.nout == 1 and out is None:
            *args, out = args
        if len(args) != self.nin:
            raise TypeError(f"{self.name}() takes {self.nin} operands, got {len(args)}")
        options: dict[str, Any] = {"casting": casting}
        if dtype is not None:
            options["dtype"] = dtype
        if isinstance(out, tuple):
            (out,) = out
        if out is not None:
            options["out"] = _memory(out)
            _refuse_overlap(out._host)
        operands = [_operand(x) for x in args]

        def work() -> Any:
            with _device_rules():
                result = self._host(*operands, **options)
            return tuple(map(np.asarray, result)) if isinstance(result, tuple) else np.asarray(result)

        result = _do(work)
        return _wrap(result) if out is None else out

    def __repr__(self) -> str:
        return f"<fake cupy ufunc {self.name}>"

    def at(self, a: ndarray, indices: Any, b: Any) -> None:
        """Unbuffered update in place, for the dtypes that have an atomic instruction."""
        if self.name not in _ATOMIC:
            raise NotImplementedError(f"`{self.name}.at` is not supported yet")
        target, values = _memory(a), _operand(b)
        key, integers, masks = _host_key(a.shape, indices)
        if integers and target.dtype not in _ATOMIC[self.name]:
            raise TypeError(f"scatter of `{self.name}` does not support {target.dtype}")
        if masks:
            _synchronize()

        def work() -> None:
            with _device_rules():
                self._host.at(target, key, np.asarray(values).astype(target.dtype))

        _do(work)


_ADDED = frozenset(map(np.dtype, ("f2", "f4", "f8", "i4", "u4", "u8")))
_COMPARED = _ADDED - {np.dtype("f2")}
_ATOMIC = {"add": _ADDED, "subtract": _ADDED, "maximum": _COMPARED, "minimum": _COMPARED}

_UFUNC_NAMES = _words("""
    abs absolute add arccos arccosh arcsin arcsinh arctan arctan2 arctanh bitwise_and bitwise_not
    bitwise_or bitwise_xor cbrt ceil conj conjugate copysign cos cosh deg2rad divide equal exp exp2
    expm1 fabs floor floor_divide fmax fmin fmod greater greater_equal hypot invert isfinite isinf
    isnan left_shift less less_equal log log10 log1p log2 logaddexp logical_and logical_not
    logical_or logical_xor matmul maximum minimum mod multiply negative nextafter not_equal positive
    power rad2deg reciprocal remainder right_shift rint sign signbit sin sinh sqrt square subtract
    tan tanh true_divide trunc
""")
_UFUNCS = {name: ufunc(getattr(np, name)) for name in _UFUNC_NAMES}


def _host_key(shape: tuple[int, ...], key: Any) -> tuple[tuple[Any, ...], bool, bool]:
    """The key for NumPy, and whether integer arrays and masks are in it; checks every index."""
    items: list[Any] = []
    for item in key if isinstance(key, tuple) else (key,):
        if isinstance(item, np.ndarray):
            raise TypeError("a host array cannot index a device array")
        if isinstance(item, ndarray):
            item = item._host
        elif isinstance(item, (list, tuple)):
            item = np.asarray(item) if len(item) else np.zeros(0, np.int64)
        elif isinstance(item, (bool, np.bool_)):
            item = np.asarray(item)
        if isinstance(item, np.ndarray) and item.dtype.kind not in "biu":
            raise IndexError("arrays used as indices must be of integer or boolean type")
        items.append(item)

    def axes(item: Any) -> int:
        if item is None or item is Ellipsis:
            return 0
        return item.ndim if isinstance(item, np.ndarray) and item.dtype.kind == "b" else 1

    integers = masks = False
    axis, hidden = 0, len(shape) - sum(map(axes, items))
    for item in items:
        if isinstance(item, np.ndarray):
            if item.dtype.kind == "b":
                masks = True
            else:
                integers = True
                if axis < len(shape):
                    _refuse_wrapping(item, shape[axis])
        axis += hidden if item is Ellipsis else axes(item)
    return tuple(items), integers, masks


def _refuse_wrapping(indices: Any, size: int) -> None:
    indices = np.asarray(indices)
    if indices.size and (indices.min() < -size or indices.max() >= size):
        raise FakeDeviceError(
            f"index {indices.min()} or {indices.max()} is out of range for an axis of size {size}: "
            "CuPy would wrap silently; check indices on the host first"
        )


def _refuse_duplicates(positions: np.ndarray) -> None:
    if np.unique(positions).size != positions.size:
        raise FakeDeviceError("duplicate indices in an assignment: CuPy leaves the result undefined; use add.at")


def _refuse_overlap(target: np.ndarray) -> None:
    if target.flags.forc:
        return
    offsets = np.zeros((), np.int64)
    for length, stride in zip(target.shape, target.strides):
        offsets = np.add.outer(offsets, stride * np.arange(length))
    if np.unique(offsets).size != target.size:
        raise FakeDeviceError("a write through a view whose elements overlap: on a GPU its threads race")


class Flags:
    """The memory layout. CuPy has no `writeable`; it is there after `set_readonly` only."""

    def __init__(self, array: ndarray) -> None:
        self._readonly = not array._host.flags.writeable
        self.c_contiguous = array._host.flags.c_contiguous
        self.f_contiguous = array._host.flags.f_contiguous
        self.owndata = array._base is None
        self.forc = self.c_contiguous or self.f_contiguous
        self.fnc = self.f_contiguous and not self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())

    @property
    def writeable(self) -> bool:
        if self._readonly:
            return False
        raise AttributeError("CuPy's flags have no attribute 'writeable': use getattr(x.flags, 'writeable', True)")


def _binary(name: str, *, reflected: bool = False, inplace: bool = False) -> Callable[..., Any]:
    function = _UFUNCS[name]

    def operate(self: ndarray, other: Any) -> Any:
        if not isinstance(other, (ndarray, np.ndarray, *_SCALARS)):
            return NotImplemented
        if inplace:
            return function(self, other, out=self)
        return function(other, self) if reflected else function(self, other)

    return operate


def _comparison(name: str) -> Callable[..., Any]:
    function = _UFUNCS[name]

    def compare(self: ndarray, other: Any) -> Any:
        # Returning NotImplemented would let Python fall back to comparing identities.
        return function(self, other)

    return compare


def _unary(name: str) -> Callable[..., Any]:
    function = _UFUNCS[name]
    return lambda self: function(self)


class ndarray:
    """An array on the fake device; see the docstring of the file."""

    __slots__ = ("__weakref__", "_base", "_host")
    __array_ufunc__ = None  # NumPy then leaves operators to this class and refuses np.exp(x)
    __array_priority__ = 100
    __hash__ = None

    _host: np.ndarray
    _base: ndarray | None

    def __init__(self, shape: Any, dtype: Any = float, order: str = "C") -> None:
        self._host = _uninitialized(np.empty(shape, _supported(dtype), order))
        self._base = None
        _noted(self)

    # Conversions that CuPy refuses.

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(_IMPLICIT)

    def __array_function__(self, function: Any, kinds: Any, args: Any, kwargs: Any) -> Any:
        raise TypeError(f"{_IMPLICIT} (numpy.{function.__name__} was called with a device array)")

    # Conversions that CuPy allows, at the price of waiting for the device.

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> Any:
        _synchronize()
        if out is None:
            return np.array(self._host, order=order)
        out[...] = self._host
        return out

    def item(self) -> Any:
        _synchronize()
        return self._host.item()

    def tolist(self) -> Any:
        _synchronize()
        return self._host.tolist()

    def tobytes(self, order: str = "C") -> bytes:
        _synchronize()
        return self._host.tobytes(order)

    def _scalar(self) -> Any:
        _synchronize()
        if self.size != 1:
            raise TypeError("only size-1 arrays can be converted to Python scalars")
        return self._host.item()

    def __float__(self) -> float:
        return float(self._scalar())

    def __int__(self) -> int:
        return int(self._scalar())

    def __complex__(self) -> complex:
        return complex(self._scalar())

    def __bool__(self) -> bool:
        _synchronize()
        if self.size != 1:
            raise ValueError("The truth value of an array of another size than 1 is ambiguous")
        return bool(self._host.item())

    def __repr__(self) -> str:
        _synchronize()
        return repr(self._host)

    def __str__(self) -> str:
        _synchronize()
        return str(self._host)

    def __format__(self, spec: str) -> str:
        _synchronize()
        return format(self._host, spec)

    def __reduce__(self) -> Any:
        return asarray, (self.get(),)

    def __copy__(self) -> ndarray:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> ndarray:
        return self.copy()

    # What the array is.

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    base = property(lambda self: self._base)
    flags = property(Flags)
    device = property(lambda self: Device())
    T = property(lambda self: self.transpose())
    mT = property(lambda self: self.swapaxes(-1, -2))
    data = property(lambda self: types.SimpleNamespace(ptr=self._host.__array_interface__["data"][0]))

    @property
    def real(self) -> ndarray:
        return _wrap(self._host.real, self) if self.dtype.kind == "c" else self

    @real.setter
    def real(self, value: Any) -> None:
        self.real[...] = value

    @property
    def imag(self) -> ndarray:
        return _wrap(self._host.imag, self) if self.dtype.kind == "c" else zeros_like(self)

    @imag.setter
    def imag(self, value: Any) -> None:
        if self.dtype.kind != "c":
            raise TypeError("cannot set imag of a real array")
        self.imag[...] = value

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> ndarray:
        items, integers, masks = _host_key(self.shape, key)
        if masks:
            _synchronize()  # the host must learn how many elements there are
        if integers or masks:
            return _new(_do(lambda: np.array(self._host[items])))
        if not any(item is Ellipsis for item in items):
            items += (Ellipsis,)  # makes NumPy return a view, not a scalar, for a full index
        return _wrap(self._host[items], self)

    def __setitem__(self, key: Any, value: Any) -> None:
        values = _operand(value)
        items, integers, masks = _host_key(self.shape, key)
        if masks:
            _synchronize()
        if integers:
            _refuse_duplicates(np.arange(self.size).reshape(self.shape)[items])
        elif not masks:
            _refuse_overlap(self._host[items if any(item is Ellipsis for item in items) else (*items, Ellipsis)])

        def work() -> None:
            with _device_rules():
                self._host[items] = values

        _do(work)

    # Methods that are no module functions, or whose arguments differ from theirs.

    def astype(
        self,
        dtype: Any,
        order: str = "K",
        casting: Any = None,
        subok: Any = None,
        copy: bool = True,
    ) -> ndarray:
        def work() -> Any:
            with _device_rules():
                return self._host.astype(_supported(dtype), order, copy=copy)

        return _computed(work, self)

    def view(self, dtype: Any = None) -> ndarray:
        host = self._host.view() if dtype is None else self._host.view(_supported(dtype))
        return _wrap(host, self)

    def reshape(self, *shape: Any, order: str = "C") -> ndarray:
        (new_shape,) = shape if len(shape) == 1 else (shape,)
        return _computed(lambda: self._host.reshape(_plain(new_shape), order=order), self)

    def transpose(self, *axes: Any) -> ndarray:
        return _wrap(self._host.transpose(*_plain(axes)), self)

    def ravel(self, order: str = "C") -> ndarray:
        return _computed(lambda: self._host.ravel(order), self)

    def flatten(self, order: str = "C") -> ndarray:
        return _new(_do(lambda: self._host.flatten(order)))

    def copy(self, order: str = "C") -> ndarray:
        return _new(_do(lambda: self._host.copy(order)))

    def fill(self, value: Any) -> None:
        if isinstance(value, ndarray) and value.ndim:
            raise ValueError("non-scalar cupy.ndarray cannot be used for fill")
        self[...] = value

    def clip(self, min: Any = None, max: Any = None, out: Any = None) -> ndarray:
        return clip(self, min, max, out)

    def sort(self, axis: int = -1, kind: Any = None) -> None:
        self._host.sort(axis)

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError("Only numpy.ndarray can be set to cupy.ndarray")
        if arr.shape != self.shape or arr.dtype != self.dtype:
            raise ValueError("Shape or dtype mismatch")
        if _recording is not None:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the host's memory is read when the graph runs")
        self._host[...] = arr

    # Operators. CuPy has no `__imatmul__`, so `x @= y` rebinds x, and no `__index__`.

    __neg__, __pos__, __abs__ = _unary("negative"), _unary("positive"), _unary("absolute")
    __invert__ = _unary("invert")
    __eq__, __ne__ = _comparison("equal"), _comparison("not_equal")
    __lt__, __le__ = _comparison("less"), _comparison("less_equal")
    __gt__, __ge__ = _comparison("greater"), _comparison("greater_equal")


_OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "true_divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "power",
    "matmul": "matmul",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "left_shift",
    "rshift": "right_shift",
}
for _operator, _name in _OPERATORS.items():
    setattr(ndarray, f"__{_operator}__", _binary(_name))
    setattr(ndarray, f"__r{_operator}__", _binary(_name, reflected=True))
    if _operator != "matmul":
        setattr(ndarray, f"__i{_operator}__", _binary(_name, inplace=True))


def _plain(x: Any) -> Any:
    """Refuses arrays where CuPy wants Python integers (a shape, axes)."""
    found: list[ndarray] = []
    lowered = _lower(x, found)
    if found:
        raise TypeError("'cupy.ndarray' object cannot be interpreted as an integer")
    return lowered


def _uninitialized(host: np.ndarray) -> np.ndarray:
    """Fills fresh memory with the worst that may be in it, so that reading it too early shows."""
    kind = host.dtype.kind
    host.fill(np.nan if kind in "fcV" else True if kind == "b" else np.iinfo(host.dtype).max)
    return host


# Creation. `asarray` and `array` are the only ways from the host to the device.


def _holds(obj: Any, kind: type) -> bool:
    if isinstance(obj, (tuple, list)):
        return any(_holds(part, kind) for part in obj)
    return isinstance(obj, kind)


def _from_anything(obj: Any, dtype: Any, order: str) -> np.ndarray:
    if _holds(obj, ndarray):  # in a list: CuPy stacks them, and refuses host arrays among them
        if _holds(obj, np.ndarray):
            raise TypeError("Unsupported type: host and device arrays in one list")
        stacked = np.stack([asarray(part)._host for part in obj])
        return stacked if dtype is None else stacked.astype(dtype)
    host = np.array(obj, dtype=dtype, order=order)
    return host.astype(host.dtype.newbyteorder("="), copy=False)


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    """A new device array from anything; with copy=False a device array may be returned as it is."""
    if isinstance(obj, ndarray):
        host = obj._host
        if copy:
            result = _new(_do(lambda: np.array(host, dtype=dtype, order=order)))
        else:
            result = _computed(lambda: np.asarray(host, dtype=dtype, order=order), obj)
    else:
        result = _new(_from_anything(obj, dtype, order))
        _allocate_pinned(result.nbytes)
    return result if result.ndim >= ndmin else result[(None,) * (ndmin - result.ndim)]


def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False) -> ndarray:
    """The explicit upload: host arrays are copied, device arrays returned as they are."""
    return array(a, dtype, bool(copy), order or "K")


def ascontiguousarray(a: Any, dtype: Any = None) -> ndarray:
    """A row-major device array; the array itself where it is one already."""
    return array(a, dtype, False, "C", ndmin=1)


def asnumpy(
    a: Any,
    stream: Any = None,
    order: str = "C",
    out: Any = None,
    *,
    blocking: bool = True,
) -> np.ndarray:
    """The explicit download."""
    return a.get(order=order, out=out) if isinstance(a, ndarray) else np.asarray(a, order=order)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """Memory that must be written before it is read."""
    return ndarray(_plain(shape), dtype, order)


def full(shape: Any, fill_value: Any, dtype: Any = None, order: str = "C") -> ndarray:
    """An array of one value."""
    value = _operand(fill_value)
    kind = _supported(dtype or np.asarray(value).dtype)
    return _new(_do(lambda: np.full(_plain(shape), value, kind, order)))


def zeros(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """An array of zeros."""
    return full(shape, 0, dtype or float, order)


def ones(shape: Any, dtype: Any = float, order: str = "C") -> ndarray:
    """An array of ones."""
    return full(shape, 1, dtype or float, order)


def empty_like(
    prototype: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None
) -> ndarray:
    """As `empty`, in the layout of a device array."""
    host = np.empty_like(_memory(prototype), dtype, order, shape=_plain(shape))
    return _new(_uninitialized(host))


def full_like(
    a: ndarray,
    fill_value: Any,
    dtype: Any = None,
    order: str = "K",
    subok: Any = None,
    shape: Any = None,
) -> ndarray:
    """As `full`, in the layout of a device array."""
    result = empty_like(a, dtype, order, shape=shape)
    result.fill(fill_value)
    return result


def zeros_like(a: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    """As `zeros`, in the layout of a device array."""
    return full_like(a, 0, dtype, order, shape=shape)


def ones_like(a: ndarray, dtype: Any = None, order: str = "K", subok: Any = None, shape: Any = None) -> ndarray:
    """As `ones`, in the layout of a device array."""
    return full_like(a, 1, dtype, order, shape=shape)


def _creation(name: str, positional: int, keywords: str) -> Callable[..., Any]:
    allowed = frozenset(keywords.split())

    def create(*args: Any, **kwargs: Any) -> Any:
        if len(args) > positional or not allowed.issuperset(kwargs):
            raise TypeError(f"{name}() of CuPy does not take these arguments")
        return _wrap(_do(lambda: getattr(np, name)(*_plain(args), **_plain(kwargs))))

    create.__name__ = name
    return create


# Functions with arguments of their own.


def where(condition: ndarray, x: Any = None, y: Any = None) -> Any:
    """A choice by element; with the condition alone, the indices of its nonzero elements."""
    chosen = _memory(condition)
    if x is None and y is None:
        _synchronize()
        return _wrap(np.nonzero(chosen))
    if x is None or y is None:
        raise ValueError("Must provide both 'x' and 'y' or neither.")
    a, b = _operand(x), _operand(y)
    dtype = result_type(x, y)

    def work() -> Any:
        with _device_rules():
            return np.where(chosen, np.asarray(a, dtype), np.asarray(b, dtype))

    return _new(_do(work))


def clip(a: ndarray, a_min: Any, a_max: Any, out: Any = None) -> ndarray:
    """Limits the values; CuPy has both bounds positional, and None for an open one."""
    if a_min is None and a_max is None:
        raise ValueError("array_clip: must set either max or min")
    low, high = (None if bound is None else _operand(bound) for bound in (a_min, a_max))

    def work() -> Any:
        with _device_rules():
            return np.asarray(np.clip(_memory(a), low, high, None if out is None else _memory(out)))

    result = _do(work)
    return _wrap(result) if out is None else out


def reshape(a: ndarray, newshape: Any, order: str = "C") -> ndarray:
    """Another shape, as a view where possible."""
    _memory(a)
    return a.reshape(newshape, order=order)


def real(val: Any) -> Any:
    """The real part, a view."""
    _memory(val)
    return val.real


def imag(val: Any) -> Any:
    """The imaginary part, a view where there is one."""
    _memory(val)
    return val.imag


def take(a: ndarray, indices: Any, axis: Any = None, out: Any = None) -> ndarray:
    """Elements along an axis; CuPy has no `mode`, it always wraps."""
    source = _memory(a)
    chosen = indices if isinstance(indices, (int, np.integer)) else _memory(indices)
    _refuse_wrapping(chosen, a.size if axis is None else a.shape[axis])
    result = _do(lambda: np.array(np.take(source, chosen, axis, None if out is None else _memory(out), "wrap")))
    return _new(result) if out is None else out


def take_along_axis(a: ndarray, indices: ndarray, axis: Any) -> ndarray:
    """One element for each index, along an axis."""
    source, chosen = _memory(a), _memory(indices)
    if chosen.dtype.kind not in "iu":
        raise IndexError("`indices` must be an integer array")
    _refuse_wrapping(chosen, a.size if axis is None else a.shape[axis])
    return _new(_do(lambda: np.take_along_axis(source, chosen, axis)))


def put_along_axis(arr: ndarray, indices: ndarray, values: Any, axis: int) -> None:
    """Writes one element for each index, along an axis."""
    target, chosen, new = _memory(arr), _memory(indices), _operand(values)
    _refuse_wrapping(chosen, arr.shape[axis])
    positions = np.arange(arr.size).reshape(arr.shape)
    _refuse_duplicates(np.take_along_axis(positions, chosen, axis))
    _do(lambda: np.put_along_axis(target, chosen, new, axis))


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    """Writes into an array, where a mask allows it."""
    target, source = _memory(dst), _operand(src)
    _refuse_overlap(target)

    def work() -> None:
        with _device_rules():
            np.copyto(target, source, casting, True if where is None else _memory(where))

    _do(work)


def broadcast_to(array: ndarray, shape: Any) -> ndarray:
    """A view of another shape; CuPy lets one write to it, which races, so here it is read-only."""
    host = _memory(array)
    return array if host.shape == shape else _wrap(np.broadcast_to(host, _plain(shape)), array)


def broadcast_arrays(*args: ndarray) -> list[ndarray]:
    """Views of one common shape."""
    shape = np.broadcast_shapes(*(_memory(x).shape for x in args))
    return [broadcast_to(x, shape) for x in args]


def einsum(*operands: Any, **kwargs: Any) -> ndarray:
    """A sum of products by subscripts."""
    if not isinstance(operands[0], str) or not {"dtype", "optimize"}.issuperset(kwargs):
        raise TypeError("einsum() takes subscripts, device arrays, dtype and optimize")
    hosts = [_memory(x) for x in operands[1:]]

    def work() -> Any:
        with _device_rules():
            return np.asarray(np.einsum(operands[0], *hosts, **kwargs))

    return _computed(work, *operands[1:])


def as_strided(x: ndarray, shape: Any = None, strides: Any = None) -> ndarray:
    """A view of any shape and strides; CuPy checks neither, here one that leaves the memory of x is refused."""
    host = _memory(x)
    shape = host.shape if shape is None else _plain(tuple(shape))
    strides = host.strides if strides is None else _plain(tuple(strides))
    reach = [(length - 1) * stride for length, stride in zip(shape, strides)]
    start = host.__array_interface__["data"][0]
    first, last = start + sum(min(r, 0) for r in reach), start + sum(max(r, 0) for r in reach) + host.itemsize
    low, high = (np if _OLD_NUMPY else np.lib.array_utils).byte_bounds(host)
    if 0 not in shape and not low <= first <= last <= high:
        raise FakeDeviceError(f"shape {shape} with strides {strides} leaves the memory of an array {host.shape}")
    return _new(np.lib.stride_tricks.as_strided(host, shape, strides))  # CuPy's view has no base either


def meshgrid(*xi: ndarray, indexing: str = "xy", sparse: bool = False, copy: bool = True) -> Any:
    """Coordinate arrays."""
    return tuple(map(_new, np.meshgrid(*map(_memory, xi), indexing=indexing, sparse=sparse)))


def ix_(*args: Any) -> tuple[ndarray, ...]:
    """An open mesh of index arrays."""
    return tuple(map(_new, np.ix_(*(_memory(asarray(x)) for x in args))))


def result_type(*arrays_and_dtypes: Any) -> np.dtype:
    """The dtype of an operation; arrays count by their dtype, Python scalars are weak."""
    kinds = [x.dtype if isinstance(x, (ndarray, np.generic)) else x for x in arrays_and_dtypes]
    with _device_rules():
        return np.result_type(*_plain(kinds))


def array_equal(a1: ndarray, a2: ndarray, equal_nan: bool = False) -> ndarray:
    """Whether shapes and elements agree, as a 0-d array."""
    return _wrap(np.array_equal(_memory(a1), _memory(a2), equal_nan))


def _atleast(ndim: int) -> Callable[..., Any]:
    def promote(*arys: Any) -> Any:
        results = [array(_operand_array(x), copy=False, ndmin=ndim) for x in arys]
        return results[0] if len(results) == 1 else results

    return promote


def _operand_array(x: Any) -> Any:
    _operand(x)
    return x


# Functions that NumPy computes as CuPy does. The number is how many leading arguments must be
# device arrays (0: the first must be a sequence of them); then the arguments that CuPy takes, as in
# its signatures, those after the star by keyword only. An argument NumPy has and CuPy lacks, such
# as `where` or `initial`, is refused.
_REDUCTION = "axis out keepdims"
_SUM = "axis dtype out keepdims"
_VARIANCE = "axis dtype out ddof keepdims"
_FUNCTIONS = {
    "all": (1, _REDUCTION),
    "allclose": (-2, "rtol atol equal_nan"),
    "amax": (1, _REDUCTION),
    "amin": (1, _REDUCTION),
    "any": (1, _REDUCTION),
    "argmax": (1, "axis * out keepdims"),
    "argmin": (1, "axis * out keepdims"),
    "argsort": (1, "axis kind"),
    "argwhere": (1, ""),
    "around": (1, "decimals out"),
    "array_split": (1, "indices_or_sections axis"),
    "bincount": (1, "weights minlength"),
    "concatenate": (0, "axis out * dtype casting"),
    "count_nonzero": (1, "axis"),
    "cumprod": (1, "axis dtype out"),
    "cumsum": (1, "axis dtype out"),
    "diag": (1, "k"),
    "diagonal": (1, "offset axis1 axis2"),
    "diff": (1, "n axis"),
    "dot": (2, "out"),
    "expand_dims": (1, "axis"),
    "flatnonzero": (1, ""),
    "flip": (1, "axis"),
    "fliplr": (1, ""),
    "flipud": (1, ""),
    "hstack": (0, "* dtype casting"),
    "inner": (2, ""),
    "isclose": (-2, "rtol atol equal_nan"),
    "iscomplex": (1, ""),
    "isneginf": (1, "out"),
    "isposinf": (1, "out"),
    "isreal": (1, ""),
    "kron": (2, ""),
    "max": (1, _REDUCTION),
    "mean": (1, _SUM),
    "median": (1, _REDUCTION),
    "min": (1, _REDUCTION),
    "moveaxis": (1, "source destination"),
    "nan_to_num": (1, "copy nan posinf neginf"),
    "nanmax": (1, _REDUCTION),
    "nanmean": (1, _SUM),
    "nanmin": (1, _REDUCTION),
    "nansum": (1, _SUM),
    "nonzero": (1, ""),
    "outer": (2, "out"),
    "pad": (1, "pad_width mode * constant_values end_values stat_length reflect_type"),
    "prod": (1, _SUM),
    "ravel": (1, "order"),
    "repeat": (1, "repeats axis"),
    "roll": (1, "shift axis"),
    "rot90": (1, "k axes"),
    "round": (1, "decimals out"),
    "searchsorted": (2, "side sorter"),
    "sort": (1, "axis kind"),
    "split": (1, "indices_or_sections axis"),
    "squeeze": (1, "axis"),
    "stack": (0, "axis out * dtype casting"),
    "std": (1, _VARIANCE),
    "sum": (1, _SUM),
    "swapaxes": (1, "axis1 axis2"),
    "tensordot": (2, "axes"),
    "tile": (1, "reps"),
    "trace": (1, "offset axis1 axis2 dtype out"),
    "transpose": (1, "axes"),
    "tril": (1, "k"),
    "triu": (1, "k"),
    "unique": (1, "return_index return_inverse return_counts axis * equal_nan"),
    "var": (1, _VARIANCE),
    "vdot": (2, ""),
    "vstack": (0, "* dtype casting"),
}
_METHODS = _words("""
    all any argmax argmin argsort conj conjugate cumprod cumsum diagonal dot max mean min nonzero
    prod repeat round searchsorted squeeze std sum swapaxes take trace var
""")
_WAITING = frozenset(("argwhere", "bincount", "flatnonzero", "nonzero", "unique"))
_COPIED_BY_ADDRESS = 8  # CuPy joins more arrays than this by a table of addresses, which it copies from the host


def _function(name: str, arrays: int, parameters: str, host: Any = None) -> Callable[..., Any]:
    host = getattr(np, name) if host is None else host
    before, _, after = parameters.partition("*")
    positional = max(1, abs(arrays)) + len(before.split())
    allowed = frozenset(before.split() + after.split())

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > positional or not allowed.issuperset(kwargs):
            raise TypeError(f"{name}() of CuPy takes: {abs(arrays) or 1} array(s), {parameters}")
        if len(args) < max(1, abs(arrays)):
            raise TypeError(f"{name}() takes its arrays by position")
        found: list[ndarray] = []
        lowered, named = _lower(args, found), {k: _lower(v, found) for k, v in kwargs.items()}
        if arrays == 0:
            leading = args[0] if isinstance(args[0], (tuple, list)) else (args[0],)
        else:
            leading = args[: abs(arrays)]
        for x in leading:  # a negative number lets one of the two be a scalar
            _operand(x) if arrays < 0 else _memory(x)
        if name in _WAITING:
            _synchronize()
        if arrays == 0 and len(leading) > _COPIED_BY_ADDRESS:
            _allocate_pinned(8 * len(leading))

        # NumPy warns of empty slices as Python warnings, CuPy never does.
        def work() -> Any:
            with _device_rules(), warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                return _arrays(host(*lowered, **named))

        return _computed(work, *found)

    call.__name__ = name
    return call


def _method(function: Any) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: function(self, *args, **kwargs)


_MODULE_FUNCTIONS: dict[str, Any] = {name: _function(name, *signature) for name, signature in _FUNCTIONS.items()}
_MODULE_FUNCTIONS |= {
    function.__name__: function
    for function in (
        array,
        array_equal,
        asarray,
        ascontiguousarray,
        asnumpy,
        broadcast_arrays,
        broadcast_to,
        clip,
        copyto,
        einsum,
        empty,
        empty_like,
        full,
        full_like,
        imag,
        ix_,
        meshgrid,
        ones,
        ones_like,
        put_along_axis,
        real,
        reshape,
        result_type,
        take,
        take_along_axis,
        where,
        zeros,
        zeros_like,
    )
}
_MODULE_FUNCTIONS |= {
    "arange": _creation("arange", 4, "dtype"),
    "atleast_1d": _atleast(1),
    "atleast_2d": _atleast(2),
    "concat": _MODULE_FUNCTIONS["concatenate"],
    "eye": _creation("eye", 5, "M k dtype order"),
    "identity": _creation("identity", 2, "dtype"),
    "linspace": _creation("linspace", 4, "num endpoint dtype axis"),
    "tri": _creation("tri", 4, "M k dtype"),
}
for _name in _METHODS:
    setattr(ndarray, _name, _method(_MODULE_FUNCTIONS.get(_name) or _UFUNCS[_name]))


def _on_host(name: str) -> Callable[..., Any]:
    """A function whose answer CuPy knows without the device: a shape, a dtype, an overlap."""

    def ask(*args: Any, **kwargs: Any) -> Any:
        return getattr(np, name)(*_lower(args, []), **kwargs)

    ask.__name__ = name
    return ask


_HOST_ANSWERS = _words("""
    broadcast_shapes can_cast iscomplexobj isrealobj isscalar issubdtype may_share_memory ndim
    promote_types shape shares_memory size
""")
_CONSTANTS = _words("""
    bool_ complex64 complex128 complexfloating dtype e finfo float16 float32 float64 floating
    generic iinfo inexact inf int8 int16 int32 int64 integer intp nan newaxis number pi
    signedinteger uint8 uint16 uint32 uint64 uintp unsignedinteger
""")


class Generator:
    """The draws of CuPy's generator, which has neither permutations nor choices."""

    def __init__(self, seed: Any = None) -> None:
        self._host = np.random.default_rng(seed)

    def _draw(self, method: str, size: Any, dtype: Any, out: Any) -> ndarray:
        size = () if size is None and out is None else _plain(size)
        host = None if out is None else _memory(out)
        result = getattr(self._host, method)(size, dtype=np.dtype(dtype), out=host)
        return _wrap(result) if out is None else out

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> ndarray:
        return self._draw("random", size, dtype, out)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> ndarray:
        return self._draw("standard_normal", size, dtype, out)

    def integers(
        self,
        low: int,
        high: int | None = None,
        size: Any = None,
        dtype: Any = np.int64,
        endpoint: bool = False,
    ) -> ndarray:
        return _wrap(self._host.integers(low, high, _plain(size), dtype, endpoint))

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None, dtype: Any = np.float64) -> ndarray:
        return _wrap(np.asarray(self._host.uniform(low, high, _plain(size)), dtype))


class Device:
    """The one device."""

    pci_bus_id = "0000:01:00.0"

    def __init__(self, device: Any = None) -> None:
        if device not in (None, 0):
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = 0

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device)

    def __hash__(self) -> int:
        return self.id

    def use(self) -> None:
        """There is no other device to choose."""

    def synchronize(self) -> None:
        _synchronize()


class Stream:
    """A stream; work is done immediately whichever it is given to."""

    null: Stream
    current: Stream

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: Any = None
    ) -> None:
        self.ptr = 0 if null else id(self)
        self._before: list[Stream] = []

    def __enter__(self) -> Stream:
        self._before.append(Stream.current)
        Stream.current = self
        return self

    def __exit__(self, *error: object) -> None:
        Stream.current = self._before.pop()

    def record(self, event: Any = None) -> Any:
        return types.SimpleNamespace(stream=self)

    def wait_event(self, event: Any) -> None:
        """All work is done immediately, so nothing is left to wait for."""

    def begin_capture(self, mode: Any = None) -> None:
        """From here to `end_capture`, work is recorded."""
        global _recording
        if self.ptr == 0 or Stream.current is not self or _recording is not None:
            raise CUDARuntimeError("only the current stream, not the null stream, can be captured")
        _recording = []

    def end_capture(self) -> Graph:
        global _recording
        if _recording is None:
            raise CUDARuntimeError("no capture was begun")
        graph, _recording = Graph(_recording), None
        return graph

    def synchronize(self) -> None:
        _synchronize()

    @property
    def done(self) -> bool:
        return True


Stream.null = Stream.current = Stream(null=True)


class Graph:
    """Recorded work. A GPU has not done it yet, so what it would have written is filled with the worst."""

    def __init__(self, work: list[tuple[Callable[[], Any], Any]]) -> None:
        self._work = work
        for _, result in work:
            for array in result if isinstance(result, (tuple, list)) else (result,):
                if isinstance(array, np.ndarray) and array.flags.writeable:
                    _uninitialized(array)

    def launch(self, stream: Any = None) -> None:
        global launches
        launches += 1
        for work, result in self._work:
            again = work()
            if result is None:
                continue
            if isinstance(result, np.ndarray):
                result, again = (result,), (again,)
            for old, new in zip(result, again):
                if old is not new and old.flags.writeable:
                    old[...] = new


class MemoryPool:
    """A pool of memory; here all memory is the host's."""

    def malloc(self, size: int) -> Any:
        return None

    def total_bytes(self) -> int:
        return 0


@contextlib.contextmanager
def using_allocator(allocator: Any = None) -> Iterator[None]:
    """Memory from another pool, which is the same here."""
    yield


class PinnedMemoryPool(MemoryPool):
    """Memory of the host through which copies to the device go."""


_pinned = PinnedMemoryPool()
_allocate_pinned: Callable[[int], Any] = _pinned.malloc


def set_pinned_memory_allocator(allocator: Callable[[int], Any] = _pinned.malloc) -> None:
    """What every copy from the host calls first, to allocate memory."""
    global _allocate_pinned
    _allocate_pinned = allocator


class CUDARuntimeError(RuntimeError):
    """Never raised here; code may name it in an `except`."""


def erf(x: Any, out: Any = None) -> ndarray:
    """The error function in the dtype of x."""
    host = np.asarray(_operand(x))
    if host.dtype.kind == "c":
        raise TypeError("Wrong type of arguments for cupyx_scipy_special_erf")
    dtype = host.dtype if host.dtype.kind == "f" else np.dtype(float)
    values = np.array([math.erf(v) for v in host.ravel().tolist()], dtype).reshape(host.shape)
    if out is None:
        return _new(values)
    out[...] = _new(values)
    return out


def set_readonly(x: ndarray) -> ndarray:
    """For tests only: writing to x, or to views made from now on, raises ValueError."""
    x._host.flags.writeable = False
    return x


class RawModule(cuda_emulator.RawModule):
    """Kernels, run on the CPU; see cuda_emulator.py."""

    def get_function(self, name: str) -> Any:
        function = super().get_function(name)
        function.run, function.at_address = _launch, _at_address
        return function


def load_nvidia_dynamic_lib(name: str) -> Any:
    """Where NVIDIA's library lies: here one of ours, with the functions that minivit calls."""
    path = str(cuda_emulator.stand_in_for(name))
    library = ctypes.CDLL(path)
    library.repeat.restype = None

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)
    def note(number: int) -> bool:
        _note(lambda: library.repeat(number), None)
        return _recording is not None

    library.note_products(note)
    _callbacks.append(note)  # the library calls it for as long as the program runs
    return types.SimpleNamespace(abs_path=path)


_callbacks: list[Any] = []


def make_modules() -> dict[str, types.ModuleType]:
    """The modules to put into `sys.modules`."""
    modules = {
        name: types.ModuleType(name)
        for name in (
            "cupy",
            "cupy.cuda",
            "cupy.cuda.nccl",
            "cupy.cuda.runtime",
            "cupy.lib",
            "cupy.lib.stride_tricks",
            "cupy.linalg",
            "cupy.random",
            "cupyx",
            "cupyx.scipy",
            "cupyx.scipy.special",
            "cuda",
            "cuda.pathfinder",
        )
    }
    cupy = modules["cupy"]
    vars(cupy).update(_MODULE_FUNCTIONS)
    vars(cupy).update(_UFUNCS)
    vars(cupy).update({name: getattr(np, name) for name in _CONSTANTS})
    vars(cupy).update({name: _on_host(name) for name in _HOST_ANSWERS})

    def get_array_module(*args: Any) -> types.ModuleType:
        return cupy if any(isinstance(x, ndarray) for x in args) else np

    vars(modules["cuda.pathfinder"]).update(load_nvidia_dynamic_lib=load_nvidia_dynamic_lib)
    vars(cupy).update(RawModule=RawModule, get_default_pinned_memory_pool=lambda: _pinned)
    vars(cupy).update(ndarray=ndarray, ufunc=ufunc, get_array_module=get_array_module, __version__="14.2.0")
    vars(modules["cupy.linalg"]).update(norm=_function("linalg.norm", 1, "ord axis keepdims", np.linalg.norm))
    vars(modules["cupy.lib.stride_tricks"]).update(as_strided=as_strided)
    vars(modules["cupy.random"]).update(default_rng=Generator, Generator=Generator)
    vars(modules["cupy.cuda"]).update(
        is_available=lambda: True,
        Device=Device,
        Stream=Stream,
        MemoryPool=MemoryPool,
        get_current_stream=lambda: Stream.current,
        set_pinned_memory_allocator=set_pinned_memory_allocator,
        using_allocator=using_allocator,
    )
    vars(modules["cupy.cuda.runtime"]).update(
        getDeviceCount=lambda: 1,
        deviceSynchronize=_synchronize,
        runtimeGetVersion=lambda: 0,
        getDeviceProperties=lambda device: {"name": b"fake"},
        CUDARuntimeError=CUDARuntimeError,
    )
    vars(modules["cupy.cuda.nccl"]).update(available=False)  # as where NCCL is not installed; see nccl_on_mpi.py
    vars(modules["cupyx"]).update(scatter_add=_UFUNCS["add"].at)
    vars(modules["cupyx.scipy.special"]).update(erf=erf)
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
        module.__path__ = []  # lets `import cupyx.scipy.special` walk through sys.modules
    return modules


def _forget_replacements() -> None:
    products = sys.modules.get(f"{REPLACEMENTS}.products")
    if products is not None:  # the choice of each function keeps the module, and so a workspace for each fake
        vars(products._handles).clear()
    for name in [name for name in sys.modules if name == REPLACEMENTS or name.startswith(f"{REPLACEMENTS}.")]:
        del sys.modules[name]
    package, _, name = REPLACEMENTS.rpartition(".")
    if package in sys.modules:
        vars(sys.modules[package]).pop(name, None)
        sys.modules[f"{package}.dispatch"].replacements.cache_clear()


@contextlib.contextmanager
def installed() -> Iterator[types.ModuleType]:
    """Makes `import cupy` give the fake, counts from zero, and puts everything back afterwards."""
    global launches, synchronizations
    faked = ("cupy", "cupyx", "cuda")
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in faked}
    modules = make_modules()
    for name in before:
        del sys.modules[name]
    _forget_replacements()
    sys.modules.update(modules)
    synchronizations = launches = 0
    try:
        yield modules["cupy"]
    finally:
        for name in [n for n in sys.modules if n.partition(".")[0] in faked]:
            del sys.modules[name]
        sys.modules.update(before)
        _forget_replacements()
