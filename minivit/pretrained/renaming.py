"""Translation of names: a source's names are a table of rules, each of which works in both directions.

    Rule("blocks.{i}.attn.qkv.{p}", ["encoder.layer.{i}.query.{p}", "encoder.layer.{i}.key.{p}", ...], STACKED)

`{i}` is a number, `{2i+1}` a number made from it, any other word in braces text without a dot or slash. The tables
are in `layouts/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from minivit.io.safetensors import CheckpointError
from minivit.io.text import quoted
from minivit.protocol import Array

_BRACES = re.compile(r"\{(\d*)([a-z]+)(?:\+(\d+))?\}")  # {i}, {2i+1}, {i+1}, {p}


class Template:
    """A name with placeholders."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.fields = [(m[2], int(m[1] or 1), int(m[3] or 0)) for m in _BRACES.finditer(text)]

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        parts, end = [], 0
        for match in _BRACES.finditer(self.text):
            parts.append(re.escape(self.text[end : match.start()]))
            parts.append(r"(\d+)" if _is_number(match[2]) else r"([^./]+)")
            end = match.end()
        return re.compile("".join(parts) + re.escape(self.text[end:]))

    def read(self, name: str) -> dict[str, Any] | None:
        """The values of the placeholders in a name; None if it does not match."""
        match = self._pattern.fullmatch(name)
        if match is None:
            return None
        found: dict[str, Any] = {}
        for (field, factor, offset), text in zip(self.fields, match.groups()):
            value: Any = text
            if _is_number(field):
                value, rest = divmod(int(text) - offset, factor)
                if rest or value < 0:
                    return None
            if found.setdefault(field, value) != value:
                return None
        return found

    def fill(self, values: dict[str, Any]) -> str:
        """The name with these values for its placeholders."""

        def one(match: re.Match[str]) -> str:
            value = values[match[2]]
            return str(int(match[1] or 1) * value + int(match[3] or 0)) if _is_number(match[2]) else value

        return _BRACES.sub(one, self.text)


def _is_number(field: str) -> bool:
    return field in ("i", "j")


@dataclass(frozen=True)
class Way:
    """A change of arrays: theirs -> ours and back. `heads` is the number of heads, where needed."""

    to_ours: Callable[[list[Array], int], list[Array]]
    to_theirs: Callable[[list[Array], int], list[Array]]


def _split(array: Array, parts: int) -> list[Array]:
    return [np.ascontiguousarray(part) for part in np.split(array, parts)]


def _thirds(array: Array) -> list[Array]:
    return _split(array, 3)


SAME = Way(lambda a, heads: a, lambda a, heads: a)
STACKED = Way(lambda a, heads: [np.concatenate(a)], lambda a, heads: _thirds(a[0]))  # q, k, v concatenated
# gate and value of a gated MLP concatenated
HALVES = Way(lambda a, heads: [np.concatenate(a)], lambda a, heads: _split(a[0], 2))
# the joint projection of attention, of which q and the joint k | v are separate here
QUERY_ALONE = Way(
    lambda a, heads: [np.ascontiguousarray(part) for part in np.split(a[0], [len(a[0]) // 3])],
    lambda a, heads: [np.concatenate(a)],
)
TOKEN = Way(lambda a, heads: [a[0].reshape(1, 1, -1)], lambda a, heads: [a[0].reshape(-1)])  # (D,) -> (1, 1, D)
ROWS = Way(lambda a, heads: [a[0][None]], lambda a, heads: [a[0][0]])  # (N, D) -> (1, N, D)
# v2's fused bias, whose middle third, the key's, is 0: q_bias and v_bias
OUTER_THIRDS = Way(
    lambda a, heads: [_thirds(a[0])[0], _thirds(a[0])[2]],
    lambda a, heads: [np.concatenate((a[0], np.zeros_like(a[0]), a[1]))],
)
FLAT = Way(lambda a, heads: [a[0].reshape(-1)], lambda a, heads: a)  # old Flax keeps a GroupNorm's as (1, 1, 1, C)
TRANSPOSED = Way(lambda a, heads: [a[0].T], lambda a, heads: [a[0].T])  # (in, out) as JAX keeps it
HWIO = Way(lambda a, heads: [a[0].transpose(3, 2, 0, 1)], lambda a, heads: [a[0].transpose(2, 3, 1, 0)])
# JAX's attention keeps a head axis: q, k, v kernels (D, H, d) and biases (H, d), the output's kernel (H, d, D)
JAX_QKV = Way(
    lambda a, heads: [np.concatenate([part.reshape(len(part), -1).T for part in a])],
    lambda a, heads: [part.T.reshape(part.shape[1], heads, -1) for part in _thirds(a[0])],
)
JAX_QKV_BIAS = Way(
    lambda a, heads: [np.concatenate([part.reshape(-1) for part in a])],
    lambda a, heads: [part.reshape(heads, -1) for part in _thirds(a[0])],
)
JAX_OUT = Way(
    lambda a, heads: [a[0].reshape(-1, a[0].shape[-1]).T],
    lambda a, heads: [a[0].T.reshape(heads, -1, len(a[0]))],
)


class Rule:
    """Some of our names from some of theirs."""

    def __init__(self, ours: str | Iterable[str], theirs: str | Iterable[str], way: Way = SAME) -> None:
        self.ours = [Template(text) for text in ([ours] if isinstance(ours, str) else ours)]
        self.theirs = [Template(text) for text in ([theirs] if isinstance(theirs, str) else theirs)]
        self.way = way


def check_same(one: str, other: str, first: Array | None, second: Array) -> None:
    """Refuse two arrays of a file that are one array of the model, unless they are equal.

    Raises:
        CheckpointError: with their names, `one` and `other`.
    """
    if first is not None and not np.array_equal(first, second):
        raise CheckpointError(
            f"it has {quoted(one)} and {quoted(other)}, which are one array of the model and differ: remove one of them"
        )


def translate(
    rules: Iterable[Rule], arrays: dict[str, Array], heads: Callable[[str], int], *, out: bool = False
) -> tuple[dict[str, Array], list[str]]:
    """Arrays under their names -> arrays under ours; with `out`, the other direction.

    Args:
        rules: the source's table.
        arrays: by name.
        heads: our name -> the number of heads of its attention.

    Returns:
        the translated arrays, and the names that match no rule.

    Raises:
        CheckpointError: if arrays that differ become one, as under the names of two versions of a program.
    """
    found: dict[str, Array] = {}
    origin: dict[str, str] = {}
    used: set[str] = set()
    for rule in rules:
        source, target = (rule.ours, rule.theirs) if out else (rule.theirs, rule.ours)
        for name in arrays:
            values = None if name in used else source[0].read(name)
            if values is None:
                continue
            names = [template.fill(values) for template in source]
            if not all(each in arrays for each in names):
                continue  # the other names are missing: reported as unknown
            used.update(names)
            results = [template.fill(values) for template in target]
            change = rule.way.to_theirs if out else rule.way.to_ours
            count = heads(names[0] if out else results[0])
            for result, array in zip(results, change([arrays[each] for each in names], count)):
                check_same(origin.get(result, ""), names[0], found.get(result), array)
                found[result], origin[result] = array, names[0]
    return found, [name for name in arrays if name not in used]
