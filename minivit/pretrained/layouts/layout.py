"""What a source's way of writing is: the signs by which it is known, its table of names, and what it never learned.

The tables stand beside this file, one for each source.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import product

from minivit.pretrained.renaming import Rule
from minivit.protocol import Array

# what programs put before every name: DataParallel, torch.compile, Lightning
_WRAPPED = ("", "module.", "_orig_mod.", "model.")


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
        prepare: what is done to its arrays before their names are read.
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
    prepare: Callable[[dict[str, Array]], dict[str, Array]] = dict
    head: str = "head"

    def bare(self, names: Collection[str]) -> dict[str, str] | None:
        """The names -> what they are without prefixes, if they are this layout's; else None."""
        for wrapper, own in product(_WRAPPED, self.prefixes):
            found = {name: name.removeprefix(wrapper).removeprefix(own) for name in names}
            bare = found.values()
            if all(any(re.fullmatch(sign, name) for name in bare) for sign in self.signs):
                return None if any(re.fullmatch(self.absent, name) for name in bare) else found
        return None

    def spelled(self, name: str) -> str:
        """The name with the source's prefix."""
        return name if re.fullmatch(self.beside, name) else self.prefixes[0] + name


# tables that every program computes again: never learned, but they tell the window and the image
BUFFERS = r".*\.(relative_position_index|relative_coords_table|attn_mask)"
IGNORED = (BUFFERS, r".*position_ids", r".*num_batches_tracked")
