"""Draw what a classification depends on: attention rollout (ViT), Grad-CAM, and the map of every head.

    minivit explain cat.jpg --weights vit_tiny_patch16_224
    minivit explain cat.jpg --weights swin_folder --class 281 --out cat.svg
    minivit explain --digit 7 --weights runs/mnist_vit       # a test image of MNIST

Draws one figure of each image: the image as the model sees it, the two maps over it, and a small map for each head.
What they show, and what they do not, is in docs/classify_an_image.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minivit import data
from minivit.draw.style import check_matplotlib
from minivit.programs import classifier
from minivit.train import command_line

FOLDER = Path("runs") / "explain"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `minivit explain`."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="a PNG, JPEG or other file that Pillow reads")
    parser.add_argument(
        "--digit", type=int, choices=range(10), help="a test image of MNIST that shows it (default: none)"
    )
    parser.add_argument(
        "--nth", type=command_line.at_least(1), default=1, metavar="N", help="which of the test images of --digit"
    )
    parser.add_argument(
        "--data", help="folder with the four MNIST files, for --digit (default: cache, download, or the subset)"
    )
    classifier.add_options(parser)
    classifier.add_explanation_options(parser)
    parser.add_argument(
        "--out", type=Path, metavar="OUT.png", help=f"the figure, .png or .svg (default: {FOLDER / 'NAME.png'})"
    )


def main(args: argparse.Namespace) -> None:
    """Print the answer for each image, and draw its explanation."""
    if bool(args.images) == (args.digit is not None):
        raise ValueError("choose what to explain: the files of images, or --digit N for a test image of MNIST")
    check_matplotlib()
    found = classifier.load(args)
    found.check_class(args.class_number)
    for number, (name, image) in enumerate(_images(args), 1):
        probabilities = found.probabilities(image)
        answer = int(probabilities.argmax())
        print(f"\n{name}")
        found.note_of_light(image)
        print(f"{100 * probabilities[answer]:7.2f}%  {found.labels[answer]}")
        file = args.out or FOLDER / f"{Path(name).stem}.png"
        file = classifier.numbered(file, number, max(1, len(args.images)))  # no files: a digit
        found.draw(image, probabilities, file, args.class_number, args.block)


def _images(args: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """The name and the PIL image of each."""
    if args.digit is None:
        yield from ((path, classifier.opened(path, args.invert)) for path in args.images)
        return
    mnist = data.load_mnist(args.data)
    which = np.flatnonzero(mnist.test_labels == args.digit)
    if args.nth > len(which):
        raise ValueError(f"--nth {args.nth}: {mnist.source} has {len(which)} test images of the digit {args.digit}")
    image = classifier.image_of(mnist.test_images[which[args.nth - 1]])
    yield f"digit_{args.digit}-{args.nth}", classifier.inverted(image) if args.invert else image
