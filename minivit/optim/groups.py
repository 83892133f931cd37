"""Groups of parameters by name: those without weight decay, layer-wise learning rates, and names by pattern.

Groups are sets and dictionaries of names, for the arguments `no_decay` and `lr_scale` of the optimizers.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable
from math import prod

from minivit.argument_checks import names_like
from minivit.nn import Block, ParallelScalingBlock, ParallelThingsBlock, Recompute
from minivit.nn.layer import Chain, Layer, check_layer
from minivit.optim.base import Params, check_params

# Parameters that weight decay would harm: positions, offsets and gains, which are no factors of a product.
_UNDECAYED = (
    *("pos_embed", "cls_token", "dist_token", "reg_token"),
    *("relative_position_bias_table", "cpb_mlp", "logit_scale"),
)
_BLOCKS = (Block, ParallelThingsBlock, ParallelScalingBlock)


def no_decay(model: Layer) -> set[str]:
    """The names without weight decay: biases, norms, and position, class-token and relative-bias tables."""
    check_layer("no_decay", model)
    return {
        name
        for name, param in model.parameters().items()
        if len(param.shape) <= 1 or any(word in name for word in _UNDECAYED)
    }


def layer_decay(model: Chain, rate: float) -> dict[str, float]:
    """Layer-wise learning rates: each parameter's factor is rate ** (number of layers above it).

    The layers are, from the top: the layers after the last block (norm and head, factor 1), each block, and those
    before the first (patches, tokens, positions). Swin's blocks count through all stages; the patch merging that
    begins a stage counts with the stage's first block. So a model of n blocks has factors from 1 down to rate ** (n +
    1).

    Args:
        model: a ViT, a Swin, or another chain with blocks.
        rate: in (0, 1]; 0.65 to 0.75 is usual for fine-tuning, 1 gives every layer the same rate.

    Returns:
        name -> factor, for `AdamW(..., lr_scale=...)`.

    Raises:
        ValueError: a rate out of range, or a model without blocks.

    Source: Clark et al. 2020 (ELECTRA, section 3.1), and Bao et al. 2021 (BEiT) for images, whose code counts the
    layers of a ViT in this way.
    """
    check_layer("layer_decay", model)
    if not 0 < rate <= 1:
        raise ValueError(f"rate={rate} must lie in (0, 1]")
    stages = [stage for _, stage in model.leaves()]
    blocks = sum(_is_block(stage) for stage in stages)
    if not blocks:
        raise ValueError(f"{type(model).__name__} has no blocks to count, so it has no layer-wise learning rates")
    factors: dict[int, float] = {}
    above = 0  # blocks passed on the way down from the head
    for stage in reversed(stages):
        above += _is_block(stage)
        bottom = above == blocks and not _is_block(stage)
        factors |= {id(param): rate ** (above + bottom) for param in stage.parameters().values()}
    return {name: factors[id(param)] for name, param in model.parameters().items() if id(param) in factors}


def _is_block(stage: Layer) -> bool:
    return isinstance(stage.layer if isinstance(stage, Recompute) else stage, _BLOCKS)


def matching(params: Collection[str], patterns: Iterable[str]) -> set[str]:
    """The names that match at least one pattern, with the wildcards of file names.

    Args:
        params: names, such as `model.parameters()`.
        patterns: `*` is any text, also with dots; `?` one character; `[0-5]` one of these: `blocks.[0-5].*`.

    Raises:
        ValueError: a pattern that matches nothing; the message lists similar names.
    """
    found: set[str] = set()
    for pattern in patterns:
        names = {name for name in params if fnmatch.fnmatchcase(name, pattern)}
        if not names:
            raise ValueError(f"no parameter matches {pattern!r}: {_near(params, pattern)}")
        found |= names
    return found


def _near(params: Collection[str], pattern: str) -> str:
    """Names and groups (`blocks.0.*`) that look like a pattern."""
    groups = {name[: index + 1] + "*" for name in params for index, letter in enumerate(name) if letter == "."}
    near = names_like(pattern, [*sorted(groups), *params])
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"the names begin with {', '.join(sorted({name.split('.')[0] for name in params}))}"


def parameter_count(params: Params) -> int:
    """The number of learned numbers."""
    check_params("parameter_count", params)
    return sum(prod(param.shape) for param in params.values())
