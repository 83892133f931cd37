"""How far a step is from what this machine could do: its arithmetic and its bytes, at the machine's best rates.

The products of the step are timed too, each alone in its own shape; what a step takes beyond them is not BLAS.

    python benchmarks/roofline.py                            # the machine, then every case
    python benchmarks/roofline.py --case flagship --threads 1
    python benchmarks/roofline.py --every-token --json out.json

The model is that of Williams, Waterman and Patterson 2009: a step cannot be faster than

    roofline = max(2 MACs / rate, bytes / bandwidth)

- rate: the best sgemm of large squares, in operations per second; one multiply-add is two.
- MACs of inference: M, those of `minivit.summary` times the batch. Of training: 3 M - M0. A product y = x W^T needs
  dx = dy W and dW = dy^T x in the backward pass, each as large; dx of the images, M0, is not needed.
  (minivit computes it all the same, so its own count is 3 M.) Attention's two products have two gradients each, too.
- bandwidth: copying between arrays far larger than the caches, bytes read plus bytes written.
- bytes of inference: 4 P + I, P parameters read once, and images of I bytes.
- bytes of training: 4 (10 P - P0) + 2 K + I. Weights are read going forward and back (except the P0 of the first
  stage), gradients written and read (2 P), weights and both moments of AdamW read and written (6 P); K, the bytes that
  `minivit.summary` finds kept, times the batch, are written going forward and read going back.

Both are for the work as minivit arranges it, at least once each: reading attention's weights again instead of keeping
them would change K. Bytes that fit into the caches need not travel to memory, so for a small model the second term may
overstate; it is printed apart. The first term counts only products: a step has exponentials, norms and sums as well.
"""

from __future__ import annotations

import argparse
import json
import mmap
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import results
from cases import CASES, WARM_UP, Case
from minivit_side import MinivitSide
from products import ROUNDS, Product, alone, holding, prepare, products_of, spread
from turns import machine_seconds

from minivit.fast.blas_threads import limit_threads
from minivit.fast.threads import in_threads, usable_cores
from minivit.summary import Summary, summary

SQUARES = (512, 1024, 2048)  # rows and columns: smaller ones do not reach the rate, larger ones add nothing
COPIED = 256  # MiB, far beyond the caches
ENOUGH_MACS = 1e10  # of each square in all rounds, less than half a second: among many short rounds one is undisturbed
EVERY = "every token"
COLUMNS = (
    "case", "GMACs", "MiB", "arithmetic", "memory", "roofline", "products", "step ms", "quartiles", "roofline/step",
    "products/step",
)  # fmt: skip


# --- the machine ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """Best rates: `gflops` by way of using the threads and by size of the square, `copy` by kind of memory, in GB/s."""

    gflops: dict[str, dict[int, float]]
    copy: dict[str, float]

    @property
    def rate(self) -> float:
        """Operations per second."""
        return 1e9 * max(value for ways in self.gflops.values() for value in ways.values())

    @property
    def bandwidth(self) -> float:
        """Bytes per second, in memory that the process has used before."""
        return 1e9 * self.copy["reused"]


def machine(threads: int, squares: tuple[int, ...] = SQUARES, mib: int = COPIED) -> Machine:
    """Measure this machine with one thread and with all: one product cut by BLAS, and one product for each."""
    ways = {"1 thread": (1, 1)}
    if threads > 1:
        ways |= {f"{threads} threads on one": (1, threads), f"{threads} threads, one each": (threads, 1)}
    gflops = {
        name: {size: _gflops(Product.square(size), copies, blas) for size in squares}
        for name, (copies, blas) in ways.items()
    }
    return Machine(gflops, {kind: _copy(threads, mib << 20, kind == "fresh") for kind in ("reused", "fresh")})


def _gflops(product: Product, copies: int, blas: int) -> float:
    rounds = max(ROUNDS, int(ENOUGH_MACS / product.macs))
    return 2e-9 * product.macs * copies / _seconds_alone(Counter([product]), copies, blas, rounds)


def _seconds_alone(work: Counter[Product], copies: int, blas: int, rounds: int = ROUNDS) -> float:
    """Seconds of all these products, by so many threads in parallel, each all of them, BLAS having `blas` threads."""

    def one(_: int) -> float:
        return sum(work[product] * seconds for product, seconds in alone(work, rounds).items())

    with limit_threads(blas):
        return float(np.mean(in_threads(one, range(copies), copies)))


def _copy(threads: int, size: int, fresh: bool) -> float:
    """GB/s, read plus written, each thread copying its share; fresh pages come from the system, which clears them."""
    count = size // 4 // threads

    def one(_: int) -> float:
        source, target = np.ones(count, np.float32), np.ones(count, np.float32)
        rounds = []
        for _ in range(ROUNDS):
            if fresh:
                target = np.frombuffer(mmap.mmap(-1, 4 * count), np.float32)
            begin = time.perf_counter()
            np.copyto(target, source)
            rounds.append(time.perf_counter() - begin)
        return min(rounds)

    return 2e-9 * 4 * count * threads / float(np.mean(in_threads(one, range(threads), threads)))


