"""A training run that survives: its place in the data, its metrics, and a checkpoint from which it goes on bit for bit.

Batches and noise are pure functions of (seed, epoch, position), so the position is all that a checkpoint must remember
of them. Next: `loop.py`, what is done in each step.
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

from minivit import functional as F
from minivit.backend import to_numpy
from minivit.checkpoint import CheckpointError, load_arrays, save_arrays
from minivit.protocol import Array, Back

CHECKPOINT = "checkpoint.safetensors"
METRICS = ("epoch", "learning_rate", "loss", "accuracy", "held_out_accuracy", "images_per_second", "seconds")


class CountingLoss:
    """softmax_cross_entropy that also counts right answers, safe to call from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.right = 0

    def __call__(self, logits: Array, labels: Array, **options: Any) -> tuple[Array, Back]:
        truth = labels if labels.ndim == 1 else labels.argmax(axis=1)  # soft targets: their largest share
        right = int((to_numpy(logits).argmax(axis=1) == to_numpy(truth)).sum())
        with self._lock:
            self.right += right
        return F.softmax_cross_entropy(logits, labels, **options)

    def take(self) -> int:
        """The right answers since the last call."""
        with self._lock:
            right, self.right = self.right, 0
        return right


def noise_generator(seed: int, step: int) -> np.random.Generator:
    """The generator of a step's dropout and drop path: a pure function of both, apart from the batches' streams.

    The key keeps it apart: without one, (seed, step) would also be the seed of some epoch's or batch's stream.
    """
    return np.random.default_rng(np.random.SeedSequence((seed, step), spawn_key=(2,)))  # 1 is the order of an epoch


def fingerprint(*arrays: Array) -> str:
    """A short hash of the content of host arrays: what a resumed run must find unchanged, wherever it lies now."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


def accuracy(predict: Any, images: Array, labels: Array, prepare: Any, batch_size: int = 1000) -> tuple[float, Array]:
    """The share of right answers over images, and the logits (n, K) on the host.

    Args:
        predict: images -> logits, such as `model.predict`.
        images: (n, H, W) uint8, prepared a batch at a time by `prepare`.
        labels: (n,) integers.
    """
    starts = range(0, len(images), batch_size)
    logits = np.concatenate([to_numpy(predict(prepare(images[start : start + batch_size]))) for start in starts])
    return float((logits.argmax(axis=1) == labels).mean()), logits


class Run:
    """The state of a run in a folder.

    Args:
        out: the folder; made if missing. An earlier run in it is kept under another name unless it is resumed.
        settings: everything that decides the course of the run, JSON-able; a resumed run must have the same.
        parts: what learns, by name: each has `state_dict()` and `load_state_dict(state)` (model, optimiser, average).
        resume: go on from the checkpoint in `out`.
        every: seconds between checkpoints within an epoch.
        quiet: print nothing.
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
        self.epoch = self.position = self.step = 0
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

    # --- the loop ---

    def epochs(self, total: int) -> Iterator[int]:
        """The epochs that remain, from the one in which the run stands; Ctrl-C stops after the step in progress."""
        with _InterruptLater() as self._interrupt:
            while self.epoch < total:
                yield self.epoch

    def steps(self, batches: Iterable[tuple[Array, Array]], count: int) -> Iterator[tuple[Array, Array]]:
        """The batches of this epoch with a progress line, and a checkpoint now and then."""
        with _Progress(self, count) as progress:
            for batch in batches:
                start = time.perf_counter()
                yield batch
                self._seconds += time.perf_counter() - start
                self.position += 1
                self.step += 1
                progress.update()
                if self._interrupt.asked or time.monotonic() - self._saved > self.every:
                    self.save()
                self._stop_if_asked()

    def log(self, loss: float, right: int, images: int) -> None:
        """Note one step: the mean loss over `images` images, of which `right` were classified rightly."""
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at epoch {self.epoch + 1}, step {self.position}: lower the learning rate"
            )
        self._loss += loss * images
        self._right += right
        self._images += images

    def end_epoch(self, learning_rate: float, held_out_accuracy: float) -> None:
        """Close the epoch: a row in metrics.csv, a line on the screen, a checkpoint."""
        self.epoch += 1
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
            f"held out {held_out_accuracy:7.2%}  {row[5]:,.0f} images/s"
        )
        self._clear()
        self.write_metrics()
        self.save()
        self._stop_if_asked()

    @property
    def loss(self) -> float:
        return self._loss / max(1, self._images)

    @property
    def accuracy(self) -> float:
        return self._right / max(1, self._images)

    def _clear(self) -> None:
        self._loss = self._seconds = 0.0
        self._right = self._images = 0

    # --- files ---

    def save(self) -> None:
        """Write the checkpoint; the one before stays whole until the new one is complete."""
        arrays: dict[str, Array] = {}
        numbers: dict[str, Any] = {}
        for part, owner in self.parts.items():
            for name, value in owner.state_dict().items():
                if isinstance(value, (int, float)):
                    numbers[f"{part}/{name}"] = value
                else:
                    arrays[f"{part}/{name}"] = value
        within = [self._loss, self._right, self._images, self._seconds]
        place = {"epoch": self.epoch, "position": self.position, "step": self.step, "within": within}
        content = {"settings": self.settings, "history": self.history, "numbers": numbers, **place}
        save_arrays(self.out / CHECKPOINT, arrays, content)
        self._saved = time.monotonic()

    def _resume(self) -> None:
        path = self.out / CHECKPOINT
        if not path.is_file():
            raise CheckpointError(f"there is nothing to resume in {self.out}: no {CHECKPOINT}. Start without --resume")
        arrays, content = load_arrays(path)
        if "settings" not in content:
            raise CheckpointError(f"{path} is not the checkpoint of a run: start without --resume")
        ours, theirs = json.loads(json.dumps(self.settings)), content["settings"]
        for name in [*theirs, *ours]:
            was, now = theirs.get(name), ours.get(name)
            if was != now:
                raise CheckpointError(f"cannot resume {path}: it was made with {name}={was!r}, now it is {now!r}")
        for part, owner in self.parts.items():
            found = {**arrays, **content["numbers"]}
            prefix = f"{part}/"
            owner.load_state_dict({key[len(prefix) :]: found[key] for key in found if key.startswith(prefix)})
        self.epoch, self.position, self.step = content["epoch"], content["position"], content["step"]
        self._loss, self._right, self._images, self._seconds = content["within"]
        self.history = content["history"]
        self._say(f"resumed {path} at epoch {self.epoch + 1}, step {self.position}")

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
        self._say(f"\nstopped at epoch {self.epoch + 1}, step {self.position}; go on with\n  {again}")
        raise SystemExit(130)  # what a shell reports for a program that was interrupted

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
    """Within it the first Ctrl-C only sets `asked`, so that the step in progress ends whole; a second interrupts."""

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
