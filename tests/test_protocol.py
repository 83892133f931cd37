"""The promises of `y, back = layer(x)`, each over the whole table, on NumPy, on the strict fake device, and on CuPy.

A function's arguments and a layer's input play the same part here: `f(*args) -> y, back`.
"""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
from device_tools import Device
from table import EVERYTHING, FUNCTIONS, LAYERS, MODELS, PROFILE, Case, name_of

import minivit
from minivit import nn
from minivit.fast.half import activation_dtype
from minivit.functional import position_bias, windows
from minivit.nn import rotary
from minivit.protocol import compose, inference, once

every_case = pytest.mark.parametrize("case", EVERYTHING, ids=name_of)
NAMES_OF_MODELS = {case.name for case in MODELS}
every_layer = pytest.mark.parametrize("case", LAYERS + MODELS, ids=name_of)


def parts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple) else [value]


def noise(case: Case) -> Any:
    return np.random.default_rng(9) if case.noise else None


def forward(case: Case, args: tuple[Any, ...], f: Any = None) -> tuple[Any, Any]:
    f = case.callable(args) if f is None else f
    return f(args[0], noise(case)) if case.layer else f(*args)


def gradient_for(y: Any, device: Device | None = None, seed: int = 4) -> list[Any]:
    """A random dy for each part of y; a plain number where y is a loss."""
    rng = np.random.default_rng(seed)
    out = []
    for part in parts(y):
        dy = rng.standard_normal(part.shape)
        scalar = dy.ndim == 0
        out.append(float(dy) if scalar else (device.put(dy.astype(part.dtype)) if device else dy.astype(part.dtype)))
    return out


def on_device(
    case: Case, device: Device, dtype: str = "float64", *, always: bool = False, **lengths: int
) -> tuple[tuple[Any, ...], Any]:
    """The arguments, and the callable with its parameters, on the device."""
    if case.host_only and not device.on_host:
        pytest.skip("a function of NumPy's alone")
    if (
        PROFILE == "quick"
        and device.name == "fake"
        and case.name in NAMES_OF_MODELS
        and dtype != "float32"
        and not always
    ):
        pytest.skip("a model on the fake device takes long, and its layers keep the promises there in this profile too")
    host = case.arguments(dtype=dtype, **lengths)
    f = case.callable(host)
    if case.layer and not device.on_host:
        minivit.to_device(f, "gpu")
    return tuple(device.put(arg) for arg in host), f


def results(case: Case, device: Device) -> dict[str, Any]:
    """y, the gradients of the arguments and of the parameters, all on the host."""
    args, f = on_device(case, device, always=True)
    y, back = forward(case, args, f)
    grads = parts(back(*gradient_for(y, device)))
    found = {f"y{i}": device.get(part) for i, part in enumerate(parts(y))}
    found |= {f"grad{i}": device.get(grad) for i, grad in enumerate(grads) if grad is not None}
    if case.layer:
        found |= {name: device.get(param.grad) for name, param in f.parameters().items()}
    return found


