"""A whole run on MNIST: the data, the model, the step, the evaluation. The examples choose a model and a recipe.

This is the page to read for how a run is put together; the steps themselves are one page below it, in `loop.py`.
Next: `tasks.py`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from minivit import data, optim, parallel
from minivit.backend import to_device
from minivit.checkpoint import save
from minivit.models import Model
from minivit.protocol import Array
from minivit.training import program, report
from minivit.training.loop import Batches, Course, learn
from minivit.training.run import CountingLoss, Run, accuracy, fingerprint


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


@dataclass(frozen=True)
class Learner:
    """A model that an example can train.

    Attributes:
        kind: its class; a recipe's `model` are the arguments.
        title: of the model card.
        recipes: by name; "default" is for the whole of MNIST, "subset" for the 5,000 images found without a network.
    """

    kind: Callable[..., Model]
    title: str
    recipes: dict[str, Recipe]


def train(learner: Learner, args: argparse.Namespace) -> None:
    """Train on MNIST as the command line says, and leave model, metrics, pictures and model card in args.out.

    Args:
        learner: what is trained.
        args: what `arguments` read.
    """
    # 1. The data.
    mnist = data.load_mnist(args.data)
    recipe = chosen_recipe(learner.recipes, args, "subset" if mnist.is_subset else "default")
    kept, watch = data.holdout(mnist.train_labels, recipe.held_out, seed=0)
    images, labels = mnist.train_images[kept][: args.limit], mnist.train_labels[kept][: args.limit]
    augment = data.chain(augmentation(recipe))
    count = data.num_batches(len(images), recipe.batch_size)
    print(f"data: {mnist.source}; {len(images):,} images to learn from")

    # 2. The model: images (B, 1, 28, 28) -> logits (B, 10).
    model: Any = learner.kind(**recipe.model, seed=args.seed)
    to_device(model, args.device)
    print(f"model: {optim.parameter_count(model.parameters()):,} parameters")

    # 3. Training: the optimiser, the average of the weights, the shards of a batch, and the loop over all steps.
    opt = optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, no_decay=optim.no_decay(model))
    average = optim.ModelEma(model, recipe.ema)
    threads = 1 if args.device == "gpu" else args.threads
    step = parallel.DataParallel(model, threads, loss=CountingLoss())
    settings = {**asdict(recipe), "seed": args.seed, "data": fingerprint(images, labels)}
    run = Run(args.out, settings, {"model": model, "optimiser": opt, "average": average}, resume=args.resume)

    def prepare(batch: Array) -> Array:
        return to_device(data.normalise(batch[:, None]), args.device)

    def batches(epoch: int, position: int) -> Batches:
        seed = args.seed
        return data.batches(images, labels, recipe.batch_size, seed=seed, epoch=epoch, start=position, augment=augment)

    def evaluate() -> float:
        average.swap()
        held_out, _ = accuracy(step.predict, mnist.train_images[watch], mnist.train_labels[watch], prepare)
        average.swap()
        return held_out

    start = time.perf_counter()
    course = Course(
        recipe.epochs, count, recipe.lr, recipe.warmup_epochs, recipe.label_smoothing, args.seed, args.device
    )
    learn(run, step, opt, batches, evaluate, course, average)

    # 4. Evaluation: the averaged weights, on images that nothing above has seen, once.
    average.swap()
    score, logits = accuracy(step.predict, mnist.test_images, mnist.test_labels, prepare)
    seconds = time.perf_counter() - start
    save(model, run.out / "model.safetensors")
    drawn = report.write_report(run.out, run.history, mnist.test_images, mnist.test_labels, logits)
    result = f"{score:.2%}".replace("%", " %") + ("" if mnist.is_published else f" ({mnist.kind})")
    report.write_model_card(
        run.out,
        learner.title,
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


def arguments(description: str | None, learners: dict[str, Learner]) -> argparse.Namespace:
    """What the command line says."""
    help_data = "folder with the four MNIST files (default: cache, download, or the subset)"
    parser = program.parser(description, data=help_data, out="runs/mnist_MODEL")
    first, presets = next(iter(learners)), {name: None for each in learners.values() for name in each.recipes}
    parser.add_argument("--model", choices=learners, default=first, help=f"what to train (default: {first})")
    parser.add_argument("--preset", choices=presets, help="recipe (default: by the data that was found)")
    args = parser.parse_args()
    args.out = args.out.replace("MODEL", args.model)
    offered = learners[args.model].recipes
    if args.preset is not None and args.preset not in offered:
        parser.error(f"--model {args.model} has no preset {args.preset}: choose {' or '.join(offered)}")
    return args


def chosen_recipe(recipes: dict[str, Recipe], args: argparse.Namespace, found: str) -> Recipe:
    """The preset, with what the command line changes."""
    changes = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr")}
    return replace(
        recipes[args.preset or found], **{name: value for name, value in changes.items() if value is not None}
    )


def main(learners: dict[str, Learner], description: str | None) -> None:
    """The program: arguments, training, and errors as one line (`--debug` shows where they arose).

    Args:
        learners: by the name that `--model` gives; the first is the default.
        description: the example's docstring.
    """
    args = arguments(description, learners)
    program.run(lambda args: train(learners[args.model], args), args)
