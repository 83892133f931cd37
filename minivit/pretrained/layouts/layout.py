"""The layout of a source: the signs that identify it, its table of names, and the arrays that are not learned.

The tables are next to this file, one for each source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minivit.io.safetensors import CheckpointError
from minivit.pretrained.renaming import Rule
from minivit.protocol import Array

# prefixes that programs add to the names of a model, also nested: DataParallel, torch.compile, Lightning, courses
_WRAPPER = r"(?:module|_orig_mod|_forward_module|model|net|network|backbone|encoder|base_encoder|base_model|vit"
_WRAPPER += r"|teacher|student|ema|ema_model|model_ema|encoder_q|online_encoder|target_encoder)"
_WRAPPERS = rf"(?:{_WRAPPER}\.)*"
# what training programs keep beside a model: losses, metrics, the count of an average, and of a profiler (thop)
_EXTRAS = r"n_averaged|(?:criterion|loss|loss_fn|loss_func|metrics?)\..+|(?:train|val|valid|test)_\w+\..+"
_EXTRAS += r"|(?:.+\.)?total_(?:ops|params)"
# the mask token in the pretraining of SimMIM, iBOT and DINOv2
MASK_TOKEN = r"(.*\.)?mask_token"


def _without(names: Collection[str], wrapper: str, own: str) -> dict[str, str]:
    inside = [name for name in names if name.startswith(wrapper)]
    return {name: name.removeprefix(wrapper).removeprefix(own) for name in inside}


def _own(bare: dict[str, str], wrapper: str, own: str, beyond: str) -> dict[str, str]:
    """Without the names outside of the prefix that match `beyond`."""
    other = re.compile(f"{re.escape(wrapper)}(?!{re.escape(own)})(?:{beyond})")
    return {name: inner for name, inner in bare.items() if not (own and other.fullmatch(name))}


@dataclass(frozen=True)
class Layout:
    """A source's layout of one kind of model.

    Attributes:
        source: "timm", "huggingface", "torchvision", "microsoft", "google", "wzmiaomiao", "openclip", "meta" or
            "apple".
        model: the class of the loaded model, "ViT", "Swin" or "SwinV2".
        signs: patterns of names; the layout is recognized if each matches some name.
        rules: the table; empty for a source that uses our names.
        ignored: patterns of names of arrays that are not learned.
        prefixes: possible prefixes of the names; an export uses the first.
        beside: pattern of names without the prefix.
        absent: pattern of names that the source never has.
        possible: whether the source could have written these arrays, under its names.
        prepare: applied to its arrays before their names are read.
        arguments: (prepared arrays) -> arguments of the class that only these shapes show, not those under our names.
        head: the name of its classifier.
        family: of the models after the first ViT, such as "CLIP"; it selects the default preprocessing.
        settings: arguments of the class in which the family's models differ from those of the source's profile.
        positions, biases: the resampling of positions and of relative biases, if it differs from the profile's.
        omitted: pattern of names, without the prefix, of arrays that the model does not read, such as a decoder.
        beyond: pattern of names outside of the prefix that belong to another model in the file, such as a text tower.
        square: why the file's own image must be square, where the source computes otherwise; "" where it need not.
        finish: applied to an export, the inverse of `prepare`.
        written: whether `export` writes such files.
    """

    source: str
    model: str
    signs: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    ignored: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    beside: str = ""
    absent: str = ""
    possible: Callable[[dict[str, Array]], bool] = lambda arrays: True
    prepare: Callable[[dict[str, Array]], dict[str, Array]] = dict
    arguments: Callable[[dict[str, Array]], dict[str, Any]] = lambda arrays: {}
    head: str = "head"
    family: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    positions: Mapping[str, Any] | None = None
    biases: Mapping[str, Any] | None = None
    omitted: str = MASK_TOKEN
    beyond: str = "(?!)"
    square: str = ""
    finish: Callable[[dict[str, Array]], dict[str, Array]] = dict
    written: bool = True

    def bare(self, arrays: dict[str, Array]) -> dict[str, str] | None:
        """The names of the model -> names without prefixes, if they are this layout's; else None.

        Raises:
            CheckpointError: the names of several models, such as teacher and student.
        """
        first, *others = (re.compile(sign) for sign in self.signs)
        for own in self.prefixes:
            wrapped = re.compile(rf"({_WRAPPERS}){re.escape(own)}(?:{first.pattern})")
            wrappers = sorted({match[1] for name in arrays if (match := wrapped.fullmatch(name))})
            inside = {wrapper: _without(arrays, wrapper, own) for wrapper in wrappers}
            matching = {
                wrapper: _own(found, wrapper, own, self.beyond)
                for wrapper, found in inside.items()
                if all(any(map(sign.fullmatch, found.values())) for sign in others)
            }
            if len(matching) > 1:
                raise CheckpointError(
                    f"it holds several models, under {', '.join(map(repr, wrappers))}: save the arrays of one of them "
                    "in a separate file"
                )
            for found in matching.values():
                excluded = any(re.fullmatch(self.absent, name) for name in found.values())
                fits = not excluded and self.possible({bare: arrays[name] for name, bare in found.items()})
                return found if fits else None
        return None

    def leaves_out(self, name: str, bare: Mapping[str, str]) -> bool:
        """Whether the array is of another model in the file, or not read; `bare` is the result of that method."""
        if name in bare:
            return bool(re.fullmatch(f"{self.omitted}|{_EXTRAS}", bare[name]))
        return bool(re.fullmatch(f"{_WRAPPERS}(?:{self.beyond})", name))

    def spelled(self, name: str) -> str:
        """The name with the source's prefix."""
        return name if re.fullmatch(self.beside, name) else self.prefixes[0] + name


# tables that every program recomputes: not learned, but they show the window and the image
BUFFERS = r".*\.(relative_position_index|relative_coords_table|attn_mask)"
IGNORED = (BUFFERS, r".*position_ids", r".*num_batches_tracked")


def class_token_placed(arrays: dict[str, Array], token: str, positions: str) -> dict[str, Array]:
    """Add the first row of the positions to the class token, whose position it is, and remove it.

    Args:
        arrays: with a class token (1, 1, D) and positions (1, 1 + N, D) under the names that follow.
    """
    table = arrays[positions]
    return {**arrays, token: arrays[token] + table[:, :1], positions: np.ascontiguousarray(table[:, 1:])}


def with_bias(arrays: dict[str, Array], projection: str, *, axis: int = 0) -> dict[str, Array]:
    """A bias of zeros, `<projection>.bias`, for a projection that has none, so that it is a linear head.

    Args:
        arrays: by name; the weight's name is the projection's, with ".weight" behind it or without.
        axis: of the weight's outputs.
    """
    weight = arrays.get(f"{projection}.weight", arrays.get(projection))
    if weight is None:
        return arrays
    return {f"{projection}.bias": np.zeros(weight.shape[axis], weight.dtype), **arrays}


def without_bias(arrays: dict[str, Array], projection: str) -> dict[str, Array]:
    """The inverse of `with_bias`.

    Raises:
        ValueError: if the bias is not 0.
    """
    bias = arrays.get(f"{projection}.bias")
    if bias is not None and bias.any():
        raise ValueError("its projection has no bias, and head.bias is not 0: set it to 0, or export it as 'timm'")
    return {name: array for name, array in arrays.items() if name != f"{projection}.bias"}
