"""A training run in a folder: checkpoint, metrics, progress and Ctrl-C. A resumed run ends with the same bits.

Batches and noise are pure functions of (seed, epoch, position), so the position is all that a checkpoint must hold of
them.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minivit.device import to_numpy
from minivit.io.safetensors import CheckpointError, load_arrays, save_arrays
from minivit.io.text import printable
from minivit.protocol import Array
from minivit.train.progress import check_settings, checked_progress

CHECKPOINT = "checkpoint.safetensors"
MOST_SKIPPED = 10  # batches in a row whose loss or gradient is not finite: one may be bad luck, ten are a cause
_RENAMED = {"optimiser": "optimizer"}  # names of parts in checkpoints of minivit 0.1
METRICS = ("epoch", "learning_rate", "loss", "accuracy", "held_out_accuracy", "images_per_second", "seconds")


def noise_generator(seed: int, iteration: int) -> np.random.Generator:
    """The generator of dropout and drop path in one iteration: a pure function of both.

    The spawn key keeps its stream apart from those of the batches, which have the seeds (seed, epoch, position).
    """
    return np.random.default_rng(np.random.SeedSequence((seed, iteration), spawn_key=(2,)))  # 1 is an epoch's order


def fingerprint(*arrays: Array) -> str:
    """A short hash of the content of host arrays, by which a resumed run knows that its data is unchanged."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


