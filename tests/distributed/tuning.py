"""A fine-tuning with frozen layers, run by tests as one process and under mpiexec: `python tuning.py OUT SHARDS`."""

from __future__ import annotations

import json
import sys

import numpy as np
import program

import minivit
from minivit import data, distributed
from minivit.train import fingerprint
from minivit.train.finetuning import Recipe, fine_tune
from minivit.train.tasks import Part, Task

SIZE = 8


def task() -> Task:
    """Squares whose class is the row of a bright bar."""
    labels = np.arange(60) % 3
    images = np.random.default_rng(0).integers(60, size=(60, SIZE, SIZE)).astype(np.uint8)
    for image, label in zip(images, labels):
        image[2 * label : 2 * label + 2] = 255

    def batches(batch_size: int, **place: int) -> object:
        return data.batches(images[:40], labels[:40], batch_size, **place)

    parts = [Part(images[part], labels[part]) for part in (slice(40), slice(40, 50), slice(50, 60))]
    preprocess = data.Preprocess(SIZE, mean=(0.5,), std=(0.5,))
    names = ("low", "middle", "high")
    return Task("bars", names, *parts, preprocess, data.normalize, batches, fingerprint(images, labels))


def main(out: str, shards: int) -> None:
    ranks = distributed.join(shards)
    model = minivit.ViT(
        img_size=SIZE, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=3, num_heads=2, drop_rate=0.1, seed=1
    )
    frozen = {name for name in model.parameters() if name.startswith(("patch_embed", "pos_embed", "cls", "blocks.0"))}
    recipe = Recipe(epochs=3, batch_size=6, lr=3e-3)
    outcome = fine_tune(model, task(), recipe, out, frozen=frozen, threads=1, quiet=True, ranks=ranks)
    found = {"weights": program.digest(model.state_dict()), "held out": outcome.held_out, "test": outcome.test}
    assert ranks.gather(found) == [found] * ranks.size
    if ranks.first:
        print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
