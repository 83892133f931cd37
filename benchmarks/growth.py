"""How the time of minivit's training step grows with the batch, the tokens, the depth, and the threads.

All of them have their turn in each round; exponents are fitted and stand beside those of the multiply-adds (MACs).

    python benchmarks/growth.py                   # prints the tables
    python benchmarks/growth.py --write           # and puts them and the figure into the documentation
    python benchmarks/growth.py --rounds 2 --quick --figure out.svg
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import scaling
from cases import CASES, Case, Start, draw_batch
from minivit_side import MinivitSide, start_of
from scaling import Growth

from minivit import ViT, nn
from minivit.fast.blas_threads import limit_threads
from minivit.fast.threads import usable_cores

BASE = CASES["flagship"]  # the MNIST ViT; what grows starts from it
TOKENS_BATCH, DEPTH_BATCH = 16, 32  # small enough that the largest of each takes less than a second
BATCHES, SIDES, DEPTHS = (8, 16, 32, 64, 128), (16, 24, 32, 48, 64), (1, 2, 4, 8, 12)  # sides in pixels

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE, FIGURE = DOCS / "performance.md", DOCS / "images" / "growth.svg"
MARKERS = "<!-- measured by benchmarks/growth.py -->", "<!-- end of what was measured by benchmarks/growth.py -->"
COLOR, MARKER = "#0072B2", "o"  # color-blind safe (Okabe and Ito 2008)


@dataclass(frozen=True)
class Axis:
    """Something that grows while all else stays.

    Args:
        name: of what grows; `remark` says what it is made to grow by, and what stays.
        amounts: in rising order; exponents are fitted to them.
        settings: the case and its number of threads at each amount.
        shared: whether the threads share the work, so that each does its part of the MACs.
    """

    name: str
    remark: str
    amounts: list[int]
    settings: list[tuple[Case, int]]
    shared: bool = False

    def macs(self) -> list[float]:
        """Multiply-adds of a step: backward makes two products for each one of forward."""
        return [3 * _macs(case) / (threads if self.shared else 1) for case, threads in self.settings]


def _macs(case: Case) -> int:
    side, channels = case.model["img_size"], case.model["in_chans"]
    return int(nn.multiply_adds(ViT(**case.model), (case.batch, channels, side, side)))


def axes(threads: int, most: int, few: int | None = None) -> list[Axis]:
    """What is measured: everything but the last with so many threads, and the last with up to `most`.

    Args:
        few: take only so many of the smallest of each.
    """
    batches, sides, depths = BATCHES[:few], SIDES[:few], DEPTHS[:few]
    counts = sorted({2**power for power in range(most.bit_length())} | {most})[:few]
    patch = BASE.model["patch_size"]
    pixels = f"images of {sides[0]} to {sides[-1]} pixels a side, batch {TOKENS_BATCH}"
    grown = [_with(batch) for batch in batches]
    longer = [_with(TOKENS_BATCH, img_size=side) for side in sides]
    deeper = [_with(DEPTH_BATCH, depth=depth) for depth in depths]
    return [
        Axis("batch", "images in a step", list(batches), [(case, threads) for case in grown]),
        Axis("tokens", pixels, [1 + (side // patch) ** 2 for side in sides], [(case, threads) for case in longer]),
        Axis("depth", f"blocks, batch {DEPTH_BATCH}", list(depths), [(case, threads) for case in deeper]),
        Axis(
            "threads",
            f"batch {batches[-1]}, MACs of one thread",
            counts,
            [(grown[-1], count) for count in counts],
            shared=True,
        ),
    ]


def _with(batch: int, **changed: Any) -> Case:
    return replace(BASE, batch=batch, model={**BASE.model, **changed})


def step(case: Case, threads: int) -> Callable[[], float]:
    """One training step, with every token computed in every block, as MACs are counted."""
    weights, no_decay = start_of(case)
    return MinivitSide(case, Start(*draw_batch(case), no_decay, weights), threads, "every token").step


def measure(work: list[Axis], rounds: int) -> tuple[dict[str, Growth], float | None]:
    """The growth along each axis, and how many cores' worth of time other programs took meanwhile."""
    runs = [step(*setting) for axis in work for setting in axis.settings]
    with limit_threads(1):  # so that no setting has more of BLAS than another
        seconds, others = scaling.in_rounds(runs, rounds)
    growths, begin = {}, 0
    for axis in work:
        end = begin + len(axis.settings)
        growths[axis.name] = Growth(axis.amounts, axis.macs(), seconds[:, begin:end])
        begin = end
    return growths, others


