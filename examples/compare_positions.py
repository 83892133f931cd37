"""Does a ViT need position embeddings, and does their kind matter? Six kinds compared on MNIST.

    python examples/compare_positions.py             # 36 trainings, about 25 minutes on one core; prints the table
    python examples/compare_positions.py --quick     # one short epoch of each, to see whether it runs
    python examples/compare_positions.py --kinds none learned_1d --seeds 0 --json runs/positions.json

A model with each kind is trained on the images as they are, and as a control on images whose patches are permuted in
the same way in all images: the rows, columns and neighbors that a kind encodes are then wrong. docs/positions.md has
the results and what they mean.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minivit
from minivit import data, functional as F, optim
from minivit.io.atomic import write_atomically
from minivit.parallel import DataParallel
from minivit.protocol import Array
from minivit.train import command_line, fingerprint

KINDS = {
    "none": "none",
    "learned_1d": "learned, 1-D",
    "learned_2d": "learned, 2-D",
    "relative": "relative",
    "sincos_1d": "sines, 1-D",
    "sincos_2d": "sines, 2-D",
}
ORDERS = {"image": "patches in place", "shuffled": "patches shuffled"}
PATCH, GRID = 7, (4, 4)
MODEL = {
    "img_size": 28, "patch_size": PATCH, "in_chans": 1, "num_classes": 10,
    "embed_dim": 48, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0,
}  # fmt: skip
NEW_ORDER = np.random.default_rng(0).permutation(GRID[0] * GRID[1])  # of the shuffled patches, in every run

ROOT = Path(__file__).resolve().parents[1]
PAGE, FIGURE = ROOT / "docs" / "positions.md", ROOT / "docs" / "images" / "compare_positions.svg"
MARKERS = "<!-- measured by examples/compare_positions.py -->", "<!-- end of what was measured -->"

Scores = dict[tuple[str, str, int], float]  # (kind, order, seed) -> test accuracy


@dataclass(frozen=True)
class Recipe:
    """What all trainings have in common."""

    epochs: int = 5
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.05
    limit: int | None = None  # use only the first N training images


def shuffled(images: Array) -> Array:
    """Images (n, H, W) with their patches in another order, the same for each image."""
    rows, _ = F.patchify(images[:, None], PATCH)  # (n, N, P P)
    moved, _ = F.unpatchify(rows[:, NEW_ORDER], PATCH, GRID)  # (n, 1, H, W)
    return moved[:, 0]


def accuracy_of(kind: str, seed: int, mnist: tuple[Array, ...], recipe: Recipe, threads: int) -> float:
    """The test accuracy of one model after its last epoch; the test images are used for nothing else.

    No augmentation: it would move pixels between the patches of a shuffled image.
    """
    images, labels, test_images, test_labels = mnist
    model = minivit.ViT(**MODEL, pos_embed=kind, seed=seed)
    step = DataParallel(model, threads)
    opt = optim.AdamW(model.parameters(), recipe.lr, weight_decay=recipe.weight_decay, no_decay=optim.no_decay(model))
    count = data.num_batches(len(images), recipe.batch_size)
    for epoch in range(recipe.epochs):
        for position, (x, y) in enumerate(data.batches(images, labels, recipe.batch_size, seed=seed, epoch=epoch)):
            done = epoch * count + position
            opt.lr = optim.warmup_cosine(done, recipe.epochs * count, peak=recipe.lr, warmup=count)
            opt.zero_grad()
            step.loss_and_grad(x, y)
            optim.clip_grad_norm(opt.params, 1.0)
            opt.step()
    logits = step.predict(data.normalize(test_images))
    return float((logits.argmax(axis=1) == test_labels).mean())


def measure(mnist: data.Mnist, recipe: Recipe, args: argparse.Namespace) -> Scores:
    """Every kind, order and seed; scores in args.json from an earlier call with the same settings are not run again."""
    train_images, train_labels = mnist.train_images[: recipe.limit], mnist.train_labels[: recipe.limit]
    settings = {**asdict(recipe), "model": MODEL, "data": fingerprint(train_images, train_labels)}
    scores = read(args.json, settings)
    for order in ORDERS:
        turn = shuffled if order == "shuffled" else np.asarray
        parts = turn(train_images), train_labels, turn(mnist.test_images), mnist.test_labels
        for seed in args.seeds:
            for kind in args.kinds:
                if (kind, order, seed) not in scores:
                    begin = time.perf_counter()
                    scores[kind, order, seed] = accuracy_of(kind, seed, parts, recipe, args.threads)
                    seconds = time.perf_counter() - begin
                    found = f"{scores[kind, order, seed]:.2%} after {seconds:.0f} s"
                    print(f"{ORDERS[order]}, seed {seed}, {KINDS[kind]}: {found}", flush=True)
                    keep(args.json, settings, scores)
    return {key: scores[key] for key in scores if key[0] in args.kinds and key[2] in args.seeds}


def read(path: Path | None, settings: dict[str, Any]) -> Scores:
    """The scores in a file that `keep` wrote; none if there is no such file."""
    if path is None or not path.exists():
        return {}
    stored = json.loads(path.read_text(encoding="utf-8"))
    if stored["settings"] != settings:
        raise ValueError(
            f"--json {path} holds runs with other settings {stored['settings']}: name another file, or delete it"
        )
    return {(kind, order, seed): score for kind, order, seed, score in stored["scores"]}


def keep(path: Path | None, settings: dict[str, Any], scores: Scores) -> None:
    if path is not None:
        rows = [[*key, score] for key, score in scores.items()]
        write_atomically(path, json.dumps({"settings": settings, "scores": rows}, indent=1).encode())


def mean_and_spread(values: list[float], sign: str = "") -> str:
    """In per cent or points: the mean, and over two or more seeds the standard deviation."""
    spread = f" ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{100 * np.mean(values):{sign}.2f}{spread}"


def of_seeds(scores: Scores, kind: str, order: str) -> list[float]:
    return [score for (k, o, _), score in sorted(scores.items()) if (k, o) == (kind, order)]


def gains(scores: Scores, kind: str, order: str) -> list[float]:
    """The gain of a kind over none for each seed: both are trained on the same batches in the same order."""
    pairs = zip(of_seeds(scores, kind, order), of_seeds(scores, "none", order))
    return [mine - nothing for mine, nothing in pairs]


def table(scores: Scores) -> str:
    """Markdown: a row for each kind; accuracy and gain over none, for both orders of the patches."""
    kinds = [kind for kind in KINDS if of_seeds(scores, kind, "image")]
    head = "| positions | parameters | in place, % | gain over none | shuffled, % | gain over none |"
    lines = [head, "|---" * 6 + "|"]
    for kind in kinds:
        cells = [KINDS[kind], f"{optim.parameter_count(minivit.ViT(**MODEL, pos_embed=kind).parameters()):,}"]
        for order in ORDERS:
            compared = "none" in kinds and kind != "none"
            gain = mean_and_spread(gains(scores, kind, order), "+") if compared else ""
            cells += [mean_and_spread(of_seeds(scores, kind, order)), gain]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(scores: Scores, path: Path) -> None:
    """The test error of each kind: a mark for each seed, for both orders."""
    from minivit.draw import figures

    kinds = [kind for kind in KINDS if of_seeds(scores, kind, "image")]
    figure, axes = figures.new(width=8.0, height=3.6)  # says how to install matplotlib where it is missing
    from matplotlib import rc_context

    for shift, (order, name) in zip((-0.13, 0.13), ORDERS.items()):
        look = {"linestyle": "none", "markersize": 6, "fillstyle": "full" if order == "image" else "none"}
        marks = [(place + shift, 100 - 100 * s) for place, k in enumerate(kinds) for s in of_seeds(scores, k, order)]
        axes.plot(*zip(*marks), label=f"{name}: one mark for each seed", **look)
    axes.set_xticks(range(len(kinds)), [KINDS[kind] for kind in kinds])
    axes.set_ylim(0)
    axes.set_xlabel("kind of position embedding")
    axes.set_ylabel("test error (%)")
    axes.grid(True, axis="y", color="#dddddd", lw=0.6)
    axes.legend()
    with rc_context(figures.STYLE):
        scaling().save_figure(figure, path)


def scaling() -> Any:
    """benchmarks/scaling.py, which writes measured numbers into a page."""
    sys.path.append(str(ROOT / "benchmarks"))
    import scaling

    return scaling


def main(args: argparse.Namespace) -> None:
    """All runs, then the table; with --write also the page and its figure."""
    partial = args.quick or set(args.kinds) != set(KINDS)
    if args.write and partial:
        raise ValueError("--write needs the full runs of all kinds: leave --kinds and --quick out")
    mnist = data.load_mnist(args.data or os.environ.get("MINIVIT_MNIST"))
    recipe = Recipe(args.epochs or Recipe.epochs, lr=args.lr)
    if args.quick:
        recipe = Recipe(args.epochs or 1, lr=args.lr, limit=1280)
    print(f"data: {mnist.source}", flush=True)
    scores = measure(mnist, recipe, args)
    epochs = f"{recipe.epochs} epoch{'s' if recipe.epochs > 1 else ''}"
    images = f"{len(mnist.train_images[: recipe.limit]):,} images"
    how = (
        f"Accuracy on {mnist.kind}, in %, after {epochs} over {images}; mean and standard deviation over "
        f"{len(args.seeds)} seeds. Gains are in points, taken seed by seed. NumPy {np.__version__}."
    )
    text = f"{textwrap.fill(how, 120)}\n\n{table(scores)}"
    print(f"\n{text}")
    if args.write:
        scaling().write_between(PAGE, MARKERS, text)
    figure = args.figure or (FIGURE if args.write else None)
    if figure:
        draw(scores, figure)


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Help)
    parser.add_argument("--data", help="folder with the four MNIST files (default: cache, download, or the subset)")
    parser.add_argument(
        "--seeds",
        type=command_line.at_least(0),
        nargs="+",
        default=[0, 1, 2],
        help="of weights and order of the images",
    )
    parser.add_argument("--epochs", type=command_line.at_least(1), help=f"over the images (default: {Recipe.epochs})")
    parser.add_argument("--lr", type=command_line.above_zero, default=Recipe.lr, help="peak learning rate")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND", help=" ".join(KINDS))
    parser.add_argument("--threads", type=command_line.at_least(1), default=1, help="1 by default: the model is small")
    parser.add_argument("--json", type=Path, help="keep each score in this file; scores in it are not run again")
    parser.add_argument("--quick", action="store_true", help="one epoch over 1,280 images, to see whether it runs")
    parser.add_argument("--figure", type=Path, help="draw the figure into this file")
    parser.add_argument("--write", action="store_true", help="table and figure into docs/positions.md")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    return parser.parse_args()


if __name__ == "__main__":
    command_line.run(main, arguments())
