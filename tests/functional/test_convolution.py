"""Convolution and pooling against loops that a beginner would write; what they refuse, and the memory they take.

The loops are slow and obvious; nothing in them is shared with the library.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

from minivit import functional as F, nn
from minivit.fast import dispatch
from minivit.fast.numpy import convolution
from minivit.functional import sliding
from minivit.strategies import seeds


def naive_conv2d(
    x: Any, weight: Any, bias: Any, dy: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[Any, ...]:
    """y, and the gradients under dy (None: ones): every product of a weight and a pixel by itself."""
    (batch, channels, height, width), (outputs, inputs, kh, kw) = x.shape, weight.shape
    oh = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    ow = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    y = np.zeros((batch, outputs, oh, ow)) + bias[:, None, None]
    dy = np.ones(y.shape) if dy is None else dy
    dx, dweight = np.zeros(x.shape), np.zeros(weight.shape)
    for b, o, u, v in np.ndindex(*y.shape):
        group = o // (outputs // groups)
        for c, i, j in np.ndindex(inputs, kh, kw):
            row = stride[0] * u + dilation[0] * i - padding[0]
            column = stride[1] * v + dilation[1] * j - padding[1]
            channel = group * (channels // groups) + c
            if 0 <= row < height and 0 <= column < width:
                y[b, o, u, v] += weight[o, c, i, j] * x[b, channel, row, column]
                dx[b, channel, row, column] += weight[o, c, i, j] * dy[b, o, u, v]
                dweight[o, c, i, j] += x[b, channel, row, column] * dy[b, o, u, v]
    return y, dx, dweight, dy.sum(axis=(0, 2, 3))


def naive_pool(x: Any, kernel: Any, stride: Any, padding: Any) -> Any:
    """For each window the pixels of the map that it holds, in reading order: {(u, v): [(row, column), ...]}."""
    height, width = x.shape[2:]
    found = {}
    for u in range((height + 2 * padding[0] - kernel[0]) // stride[0] + 1):
        for v in range((width + 2 * padding[1] - kernel[1]) // stride[1] + 1):
            rows = range(stride[0] * u - padding[0], stride[0] * u - padding[0] + kernel[0])
            columns = range(stride[1] * v - padding[1], stride[1] * v - padding[1] + kernel[1])
            found[u, v] = [(i, j) for i in rows for j in columns if 0 <= i < height and 0 <= j < width]
    return found


two = st.integers(1, 2)
convolutions = st.fixed_dictionaries(
    {
        "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.tuples(two, st.integers(1, 3)),
        "padding": st.tuples(st.integers(0, 3), two),
        "dilation": st.tuples(two, two),
        "groups": two,
        "sizes": st.tuples(two, two, st.integers(5, 7), st.integers(5, 6)),  # B, O/G, H, W
        "most": st.sampled_from([1, 200, 1000, convolution._MOST_BYTES]),  # bytes: single pixels, rows, images, all
    }
)


@given(convolutions, seeds())
def test_convolution_and_its_gradients_equal_their_loop(drawn: dict[str, Any], seed: int) -> None:
    rng, groups = np.random.default_rng(seed), drawn["groups"]
    batch, outputs, *size = drawn["sizes"]
    x = rng.standard_normal((batch, 2 * groups, *size))
    weight, bias = rng.standard_normal((outputs * groups, 2, *drawn["kernel"])), rng.standard_normal(outputs * groups)
    options = {name: drawn[name] for name in ("stride", "padding", "dilation", "groups")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_MOST_BYTES", drawn["most"])
        y, vjp = F.conv2d(x, weight, bias, **options)
        dy = rng.standard_normal(y.shape)
        found = (y, *vjp(dy))
    by_formula, vjp_of_formula = F.conv2d.plain(x, weight, bias, **options)
    loop = naive_conv2d(x, weight, bias, dy, **options)
    for results in (found, (by_formula, *vjp_of_formula(dy))):
        for got, expected in zip(results, loop):
            np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


def same_padding(length: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """The fewest zeros, tried in turn, that give a side of ceil(length / stride) pixels; the odd one behind."""
    wanted = (length + stride - 1) // stride
    total = 0
    while len(range(0, length + total - dilation * (kernel - 1), stride)) < wanted:
        total += 1
    return total // 2, total - total // 2


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 7)),
    st.tuples(st.integers(1, 3), st.integers(1, 4)),
    two,
    seeds(),
)
def test_same_padding_is_the_least_that_gives_every_stride_a_position(
    size: Any, kernel: Any, stride: Any, dilation: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x, weight = rng.standard_normal((2, 2, *size)), rng.standard_normal((3, 2, *kernel))
    sides = [same_padding(*each, dilation) for each in zip(size, kernel, stride)]

    def padded(value: float) -> Any:
        return np.pad(x, ((0, 0), (0, 0), *sides), constant_values=value)

    y, _ = F.conv2d(x, weight, stride=stride, padding="same", dilation=dilation)
    assert y.shape[2:] == tuple(-(-length // step) for length, step in zip(size, stride))
    np.testing.assert_allclose(
        y, F.conv2d(padded(0), weight, stride=stride, dilation=dilation)[0], rtol=1e-12, atol=1e-13
    )
    if dilation == 1:
        for pool, value in ((F.max_pool2d, -np.inf), (F.avg_pool2d, 0.0)):
            found, _ = pool(x, kernel, stride, "same")
            np.testing.assert_allclose(found, pool(padded(value), kernel, stride)[0], rtol=1e-12, atol=1e-13)


def test_a_kernel_as_large_as_its_stride_is_the_patch_embedding() -> None:
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((2, 3, 6, 8)), rng.standard_normal((5, 3, 3, 2)), rng.standard_normal(5)
    y, vjp = F.conv2d(x, weight, bias, stride=(3, 2))
    tokens, vjp_tokens = F.patch_embed(x, weight, bias)  # (B, N, O)
    np.testing.assert_allclose(y.reshape(2, 5, 8).swapaxes(1, 2), tokens, rtol=1e-13)
    dy = rng.standard_normal(y.shape)
    for ours, theirs in zip(vjp(dy), vjp_tokens(dy.reshape(2, 5, 8).swapaxes(1, 2))):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13, atol=1e-14)


def test_a_1x1_convolution_is_the_linear_map_of_every_pixel() -> None:
    rng = np.random.default_rng(1)
    x, weight, bias = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((6, 3, 1, 1)), rng.standard_normal(6)
    expected = F.linear(x.transpose(0, 2, 3, 1), weight[:, :, 0, 0], bias)[0].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(F.conv2d(x, weight, bias)[0], expected, rtol=1e-13)


@pytest.mark.parametrize("outputs", [3, 5])  # fewer and more than the channels: turned filters, and folding
def test_both_ways_to_the_gradient_give_the_same(outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((2, 4, 6, 7)), rng.standard_normal((outputs, 4, 3, 2))
    calls = []
    for name in ("_gradient_by_flipped_filters", "_gradient_by_folding"):
        plain = getattr(convolution, name)
        monkeypatch.setattr(convolution, name, lambda *a, plain=plain: calls.append(plain.__name__) or plain(*a))
    y, vjp = F.conv2d(x, weight, padding=(1, 0))
    dy = rng.standard_normal(y.shape)
    dx = vjp(dy)[0]
    assert calls == ["_gradient_by_flipped_filters" if outputs == 3 else "_gradient_by_folding"]
    how = sliding.slide("conv2d", (6, 7), (3, 2), 1, (1, 0))
    dmaps, filters = dy[:, None], weight[None]
    for way in (convolution._gradient_by_flipped_filters, convolution._gradient_by_folding):
        np.testing.assert_allclose(way(dmaps, filters, how, (6, 7))[:, 0], dx, rtol=1e-12, atol=1e-13)


# --- memory ---------------------------------------------------------------------------------------------------------


def peak(function: Any) -> tuple[Any, int]:
    """What function() returns, and the peak of bytes that it held beyond what was there."""
    tracemalloc.start()
    try:
        result = function()
        return result, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("shape", "outputs", "kernel", "options"),
    [
        ((2, 16, 64, 64), 8, 5, {"padding": 2}),  # turned filters
        ((2, 16, 64, 64), 24, 5, {"padding": 2}),  # folding
        ((4, 16, 96, 96), 16, 5, {"stride": 2, "groups": 4}),
        ((1, 64, 4, 2000), 8, 3, {}),  # a row alone would be more than a block
        ((256, 32, 7, 7), 32, 3, {"padding": 1}),  # several images in a block
    ],
)
def test_the_unfolded_windows_never_exceed_their_budget(shape: Any, outputs: int, kernel: int, options: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape, dtype=np.float32)
    weight = rng.standard_normal((outputs, shape[1] // options.get("groups", 1), kernel, kernel), dtype=np.float32)
    (y, vjp), forward = peak(lambda: F.conv2d(x, weight, **options))
    dy = rng.standard_normal(y.shape, dtype=np.float32)
    gradients, backward = peak(lambda: vjp(dy))
    budget = convolution._MOST_BYTES
    unfolded = y[:, 0].size * weight[0].nbytes * options.get("groups", 1)
    assert unfolded > 4 * budget  # so that the test means something
    # a block has its columns, its product, and perhaps one image with its padding
    image = 2 * max(x.nbytes, y.nbytes) // len(x)
    assert forward < y.nbytes + 2 * budget + image
    assert backward < sum(gradient.nbytes for gradient in gradients if gradient is not None) + 3 * budget + 2 * image


@given(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)), st.integers(1, 4000), st.integers(1, 200))
def test_blocks_cover_every_position_once_and_stay_within_the_budget(sizes: Any, most: int, of_position: int) -> None:
    batch, *count = sizes
    covered = np.zeros(sizes, int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_MOST_BYTES", most)
        for _, blocks in convolution._blocks(batch, (count[0], count[1]), of_position):
            for block in blocks:
                covered[block] += 1
                assert covered[block].size * of_position <= max(most, of_position)
    assert (covered == 1).all()


def test_what_is_kept_is_the_input_and_the_weight() -> None:
    x, weight = np.ones((2, 3, 8, 8)), np.ones((4, 3, 3, 3))
    (_, back), _ = peak(lambda: F.conv2d(x, weight, padding=1))
    arrays = [kept for kept in back.kept if isinstance(kept, np.ndarray)]
    assert arrays and all(np.shares_memory(kept, x) or np.shares_memory(kept, weight) for kept in arrays)


# --- pooling --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=dispatch.MODES)
def both(request: pytest.FixtureRequest) -> Iterator[None]:
    """The fast functions, and the formulas."""
    with dispatch.use(request.param):
        yield


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((2, 2), (2, 2), (0, 0)), ((3, 2), (1, 2), (1, 0)), ((3, 3), (2, 1), (1, 1)), ((1, 4), (2, 3), (0, 2))],
)
def test_pooling_equals_its_loop(kernel: Any, stride: Any, padding: Any) -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 4, (2, 3, 6, 7)).astype(np.float64)  # few values: many ties
    results = [
        F.max_pool2d(x, kernel, stride, padding),
        F.avg_pool2d(x, kernel, stride, padding),
        F.avg_pool2d(x, kernel, stride, padding, count_include_pad=False),
    ]
    dy = rng.standard_normal(results[0][0].shape)
    expected = [(np.zeros(dy.shape), np.zeros(x.shape)) for _ in results]
    for (u, v), held in naive_pool(x, kernel, stride, padding).items():
        for b, c in np.ndindex(2, 3):
            values = [x[b, c, i, j] for i, j in held]
            first = held[values.index(max(values))]
            expected[0][0][b, c, u, v] = max(values)
            expected[0][1][(b, c, *first)] += dy[b, c, u, v]
            for (y, dx), count in zip(expected[1:], (kernel[0] * kernel[1], len(held))):
                y[b, c, u, v] = sum(values) / count
                for place in held:
                    dx[(b, c, *place)] += dy[b, c, u, v] / count
    for (y, vjp), (expected_y, expected_dx) in zip(results, expected):
        np.testing.assert_allclose(y, expected_y, rtol=1e-14)
        np.testing.assert_allclose(vjp(dy), expected_dx, rtol=1e-13, atol=1e-15)


@pytest.mark.usefixtures("both")
def test_of_equal_numbers_the_first_in_reading_order_takes_the_gradient() -> None:
    x = np.array([[[[1.0, 5.0, 5.0], [5.0, 5.0, 2.0]]]])
    y, vjp = F.max_pool2d(x, (2, 3))
    assert y.item() == 5
    np.testing.assert_array_equal(vjp(np.ones((1, 1, 1, 1)))[0, 0], [[0, 1, 0], [0, 0, 0]])


@pytest.mark.usefixtures("both")
def test_nothing_is_taken_from_the_padding() -> None:
    x = np.full((1, 1, 2, 2), -7.0)
    y, vjp = F.max_pool2d(x, 3, 1, 1)
    assert (y == -7).all()
    np.testing.assert_array_equal(vjp(np.ones(y.shape))[0, 0], [[4, 0], [0, 0]])


def test_the_padding_is_not_taken_where_the_map_is_minus_infinity() -> None:
    """The fast function's alone; docs/formulas.md lists it."""
    x = np.full((1, 1, 2, 2), -np.inf)
    y, vjp = F.max_pool2d(x, 3, 1, 1)
    assert (y == -np.inf).all()
    np.testing.assert_array_equal(vjp(np.ones(y.shape))[0, 0], [[4, 0], [0, 0]])


