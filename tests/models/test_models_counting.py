"""What pooling and the distilled head cost."""

from __future__ import annotations

import pytest

from minivit.models.heads import DistilledHead, Pool
from minivit.nn.counting import Cost, cost


@pytest.mark.parametrize(("mode", "prefix", "two"), [("token", 1, False), ("token", 2, True), ("avg", 2, False)])
def test_a_distilled_model_pools_two_tokens(mode: str, prefix: int, two: bool) -> None:
    assert tuple(cost(Pool(mode, prefix), (3, 5, 4))) == ((3, 2, 4) if two else (3, 4), 0, 0)  # no products, none kept


def test_both_heads_are_counted() -> None:
    head = DistilledHead(4, 7, dtype="float32", seed=0)
    assert cost(head, (3, 2, 4)) == Cost((3, 7), 3 * 2 * 7 * 4, 3 * 2 * 4)
