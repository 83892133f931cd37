"""Draw the README's figures, with numbers of a trained model: a forward and backward pass, and the report of a run.

    python examples/train_mnist_vit.py --out runs/mnist_vit
    python docs/write_readme_pictures.py runs/mnist_vit      # writes docs/images/pass.svg and docs/images/run.png

Every array in the first figure is what the model computes for one digit.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

import minivit
from minivit import data, functional as F
from minivit.draw.figures import HEAT, SIGNED, STYLE
from minivit.draw.style import BLUE, INK, QUIET, RED
from minivit.explain import attention_weights
from minivit.train import report

IMAGES = Path(__file__).parent / "images"
LEFT = (0.03, 0.235, 0.475, 0.735)  # of the four columns, in shares of the width
WIDTH = (0.15, 0.17, 0.19, 0.23)
ROWS = (0.575, 0.095)  # bottom of the forward and of the backward row
HEIGHT = 0.3
RANK = 10  # of its probability, from the lowest: a digit that people read easily and the model doubts


def draw_pass(figure: Any, model: Any, image: Any, label: int) -> None:
    """The arrays of a forward pass from left to right, and below them their gradients, from right to left.

    Args:
        figure: of matplotlib.
        model: a ViT with a class token.
        image: (1, 1, H, W).
        label: the class for which the loss is computed.
    """
    backs, outputs = [], [image]
    for part in (model.embed, *model.blocks):
        y, back = part(outputs[-1])
        outputs.append(y)
        backs.append(back)
    encoded, back_norm = model.norm(outputs[-1])
    pooled, back_pool = model.pool(encoded)
    logits, back_head = model.head(pooled)
    _, back_loss = F.softmax_cross_entropy(logits, np.array([label]))
    dlogits = back_loss()
    gradients = [back_norm(back_pool(back_head(dlogits)))]
    for back in reversed(backs):
        gradients.append(back(gradients[-1]))
    gradients.reverse()  # as the outputs: of the image, the tokens, and each block

    tokens, dim = outputs[1].shape[1:]
    depth = len(model.blocks)
    side = model.config["patch_size"]
    forward, backward = ([_panel(figure, column, row) for column in range(4)] for row in range(2))

    _patches(forward[0], image[0, 0], side, cmap="gray_r", vmin=0)
    limit = np.abs(gradients[0]).max()
    _patches(backward[0], gradients[0][0, 0], side, cmap=SIGNED, vmin=-limit, vmax=limit)
    for panel, values in ((forward[1], outputs[1]), (backward[1], gradients[1])):
        limit = np.abs(values).max()
        panel.imshow(values[0], cmap=SIGNED, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    _grid_of_maps(forward[2], [_asked(each) for each in attention_weights(model, image)])
    sizes = [np.linalg.norm(each[0, 1:], axis=-1).reshape(_square(tokens)) for each in gradients[1:-1]]
    _grid_of_maps(backward[2], sizes)
    classes = np.arange(logits.shape[1])
    forward[3].bar(classes, logits[0], color=[RED if each == label else BLUE for each in classes])
    backward[3].bar(classes, dlogits[0], color=[RED if each == label else BLUE for each in classes])
    for panel in (forward[3], backward[3]):
        panel.axhline(0, color=QUIET, linewidth=0.8)
        panel.set_xticks(classes)
        panel.tick_params(length=0, labelsize=8)
        panel.set_yticks([])
        panel.spines[:].set_visible(False)

    shape = f"(1, {tokens}, {dim})"
    _words(forward[0], f"image {image.shape}", f"cut into {tokens - 1} patches")
    _words(forward[1], f"tokens {shape}", "patches and class token, with positions")
    _words(forward[2], f"{depth} blocks {shape}", "whom the class token attends to")
    _words(forward[3], f"logits {logits.shape}", f"the true class is {label}")
    _words(backward[0], "dimage", "which pixels to change")
    _words(backward[1], "dtokens", "the gradient of each number above")
    _words(backward[2], "dx of each block", "its size at each patch")
    _words(backward[3], "dlogits", "softmax(logits) - one_hot(label)")
    for left, right in ((0, 1), (1, 2), (2, 3)):
        _arrow(figure, left, right, 0)
        _arrow(figure, right, left, 1)
    figure.text(0.012, 0.952, "y, back = model(image)", family="monospace", fontsize=11, color=INK, weight="bold")
    figure.text(0.012, 0.472, "dimage = back(dlogits)", family="monospace", fontsize=11, color=INK, weight="bold")


def _panel(figure: Any, column: int, row: int) -> Any:
    panel = figure.add_axes((LEFT[column], ROWS[row], WIDTH[column], HEIGHT))
    panel.set_xticks([])
    panel.set_yticks([])
    return panel


def _patches(panel: Any, image: Any, side: int, **options: Any) -> None:
    """An image (H, W), with a line around each patch."""
    panel.imshow(image, interpolation="nearest", **options)
    for line in range(0, len(image) + 1, side):
        panel.axhline(line - 0.5, color=QUIET, linewidth=0.6)
        panel.axvline(line - 0.5, color=QUIET, linewidth=0.6)


def _asked(block: Any) -> Any:
    """The class token's attention to the patches as a map (rows, columns), the mean over the heads."""
    weights = block.weights[0].mean(axis=0)[0, 1:]
    return weights.reshape(_square(len(weights) + 1))


