"""The layout of a source: the signs that identify it, its table of names, and the arrays that are not learned.

The tables are next to this file, one for each source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from minivit.io.safetensors import CheckpointError
from minivit.pretrained.renaming import Rule
from minivit.protocol import Array

# prefixes that programs add to the names of a model, also nested: DataParallel, torch.compile, Lightning, courses
_WRAPPERS = r"(?:(?:module|_orig_mod|model|net|backbone|encoder|base_encoder|base_model|vit|teacher|student)\.)*"


def _without(names: Collection[str], wrapper: str, own: str) -> dict[str, str]:
    inside = [name for name in names if name.startswith(wrapper)]
    return {name: name.removeprefix(wrapper).removeprefix(own) for name in inside}


@dataclass(frozen=True)
class Layout:
    """A source's layout of one kind of model.

    Attributes:
        source: "timm", "huggingface", "torchvision", "microsoft", "google" or "wzmiaomiao".
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
        """The names of the model -> names without prefixes, if they are this layout's; else None.

        Raises:
            CheckpointError: the names of several models, such as teacher and student.
        """
        first, *others = (re.compile(sign) for sign in self.signs)
        for own in self.prefixes:
            wrapped = re.compile(rf"({_WRAPPERS}){re.escape(own)}(?:{first.pattern})")
            wrappers = sorted({match[1] for name in arrays if (match := wrapped.fullmatch(name))})
            inside = [_without(arrays, wrapper, own) for wrapper in wrappers]
            matching = [found for found in inside if all(any(map(sign.fullmatch, found.values())) for sign in others)]
            if len(matching) > 1:
                raise CheckpointError(
                    f"it holds several models, under {', '.join(map(repr, wrappers))}: save the arrays of one of them "
                    "in a separate file"
                )
            if matching:
                excluded = any(re.fullmatch(self.absent, name) for name in matching[0].values())
                fits = not excluded and self.possible({bare: arrays[name] for name, bare in matching[0].items()})
                return matching[0] if fits else None
        return None

    def spelled(self, name: str) -> str:
        """The name with the source's prefix."""
        return name if re.fullmatch(self.beside, name) else self.prefixes[0] + name


# tables that every program recomputes: not learned, but they show the window and the image
BUFFERS = r".*\.(relative_position_index|relative_coords_table|attn_mask)"
IGNORED = (BUFFERS, r".*position_ids", r".*num_batches_tracked")
# the mask token in the pretraining of SimMIM, iBOT and DINOv2
MASK_TOKEN = r"(.*\.)?mask_token"
