"""The choice between a formula and a fast implementation of the same name and signature.

    layer_norm = accelerated(norm.layer_norm)   # in functional/__init__.py, as for every function
    y, vjp = layer_norm(x, weight, bias)        # the fast one for x's library and dtype, else the formula
    layer_norm.plain                            # always the formula
    with minivit.plain(): ...                   # formulas everywhere

A formula calls other formulas directly, never fast implementations. A composite that needs speed has its own fast
implementation.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, wraps
from importlib import import_module
from inspect import signature
from types import CodeType, FunctionType
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import numpy as np

from minivit.argument_checks import check_array, check_gradients
from minivit.device import array_module
from minivit.fast.half import in_float32, is_floating, is_half
from minivit.fork import Lock, at_fork
from minivit.protocol import once

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

FLOATS = ("float32", "float64", "complex64", "complex128")


class Replacement(NamedTuple):
    """A fast function, and the dtypes for which it is chosen."""

    function: Callable[..., Any]
    dtypes: tuple[str, ...] = FLOATS


class Accelerated(Protocol[P, R_co]):
    """A function that may have fast implementations; `plain` is its formula."""

    @property
    def plain(self) -> Callable[P, R_co]: ...

    def __call__(self, *args: P.args, **options: P.kwargs) -> R_co: ...


def accelerated(formula: Callable[P, R], any_dtype: bool = False) -> Accelerated[P, R]:
    """The formula with its arguments checked, or a fast implementation for the arrays' library and dtype.

    The check is the function `check_<name>` next to the formula, called with the same arguments; it raises ValueError.
    Neither implementation repeats it.

    Half precision without a fast implementation computes in float32 (half.py). With `any_dtype` the formula is as good
    in the dtype of x itself: it only moves numbers, or multiplies each once.
    """
    name = formula.__name__
    check = vars(sys.modules[formula.__module__]).get(f"check_{name}")
    chosen: dict[tuple[Any, Any], Callable[P, R]] = {}  # by library and dtype: the search is not free

    def choose(*arguments: Any) -> Callable[P, R]:
        array = _first_float(arguments)
        if array is None:
            return formula
        key = (array_module(array), array.dtype)
        if key not in chosen:
            found = _choose(name, *key)
            if found is None:
                found = in_float32(function) if is_half(array.dtype) and not any_dtype else formula
            chosen[key] = found
        return chosen[key]

    @wraps(formula)
    def function(*args: P.args, **options: P.kwargs) -> R:
        try:
            if check is not None:
                check(*args, **options)
            run = formula
            first: Any = args[0] if args else None  # nearly always the array that decides
            dtype = getattr(first, "dtype", None)
            if (getattr(_of_thread, "mode", None) or _mode) == "plain":
                run = in_float32(function) if is_half(dtype) and not any_dtype else formula
            else:
                key = (array_module(first), dtype)
                run = chosen[key] if key in chosen else choose(*args, *options.values())
            result = run(*args, **options)
        except (AttributeError, TypeError):
            if args:  # every function's first argument is an array
                check_array(name, next(iter(signature(formula).parameters)), args[0])
            raise
        if isinstance(result, tuple) and isinstance(result[-1], once):
            result[-1].belong_to(name, result[0], check_gradients)
        return result

    function.plain = formula  # type: ignore[attr-defined]
    return cast(Accelerated[P, R], function)


def _first_float(arguments: tuple[Any, ...]) -> Any:
    """The first floating or complex array among the arguments, or None. Its library and dtype decide."""
    for argument in arguments:
        if is_floating(getattr(argument, "dtype", None)):
            return argument
    return None


def _choose(name: str, library: Any, dtype: np.dtype[Any]) -> Callable[..., Any] | None:
    """The fast implementation, or None."""
    found = replacements("numpy" if library is np else "cupy").get(name)
    return found.function if found and dtype.name in found.dtypes else None


@lru_cache(maxsize=4)
def replacements(library: str) -> Mapping[str, Replacement]:
    """The fast implementations for a library, "numpy" or "cupy", by name; imported at the first call."""
    return cast(Mapping[str, Replacement], import_module(f"minivit.fast.{library}").REPLACEMENTS)


# --- the mode -------------------------------------------------------------------------------------------------------

MODES = ("auto", "plain")

_mode = os.environ.get("MINIVIT_FUNCTIONS", "auto")  # of the process, so that all threads of a batch use it
if _mode not in MODES:
    raise ValueError(f"the environment has MINIVIT_FUNCTIONS={_mode!r}: choose one of {', '.join(MODES)}")
_of_thread = threading.local()  # what a backward pass repeats of its forward pass; see `in_mode`
_turn = Lock()
_before: list[tuple[int, str]] = []  # the thread and the previous mode of each open context


def current_mode() -> str:
    """ "auto" or "plain"."""
    return getattr(_of_thread, "mode", None) or _mode


@contextmanager
def use(mode: str) -> Iterator[None]:
    """A context in which the process chooses in this mode; contexts may be nested, not interleaved by threads."""
    global _mode
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: choose one of {', '.join(MODES)}")
    with _turn:
        opened = (threading.get_ident(), _mode)
        _before.append(opened)
        _mode = mode
    try:
        yield
    finally:
        with _turn:
            _before.remove(opened)
            _mode = opened[1]


def _close_in_child() -> None:
    """A forked child leaves the contexts of the threads that it does not have."""
    global _mode
    others = [opened for opened in _before if opened[0] != threading.get_ident()]
    if len(others) == len(_before) > 0:
        _mode = others[0][1]
    for opened in others:
        _before.remove(opened)


at_fork(_close_in_child)


def plain() -> Any:
    """A context in which every function runs by its formula, in all threads of the process.

    MINIVIT_FUNCTIONS=plain in the environment does the same for a program.
    """
    return use("plain")


@contextmanager
def in_mode(mode: str) -> Iterator[None]:
    """A context in which only this thread chooses in this mode, for a recomputed forward pass."""
    before = getattr(_of_thread, "mode", None)
    _of_thread.mode = mode
    try:
        yield
    finally:
        _of_thread.mode = before


# --- composites -----------------------------------------------------------------------------------------------------


def with_parts(formula: Callable[P, R], **parts: Any) -> Callable[P, R]:
    """A composite that calls the given functions instead of those of its formula.

    A composite is then written once: `with_parts(patches.patch_embed, linear=linear)` is the formula of patch_embed on
    the fast `linear`.
    """
    if not isinstance(formula, FunctionType):
        raise TypeError(f"{formula!r} is not a Python function")
    unknown = set(parts) - _names(formula.__code__)
    if unknown:
        raise ValueError(f"{formula.__name__} calls nothing named {', '.join(sorted(unknown))}")
    copied = FunctionType(
        formula.__code__, {**formula.__globals__, **parts}, formula.__name__, formula.__defaults__, formula.__closure__
    )
    copied.__kwdefaults__, copied.__doc__ = formula.__kwdefaults__, formula.__doc__
    return copied


def _names(code: CodeType) -> set[str]:
    """The global names that a function uses, itself or in the functions that it defines."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*map(_names, inner))