class Run:
    """The state of a training run in a folder, and the loops over its epochs and batches.

        run = Run(out, settings, {"model": model, "optimizer": opt}, resume=resume)
        for epoch in run.epochs(total):
            for x, y in run.batches(batches_of(epoch, start=run.position), batches_per_epoch):
                ...
                run.log(loss, correct, len(x))
            run.end_epoch(opt.lr, held_out_accuracy)

    Attributes:
        epoch: epochs that are complete.
        position: batches of the present epoch that are complete.
        iteration: batches that are complete, over all epochs.
        history: the rows of metrics.csv.
        skipped: batches of the present epoch whose loss or gradient was not finite.

    Args:
        out: the folder; made if missing. An earlier run in it is renamed, unless it is resumed.
        settings: JSON-able; everything that decides the result. A resumed run must have the same.
        parts: all that training changes, by name, each with `state_dict()` and `load_state_dict(state)`.
        resume: continue from the checkpoint in `out`.
        every: seconds between checkpoints within an epoch.
        quiet: print nothing.

    Raises:
        CheckpointError: nothing to resume, a damaged checkpoint, or one with other settings.
    """

    def __init__(
        self,
        out: str | Path,
        settings: dict[str, Any],
        parts: dict[str, Any],
        *,
        resume: bool = False,
        every: float = 30.0,
        quiet: bool = False,
    ) -> None:
        self.out, self.settings, self.parts = Path(out), settings, parts
        self.every, self.quiet = every, quiet
        self.epoch = self.position = self.iteration = 0
        self.skipped = self._skipped_in_a_row = 0
        self.history: list[dict[str, float]] = []
        self._interrupt = _InterruptLater()
        self._clear()
        if resume:
            self._resume()
        else:
            kept = keep_earlier(self.out)
            if kept is not None:
                self._say(f"kept the earlier run as {kept}")
        self.out.mkdir(parents=True, exist_ok=True)
        self.save()  # so that a run that is killed at once can be resumed too

    # --- the loops ---

    def epochs(self, total: int) -> Iterator[int]:
        """The epochs that remain, from the present one on; within this loop Ctrl-C waits for the end of the step.

        Raises:
            RuntimeError: the loop's body did not call `end_epoch`.
        """
        with _InterruptLater() as self._interrupt:
            for epoch in range(self.epoch, total):
                yield epoch
                if self.epoch != epoch + 1:
                    raise RuntimeError(f"epoch {epoch + 1} was not closed: call run.end_epoch once at its end")

    def batches(self, batches: Iterable[tuple[Array, Array]], count: int) -> Iterator[tuple[Array, Array]]:
        """The remaining batches of the present epoch, with a progress bar, checkpoints, and the check for Ctrl-C.

        Args:
            batches: (x, y), without the first `position` of the epoch.
            count: the number of batches in a whole epoch.
        """
        with _Progress(self, count) as progress:
            for batch in batches:
                start = time.perf_counter()
                yield batch
                self._seconds += time.perf_counter() - start
                self.position += 1
                self.iteration += 1
                progress.update()
                if self._interrupt.asked or time.monotonic() - self._saved > self.every:
                    self.save()
                self._stop_if_asked()

    def log(self, loss: float, correct: int, images: int, gradient_norm: float = 0.0) -> None:
        """Record one batch: its mean loss, how many of its images were classified correctly, and its gradient's norm.

        A loss or norm that is not finite is not counted: `optim.clip_grad_norm` has cleared the gradients, so the step
        changed nothing. The epoch's line says how many there were.

        Raises:
            FloatingPointError: the tenth such batch in a row.
        """
        if not (np.isfinite(loss) and np.isfinite(gradient_norm)):
            self.skipped += 1
            self._skipped_in_a_row += 1
            if self._skipped_in_a_row == MOST_SKIPPED:
                raise FloatingPointError(
                    f"the loss is {loss} and the gradient's norm {gradient_norm} in {self._place()}, and neither was "
                    f"finite in {MOST_SKIPPED} batches in a row: lower the learning rate, or find the layer with "
                    "minivit.explain.debug_nans. The weights are those from before"
                )
            return
        self._skipped_in_a_row = 0
        self._loss += loss * images
        self._correct += correct
        self._images += images

    def end_epoch(self, learning_rate: float, held_out_accuracy: float) -> None:
        """Close the present epoch: a row in metrics.csv, a line on the screen, a checkpoint."""
        self.epoch += 1
        skipped = f"  steps skipped (not finite): {self.skipped}" if self.skipped else ""
        row = (
            self.epoch,
            learning_rate,
            self.loss,
            self.accuracy,
            held_out_accuracy,
            self._images / max(self._seconds, 1e-9),
            self._seconds,
        )
        self.history.append(dict(zip(METRICS, row)))
        self.position = 0
        self._say(
            f"epoch {self.epoch:3d}  loss {self.loss:.4f}  accuracy {self.accuracy:7.2%}  "
            f"held out {held_out_accuracy:7.2%}  {row[5]:,.0f} images/s{skipped}"
        )
        self._clear()
        self.write_metrics()
        self.save()
        self._stop_if_asked()

    @property
    def loss(self) -> float:
        """The mean loss of the present epoch's images so far."""
        return self._loss / max(1, self._images)

    @property
    def accuracy(self) -> float:
        """The share of the present epoch's images classified correctly so far."""
        return self._correct / max(1, self._images)

    @property
    def seconds(self) -> float:
        """Time spent in training steps, over all epochs that are complete, interruptions left out."""
        return sum(row["seconds"] for row in self.history)

    def _clear(self) -> None:
        self._loss = self._seconds = 0.0
        self._correct = self._images = 0
        self.skipped = self._skipped_in_a_row = 0

    # --- files ---

    def save(self) -> None:
        """Write the checkpoint; the one before stays whole until the new one is complete.

        Raises:
            FloatingPointError: an array is not finite; the checkpoint from before stays.
        """
        arrays: dict[str, Array] = {}
        numbers: dict[str, Any] = {}
        for part, owner in self.parts.items():
            for name, value in owner.state_dict().items():
                if isinstance(value, (int, float)):
                    numbers[f"{part}/{name}"] = value
                elif not np.isfinite(to_numpy(value)).all():
                    raise FloatingPointError(
                        f"{part}/{name} is not finite in {self._place()}, so {CHECKPOINT} stays as it was before: "
                        "lower the learning rate, clip gradients with optim.clip_grad_norm, and resume"
                    )
                else:
                    arrays[f"{part}/{name}"] = value
        within = [self._loss, self._correct, self._images, self._seconds]
        place = {"epoch": self.epoch, "position": self.position, "step": self.iteration, "within": within}
        content = {"settings": self.settings, "history": self.history, "numbers": numbers, **place}
        save_arrays(self.out / CHECKPOINT, arrays, content)
        self._saved = time.monotonic()

    def _resume(self) -> None:
        path = self.out / CHECKPOINT
        if not path.is_file():
            raise CheckpointError(f"there is nothing to resume in {self.out}: no {CHECKPOINT}. Start without --resume")
        arrays, content = load_arrays(path)
        check_settings(path, content.get("settings"), json.loads(json.dumps(self.settings)))
        try:
            self._take(arrays, content)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            reason = printable(f"{type(error).__name__}: {error}"[:300])
            raise CheckpointError(
                f"{path} is not the checkpoint of this run ({reason}): start without --resume"
            ) from None
        self._say(f"resumed {path} in {self._place()}")

    def _take(self, arrays: dict[str, Array], content: dict[str, Any]) -> None:
        """Go on from what a checkpoint holds, once all that it says of the run makes sense."""
        said = checked_progress(content, METRICS)
        states: dict[str, dict[str, Any]] = {part: {} for part in self.parts}
        for key, value in {**arrays, **said.numbers}.items():
            part, _, name = key.partition("/")
            part = part if part in states else _RENAMED.get(part, part)
            states.setdefault(part, {})[name] = value
        for part, owner in self.parts.items():
            owner.load_state_dict(states[part])
        self.epoch, self.position, self.iteration, self.history = (
            said.epoch,
            said.position,
            said.iteration,
            said.history,
        )
        self._loss, self._correct, self._images, self._seconds = said.within

    def write_metrics(self) -> None:
        """metrics.csv: one row an epoch."""
        with open(self.out / "metrics.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, METRICS)
            writer.writeheader()
            writer.writerows(self.history)

    def _stop_if_asked(self) -> None:
        if not self._interrupt.asked:
            return
        command = shlex.join(["python", *sys.argv])
        again = command if "--resume" in sys.argv else f"{command} --resume"
        self._say(f"\nstopped in {self._place()}; continue with\n  {again}")
        raise SystemExit(130)  # what a shell reports for a program that was interrupted

    def _place(self) -> str:
        return f"epoch {self.epoch + 1} after {self.position} batches"

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, flush=True)


