"""The progress of a run in its checkpoint, checked: a hash shows that a file is complete, not who wrote it."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from minivit.io.safetensors import CheckpointError
from minivit.io.text import printable


class Position(NamedTuple):
    """The fields of `Run` of the same names.

    Attributes:
        within: loss, correct, images and seconds of the current epoch.
        earlier: the folder next to the run's with the files of an earlier run, or None.
    """

    epoch: int
    position: int
    iteration: int
    within: tuple[Any, ...]
    history: list[dict[str, float]]
    numbers: dict[str, Any]
    earlier: str | None


def checked_position(content: dict[str, Any], columns: tuple[str, ...]) -> Position:
    """The progress in a checkpoint.

    Args:
        columns: of a row of the history.

    Raises:
        ValueError, TypeError, KeyError or AttributeError: if it makes no sense.
    """
    for row in content["history"]:
        if row.keys() != set(columns):
            raise ValueError(f"a row of its history has {len(row)} columns, expected {len(columns)}")
        for number in row.values():
            _finite(number, "history")
    within = tuple(_finite(number, "within") for number in content["within"])
    if len(within) != 4:
        raise ValueError(f"within has {len(within)} numbers, expected 4")
    earlier = content.get("earlier")
    if earlier is not None and (type(earlier) is not str or Path(earlier).name != earlier):
        raise ValueError(f"earlier={earlier!r:.60} is not the name of a folder")
    return Position(
        _whole(content["epoch"], "epoch"),
        _whole(content["position"], "position"),
        _whole(content["step"], "step"),
        within,
        list(content["history"]),
        {name: _finite(number, name) for name, number in content["numbers"].items()},
        earlier,
    )


def check_settings(path: Path, theirs: Any, ours: dict[str, Any]) -> None:
    """Refuse to resume a run with other settings, or a file of another kind."""
    if not isinstance(theirs, dict):
        raise CheckpointError(f"{path} is not the checkpoint of a run: start without --resume")
    for name in [*theirs, *ours]:
        was, now = theirs.get(name), ours.get(name)
        if was != now:
            raise CheckpointError(
                f"cannot resume {path}: it was made with {printable(name)[:80]}={was!r:.80}, now it is {now!r:.80}"
            )


def _whole(value: Any, name: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name}={value!r:.60} is not an integer of at least 0")
    return value


def _finite(value: Any, name: str) -> Any:
    if type(value) not in (int, float, bool) or not isfinite(value):
        raise ValueError(f"{printable(name)[:60]} is {value!r:.60}, not a finite number")
    return value
