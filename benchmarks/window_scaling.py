"""How attention's time grows with the image: within windows, as in Swin, and over the whole image, as in ViT.

Every size and both kinds have their turn in each round, so that a slow minute meets all of them; exponents are fitted.

    python benchmarks/window_scaling.py                   # prints the tables
    python benchmarks/window_scaling.py --write           # and puts them and the figure into the documentation
    python benchmarks/window_scaling.py --rounds 2 --max-gib 0.5 --figure out.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import scaling
from scaling import Growth

from minivit import functional as F, nn
from minivit.fast.blas_threads import limit_threads
from minivit.fast.freed_memory import keep_freed_memory

SIZES = (112, 168, 224, 280, 336, 392, 448)  # pixels per side; maps of 28 to 112 tokens, all multiples of the window
PATCH, DIM, HEADS, WINDOW, SHIFT = 4, 96, 3, 7, 3  # the first stage of Swin-T
KINDS = ("window", "global")
LAYER, TRAINED, PROPER = (
    "The whole layer, forward",
    "The whole layer, forward and backward",
    "Attention proper, forward",
)

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FIGURE = DOCS / "why_swin_is_linear.md", DOCS / "images" / "window_scaling.svg"
MARKERS = "<!-- measured by benchmarks/window_scaling.py -->", "<!-- end of what was measured -->"

# color-blind safe (Okabe and Ito 2008), and apart in gray print through their markers
STYLES = {"window": ("#0072B2", "o"), "global": ("#D55E00", "s")}


@dataclass(frozen=True)
class Task:
    """One kind of attention at one size; `gib` is what its scores, and their gradient, hold."""

    measure: str
    kind: str
    size: int
    macs: int
    gib: float
    run: Callable[[], object]


def tasks() -> Iterator[Task]:
    """Everything that is timed, in the order of the turns; one image, float32."""
    random = np.random.default_rng(0)
    windows = nn.ShiftedWindows(nn.WindowAttention(DIM, HEADS, (WINDOW, WINDOW), seed=0), (WINDOW,) * 2, (SHIFT,) * 2)
    layers = {"window": windows, "global": nn.Attention(DIM, HEADS, seed=0)}
    for size in SIZES:
        side = size // PATCH
        tokens = side * side
        shapes = {"window": (1, side, side, DIM), "global": (1, tokens, DIM)}
        looked_at = {"window": WINDOW * WINDOW, "global": tokens}  # by each token
        for kind in KINDS:
            layer, keys = layers[kind], looked_at[kind]
            x, dy = random.standard_normal((2, *shapes[kind]), dtype=np.float32)
            heads = (1, tokens // keys, HEADS, keys, DIM // HEADS)
            q, k, v = random.standard_normal((3, *heads), dtype=np.float32)
            macs, gib = nn.multiply_adds(layer, shapes[kind]), HEADS * tokens * keys * 4 / 2**30
            projections = 4 * tokens * DIM * DIM  # to q, k and v, and out of the heads
            yield Task(LAYER, kind, size, macs, gib, partial(layer, x))
            # backward has two products for each one of forward, and holds the scores' gradient beside the scores
            yield Task(TRAINED, kind, size, 3 * macs, 2 * gib, partial(_there_and_back, layer, x, dy))
            proper = partial(F.scaled_dot_product_attention, q, k, v)
            yield Task(PROPER, kind, size, macs - projections, gib, proper)


def _there_and_back(layer: nn.Layer, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    return layer(x)[1](dy)


# --- what the times say ---------------------------------------------------------------------------------------------


class Line(Growth):
    """One line of the figure: a measure of one kind, against the area of the images, at all sizes that were timed."""

    def __init__(self, measure: str, kind: str, work: list[Task], seconds: np.ndarray) -> None:
        places = [place for place, task in enumerate(work) if (task.measure, task.kind) == (measure, kind)]
        self.sizes = [work[place].size for place in places]
        macs = [work[place].macs for place in places]
        super().__init__([size * size for size in self.sizes], macs, seconds[:, places])

    def cells_of(self, size: int) -> str:
        return self.cells(self.sizes.index(size)) if size in self.sizes else "too much memory | | |"


Lines = dict[tuple[str, str], Line]


def text(lines: Lines, sizes: list[int], facts: str) -> str:
    """All that was measured, in Markdown."""
    parts = [facts]
    for name in (LAYER, TRAINED, PROPER):
        window, whole = lines[name, "window"], lines[name, "global"]
        rows = [f"| {size} | {size // PATCH} | {window.cells_of(size)} | {whole.cells_of(size)} |" for size in sizes]
        columns = " | ".join(f"{kind} ms (quartiles) | ratio | 10⁶ MACs | ratio" for kind in KINDS)
        parts += [f"**{name}**", "\n".join([f"| image | map | {columns} |", "|---" * 10 + "|", *rows])]
    rows = ["| exponent of the area | window | its MACs | global | its MACs |", "|---" * 5 + "|"]
    for name in (LAYER, TRAINED, PROPER):
        cells = [lines[name, kind].exponents() for kind in KINDS]
        rows.append(f"| {name[0].lower() + name[1:]} | {' | '.join(cells)} |")
    return "\n\n".join([*parts, "**How fast it grows**", "\n".join(rows)])


def draw(lines: Lines, path: Path) -> None:
    """Time against area, both logarithmic: a power is a straight line, and its exponent is the slope."""
    pyplot = scaling.plotting()
    figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 4.0), sharey=True, layout="constrained")
    for panel, name in zip(panels, (LAYER, PROPER)):
        drawn = []
        for kind in reversed(KINDS):  # the legend in the order of the lines
            line, (color, marker) = lines[name, kind], STYLES[kind]
            label, look = f"{kind}, measured: area to the {line.exponent()[0]:.2f}", {"color": color, "marker": marker}
            drawn.append(panel.errorbar(line.amounts, line.median, line.spread(), ms=5, label=label, **look))
            label = f"{kind}, as its multiply-adds: to the {line.exponent_of_macs():.2f}"
            drawn += panel.plot(line.amounts, line.as_macs_grow(), color=color, lw=0.9, ls="--", label=label)
        panel.set(xscale="log", yscale="log", title=name, xlabel="area of the image (pixels)")
        panel.set_xticks(np.square(SIZES), [f"{size}²" if size in (112, 168, 224, 336, 448) else "" for size in SIZES])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(True, color="#dddddd", lw=0.6)
        panel.legend(handles=drawn, loc="upper left", frameon=False, fontsize=8)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high * 6)  # room for the legend
    panels[0].set_ylabel("time (milliseconds)")
    scaling.save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of BLAS; one, so that no size has more than another")
    parser.add_argument("--max-gib", type=float, default=4.0, help="leave out what holds more in its scores")
    parser.add_argument("--figure", type=Path, help="draw the figure into this file")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(DOCS.parent)}, with its figure")
    options = parser.parse_args()
    keep_freed_memory()  # as in training
    every = list(tasks())
    work = [task for task in every if task.gib <= options.max_gib]
    for task in every:
        if task not in work:
            print(f"left out, its scores take {task.gib:.1f} GiB: {task.kind}, {task.size} pixels, {task.measure}")
    with limit_threads(options.threads):
        seconds, others = scaling.in_rounds([task.run for task in work], options.rounds)
    lines = {(name, kind): Line(name, kind, work, seconds) for name in (LAYER, TRAINED, PROPER) for kind in KINDS}
    how = (
        f"Medians and quartiles of {options.rounds} rounds; one image, float32, sides in pixels and in tokens, "
        "ratios to the first row."
    )
    markdown = text(lines, list(SIZES), scaling.facts(str(options.threads), how, others))
    print(markdown)
    if options.write:
        scaling.write_between(PAGE, MARKERS, markdown)
    figure = options.figure or (FIGURE if options.write else None)
    if figure:
        draw(lines, figure)


if __name__ == "__main__":
    main()