# --- the step -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """What a step needs at least."""

    macs: int
    bytes: int


def work_of(case: Case, table: Summary) -> Work:
    """The formulas of this file's head."""
    first, parameters = table.rows[0], table.parameters
    images = 4 * case.batch * case.model["in_chans"] * case.model["img_size"] ** 2
    if case.task == "infer":
        return Work(case.batch * table.macs, 4 * parameters + images)
    macs = case.batch * (3 * table.macs - first.macs)
    kept = case.batch * table.kept_bytes
    return Work(macs, 4 * (10 * parameters - first.parameters) + 2 * kept + images)


def products_seconds(case: Case, variant: str, threads: int) -> float:
    """Seconds of the products of one step, spread over the threads as minivit spreads them."""
    copies, blas = spread(case, threads)
    shard = prepare(case, variant, threads=1, images=-(-case.batch // copies))
    with holding(1):
        work = products_of(shard)
    return _seconds_alone(work, copies, blas)


def step_seconds(side: MinivitSide, steps: int) -> np.ndarray:
    """Seconds (steps,) of minivit's step, after a few that are not timed."""
    seconds = []
    with holding(side.threads):
        for _ in range(WARM_UP):
            side.step()
        for _ in range(steps):
            begin = time.perf_counter()
            side.step()
            seconds.append(time.perf_counter() - begin)
    return np.array(seconds)


def row(case: Case, variant: str, threads: int, steps: int, best: Machine) -> dict[str, Any]:
    """Everything about one case; times in milliseconds."""
    side = prepare(case, variant, threads)
    need = work_of(case, summary(side.model, quiet=True))
    low, median, high = 1e3 * np.percentile(step_seconds(side, steps), (25, 50, 75))
    del side
    arithmetic, memory = 1e3 * 2 * need.macs / best.rate, 1e3 * need.bytes / best.bandwidth
    products = 1e3 * products_seconds(case, variant, threads)
    return {
        "case": case.name,
        "variant": variant,
        **asdict(need),
        "arithmetic_ms": arithmetic,
        "memory_ms": memory,
        "roofline_ms": max(arithmetic, memory),
        "products_ms": products,
        "median_ms": float(median),
        "quartiles_ms": [float(low), float(high)],
        "roofline_share": max(arithmetic, memory) / float(median),
        "products_share": products / float(median),
    }


# --- what is printed ------------------------------------------------------------------------------------------------


def machine_text(best: Machine) -> str:
    lines = [
        f"sgemm GFLOP/s, {name}: " + ", ".join(f"{value:.0f} ({size} square)" for size, value in ways.items())
        for name, ways in best.gflops.items()
    ]
    copies = ", ".join(f"{value:.1f} GB/s ({kind})" for kind, value in best.copy.items())
    return "\n".join([*lines, f"copying, read plus written: {copies} memory"])


def cells(entry: dict[str, Any]) -> tuple[str, ...]:
    times = [f"{entry[name]:.2f}" for name in ("arithmetic_ms", "memory_ms", "roofline_ms", "products_ms", "median_ms")]
    return (
        entry["case"],
        f"{entry['macs'] / 1e9:.2f}",
        f"{entry['bytes'] / 2**20:.0f}",
        *times,
        "{:.2f} - {:.2f}".format(*entry["quartiles_ms"]),
        f"{entry['roofline_share']:.0%}",
        f"{entry['products_share']:.0%}",
    )


def columns(lines: list[tuple[str, ...]]) -> str:
    """Text in columns: the first to the left, the others to the right, a rule below the head."""
    widths = [max(map(len, column)) for column in zip(*lines)]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
        for line in lines
    ]
    return "\n".join([text[0], "-" * len(text[0]), *text[1:]])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="may be given several times")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each case")
    parser.add_argument("--every-token", action="store_true", help="ViTs that compute what their head does not read")
    parser.add_argument("--json", type=Path, help="write everything to this file too")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    about = results.machine()
    began, ours, everyone = time.perf_counter(), time.process_time(), machine_seconds()
    best = machine(options.threads)
    print(f"{about['processor']}, {about['cores']} cores, NumPy {np.__version__}, float32, {options.threads} threads")
    print(machine_text(best), flush=True)
    rows = []
    for name in options.case or CASES:
        case = CASES[name]
        variant = EVERY if options.every_token else next(iter(case.architecture.variants))
        rows.append(row(case, variant, options.threads, options.steps, best))
    print("", columns([COLUMNS, *map(cells, rows)]), "times in milliseconds", sep="\n")
    others, now = None, machine_seconds()
    if everyone is not None and now is not None:
        others = max(0.0, (now - everyone - (time.process_time() - ours)) / (time.perf_counter() - began))
        print(f"Other programs used {others:.2f} cores meanwhile; trust the shares only if that is next to none.")
    if options.json:
        settings = {"threads": options.threads, "steps": options.steps, "other_programs_cores": others}
        facts = {"machine": about, **settings, "rates": asdict(best), "rows": rows}
        options.json.write_text(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
