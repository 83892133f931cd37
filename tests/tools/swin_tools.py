"""Small Swin Transformers of both versions, and images for them, for the tests of their models."""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.models import Swin, SwinV2

KINDS = [Swin, SwinV2]
TINY: dict[str, Any] = {
    "img_size": 16,
    "patch_size": 2,
    "in_chans": 2,
    "num_classes": 3,
    "embed_dim": 4,
    "depths": (2, 2),
    "num_heads": (1, 2),
    "window_size": 2,
    "mlp_ratio": 2.0,
}


def settings(kind: Any, **changes: Any) -> Any:
    return {**TINY, **({"cpb_hidden": 3} if kind is SwinV2 else {}), **changes}


def tiny(kind: Any, **changes: Any) -> Any:
    """A small model in float64 whose weights are large enough for every part to matter."""
    model = kind(**settings(kind, **{"dtype": "float64", **changes}))
    rng = np.random.default_rng(7)
    for param in model.parameters().values():
        param.data = param.data + 0.3 * rng.standard_normal(param.shape)
    return model


def images(batch: int = 3, size: Any = (16, 16), dtype: str = "float64", channels: int = 2) -> Any:
    return np.random.default_rng(1).standard_normal((batch, channels, *size)).astype(dtype)


def shapes(model: Any) -> Any:
    return [(name, param.shape) for name, param in model.parameters().items()]
