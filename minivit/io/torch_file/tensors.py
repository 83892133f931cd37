"""PyTorch's tensors: their description in the pickle, checked against their storage, and the array it describes.

A storage is a row of numbers; a tensor is a view of one, given by offset, size and strides.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np

from minivit.io.text import quoted
from minivit.io.torch_file.bounds import DAMAGED, Unreadable, check
from minivit.io.torch_file.globals import Named, check_shape

# names in PyTorch, and in NumPy; bfloat16, which NumPy lacks, is stored as the upper half of a float32
DTYPES = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": "u2",
    "complex128": "c16",
    "complex64": "c8",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint64": "u8",
    "uint32": "u4",
    "uint16": "u2",
    "uint8": "u1",
    "bool": "u1",
}
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "",  # bytes, whose dtype is given by each tensor
}
MAX_EXPANDED = 1 << 20  # bytes of an array that repeats its storage: masks do, weights do not, and some readers copy it


class Storage:
    """A row of numbers in the file, read once the file is known to be complete."""

    __slots__ = ("base", "count", "dtype", "key", "stored_as")

    def __init__(self, key: str, stored_as: str, count: int) -> None:
        self.key, self.stored_as, self.count = key, stored_as, count  # as in the file: "" is a row of bytes
        self.dtype = stored_as
        self.base: Any = None  # its content as an array, once read

    def take_dtype(self, dtype: str) -> None:
        """Fix the dtype; a storage of two dtypes would be converted, and held in memory, once for each."""
        check(
            self.dtype in ("", dtype),
            f"has tensors of both {self.dtype} and {dtype} over the storage {quoted(self.key)}: save them separately",
        )
        self.dtype = dtype

    @property
    def nbytes(self) -> int:
        """Its bytes in the file."""
        return self.count * np.dtype(DTYPES[self.stored_as or "uint8"]).itemsize

    @property
    def numel(self) -> int:
        """The number of its items."""
        return self.nbytes // np.dtype(DTYPES[self.dtype]).itemsize


class Tensor:
    """A view of a storage, checked to lie within it."""

    __slots__ = ("offset", "size", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: str = "") -> None:
        check(isinstance(storage, Storage), f"builds a tensor over {quoted(storage)}: {DAMAGED}")
        storage.take_dtype(dtype or storage.dtype or "uint8")
        itemsize = np.dtype(DTYPES[storage.dtype]).itemsize
        check_shape(size, itemsize)
        fits = type(stride) is tuple and len(stride) == len(size)
        fits = fits and all(type(number) is int and number >= 0 for number in (offset, *stride))
        check(fits, f"holds a tensor whose strides or offset make no sense: {DAMAGED}")
        count = math.prod(size)
        last = offset + sum((dim - 1) * step for dim, step in zip(size, stride))
        if count and last >= storage.numel:
            raise Unreadable(
                f"holds a tensor that reaches item {quoted(last)} of the storage {quoted(storage.key)}, which has "
                f"{storage.numel}: {DAMAGED}"
            )
        if count > storage.numel and count * itemsize > MAX_EXPANDED:
            raise Unreadable(
                f"holds a tensor of {count} items that repeats the {storage.numel} of its storage: save it without "
                "expand()"
            )
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def array(self) -> Any:
        """The array: a view of the storage's content, and read-only as that is."""
        base = self.storage.base
        if 0 in self.size:
            empty = np.empty(self.size, base.dtype)
            empty.flags.writeable = False
            return empty
        # the stride of a dimension of 1 is never used, and may be any number
        strides = [0 if dim == 1 else step * base.itemsize for dim, step in zip(self.size, self.stride)]
        return np.ndarray(self.size, base.dtype, base, self.offset * base.itemsize, strides)


def to_numbers(raw: Any, dtype: str, big_endian: bool) -> Any:
    """The bytes of a storage as a read-only array of its dtype; `raw` is used up."""
    typed = raw.view(DTYPES[dtype])
    if big_endian != (sys.byteorder == "big"):
        typed.byteswap(inplace=True)
    if dtype == "bfloat16":
        typed = typed.astype(np.uint32)
        typed <<= 16
        typed = typed.view(np.float32)
    elif dtype == "bool":
        typed = typed != 0  # a byte of 2 as a bool would be neither True nor False
    typed.flags.writeable = False
    return typed


def storage_class(named: Any) -> str | None:
    """The dtype of a storage class of PyTorch, "" for bytes of any; None if it is no such class."""
    return STORAGES.get(named.name.rpartition(".")[2]) if isinstance(named, Named) else None


def _v1(storage: Any, offset: Any, size: Any, stride: Any) -> Any:
    return Tensor(storage, offset, size, stride)


def _v2(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None) -> Any:
    if metadata is not None:  # the numbers must be negated or conjugated when read
        raise Unreadable("holds a tensor of a conjugate or negative view: save it after .resolve_conj().resolve_neg()")
    return Tensor(storage, offset, size, stride)


def _v3(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, dtype: Any, metadata: Any = None
) -> Any:
    name = dtype.name.removeprefix("torch.") if isinstance(dtype, Named) else ""
    check(name in DTYPES, f"holds a tensor without a dtype: {DAMAGED}")
    check(metadata is None, f"holds a tensor with metadata, which no tensor of this dtype has: {DAMAGED}")
    return Tensor(storage, offset, size, stride, name)


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> Any:
    check(isinstance(data, Tensor), f"builds a parameter of {quoted(data)}: {DAMAGED}")
    return data


def _size(dims: Any = ()) -> tuple[int, ...]:
    check_shape(tuple(dims) if type(dims) is list else dims, 1)
    return tuple(dims)


def _device(kind: Any, index: Any = None) -> str:
    check(type(kind) is str and (index is None or type(index) is int), f"names a device that makes no sense: {DAMAGED}")
    return kind if index is None else f"{kind}:{index}"


TORCH = {
    named.name: named
    for named in (
        *(Named(f"torch.{name}") for name in DTYPES),
        *(Named(f"{module}.{name}") for name in STORAGES for module in ("torch", "torch.cuda", "torch.storage")),
        Named("torch.Size", _size),
        Named("torch.device", _device),
        Named("torch._utils._rebuild_tensor", _v1),
        Named("torch._utils._rebuild_tensor_v2", _v2),
        Named("torch._utils._rebuild_tensor_v3", _v3),
        Named("torch._utils._rebuild_parameter", _parameter),
        Named("torch._utils._rebuild_parameter_with_state", _parameter),
    )
}
