"""Read the model in a file of weights, and write it under the names of another project.

minivit convert swin_t-704ceda3.pth swin_t.safetensors --layout timm
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path
from typing import Any

from minivit.io.safetensors import CheckpointError
from minivit.pretrained import export, from_pretrained
from minivit.pretrained.expressible import unsaid
from minivit.pretrained.layouts import LAYOUTS
from minivit.programs import note


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `minivit convert`."""
    parser.add_argument("input", help="a file of weights, or a folder with one")
    parser.add_argument("output", help="the file to write")
    sources = sorted({layout.source for layout in LAYOUTS if layout.written})
    parser.add_argument("--layout", required=True, choices=sources, help="the project whose names are written")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64"], help="of the arrays")
    parser.add_argument(
        "--set",
        action="append",
        type=_argument,
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the model that the file does not show, such as window_size=8; may be given several times "
        "(default: none)",
    )
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")


def main(args: argparse.Namespace) -> None:
    """Read the model in a file, and write it under the names of another project."""
    out = Path(args.output)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name the file to write")
    if out.exists() and not args.force:
        raise ValueError(f"{out} exists: say --force to replace it")
    model = from_pretrained(args.input, dtype=args.dtype, report=note, **dict(args.set))
    export(model, out, args.layout)
    count = sum(param.size for param in model.parameters().values())
    print(f"{out}: {type(model).__name__}, {count:,} parameters, layout {args.layout}, {out.stat().st_size:,} bytes")
    try:
        twin = from_pretrained(out, dtype=args.dtype, report=lambda line: None)
    except CheckpointError as error:
        note(f"minivit: from_pretrained cannot read it back without help: {error}")
    else:  # names and numbers are all that a file of another project holds
        lost = [f"{name}={value!r}" for name, value in unsaid(model.config, twin.config).items()]
        if lost:
            note(f"minivit: the file does not say {', '.join(lost)}: give it to from_pretrained")


def _argument(text: str) -> tuple[str, Any]:
    """NAME=VALUE, an argument of the model: a Python value, or a word such as tanh."""
    name, _, value = text.partition("=")
    if not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as window_size=8")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
