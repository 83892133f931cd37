"""What the measurements of growth share: rounds, fitted exponents, and pages that hold what was measured.

`window_scaling.py` and `growth.py` use it.
"""

from __future__ import annotations

import math
import re
import textwrap
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import results
from turns import QUIET, machine_seconds

ENOUGH = 0.03  # seconds: what is faster is repeated within its turn


def in_rounds(runs: Sequence[Callable[[], object]], rounds: int) -> tuple[np.ndarray, float | None]:
    """Seconds (rounds, runs), and how many cores' worth of time other programs took meanwhile.

    Everything has its turn in each round, so that a slow minute meets all of it.
    """
    repeats = [math.ceil(ENOUGH / max(_seconds(run, 1), 1e-6)) for run in runs]  # not timed: the first is slow
    begin, ours, machine = time.perf_counter(), time.process_time(), machine_seconds()
    seconds = np.array([[_seconds(run, count) for run, count in zip(runs, repeats)] for _ in range(rounds)])
    now = machine_seconds()
    if machine is None or now is None:
        return seconds, None
    others = now - machine - (time.process_time() - ours)
    return seconds, max(0.0, others / (time.perf_counter() - begin))


def _seconds(run: Callable[[], object], repeats: int) -> float:
    """Seconds of one run, the mean of so many, after one untimed: what ran before left other memory."""
    run()
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


class Growth:
    """How a time grows with an amount, such as the batch, beside the growth of its multiply-adds.

    Args:
        amounts: what grows, (n,), in rising order.
        macs: multiply-adds at each amount, (n,).
        seconds: measured, (rounds, n).
    """

    def __init__(self, amounts: Sequence[int], macs: Sequence[float], seconds: np.ndarray) -> None:
        self.amounts, self.macs, self.rounds = np.array(amounts, float), np.array(macs, float), seconds
        self.low, self.median, self.high = np.percentile(seconds * 1e3, (25, 50, 75), axis=0)  # ms

    def exponent(self) -> tuple[float, float, float]:
        """The power of the amount with which time grows, and the quartiles of the same fit to each round alone."""
        low, high = np.percentile([self._fit(seconds) for seconds in self.rounds], (25, 75))
        return self._fit(self.median), low, high

    def exponent_of_macs(self) -> float:
        return self._fit(self.macs)

    def exponents(self) -> str:
        """Two cells of a table: the exponent of the time with its quartiles, and that of the multiply-adds."""
        return "{:.2f} ({:.2f} to {:.2f})".format(*self.exponent()) + f" | {self.exponent_of_macs():.2f}"

    def as_macs_grow(self) -> np.ndarray:
        """Milliseconds if every multiply-add took the same time, which is chosen to fit the medians."""
        return self.macs * np.exp(np.log(self.median / self.macs).mean())

    def spread(self) -> np.ndarray:
        """From the median down and up to the quartiles, (2, n), as error bars want it."""
        return np.stack((self.median - self.low, self.high - self.median))

    def cells(self, place: int) -> str:
        """Four cells of a table: time, its ratio to the first amount's, multiply-adds, their ratio."""
        low, median, high = (_digits(row[place]) for row in (self.low, self.median, self.high))
        ratios = [
            f"{ratio:.{2 if ratio < 1 else 1}f}" for ratio in (row[place] / row[0] for row in (self.median, self.macs))
        ]
        return f"{median} ({low} to {high}) | {ratios[0]} | {self.macs[place] / 1e6:,.0f} | {ratios[1]}"

    def _fit(self, values: np.ndarray) -> float:
        """The slope of least squares in logarithms."""
        if len(self.amounts) < 2:
            return float("nan")
        return float(np.polyfit(np.log(self.amounts), np.log(values), 1)[0])


def _digits(ms: float) -> str:
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def facts(threads: str, how: str, others: float | None) -> str:
    """What the numbers were measured on and how, in one paragraph."""
    busy = "" if others is None else f" Other programs used {others:.2f} cores meanwhile."
    if others is not None and others > QUIET:
        busy += " THE MACHINE WAS NOT QUIET, so measure again before you quote these numbers."
    machine = results.machine()["processor"]
    text = f"{machine}, threads: {threads}, NumPy {np.__version__}, {date.today()}. {how}{busy}"
    return textwrap.fill(text, width=120)


def plotting() -> Any:
    """matplotlib's pyplot, set to write the same SVG file from the same numbers."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "minivit", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    return pyplot


def save_figure(figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})
    # the drawing library leaves spaces at the ends of lines
    path.write_text(re.sub(r"[ \t]+$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE), encoding="utf-8")


def write_between(page: Path, markers: tuple[str, str], markdown: str) -> None:
    """Replace what stands between the markers of the page.

    Raises:
        SystemExit: if the page does not have both, in this order.
    """
    begin, end = markers
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page} has no lines {begin} and {end} between which to write")
    page.write_text(f"{before}{begin}\n\n{markdown}\n\n{end}{after}", encoding="utf-8")
