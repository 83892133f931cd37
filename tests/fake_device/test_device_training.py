"""Whole training on the device: model, loss, clipping, optimizers, averaged weights, moves there and back.

The strict fake refuses any silent mix of host and device; the numbers must be NumPy's.
"""

from __future__ import annotations

from typing import Any

import fake_cupy
import numpy as np
import pytest
from device_tools import Device

import minivit
from minivit import optim, parallel


def train(device: Device, kind: str) -> tuple[list[float], dict[str, Any]]:
    model = minivit.ViT(
        img_size=4,
        patch_size=2,
        in_chans=1,
        num_classes=3,
        embed_dim=4,
        depth=2,
        num_heads=2,
        pos_embed="relative",
        drop_path_rate=0.3,
        proj_drop_rate=0.1,
        dtype="float64",
        seed=1,
    )
    if not device.on_host:
        assert minivit.to_device(model, "gpu") is model
    params, free = model.parameters(), optim.no_decay(model)
    opt: Any = optim.AdamW(params, 1e-2, no_decay=free)
    if kind == "sgd":
        opt = optim.SGD(params, 1e-1, momentum=0.9, weight_decay=0.01, nesterov=True, no_decay=free)
    average = optim.ModelEma(model, 0.9)
    step = parallel.DataParallel(model, threads=1, shards=2)
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(4):
        images, labels = device.put(rng.standard_normal((6, 1, 4, 4))), rng.integers(0, 3, 6)
        opt.zero_grad()
        losses.append(step.loss_and_grad(images, labels, rng, label_smoothing=0.1))
        optim.clip_grad_norm(params, 0.5)
        opt.step()
        average.update()
    average.swap()
    opt.load_state_dict(opt.state_dict())
    average.load_state_dict(average.state_dict())
    minivit.to_device(model, "cpu")
    return losses, model.state_dict()


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_training_gives_what_numpy_gives(device: Device, kind: str) -> None:
    expected_losses, expected = train(Device("numpy", np), kind)
    losses, state = train(device, kind)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-9)
    for name, array in state.items():
        assert isinstance(array, np.ndarray)
        np.testing.assert_allclose(array, expected[name], rtol=1e-8, atol=1e-10, err_msg=name)


def test_moving_arrays_and_models(device: Device) -> None:
    x = np.arange(3.0)
    assert minivit.to_numpy(device.put(x)).tolist() == [0, 1, 2]
    assert isinstance(minivit.to_device(device.put(x), "cpu"), np.ndarray)
    if not device.on_host:
        moved = minivit.to_device(x, "gpu")
        assert isinstance(moved, device.module.ndarray)


def test_a_saved_device_model_is_read_on_the_host(device: Device, tmp_path: Any) -> None:
    model = minivit.ViT(img_size=4, patch_size=2, in_chans=1, num_classes=3, embed_dim=4, depth=1, num_heads=2)
    expected = model.state_dict()
    if not device.on_host:
        minivit.to_device(model, "gpu")
    minivit.save(model, tmp_path / "model.safetensors")
    for name, array in minivit.from_pretrained(tmp_path / "model.safetensors").state_dict().items():
        np.testing.assert_array_equal(array, expected[name])
    minivit.load(model, tmp_path / "model.safetensors")


def test_a_gpu_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from minivit import device as devices

    monkeypatch.setattr(devices, "gpu_available", lambda: False)
    with pytest.raises(RuntimeError, match="no GPU answers.*cupy-cuda12x"):
        minivit.to_device(np.ones(2), "gpu")
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        minivit.to_device(np.ones(2), "tpu")


def test_cupy_without_a_device_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from minivit.device import gpu_available

    with fake_cupy.installed() as module:
        assert gpu_available()
        monkeypatch.setattr(module.cuda, "is_available", lambda: False)
        assert not gpu_available()

        def broken() -> bool:
            raise OSError("cudaErrorInsufficientDriver")

        monkeypatch.setattr(module.cuda, "is_available", broken)
        assert not gpu_available()

        monkeypatch.setattr(module.cuda.runtime, "getDeviceCount", broken)
        with pytest.raises(
            RuntimeError, match=r"CuPy \S+ is installed \(cudaErrorInsufficientDriver\): check that nvidia-"
        ):
            minivit.to_device(np.ones(2), "gpu")


def test_a_constant_moves_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from minivit import device as devices

    table = np.arange(6.0).reshape(2, 3)
    assert devices.constant(table, np.ones(1)) is table
    with fake_cupy.installed() as module:
        like = module.ones(1)
        assert devices.constant(table, like) is not devices.constant(table, like)  # it may be written to meanwhile
        table.setflags(write=False)
        first = devices.constant(table, like)
        assert devices.constant(table, like) is first and devices.constant(table[:1], like) is not first
        np.testing.assert_array_equal(first.get(), table)
        monkeypatch.setattr(devices, "_MOST_MOVED", 100)
        other = np.zeros(10)
        other.setflags(write=False)
        devices.constant(other, like)  # 80 bytes: the table's 48 have to go
        assert devices.constant(table, like) is not first
