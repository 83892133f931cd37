"""List the names of the published sizes, with class and image size.

    minivit models
    minivit models 'swinv2_*_192'

`minivit.create_model(NAME)` builds one of them, and `minivit summary NAME` says what it consists of.
"""

from __future__ import annotations

import argparse
from typing import Any

from minivit.models import configs, list_models
from minivit.tables import aligned


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `minivit models`."""
    parser.add_argument("pattern", nargs="?", help="part of the name; * and ? as in file names (default: all)")


def main(args: argparse.Namespace) -> None:
    """The names of `list_models()`, with class and image size; nothing is built."""
    sizes = dict(configs.published())
    pattern = "" if args.pattern is None else args.pattern
    names = list_models(f"*{pattern.lower()}*")
    if not names:
        raise ValueError(f"no model has {pattern!r} in its name: `models` alone lists all {len(sizes)}")
    rows = [("name", "class", "image"), *((name, _kind(sizes[name]), str(sizes[name]["img_size"])) for name in names)]
    print(*aligned(rows, left=(0, 1, 2)), sep="\n")


def _kind(config: dict[str, Any]) -> str:
    return "SwinV2" if "pretrained_window_sizes" in config else "Swin" if "depths" in config else "ViT"
