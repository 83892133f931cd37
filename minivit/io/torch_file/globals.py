"""The plain data that a pickle may name: each name maps to a function of this library, never to an import.

Python's containers, argparse.Namespace, yacs' CfgNode, and NumPy's numbers and arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minivit.io.text import quoted
from minivit.io.torch_file.bounds import DAMAGED, Unreadable, check

MAX_NDIM = 32  # NumPy 1 stops there
_CODES = {f"{kind}{size}" for kind, sizes in {"b": "1", "i": "1248", "u": "1248", "f": "248"}.items() for size in sizes}
_CODES |= {"c8", "c16"}
_KEYS = (str, bytes, float, bool, type(None))


class Named:
    """The placeholder of a global in the file: its name and, if it may be called, our own function.

    As data, such as in `{"dtype": torch.float32}`, it becomes its name.
    """

    __slots__ = ("make", "name", "new")

    def __init__(self, name: str, make: Callable[..., Any] | None = None, new: Callable[[], Any] | None = None) -> None:
        self.name, self.make = name, make
        self.new = new  # an empty instance, for classes that are rebuilt from their attributes


class Attributes(dict[str, Any]):
    """An object whose attributes are its data; the reader returns them as a plain dict."""

    def build(self, state: Any) -> None:
        """Take the attributes."""
        check(type(state) is dict and all(type(name) is str for name in state), _damaged("Namespace"))
        self.update(state)


class NumpyType:
    """A NumPy dtype, whose byte order comes after it in the pickle."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order: Any = "="

    def build(self, state: Any) -> None:
        """Read the byte order from the dtype's state."""
        check(type(state) is tuple and len(state) >= 2 and _is_one_of(state[1], "<>|="), _damaged("NumPy dtype"))
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype itself."""
        return np.dtype(self.code).newbyteorder(self.order)


class NumpyArray:
    """A NumPy array, whose content comes after it in the pickle."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None

    def build(self, state: Any) -> None:
        """Read the content from the array's state."""
        check(type(state) is tuple and len(state) == 5, _damaged("NumPy array"))
        _, shape, dtype, fortran, raw = state
        self.value = _array(raw, dtype, shape, "F" if type(fortran) in (bool, int) and fortran else "C")


def is_key(key: Any) -> bool:
    """Whether it may be a key of a dict or an element of a set.

    Nested tuples could take forever to hash. Unlike text, whose hash differs from run to run, numbers can be chosen so
    that thousands have the same hash, and a dict of those takes hours: integers are limited to those equal to their
    hash.
    """
    if type(key) is int:
        return abs(key) < 1 << 61
    if type(key) is tuple:
        return len(key) <= 4 and all(type(part) is str or (type(part) is int and abs(part) < 1 << 16) for part in key)
    return type(key) in _KEYS or (isinstance(key, np.generic) and key.dtype.kind != "c")


def check_keys(keys: Any) -> None:
    """Raise Unreadable unless all of them may be keys."""
    for key in keys:
        if not is_key(key):
            raise Unreadable(
                f"has {quoted(key)} as a key of a dict or in a set, where only text and common numbers are "
                "allowed: save only the state dict"
            )


def _is_one_of(value: Any, letters: str) -> bool:
    return type(value) is str and len(value) == 1 and value in letters


def _damaged(what: str) -> str:
    return f"holds a {what} that makes no sense: {DAMAGED}"


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    if type(pairs) is dict:  # a Counter
        return dict(pairs)
    check(type(pairs) in (list, tuple), _damaged("dict"))
    for pair in pairs:
        check(type(pair) in (list, tuple) and len(pair) == 2, _damaged("dict"))
    check_keys(pair[0] for pair in pairs)
    return {pair[0]: pair[1] for pair in pairs}


def _attributes() -> Attributes:
    return Attributes()


def _default_dict(factory: Any = None) -> dict[Any, Any]:
    check(factory is None or isinstance(factory, Named), _damaged("defaultdict"))
    return {}


def _set(items: Any = ()) -> set[Any]:
    check(type(items) in (list, tuple), _damaged("set"))
    check_keys(items)
    return set(items)


def _frozen_set(items: Any = ()) -> frozenset[Any]:
    return frozenset(_set(items))


def _complex(real: Any, imag: Any) -> complex:
    check(type(real) is float and type(imag) is float, _damaged("complex number"))
    return complex(real, imag)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """How pickle protocol 2 writes bytes."""
    check(
        type(text) is str and type(encoding) is str and encoding in ("latin1", "latin-1"), _damaged("sequence of bytes")
    )
    return bytes(text, "latin-1")


