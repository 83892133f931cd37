"""A training run in a folder: checkpoint, metrics, progress and Ctrl-C. A resumed run ends with bitwise the same
result.

Batches and noise are pure functions of (seed, epoch, position), so a checkpoint stores only the position.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minivit.device import to_numpy
from minivit.distributed import Ranks
from minivit.distributed.agreement import check_agreement
from minivit.io.atomic import write_atomically
from minivit.io.lock import FolderLock
from minivit.io.safetensors import CheckpointError
from minivit.io.text import printable
from minivit.parallel.recorded_update import Outcome
from minivit.protocol import Array
from minivit.train.bar import ProgressBar
from minivit.train.console import Console
from minivit.train.folder import CHECKPOINT, fall_back, keep_earlier, load_checkpoint, resumable, save_checkpoint
from minivit.train.progress import check_settings, checked_position
from minivit.train.stopping import StopLater
from minivit.train.totals import Totals

_RENAMED = {"optimiser": "optimizer"}  # names of parts in checkpoints of minivit 0.1
METRICS = ("epoch", "learning_rate", "loss", "accuracy", "held_out_accuracy", "images_per_second", "seconds")


def noise_generator(seed: int, iteration: int) -> np.random.Generator:
    """The generator of dropout and drop path in one iteration: a pure function of both.

    The spawn key separates its stream from those of the batches, whose seeds are (seed, epoch, position).
    """
    return np.random.default_rng(np.random.SeedSequence((seed, iteration), spawn_key=(2,)))  # 1 is an epoch's order


def fingerprint(*arrays: Array) -> str:
    """A short hash of host arrays, which shows a resumed run that its data is unchanged."""
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
        epoch: completed epochs.
        position: completed batches of the current epoch.
        iteration: completed batches over all epochs.
        history: the rows of metrics.csv.

    Args:
        out: the folder; made if missing, and locked while this object exists. The files of an earlier run in it are
            moved to a folder next to it, unless it is resumed.
        settings: JSON-able; all settings that affect the result. A resumed run must have the same.
        parts: the objects that training changes, by name, each with `state_dict()` and `load_state_dict(state)`.
        resume: continue from the checkpoint in `out`.
        every: seconds between checkpoints within an epoch.
        quiet: print nothing.
        ranks: the processes of the run, all of which make the same calls; only rank 0 prints, and uses the folder.
            Their number of shards is saved with the settings.

    Raises:
        CheckpointError: nothing to resume, no complete checkpoint, or one with other settings.
        LockedError: another process writes in the folder.
        ValueError: the ranks have different settings.
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
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = Ranks() if ranks is None else ranks
        shards = {} if self.ranks.shards is None else {"shards": self.ranks.shards}
        exact = {} if self.ranks.exact else {"exact": False}
        self.out, self.settings, self.parts = Path(out), {**settings, **shards, **exact}, parts
        self.every, self.quiet = every, quiet or not self.ranks.first
        self.epoch = self.position = self.iteration = 0
        self.history: list[dict[str, float]] = []
        self._earlier: str | None = None  # the folder, next to this one, with the files of an earlier run
        self._interrupt = StopLater()
        self._saved = time.monotonic()
        self._totals, self._seconds = Totals(), 0.0
        check_agreement(self.ranks, self.settings, "the ranks have different settings")
        self._lock: FolderLock | None = None
        if self.ranks.first:
            self._take_folder(resume)
        if resume:
            self._resume()
        else:
            self.save()  # so that a run that is killed in its first epoch can be resumed too

    def _take_folder(self, resume: bool) -> None:
        if resume and not resumable(self.out):
            load_checkpoint(self.out, self._say)  # raises, and makes no folder
        self._lock = FolderLock(self.out)
        weakref.finalize(self, self._lock.release)
        if not resume:
            kept = keep_earlier(self.out)
            if kept is not None:
                self._earlier = kept.name
                self._say(f"kept the earlier run as {kept}")

    def __repr__(self) -> str:
        return f"Run({str(self.out)!r}, epoch={self.epoch}, position={self.position}, iteration={self.iteration})"

    # --- the loops ---

    def epochs(self, total: int) -> Iterator[int]:
        """The remaining epochs, including the current one. In this loop Ctrl-C, SIGTERM and SIGHUP wait for the end of
        the step.

        Raises:
            ValueError: no epochs.
            RuntimeError: the loop's body did not call `end_epoch`.
        """
        if total < 1:
            raise ValueError(f"epochs={total}: choose at least 1")
        with StopLater() as self._interrupt:
            for epoch in range(self.epoch, total):
                yield epoch
                if self.epoch != epoch + 1:
                    raise RuntimeError(f"epoch {epoch + 1} was not closed: call run.end_epoch once at its end")

    def batches(self, batches: Iterable[tuple[Array, Array]], count: int) -> Iterator[tuple[Array, Array]]:
        """The remaining batches of the current epoch, with a progress bar, checkpoints, and the check for Ctrl-C.

        Args:
            batches: (x, y), without the first `position` of the epoch.
            count: the number of batches in an epoch.
        """
        title = None if self.quiet else f"epoch {self.epoch + 1}"
        with ProgressBar(title, count, self.position) as bar:
            for batch in batches:
                start = time.perf_counter()
                yield batch
                self._seconds += time.perf_counter() - start
                self.position += 1
                self.iteration += 1
                if bar.due():
                    bar.update(self.loss, self.accuracy, self._totals.images / max(self._seconds, 1e-9))
                if self._agreed(time.monotonic() - self._saved > self.every) or self._interrupt.asked:
                    self.save()
                self._stop_if_asked()

    def _agreed(self, is_due: bool) -> bool:
        """Whether a checkpoint is due on any rank; where one of them was asked to stop, all are."""
        self._interrupt.asked, due = self.ranks.most(self._interrupt.asked, is_due)
        return bool(due)

    def log(self, loss: Any, correct: int, images: int, gradient_norm: float = 0.0) -> None:
        """Record one batch.

        Args:
            loss: its mean loss, a number or an array of shape () on any device.
            correct: how many of its images were classified correctly.
            images: their number.
            gradient_norm: of its gradient.

        A loss or norm that is not finite is not counted: `optim.clip_grad_norm` has cleared the gradients, so the step
        changed nothing. The epoch's line has their number.

        Raises:
            FloatingPointError: the tenth such batch in a row.
        """
        self._totals.add(float(loss), correct, images, float(gradient_norm), self._where())

    def log_later(self, found: Outcome, images: int) -> None:
        """Record one batch of `CapturedStep.update`: its numbers are read when they are shown or saved."""
        self._totals.add_later(found, images, self._where())

    def _read(self) -> Totals:
        """The epoch's sums; waiting for a GPU is part of its time."""
        start = time.perf_counter()
        self._totals.read()
        self._seconds += time.perf_counter() - start
        return self._totals

    def end_epoch(self, learning_rate: float, held_out_accuracy: float) -> None:
        """Close the current epoch: a row in metrics.csv, a printed line, a checkpoint."""
        self._read()
        self.epoch += 1
        skipped = f"  steps skipped (not finite): {self.skipped}" if self.skipped else ""
        row = (
            self.epoch,
            learning_rate,
            self.loss,
            self.accuracy,
            held_out_accuracy,
            self._totals.images / max(self._seconds, 1e-9),
            self._seconds,
        )
        self.history.append(dict(zip(METRICS, row)))
        self.position = 0
        self._say(
            f"epoch {self.epoch:3d}  loss {self.loss:.4f}  accuracy {self.accuracy:7.2%}  "
            f"held out {held_out_accuracy:7.2%}  {row[5]:,.0f} images/s{skipped}"
        )
        self._totals, self._seconds = Totals(), 0.0
        self.write_metrics()
        self.save()
        self._agreed(False)
        self._stop_if_asked()

    @property
    def loss(self) -> float:
        """The mean loss of the current epoch's images so far."""
        return self._read().loss

    @property
    def accuracy(self) -> float:
        """The share of the current epoch's images classified correctly so far."""
        return self._read().accuracy

    @property
    def skipped(self) -> int:
        """The batches of the current epoch whose loss or gradient was not finite."""
        return self._read().skipped

    @property
    def seconds(self) -> float:
        """Seconds in training steps, over all completed epochs, without interruptions."""
        return sum(row["seconds"] for row in self.history)

    # --- files ---

    def save(self) -> None:
        """Write the checkpoint; the previous one is kept as a second file. Every rank must call it.

        Raises:
            LockedError: another process has taken the folder over.
            OSError: names the file, for example if the disk is full; the previous checkpoint is unchanged.
            FloatingPointError: an array is not finite; the previous checkpoint is unchanged.
        """
        if self._lock is not None:
            self._lock.check()
        self._read()
        arrays: dict[str, Array] = {}
        numbers: dict[str, Any] = {}
        for part, owner in self.parts.items():
            for name, value in owner.state_dict().items():
                if isinstance(value, (int, float)):
                    numbers[f"{part}/{name}"] = value
                elif not np.isfinite(to_numpy(value)).all():
                    raise FloatingPointError(
                        f"{part}/{name} is not finite in {self._where()}, so {CHECKPOINT} is unchanged: "
                        "lower the learning rate, clip gradients with optim.clip_grad_norm, and resume"
                    )
                else:
                    arrays[f"{part}/{name}"] = value
        within = [*self._totals.state(), self._seconds]
        progress = {"epoch": self.epoch, "position": self.position, "step": self.iteration, "within": within}
        content = {"settings": self.settings, "history": self.history, "numbers": numbers, **progress}
        if self._earlier is not None:
            content["earlier"] = self._earlier
        if self.ranks.first:
            with self.ranks.slow():
                save_checkpoint(self.out, arrays, content)
        self._saved = time.monotonic()

    def _resume(self) -> None:
        loaded = load_checkpoint(self.out, self._say) if self.ranks.first else None
        arrays, content, path = self.ranks.broadcast(loaded)
        check_settings(path, content.get("settings"), json.loads(json.dumps(self.settings)))
        try:
            self._take(arrays, content)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            reason = printable(f"{type(error).__name__}: {error}"[:300])
            raise CheckpointError(
                f"{path} is not the checkpoint of this run ({reason}): start without --resume"
            ) from None
        if path.name != CHECKPOINT and self.ranks.first:
            fall_back(self.out)
        self._say(f"resumed {path} in {self._where()}")

    def _take(self, arrays: dict[str, Array], content: dict[str, Any]) -> None:
        """Continue from a checkpoint, after checking its progress."""
        said = checked_position(content, METRICS)
        states: dict[str, dict[str, Any]] = {part: {} for part in self.parts}
        for key, value in {**arrays, **said.numbers}.items():
            part, _, name = key.partition("/")
            part = part if part in states else _RENAMED.get(part, part)
            states.setdefault(part, {})[name] = value
        for part, owner in self.parts.items():
            owner.load_state_dict(states[part])
        self.epoch, self.position, self.iteration = said.epoch, said.position, said.iteration
        self.history = said.history
        *totals, self._seconds = said.within
        self._totals = Totals(*totals)
        self._earlier = said.earlier

    def write_metrics(self) -> None:
        """metrics.csv: one row for each epoch."""
        if not self.ranks.first:
            return
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, METRICS)
        writer.writeheader()
        writer.writerows(self.history)
        write_atomically(self.out / "metrics.csv", file.getvalue().encode())

    def _stop_if_asked(self) -> None:
        if not self._interrupt.asked:
            return
        again = sys.orig_argv if "--resume" in sys.orig_argv else [*sys.orig_argv, "--resume"]
        again = [*(["mpiexec", "-n", str(self.ranks.size)] if self.ranks.size > 1 else []), *again]
        command = shlex.join(again) if os.name == "posix" else subprocess.list2cmdline(again)
        self._say(f"\nstopped in {self._where()}; continue with\n  {command}")
        self.ranks.wait()  # the first that exits could end the others
        raise SystemExit(128 + self._interrupt.asked)  # the exit status of a program that a signal ended, as in shells

    def _where(self) -> str:
        return f"epoch {self.epoch + 1} after {self.position} batches"

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=Console(sys.stdout), flush=True)
