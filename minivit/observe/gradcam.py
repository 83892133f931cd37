"""Grad-CAM: the parts of an image that raise a class's logit, from the tokens of a block and their gradient.

The hand-written backward pass is stopped at the block.

Notation: B images, K classes, D channels, gh x gw the grid of patches (or of a Swin's map at that block).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minivit.device import array_module, to_numpy
from minivit.models import Model
from minivit.models.options import patch_grid
from minivit.observe.attention import prefix_tokens, stages
from minivit.protocol import Array, Back


def grad_cam(model: Model, images: Array, classes: Any = None, block: int = -1) -> Array:
    """(B, gh, gw), 0 or more, in units of the logit: relu(sum_c w_c A_c) with w_c the mean over patches of dlogit/dA_c.

    A is the block's input without the class token. The output would not do: if the head reads only the class token, the
    patches of the last block's output have no gradient.

    The model does not change, nor its `.grad`: the backward pass runs through a replica, from the logits to the block.

    Args:
        model: ViT (class token, mean, distilled), Swin or SwinV2, with a head.
        images: (B, C, H, W) of the model's dtype.
        classes: an int or (B,) ints; None is each image's top class.
        block: number of the block, negative from the end. A Swin's last blocks have a coarse map: 7 x 7 of 224 pixels.

    Raises:
        ValueError: for a model without a head, a class or block that it lacks, and images that do not fit.

    Source: Selvaraju et al. 2017, "Grad-CAM", equations 1 and 2, with tokens instead of a convolution's map.
    """
    if model.num_classes == 0:
        raise ValueError("this model has no head (num_classes=0), so there is no logit to explain")
    chain: Any = model.replica()  # the same parameters, separate gradients
    chain.check_input(images)
    layers = stages(chain)
    numbers = [number for number, (_, _, inside) in enumerate(layers) if inside is not None]
    if not -len(numbers) <= block < len(numbers):
        raise ValueError(
            f"block={block}: the model has {len(numbers)} blocks, choose {-len(numbers)} to {len(numbers) - 1}"
        )
    tokens = images
    for _, layer, _ in layers[: numbers[block]]:
        tokens = layer(tokens)[0]  # its back is dropped immediately
    logits, backs = tokens, list[Back]()
    for _, layer, _ in layers[numbers[block] :]:
        logits, back = layer(logits)
        backs.append(back)
    dtokens = _one_hot(logits, classes)  # dlogit/dlogits: 1 at the class
    while backs:
        dtokens = backs.pop()(dtokens)
    a, da = (_as_map(model, each, images) for each in (tokens, dtokens))  # (B, gh, gw, D)
    weights = da.mean(axis=(1, 2), keepdims=True)  # (B, 1, 1, D)
    heat = (weights * a).sum(axis=-1)
    return heat * (heat > 0)


def _one_hot(logits: Array, classes: Any) -> Array:
    """(B, K): 1 at each image's class."""
    count, known = logits.shape
    chosen = to_numpy(logits).argmax(axis=1) if classes is None else np.asarray(classes)
    if chosen.dtype.kind not in "iu" or chosen.shape not in ((), (count,)):
        raise ValueError(f"classes={classes!r}: give one integer, or one for each of the {count} images")
    wrong = chosen[(chosen < 0) | (chosen >= known)]
    if wrong.size > 0:
        raise ValueError(f"class {wrong[:1]} does not exist: the model has {known}, 0 to {known - 1}")
    hot = np.arange(known) == np.broadcast_to(chosen, (count,))[:, None]
    return array_module(logits).asarray(hot.astype(logits.dtype))


def _as_map(model: Model, tokens: Array, images: Array) -> Array:
    """(B, gh, gw, D): the patches of a ViT's tokens (B, N, D); a Swin's map as it is."""
    if tokens.ndim == 4:
        return tokens
    patches = tokens[:, prefix_tokens(model) :]
    return patches.reshape(len(tokens), *patch_grid(model.config, images.shape[2:]), tokens.shape[2])
