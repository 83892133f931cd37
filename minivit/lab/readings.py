"""What the lab's page asks besides a reading: attention of a patch, windows, one step of training, accuracy.

No server and no page is needed. `recorded` has the reading itself.

Notation: one image (1, C, H, W); L blocks, H heads, N tokens, p prefix tokens, gh x gw a grid of patches, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from minivit import functional as F, optim
from minivit.lab.recorded import Reading, read
from minivit.lab.switches import Shuffle, shuffles, switched
from minivit.models import Model
from minivit.models.options import patch_grid
from minivit.nn import Layer, Recompute, ShiftedWindows
from minivit.observe.attention import (
    BlockAttention,
    attention_weights,
    prefix_tokens,
    stages,
)
from minivit.observe.trace import euclidean_norm
from minivit.observe.windows import PAD, Layout, positions_after_roll, regions, window_masks
from minivit.protocol import Array

LR = 3e-4  # of the training step: with 1e-3 the loss of the same drawing rises in about one of six cases


# --- attention ------------------------------------------------------------------------------------------------------


def attention_from(found: Reading, patch: tuple[int, int]) -> list[tuple[Array, Array]]:
    """For each block (H, gh, gw) and (H, p): the attention of one patch to all patches, and to the prefix tokens.

    Args:
        found: a reading.
        patch: row and column on the first grid. On the smaller maps of a Swin's later stages it is the pixel that
            covers the patch.

    Raises:
        ValueError: for a patch that the grid does not have.
    """
    rows, columns = patch_grid(found.model.config, found.images.shape[2:])
    if not (0 <= patch[0] < rows and 0 <= patch[1] < columns):
        raise ValueError(f"patch {patch[0]} {patch[1]} is not on the grid of {rows} x {columns}: both count from 0")
    p, rowed = prefix_tokens(found.model), []
    for block, layer in zip(found.attention, _attention_layers(found.model)):
        if isinstance(layer, ShiftedWindows):
            rowed.append(_in_windows(found, block, layer, patch, rows))
            continue
        weights = block.weights[0, :, p + patch[0] * columns + patch[1]]  # (H, N)
        rowed.append((weights[:, p:].reshape(-1, rows, columns), weights[:, :p]))
    return rowed


def _in_windows(
    found: Reading, block: BlockAttention, layer: ShiftedWindows, patch: tuple[int, int], rows: int
) -> tuple[Array, Array]:
    real = found.parts[f"{block.name}.attn"].x.shape[1:3]
    smaller = rows // real[0] if real[0] < rows else 1
    row, column = min(patch[0] // smaller, real[0] - 1), min(patch[1] // smaller, real[1] - 1)
    slots = window_slots(layer, real)  # (nW, N)
    window, query = (int(number) for number in np.argwhere(slots == row * real[1] + column)[0])
    weights = block.weights[0, window, :, query]  # (H, N)
    spread = np.zeros((len(weights), real[0] * real[1]), dtype=weights.dtype)
    inside = slots[window] != PAD
    spread[:, slots[window][inside]] = weights[:, inside]
    return spread.reshape(-1, *real), weights[:, ~inside].sum(axis=1, keepdims=True)


def _attention_layers(model: Model) -> list[Layer]:
    """Each block's attention, or windows around it."""
    blocks = [block for _, _, block in stages(model) if block is not None]
    return [block.attn.layer if isinstance(block.attn, Recompute) else block.attn for block in blocks]


def layout_of(layer: ShiftedWindows, real: tuple[int, int]) -> Layout:
    """The sizes of a block's windows on its map of gh x gw."""
    window, shift, size = layer.plan(*real)
    return Layout(real, size, window, shift)


def window_slots(layer: ShiftedWindows, real: tuple[int, int]) -> Array:
    """(nW, N) int64: the number on the map of each pixel of each window, -1 for padding."""
    at = layout_of(layer, real)
    if layer.pad_first:
        grid = positions_after_roll(at)
    else:  # rolled first: the padding stays at the right and bottom
        numbers = np.arange(real[0] * real[1], dtype=np.int64).reshape(real)
        rolled = F.roll(numbers, (-at.shift[0], -at.shift[1]), (0, 1))[0]
        grid = F.pad(rolled + 1, at.size, (0, 1))[0] - 1
    return F.window_partition(grid[None, :, :, None], at.window)[0].reshape(-1, at.window[0] * at.window[1])


