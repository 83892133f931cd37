"""The report of a run: learning curves, confusion matrix, misclassified images, and a model card.

Figures need matplotlib (`pip install matplotlib`); without it the numbers are still written.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minivit.data import Preprocess
from minivit.io.atomic import write_atomically
from minivit.protocol import Array
from minivit.version import __version__

# Safe for color-blind readers (Okabe and Ito 2008); the dash patterns distinguish them in gray print.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"


def write_pictures(
    out: str | Path, history: list[dict[str, float]], images: Array, labels: Array, logits: Array
) -> bool:
    """Draw curves.png, confusion_matrix.png and mistakes.png into a folder; False, and a hint, without matplotlib.

    Args:
        out: the folder.
        history: the rows of metrics.csv.
        images: (n, H, W) uint8, the test images.
        labels: (n,) integers.
        logits: (n, K) of the test images.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("for the figures: pip install matplotlib")
        return False
    out = Path(out)
    draw_curves(Figure(figsize=(9, 3.6), layout="constrained"), history).savefig(out / "curves.png", dpi=120)
    table = confusion_matrix(labels, logits.argmax(axis=1), logits.shape[1])
    draw_confusion(Figure(figsize=(6, 5.4), layout="constrained"), table).savefig(out / "confusion_matrix.png", dpi=120)
    figure = Figure(figsize=(8, 6.4), layout="constrained")
    draw_mistakes(figure, images, labels, logits).savefig(out / "mistakes.png", dpi=120)
    return True


def confusion_matrix(labels: Array, predictions: Array, classes: int) -> Array:
    """(K, K) counts: row = true class, column = predicted class."""
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def draw_curves(figure: Any, history: list[dict[str, float]]) -> Any:
    """Loss, and error rates on a logarithmic axis, over the epochs."""
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row["loss"] for row in history], color=_BLUE, marker=".")
    left.set(xlabel="epoch", ylabel="training loss (with augmentation)", title="Loss")
    train = [100 * (1 - row["accuracy"]) for row in history]
    held = [100 * (1 - row["held_out_accuracy"]) for row in history]
    right.plot(epochs, train, color=_ORANGE, linestyle="--", marker=".", label="training (with augmentation)")
    right.plot(epochs, held, color=_GREEN, marker=".", label="held-out images")
    right.set(xlabel="epoch", ylabel="error (%)", title="Error rate")
    if min(train + held, default=0) > 0:
        _percent_on_a_log_axis(right)
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _percent_on_a_log_axis(axes: Any) -> None:
    """Label the axis 0.5, 1, 2, 5, 10 ..., which readers know, and not 10^0, 10^1."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda percent, _: f"{percent:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def draw_confusion(figure: Any, table: Array) -> Any:
    """Counts in each cell; the color is the share of the true class, on a scale without the diagonal."""
    axes = figure.subplots()
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    wrong = np.where(np.eye(len(table), dtype=bool), np.nan, share)
    heat = axes.imshow(100 * wrong, cmap="Oranges", vmin=0, vmax=max(1e-9, 100 * float(np.nanmax(wrong))))
    for row, column in np.ndindex(*table.shape):
        if table[row, column]:
            weight = "bold" if row == column else "normal"
            dark = row != column and wrong[row, column] > 0.6 * np.nanmax(wrong)
            style = {"ha": "center", "va": "center", "fontsize": 8, "color": "white" if dark else "black"}
            axes.text(column, row, str(table[row, column]), weight=weight, **style)
    ticks = range(len(table))
    axes.set(xlabel="predicted class", ylabel="true class", xticks=ticks, yticks=ticks, title="Confusion matrix")
    figure.colorbar(heat, ax=axes, label="% of the true class (errors only)", shrink=0.85)
    return figure


def draw_mistakes(figure: Any, images: Array, labels: Array, logits: Array, rows: int = 4, columns: int = 6) -> Any:
    """The misclassified images whose predicted class has the highest probability."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    probability = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
    predictions = logits.argmax(axis=1)
    wrong = np.flatnonzero(predictions != labels)
    worst = wrong[np.argsort(-probability[wrong, predictions[wrong]])][: rows * columns]
    shown = f"the {len(worst)} most confident of" if len(worst) < len(wrong) else "all"
    figure.suptitle(f"Mistakes: {shown} {len(wrong)} misclassified among {len(labels):,} images")
    for number, axes in enumerate(figure.subplots(rows, columns).flat):
        axes.axis("off")
        if number < len(worst):
            which = worst[number]
            axes.imshow(images[which], cmap="gray_r")
            predicted = predictions[which]
            axes.set_title(f"{labels[which]} as {predicted} ({probability[which, predicted]:.0%})", fontsize=8)
    return figure