def text(work: list[Axis], growths: dict[str, Growth], facts: str) -> str:
    """All that was measured, in Markdown."""
    parts, fits = [facts], []
    for axis in work:
        growth = growths[axis.name]
        rows = [f"| {amount} | {growth.cells(place)} |" for place, amount in enumerate(axis.amounts)]
        head = f"| {axis.name} | ms (quartiles) | ratio | 10⁶ MACs | ratio |"
        parts += [f"**{axis.name.capitalize()}**: {axis.remark}", "\n".join([head, "|---" * 5 + "|", *rows])]
        fits.append(f"| {axis.name} | {growth.exponents()} |")
    return "\n\n".join(
        [*parts, "**How fast it grows**", "\n".join(["| exponent of | time | its MACs |", "|---" * 3 + "|", *fits])]
    )


def draw(work: list[Axis], growths: dict[str, Growth], path: Path) -> None:
    """Time against each amount, both logarithmic: a power is a straight line, and its exponent is the slope."""
    pyplot = scaling.plotting()
    from matplotlib import ticker

    figure, panels = pyplot.subplots(2, 2, figsize=(8.4, 6.4), layout="constrained")
    for panel, axis in zip(panels.flat, work):
        growth, amounts = growths[axis.name], axis.amounts
        label = f"measured: {axis.name} to the {growth.exponent()[0]:.2f}"
        look = {"color": COLOR, "marker": MARKER, "ms": 5}
        lines = [panel.errorbar(amounts, growth.median, growth.spread(), label=label, **look)]
        label = f"as its multiply-adds: to the {growth.exponent_of_macs():.2f}"
        lines += panel.plot(amounts, growth.as_macs_grow(), color=COLOR, lw=0.9, ls="--", label=label)
        panel.set(xscale="log", yscale="log", title=axis.name.capitalize(), xlabel=axis.remark)
        panel.set_xticks(amounts, [str(amount) for amount in amounts])
        low, high = panel.get_ylim()
        panel.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
        panel.minorticks_off()
        panel.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.grid(True, color="#dddddd", lw=0.6)
        panel.legend(handles=lines, loc="upper left", frameon=False, fontsize=8)
    for panel in panels[:, 0]:
        panel.set_ylabel("time (milliseconds)")
    scaling.save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1, help="of all but the axis of threads")
    parser.add_argument("--most-threads", type=int, default=usable_cores(), help="on the axis of threads")
    parser.add_argument("--quick", action="store_true", help="the three smallest of each axis, to see whether it runs")
    parser.add_argument("--figure", type=Path, help="draw the figure into this file")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.relative_to(DOCS.parent)}, with its figure")
    options = parser.parse_args()
    work = axes(options.threads, options.most_threads, 3 if options.quick else None)
    growths, others = measure(work, options.rounds)
    model = BASE.model
    how = (
        f"Medians and quartiles of {options.rounds} rounds of a training step in float32, of a ViT with patch "
        f"{model['patch_size']}, {model['embed_dim']} channels and {model['num_heads']} heads; what does not grow are "
        f"{model['depth']} blocks and images of {model['img_size']} pixels a side. MACs are three times those of the "
        "forward pass, ratios to the first row."
    )
    threads = f"{options.threads}, where they do not grow"
    markdown = text(work, growths, scaling.facts(threads, how, others))
    print(markdown)
    if options.write:
        scaling.write_between(PAGE, MARKERS, markdown)
    figure = options.figure or (FIGURE if options.write else None)
    if figure:
        draw(work, growths, figure)


if __name__ == "__main__":
    main()