def _square(tokens: int) -> tuple[int, int]:
    side = round((tokens - 1) ** 0.5)
    return side, side


def _grid_of_maps(panel: Any, maps: list[Any]) -> None:
    """Small heat maps side by side in the area of a panel, the first block on the left."""
    panel.set_axis_off()
    columns = -(-len(maps) // 2)
    for number, values in enumerate(maps):
        row, column = divmod(number, columns)
        small = panel.inset_axes((column / columns, 0.52 - 0.52 * row, 0.92 / columns, 0.46))
        small.imshow(values, cmap=HEAT, interpolation="nearest", aspect="auto")
        small.set_xticks([])
        small.set_yticks([])
        small.text(0.03, 0.95, f"{number + 1}", transform=small.transAxes, fontsize=8, va="top", color="white")


def _words(panel: Any, title: str, text: str) -> None:
    panel.set_title(title, fontsize=9.5, color=INK, pad=4)
    panel.text(0.5, -0.14, text, transform=panel.transAxes, ha="center", va="top", fontsize=8.5, color=QUIET)


def _arrow(figure: Any, start: int, end: int, row: int) -> None:
    """Between two neighboring columns of a row."""
    first = min(start, end)
    gap = (LEFT[first] + WIDTH[first] + 0.006, LEFT[first + 1] - 0.006)
    begin, stop = gap if start < end else gap[::-1]
    height = ROWS[row] + HEIGHT / 2
    figure.add_artist(
        FancyArrowPatch(
            (begin, height), (stop, height), arrowstyle="-|>", mutation_scale=12, color=(BLUE, RED)[row], linewidth=2
        )
    )


def doubtful_digit(logits: Any, labels: Any) -> int:
    """The index of an image that is classified correctly, though with one of the lowest probabilities."""
    probability = F.softmax(logits)[0][np.arange(len(labels)), labels]
    correct = logits.argmax(axis=1) == labels
    return int(np.argsort(np.where(correct, probability, np.inf), kind="stable")[RANK - 1])


def draw_run(figure: Any, history: list[dict[str, float]], images: Any, labels: Any, logits: Any) -> None:
    """Learning curves on the left; confusion matrix and misclassified images on the right."""
    left, middle, right = figure.subfigures(1, 3, width_ratios=(7, 5, 6))
    report.draw_curves(left, history)
    table = report.confusion_matrix(labels, logits.argmax(axis=1), logits.shape[1])
    report.draw_confusion(middle, table)
    report.draw_mistakes(right, images, labels, logits)
    right.suptitle(right.get_suptitle().replace(" among", "\namong"))  # narrower than a figure of its own


def main(run: Path, folder: str | Path | None, out: Path = IMAGES) -> None:
    """Write both figures.

    Args:
        run: the output folder of examples/train_mnist_vit.py.
        folder: of MNIST, or None.
        out: where the figures go.
    """
    mnist = data.load_mnist(folder)
    model = minivit.from_pretrained(run / "model.safetensors")
    images = data.normalize(mnist.test_images)
    logits = model.predict(images)
    with rc_context(STYLE):
        index = doubtful_digit(logits, mnist.test_labels)
        figure = Figure(figsize=(10, 5.2), facecolor="white")
        draw_pass(figure, model, images[index : index + 1], int(mnist.test_labels[index]))
        figure.savefig(out / "pass.svg", metadata={"Date": None, "Creator": None})
        with (run / "metrics.csv").open(encoding="utf-8") as file:
            history = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
        figure = Figure(figsize=(16, 4.6), layout="constrained", facecolor="white")
        draw_run(figure, history, mnist.test_images, mnist.test_labels, logits)
        figure.savefig(out / "run.png", dpi=75, metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="output folder of examples/train_mnist_vit.py")
    parser.add_argument("--data", help="folder of MNIST")
    given = parser.parse_args()
    main(given.run, given.data)