@pytest.mark.usefixtures("both")
def test_a_nan_is_seen_and_a_large_kernel_has_numbers_enough_for_its_taps() -> None:
    x = np.arange(20.0 * 17).reshape(1, 1, 20, 17)
    x[0, 0, 3, 3] = np.nan
    y, vjp = F.max_pool2d(x, 5)
    assert np.isnan(y[0, 0, 0, 0]) and not np.isnan(y[0, 0, 1:]).any()
    dx = vjp(np.ones(y.shape))
    assert dx[0, 0, 3, 3] == 1 and dx.sum() == y.size  # the NaN was taken, so it gets the gradient
    x[0, 0, 3, 3] = 0
    _, vjp = F.max_pool2d(x, (20, 17))  # 340 taps, the last of which is the largest
    dx = vjp(np.ones((1, 1, 1, 1)))
    assert dx[0, 0, -1, -1] == 1 and dx.sum() == 1


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("largest", [1.0, np.inf])
def test_the_gradient_goes_to_the_first_nan_of_a_window(largest: float) -> None:
    x = np.array([[largest, np.nan, 0, largest], [np.nan, largest, 0, 0]])[None, None]
    _, vjp = F.max_pool2d(x, 2)
    assert vjp(np.array([[[[2.0, 3.0]]]]))[0, 0].tolist() == [[0, 2, 0, 3], [0, 0, 0, 0]]


