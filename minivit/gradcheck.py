"""Two independent checks that a backward pass is the derivative of its forward pass.

`check_vjp` compares with 5-point differences along random directions; `check_complex_step` compares every single
element with the complex step, which has no cancellation and so holds to 1e-12. Both work on functions of
`minivit.functional`, on layers, on models, and on your own. See docs/gradcheck.md.

The checks avoid three causes of false passes: dy of ones (softmax and LayerNorm then have gradient 0), parameters at
their initial values (a gain of 1 hides its omission), and writable inputs. The caller should use a batch of at least 2,
and at least 2 tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from minivit.nn.layer import Layer
from minivit.protocol import Array

# Steps of the 5-point differences. At 1e-3 truncation h^4 and rounding 1e-16/h are both near 1e-12; where the function
# has large derivatives (LayerNorm of a row with almost no variance) truncation is larger, and the next smaller step is
# tried; at 1e-6 rounding is still only 1e-10. The last two are for kinks inside a layer (a ReLU, a maximum): a step
# must not reach across one, and of a few hundred ReLUs one lies within 1e-6 of its kink in every thousandth case. A
# wrong gradient fails at all of them.
_STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
_TINY = 1e-30  # complex step: nothing is subtracted, so it may be so small that its square vanishes
_LOCATE = 4096  # elements that are searched for the worst one after a random direction shows an error


class GradientError(AssertionError):
    """A backward pass is not the derivative of its forward pass; the message says where."""


def check_vjp(f: Any, *args: Any, seed: int = 0, rng_seed: int | None = None, tolerance: float = 1e-6) -> float:
    """<back(dy), v> == d/dt <f(x + t v), dy> at t = 0, for random v and dy, over all inputs and parameters together.

    It takes five forward passes for any f; on disagreement, it searches for the worst tensor and element.

    Args:
        f: a function `f(*args) -> y, vjp`, or a Layer (called as `f(x, rng)`, its parameters in float64).
        args: the arguments; floating arrays are differentiated (as float64), all others are constants.
        seed: of dy, of the directions, and of the values that a layer's parameters take during the check.
        rng_seed: a layer with noise gets a new generator of this seed at each call; None means inference.
        tolerance: of the error, |got - expected| over the largest element of all gradients.

    Returns:
        the error.

    Raises:
        GradientError: naming the layer, the tensor, the worst index, expected and got.
    """
    with _Case(f, args, seed, rng_seed) as case:
        error = case.error_along_a_direction(case.tensors, tolerance)
        if not error <= tolerance:
            raise GradientError(_locate(case, error, tolerance))
        return error


def check_complex_step(
    f: Any,
    *args: Any,
    seed: int = 0,
    rng_seed: int | None = None,
    tolerance: float = 1e-12,
    elements: int | None = None,
) -> float:
    """d<f, dy>/dx_i == Im <f(x + i h e_i), dy> / h for every element of every input and parameter, h = 1e-30.

    The forward pass must be analytic and run in complex numbers (no abs, no conj, no .var()). It runs once for each
    element. Source: Squire and Trapp 1998. Other arguments, return value and errors are those of `check_vjp`.

    Args:
        tolerance: 1e-12 of the largest element of all gradients.
        elements: at most so many of each array, drawn by `seed`; None for all of them.

    Raises:
        ValueError: if `elements` is less than 1, which would check nothing.
    """
    if elements is not None and elements < 1:
        raise ValueError(f"elements={elements} would check nothing: give at least 1, or None for all of them")
    with _Case(f, args, seed, rng_seed) as case:
        worst = 0.0
        for tensor in case.tensors:
            expected = case.complex_gradient(tensor, elements)
            error = np.abs(tensor.grad - expected) / case.scale
            largest = float(error.max(initial=0.0))
            if not largest <= tolerance:
                raise GradientError(_message(case, tensor, expected, largest, tolerance))
            worst = max(worst, largest)
        return worst


class _Tensor:
    """One differentiated array: an argument or a parameter."""

    def __init__(self, name: str, value: Array, write: Callable[[Array], Any]) -> None:
        self.name, self.value, self.write = name, value, write
        self.grad: Array = np.zeros_like(value)


class _Case:
    """f at one point: its tensors, their gradients from the backward pass, and forward passes at other points."""

    def __init__(self, f: Any, args: tuple[Any, ...], seed: int, rng_seed: int | None) -> None:
        self.f, self.rng_seed = f, rng_seed
        self.name = type(f).__name__ if isinstance(f, Layer) else getattr(f, "__name__", repr(f))
        # a separate stream: with default_rng(seed), a caller's x from the same seed would equal dy, and a LayerNorm's
        # gradient is 0 for dy = x
        self.random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
        self.args = [_frozen(arg) if _is_float(arg) else arg for arg in args]
        self.inputs = [self._input(number) for number, arg in enumerate(self.args) if _is_float(arg)]
        self.tensors: list[_Tensor] = []

    def __enter__(self) -> _Case:
        params = self.f.parameters() if isinstance(self.f, Layer) else {}
        for name, param in params.items():
            if param.data.dtype != np.float64:
                raise ValueError(
                    f"{self.name}.{name} is {param.data.dtype}: build the layer with dtype='float64' to check its "
                    "gradient"
                )
        self.restore = [(param, param.data, param.grad) for param in params.values()]
        for param in params.values():
            # one initial value (a gain of 1, a bias of 0) can hide a mistake, so parameters move to a general point
            spread = 0.5 if len(param.shape) < 2 else prod(param.shape[1:]) ** -0.5
            param.swap(_frozen(param.data + spread * self.draw(param.shape)))
            param.grad = None
        weights = [_Tensor(name, param.data, param.swap) for name, param in params.items()]
        try:
            self._differentiate(params, weights)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        for param, data, grad in self.restore:
            param.swap(data)
            param.grad = grad

    def _differentiate(self, params: Any, weights: list[_Tensor]) -> None:
        y, back = self._call()
        self.dy = [self.draw(np.shape(part)) for part in _parts(y)]
        self._assign_input_gradients(self._back(back))
        for tensor, param in zip(weights, params.values()):
            if param.grad is None:
                raise ValueError(f"{self.name}: back left no gradient in parameter {tensor.name}")
            tensor.grad = self._checked(tensor, param.grad.copy())
        if weights:
            self._check_accumulation(params, weights)
        self.tensors = self.inputs + weights
        largest = max((float(np.abs(tensor.grad).max(initial=0.0)) for tensor in self.tensors), default=0.0)
        # where all gradients are zero, errors are measured by the size of f itself
        size = sum(float(np.sum(np.abs(part * dy))) for part, dy in zip(_parts(y), self.dy))
        self.scale = largest or size or 1.0

    def _back(self, back: Any) -> Any:
        return back(*(float(part) if part.ndim == 0 else _frozen(part) for part in self.dy))

    def _assign_input_gradients(self, grads: Any) -> None:
        """The gradient of each floating argument, in order; None for an argument that was None or omitted."""
        differentiable = [arg for arg in self.args if arg is None or _is_float(arg)]
        if not isinstance(grads, tuple):
            if len(self.inputs) > 1:
                raise GradientError(
                    f"{self.name}: back returned one gradient for {len(self.inputs)} floating arguments: return a "
                    "tuple, or hold constants fixed in a lambda"
                )
            grads = (grads,) * len(self.inputs)
        found = list(grads) + [None] * (len(differentiable) - len(grads))
        inputs = iter(self.inputs)
        for number, grad in enumerate(found):
            arg = differentiable[number] if number < len(differentiable) else None
            if (arg is None) != (grad is None):
                raise GradientError(
                    f"{self.name}: back returned {'a' if grad is not None else 'no'} gradient at position {number} of "
                    f"{len(found)}, where the argument is {'None or omitted' if arg is None else 'an array'}"
                )
            if grad is not None:
                tensor = next(inputs)
                tensor.grad = self._checked(tensor, grad)

    def _check_accumulation(self, params: Any, weights: list[_Tensor]) -> None:
        """A second pass must add the same gradients again: `.grad = ...` instead of adding loses shared layers."""
        _, back = self._call()
        self._back(back)
        for tensor, param in zip(weights, params.values()):
            twice = 2 * tensor.grad
            if not np.allclose(param.grad, twice, rtol=1e-9, atol=1e-12 * float(np.abs(twice).max(initial=0.0))):
                raise GradientError(
                    f"{self.name}: after a second backward pass the gradient of {tensor.name} is not twice the first: "
                    "add to it with param.accumulate(grad)"
                )

    def _checked(self, tensor: _Tensor, grad: Array) -> Array:
        if np.shape(grad) != tensor.value.shape:
            raise GradientError(
                f"{self.name}: the gradient of {tensor.name} has shape {np.shape(grad)}, but {tensor.name} has "
                f"{tensor.value.shape}"
            )
        return np.asarray(grad)

    def _input(self, number: int) -> _Tensor:
        name = "x" if isinstance(self.f, Layer) else f"argument {number}"
        return _Tensor(name, self.args[number], lambda value: self.args.__setitem__(number, value))

    def draw(self, shape: tuple[int, ...]) -> Array:
        return np.asarray(self.random.standard_normal(shape))

    def _call(self) -> Any:
        if isinstance(self.f, Layer):
            rng = None if self.rng_seed is None else np.random.default_rng(self.rng_seed)
            result = self.f(self.args[0], rng)
        else:
            result = self.f(*self.args)
        pair = isinstance(result, tuple) and len(result) == 2 and callable(result[1])
        if not pair:
            raise ValueError(
                f"{self.name}: the forward pass must return y and back, a function; it returned {result!r:.60}"
            )
        return result

    def _projected(self) -> Any:
        """<f, dy> at the point that the arguments and parameters now hold."""
        return sum(np.sum(part * dy) for part, dy in zip(_parts(self._call()[0]), self.dy))

    def error_along_a_direction(
        self, tensors: list[_Tensor], tolerance: float, steps: tuple[float, ...] = _STEPS
    ) -> float:
        """|got - expected| / scale for one random direction over some tensors, by the first step that agrees."""
        directions = [self.draw(tensor.value.shape) for tensor in tensors]
        got = sum(float(np.sum(tensor.grad * v)) for tensor, v in zip(tensors, directions))
        for step in steps:
            error = abs(got - self.slope(tensors, directions, step)) / self.scale
            if error <= tolerance:
                break
        return error

    def slope(self, tensors: list[_Tensor], directions: list[Array], step: float = _STEPS[1]) -> float:
        """d/dt <f(x + t v), dy> at 0 by 5-point differences."""
        values = []
        try:
            for steps in (-2, -1, 1, 2):
                for tensor, direction in zip(tensors, directions):
                    tensor.write(_frozen(tensor.value + steps * step * direction))
                values.append(float(self._projected()))
        finally:
            for tensor in tensors:
                tensor.write(tensor.value)
        before2, before, after, after2 = values
        return (before2 - 8 * before + 8 * after - after2) / (12 * step)

    def complex_gradient(self, tensor: _Tensor, elements: int | None) -> Array:
        """Im <f(x + i h e_j), dy> / h for some elements j, or every one; all tensors are complex meanwhile.

        The other elements are those of the backward pass.
        """
        size = tensor.value.size
        drawn = range(size) if elements is None or elements >= size else self.random.choice(size, elements, False)
        expected = np.array(tensor.grad, np.float64).reshape(-1)
        point = tensor.value.astype(np.complex128)  # C-contiguous, as the value is
        others = [other for other in self.tensors if other is not tensor]
        try:
            for other in others:
                other.write(other.value.astype(np.complex128))
            tensor.write(point)
            flat = point.reshape(-1)
            for index in drawn:
                real = flat[index]
                flat[index] = real + 1j * _TINY
                expected[index] = self._projected().imag / _TINY
                flat[index] = real
        finally:
            for each in self.tensors:
                each.write(each.value)
        return expected.reshape(tensor.value.shape)


def _locate(case: _Case, error: float, tolerance: float) -> str:
    """The message about the tensor with the largest error, and its worst element, searched one by one."""
    errors = [case.error_along_a_direction([tensor], tolerance, _STEPS[1:2]) for tensor in case.tensors]
    number = int(np.argmax([np.inf if np.isnan(each) else each for each in errors]))
    tensor, worst = case.tensors[number], errors[number]
    if tensor.value.size > _LOCATE:
        return (
            f"{case.name}: the gradient of {tensor.name} {tensor.value.shape} is wrong along a random direction: "
            f"error {worst:.1e}, allowed {tolerance:.0e}. Use smaller shapes to see the worst element"
        )
    expected = np.empty_like(tensor.value)
    for index in np.ndindex(*tensor.value.shape):
        unit = np.zeros_like(tensor.value)
        unit[index] = 1
        expected[index] = case.slope([tensor], [unit])
    return _message(case, tensor, expected, max(worst, error), tolerance)


def _message(case: _Case, tensor: _Tensor, expected: Array, error: float, tolerance: float) -> str:
    difference = np.abs(tensor.grad - expected)
    flat = int(np.argmax(np.where(np.isnan(difference), np.inf, difference)))
    index = tuple(int(i) for i in np.unravel_index(flat, expected.shape))
    element = f"{tensor.name}[{', '.join(map(str, index))}]" if index else tensor.name
    wrong = int((~(difference <= tolerance * case.scale)).sum())
    return (
        f"{case.name}: the gradient of {tensor.name} {expected.shape} is wrong in {wrong} of {expected.size} elements. "
        f"Worst at {element}: expected {expected[index]:.10g}, got {tensor.grad[index]:.10g} "
        f"(error {error:.1e} of the largest gradient {case.scale:.3g}, allowed {tolerance:.0e})"
    )


def _parts(y: Any) -> tuple[Any, ...]:
    return y if isinstance(y, tuple) else (y,)


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def _frozen(value: Array) -> Array:
    """A read-only float64 copy: a forward or backward pass that writes into its arguments raises an error."""
    copy = np.array(value, np.float64, order="C")  # complex_gradient iterates over it as a flat view
    copy.setflags(write=False)
    return copy
