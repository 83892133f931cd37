"""The order in which the gradients of shards are added: one fixed binary tree, whoever computes the shards.

    tree(a, b) = tree(a, middle) + tree(middle, b)     of the shards a ... b-1; a leaf is one shard's gradient

Addition of floating-point numbers is not associative, so the order decides the last bits. With at most three shards the
tree adds as `parallel.DataParallel` does: (g0 + g1) + g2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Span = tuple[int, int]  # the shards a ... b-1
T = TypeVar("T")


def middle(a: int, b: int) -> int:
    """Where the tree cuts the shards a ... b-1 in two; the left part has the odd one."""
    return a + (b - a + 1) // 2


def shards_of(rank: int, ranks: int, count: int) -> range:
    """The shards that a rank computes: in order, as even as possible; none for some ranks if they are more."""
    return range(count * rank // ranks, count * (rank + 1) // ranks)


def subtrees(here: range, count: int) -> list[Span]:
    """The largest subtrees of a tree of `count` shards whose shards are all in `here`, from left to right."""

    def within(a: int, b: int) -> list[Span]:
        if b <= here.start or a >= here.stop:
            return []
        if here.start <= a and b <= here.stop:
            return [(a, b)]
        return within(a, middle(a, b)) + within(middle(a, b), b)

    return within(0, count) if count else []


def add_up(a: int, b: int, value: Callable[[int, int], T | None], add: Callable[[T, T], T]) -> T:
    """tree(a, b), where `value(a, b)` is the sum of a subtree that is known, else None; of every leaf it is known."""
    known = value(a, b)
    if known is not None:
        return known
    cut = middle(a, b)
    return add(add_up(a, cut, value, add), add_up(cut, b, value, add))
