"""Broken, lying and hostile files at the public door: one CheckpointError that says what to do, and no more happens.

Nothing in a file is run, memory stays below twice the file's size, and the model that `load` was given keeps its bits.
The files are in malformed_files.py and malformed_folders.py. Read test_sources.py for files that are right.
"""

from __future__ import annotations

import os
import re
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from malformed_files import ARRAYS, CANARY, MODEL, NPZ, SAFETENSORS, VIT, Build, file, saved
from malformed_folders import CONFIGS, FITTING_NOTHING, OTHER, PICKLES, TENSOR_DICT, UNREADABLE_CONFIGS
from table import PROFILE
from torch_files import new_file, old_file

from minivit import CheckpointError, ViT, save
from minivit.pretrained import from_pretrained, load

FILES = {**SAFETENSORS, **NPZ, **PICKLES, **OTHER, **FITTING_NOTHING}
SLACK = 1_000_000  # bytes beyond twice the file: messages, small models, and a buffer for reading
# what to do; where arrays do not fit, what was expected is enough
REMEDY = re.compile(
    r"(fetch|save|copy|restore|install|rename|decompress|convert|choose|close|train|build|say|leave|remove|give|"
    r"read it with|load it|check (the path|path|where it)|git lfs pull)\b|expected|parameters are missing|"
    r"not the model's|the model has",
    re.IGNORECASE,
)
Gaps = dict[str, str]  # patterns of "file, door", and what the readers still do wrong: once mended, a line must go
MISBEHAVES: Gaps = {}
# wordings of messages that do not say what to do, or what was expected: likewise
SPEECHLESS = ()


def shown_at(doors: Iterable[str], names: Iterable[str], gaps: Gaps) -> Any:
    """Each name at each door; those that are known to go wrong must do so until their line is gone."""
    found = []
    for name in names:
        for door in doors:
            reasons = [
                reason for pattern, reason in gaps.items() if re.fullmatch(pattern, f"{name}, {door}", re.DOTALL)
            ]
            marks = [pytest.mark.xfail(strict=True, reason=reasons[0])] if reasons else []
            found.append(pytest.param(name, door, marks=marks, id=f"{name}, {door}"))
    return pytest.mark.parametrize(("name", "door"), found)


def quoted(line: str) -> None:
    """Where `from_pretrained` reports what it changed; nothing is printed."""


def built(path: Path) -> Any:
    return from_pretrained(path, report=quoted)


def filled(path: Path) -> Any:
    return load(ViT(**VIT, seed=4), path)


DOORS: dict[str, Callable[[Path], Any]] = {"from_pretrained": built, "load": filled}


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is imported and compiled at first use is no memory of a file's."""
    folder = tmp_path_factory.mktemp("warm")
    for number, good in enumerate(whole_files().values()):
        (folder / str(number)).mkdir()
        for door in DOORS.values():
            door(good(folder / str(number)))


def size_of(path: Path) -> int:
    inside = path.rglob("*") if path.is_dir() else [path, path.parent / "config.json"]
    return sum(each.stat().st_size for each in inside if each.is_file())


