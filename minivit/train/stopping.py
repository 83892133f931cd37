"""Signals that ask a run to end: it completes its step and saves first."""

from __future__ import annotations

import signal
import threading
from typing import Any

# Ctrl-C, the end that a scheduler asks for before it kills, and the end of the terminal
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class StopLater:
    """Within it the first signal only sets `asked`, so that the present step is completed; a second Ctrl-C interrupts.

    SIGTERM and SIGHUP are left alone where the program, or nohup, has arranged for them. Others are ignored once one
    has come: `timeout` and schedulers send them twice.

    Attributes:
        asked: the signal's number, 0 before it comes. A shell reports 128 more than it.
    """

    asked = 0

    def __enter__(self) -> StopLater:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # only there may signals be caught
            for number in (getattr(signal, name) for name in _NAMES if hasattr(signal, name)):
                if number == signal.SIGINT or signal.getsignal(number) == signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, _: Any) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = self.asked or number

    def __exit__(self, *_: Any) -> None:
        for number, before in self._before.items():
            if before is not None:
                signal.signal(number, before)
