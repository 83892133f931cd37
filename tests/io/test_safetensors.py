"""Files that NumPy cannot hold, and one that is replaced while it is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors

from minivit.io import safetensors as module


def test_a_file_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The header that was checked must be that of the file whose arrays are read."""
    path, other = tmp_path / "model.safetensors", tmp_path / "other.safetensors"
    module.save_arrays(path, {"x": np.arange(3.0)}, {"edition": 1})
    module.save_arrays(other, {"x": np.arange(5.0), "y": np.ones(2)}, {"edition": 2})
    opened: list[Any] = []
    check, open_file = safetensors.safe_open, module.open_file

    def recorded(*arguments: Any) -> Any:
        opened.append(open_file(*arguments))
        return opened[-1]

    def replaced(*arguments: Any, **options: Any) -> Any:
        if other.exists():
            os.replace(other, path)
        return check(*arguments, **options)

    monkeypatch.setattr(module, "open_file", recorded)
    monkeypatch.setattr(safetensors, "safe_open", replaced)
    arrays, description = module.load_arrays(path)
    assert description == {"edition": 2} and {name: array.tolist() for name, array in arrays.items()} == {
        "x": [0, 1, 2, 3, 4],
        "y": [1, 1],
    }
    assert len(opened) == 2 and all(file.closed for file in opened)
    path.write_bytes(b"no header")
    with pytest.raises(module.CheckpointError, match="is not a complete safetensors file"):
        module.load_arrays(path)
    assert len(opened) == 3 and opened[-1].closed


def test_a_dtype_that_numpy_does_not_know_is_named(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    path = tmp_path / "small.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(module.CheckpointError, match="'w' is of dtype F8_E4M3, which NumPy does not know"):
        module.load_arrays(path)


def test_the_order_of_a_description_changes_no_byte(tmp_path: Path) -> None:
    arrays, facts = {"x": np.arange(3.0)}, {"b": 1, "a": {"d": 2, "c": 3}}
    written = []
    for description in (facts, {"a": {"c": 3, "d": 2}, "b": 1}):
        module.save_arrays(tmp_path / "model.safetensors", arrays, description)
        written.append((tmp_path / "model.safetensors").read_bytes())
    assert written[0] == written[1]


def test_arrays_that_the_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(module.CheckpointError, match="cannot hold these arrays .*: convert them to float32 or float64"):
        module.save_arrays(path, {"x": np.zeros(2, np.complex128)}, None)
    assert not path.exists()