class Windows(NamedTuple):
    """The windows of one block of a Swin.

    Attributes:
        layout: sizes of map, padded map, window and shift.
        slots: (nW, N), see `window_slots`.
        regions: (gh, gw), labels of pixels: those of one window with equal labels attend to each other.
        masks: (nW, N, N) booleans, True = attends.
    """

    layout: Layout
    slots: Array
    regions: Array
    masks: Array


def windows_of(found: Reading, block: int) -> Windows | None:
    """The windows of a block by its number; None for a block without windows."""
    layer = _attention_layers(found.model)[block]
    if not isinstance(layer, ShiftedWindows):
        return None
    real = found.parts[f"{found.attention[block].name}.attn"].x.shape[1:3]
    at = layout_of(layer, real)
    labels = regions(at)[0][: real[0], : real[1]]
    return Windows(at, window_slots(layer, real), labels, window_masks(at, layer.mask_padding))


# --- one training step ----------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What one training step did.

    Attributes:
        before, after: the loss of the image; `after` may be the larger one.
        state: the parameters after the step, by name.
        moved: (name, the largest change of one of its numbers, the norm of the change over the norm of the parameter
            after the step), the largest share first. The first step of AdamW moves nearly every number by the
            learning rate, so only the share differs between parameters.
        attention: (block, the largest change of one attention weight).
        probabilities: (K,) after the step.
    """

    before: float
    after: float
    state: dict[str, Array]
    moved: list[tuple[str, float, float]]
    attention: list[tuple[str, float]]
    probabilities: Array


def training_step(
    model: Model, images: Array, label: int, switches: Iterable[str] = (), head: int = 0, lr: float = LR
) -> Step:
    """One step of a new AdamW on one image, and what it changed. The model itself does not change.

    Args:
        model, images, switches, head: as of `read`.
        label: the class that is taken as true.
        lr: the learning rate.
    """
    chosen = list(switches)
    before = read(model, images, label, chosen, head)
    network = switched(model, chosen, head)
    params = network.parameters()
    for param in params.values():
        param.swap(param.data.copy())  # the given model keeps its own
    state = {name: param.data.copy() for name, param in params.items()}
    for name, gradient in before.gradients.items():
        params[name].accumulate(gradient)
    optim.AdamW(params, lr, no_decay=optim.no_decay(network), threads=1).step()
    logits, _ = network(before.images)
    loss, _ = F.softmax_cross_entropy(logits, np.array([label], dtype=np.int64))
    changes = {name: param.data - state[name] for name, param in params.items()}
    moved = [(name, float(abs(d).max()), _share(d, params[name].data)) for name, d in changes.items()]
    after = attention_weights(network, before.images)
    attention = [(a.name, float(abs(b.weights - a.weights).max())) for a, b in zip(before.attention, after)]
    return Step(
        before=before.loss,
        after=float(loss),
        state={name: param.data for name, param in params.items()},
        moved=sorted(moved, key=lambda row: row[2], reverse=True),
        attention=attention,
        probabilities=F.softmax(logits)[0][0],
    )


def _share(change: Array, after: Array) -> float:
    """|change| / |after|, 0 for a parameter that did not move."""
    size = euclidean_norm(change)
    return size / euclidean_norm(after) if size else 0.0


def accuracy(
    model: Model, images: Array, labels: Array, switches: Iterable[str] = (), head: int = 0, batch_size: int = 250
) -> float:
    """The share of images (B, C, H, W) whose most probable class is the label, with the switches."""
    chosen = list(switches)
    shuffle: Shuffle | None = shuffles(model, chosen)
    seen = images if shuffle is None else shuffle(images)
    logits = switched(model, chosen, head).predict(seen, batch_size)
    return float((logits.argmax(axis=1) == labels).mean())
