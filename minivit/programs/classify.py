"""Name what images show, with any published or self-trained weights.

    minivit classify cat.jpg --weights vit_tiny_patch16_224                  # downloaded once
    minivit classify cat.jpg --weights vit_b_16-c867db91.pth --labels imagenet.txt
    minivit classify seven.png --weights runs/mnist_vit --explain seven.svg
    minivit classify cat.jpg --weights clip_folder --class-vectors vectors.npy --labels names.txt

Prints the most probable classes of each image. --explain also draws what `minivit explain` draws.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from minivit.programs import classifier
from minivit.train import command_line


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `minivit classify`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a PNG, JPEG or other file that Pillow reads")
    classifier.add_options(parser)
    parser.add_argument(
        "--class-vectors",
        metavar="FILE.npy",
        help="an embedding for each class (n, D), for a model of images and texts such as CLIP (default: its own head)",
    )
    parser.add_argument("--top", type=command_line.at_least(1), default=5, help="how many classes to print")
    parser.add_argument(
        "--explain", metavar="OUT.png", help="draw the explanation of the prediction, .png or .svg (default: do not)"
    )
    classifier.add_explanation_options(parser)


def main(args: argparse.Namespace) -> None:
    """Print the most probable classes of each image, and draw the requested explanations."""
    for option, value in (("--class", args.class_number), ("--block", args.block)):
        if value is not None and not args.explain:
            raise ValueError(f"{option} {value} is for the figure of the explanation: add --explain OUT.png")
    if args.class_vectors and args.explain:
        raise ValueError("--explain draws the logits of a model's own head: leave it out with --class-vectors")
    found = classifier.load(args, args.class_vectors)
    found.check_class(args.class_number)
    for number, path in enumerate(args.images, 1):
        image = classifier.opened(path, args.invert)
        probabilities = found.probabilities(image)
        print(f"\n{path}")
        found.note_of_light(image)
        for k in np.argsort(-probabilities, kind="stable")[: args.top]:
            print(f"{100 * probabilities[k]:7.2f}%  {found.labels[k]}")
        if args.explain:
            file = classifier.numbered(Path(args.explain), number, len(args.images))
            found.draw(image, probabilities, file, args.class_number, args.block)
