"""Ranks that wait for each other, of which one ends in some way: `python dying.py CAUSE RANK`."""

from __future__ import annotations

import os
import signal
import sys
import time

from minivit import distributed


def end(cause: str) -> None:
    """End this process, or hang."""
    if cause in ("SIGKILL", "SIGSEGV", "SIGSTOP", "SIGTERM"):
        os.kill(os.getpid(), getattr(signal, cause))
    elif cause == "raise":
        raise TypeError("a slip")
    elif cause == "memory":
        raise MemoryError("no room for 1 TB")
    elif cause == "error":
        distributed.fail("error: the disk is full")
    elif cause.startswith("exit"):
        sys.exit(int(cause.removeprefix("exit")))
    elif cause == "freeze":  # as if the machine had lost its power, as far as others see
        os.kill(os.getppid(), signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
    elif cause == "sleep":
        time.sleep(1000)
    elif cause == "compute":
        compute(1000)


def compute(seconds: float) -> None:
    """Use all of a core."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def main(cause: str, dying: int) -> None:
    ranks = distributed.join(4)
    ranks.gather(None)
    ranks.under_way()  # as a step says
    for number in range(1000):
        if number == (100 if cause == "freeze" else 3) and dying in (ranks.rank, -1):
            print(f"dying {time.time()}", flush=True)
            if cause == "slow":  # a rank that says so may take its time
                with ranks.slow():
                    compute(8)
                return
            end(cause)
        ranks.gather(number)
        time.sleep(0.01)
    if ranks.first:
        print("all ended", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
