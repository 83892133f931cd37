"""The files of a run: the newest checkpoint, the previous one, and the files of an earlier run in the folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minivit.io.atomic import remove_stale, temporary_name
from minivit.io.safetensors import CheckpointError, load_arrays, save_arrays
from minivit.protocol import Array

CHECKPOINT = "checkpoint.safetensors"
PREVIOUS = CHECKPOINT + ".previous"  # not a suffix of weights, so a folder with one checkpoint has one file of weights
DAMAGED = CHECKPOINT + ".damaged"
# files of a run and its report, the checkpoint last: until it is moved, the run can be resumed
FILES = (
    *("model.safetensors", "lora.safetensors", "config.json", "metrics.csv", "MODEL_CARD.md"),
    *("curves.png", "confusion_matrix.png", "mistakes.png", DAMAGED, PREVIOUS, CHECKPOINT),
)


def resumable(out: Path) -> bool:
    """Whether a folder holds a checkpoint."""
    return (out / CHECKPOINT).exists() or (out / PREVIOUS).exists()


def save_checkpoint(out: Path, arrays: dict[str, Array], content: dict[str, Any]) -> None:
    """Write the newest checkpoint; the previous one is kept as `PREVIOUS`. One of them is complete at any moment."""
    pending = out / (CHECKPOINT + ".new")
    save_arrays(pending, arrays, content)
    _keep_as_previous(out)
    os.replace(pending, out / CHECKPOINT)


def _keep_as_previous(out: Path) -> None:
    newest, previous = out / CHECKPOINT, out / PREVIOUS
    if not newest.exists():
        return
    remove_stale(previous, newest.stat().st_mtime)
    second = out / temporary_name(PREVIOUS)
    try:
        os.link(newest, second)
    except OSError:  # a file system without hard links
        os.replace(newest, previous)
        return
    os.replace(second, previous)
    with contextlib.suppress(FileNotFoundError):
        second.unlink()  # renaming one link over another of the same file has no effect


def load_checkpoint(out: Path, say: Callable[[str], None]) -> tuple[dict[str, Array], dict[str, Any], Path]:
    """The newest checkpoint, or the previous one if the newest is damaged or missing, and its path.

    Raises:
        CheckpointError: there is none, or none is complete.
    """
    newest, previous = out / CHECKPOINT, out / PREVIOUS
    if not resumable(out):
        raise CheckpointError(f"there is nothing to resume in {out}: no {CHECKPOINT}. Start without --resume")
    try:
        return (*load_arrays(newest), newest)
    except CheckpointError as error:
        if not previous.exists():
            raise
        try:
            found = load_arrays(previous)
        except CheckpointError as older:
            raise CheckpointError(f"{error}; and {older}. Start without --resume") from None
        say(f"{error}. The previous checkpoint is complete: the steps since then are repeated")
        return (*found, previous)


def fall_back(out: Path) -> None:
    """After `load_checkpoint` returned the previous checkpoint: make it the newest, and rename the damaged one."""
    if (out / CHECKPOINT).exists():
        os.replace(out / CHECKPOINT, out / DAMAGED)
    os.replace(out / PREVIOUS, out / CHECKPOINT)


def keep_earlier(out: Path) -> Path | None:
    """Move the files of an earlier run to the next free `NAME.1`, `NAME.2`, ...; returns the new folder.

    Other files in the folder, such as data or initial weights, are not touched.

    Raises:
        OSError: names the file that cannot be moved; nothing was moved.
    """
    found = [name for name in FILES if (out / name).is_file()]
    if not found:
        return None
    home, number = Path(os.path.realpath(out)), 1
    if not home.name:
        raise OSError(f"{home} cannot have a sibling to keep the earlier run in: choose another --out")
    while True:
        kept = home.with_name(f"{home.name}.{number}")
        try:
            kept.mkdir()
            break
        except FileExistsError:
            number += 1
        except OSError as error:
            raise _cannot_move(out, kept, error) from None
    for name in found:
        try:
            os.rename(home / name, kept / name)
        except OSError as error:
            with contextlib.suppress(OSError):
                kept.rmdir()
            raise _cannot_move(out, kept, error) from None
    return out.with_name(kept.name) if out.name == home.name else kept


def original(path: str, out: str | Path) -> str:
    """The current path of an input of a resumed run: the files of an earlier run were moved when it began."""
    home = Path(os.path.realpath(out))
    inside = Path(os.path.realpath(path))
    if not resumable(home) or not inside.is_relative_to(home):
        return path
    _, content, _ = load_checkpoint(home, lambda text: None)
    moved = home.with_name(content.get("earlier") or home.name) / inside.relative_to(home)
    return str(moved) if moved.exists() else path


def refuse_among_classes(out: str | Path, *folders: Path) -> None:
    """Raise ValueError if `out` is within a folder of classes, where it would be read as a class."""
    home = Path(os.path.realpath(out))
    for folder in map(os.path.realpath, folders):
        if Path(folder) in home.parents:
            raise ValueError(f"--out {out} lies within {folder}, among the classes: choose a folder outside of it")


def _cannot_move(out: Path, kept: Path, error: OSError) -> OSError:
    return OSError(
        f"the earlier run in {out} cannot be moved to {kept} ({error.strerror}): choose another --out, or continue it "
        "with --resume"
    )
