"""AdamW in one launch over flat arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.fast.cupy.launch import element_grid, launch
from minivit.protocol import Array


def adamw(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    *,
    lr: float,
    weight_decay: Array | float,
    betas: tuple[float, float],
    eps: float,
    step: int,
) -> None:
    """kernels/adamw.cu."""
    one_for_each: Any = None if isinstance(weight_decay, float) else weight_decay
    same = weight_decay if isinstance(weight_decay, float) else 0.0
    grid, block = element_grid(p.size)
    corrections = (1 - betas[0] ** step, 1 - betas[1] ** step)
    launch(
        "adamw", "adamw", p.dtype, grid, block, p, g, m, v, one_for_each, np.int64(p.size), same, float(lr),
        float(betas[0]), float(betas[1]), float(eps), *corrections,
    )  # fmt: skip
