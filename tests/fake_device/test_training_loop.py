"""`train.fit` on a GPU: the step is one graph, in every precision, and a resumed run has the same bits."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest
from device_tools import Device

import minivit
from minivit import data, nn, optim, parallel
from minivit.distributed import Ranks
from minivit.fast.half import PRECISIONS, activation_dtype
from minivit.train import CountingLoss, Run, accuracy, fit
from minivit.train.finetuning import Recipe, fine_tune
from minivit.train.tasks import Part, Task

TINY: Any = {
    "img_size": 4,
    "patch_size": 2,
    "in_chans": 1,
    "num_classes": 2,
    "embed_dim": 8,
    "depth": 1,
    "num_heads": 2,
}
LABELS = np.arange(16) % 2
IMAGES = np.random.default_rng(0).standard_normal((16, 1, 4, 4)).astype("float32")
IMAGES[LABELS == 1] += 1  # bright images are of class 1


@pytest.fixture(params=["fake", "cupy"])
def device(device: Any) -> Any:
    """The fake device, and CuPy itself where a GPU answers."""
    return device


def train(out: Path, precision: str, epochs: int, resume: bool = False) -> tuple[Any, Any, Run]:
    if precision == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it has bfloat16")
    model = minivit.to_device(minivit.ViT(**TINY, drop_path_rate=0.1, seed=1), "gpu")
    ranks, opt = Ranks(), optim.AdamW(model.parameters())
    step = ranks.data_parallel(model, opt, None, CountingLoss(), precision)
    parts = {"model": model, "optimizer": opt, **step.saved_parts()}
    run = Run(out, {"precision": precision}, parts, resume=resume, quiet=True)

    def batches(epoch: int, start: int) -> Any:
        return [(IMAGES[at : at + 8], LABELS[at : at + 8]) for at in (0, 8)][start:]

    def evaluate() -> float:
        return accuracy(step.predict, IMAGES, LABELS, lambda images: images, "gpu")[0]

    # the schedule is that of four epochs, of which a run that is stopped does the first
    run_epochs = run.epochs
    run.epochs = lambda total: run_epochs(epochs)  # type: ignore[method-assign]
    fit(run, step, opt, batches, evaluate, epochs=4, batches_per_epoch=2, lr=2e-2, device="gpu")
    return model, step, run


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_model_learns_in_every_precision_and_a_run_continues_with_the_same_bits(
    precision: str, device: Device, tmp_path: Path
) -> None:
    model, step, run = train(tmp_path / "whole", precision, 4)
    assert isinstance(step, parallel.CapturedStep) and step.dtype.name == precision
    losses = [row["loss"] for row in run.history]
    assert losses[-1] < 0.85 * losses[0] and run.history[-1]["held_out_accuracy"] > 0.8
    train(tmp_path / "parts", precision, 1)
    gc.collect()  # the run leaves its folder
    resumed, other, _ = train(tmp_path / "parts", precision, 4, resume=True)
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(device.get(array), device.get(resumed.state_dict()[name]), err_msg=name)
    if precision == "float16":
        assert step.scale.value == other.scale.value >= 1


def test_an_overflow_in_float16_skips_the_step_and_halves_the_scale(device: Device) -> None:
    model = minivit.to_device(minivit.ViT(**TINY, seed=1), "gpu")
    step = parallel.CapturedStep(model, precision="float16")
    assert step.scale is not None
    params = model.parameters()
    step.scale.value = 2.0**40
    step.loss_and_grad(IMAGES, LABELS)
    assert step.scale.value == 2.0**39 and step.scale.skipped == 1
    assert not np.isfinite(optim.clip_grad_norm(params, 1.0))
    assert all(param.grad is None for param in params.values())
    step.scale.value = 2.0**10
    step.loss_and_grad(IMAGES, LABELS)
    scaled = {name: device.get(param.grad) for name, param in params.items()}
    for param in params.values():
        param.grad = None
    parallel.CapturedStep(model).loss_and_grad(IMAGES, LABELS)
    for name, param in params.items():
        exact = device.get(param.grad)
        assert np.linalg.norm(scaled[name] - exact) <= 0.05 * np.linalg.norm(exact), name


def test_the_scale_grows_after_steps_without_an_overflow() -> None:
    scale = optim.LossScale(4.0, growth=3)
    for finite in (True, True, False, True, True, True):
        scale.update(finite)
    assert (scale.value, scale.skipped) == (4.0, 1)
    other = optim.LossScale()
    other.load_state_dict(scale.state_dict())
    assert repr(other) == "LossScale(4, growth=2000, skipped=1)"
    with pytest.raises(ValueError, match="growth=0"):
        optim.LossScale(growth=0)


def test_what_cannot_be_captured_is_trained_step_by_step(device: Device) -> None:
    model = minivit.to_device(nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2)), "gpu")
    step = Ranks().data_parallel(model, None)
    assert isinstance(step, parallel.DataParallel) and step.threads == 1
    with pytest.raises(ValueError, match="BatchNorm is trained in float32"):
        Ranks().data_parallel(model, None, precision="bfloat16")


def test_a_precision_on_the_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="on a CPU models are trained in float32"):
        Ranks().data_parallel(minivit.ViT(**TINY), None, precision="float16")


def test_a_cupy_without_bfloat16_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it has bfloat16")
    with fake_cupy.installed() as module:
        model = minivit.to_device(minivit.ViT(**TINY), "gpu")
        zeros = module.zeros

        def without(shape: Any, dtype: Any = float) -> Any:
            if np.dtype(dtype).name == "bfloat16":
                raise TypeError("Unsupported dtype")
            return zeros(shape, dtype)

        monkeypatch.setattr(module, "zeros", without)
        with pytest.raises(RuntimeError, match="no bfloat16: install CuPy 14"):
            parallel.CapturedStep(model, precision="bfloat16")


def test_bfloat16_without_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    activation_dtype.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(RuntimeError, match="pip install ml_dtypes"):
        activation_dtype("bfloat16")
    with pytest.raises(ValueError, match="precision='half': choose one of 'float32', 'bfloat16', 'float16'"):
        activation_dtype("half")


def test_a_frozen_body_is_fine_tuned_as_a_graph(device: Device, tmp_path: Path) -> None:
    model = minivit.ViT(**TINY, seed=1)
    frozen = {name for name in model.parameters() if not name.startswith("head")}
    before = model.state_dict()
    images = np.round(255 * (IMAGES[:, 0] - IMAGES.min()) / np.ptp(IMAGES)).astype("uint8")
    part = Part(images, LABELS)

    def batches(batch_size: int, **which: Any) -> Any:
        return data.batches(images, LABELS, batch_size, **which)

    preprocess = data.Preprocess(4, mean=(0.5,), std=(0.5,))
    task = Task("squares", ("dark", "bright"), part, part, None, preprocess, data.normalize, batches, "their hash")
    recipe = Recipe(epochs=2, batch_size=8, lr=1e-2)
    fine_tune(model, task, recipe, tmp_path, frozen=frozen, device="gpu", quiet=True)
    after = {name: device.get(array) for name, array in model.state_dict().items()}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"head.weight", "head.bias"}
