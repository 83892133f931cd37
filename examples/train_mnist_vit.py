"""Train a Vision Transformer on MNIST, every gradient by hand: data, model, the step, evaluation.

    python examples/train_mnist_vit.py                     # finds MNIST, trains for a few minutes
    python examples/train_mnist_vit.py --preset accurate   # up to an hour, 99.3 % and more

Ctrl-C stops after the current step; `--resume` goes on from there.
"""

import argparse
import time
from dataclasses import asdict, dataclass

import minivit
from minivit import data, optim, parallel, report, training


@dataclass(frozen=True)
class Recipe:
    """What is trained and how; the numbers that differ between presets."""

    patch_size: int = 7  # 16 patches of 7x7: every step is cheap
    embed_dim: int = 64
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: float = 2.0
    drop_path: float = 0.0
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


RECIPES = {
    "default": Recipe(),
    "subset": Recipe(epochs=60, batch_size=64, held_out=200),  # 4,000 images: more epochs, smaller batches
    "accurate": Recipe(patch_size=4, depth=6, epochs=36, lr=1.5e-3, degrees=10, scale=0.1, drop_path=0.05, ema=0.999),
}


def main(args: argparse.Namespace) -> None:
    # 1. The data.
    mnist = data.load_mnist(args.data)
    recipe = chosen_recipe(args, "subset" if mnist.is_subset else "default")
    learn, watch = data.holdout(mnist.train_labels, recipe.held_out, seed=0)
    images, labels = mnist.train_images[learn][: args.limit], mnist.train_labels[learn][: args.limit]
    augment = data.chain(augmentation(recipe))
    batches_per_epoch = data.num_batches(len(images), recipe.batch_size)
    print(f"data: {mnist.source}; {len(images):,} images to learn from")

    # 2. The model: images (B, 1, 28, 28) -> tokens (B, 17, 64) -> logits (B, 10).
    model = minivit.ViT(
        img_size=28,
        patch_size=recipe.patch_size,
        in_chans=1,
        num_classes=10,
        embed_dim=recipe.embed_dim,
        depth=recipe.depth,
        num_heads=recipe.num_heads,
        mlp_ratio=recipe.mlp_ratio,
        drop_path_rate=recipe.drop_path,
        seed=args.seed,
    )
    minivit.to_device(model, args.device)
    print(f"model: {optim.parameter_count(model.parameters()):,} parameters")

    # 3. Training: the four-line step, the learning rate's course before it, the average of the weights after it.
    opt = optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, no_decay=optim.no_decay(model))
    average = optim.ModelEma(model, recipe.ema)
    loss = training.CountingLoss()
    step = parallel.DataParallel(model, threads=1 if args.device == "gpu" else args.threads, loss=loss)
    settings = {**asdict(recipe), "seed": args.seed, "data": training.fingerprint(images, labels)}
    run = training.Run(args.out, settings, {"model": model, "optimiser": opt, "average": average}, resume=args.resume)

    def prepare(batch):
        return minivit.to_device(data.normalise(batch[:, None]), args.device)

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
            value = step.loss_and_grad(
                minivit.to_device(x, args.device), y, rng, label_smoothing=recipe.label_smoothing
            )
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
    minivit.save(model, run.out / "model.safetensors")
    drawn = report.write_report(run.out, run.history, mnist.test_images, mnist.test_labels, logits)
    result = f"{score:.2%}".replace("%", " %") + ("" if mnist.is_published else f" ({mnist.kind})")
    report.write_model_card(
        run.out,
        "A Vision Transformer for handwritten digits",
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


def augmentation(recipe: Recipe):
    """Small moves of the digit; with degrees or scale also rotations and sizes."""

    def augment(images, rng):
        if recipe.degrees or recipe.scale:
            scale = (1 - recipe.scale, 1 + recipe.scale)
            return data.affine(images, rng, degrees=recipe.degrees, scale=scale, max_shift=recipe.max_shift)
        return data.shift(images, rng, recipe.max_shift)

    return augment


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with the four MNIST files (default: cache, download, or the subset)")
    parser.add_argument("--out", default="runs/mnist_vit", help="folder for checkpoint, metrics, pictures and model")
    parser.add_argument("--preset", choices=RECIPES, help="recipe (default: by the data that was found)")
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


def chosen_recipe(args: argparse.Namespace, found: str) -> Recipe:
    """The preset, with what the command line changes."""
    changes = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr")}
    base = asdict(RECIPES[args.preset or found])
    return Recipe(**{**base, **{name: value for name, value in changes.items() if value is not None}})


if __name__ == "__main__":
    arguments_given = arguments()
    try:
        main(arguments_given)
    except (ValueError, RuntimeError, FloatingPointError) as error:
        if arguments_given.debug:
            raise
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the last checkpoint is kept: add --resume to go on") from None