def refusal(door: Callable[[Path], Any], path: Path) -> tuple[str, int]:
    """The message of the CheckpointError, and the peak of memory; any other exception passes through."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as refused:
            door(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    error = refused.value
    assert error.__cause__ is None and (error.__context__ is None or error.__suppress_context__), "two errors, not one"
    return str(error), peak


def check(build: Build, folder: Path, monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    """One CheckpointError that names the file, and nothing else: no file made, little memory, the model as it was."""
    inside = folder / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)
    path = build(inside)
    before = sorted(folder.rglob("*"))
    model = ViT(**VIT, seed=4)
    bits = {name: (array.dtype, array.tobytes()) for name, array in model.state_dict().items()}
    message, peak = refusal(built if door == "from_pretrained" else lambda path: load(model, path), path)
    assert (f"{inside}{os.sep}" if path == inside else str(path)) in message, message
    assert "\n" not in message and len(message) < 1000, message
    assert peak < 2 * size_of(path) + SLACK, f"{peak} bytes for {size_of(path)} of file"
    assert {name: (array.dtype, array.tobytes()) for name, array in model.state_dict().items()} == bits
    assert sorted(folder.rglob("*")) == before and not Path(f"/tmp/{CANARY}.npy").exists(), "a file was made"


def test_there_are_many_and_no_two_have_one_name() -> None:
    tables = (SAFETENSORS, NPZ, PICKLES, OTHER, FITTING_NOTHING, CONFIGS)
    assert sum(map(len, tables)) == len({**FILES, **CONFIGS}) > 300


@shown_at(DOORS, FILES, MISBEHAVES)
def test_it_is_refused_once_and_nothing_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, door: str
) -> None:
    check(FILES[name], tmp_path, monkeypatch, door)


@shown_at(["from_pretrained"], CONFIGS, MISBEHAVES)
def test_a_config_json_that_lies_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, door: str
) -> None:
    check(CONFIGS[name], tmp_path, monkeypatch, door)


def message_at(door: str, build: Build, folder: Path) -> str:
    """What the CheckpointError says; nothing if there is none, which is the matter of the tests above."""
    folder.mkdir()
    try:
        DOORS[door](build(folder))
    except CheckpointError as error:
        return str(error).replace(str(folder), "")
    except Exception:
        return ""
    return ""


def test_every_message_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    every = [(name, door) for name in {**FILES, **CONFIGS} for door in DOORS if name in FILES or door != "load"]
    messages = {
        (name, door): message_at(door, {**FILES, **CONFIGS}[name], tmp_path / str(number))
        for number, (name, door) in enumerate(every)
    }
    speechless = {place: said for place, said in messages.items() if said and not REMEDY.search(said)}
    known = {place: [w for w in SPEECHLESS if re.search(w, said)] for place, said in speechless.items()}
    assert not {place: said for place, said in speechless.items() if not known[place]}
    mended = set(SPEECHLESS) - {wording for wordings in known.values() for wording in wordings}
    assert not mended, "these messages have learnt to speak: take their lines out"


@pytest.mark.parametrize("name", UNREADABLE_CONFIGS)
def test_a_config_json_that_cannot_be_read_is_refused_where_it_decides(tmp_path: Path, name: str) -> None:
    path = UNREADABLE_CONFIGS[name](tmp_path)
    assert same(DOORS["load"](path), ARRAYS)  # into a model that is there, it decides nothing
    with pytest.raises(CheckpointError, match=r"config\.json .*It affects the computation: correct it, or remove it"):
        DOORS["from_pretrained"](path)


# --- one bit at a time ------------------------------------------------------------------------------------------------


def whole_files() -> dict[str, Build]:
    """A file of each format that is as it should be."""

    def own(folder: Path) -> Path:
        save(MODEL, folder / "own.safetensors")
        return folder / "own.safetensors"

    return {
        "ours": own,
        "safetensors": file("a.safetensors", lambda: safetensors.numpy.save(dict(ARRAYS))),
        "npz": file("a.npz", lambda: saved(ARRAYS)),
        "npz, compressed": file("a.npz", lambda: saved(ARRAYS, np.savez_compressed)),
        "pth": file("a.pth", lambda: new_file(TENSOR_DICT)),
        "old pth": file("a.pth", lambda: old_file(TENSOR_DICT)),
    }


def same(model: Any, arrays: Any) -> bool:
    found = model.state_dict()
    return found.keys() == arrays.keys() and all(np.array_equal(found[name], arrays[name]) for name in arrays)


FLIPS = 60 if PROFILE == "quick" else 300
HASHED = ("ours", "npz", "npz, compressed", "pth")  # a hash, or a checksum of each entry


@pytest.mark.parametrize("name", whole_files())
def test_a_flipped_bit_is_noticed_or_changes_numbers_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = whole_files()[name](tmp_path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    outcomes = {"refused": 0, "the same": 0, "other numbers": 0}
    for bit in rng.choice(8 * len(data), FLIPS, replace=False).tolist():
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        for door in DOORS.values():
            try:
                model = door(path)
            except CheckpointError as error:
                assert str(path) in str(error)
                outcomes["refused"] += 1
            else:
                outcomes["the same" if same(model, ARRAYS) else "other numbers"] += 1
    assert outcomes["refused"] > 0
    # the bytes that no checksum covers are dates, attributes and padding
    assert (outcomes["other numbers"] == 0) == (name in HASHED), outcomes
