"""Signals that stop a run after its current step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from typing import Any

# Ctrl-C, a scheduler's request before it kills, and the end of the terminal
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class StopLater:
    """A context in which the first signal only sets `asked`, so that the step is completed; a second Ctrl-C interrupts.

    Existing handlers of SIGTERM and SIGHUP, such as nohup's, are kept. After the first signal the others are ignored:
    `timeout` and schedulers send them twice.

    Attributes:
        asked: the signal's number, 0 before one arrives. A shell reports 128 more.
    """

    asked = 0

    def __enter__(self) -> StopLater:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # signals can be handled only there
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
