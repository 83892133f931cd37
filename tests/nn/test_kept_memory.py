"""The bytes that backs hold, each block of memory once."""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit import nn
from minivit.nn.kept_memory import Kept, kept_bytes
from minivit.protocol import once


def closure(*held: Any) -> Any:
    return lambda: held


def test_a_block_counts_once_for_the_first_that_holds_it() -> None:
    x, y = np.zeros(10), np.zeros((3, 4), np.float32)
    kept = Kept([])
    assert kept.add(closure(x[2:4], [x.reshape(2, 5), (y.T,)])) == 80 + 48  # a view holds all of its memory
    assert kept.add(closure(x, y)) == 0
    assert kept.add(once(closure(np.zeros(2)))) == 16


def test_parameters_layers_and_what_is_ignored_count_nothing() -> None:
    x, layer = np.zeros(10), nn.Linear(3, 4)
    assert Kept([x]).add(closure(x[1:], layer, layer.weight)) == 0


def test_a_layers_parameters_count_nothing_however_they_are_held() -> None:
    x, layer = np.zeros(10), nn.Linear(3, 4)
    assert kept_bytes(closure(x, layer, layer.weight.data.T)) == x.nbytes
    assert kept_bytes(closure(x, layer.weight, layer.weight.data)) == x.nbytes


def test_backs_that_hold_each_other_have_an_end() -> None:
    def back() -> Any:
        return back, array

    array = np.zeros(5)
    assert Kept([]).add(back) == 40
