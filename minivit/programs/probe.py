"""Measure what a model's features are worth: classify by them without training the model.

    minivit probe --weights vit_tiny_patch16_224 --data pets     # pets/cat/*.jpg, pets/dog/*.jpg, ...
    minivit probe --weights runs/mnist_vit --data mnist --limit 1000
    minivit probe --weights model.safetensors --data pets --classifier knn --k 10

The features of each image are computed once. `knn` lets the nearest training images vote, `linear` trains one linear
layer. docs/features.md says what the numbers mean.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from minivit import optim
from minivit.device import to_device
from minivit.pretrained import hub
from minivit.programs.finetune import model_and_task
from minivit.protocol import Array
from minivit.train import command_line
from minivit.train.frozen import frozen_features, knn_votes, linear_probe
from minivit.train.tasks import Part

CLASSIFIERS = ("knn", "linear")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `minivit probe`."""
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a file or folder of weights, or the name of a published model (default: random, to compare)",
    )
    parser.add_argument("--model", metavar="NAME", help="with random weights: one of `minivit models` (default: none)")
    parser.add_argument("--data", help="mnist, or a folder with a folder of images for each class (no default)")
    parser.add_argument(
        "--classifier", nargs="+", choices=CLASSIFIERS, default=list(CLASSIFIERS), help="one or both (default: both)"
    )
    parser.add_argument("--k", type=command_line.at_least(1), default=20, help="of knn: the number of neighbors")
    parser.add_argument("--temperature", type=command_line.above_zero, default=0.07, help="of knn: of the votes")
    parser.add_argument("--epochs", type=command_line.at_least(1), default=100, help="of linear")
    parser.add_argument("--lr", type=command_line.above_zero, default=1e-2, help="of linear: peak learning rate")
    command_line.add_img_size(parser)
    parser.add_argument(
        "--limit",
        type=command_line.at_least(1),
        metavar="N",
        help="use only N training images, the same number of each class (default: all)",
    )
    parser.add_argument(
        "--seed", type=command_line.at_least(0), default=0, help="of the chosen images and of random weights"
    )
    parser.set_defaults(out=None)
    command_line.add_device(parser)


def main(args: argparse.Namespace) -> None:
    """Print the accuracy of each classifier on images that it was not given."""
    if args.weights and not Path(args.weights).exists():
        args.weights = hub.fetch(args.weights, report=print)
    model, task = model_and_task(args, head=False)
    to_device(model, args.device)
    tested = task.held_out if task.test is None else task.test
    learn, classes = task.learn, len(task.classes)
    if "knn" in args.classifier and args.k > len(learn.labels):
        raise ValueError(f"--k {args.k}: there are {len(learn.labels)} training images, choose at most so many")
    parameters = f"{optim.parameter_count(model.parameters()):,}"
    print(f"model: {type(model).__name__}, {parameters} parameters, from {args.weights or 'random weights'}")
    print(f"data: {task.source}; {len(learn.labels):,} training images, {len(tested.labels):,} tested")

    known, asked = (frozen_features(model, part.images, task.prepare, args.device) for part in (learn, tested))
    print(f"features: {known.shape[1]} channels")
    if "knn" in args.classifier:
        votes = knn_votes(asked, known, learn.labels, classes, k=args.k, temperature=args.temperature)
        print(f"{args.k} nearest neighbors: {_accuracy(votes, tested)}")
    if "linear" in args.classifier:
        layer = linear_probe(known, learn.labels, classes, epochs=args.epochs, lr=args.lr, seed=args.seed)
        print(f"linear probe: {_accuracy(layer(asked)[0], tested)}")


def _accuracy(scores: Array, tested: Part) -> str:
    """The share of images whose largest of the scores (m, K) is that of their class."""
    return f"{(scores.argmax(axis=1) == tested.labels).mean():.2%}"
