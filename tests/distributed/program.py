"""A short training, run by tests as one process and under mpiexec; rank 0 prints a JSON line with its digests.

python program.py FAMILY STEPS SHARDS [DEVICE]        the family: vit, swin, or sgd, a ViT that is trained by SGD

The device: cpu (the default), fake, a fake GPU for each rank with a stand-in for NCCL between them, shared, one fake
GPU for all, or without-nccl; "inexact" behind it leaves the order of addition to NCCL.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import minivit
from minivit import data, distributed, optim
from minivit.train import CountingLoss, noise_generator

FAMILIES: dict[str, Any] = {
    "vit": lambda: minivit.ViT(
        img_size=28, in_chans=1, num_classes=10, patch_size=7, depth=2, embed_dim=32, num_heads=4, mlp_ratio=2.0,
        drop_rate=0.1, drop_path_rate=0.1, seed=3,
    ),
    "swin": lambda: minivit.Swin(
        img_size=28, in_chans=1, num_classes=10, patch_size=2, depths=(2,), embed_dim=16, num_heads=(2,),
        window_size=7, drop_rate=0.1, drop_path_rate=0.1, seed=3,
    ),
}  # fmt: skip
FAMILIES["sgd"] = FAMILIES["vit"]
BATCH, IMAGES = 20, 90  # the last batch of an epoch has 10 images, which no number of shards below divides evenly


def digest(arrays: dict[str, Any]) -> str:
    """SHA-256 of names and contents."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(name.encode() + np.ascontiguousarray(minivit.to_numpy(array)).tobytes())
    return found.hexdigest()


def batches(steps: int) -> Any:
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8)
    labels = random.integers(0, 10, IMAGES)

    def augment(x: Any, y: Any, rng: Any) -> Any:
        return data.mixup(data.shift(x, rng, 2), y, rng, num_classes=10)

    done = 0
    for epoch in range(steps):
        for batch in data.batches(images, labels, BATCH, seed=1, epoch=epoch, augment=augment, drop_last=False):
            yield batch
            done += 1
            if done == steps:
                return


def main(family: str, steps: int, shards: int | None, device: str = "cpu", exact: bool = True) -> None:
    ranks = distributed.join(shards, device, exact)
    model = minivit.to_device(FAMILIES[family](), device)
    whole: Any = optim.AdamW(model.parameters(), 2e-3, no_decay=optim.no_decay(model))
    if family == "sgd":
        whole = optim.SGD(model.parameters(), 2e-3, momentum=0.9, weight_decay=0.01, no_decay=optim.no_decay(model))
    opt = ranks.optimizer(whole)
    average, criterion = optim.ModelEma(model, 0.9), CountingLoss()
    step = ranks.data_parallel(model, opt, loss=criterion)
    losses, norms, sent = [], [], 0
    for number, (x, y) in enumerate(batches(steps)):
        rng = noise_generator(1, number)
        opt.lr = optim.warmup_cosine(number, steps, peak=2e-3, warmup=steps // 4)
        opt.zero_grad()
        before = ranks.sent
        x, half = minivit.to_device(x, device), len(x) // 3 + 1  # two unequal parts are accumulated
        loss = step.loss_and_grad(x[:half], y[:half], rng, dloss=half / len(x), label_smoothing=0.1)
        loss += step.loss_and_grad(x[half:], y[half:], rng, dloss=1 - half / len(x), label_smoothing=0.1)
        norms.append(ranks.clip_grad_norm(opt.params, 1.0))
        opt.step()
        if number == 1:  # as a run that is resumed
            opt.load_state_dict(ranks.broadcast(opt.state_dict()))
        average.update()
        losses.append((loss, criterion.take_correct()))
        sent = ranks.sent - before
    assert ranks.size == 1 or ranks._waiting.is_under_way  # from here on no rank is awaited for long
    logits = step.predict(x)
    assert device == "cpu" or not isinstance(logits, np.ndarray)
    state = {name: minivit.to_numpy(value) for name, value in opt.state_dict().items()}
    said = ranks.gather((losses, norms, digest(model.state_dict()), digest({"logits": logits}), sent))
    assert all(other[:4] == said[0][:4] for other in said), "ranks differ"
    if ranks.first:
        line = {
            "weights": digest(model.state_dict()),
            "optimizer": digest(state),
            "average": digest(average.state_dict()),
            "logits": said[0][3],
            "losses": losses,
            "norms": norms,
            "sent": [other[4] for other in said],
            "bytes": sum(param.data.nbytes for param in model.parameters().values()),
        }
        print(json.dumps(line))


def on_fake_device(kind: str, *arguments: Any) -> None:
    """`main` on a fake GPU of this process."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "fake_device"))
    import fake_cupy
    import nccl_on_mpi

    with fake_cupy.installed() as cupy:
        if kind != "shared":
            fake_cupy.Device.pci_bus_id = f"0000:{1 + (distributed.launched_rank() or 0):02x}:00.0"
        if kind != "without-nccl":
            sys.modules["cupy.cuda.nccl"] = cupy.cuda.nccl = nccl_on_mpi.module()
        main(*arguments, "gpu", "inexact" not in sys.argv)


if __name__ == "__main__":
    called = (sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if sys.argv[3] != "none" else None)
    if sys.argv[4:5] in ([], ["cpu"]):
        main(*called, exact="inexact" not in sys.argv)
    else:
        on_fake_device(sys.argv[4], *called)
