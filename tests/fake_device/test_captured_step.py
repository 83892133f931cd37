"""A step recorded as a CUDA graph: the bits of the step that is not, and errors that say what cannot be recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest
from device_tools import Device

import minivit
from minivit import functional as F, nn, optim, parallel
from minivit.device import array_module
from minivit.train import CountingLoss
from minivit.train.presets import FINE

VIT: Any = {
    "img_size": 4, "patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 16, "depth": 2, "num_heads": 2,
}  # fmt: skip
NOISY = VIT | {"drop_path_rate": 0.3, "proj_drop_rate": 0.2, "attn_drop_rate": 0.1, "pos_drop_rate": 0.1}
SWIN: Any = {
    "img_size": 4, "patch_size": 1, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depths": (2, 2),
    "num_heads": (1, 2), "window_size": 2,
}  # fmt: skip


@pytest.fixture(params=["fake", "cupy"])
def device(device: Any) -> Any:
    """The fake device, and CuPy itself where a GPU answers."""
    return device


def build(kind: str) -> Any:
    model: Any = {
        "ViT": lambda: minivit.ViT(**VIT, seed=1),
        "noise": lambda: minivit.ViT(**NOISY, seed=1),
        "small": lambda: minivit.ViT(**NOISY | {"embed_dim": 4, "depth": 1, "num_heads": 1}, seed=1),
        "sincos": lambda: minivit.ViT(**VIT, pos_embed="sincos_2d", seed=1),
        "relative": lambda: minivit.ViT(**VIT, pos_embed="relative", seed=1),
        "hybrid": lambda: minivit.ViT(**VIT | {"img_size": 16, "patch_size": 1, "resnet_layers": (1,)}, seed=1),
        "Swin": lambda: minivit.Swin(**SWIN, seed=1),
        "SwinV2": lambda: minivit.SwinV2(**SWIN, seed=1),
        "LoRA": lambda: with_lora(minivit.ViT(**VIT, seed=1)),
        "LoRA in SwinV2": lambda: with_lora(minivit.SwinV2(**SWIN, seed=1)),
    }[kind]()
    return minivit.to_device(model, "gpu")


def with_lora(model: Any) -> Any:
    for param in minivit.lora(model, 2, targets=("qkv", "proj", "fc1", "fc2")).values():
        param.data += 0.1
    return model


def batches(count: int, size: int = 4, side: int = 4) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(3)
    shape = (size, 1, side, side)
    return [(rng.standard_normal(shape).astype("float32"), rng.integers(0, 3, size)) for _ in range(count)]


def train(kind: str, device: Any, captured: bool) -> tuple[list[float], dict[str, Any]]:
    model = build(kind)
    opt = optim.AdamW(model.parameters(), 1e-2)
    step: Any = parallel.CapturedStep(model) if captured else parallel.DataParallel(model, threads=1, shards=1)
    rng, losses = np.random.default_rng(5), []
    for images, labels in batches(3, side=16 if kind == "hybrid" else 4):
        targets = np.eye(3, dtype="float32")[labels]  # as the captured step makes them
        opt.zero_grad()
        losses.append(float(step.loss_and_grad(device.put(images), targets, rng, label_smoothing=0.1)))
        opt.step()
    return losses, {name: device.get(param.data) for name, param in model.parameters().items()}


@pytest.mark.parametrize(
    "kind", ["ViT", "noise", "sincos", "relative", "hybrid", "Swin", "SwinV2", "LoRA", "LoRA in SwinV2"]
)
def test_a_captured_step_has_the_bits_of_the_uncaptured(kind: str, device: Any) -> None:
    expected_losses, expected = train(kind, device, captured=False)
    losses, found = train(kind, device, captured=True)
    assert losses == expected_losses and len(set(losses)) == 3
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_class_numbers_and_images_may_come_from_the_host(device: Any) -> None:
    (images, labels), *_ = batches(1)
    model = build("ViT")
    expected, back = F.softmax_cross_entropy(model(device.put(images))[0], device.put(labels))
    assert float(parallel.CapturedStep(model).loss_and_grad(images, labels)) == pytest.approx(float(expected))


def test_gradients_of_several_batches_add_up(device: Any) -> None:
    model = build("ViT")
    step = parallel.CapturedStep(model)
    single = []
    for images, labels in batches(2):
        for param in model.parameters().values():
            param.grad = None
        step.loss_and_grad(images, labels, dloss=0.5)
        single.append({name: device.get(param.grad) for name, param in model.parameters().items()})
    for param in model.parameters().values():
        param.grad = None
    for images, labels in batches(2):
        step.loss_and_grad(images, labels, dloss=0.5)
    for name, param in model.parameters().items():
        np.testing.assert_allclose(device.get(param.grad), single[0][name] + single[1][name], rtol=1e-5, atol=1e-7)


def test_another_shape_is_recorded_anew(device: Any) -> None:
    model = build("ViT")
    step = parallel.CapturedStep(model)
    for size in (4, 2, 4, 1, 3, 5, 6, 4):
        ((images, labels),) = batches(1, size)
        for param in model.parameters().values():
            param.grad = None
        found = float(step.loss_and_grad(images, labels))
        expected, _ = F.softmax_cross_entropy(model(device.put(images))[0], device.put(labels))
        assert found == pytest.approx(float(expected), rel=1e-6)


def test_weights_that_were_replaced_are_seen(device: Any) -> None:
    (images, labels), *_ = batches(1)
    model = build("ViT")
    step = parallel.CapturedStep(model)
    before = float(step.loss_and_grad(images, labels))
    head = model.head.weight
    head.swap(device.module.array(head.data * 3))  # an array of its own, at another address
    assert float(step.loss_and_grad(images, labels)) != before


def test_a_head_that_was_replaced_is_trained(device: Any) -> None:
    (images, labels), *_ = batches(1)
    model = build("ViT")
    step = parallel.CapturedStep(model)
    step.loss_and_grad(images, labels)
    old, new = model.head, minivit.to_device(nn.Linear(16, 3, seed=9), "gpu")
    old.weight.grad, model.head = None, new
    found = float(step.loss_and_grad(images, labels))
    expected, _ = F.softmax_cross_entropy(model(device.put(images))[0], device.put(labels))
    assert found == pytest.approx(float(expected), rel=1e-6)
    assert old.weight.grad is None and device.get(new.weight.grad).any()


def test_a_layer_that_was_replaced_is_used(device: Any) -> None:
    (images, labels), *_ = batches(1)
    model = build("ViT")
    step = parallel.CapturedStep(model)
    before = float(step.loss_and_grad(images, labels))
    model.blocks[1] = nn.Sequential()  # no parameter comes that was not there
    after = float(step.loss_and_grad(images, labels))
    expected, _ = F.softmax_cross_entropy(model(device.put(images))[0], device.put(labels))
    assert after == pytest.approx(float(expected), rel=1e-6) and after != before


def test_updates_of_low_rank_that_come_and_go_are_seen(device: Any) -> None:
    (images, labels), *_ = batches(1)
    model = build("ViT")
    step = parallel.CapturedStep(model)
    before = float(step.loss_and_grad(images, labels))
    trained = minivit.lora(model, 2)
    assert float(step.loss_and_grad(images, labels)) == pytest.approx(before, rel=1e-6)
    assert all(device.get(param.grad).any() for name, param in trained.items() if "lora_b" in name)
    for param in trained.values():
        param.data += 0.1
    changed = float(step.loss_and_grad(images, labels))
    assert changed != pytest.approx(before, rel=1e-3)
    minivit.merge_lora(model)
    assert float(step.loss_and_grad(images, labels)) == pytest.approx(changed, rel=1e-5)


def test_a_model_that_left_the_gpu_is_refused(device: Any) -> None:
    (images, labels), *_ = batches(1)
    step = parallel.CapturedStep(build("ViT"))
    step.model.head = nn.Linear(16, 3)
    with pytest.raises(ValueError, match=r"head\.weight is not there.*to_device"):
        step.loss_and_grad(images, labels)


def test_another_precision_of_products_is_recorded_anew(device: Any) -> None:
    (images, labels), *_ = batches(1)
    model = build("ViT")
    step = parallel.CapturedStep(model)
    exact = float(step.loss_and_grad(images, labels))
    with minivit.matmul_precision("medium"):
        assert float(step.loss_and_grad(images, labels)) != exact
    assert float(step.loss_and_grad(images, labels)) == exact


def test_what_cannot_be_recorded_is_named(device: Any) -> None:
    model = build("ViT")
    (images, labels), *_ = batches(1)

    def looks(logits: Any, targets: Any) -> Any:
        loss, back = F.softmax_cross_entropy(logits, targets)
        return (loss if float(loss) > 0 else 0 * loss), back

    def uploads(logits: Any, targets: Any) -> Any:
        weights = array_module(logits).asarray(np.ones(3, "float32"))
        return F.softmax_cross_entropy(logits * weights, targets)

    for loss, reason in ((looks, "stream"), (uploads, "array of the host is copied")):
        with pytest.raises(RuntimeError, match=f"(?i)cannot be recorded.*{reason}.*DataParallel"):
            parallel.CapturedStep(model, loss).loss_and_grad(images, labels)
    assert float(parallel.CapturedStep(model).loss_and_grad(images, labels)) > 0  # and nothing is left broken


def test_wrong_arguments_are_refused(device: Any) -> None:
    (images, labels), *_ = batches(1)
    step = parallel.CapturedStep(build("ViT"))
    with pytest.raises(ValueError, match="from 0 to 2"):
        step.loss_and_grad(images, np.array([0, 1, 2, 3]))
    with pytest.raises(ValueError, match="4 images but 3 labels"):
        step.loss_and_grad(images, labels[:3])
    with pytest.raises(ValueError, match="empty"):
        step.loss_and_grad(images[:0], labels[:0])
    with pytest.raises(ValueError, match="on the host"):
        step.loss_and_grad(images, device.put(labels))
    with pytest.raises(ValueError, match="to_device"):
        parallel.CapturedStep(minivit.ViT(**VIT))


def test_a_model_with_running_statistics_is_refused() -> None:
    layer = nn.Sequential(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="running statistics"):
        parallel.CapturedStep(layer)


def test_a_launch_is_one_and_waits_for_nothing() -> None:
    with fake_cupy.installed():
        step = parallel.CapturedStep(build("noise"))
        (images, labels), *_ = batches(1)
        rng = np.random.default_rng(0)
        step.loss_and_grad(images, labels, rng)
        for param in step.model.parameters().values():
            param.grad = None
        launches, waits = fake_cupy.launches, fake_cupy.synchronizations
        step.loss_and_grad(images, labels, rng)
        assert (fake_cupy.launches, fake_cupy.synchronizations) == (launches + 1, waits)


def launches_of_a_step(depth: int) -> int:
    """Launches of an uncaptured training step of the most accurate ViT on MNIST, with this depth."""
    model = minivit.ViT(**FINE | {"depth": depth}, seed=0)
    minivit.to_device(model, "gpu")
    opt, average = optim.AdamW(model.parameters()), optim.ModelEma(model)
    step = parallel.DataParallel(model, threads=1, shards=1)
    (images, labels), *_ = batches(1, size=2, side=28)
    images, targets = fake_cupy.asarray(images), fake_cupy.asarray(np.eye(10, dtype="float32")[labels])
    before = fake_cupy.launches
    step.loss_and_grad(images, targets, np.random.default_rng(1), label_smoothing=0.1)
    optim.clip_grad_norm(opt.params, 1.0)
    opt.step()
    average.update()
    return fake_cupy.launches - before


def test_an_uncaptured_step_is_few_launches() -> None:
    """Each launch costs a GPU a microsecond, and the host more; the first version with one update took 890."""
    with fake_cupy.installed():
        two, three = launches_of_a_step(2), launches_of_a_step(3)  # each block has as many
    assert two + 4 * (three - two) <= 890 // 3


@pytest.mark.parametrize("kind", ["ViT", "Swin"])
def test_predictions_are_those_of_the_model(kind: str, device: Any) -> None:
    model = build(kind)
    step = parallel.CapturedStep(model)
    ((images, _),) = batches(1, 5)
    expected = device.get(model.predict(device.put(images)))
    for given in (images, device.put(images)):
        np.testing.assert_array_equal(device.get(step.predict(given, batch_size=2)), expected)
    first = step.predict(images)
    step.predict(images + 1)  # another launch of the same graph leaves it alone
    np.testing.assert_array_equal(device.get(first), expected)
    list(model.parameters().values())[-1].data = np.ones(3, "float32")  # the bias of the head
    np.testing.assert_allclose(device.get(step.predict(images)), expected + 1, rtol=1e-5)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        step.predict(images, 0)
    half = parallel.CapturedStep(model, precision="float16").predict(images)
    assert half.dtype == np.float16
    np.testing.assert_allclose(device.get(half), expected + 1, atol=2e-2)


def test_a_prediction_is_one_launch_and_a_copy() -> None:
    with fake_cupy.installed() as module:
        step = parallel.CapturedStep(build("ViT"))
        ((images, _),) = batches(1)
        given = module.asarray(images)
        step.predict(given)
        launches, waits = fake_cupy.launches, fake_cupy.synchronizations
        step.predict(given)
        assert fake_cupy.launches <= launches + 3 and fake_cupy.synchronizations == waits


def test_images_of_another_dtype_are_recorded_anew(device: Any) -> None:
    ((images, labels),) = batches(1)
    step = parallel.CapturedStep(build("ViT"))
    rounded = float(step.loss_and_grad(images.astype("float16"), labels))
    exact = float(step.loss_and_grad(images, labels))
    expected = float(parallel.CapturedStep(step.model).loss_and_grad(images, labels))
    assert exact == expected != rounded  # the float32 images were not put into the float16 ones' memory
    np.testing.assert_array_equal(
        device.get(step.predict(images)), device.get(parallel.CapturedStep(step.model).predict(images))
    )


def test_a_loss_may_have_targets_of_any_shape(device: Any) -> None:
    ((images, _),) = batches(1)

    def squared(logits: Any, targets: Any) -> Any:
        error = logits[:, 0] - targets
        dlogits = array_module(logits).zeros_like(logits)
        dlogits[:, 0] = 2 * error
        return (error * error).sum(), lambda dloss: dlogits * dloss

    step = parallel.CapturedStep(build("ViT"), squared)
    heights = np.float32([0.5, -1, 2, 0])
    logits = device.get(step.model.predict(device.put(images)))
    found = float(step.loss_and_grad(images, device.put(heights)))
    assert found == pytest.approx(float(((logits[:, 0] - heights) ** 2).sum()), rel=1e-5)


@pytest.mark.usefixtures("device")
def test_weights_that_lora_keeps_are_no_running_statistics() -> None:
    """They are constants of layers within layers, which no step changes."""
    assert parallel.CapturedStep(build("LoRA")).memory() == 0


def test_no_images_give_no_predictions(device: Any) -> None:
    ((images, _),) = batches(1)
    assert parallel.CapturedStep(build("ViT")).predict(images[:0]).shape == (0, 3)


# --- the update in the same launch ----------------------------------------------------------------------------------


def trained(
    kind: str, device: Any, recorded: bool, frozen: str = "none", **options: Any
) -> tuple[list[Any], dict[str, Any]]:
    """Losses and norms of five steps, and every array that they change."""
    model = build(kind)
    params = {name: param for name, param in model.parameters().items() if not name.startswith(frozen)}
    decayed = {"no_decay": optim.no_decay(model) & params.keys(), "lr_scale": {next(iter(params)): 0.5}}
    opt = optim.AdamW(params, weight_decay=0.1, **decayed)
    average = optim.ModelEma(model, 0.9) if options.pop("averaged", True) else None
    step = parallel.CapturedStep(model, CountingLoss(), **options)
    if step.scale is not None:
        step.scale = optim.LossScale(2.0**17, growth=2)  # so that it falls, and grows again
    rng, found = np.random.default_rng(5), []
    for number, (images, labels) in enumerate(batches(5, side=16 if kind == "hybrid" else 4)):
        images = images * (np.inf if number == 2 else 1)  # a gradient that is not finite
        images, labels = (images[:3], labels[:3]) if number == 3 else (images, labels)
        opt.lr = 1e-2 / (number + 1)
        if recorded:
            outcome = step.update(opt, images, labels, rng, max_norm=0.5, average=average, label_smoothing=0.1)
            found.append([float(outcome.loss), float(outcome.gradient_norm), int(outcome.correct)])
        else:
            opt.zero_grad()
            loss = float(step.loss_and_grad(images, labels, rng, label_smoothing=0.1))
            norm = optim.clip_grad_norm(opt.params, 0.5)
            if np.isfinite(norm):
                opt.step()
            if average is not None:
                average.update()
            found.append([loss, norm, step.loss.take_correct()])
    parts = {"model": model, "optimizer": opt, **({"average": average} if average else {}), **step.saved_parts()}
    arrays = {
        f"{part}.{name}": value if isinstance(value, int | float) else device.get(value)
        for part, owner in parts.items()
        for name, value in owner.state_dict().items()
    }
    return found, arrays


@pytest.mark.parametrize("kind", ["ViT", "noise", "relative", "hybrid", "SwinV2", "LoRA"])
def test_a_recorded_update_has_the_bits_of_clipping_step_and_average(kind: str, device: Any) -> None:
    expected_numbers, expected = trained(kind, device, recorded=False)
    numbers, found = trained(kind, device, recorded=True)
    np.testing.assert_array_equal(numbers, expected_numbers)
    assert max(norm for _, norm, _ in numbers if np.isfinite(norm)) > 0.5  # so that clipping is part of it
    assert found["optimizer.steps"] == 4 and not np.isfinite(numbers[2][1])
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_recorded_update_in_bfloat16(device: Any) -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it has bfloat16")
    options = {"averaged": False, "precision": "bfloat16"}
    expected_numbers, expected = trained("ViT", device, recorded=False, **options)
    numbers, found = trained("ViT", device, recorded=True, **options)
    np.testing.assert_array_equal(numbers, expected_numbers)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.parametrize("frozen", ["none", "blocks.0.attn."])
def test_a_recorded_update_in_float16_adapts_the_scale(frozen: str, device: Any) -> None:
    expected_numbers, expected = trained("small", device, False, frozen, precision="float16")
    numbers, found = trained("small", device, True, frozen, precision="float16")
    np.testing.assert_array_equal(numbers, expected_numbers)
    assert found.keys() == expected.keys() and len(found) > 30
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    assert found["scale.skipped"] >= 1 and found["optimizer.steps"] == 5 - found["scale.skipped"]
    assert found["scale.value"] == 2.0**18 and found["scale.good"] == 0


@pytest.mark.parametrize(
    ("file", "text", "planted"),
    [
        ("adamw", "scale[2] + 1 == growth", "scale[2] == growth"),
        ("adamw", "scale && due", "scale"),
        ("parameters", "REAL(1 / factors[0])", "REAL(1)"),
    ],
)
def test_a_bug_in_the_update_of_the_scale_is_found(
    file: str, text: str, planted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_text

    def read_text(path: Path, *args: Any, **named: Any) -> str:
        found = read(path, *args, **named)
        assert path.name != f"{file}.cu" or found.count(text) == 1, "the text is no longer in the kernel"
        return found.replace(text, planted) if path.name == f"{file}.cu" else found

    monkeypatch.setattr(Path, "read_text", read_text)
    with fake_cupy.installed() as module, pytest.raises(AssertionError):
        test_a_recorded_update_in_float16_adapts_the_scale("none", Device("fake", module))


def test_a_recorded_update_is_one_launch_and_never_waits(device: Any) -> None:
    if device.name == "cupy":
        pytest.skip("the fake device counts")
    model = build("ViT")
    opt, average = optim.AdamW(model.parameters()), optim.ModelEma(model)
    step = parallel.CapturedStep(model)
    (images, _), *_ = batches(1)
    images, targets = device.put(images), device.put(np.eye(3, dtype="float32")[[0, 1, 2, 0]])
    step.update(opt, images, targets, max_norm=1.0, average=average)
    before = fake_cupy.launches, fake_cupy.synchronizations
    for _ in range(10):
        found = step.update(opt, images, targets, max_norm=1.0, average=average)
    launches, waits = fake_cupy.launches - before[0], fake_cupy.synchronizations - before[1]
    assert launches == 10 * 4 and waits == 0  # two inputs copied, the graph, and its result copied
    assert float(found.loss) > 0 and fake_cupy.synchronizations > before[1]
    assert opt.steps == 11 == average.steps


def test_only_the_parameters_of_the_optimizer_change(device: Any) -> None:
    model = build("ViT")
    head = {name: param for name, param in model.parameters().items() if name.startswith("head.")}
    before = {name: device.get(param.data).copy() for name, param in model.parameters().items()}
    (images, labels), *_ = batches(1)
    parallel.CapturedStep(model).update(optim.AdamW(head, 1e-2), images, labels)
    changed = {name for name, param in model.parameters().items() if (device.get(param.data) != before[name]).any()}
    assert changed == set(head)
    assert all(param.grad is None for param in model.parameters().values())


def test_another_optimizer_or_norm_is_recorded_anew_and_a_loaded_state_counts(device: Any) -> None:
    model = build("ViT")
    step, opt = parallel.CapturedStep(model), optim.AdamW(model.parameters(), 1e-2)
    (images, labels), *_ = batches(1)
    step.update(opt, images, labels)
    state = opt.state_dict()
    step.update(opt, images, labels, max_norm=1e-30)
    other = optim.AdamW(model.parameters(), 1e-2)
    step.update(other, images, labels)
    assert (opt.steps, other.steps) == (2, 1)
    opt.load_state_dict(state)
    assert opt.steps == 1
    step.update(opt, images * np.inf, labels)
    step.update(opt, images, labels)
    assert opt.steps == 2


def test_updates_that_cannot_be_recorded_are_refused(device: Any) -> None:
    model = build("ViT")
    step, (images, labels) = parallel.CapturedStep(model), batches(1)[0]
    with pytest.raises(ValueError, match="updates by AdamW, got SGD"):
        step.update(optim.SGD(model.parameters(), 0.1), images, labels)
    with pytest.raises(ValueError, match="is no parameter of this model"):
        step.update(optim.AdamW(build("ViT").parameters()), images, labels)
    opt = optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="average is that of another model"):
        step.update(opt, images, labels, average=optim.ModelEma(build("ViT")))
    with pytest.raises(ValueError, match="max_norm=0 must be positive"):
        step.update(opt, images, labels, max_norm=0)
    opt.lr = -1
    with pytest.raises(ValueError, match="lr=-1 must be finite"):
        step.update(opt, images, labels)
    assert opt.steps == 0


def test_an_average_that_lies_in_pieces_is_refused(device: Any) -> None:
    model = build("ViT")
    average = optim.ModelEma(model)
    name = next(name for name, array in average.average.items() if array.ndim == 2)
    average.average[name] = device.module.ascontiguousarray(average.average[name].T).T
    with pytest.raises((RuntimeError, ValueError), match="do not lie in one piece"):
        parallel.CapturedStep(model).update(optim.AdamW(model.parameters()), *batches(1)[0], average=average)
