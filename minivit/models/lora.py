"""LoRA in a model: `lora` puts updates of low rank beside the linear maps of its blocks, `merge_lora` adds them up.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from minivit import nn
from minivit.models.model import Model
from minivit.nn.layer import Layer, check_layer
from minivit.nn.parameter import Parameter
from minivit.random import as_generator

M = TypeVar("M", bound=Layer)

# the layers that call their linear maps and read no weight of them, so that a map may have an update
_OWNERS: tuple[type[Layer], ...] = (nn.Attention, nn.WindowAttention, nn.CosineWindowAttention, nn.ComposedAttention)
_OWNERS += (nn.Mlp, nn.SwiGLU, nn.PackedSwiGLU)
_BLOCK = re.compile(r"(.*\.)?blocks\.\d+")
_KINDS: dict[type[Layer], type[nn.LoRALinear]] = {nn.Linear: nn.LoRALinear, nn.LinearGELU: nn.LoRALinearGELU}


def lora(
    model: Model,
    rank: int = 8,
    alpha: float = 16.0,
    targets: Sequence[str] = ("qkv", "proj"),
    *,
    seed: Any = 0,
) -> dict[str, Parameter]:
    """Put an update of low rank beside linear maps of every block, in place: y = W x + b + (alpha / rank) B A x.

    B starts at zero, so the model computes the same as before. W becomes a constant; see `nn.LoRALinear`.

    Args:
        model: a ViT or Swin.
        rank: r of A (r, I) and B (O, r).
        alpha: the factor of the update is alpha / rank.
        targets: names of linear maps of a block: "qkv" and "proj" of the attention, "fc1" and "fc2" of the MLP.
        seed: of A, an int or a generator.

    Returns:
        The parameters to train, by name: A and B of every update, and the classifier. All others are frozen where an
        optimizer gets these: `optim.AdamW(minivit.lora(model), lr=1e-3)`.

    Raises:
        ValueError: for a model that has updates already, for targets that its blocks do not have, and for a rank or
            alpha out of range; the model is then unchanged.
    """
    check_layer("lora", model)
    check_without("lora", model)
    names = (targets,) if isinstance(targets, str) else tuple(dict.fromkeys(targets))
    blocks = [list(_linear_maps(block)) for name, block in model.leaves() if _BLOCK.fullmatch(name)]
    for maps in blocks or [[]]:
        there = sorted({name for _, name in maps})
        missing = [name for name in names if name not in there]
        if missing or not names:
            raise ValueError(
                f"targets={targets!r:.80}: each block must have these linear maps, and "
                + (f"one has {', '.join(map(repr, there))}" if there else "there is a block, or a model, without any")
            )
    rng = as_generator(seed)
    chosen = [(owner, name) for maps in blocks for owner, name in maps if name in names]
    made = [_KINDS[type(getattr(owner, name))](getattr(owner, name), rank, alpha, seed=rng) for owner, name in chosen]
    for (owner, name), layer in zip(chosen, made):
        setattr(owner, name, layer)
    return lora_parameters(model)


def merge_lora(model: M) -> M:
    """Add the updates to the weights, in place: W + (alpha / rank) B A. Returns the model, which is a plain one again.

    It computes the same but for rounding, and can be saved, exported and prepared. All its parameters can be trained
    again; optimizers must be built again. `merge_lora(model.replica())` leaves the model as it is.

    Raises:
        ValueError: for a model without updates.
    """
    updates = list(lora_layers(model))
    if not updates:
        raise ValueError("the model has no updates of low rank: minivit.lora(model) makes them")
    for owner, name in updates:
        setattr(owner, name, getattr(owner, name).merged())
    return model


def has_lora(model: Layer) -> bool:
    """Whether a model has updates of low rank."""
    return next(lora_layers(model), None) is not None


def lora_layers(model: Layer) -> Iterator[tuple[Layer, str]]:
    """(owner, attribute) of each linear map with an update."""
    for name, part in model.parts():
        if isinstance(part, nn.LoRALinear):
            yield model, name
        yield from lora_layers(part)


def check_without(name: str, model: Layer) -> None:
    """Refuse a model with updates of low rank; the message names the function `name`."""
    if has_lora(model):
        raise ValueError(
            f"{name}: the model has updates of low rank (LoRA): minivit.merge_lora(model) adds them to its weights, "
            "and minivit.save_lora(model, path) keeps them alone"
        )


def lora_parameters(model: Layer) -> dict[str, Parameter]:
    """The parameters to train beside a constant model: the updates' and the classifier's."""
    layers = [getattr(owner, name) for owner, name in lora_layers(model)]
    updates = {id(param) for layer in layers for param in (layer.lora_a, layer.lora_b)}
    head = head_names(model)
    return {name: param for name, param in model.parameters().items() if id(param) in updates or name in head}


def head_names(model: Layer) -> set[str]:
    """The names of the classifier's parameters; both classifiers' of a distilled model."""
    return {name for name in model.parameters() if name.startswith(("head.", "head_dist."))}


def _linear_maps(layer: Layer) -> Iterator[tuple[Layer, str]]:
    """(owner, attribute) of the linear maps inside a block that may have an update."""
    for name, part in layer.parts():
        if type(layer) in _OWNERS and type(part) in _KINDS:
            yield layer, name
        yield from _linear_maps(part)
