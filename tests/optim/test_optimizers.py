"""Optimizers against their formulas, written one parameter and one number at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest

import minivit
from minivit import nn, optim, parallel
from minivit.fast.numpy import adamw

SHAPES = {"a.weight": (3, 2), "a.bias": (3,), "frozen": (4,), "b.weight": (2, 3)}


def params(dtype="float64"):
    rng = np.random.default_rng(0)
    return {name: nn.Parameter(rng.standard_normal(shape).astype(dtype)) for name, shape in SHAPES.items()}


def set_gradients(named, step, scale=1.0):
    rng = np.random.default_rng((1, step))
    for name, param in named.items():
        grad = scale * rng.standard_normal(param.shape)
        param.grad = None if name == "frozen" else grad.astype(param.data.dtype)


def schedule(step):
    return 0.1 / (1 + step)


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-14), ("float32", 1e-5)])
@pytest.mark.parametrize(
    "betas, eps, decay", [((0.9, 0.999), 1e-8, 0.1), ((0.0, 0.5), 1e-3, 0.0), ((0.8, 0.0), 1e-2, 2)]
)
def test_adamw_is_its_formula(dtype, tolerance, betas, eps, decay):
    named = params(dtype)
    opt = optim.AdamW(named, lr=123.0, weight_decay=decay, betas=betas, eps=eps, no_decay=["a.bias"])
    expected = {name: param.data.astype("float64") for name, param in named.items()}
    first = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    second = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(1, 6):
        set_gradients(named, step)
        gradients = {name: param.grad for name, param in named.items() if param.grad is not None}
        kept = {name: grad.copy() for name, grad in gradients.items()}
        opt.lr = schedule(step)
        opt.step()
        for name, grad in kept.items():
            assert np.array_equal(gradients[name], grad), "the step wrote into a gradient"
            shrink = 0.0 if name == "a.bias" else decay
            for i in np.ndindex(*SHAPES[name]):
                g = float(grad[i])
                first[name][i] = betas[0] * first[name][i] + (1 - betas[0]) * g
                second[name][i] = betas[1] * second[name][i] + (1 - betas[1]) * g * g
                mean = first[name][i] / (1 - betas[0] ** step)
                square = second[name][i] / (1 - betas[1] ** step)
                p = expected[name][i]
                expected[name][i] = p * (1 - opt.lr * shrink) - opt.lr * mean / (math.sqrt(square) + eps)
        for name, param in named.items():
            assert np.allclose(param.data, expected[name], rtol=tolerance, atol=tolerance), (name, step)
            assert param.data.dtype == dtype


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_sgd_is_its_formula(momentum, nesterov, decay):
    named = params()
    opt = optim.SGD(named, 9.0, momentum, decay, nesterov, no_decay=["a.bias"])
    expected = {name: param.data.copy() for name, param in named.items()}
    velocity = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for step in range(1, 6):
        set_gradients(named, step)
        opt.lr = schedule(step)
        opt.step()
        for name, param in named.items():
            if param.grad is None:
                continue
            for i in np.ndindex(*SHAPES[name]):
                g = param.grad[i] + (0.0 if name == "a.bias" else decay) * expected[name][i]
                velocity[name][i] = momentum * velocity[name][i] + g
                move = g + momentum * velocity[name][i] if nesterov else velocity[name][i]
                expected[name][i] -= opt.lr * move
            assert np.allclose(param.data, expected[name], rtol=1e-14, atol=1e-14), (name, step)


def make(kind, named, **options):
    return optim.AdamW(named, **options) if kind == "AdamW" else optim.SGD(named, 0.1, momentum=0.9, **options)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_frozen_parameters_and_their_moments_stay_as_they_are(kind):
    named = params()
    opt = make(kind, named, weight_decay=0.5)
    before = named["frozen"].data.copy()
    for step in range(3):
        set_gradients(named, step)
        opt.step()
    assert np.array_equal(named["frozen"].data, before)
    if kind == "SGD":
        assert not opt.state_dict()["velocity.frozen"].any()
    else:  # 9 numbers stand before it in the flat arrays
        assert not opt.first[9:13].any() and not opt.second[9:13].any() and opt.first[13:].all()


SCALES = {"a.weight": 0.5, "a.bias": 0.0, "frozen": 3.0}  # b.weight has none: its factor is 1


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_scaled_learning_rate_is_that_of_an_optimizer_of_its_own(kind):
    together, apart = params(), params()
    opt = make(kind, together, weight_decay=0.3, lr_scale=SCALES)
    own = {name: make(kind, {name: param}, weight_decay=0.3) for name, param in apart.items()}
    for step in range(5):
        opt.lr = schedule(step)
        for named in (together, apart):
            set_gradients(named, step)
        opt.step()
        for name, each in own.items():
            each.lr = schedule(step) * SCALES.get(name, 1.0)
            if apart[name].grad is not None:
                each.step()
        assert all(np.array_equal(together[name].data, apart[name].data) for name in SHAPES)
    assert np.array_equal(together["a.bias"].data, params()["a.bias"].data), "factor 0 stands still"
    assert not np.array_equal(together["b.weight"].data, params()["b.weight"].data)


@pytest.mark.parametrize("scale", [None, {}, dict.fromkeys(SHAPES, 1.0)], ids=["none", "empty", "ones"])
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_without_scales_not_a_bit_changes(kind, scale):
    plain, scaled = params("float32"), params("float32")
    first, second = make(kind, plain, weight_decay=0.3), make(kind, scaled, weight_decay=0.3, lr_scale=scale)
    for step in range(5):
        for named, opt in ((plain, first), (scaled, second)):
            set_gradients(named, step)
            opt.step()
    assert all(np.array_equal(plain[name].data, scaled[name].data) for name in SHAPES)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("scale", [None, {"a": 0.1, "huge": 0.3, "large": 0.3}], ids=["plain", "scaled"])
def test_adamw_in_pieces_and_threads_is_the_same_to_the_last_bit(threads, scale):
    shapes = {"large": (700, 800), "a": (3,), "b": (5, 2), "frozen": (4,), "huge": (600_001,), "last": (2, 2)}

    def result(piece, threads):
        rng = np.random.default_rng(0)
        params = {name: nn.Parameter(rng.standard_normal(shape).astype("float32")) for name, shape in shapes.items()}
        opt = optim.AdamW(params, 1e-2, weight_decay=0.3, no_decay={"a", "huge"}, threads=threads, lr_scale=scale)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(adamw, "_PIECE", piece)
            for step in range(3):
                set_gradients(params, step)
                opt.step()
        return [param.data for param in params.values()], opt.state_dict()

    (whole, state), (pieces, same) = result(1 << 62, 1), result(1 << 15, threads)
    assert all(np.array_equal(a, b) for a, b in zip(whole, pieces))
    assert all(np.array_equal(state[name], same[name]) for name in state)


def test_adamw_moves_a_parameter_whose_buffer_is_not_contiguous():
    param = nn.Parameter(np.ones((3, 2)).T)
    opt = optim.AdamW({"p": param}, 0.1, weight_decay=0.0)
    param.grad = np.ones((2, 3))
    opt.step()
    assert param.data == pytest.approx(0.9)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_without_any_gradient_nothing_moves(kind):
    named = params()
    before = {name: param.data.copy() for name, param in named.items()}
    opt = make(kind, named, weight_decay=0.5)
    with pytest.warns(UserWarning, match="no parameter has a gradient") as warned:
        opt.step()
    assert warned[0].filename == __file__, "it names the line that called step"
    assert opt.steps == 0
    assert all(np.array_equal(before[name], param.data) for name, param in named.items())


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_parameters_keep_their_buffers(kind):
    named = params("float32")
    buffers = {name: param.data for name, param in named.items()}
    opt = make(kind, named)
    set_gradients(named, 0)
    opt.step()
    assert all(param.data is buffers[name] and param.data.dtype == np.float32 for name, param in named.items())
    opt.zero_grad()
    assert all(param.grad is None for param in named.values())


@pytest.mark.parametrize("scale", [None, SCALES], ids=["plain", "scaled"])
@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_saved_state_continues_bit_for_bit(kind, scale):
    whole, part = params(), params()
    straight, opt = make(kind, whole, lr_scale=scale), make(kind, part, lr_scale=scale)
    for step in range(6):
        if step == 3:  # a new optimizer takes over
            state = opt.state_dict()
            opt.step()  # the state must be a copy: this must not reach it
            for name, param in whole.items():
                part[name].data = param.data
            opt = make(kind, part, lr_scale=scale)
            opt.load_state_dict(state)
        for named, owner in ((whole, straight), (part, opt)):
            set_gradients(named, step)
            owner.step()
    assert straight.steps == opt.steps == 6
    assert all(np.array_equal(whole[name].data, part[name].data) for name in whole)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(kind):
    named = params()
    opt = make(kind, named)
    set_gradients(named, 0)
    opt.step()
    before = opt.state_dict()
    moments = [name for name in before if name != "steps"]
    for bad in ({}, {**before, moments[-1]: np.zeros(1)}):
        with pytest.raises(ValueError, match="expected shape"):
            opt.load_state_dict({**bad, "steps": 77})
    after = opt.state_dict()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_what_the_optimizer_is_not_given_is_frozen(kind):
    model = minivit.ViT(8, 4, 1, 3, 8, 2, 2, seed=1)
    frozen = optim.matching(model.parameters(), ["patch_embed.*", "blocks.0.*", "pos_embed"])
    trained = {name: param for name, param in model.parameters().items() if name not in frozen}
    opt = make(kind, trained, weight_decay=0.3, no_decay=optim.no_decay(model) & trained.keys())
    before = model.state_dict()
    x, y = np.random.default_rng(0).standard_normal((4, 1, 8, 8), np.float32), np.array([0, 1, 2, 0])
    for _ in range(3):
        opt.zero_grad()
        parallel.DataParallel(model, threads=1).loss_and_grad(x, y)
        for name in frozen:
            model.parameters()[name].grad *= np.float32(1e6)
        norm = optim.clip_grad_norm(trained, 1.0)
        opt.step()
    assert norm < 1e3, "what is frozen counts in the norm"
    for name, param in model.parameters().items():
        assert np.array_equal(param.data, before[name]) == (name in frozen), name


def test_clip_grad_norm():
    named = params()
    set_gradients(named, 0)
    whole = np.concatenate([param.grad.ravel() for param in named.values() if param.grad is not None])
    norm = float(np.sqrt((whole**2).sum()))
    before = named["a.bias"].grad.copy()
    assert optim.clip_grad_norm(named, 2 * norm) == pytest.approx(norm, rel=1e-14)
    assert np.array_equal(named["a.bias"].grad, before), "gradients below the limit must not change"
    assert optim.clip_grad_norm(named, 0.5) == pytest.approx(norm, rel=1e-14)
    assert np.allclose(named["a.bias"].grad, before * 0.5 / (norm + 1e-6), rtol=1e-14, atol=0)
    assert named["frozen"].grad is None
    assert optim.clip_grad_norm(named, 1e9) == pytest.approx(0.5, rel=1e-5)
    for param in named.values():
        param.grad = None
    assert optim.clip_grad_norm(named, 1.0) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_clipping_shows_a_broken_gradient(bad):
    named = params()
    set_gradients(named, 0)
    named["a.bias"].grad[1] = bad
    norm = optim.clip_grad_norm(named, 1.0)
    assert not math.isfinite(norm)
    before = {name: param.data.copy() for name, param in named.items()}
    for opt in (optim.AdamW(named), optim.SGD(named, lr=0.1)):
        with pytest.warns(UserWarning, match="no parameter has a gradient.*not finite"):
            opt.step()
    assert all(np.array_equal(param.data, before[name]) for name, param in named.items()), "the step must be skipped"


@pytest.mark.parametrize("size", [1e-30, 1e18, 1e25, 3e38])
def test_a_norm_whose_squares_leave_float32_is_right(size):
    grad = np.array([3, -4], np.float32) * np.float32(size / 5)
    param = nn.Parameter(np.zeros(2, np.float32))
    param.grad = grad.copy()
    with np.errstate(over="ignore"):
        assert optim.clip_grad_norm({"p": param}, 1.0) == pytest.approx(size, rel=1e-6, abs=1e-20)
    np.testing.assert_allclose(param.grad, [0.6, -0.8] if size > 1 else grad, rtol=1e-5)


def test_warmup_cosine_at_its_corners():
    rate = [optim.warmup_cosine(step, 20, peak=2.0, warmup=5, final=0.5) for step in range(20)]
    assert rate[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert rate[5] == 2.0
    assert rate[10] == pytest.approx(0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi / 3)))
    assert rate[5:] == sorted(rate[5:], reverse=True) and len(set(rate[5:])) == 15
    assert rate[:5] == sorted(rate[:5])
    assert optim.warmup_cosine(20, 20, peak=2.0, warmup=5, final=0.5) == 0.5
    assert optim.warmup_cosine(500, 20, peak=2.0, warmup=5, final=0.5) == 0.5
    assert optim.warmup_cosine(0, 20, peak=2.0) == 2.0
    assert optim.warmup_cosine(10, 20, peak=2.0) == pytest.approx(1.0)
    assert optim.warmup_cosine(0, 1, peak=3.0, warmup=1) == 3.0


def test_model_ema_is_its_formula():
    model = nn.Linear(2, 3, dtype="float64", seed=0)
    ema = optim.ModelEma(model, 0.5)
    expected = model.state_dict()
    for step in range(12):
        for param in model.parameters().values():
            param.data = param.data + step
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, param in model.parameters().items():
            expected[name] = decay * expected[name] + (1 - decay) * param.data
            assert np.allclose(ema.average[name], expected[name], rtol=1e-14, atol=0)
    assert decay == 0.5


def test_swapping_the_average_twice_is_the_identity():
    model = nn.Linear(2, 3, dtype="float32", seed=0)
    ema = optim.ModelEma(model)
    model.weight.data = model.weight.data + 1
    ema.update()
    buffer, weights, average = model.weight.data, model.state_dict(), ema.state_dict()
    ema.swap()
    assert model.weight.data is buffer
    assert np.array_equal(model.weight.data, average["weight"]) and not np.array_equal(buffer, weights["weight"])
    ema.swap()
    assert all(np.array_equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(np.array_equal(average[name], value) for name, value in ema.state_dict().items())


def test_a_saved_average_continues_bit_for_bit():
    model = nn.Linear(2, 3, dtype="float32", seed=0)
    straight, first = optim.ModelEma(model), optim.ModelEma(model)
    for step in range(4):
        model.weight.data = model.weight.data * 1.1
        straight.update()
        if step == 2:
            state = first.state_dict()
            first.update()  # must not reach the copy
            first = optim.ModelEma(model)
            first.load_state_dict(state)
        first.update()
    assert straight.steps == first.steps == 4
    assert all(np.array_equal(value, first.average[name]) for name, value in straight.average.items())


@pytest.mark.parametrize("bad", [{"steps": 1}, {"steps": 1, "weight": np.zeros(1), "bias": np.zeros(3)}])
def test_an_average_that_does_not_fit_is_refused_and_changes_nothing(bad):
    ema = optim.ModelEma(nn.Linear(2, 3, dtype="float64", seed=0))
    before = ema.state_dict()
    with pytest.raises(ValueError, match="weight"):
        ema.load_state_dict(bad)
    after = ema.state_dict()
    assert after["steps"] == 0 and all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_accumulated_gradients_equal_the_big_batch(parts):
    model = minivit.ViT(8, 4, 1, 3, 8, 2, 2, dtype="float64")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((6, 1, 8, 8)), rng.integers(3, size=6)
    step = parallel.DataParallel(model, threads=1)
    whole = step.loss_and_grad(x, y)
    expected = {name: param.grad for name, param in model.parameters().items()}
    for param in model.parameters().values():
        param.grad = None
    losses = [step.loss_and_grad(a, b, dloss=1 / parts) for a, b in zip(np.split(x, parts), np.split(y, parts))]
    assert np.mean(losses) == pytest.approx(whole, rel=1e-12)
    for name, param in model.parameters().items():
        assert np.allclose(param.grad, expected[name], rtol=1e-12, atol=1e-13), name


def test_both_optimizers_learn():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((64, 5)), rng.standard_normal((3, 5))
    for kind in ("AdamW", "SGD"):
        layer = nn.Linear(5, 3, dtype="float64", seed=0)
        opt = make(kind, layer.parameters(), weight_decay=0.0)
        opt.lr = 0.05
        for _ in range(200):
            opt.zero_grad()
            y, back = layer(x)
            loss, back_loss = minivit.functional.mean_squared_error(y, x @ target.T)
            back(back_loss())
            opt.step()
        assert loss < 1e-4, kind


MIXED = {"a": nn.Parameter(np.zeros(2, np.float32)), "b": nn.Parameter(np.zeros(2))}
ERRORS = {
    "nothing": (lambda: optim.AdamW({}), ["no parameters"]),
    "lr": (lambda: optim.AdamW(params(), lr=-1), ["lr=-1", "not be negative"]),
    "decay": (lambda: optim.SGD(params(), 1, weight_decay=-0.5), ["weight_decay=-0.5", "not be negative"]),
    "betas": (lambda: optim.AdamW(params(), betas=(0.9, 1.0)), ["betas=(0.9, 1.0)", "[0, 1)"]),
    "no_decay": (lambda: optim.AdamW(params(), no_decay=["x"]), ["'x'", "no_decay"]),
    "scale of nothing": (lambda: optim.SGD(params(), 1, lr_scale={"x": 1.0}), ["'x'", "lr_scale"]),
    "negative scale": (lambda: optim.AdamW(params(), lr_scale={"a.bias": -0.1}), ["a.bias", "-0.1"]),
    "no scale": (lambda: optim.AdamW(params(), lr_scale={"a.bias": math.nan}), ["a.bias", "nan"]),
    "dtypes": (lambda: optim.AdamW(MIXED), ["float32", "float64"]),
    "momentum": (lambda: optim.SGD(params(), 1, momentum=1.0), ["momentum=1.0", "[0, 1)"]),
    "nesterov": (lambda: optim.SGD(params(), 1, nesterov=True), ["nesterov", "momentum"]),
    "ema": (lambda: optim.ModelEma(nn.Linear(1, 1, seed=0), 1.0), ["decay=1.0", "[0, 1)"]),
    "clip": (lambda: optim.clip_grad_norm(params(), 0), ["max_norm=0", "positive"]),
    "total": (lambda: optim.warmup_cosine(0, 0, peak=1), ["total=0"]),
    "warmup": (lambda: optim.warmup_cosine(0, 5, peak=1, warmup=6), ["warmup=6", "total=5"]),
    "negative warmup": (lambda: optim.warmup_cosine(0, 5, peak=1, warmup=-1), ["warmup=-1"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_arguments_are_named(case):
    call, fragments = ERRORS[case]
    with pytest.raises(ValueError) as error:
        call()
    assert all(fragment in str(error.value) for fragment in fragments), error.value


def test_an_optimizer_without_moments_says_so():
    with pytest.raises(TypeError, match="Optimizer must define _moments"):
        optim.Optimizer(params(), 0.1, 0.0, ()).state_dict()
