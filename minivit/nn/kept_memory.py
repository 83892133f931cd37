"""The memory that the backs of a forward pass hold. Each block is counted once, for the first back that holds it.

Summaries, traces and the repr of a back print it, and `minivit/parallel/` plans with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from minivit.device import array_module, owner
from minivit.nn.layer import Layer
from minivit.nn.parameter import Buffer
from minivit.protocol import Array, once


class Kept:
    """Counts the memory of backs in turn. All backs must stay alive meanwhile, because blocks are identified by id.

    Args:
        ignored: arrays that exist anyway, those of the parameters.
    """

    def __init__(self, ignored: Iterable[Array]) -> None:
        self._met = {id(owner(array)) for array in ignored}

    def add(self, back: Any) -> int:
        """Bytes of the blocks that this back or the backs of its parts hold, and that no earlier back held."""
        return sum(int(thing.nbytes) for thing in held(back, self._met) if not isinstance(thing, (Layer, Buffer)))


def kept_bytes(back: Any) -> int:
    """Bytes that a back holds, without the parameters and the constants of layers."""
    ignored: list[Array] = []
    for thing in held(back, set()):
        if isinstance(thing, Layer):
            ignored += [*(each.data for each in thing.state().values()), *thing.constants()]
        elif isinstance(thing, Buffer):
            ignored.append(thing.data)
    return Kept(ignored).add(back)


def held(back: Any, met: set[int]) -> Iterator[Any]:
    """The layers, the parameters and the arrays, each as the owner of its memory, that a back or its parts' backs hold.

    Objects whose id is in `met` are skipped; those found are added to it.
    """
    waiting = [back]
    while waiting:
        thing = waiting.pop()
        array = isinstance(thing, np.ndarray) or array_module(thing) is not np
        thing = owner(thing) if array else thing
        if id(thing) in met:
            continue
        met.add(id(thing))
        if array or isinstance(thing, (Layer, Buffer)):
            yield thing
        else:
            waiting += _inside(thing)


def _inside(thing: Any) -> list[Any]:
    if isinstance(thing, once):
        return thing.kept
    if isinstance(thing, (list, tuple)):
        return list(thing)
    return [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
