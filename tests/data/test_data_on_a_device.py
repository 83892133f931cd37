"""Images that stay on a GPU: the batches and augmentations have the bits of the host's, and the host never waits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import fake_cupy
import numpy as np
import pytest
from device_tools import Device

import minivit
from minivit import data, optim, parallel
from minivit.fast.half import PRECISIONS
from minivit.train import CountingLoss, Run, fit
from minivit.train.presets import Preset

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (23, 9, 7), dtype=np.uint8)  # (n, H, W)
COLOR = RNG.integers(0, 256, (23, 3, 8, 8), dtype=np.uint8)  # (n, C, H, W)
LABELS = RNG.integers(0, 4, 23)
AUGMENTATIONS: dict[str, Any] = {
    "none": None,
    "shift": data.chain(data.shift),
    "crop": data.chain(partial(data.crop, padding=2, size=(5, 6))),
    "crop, reflected": data.chain(partial(data.crop, padding=3, reflect=True)),
    "flip": data.chain(data.flip),
    "erase": data.chain(partial(data.erase, p=0.9)),
    "erase by noise": data.chain(partial(data.erase, p=0.9, fill=None)),
    "affine": data.chain(partial(data.affine, degrees=30, shear=10, max_shift=2)),
    "mixup": data.chain(mix=partial(data.mixup, num_classes=4)),
    "cutmix": data.chain(data.flip, mix=partial(data.cutmix, num_classes=4)),
    "preset": Preset({}, degrees=10, scale=0.1).augment,
}


@pytest.fixture(params=["fake", "cupy"])
def device(device: Any) -> Any:
    """The fake device, and CuPy itself where a GPU answers."""
    return device


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("images", [GRAY, COLOR], ids=["gray", "color"])
def test_batches_have_the_bits_of_the_host(images: Any, name: str, device: Device) -> None:
    options: Any = {"seed": 3, "epoch": 1, "augment": AUGMENTATIONS[name], "drop_last": False}
    if images is COLOR:
        options |= {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    expected = list(data.batches(images, LABELS, 8, **options))
    waits = fake_cupy.synchronizations
    found = list(data.batches(device.put(images), LABELS, 8, **options))
    assert fake_cupy.synchronizations == waits
    assert len(found) == len(expected) == 3
    for (x, y), (expected_x, expected_y) in zip(found, expected):
        assert isinstance(x, device.module.ndarray) and isinstance(y, np.ndarray)
        np.testing.assert_array_equal(device.get(x), expected_x)
        np.testing.assert_array_equal(y, expected_y)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name not in ("none", "mixup")])
def test_pixels_of_8_bits_are_changed_as_on_the_host(name: str, device: Device) -> None:
    expected, _ = AUGMENTATIONS[name](COLOR, LABELS, np.random.default_rng(4))
    found, _ = AUGMENTATIONS[name](device.put(COLOR), LABELS, np.random.default_rng(4))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(device.get(found), expected)


def test_other_images_on_a_gpu_are_refused_as_on_the_host(device: Device) -> None:
    for images in (GRAY.astype("float32"), GRAY[0]):
        with pytest.raises(ValueError, match=r"expected \(n, H, W\) or \(n, C, H, W\) uint8"):
            data.normalize(device.put(images))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_training_loop_waits_for_nothing_between_two_lines(precision: str, tmp_path: Path) -> None:
    """Batches, augmentation, step, clipping, AdamW, average and log of an epoch on the device that counts."""
    if precision == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it has bfloat16")
    with fake_cupy.installed() as device:
        model = minivit.ViT(
            img_size=8, patch_size=4, in_chans=3, num_classes=4, embed_dim=8, depth=1, num_heads=2,
            drop_path_rate=0.1, proj_drop_rate=0.1, seed=1,
        )  # fmt: skip
        minivit.to_device(model, "gpu")
        opt, average = optim.AdamW(model.parameters()), optim.ModelEma(model)
        step = parallel.CapturedStep(model, CountingLoss(), precision)
        parts = {"model": model, "optimizer": opt, "average": average, **step.saved_parts()}
        run = Run(tmp_path / "run", {}, parts, quiet=True)
        images, waits = device.asarray(COLOR), []

        def batches(epoch: int, start: int) -> Any:
            augment = Preset({}, degrees=10, scale=0.1).augment
            for batch in data.batches(images, LABELS, 4, seed=0, epoch=epoch, start=start, augment=augment):
                waits.append(fake_cupy.synchronizations)
                yield batch
            waits.append(fake_cupy.synchronizations)

        options: Any = {"epochs": 2, "batches_per_epoch": 5, "lr": 1e-3, "average": average, "device": "gpu"}
        fit(run, step, opt, batches, lambda: 0.5, **options)
    found = np.array(waits).reshape(2, 6)
    assert (np.diff(found[1]) == 0).all()  # the first step is recorded, for which the host waits
    assert found[1, 0] > found[0, -1]  # and so is the line of an epoch printed and saved
    assert (np.diff(found[0])[1:] == 0).all()
