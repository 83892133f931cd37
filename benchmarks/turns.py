"""Worker processes, and the turns in which they are timed: A, B, A, B, ..., so that both meet the same machine.

PyTorch's threads and NumPy's never live in one process. A turn begins after a pause longer than any OpenMP library
lets idle threads spin. Then come steps that are not timed, and at least two seconds of timed work in a row: after a
pause a library needs some steps to reach its steady state, torch.compile the most, and short turns would flatter the
other side. The thread policy of both libraries is left as it is.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case

HERE = Path(__file__).resolve().parent
PAUSE = 0.25  # seconds; libgomp spins for a few milliseconds, OpenBLAS for about 30, LLVM's and Intel's OpenMP for 200
TURN = 2.0  # seconds of timed work in a turn, at the pace of the fastest side
LEAST = 3  # steps in a turn, however slow
# a core type or cache size that is not the processor's makes OpenBLAS take kernels that are up to twice as slow; users
# do not set these
HELD_BY = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
QUIET = 0.1  # cores' worth of other programs' work that does not spoil a measurement


class SideFailed(RuntimeError):
    """A worker could not do what it was asked to."""


@dataclass(frozen=True)
class Variant:
    """One way of computing a case: the library, and what is special about it."""

    library: str
    name: str

    def __str__(self) -> str:
        return f"{self.library}: {self.name}"


class Side:
    """A worker process that computes one variant of one case, until `close()`."""

    def __init__(self, case: Case, variant: Variant, threads: int, start: Path, checkout: Path = HERE.parent) -> None:
        self.variant, self.busy, self.used, self.took = variant, 0.0, 0.0, 0.0
        self.about: dict[str, str] = {}  # what the library says of itself
        self.process = subprocess.Popen(
            self.command(case, variant, threads, start),
            env=environment(threads, checkout),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def command(self, case: Case, variant: Variant, threads: int, start: Path) -> list[str]:
        """What starts the worker."""
        return _command(variant.library, case.name, variant.name, str(threads), str(start))

    def ask(self, command: str, *arguments: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        print(json.dumps([command, *arguments]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with {self.process.wait()}"}
        if "error" in answer:
            raise SideFailed(f"{self.variant}: {answer['error'][:500]}\n{answer.get('trace', '')[-1500:]}")
        return answer["answer"]

    def turn(self, steps: int) -> list[float]:
        """Seconds of each of so many steps in a row."""
        time.sleep(PAUSE)
        answer = self.ask("steps", steps)
        self.busy = max(self.busy, answer["busy_while_waiting"])
        self.used += answer["used"]
        self.took += answer["took"]
        return answer["seconds"]

    def cores(self) -> float:
        """How many cores' worth of time this side used in its turns."""
        return self.used / self.took

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()  # the end of its input ends the worker
        self.process.wait()
        self.process.stdout.close()


def environment(threads: int, checkout: Path = HERE.parent) -> dict[str, str]:
    """The environment of a worker: a checkout of minivit first, thread pools of one size, OpenBLAS's own kernels."""
    path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    pools = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
    pools += ("NPROC",)  # XLA's, which heeds none of the others, nor intra_op_parallelism_threads
    inherited = {name: value for name, value in os.environ.items() if name not in HELD_BY}
    return {**inherited, "PYTHONPATH": path, **dict.fromkeys(pools, str(threads))}


def make_start(case: Case, threads: int, path: Path) -> None:
    """Let a process of minivit's draw the weights and the batch that both sides begin with."""
    subprocess.run(_command("start", case.name, str(path)), env=environment(threads), check=True)


def take_turns(sides: list[Side], rounds: int, steps: int | None = None) -> tuple[np.ndarray, float | None]:
    """Seconds (rounds, sides, steps), and how many cores' worth of time other programs took meanwhile.

    In each round every side has one turn, always in the same order.

    Args:
        steps: timed steps in a turn; None: as many as the fastest side does in `TURN` seconds.
    """
    if steps is None:
        steps = max(LEAST, ceil(TURN / min(side.ask("pace") for side in sides)))
    begin, machine, ours = time.perf_counter(), machine_seconds(), sum(side.used for side in sides)
    seconds = np.array([[side.turn(steps) for side in sides] for _ in range(rounds)])
    if machine is None:
        return seconds, None
    others = machine_seconds() - machine - sum(side.used for side in sides) + ours
    return seconds, max(0.0, others / (time.perf_counter() - begin))


def machine_seconds() -> float | None:
    """Processor time used by everything on this machine since it started; None where the system does not tell."""
    try:
        numbers = Path("/proc/stat").read_text().split()[1:9]  # user nice system idle iowait irq softirq steal
    except OSError:
        return None
    idle = int(numbers[3]) + int(numbers[4])
    return (sum(map(int, numbers)) - idle) / os.sysconf("SC_CLK_TCK")


def _command(*arguments: str) -> list[str]:
    return [sys.executable, str(HERE / "worker.py"), *arguments]