def test_adaptive_pooling_averages_cells_that_cover_the_map() -> None:
    x = np.random.default_rng(4).standard_normal((2, 3, 5, 7))
    y, vjp = F.adaptive_avg_pool2d(x, (2, 3))
    for u, rows in enumerate((slice(0, 3), slice(2, 5))):
        for v, columns in enumerate((slice(0, 3), slice(2, 5), slice(4, 7))):
            np.testing.assert_allclose(y[:, :, u, v], x[:, :, rows, columns].mean(axis=(2, 3)), rtol=1e-13)
    assert vjp(np.ones(y.shape)).sum() == pytest.approx(y.size)
    np.testing.assert_allclose(F.adaptive_avg_pool2d(x, 1)[0][..., 0, 0], x.mean(axis=(2, 3)), rtol=1e-13)
    np.testing.assert_allclose(F.adaptive_avg_pool2d(x, (5, 7))[0], x, rtol=1e-15)
    x[0, 0, 0, 0] = np.inf
    assert np.isinf(F.adaptive_avg_pool2d(x, (2, 3))[0]).sum() == 1


# --- what is refused ------------------------------------------------------------------------------------------------

X, WEIGHT = np.ones((2, 4, 5, 6)), np.ones((6, 4, 3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: F.conv2d(X[0], WEIGHT), r"x must be \(B, C, H, W\), got shape \(4, 5, 6\)"),
        (lambda: F.conv2d(X, WEIGHT[0]), r"weight must be \(O, C/groups, Kh, Kw\), got shape \(4, 3, 3\)"),
        (lambda: F.conv2d(X[:, :3], WEIGHT), "x has 3 channels, but weight .* takes 4: build the layer"),
        (lambda: F.conv2d(X, WEIGHT, groups=2), "x has 4 channels, but weight .* with groups=2 takes 8"),
        (lambda: F.conv2d(X, WEIGHT, groups=4), "groups=4 must divide both the 4 channels .* the 6 outputs"),
        (lambda: F.conv2d(X, WEIGHT, groups=0), "groups=0 must divide"),
        (lambda: F.conv2d(X, WEIGHT, np.ones(4)), r"bias must have shape \(6,\).* got \(4,\)"),
        (lambda: F.conv2d(X[:, :, :2], WEIGHT), "kernel of 3x3 .* more than the map's 2x6 .*: pad the map"),
        (lambda: F.conv2d(X, WEIGHT, dilation=3), "dilation .* reaches over 7x7 pixels, more than the map's 5x6"),
        (lambda: F.conv2d(X, WEIGHT, padding=-1), r"padding \(-1, -1\) must be at least 0"),
        (lambda: F.conv2d(X, WEIGHT, padding="valid"), "padding='valid': give numbers, or 'same'"),
        (lambda: F.conv2d(X, WEIGHT, stride=(1, 0)), r"stride \(1, 0\) must be at least 1"),
        (lambda: F.conv2d(X, WEIGHT, dilation=0), r"dilation \(0, 0\) must be at least 1"),
        (lambda: F.conv2d(X, WEIGHT[:, :, :0]), r"kernel \(0, 3\) must be at least 1"),
        (lambda: F.conv2d(X, WEIGHT, stride=1.5), "1.5 is no size"),
        (lambda: F.standardize_weight(WEIGHT[:, :0]), r"filters of shape \(6, 0, 3, 3\) have no numbers"),
        (lambda: F.max_pool2d(X, 6), "max_pool2d: a kernel of 6x6"),
        (lambda: F.max_pool2d(X, 2, padding=2), r"padding \(2, 2\) is more than half the kernel \(2, 2\)"),
        (lambda: F.max_pool2d(X, 0), r"max_pool2d: kernel \(0, 0\) must be at least 1"),
        (lambda: F.avg_pool2d(X[0], 2), r"avg_pool2d: x must be \(B, C, H, W\)"),
        (lambda: F.adaptive_avg_pool2d(X, 0), "map of 5x6 to 0x0"),
        (lambda: F.adaptive_avg_pool2d(X[:, :, :0], 1), "map of 0x6 to 1x1"),
        (lambda: F.adaptive_avg_pool2d(X[0], 1), r"must be \(B, C, H, W\)"),
        (lambda: nn.Conv2d(4, 6, 3, groups=4), "Conv2d: groups=4 must divide in_channels=4 and out_channels=6"),
        (lambda: nn.StdConv2d(4, 6, 3, padding=-2), "StdConv2d: padding"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# --- layers ---------------------------------------------------------------------------------------------------------


def test_parameters_have_pytorchs_names_shapes_and_bounds() -> None:
    layer = nn.Conv2d(6, 8, (3, 5), groups=2, seed=0)
    assert {name: param.shape for name, param in layer.parameters().items()} == {"weight": (8, 3, 3, 5), "bias": (8,)}
    assert np.abs(layer.weight.data).max() == pytest.approx((3 * 3 * 5) ** -0.5, rel=0.01)
    assert np.abs(layer.bias.data).max() <= (3 * 3 * 5) ** -0.5
    assert list(nn.Conv2d(2, 2, 1, bias=False).parameters()) == ["weight"]
    again = nn.Conv2d(6, 8, (3, 5), groups=2, seed=0, dtype="float64")
    np.testing.assert_array_equal(again.weight.data.astype("float32"), layer.weight.data)


def test_macs_count_every_product() -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert nn.multiply_adds(layer, (2, 4, 7, 8)) == 2 * 4 * 4 * 6 * 2 * 3 * 3
    assert nn.multiply_adds(nn.Conv2d(64, 64, 3, padding=1), (8, 64, 56, 56)) == 8 * 56 * 56 * 64 * 64 * 9


def test_a_standardized_convolution_does_not_see_scale_and_shift_of_its_filters() -> None:
    x = np.random.default_rng(5).standard_normal((2, 3, 5, 5))
    layer = nn.StdConv2d(3, 4, 3, eps=0.0, dtype="float64", seed=0)
    before = layer(x)[0]
    layer.weight.data = 3 * layer.weight.data + 0.7
    np.testing.assert_allclose(layer(x)[0], before, rtol=1e-11)
    weight, _ = F.standardize_weight(layer.weight.data)
    np.testing.assert_allclose(weight.mean(axis=(1, 2, 3)), 0, atol=1e-15)
    np.testing.assert_allclose(weight.var(axis=(1, 2, 3)), 1, rtol=1e-4)


def test_epsilon_outside_of_the_root_is_added_to_the_standard_deviation() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 2, 2))
    weight[1] *= 1e-5  # a deviation near eps
    y, _ = F.standardize_weight(weight, 1e-5, outside=True)
    for filters, made in zip(weight, y):
        expected = (filters - filters.mean()) / (filters.std() + 1e-5)
        assert np.allclose(made, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_constant_filter_is_0_with_epsilon_outside_and_its_gradient_finite(dtype: str) -> None:
    weight = np.full((2, 1, 2, 2), 0.5, dtype)
    dy = np.arange(8, dtype=dtype).reshape(weight.shape)
    y, vjp = F.standardize_weight(weight, 0.25, outside=True)
    assert not y.any() and y.dtype == dtype
    dweight = vjp(dy)
    assert dweight.dtype == dtype
    assert np.allclose(dweight, (dy - dy.mean(axis=(1, 2, 3), keepdims=True)) / 0.25)  # the deviation has no slope