@every_case
def test_the_device_gives_what_numpy_gives(case: Case, device: Device) -> None:
    expected = results(case, Device("numpy", np))
    got = results(case, device)
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(got[name], expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


@every_case
def test_back_is_single_use(case: Case, device: Device) -> None:
    args, f = on_device(case, device)
    y, back = forward(case, args, f)
    assert isinstance(back, once) and not back.spent
    dy = gradient_for(y, device)
    back(*dy)
    assert back.spent
    with pytest.raises(RuntimeError, match="single-use"):
        back(*dy)


@every_case
def test_nothing_writes_into_what_it_was_given(case: Case, device: Device) -> None:
    args, f = on_device(case, device)
    before = [device.get(arg).copy() for arg in args]
    for arg in args:
        device.freeze(arg)
    y, back = forward(case, args, f)
    dy = [device.freeze(part) if not isinstance(part, float) else part for part in gradient_for(y, device)]
    copies = [part if isinstance(part, float) else device.get(part).copy() for part in dy]
    back(*dy)
    for arg, copy in zip([*args, *dy], [*before, *copies]):
        if not isinstance(arg, float):
            np.testing.assert_array_equal(device.get(arg), copy)


@every_case
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(case: Case, device: Device, dtype: str) -> None:
    args, f = on_device(case, device, dtype)
    y, back = forward(case, args, f)
    assert all(part.dtype == dtype for part in parts(y))
    for grad in parts(back(*gradient_for(y, device))):
        assert grad is None or grad.dtype == dtype
    if case.layer:
        for name, param in f.parameters().items():
            assert param.grad.dtype == dtype and param.data.dtype == dtype, name


# largest difference of half precision from float32, relative to the size of all numbers of an array: some digits of the
# format, which has 11 or 8
HALF = {"float16": 0.02, "bfloat16": 0.15}


def half(precision: str) -> Any:
    if precision == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it has bfloat16")
    return activation_dtype(precision)


def close_to(precision: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    """Each found array is as close to the expected one as the precision allows.

    A sum may cancel to nearly 0, its rounding does not: a twentieth of the largest array of the case is allowed for.
    """
    differences, sizes = {}, {}
    for name, (found, expected) in pairs.items():
        found, expected = np.asarray(found, "float64"), np.asarray(expected, "float64")
        differences[name] = np.sqrt(((found - expected) ** 2).mean()) if found.size else 0.0
        sizes[name] = np.sqrt((expected**2).mean()) if found.size else 0.0
    floor = max(sizes.values()) / 20
    for name, difference in differences.items():
        assert difference <= HALF[precision] * max(sizes[name], floor), name


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("case", FUNCTIONS, ids=name_of)
def test_functions_of_half_precision(case: Case, device: Device, precision: str) -> None:
    dtype = half(precision)
    if case.host_only or not case.analytic or case.name == "batch_norm_given":
        pytest.skip("of float32 alone, or with steps that rounding moves, or the case adds numbers that are not half")
    host = tuple(arg.astype(dtype) for arg in case.arguments(dtype="float32"))
    y, back = case.build(*map(device.put, host))
    wide, wide_back = case.build(*(arg.astype("float32") for arg in host))
    dy = gradient_for(wide)
    given = [part if isinstance(part, float) else part.astype(dtype) for part in dy]
    grads = back(*(part if isinstance(part, float) else device.put(part) for part in given))
    expected = wide_back(*(part if isinstance(part, float) else part.astype("float32") for part in given))
    pairs = {}
    for number, (part, exact) in enumerate([*zip(parts(y), parts(wide)), *zip(parts(grads), parts(expected))]):
        if exact is not None:
            assert part.dtype == (dtype if part.ndim else np.float32)  # a loss keeps its digits
            pairs[str(number)] = (device.get(part), exact)
    close_to(precision, pairs)


@pytest.mark.parametrize("precision", HALF)
@every_layer
def test_layers_compute_in_the_half_precision_of_their_input(case: Case, device: Device, precision: str) -> None:
    dtype = half(precision)
    (x,) = (arg.astype(dtype) for arg in case.arguments(dtype="float32"))
    layer, exact = case.build(x.astype("float32")), case.build(x.astype("float32"))
    if not device.on_host:
        minivit.to_device(layer, "gpu")
    y, back = layer(device.put(x), noise(case))
    wide, wide_back = exact(x.astype("float32"), noise(case))
    (dy,) = gradient_for(wide)
    dx, wide_dx = back(device.put(dy.astype(dtype))), wide_back(dy.astype(dtype).astype("float32"))
    assert y.dtype == dtype and dx.dtype == dtype
    close_to(precision, {"y": (device.get(y), wide)})
    if not case.analytic:
        return
    pairs = {"dx": (device.get(dx), wide_dx)}
    for (name, param), other in zip(layer.parameters().items(), exact.parameters().values()):
        assert param.grad.dtype == np.float32, name
        pairs[name] = (device.get(param.grad), other.grad)
    close_to(precision, pairs)


@every_layer
def test_wrong_dtypes_are_refused(case: Case) -> None:
    (x,) = case.arguments(dtype="float64")
    layer = case.build(x.astype("float32"))
    with pytest.raises(ValueError, match="int64.*astype"):
        layer(np.ones(x.shape, np.int64))
    if layer.parameters():
        with pytest.raises(ValueError, match="float64.*float32.*astype"):
            layer(x)
    layer = case.build(x)
    y, _ = layer(x.astype(np.complex128), noise(case))
    assert y.dtype == np.complex128  # complex passes, for the complex-step check


@every_layer
def test_without_a_generator_nothing_is_random_and_with_one_the_draws_repeat(case: Case) -> None:
    args = case.arguments()
    layer = case.callable(args)
    np.testing.assert_array_equal(layer(args[0])[0], layer(args[0])[0])
    first = layer(args[0], np.random.default_rng(1))[0]
    np.testing.assert_array_equal(first, layer(args[0], np.random.default_rng(1))[0])
    draws = [layer(args[0], np.random.default_rng(seed))[0] for seed in range(2, 8)]
    assert case.noise == any(not np.array_equal(first, other) for other in draws)


class Twice(nn.Layer):
    """One layer used at two sites: y = layer(x) + layer(x/2)."""

    def __init__(self, layer: nn.Layer) -> None:
        self.layer = layer

    def forward(self, x: Any, rng: Any = None) -> tuple[Any, Any]:
        first, back_first = self.layer(x, rng)
        second, back_second = self.layer(x * 0.5, rng)

        @once
        def back(dy: Any) -> Any:
            return back_second(dy) * 0.5 + back_first(dy)

        return first + second, back


@every_layer
def test_the_same_layer_twice_in_one_network(case: Case) -> None:
    args = case.arguments()
    minivit.check_vjp(Twice(case.callable(args)), *args, seed=3, rng_seed=11 if case.noise else None)


@every_layer
def test_gradients_add_up(case: Case, device: Device) -> None:
    args, f = on_device(case, device)
    single = {}
    for count in (1, 2):
        y, back = forward(case, args, f)
        back(*gradient_for(y, device))
        for name, param in f.parameters().items():
            grad = device.get(param.grad)
            if count == 1:
                single[name] = grad.copy()
            np.testing.assert_allclose(grad, count * single[name], rtol=1e-12, err_msg=name)


@every_case
@pytest.mark.parametrize("end", ["run", "dropped"])
def test_nothing_is_held_after_back_has_run_or_was_dropped(case: Case, end: str) -> None:
    args = case.arguments()
    f = case.callable(args)
    gc.disable()  # reference counts alone must free everything: no cycles
    try:
        y, back = forward(case, args, f)
        kept = [weakref.ref(array) for array in held_arrays(back)]
        dy = gradient_for(y)
        ours = {id(arg) for arg in args} | {id(part) for part in parts(y)}
        if case.layer:
            ours |= {id(owner(each.data)) for each in f.state().values()}
            ours |= {id(owner(constant)) for constant in f.constants()}
        del y
        if end == "run":
            back(*dy)
        else:
            del back
        position_bias._relative_position_index.cache_clear()  # what is cached on purpose may outlive a pass
        windows._shift_mask.cache_clear()
        rotary._angles.cache_clear()
        alive = [ref() for ref in kept if ref() is not None and id(ref()) not in ours]
        assert not alive, [array.shape for array in alive]
    finally:
        gc.enable()


def held_arrays(thing: Any, seen: set[int] | None = None) -> list[Any]:
    """The arrays that own the memory which a back holds."""
    seen = set() if seen is None else seen
    if id(thing) in seen or isinstance(thing, (nn.Layer, nn.Parameter)):
        return []
    seen.add(id(thing))
    if isinstance(thing, np.ndarray):
        return [owner(thing)]
    inside: list[Any] = []
    if isinstance(thing, once):
        inside = thing.kept
    elif isinstance(thing, (list, tuple)):
        inside = list(thing)
    elif getattr(thing, "__closure__", None):
        inside = [cell.cell_contents for cell in thing.__closure__]
    return [array for part in inside for array in held_arrays(part, seen)]


def owner(array: Any) -> Any:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def layouts(array: Any) -> dict[str, Any]:
    """The same numbers in other memory layouts."""
    spread = np.zeros(tuple(2 * size for size in array.shape), array.dtype)
    strided = spread[tuple(slice(None, None, 2) for _ in array.shape)]
    strided[...] = array
    flipped = np.flip(np.flip(array).copy())
    return {"Fortran": np.asfortranarray(array), "strided": strided, "negative": flipped}


@every_case
@pytest.mark.parametrize("layout", ["Fortran", "strided", "negative"])
def test_memory_layout_does_not_matter(case: Case, layout: str) -> None:
    args = case.arguments()
    f = case.callable(args)
    y, back = forward(case, args, f)
    dy = gradient_for(y)
    grads = parts(back(*dy))
    y2, back2 = forward(case, tuple(layouts(arg)[layout] for arg in args), f)
    dy2 = [part if isinstance(part, float) else layouts(part)[layout] for part in dy]
    grads2 = parts(back2(*dy2))
    for a, b in zip([*parts(y), *grads], [*parts(y2), *grads2]):
        if a is not None:
            np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-13)


@every_case
def test_axes_of_zero_and_one(case: Case, device: Device) -> None:
    for letter in set(case.empty) & set(case.letters):
        for size in (0, 1):
            if letter in case.fixed and not (letter == "B" and size == 0):
                continue
            args, f = on_device(case, device, **{letter: size})
            y, back = forward(case, args, f)
            grads = parts(back(*gradient_for(y, device)))
            for arg, grad in zip(args, grads):
                assert grad is None or grad.shape == arg.shape
            if letter == "B" and size == 0:
                assert all(part.shape[0] == 0 for part in parts(y))


def test_a_train_step_never_waits_for_the_device() -> None:
    """Between the upload of a batch and the loss no number travels back to the host."""
    import fake_cupy

    with fake_cupy.installed() as module:
        case = next(case for case in MODELS if case.name == "ViT_noise")
        device = Device("fake", module)
        args, f = on_device(case, device, "float32")
        before = fake_cupy.synchronizations
        y, back = forward(case, args, f)
        back(*gradient_for(y, device))
        assert fake_cupy.synchronizations == before


def test_a_subclass_with_its_own_forward_predicts_by_it() -> None:
    class Doubled(nn.Mlp):
        def forward(self, x: Any, rng: Any = None) -> Any:
            y, back = super().forward(x, rng)
            return 2 * y, once(lambda dy: back(2 * dy))

    case = next(case for case in MODELS if case.name == "ViT")
    (x,) = case.arguments()
    model = case.build(x)
    before = model.predict(x)
    for block in model.blocks:
        block.mlp.__class__ = Doubled
    assert not np.allclose(model.predict(x), before)
    np.testing.assert_allclose(model.predict(x), model(x)[0], rtol=1e-12)


@every_layer
def test_inference_gives_the_same_output_and_keeps_nothing(case: Case) -> None:
    (x,) = case.arguments()
    layer = case.build(x)
    expected, _ = layer(x, noise(case))
    with inference():
        y, back = layer(x, noise(case))
        assert not held_arrays(back)
    np.testing.assert_array_equal(y, expected)
    with pytest.raises(RuntimeError, match="kept nothing: call model"):
        back(np.ones_like(y))
    layer(x)[1](np.ones_like(y))  # out of the context backs work again


@pytest.mark.parametrize("case", MODELS, ids=name_of)
def test_a_models_forward_is_its_parts_in_order(case: Case) -> None:
    (x,) = case.arguments()
    model = case.build(x)
    by_parts, _ = compose(x, *model.steps(), rng=noise(case))
    np.testing.assert_array_equal(by_parts, model(x, noise(case))[0])


def test_parts_that_would_not_be_found_are_refused():
    class Hidden(nn.Layer):
        def __init__(self, **kept):
            vars(self).update(kept)

    for kept in ({"layers": (nn.Linear(2, 2, seed=0),)}, {"layers": {"a": nn.Linear(2, 2, seed=0)}}):
        with pytest.raises(ValueError, match="layers is a .* of layers, .*keep layers in a list"):
            Hidden(**kept).parameters()
    assert Hidden(size=(2, 3), names={"a": 1}).parameters() == {}
