"""The blocks of a ViT prepared for inference.

Notation: B images, T tokens of an image, n of them that the head reads, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minivit import nn
from minivit.inference.block import Block, Context
from minivit.inference.memory import Memory
from minivit.protocol import Array

_ROWS = 400  # tokens at a time: with 200, as of one image, the products of ViT-B/16 take 5% longer


class Encoder:
    """Tokens (B, T, D) -> (B, n, D), where only the last block may have fewer queries than tokens."""

    def __init__(self, blocks: Sequence[nn.Block]) -> None:
        self.blocks = [Block(block) for block in blocks]
        self.biases = [_bias(block) for block in blocks]  # each (H, n, T), or None

    def run(self, memory: Memory, x: Array) -> Array:
        """The tokens of all images, a few images at a time."""
        few = max(1, _ROWS // x.shape[1])
        return np.concatenate([self._blocks(memory, x[at : at + few].copy()) for at in range(0, len(x), few)])

    def _blocks(self, memory: Memory, x: Array) -> Array:
        for block, bias in zip(self.blocks, self.biases):
            tables = () if bias is None else ((slice(0, len(x)), bias),)
            x = block(memory, x, Context(tables))
        return x


def _bias(block: nn.Block) -> Array | None:
    attention = block.attn
    assert isinstance(attention, nn.Attention)
    return None if attention.position_bias is None else attention.position_bias.bias(attention.queries)[0]
