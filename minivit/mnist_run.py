"""A whole run on MNIST: the data, the model, the step, the evaluation. The examples choose a model and a recipe.

This is the page to read for how training works; `training.py` below it keeps the run alive, `report.py` draws it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from minivit import data, optim, parallel, report, training
from minivit.backend import to_device
from minivit.checkpoint import save
from minivit.models import Model
from minivit.protocol import Array


@dataclass(frozen=True)
class Recipe:
    """What is trained and how: the model's arguments, and the numbers that differ between recipes."""

    model: dict[str, Any]
    epochs: int = 16
    batch_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup_epochs: float = 1.0
    label_smoothing: float = 0.1
    max_shift: int = 2  # pixels; digits are centred, so small moves are realistic variation
    degrees: float = 0.0
    scale: float = 0.0
    ema: float = 0.99  # of the averaged weights that are evaluated
    held_out: int = 1000  # images kept out of training to watch the run


def train(kind: Callable[..., Model], recipes: dict[str, Recipe], title: str, args: argparse.Namespace) -> None:
    """Train `kind` on MNIST as the command line says, and leave model, metrics, pictures and model card in args.out.

    Args:
        kind: the model's class; a recipe's `model` are its arguments.
        recipes: by name; "default" is for the whole of MNIST, "subset" for the 5,000 images found without a network.
        title: of the model card.
        args: what `arguments` read.
    """
    # 1. The data.
    mnist = data.load_mnist(args.data)
    recipe = chosen_recipe(recipes, args, "subset" if mnist.is_subset else "default")
    learn, watch = data.holdout(mnist.train_labels, recipe.held_out, seed=0)
    images, labels = mnist.train_images[learn][: args.limit], mnist.train_labels[learn][: args.limit]
    augment = data.chain(augmentation(recipe))
    batches_per_epoch = data.num_batches(len(images), recipe.batch_size)
    print(f"data: {mnist.source}; {len(images):,} images to learn from")

    # 2. The model: images (B, 1, 28, 28) -> logits (B, 10).
    model: Any = kind(**recipe.model, seed=args.seed)
    to_device(model, args.device)
    print(f"model: {optim.parameter_count(model.parameters()):,} parameters")

    # 3. Training: the four-line step, the learning rate's course before it, the average of the weights after it.
    opt = optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, no_decay=optim.no_decay(model))
    average = optim.ModelEma(model, recipe.ema)
    loss = training.CountingLoss()
    step = parallel.DataParallel(model, threads=1 if args.device == "gpu" else args.threads, loss=loss)
    settings = {**asdict(recipe), "seed": args.seed, "data": training.fingerprint(images, labels)}
    run = training.Run(args.out, settings, {"model": model, "optimiser": opt, "average": average}, resume=args.resume)

    def prepare(batch: Array) -> Array:
        return to_device(data.normalise(batch[:, None]), args.device)

    start = time.perf_counter()
    steps, warmup = recipe.epochs * batches_per_epoch, int(recipe.warmup_epochs * batches_per_epoch)
    for epoch in run.epochs(recipe.epochs):
        batches = data.batches(
            images, labels, recipe.batch_size, seed=args.seed, epoch=epoch, start=run.position, augment=augment
        )
        for x, y in run.steps(batches, batches_per_epoch):
            opt.lr = optim.warmup_cosine(run.step, steps, peak=recipe.lr, warmup=warmup)
            rng = training.noise_generator(args.seed, run.step)

            opt.zero_grad()
            value = step.loss_and_grad(to_device(x, args.device), y, rng, label_smoothing=recipe.label_smoothing)
            optim.clip_grad_norm(model.parameters(), 1.0)
            opt.step()

            average.update()
            run.log(value, loss.take(), len(x))
        average.swap()
        held_out, _ = training.accuracy(step.predict, mnist.train_images[watch], mnist.train_labels[watch], prepare)
        average.swap()
        run.end_epoch(opt.lr, held_out)

    # 4. Evaluation: the averaged weights, on images that nothing above has seen, once.
    average.swap()
    score, logits = training.accuracy(step.predict, mnist.test_images, mnist.test_labels, prepare)
    seconds = time.perf_counter() - start
    save(model, run.out / "model.safetensors")
    drawn = report.write_report(run.out, run.history, mnist.test_images, mnist.test_labels, logits)
    result = f"{score:.2%}".replace("%", " %") + ("" if mnist.is_published else f" ({mnist.kind})")
    report.write_model_card(
        run.out,
        title,
        {
            "test accuracy": result,
            "data": mnist.source,
            "training images": f"{len(images):,}",
            "parameters": f"{optim.parameter_count(model.parameters()):,}",
            "seed": args.seed,
            "threads": step.threads,
            "device": args.device,
            "time": f"{seconds:.0f} s",
            "recipe": recipe,
        },
    )
    print(f"model, metrics{', pictures' if drawn else ''} and model card are in {run.out}")
    if not drawn:
        print("for the pictures: pip install 'minivit[examples]'")
    print(f"test accuracy: {result}")


def augmentation(recipe: Recipe) -> Callable[[Array, Any], Array]:
    """Small moves of the digit; with degrees or scale also rotations and sizes."""

    def augment(images: Array, rng: Any) -> Array:
        if recipe.degrees or recipe.scale:
            scale = (1 - recipe.scale, 1 + recipe.scale)
            return data.affine(images, rng, degrees=recipe.degrees, scale=scale, max_shift=recipe.max_shift)
        return data.shift(images, rng, recipe.max_shift)

    return augment


def arguments(description: str | None, recipes: dict[str, Recipe], out: str) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with the four MNIST files (default: cache, download, or the subset)")
    parser.add_argument("--out", default=out, help="folder for checkpoint, metrics, pictures and model")
    parser.add_argument("--preset", choices=recipes, help="recipe (default: by the data that was found)")
    parser.add_argument("--epochs", type=int, help="passes over the data")
    parser.add_argument("--batch-size", type=int, help="images in a step")
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise")
    parser.add_argument("--threads", type=int, help="default: the cores that this process may use")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--limit", type=int, help="learn from so many images only")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    return parser.parse_args()


def chosen_recipe(recipes: dict[str, Recipe], args: argparse.Namespace, found: str) -> Recipe:
    """The preset, with what the command line changes."""
    changes = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr")}
    base = vars(recipes[args.preset or found])
    return Recipe(**{**base, **{name: value for name, value in changes.items() if value is not None}})


def main(
    kind: Callable[..., Model], recipes: dict[str, Recipe], *, title: str, description: str | None, out: str
) -> None:
    """The program: arguments, training, and errors as one line (`--debug` shows where they arose)."""
    args = arguments(description, recipes, out)
    try:
        train(kind, recipes, title, args)
    except (ValueError, RuntimeError, FloatingPointError) as error:
        if args.debug:
            raise
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the last checkpoint is kept: add --resume to go on") from None
