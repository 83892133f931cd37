"""Show the stages of a model with their shapes, parameters, multiply-adds and the memory for the backward pass.

minivit summary vit_base_patch16_224
minivit summary model.safetensors --img-size 384
"""

from __future__ import annotations

import argparse
from pathlib import Path

from minivit.models import create_model, list_models
from minivit.pretrained import from_pretrained
from minivit.programs import note
from minivit.summary import summary


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `minivit summary`."""
    parser.add_argument("model", metavar="NAME|FILE", help="a published size, or a file of weights")
    parser.add_argument("--img-size", type=int, metavar="N", help="side of the image in pixels (default: the model's)")
    parser.add_argument(
        "--num-classes", type=int, metavar="K", help="0 leaves the classifier out (default: the model's)"
    )


def main(args: argparse.Namespace) -> None:
    """`minivit.summary` of a fresh model of a published size, or of the model in a file."""
    asked = {name: getattr(args, name) for name in ("img_size", "num_classes") if getattr(args, name) is not None}
    path = Path(args.model)
    if args.model not in list_models() and (path.exists() or path.suffix or path.name != args.model):
        model = from_pretrained(path, report=note, **asked)
    else:
        model = create_model(args.model, **asked)
    print(summary(model, quiet=True))
