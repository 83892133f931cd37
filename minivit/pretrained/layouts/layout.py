"""What a source's way of writing is: the signs by which it is known, its table of names, and what it never learned.

The tables stand beside this file, one for each source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from minivit.io.safetensors import CheckpointError
from minivit.pretrained.renaming import Rule
from minivit.protocol import Array

# what programs put before the names of a model, one inside another: DataParallel, torch.compile, Lightning, courses
_WRAPPERS = r"(?:(?:module|_orig_mod|model|net|backbone|encoder|base_encoder|base_model|vit|teacher|student)\.)*"


def _without(names: Collection[str], wrapper: str, own: str) -> dict[str, str]:
    inside = [name for name in names if name.startswith(wrapper)]
    return {name: name.removeprefix(wrapper).removeprefix(own) for name in inside}


@dataclass(frozen=True)
class Layout:
    """A source's way of writing one kind of model.

    Attributes:
        source: "timm", "huggingface", "torchvision", "microsoft", "google" or "wzmiaomiao".
        model: the class it is loaded into, "ViT", "Swin" or "SwinV2".
        signs: patterns of names; the layout is recognized where each fits some name.
        rules: the table; none for a source that uses our names.
        ignored: patterns of names that carry nothing learned.
        prefixes: what may stand before the names; an export takes the first.
        beside: pattern of names that stand beside the prefix, without it.
        absent: pattern of names that the source never has.
        possible: whether the source could have written these arrays, under its names.
        prepare: what is done to its arrays before their names are read.
        arguments: (prepared arrays) -> arguments of the class that their shapes show, and no longer under our names.
        head: the name of its classifier.
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

    def bare(self, arrays: dict[str, Array]) -> dict[str, str] | None:
        """The names of the model -> what they are without prefixes, if they are this layout's; else None.

        Raises:
            CheckpointError: the names of several models, such as teacher and student.
        """
        first, *others = (re.compile(sign) for sign in self.signs)
        for own in self.prefixes:
            wrapped = re.compile(rf"({_WRAPPERS}){re.escape(own)}(?:{first.pattern})")
            wrappers = sorted({match[1] for name in arrays if (match := wrapped.fullmatch(name))})
            inside = [_without(arrays, wrapper, own) for wrapper in wrappers]
            whole = [found for found in inside if all(any(map(sign.fullmatch, found.values())) for sign in others)]
            if len(whole) > 1:
                raise CheckpointError(
                    f"it holds several models, under {', '.join(map(repr, wrappers))}: save the arrays of the one that "
                    "you want in a file of its own"
                )
            if whole:
                excluded = any(re.fullmatch(self.absent, name) for name in whole[0].values())
                fits = not excluded and self.possible({bare: arrays[name] for name, bare in whole[0].items()})
                return whole[0] if fits else None
        return None

    def spelled(self, name: str) -> str:
        """The name with the source's prefix."""
        return name if re.fullmatch(self.beside, name) else self.prefixes[0] + name


# tables that every program computes again: never learned, but they tell the window and the image
BUFFERS = r".*\.(relative_position_index|relative_coords_table|attn_mask)"
IGNORED = (BUFFERS, r".*position_ids", r".*num_batches_tracked")
# what stands for hidden patches in the pretraining of SimMIM, iBOT and DINOv2, and nowhere else
MASK_TOKEN = r"(.*\.)?mask_token"