def _byte_string(value: Any = b"") -> bytes:
    check(type(value) is bytes, _damaged("sequence of bytes"))
    return bytes(value)


def _byte_array(value: Any = b"", encoding: Any = "latin1") -> bytearray:
    return bytearray(_encode(value, encoding) if type(value) is str else _byte_string(value))


def _reconstructor(cls: Any, base: Any, state: Any) -> Any:
    """How copyreg builds an object of a class without its own rule, in pickle protocols 0 and 1."""
    check(isinstance(cls, Named) and cls.new is not None and isinstance(base, Named), _damaged("copied object"))
    made = cls.new()
    if base.name == "builtins.dict":
        made.update(_dict(state))
    return made


def _numpy_type(code: Any, *_: Any) -> NumpyType:
    check(type(code) is str, _damaged("NumPy dtype"))
    if code not in _CODES:
        raise Unreadable(f"holds NumPy data of dtype {quoted(code)}, and only numbers are read: save it without them")
    return NumpyType(code)


def _numpy_array(cls: Any, *_: Any) -> NumpyArray:
    """The empty array that NumPy makes first, before its state is set."""
    check(isinstance(cls, Named) and cls.name == "numpy.ndarray", _damaged("NumPy array"))
    return NumpyArray()


def _numpy_scalar(dtype: Any, raw: Any) -> Any:
    return _array(raw, dtype, (), "C")[()]


def _numpy_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """How NumPy writes an array in pickle protocol 5."""
    check(_is_one_of(order, "CF"), _damaged("NumPy array"))
    return _array(raw, dtype, shape, order)


def _array(raw: Any, dtype: Any, shape: Any, order: Any) -> Any:
    check(isinstance(dtype, NumpyType), _damaged("NumPy array"))
    check_shape(shape, dtype.dtype.itemsize)
    if type(raw) is str:  # Python 2 wrote bytes as text, which `unpickler.py` decoded
        raw = raw.encode("utf-8", "surrogatepass")
    check(type(raw) in (bytes, bytearray), _damaged("NumPy array"))
    expected = math.prod(shape) * dtype.dtype.itemsize
    check(len(raw) == expected, f"holds {len(raw)} bytes for a NumPy array of {expected}: {DAMAGED}")
    array = np.frombuffer(bytes(raw), np.uint8)  # bytes of bytes are the same bytes: nothing is copied
    array = array != 0 if dtype.code == "b1" else array.view(dtype.dtype)
    array = array.astype(array.dtype.newbyteorder("="), copy=False).reshape(shape, order=order)
    array.flags.writeable = False
    return array


def check_shape(shape: Any, itemsize: int) -> None:
    """Raise Unreadable unless NumPy can represent an array of this shape."""
    check(type(shape) is tuple and len(shape) <= MAX_NDIM, _damaged("shape"))
    for dim in shape:
        check(type(dim) is int and dim >= 0, f"holds a dimension of {quoted(dim)}: {DAMAGED}")
    # a dimension of 0 must not hide others that NumPy cannot represent
    nbytes = math.prod(max(dim, 1) for dim in shape) * itemsize
    check(nbytes < 1 << 62, f"holds an array too large for any computer: {DAMAGED}")


_TYPES = ("int", "float", "str", "bool", "list", "tuple", "object")
PLAIN = {
    named.name: named
    for named in (
        *(Named(f"builtins.{name}") for name in _TYPES),
        Named("builtins.dict", _dict, dict),
        Named("builtins.set", _set),
        Named("builtins.frozenset", _frozen_set),
        Named("builtins.complex", _complex),
        Named("builtins.bytes", _byte_string),
        Named("builtins.bytearray", _byte_array),
        Named("_codecs.encode", _encode),
        Named("copyreg._reconstructor", _reconstructor),
        Named("collections.OrderedDict", _dict, dict),
        Named("collections.Counter", _dict, dict),
        Named("collections.defaultdict", _default_dict, dict),
        Named("argparse.Namespace", _attributes, Attributes),
        Named("yacs.config.CfgNode", _dict, dict),
        Named("numpy.ndarray"),
        Named("numpy.dtype", _numpy_type),
        Named("numpy._core.multiarray.scalar", _numpy_scalar),
        Named("numpy._core.multiarray._reconstruct", _numpy_array),
        Named("numpy._core.numeric._frombuffer", _numpy_buffer),
    )
}
