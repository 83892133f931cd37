"""One convolution, forward and backward, against PyTorch's: time in turns, and peak memory, each in its own process.

    python benchmarks/convolution.py                    # both cases, 2 threads
    python benchmarks/convolution.py --case stem --quick
    python benchmarks/convolution.py --threads 1 --json out.json

A step is y = conv2d(x, weight), then the gradients of x and of weight under a fixed dy, in float32 without bias.
minivit runs in two ways: "threads in products" leaves the threads to BLAS; "images in threads" gives each thread a part
of the batch, as `minivit.parallel` does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import memory
import numpy as np
import results
import turns
import worker

AGREEMENT = 1e-4  # of the largest element: both sum the same float32 products, in other orders


@dataclass(frozen=True)
class Convolution:
    """What is convolved: (batch, channels, side, side) with filters (outputs, channels, kernel, kernel)."""

    name: str
    batch: int
    channels: int
    outputs: int
    side: int
    kernel: int
    stride: int
    padding: int

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, weight and dy, always the same ones."""
        rng = np.random.default_rng(0)
        out = (self.side + 2 * self.padding - self.kernel) // self.stride + 1
        x = rng.standard_normal((self.batch, self.channels, self.side, self.side), dtype=np.float32)
        weight = rng.standard_normal((self.outputs, self.channels, self.kernel, self.kernel), dtype=np.float32)
        return x, weight, rng.standard_normal((self.batch, self.outputs, out, out), dtype=np.float32)


CASES = {
    case.name: case
    for case in (
        Convolution("3x3", 8, 64, 64, 56, 3, 1, 1),  # the inner convolution of a ResNet's first stage
        Convolution("stem", 8, 3, 64, 224, 7, 2, 3),  # the first convolution of a ResNet
    )
}
VARIANTS = (
    turns.Variant("minivit", "threads in products"),
    turns.Variant("minivit", "images in threads"),
    turns.Variant("PyTorch", "conv2d"),
)


# --- what a step is, on each side -----------------------------------------------------------------------------------


class MinivitSide:
    """minivit's step; the gradients of the weight from several threads are added."""

    def __init__(self, case: Convolution, threads: int, variant: str) -> None:
        from minivit.fast.freed_memory import keep_freed_memory

        keep_freed_memory()  # as minivit.parallel does
        self.x, self.weight, self.dy = case.arrays()
        self.options = {"stride": case.stride, "padding": case.padding}
        self.threads = threads
        self.step = self.images_in_threads if variant == "images in threads" else self.threads_in_products

    def threads_in_products(self) -> tuple[Any, ...]:
        return self._there_and_back(slice(None))

    def images_in_threads(self) -> tuple[Any, ...]:
        from minivit.fast.blas_threads import limit_threads
        from minivit.fast.threads import in_threads

        cuts = np.linspace(0, len(self.x), self.threads + 1).astype(int)
        parts = [slice(start, stop) for start, stop in zip(cuts[:-1], cuts[1:], strict=True)]
        with limit_threads(1):
            found = in_threads(self._there_and_back, parts, self.threads)
        ys, dxs, dweights = zip(*found, strict=True)
        return ys, dxs, sum(dweights)

    def _there_and_back(self, images: slice) -> tuple[Any, ...]:
        from minivit import functional as F

        y, vjp = F.conv2d(self.x[images], self.weight, **self.options)
        return y, *vjp(self.dy[images])[:2]

    def outcome(self) -> dict[str, np.ndarray]:
        y, dx, dweight = self.step()
        y, dx = (np.concatenate(part) if isinstance(part, tuple) else part for part in (y, dx))
        return {"y": y, "dx": dx, "dweight": dweight}

    def check_threads(self) -> None:
        from threadpoolctl import threadpool_info

        found = {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}
        assert found <= {self.threads}, f"BLAS uses {found} threads, not {self.threads}"


