"""The blocks of a ViT prepared for inference.

Notation: B images, T tokens of an image, n of them that the head reads, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minivit import nn
from minivit.inference.block import Block, Context
from minivit.inference.cores import ALONE, BY_HEADS, BY_TOKENS, Core
from minivit.protocol import Array

_ROWS = 400  # tokens at a time: with 200, as of one image, the products of ViT-B/16 take 5 % longer
_MANY = 128  # tokens of a core: with fewer, copying the weights takes a tenth of a product's time


class Encoder:
    """Tokens (B, T, D) -> (B, n, D), where only the last block may have fewer queries than tokens."""

    def __init__(self, blocks: Sequence[nn.Block]) -> None:
        self.blocks = [Block(block) for block in blocks]
        self.biases = [_bias(block) for block in blocks]  # each (H, n, T), or None

    def share(self, x: Array, count: int) -> str:
        """How so many cores share the work of one call."""
        if count == 1:
            return ALONE
        heads = self.blocks[0].attention.heads if self.blocks else 1
        return BY_HEADS if heads % count == 0 and x.shape[1] < _MANY * count else BY_TOKENS

    def run(self, core: Core, x: Array) -> Array | None:
        """The tokens of all images; of several cores one returns them."""
        core.share = self.share(x, core.count)
        if core.share == ALONE:
            few = max(1, _ROWS // x.shape[1])
            return np.concatenate([self._blocks(core, x[at : at + few].copy()) for at in range(0, len(x), few)])
        if core.share == BY_HEADS:
            y = self._blocks(core, x.copy())
            return y if core.number == 0 else None
        tokens = core.part(x.shape[1])
        mine = self._blocks(core, x[:, tokens].copy(), tokens, x.shape[1])
        whole = core.exchange("tokens", *x.shape)
        whole[:, tokens.start : tokens.start + mine.shape[1]] = mine
        core.meet()
        queries = self.blocks[-1].attention.queries if self.blocks else None
        return whole[:, :queries].copy() if core.number == 0 else None

    def _blocks(self, core: Core, x: Array, tokens: slice | None = None, count: int = 0) -> Array:
        for block, bias in zip(self.blocks, self.biases):
            tables = () if bias is None else ((slice(0, len(x)), bias),)
            x = block(core, x, Context(tables, None, tokens, count))
        return x


def _bias(block: nn.Block) -> Array | None:
    attention = block.attn
    assert isinstance(attention, nn.Attention)
    return None if attention.position_bias is None else attention.position_bias.bias(attention.queries)[0]
