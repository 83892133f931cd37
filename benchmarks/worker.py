"""One side of a comparison in a process of its own: it reads commands from its input and answers on its output.

Between two commands it waits in a read, so none of its threads works while the other side is timed.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import memory
import numpy as np
from cases import CASES, WARM_UP, read_start, tiny, write_start

UNTIMED = 8  # steps in front of each turn: after a pause torch.compile takes that many to reach its steady state
UNTIMED_SECONDS = 2.0  # but no longer than that
SLACK = 1.1  # the main thread of a library may do a little beside its pool


class Worker:
    """Answers `build`, `outcome`, `warm_up`, `pace`, `steps` and `memory`."""

    def __init__(self, side: str, case: str, variant: str, threads: str, start: str) -> None:
        self.library, self.variant, self.threads = side, variant, int(threads)
        self.case, self.start = CASES[case], Path(start)
        self.side: Any = None
        self.rested = (time.perf_counter(), time.process_time())

    def build(self) -> dict[str, str]:
        self.side = self._kind()(self.case, read_start(self.start), self.threads, self.variant)
        return self.side.describe()

    def outcome(self, path: str) -> None:
        """Save the gradients or the logits; of a training step they come before any update."""
        np.savez(path, **self.side.outcome())

    def warm_up(self) -> list[float]:
        return [self.side.step() for _ in range(WARM_UP)]

    def pace(self) -> float:
        """Seconds of one step, the fastest of three."""
        return min(self.steps(3)["seconds"])

    def steps(self, count: int) -> dict[str, Any]:
        """Seconds of each of `count` steps in a row, the processor time they took, and any taken while waiting.

        However a library's number of threads is set, this measures that it uses no more.
        """
        began = _clocks()
        waited, busy = (now - then for now, then in zip(began, self.rested, strict=True))
        self.side.check_threads()
        start = time.perf_counter()
        for _ in range(min(UNTIMED, count)):
            self.side.step()
            if time.perf_counter() - start > UNTIMED_SECONDS:
                break
        seconds = []
        for _ in range(count):
            begin = time.perf_counter()
            self.side.step()
            seconds.append(time.perf_counter() - begin)
        took, used = (now - then for now, then in zip(_clocks(), began, strict=True))
        assert used <= SLACK * self.threads * took, f"used {used / took:.2f} cores with {self.threads} threads"
        return {"seconds": seconds, "took": took, "used": used, "busy_while_waiting": busy / waited}

    def memory(self) -> dict[str, Any] | None:
        """The most that building the model and 5 steps add to this process. Ask it of a fresh worker, and only it."""
        start = read_start(self.start)
        kind = self._kind()
        for _ in range(2):  # first-use work of the library (thread pools, code pages) is not the model's
            kind(*tiny(self.case, start), self.threads, self.variant).step()
        if hasattr(kind, "prepare"):  # a library that compiles the whole step does so now
            kind.prepare(self.case, start, self.variant)
        meter = memory.Meter()
        side = kind(self.case, start, self.threads, self.variant)
        del start  # the model has its own copy of the weights
        meter.restart()
        for _ in range(5):
            side.step()
        return meter.read()

    def _kind(self) -> Any:
        if self.library == "PyTorch":
            from torch_side import TorchSide

            return TorchSide
        if self.library == "JAX":
            from jax_side import JaxSide

            return JaxSide
        if self.library in ("ONNX Runtime", "OpenVINO"):
            from runtime_side import RuntimeSide

            return partial(RuntimeSide, self.library)
        from minivit_side import MinivitSide

        return MinivitSide


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def main() -> None:
    if sys.argv[1] == "start":
        from minivit_side import start_of

        case = CASES[sys.argv[2]]
        write_start(Path(sys.argv[3]), *start_of(case), case)
        return
    serve(Worker(*sys.argv[1:]))


def serve(worker: Worker) -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = {"answer": getattr(worker, command)(*arguments)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
        worker.rested = _clocks()


if __name__ == "__main__":
    main()