class TorchSide:
    """PyTorch's step."""

    def __init__(self, case: Convolution, threads: int, variant: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self.x, self.weight, self.dy = (torch.from_numpy(array) for array in case.arrays())
        self.x.requires_grad_(), self.weight.requires_grad_()
        self.options = {"stride": case.stride, "padding": case.padding}
        self.threads, self.torch = threads, torch

    def step(self) -> Any:
        self.x.grad = self.weight.grad = None
        y = self.torch.nn.functional.conv2d(self.x, self.weight, **self.options)
        y.backward(self.dy)
        return y

    def outcome(self) -> dict[str, np.ndarray]:
        y = self.step()
        return {"y": y.detach().numpy(), "dx": self.x.grad.numpy(), "dweight": self.weight.grad.numpy()}

    def check_threads(self) -> None:
        found = self.torch.get_num_threads()
        assert found == self.threads, f"PyTorch uses {found} threads, not {self.threads}"


# --- a process for each side ----------------------------------------------------------------------------------------


class Worker(worker.Worker):
    """Answers as any worker does, for one convolution."""

    def __init__(self, library: str, case: str, variant: str, threads: str) -> None:
        self.case, self.variant, self.threads = CASES[case], variant, int(threads)
        self.kind: Callable[..., Any] = TorchSide if library == "PyTorch" else MinivitSide
        self.side: Any = None
        self.rested = worker._clocks()

    def build(self) -> None:
        self.side = self.kind(self.case, self.threads, self.variant)

    def warm_up(self) -> None:
        for _ in range(worker.WARM_UP):
            self.side.step()

    def memory(self) -> dict[str, Any] | None:
        """The most that the arrays and 5 steps add to this process. Ask it of a fresh worker, and only it."""
        small = replace(self.case, batch=self.threads, side=self.case.kernel)
        for _ in range(2):  # first-use work of the library is not the convolution's
            self.kind(small, self.threads, self.variant).step()
        meter = memory.Meter()
        side = self.kind(self.case, self.threads, self.variant)
        for _ in range(5):
            side.step()
        return meter.read()


class Side(turns.Side):
    """A process that runs this file as a worker."""

    def __init__(self, case: Convolution, variant: turns.Variant, threads: int) -> None:
        super().__init__(case, variant, threads, Path())

    def command(self, case: Any, variant: turns.Variant, threads: int, start: Path) -> list[str]:
        return [sys.executable, __file__, "worker", variant.library, case.name, variant.name, str(threads)]


def differences(sides: list[Side]) -> list[float]:
    """The distance of each side's output and gradients from the last one's, relative to the largest element of each."""
    with tempfile.TemporaryDirectory() as folder:
        found = []
        for number, side in enumerate(sides):
            path = Path(folder) / f"{number}.npz"
            side.ask("outcome", str(path))
            with np.load(path) as file:
                found.append({name: file[name] for name in file.files})
    last = found[-1]
    far = [max(float(np.abs(each[n] - last[n]).max() / np.abs(last[n]).max()) for n in last) for each in found]
    assert max(far) <= AGREEMENT, f"the sides disagree by {max(far):.1e}"
    return far


def measure(case: Convolution, threads: int, rounds: int, steps: int | None) -> tuple[list[results.Row], float | None]:
    """Rows of the table; the last is PyTorch's, and ratios are to it. And what other programs took meanwhile."""
    sides = [Side(case, variant, threads) for variant in VARIANTS]
    try:
        for side in sides:
            side.ask("build")
        far = differences(sides)
        for side in sides:
            side.ask("warm_up")
        seconds, others = turns.take_turns(sides, rounds, steps)
    finally:
        for side in sides:
            side.close()
    rows = [
        results.row(case.name, str(variant), seconds[:, place], far[place]) for place, variant in enumerate(VARIANTS)
    ]
    for row, variant in zip(rows, VARIANTS, strict=True):
        fresh = Side(case, variant, threads)
        row["peak_bytes"] = (fresh.ask("memory") or {}).get("added")
        fresh.close()
    for row in rows[:-1]:
        results.add_ratio(row, rows[-1])
        if row["peak_bytes"] and rows[-1]["peak_bytes"]:
            row["peak_ratio"] = row["peak_bytes"] / rows[-1]["peak_bytes"]
    return rows, others


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        worker.serve(Worker(*sys.argv[2:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=CASES, help="one of them; repeat for several")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="of one turn (default: what takes 2 s)")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 2 steps")
    parser.add_argument("--json", type=Path, help="write all numbers there")
    options = parser.parse_args()
    rounds, steps = (3, 2) if options.quick else (options.rounds, options.steps)
    machine = results.machine()
    found = [measure(CASES[name], options.threads, rounds, steps) for name in options.case or CASES]
    rows = [row for some, _ in found for row in some]
    print(results.table(rows))
    for (_, others), name in zip(found, options.case or CASES, strict=True):
        if others is not None and others > turns.QUIET:
            print(f"{name}: other programs took {others:.1f} cores meanwhile: measure again on a quiet machine")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "threads": options.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
