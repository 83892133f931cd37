"""A progress bar on a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from minivit.train.console import Console

INTERVAL = 0.1  # seconds between two numbers that are shown, as of tqdm's bar itself


class ProgressBar:
    """A tqdm bar over the batches of an epoch on a terminal, nothing otherwise (the epoch's line is then enough).

    Args:
        title: of the bar; None shows nothing.
        count: batches in the epoch.
        position: those that are done.
    """

    hinted = False  # at tqdm, once in a program

    def __init__(self, title: str | None, count: int, position: int) -> None:
        self.title, self.count, self.position = title, count, position
        self.bar: Any = None
        self._done, self._shown = 0, 0.0

    def __enter__(self) -> ProgressBar:
        console = Console(sys.stderr)
        if self.title is not None and console.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                if not ProgressBar.hinted:
                    print("for a progress bar: pip install tqdm", file=console)
                ProgressBar.hinted = True
                return self
            place = {"total": self.count, "initial": self.position}
            self.bar = tqdm(**place, desc=self.title, leave=False, unit=" batches", file=console)
        return self

    def due(self) -> bool:
        """Count one more batch; whether the numbers of the epoch so far shall be shown now."""
        self._done += 1
        if self.bar is None or time.monotonic() - self._shown < INTERVAL:
            return False
        self._shown = time.monotonic()
        return True

    def update(self, loss: float, accuracy: float, images_per_second: float) -> None:
        """Show the batches that are done, and the numbers of the epoch so far."""
        text = f"loss {loss:.3f}, accuracy {accuracy:.1%}, {images_per_second:,.0f} images/s"
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update(self._done)
        self._done = 0

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
