"""Does pretraining pay? A model pretrained to predict rotations of digits, against the same model from scratch.

    python examples/pretraining_pays.py                 # half an hour on one core; prints the table
    python examples/pretraining_pays.py --seeds 0       # one seed of it

The first model is pretrained on 60,000 digits without their labels to predict by how many quarter turns each was
rotated (Gidaris et al. 2018, "Unsupervised Representation Learning by Predicting Image Rotations"). Then both are
trained on the same 1,000 labeled digits. docs/pretraining.md has the results and what they mean.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import minivit
from minivit import data, train
from minivit.models import Model
from minivit.train import command_line
from minivit.train.finetuning import Outcome, Recipe, fine_tune
from minivit.train.presets import QUICK
from minivit.train.tasks import Part, Task, mnist_task

TURNS = ("upright", "a quarter", "half", "three quarters")

PRETRAINING = Recipe(epochs=20, batch_size=128, lr=4e-3, layer_decay=1.0, label_smoothing=0.0, keep="last")
# No epoch is chosen by held-out images, which would need further labels: both sides keep the last epoch. Learning rate
# and layer decay are the best of 1e-3 to 8e-3 and of 0.75, 0.9 and 1; docs/pretraining.md says how they were chosen.
SIDES = {
    "from scratch": Recipe(lr=4e-3, layer_decay=1.0, keep="last"),
    "pretrained": Recipe(lr=4e-3, layer_decay=0.9, keep="last"),
}


def turn(images: Any, labels: Any, rng: np.random.Generator) -> tuple[Any, Any]:
    """Each image (C, H, W) rotated by a random number of quarter turns, which becomes its label."""
    quarters = rng.integers(4, size=len(images))
    return np.stack([np.rot90(image, k, axes=(1, 2)) for image, k in zip(images, quarters)]), quarters


def rotation_task(mnist: data.Mnist) -> Task:
    """The training images of MNIST, without their labels: predict the rotation."""
    images = mnist.train_images
    nothing = np.zeros(len(images), np.int64)  # in place of the labels, so that they cannot leak
    watch, quarters = turn(mnist.train_images[:1000, None], nothing, np.random.default_rng(0))
    return Task(
        source=mnist.source,
        classes=TURNS,
        learn=Part(images, nothing),
        held_out=Part(watch[:, 0], quarters),  # training images in other rotations: shows only the progress of training
        test=None,
        preprocess=data.Preprocess(images.shape[1:], mean=(data.MNIST_MEAN,), std=(data.MNIST_STD,)),
        prepare=data.normalize,
        batches=partial(data.batches, images, nothing, augment=data.chain(data.shift, mix=turn)),
        fingerprint=train.fingerprint(images),
    )


def run(model: Model, task: Task, recipe: Recipe, out: Path, seed: int, threads: int) -> Outcome:
    """One training; a run in `out` with the same settings is resumed, and not repeated if it is complete."""
    resume = train.resumable(out)
    return fine_tune(model, task, recipe, out, seed=seed, threads=threads, resume=resume, quiet=True)


def pretrained(mnist: data.Mnist, args: argparse.Namespace) -> Path:
    """The file with the weights of a model pretrained to predict rotations, for all seeds."""
    out = args.out / "pretraining"
    model = minivit.ViT(**{**QUICK, "num_classes": len(TURNS)}, seed=0)
    recipe = replace(PRETRAINING, epochs=args.pretraining_epochs)
    outcome = run(model, rotation_task(mnist), recipe, out, 0, args.threads)
    minivit.save(model, out / "model.safetensors")
    print(f"pretraining: {outcome.held_out:.2%} of rotations predicted after {outcome.seconds:.0f} s", flush=True)
    return out / "model.safetensors"


def test_accuracy(
    mnist: data.Mnist, weights: Path, side: str, epochs: int, seed: int, args: argparse.Namespace
) -> float:
    """The test accuracy of a model trained on the labeled images."""
    if side == "pretrained":
        model = minivit.from_pretrained(weights, num_classes=10, report=lambda line: None)
    else:
        model = minivit.ViT(**QUICK, seed=seed)
    task = mnist_task(mnist, args.labeled, seed)
    out = args.out / f"{side.replace(' ', '-')}-{epochs}-{seed}"
    outcome = run(model, task, replace(SIDES[side], epochs=epochs), out, seed, args.threads)
    print(f"seed {seed}, {epochs} epochs, {side}: {outcome.test:.2%} after {outcome.seconds:.0f} s", flush=True)
    return outcome.test or 0.0


def table(scores: dict[tuple[str, int], list[float]], seeds: list[int]) -> str:
    """Markdown: a row for each side and number of epochs, a column for each seed, mean and standard deviation."""
    lines = [f"| epochs | start | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | spread |"]
    lines.append("|---" * (len(seeds) + 4) + "|")
    for (side, epochs), row in scores.items():
        spread = f"{100 * np.std(row, ddof=1):.2f}" if len(row) > 1 else ""
        cells = [str(epochs), side, *(f"{score:.2%}" for score in row), f"{np.mean(row):.2%}", spread]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> None:
    """Both sides, every number of epochs, every seed."""
    mnist = data.load_mnist(args.data or os.environ.get("MINIVIT_MNIST"))
    print(f"data: {mnist.source}", flush=True)
    weights = pretrained(mnist, args)
    scores = {
        (side, epochs): [test_accuracy(mnist, weights, side, epochs, seed, args) for seed in args.seeds]
        for epochs in args.epochs
        for side in SIDES
    }
    text = table(scores, args.seeds)
    (args.out / "table.md").write_text(text + "\n", encoding="utf-8")
    print(f"\ntest accuracy over {len(mnist.test_labels):,} images, trained on {args.labeled:,} labeled ones\n")
    print(text)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Help)
    parser.add_argument("--data", help="folder with the four MNIST files (default: cache, download, or the subset)")
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining_pays"), help="folder for runs and table")
    parser.add_argument(
        "--seeds", type=command_line.at_least(0), nargs="+", default=[0, 1, 2], help="of images, weights, order"
    )
    parser.add_argument(
        "--epochs", type=command_line.at_least(1), nargs="+", default=[40, 160, 640], help="over the labeled images"
    )
    parser.add_argument(
        "--pretraining-epochs", type=command_line.at_least(1), default=PRETRAINING.epochs, help="over all images"
    )
    parser.add_argument(
        "--labeled",
        type=command_line.at_least(1),
        default=1000,
        help="images with labels, the same number of each digit",
    )
    parser.add_argument("--threads", type=command_line.at_least(1), default=1, help="1 by default: the model is small")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    return parser.parse_args()


if __name__ == "__main__":
    command_line.run(main, arguments())
