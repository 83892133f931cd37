"""How attention's time grows with the image: within windows, as in Swin, and over the whole image, as in ViT.

Every size and both kinds have their turn in each round, so that a slow minute meets all of them; exponents are fitted.

    python benchmarks/window_scaling.py                   # prints the tables
    python benchmarks/window_scaling.py --write           # and puts them and the picture into the documentation
    python benchmarks/window_scaling.py --rounds 2 --max-gib 0.5 --figure out.svg
"""

from __future__ import annotations

import argparse
import math
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import results
from turns import machine_seconds

from minivit import functional as F
from minivit import nn
from minivit.backend.blas import limit_threads
from minivit.backend.memory import keep_freed_memory

SIZES = (112, 168, 224, 280, 336, 392, 448)  # pixels per side; maps of 28 to 112 places, all multiples of the window
PATCH, DIM, HEADS, WINDOW, SHIFT = 4, 96, 3, 7, 3  # the first stage of Swin-T
KINDS = ("window", "global")
LAYER, TRAINED, PROPER = (
    "The whole layer, forward",
    "The whole layer, forward and backward",
    "Attention proper, forward",
)
ENOUGH = 0.03  # seconds: what is faster is repeated within its turn

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FIGURE = DOCS / "why_swin_is_linear.md", DOCS / "images" / "window_scaling.svg"
MARKERS = "<!-- measured by benchmarks/window_scaling.py -->", "<!-- end of what was measured -->"

# colour-blind safe (Okabe and Ito 2008), and apart in grey print through their markers
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


Times = dict[tuple[str, str, int], np.ndarray]  # (measure, kind, size) -> seconds of each round


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
            macs, gib = layer.macs(shapes[kind]), HEADS * tokens * keys * 4 / 2**30
            projections = 4 * tokens * DIM * DIM  # to q, k and v, and out of the heads
            yield Task(LAYER, kind, size, macs, gib, partial(layer, x))
            # backward has two products for each one of forward, and holds the scores' gradient beside the scores
            yield Task(TRAINED, kind, size, 3 * macs, 2 * gib, partial(_there_and_back, layer, x, dy))
            proper = partial(F.scaled_dot_product_attention, q, k, v)
            yield Task(PROPER, kind, size, macs - projections, gib, proper)