def versions() -> dict[str, str]:
    """The versions of the software that a result depends on."""
    return {"minivit": __version__, "NumPy": np.__version__, "Python": platform.python_version()}


def write_model_card(out: str | Path, title: str, facts: dict[str, Any]) -> None:
    """MODEL_CARD.md: one table with the facts, the software and the machine."""
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    stack = ", ".join(f"{name} {version}" for name, version in versions().items())
    text = f"# {title}\n\n| | |\n|---|---|\n{rows}\n| software | {stack} |\n| machine | {platform.platform()} |\n"
    write_atomically(Path(out) / "MODEL_CARD.md", text.encode("utf-8", "backslashreplace"))


def class_accuracies(labels: Array, logits: Array, classes: Sequence[str]) -> list[tuple[str, int, float]]:
    """(name, images, accuracy) of each class that has images, from labels (n,) and logits (n, K)."""
    table = confusion_matrix(labels, logits.argmax(axis=1), len(classes))
    counts = table.sum(axis=1)
    return [(name, int(n), float(table[k, k] / n)) for k, (name, n) in enumerate(zip(classes, counts)) if n]


def hub_card(
    title: str,
    facts: dict[str, Any],
    *,
    repo_id: str,
    license: str | None = None,
    preprocess: Preprocess | None = None,
    per_class: list[tuple[str, int, float]] | None = None,
    pictures: Sequence[str] = (),
) -> str:
    """The text of a model card for the Hub, README.md, beginning with the Hub's metadata.

    Args:
        title: its heading.
        facts: rows of its first table.
        repo_id: "owner/name", for the lines that load the model.
        license: None adds a note that there is none.
        preprocess: the transform from images to the model's input.
        per_class: see `class_accuracies`.
        pictures: names of image files next to the card.
    """
    allowed = "# no license was given: add one, such as license: mit" if license is None else f"license: {license}"
    header = ["library_name: minivit", "pipeline_tag: image-classification", allowed]
    header += ["tags:", "- image-classification", "- vision-transformer", "- minivit", "metrics:", "- accuracy"]
    stack = ", ".join(f"{name} {version}" for name, version in versions().items())
    rows = [f"| {name} | {value} |" for name, value in {**facts, "software": stack}.items()]
    lines = ["---", *header, "---", "", f"# {title}", "", "| | |", "|---|---|", *rows, ""]
    lines += ["## Intended use", "", "Classification of images like those it was trained on.", "", "## Limits", ""]
    lines += ["It was not tested on other images; every image gets one of its classes, even if it shows none of them."]
    if per_class is not None:
        total = sum(count for _, count, _ in per_class)
        correct = sum(round(count * share) for _, count, share in per_class)
        lines += ["", "## Accuracy", "", f"{correct / max(1, total):.2%} of {total:,} test images.", ""]
        lines += ["| class | images | accuracy |", "|---|---|---|"]
        lines += [f"| {name} | {count:,} | {share:.2%} |" for name, count, share in per_class]
    if preprocess is not None:
        lines += ["", "## Preprocessing", "", f"`{preprocess}`; `config.json` has it."]
    lines += ["", "## Loading", "", "```python", "import minivit", ""]
    lines += [
        f"model = minivit.from_pretrained({json.dumps(repo_id)})",
        "logits = model.predict(images)  # (B, K)",
        "```",
    ]
    for name in pictures:
        lines += ["", f"![{Path(name).stem.replace('_', ' ')}]({name})"]
    return "\n".join([*lines, ""])