def keep_earlier(out: Path) -> Path | None:
    """Rename a folder that holds a run to the next free `NAME.1`, `NAME.2`, ...; returns the new name."""
    if not (out / CHECKPOINT).exists() and not (out / "model.safetensors").exists():
        return None
    number = 1
    while (kept := out.with_name(f"{out.name}.{number}")).exists():
        number += 1
    out.rename(kept)
    return kept


class _InterruptLater:
    """Within it the first Ctrl-C only sets `asked`, so that the present step is completed; a second one interrupts."""

    asked = False

    def __enter__(self) -> _InterruptLater:
        self._before: Any = None
        if threading.current_thread() is threading.main_thread():  # only there may signals be caught
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, *_: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


class _Progress:
    """A tqdm bar on a terminal, nothing otherwise (the epoch's line is then enough)."""

    def __init__(self, run: Run, count: int) -> None:
        self.run, self.count = run, count
        self.bar: Any = None

    def __enter__(self) -> _Progress:
        if not self.run.quiet and sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return self
            title = f"epoch {self.run.epoch + 1}"
            self.bar = tqdm(total=self.count, initial=self.run.position, desc=title, leave=False, unit=" batches")
        return self

    def update(self) -> None:
        if self.bar is not None:
            run = self.run
            speed = run._images / max(run._seconds, 1e-9)
            text = f"loss {run.loss:.3f}, accuracy {run.accuracy:.1%}, {speed:,.0f} images/s"
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