def _there_and_back(layer: nn.Layer, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    return layer(x)[1](dy)


def measure(work: list[Task], rounds: int) -> tuple[Times, float | None]:
    """The times, and how many cores' worth of time other programs took meanwhile."""
    repeats = [math.ceil(ENOUGH / max(_seconds(task.run, 1), 1e-6)) for task in work]  # not timed: the first is slow
    begin, ours, machine = time.perf_counter(), time.process_time(), machine_seconds()
    rows = [[_seconds(task.run, count) for task, count in zip(work, repeats)] for _ in range(rounds)]
    columns = np.array(rows).T
    times = {(task.measure, task.kind, task.size): column for task, column in zip(work, columns)}
    now = machine_seconds()
    if machine is None or now is None:
        return times, None
    others = now - machine - (time.process_time() - ours)
    return times, max(0.0, others / (time.perf_counter() - begin))


def _seconds(run: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


# --- what the times say ---------------------------------------------------------------------------------------------


class Growth:
    """One line of the figure: a measure of one kind, at all sizes that were timed."""

    def __init__(self, measure: str, kind: str, work: list[Task], times: Times) -> None:
        self.kind = kind
        own = [task for task in work if (task.measure, task.kind) == (measure, kind)]
        self.sizes = [task.size for task in own]
        self.macs = np.array([task.macs for task in own], float)
        self.rounds = np.array([times[measure, kind, size] for size in self.sizes])  # seconds (sizes, rounds)
        self.low, self.median, self.high = np.percentile(self.rounds * 1e3, (25, 50, 75), axis=1)  # ms

    def exponent(self) -> tuple[float, float, float]:
        """The power of the area with which time grows, and the quartiles of the same fit to each round alone."""
        low, high = np.percentile([self._fit(seconds) for seconds in self.rounds.T], (25, 75))
        return self._fit(self.median), low, high

    def exponent_of_macs(self) -> float:
        return self._fit(self.macs)

    def as_macs_grow(self) -> np.ndarray:
        """Milliseconds if every multiply-add took the same time, which is chosen to fit the medians."""
        return self.macs * np.exp(np.log(self.median / self.macs).mean())

    def cells(self, size: int) -> str:
        """Four cells of the table: time, its ratio to the smallest size's, multiply-adds, their ratio."""
        if size not in self.sizes:
            return "too much memory | | |"
        place = self.sizes.index(size)
        low, median, high = (_digits(row[place]) for row in (self.low, self.median, self.high))
        ratios = [f"{row[place] / row[0]:.1f}" for row in (self.median, self.macs)]
        return f"{median} ({low} to {high}) | {ratios[0]} | {self.macs[place] / 1e6:,.0f} | {ratios[1]}"

    def _fit(self, values: np.ndarray) -> float:
        """The slope of least squares in logarithms, against the area."""
        if len(self.sizes) < 2:
            return float("nan")
        return float(np.polyfit(2 * np.log(self.sizes), np.log(values), 1)[0])


def _digits(ms: float) -> str:
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


Growths = dict[tuple[str, str], Growth]


def text(growths: Growths, sizes: list[int], facts: str) -> str:
    """All that was measured, in Markdown."""
    parts = [facts]
    for name in (LAYER, TRAINED, PROPER):
        window, whole = growths[name, "window"], growths[name, "global"]
        rows = [f"| {size} | {size // PATCH} | {window.cells(size)} | {whole.cells(size)} |" for size in sizes]
        columns = " | ".join(f"{kind} ms (quartiles) | ratio | 10⁶ MACs | ratio" for kind in KINDS)
        parts += [f"**{name}**", "\n".join([f"| image | map | {columns} |", "|---" * 10 + "|", *rows])]
    rows = ["| exponent of the area | window | its MACs | global | its MACs |", "|---" * 5 + "|"]
    for name in (LAYER, TRAINED, PROPER):
        cells = []
        for kind in KINDS:
            growth = growths[name, kind]
            cells.append("{:.2f} ({:.2f} to {:.2f})".format(*growth.exponent()) + f" | {growth.exponent_of_macs():.2f}")
        rows.append(f"| {name[0].lower() + name[1:]} | {' | '.join(cells)} |")
    return "\n\n".join([*parts, "**How fast it grows**", "\n".join(rows)])


def facts(rounds: int, threads: int, others: float | None) -> str:
    """What the numbers were measured on, in one paragraph."""
    machine = results.machine()
    busy = "" if others is None else f" Other programs used {others:.2f} cores meanwhile."
    return textwrap.fill(
        f"{machine['processor']}, threads: {threads}, NumPy {np.__version__}, {date.today()}. Medians and quartiles of "
        f"{rounds} rounds; one image, float32, sides in pixels and in places, ratios to the first row.{busy}",
        width=120,
    )


def draw(growths: Growths, path: Path) -> None:
    """Time against area, both logarithmic: a power is a straight line, and its exponent is the slope."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "minivit", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8.4, 4.0), sharey=True, layout="constrained")
    for panel, name in zip(panels, (LAYER, PROPER)):
        lines = []
        for kind in reversed(KINDS):  # the legend in the order of the lines
            growth, (colour, marker) = growths[name, kind], STYLES[kind]
            areas = np.square(growth.sizes)
            spread = np.stack((growth.median - growth.low, growth.high - growth.median))
            label = f"{kind}, measured: area to the {growth.exponent()[0]:.2f}"
            lines.append(panel.errorbar(areas, growth.median, spread, color=colour, marker=marker, ms=5, label=label))
            label = f"{kind}, as its multiply-adds: to the {growth.exponent_of_macs():.2f}"
            lines += panel.plot(areas, growth.as_macs_grow(), color=colour, lw=0.9, ls="--", label=label)
        panel.set(xscale="log", yscale="log", title=name, xlabel="area of the image (pixels)")
        panel.set_xticks(np.square(SIZES), [f"{size}²" if size in (112, 168, 224, 336, 448) else "" for size in SIZES])
        panel.yaxis.set_major_formatter("{x:g}")
        panel.minorticks_off()
        panel.grid(True, color="#dddddd", lw=0.6)
        panel.legend(handles=lines, loc="upper left", frameon=False, fontsize=8)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low, high * 6)  # room for the legend
    panels[0].set_ylabel("time (milliseconds)")
    figure.savefig(path, metadata={"Date": None})
    # the drawing library leaves spaces at the ends of lines
    path.write_text(re.sub(r"[ \t]+$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE), encoding="utf-8")


def write(markdown: str) -> None:
    """Replace what stands between the markers of the page."""
    begin, end = MARKERS
    before, found, rest = PAGE.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{PAGE} has no lines {begin} and {end} between which to write")
    PAGE.write_text(f"{before}{begin}\n\n{markdown}\n\n{end}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of BLAS; one, so that no size has more than another")
    parser.add_argument("--max-gib", type=float, default=4.0, help="leave out what holds more in its scores")
    parser.add_argument("--figure", type=Path, help="draw the picture into this file")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(DOCS.parent)}, with its picture")
    options = parser.parse_args()
    keep_freed_memory()  # as in training
    every = list(tasks())
    work = [task for task in every if task.gib <= options.max_gib]
    for task in every:
        if task not in work:
            print(f"left out, its scores take {task.gib:.1f} GiB: {task.kind}, {task.size} pixels, {task.measure}")
    with limit_threads(options.threads):
        times, others = measure(work, options.rounds)
    growths = {(name, kind): Growth(name, kind, work, times) for name in (LAYER, TRAINED, PROPER) for kind in KINDS}
    markdown = text(growths, list(SIZES), facts(options.rounds, options.threads, others))
    print(markdown)
    if options.write:
        write(markdown)
    figure = options.figure or (FIGURE if options.write else None)
    if figure:
        draw(growths, figure)


if __name__ == "__main__":
    main()
