"""What `classify` and `explain` share: a classifier as a file of weights describes it, and the figure of an answer."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivit import explain, functional as F
from minivit.data import Preprocess, read_image
from minivit.data.images import flattened
from minivit.data.labels import labels_beside, read_labels
from minivit.device import to_device, to_numpy
from minivit.draw.attention import write_explanation
from minivit.draw.style import check_matplotlib
from minivit.io.weights import read_weights
from minivit.models import Model, ViT
from minivit.pretrained import from_pretrained, hub
from minivit.pretrained.preprocessing import preprocessing
from minivit.pretrained.recognition import Recognized, recognize
from minivit.pretrained.zero_shot import USUAL_SCALE, read_class_vectors, scale_of, zero_shot_probabilities
from minivit.protocol import Array
from minivit.train import command_line


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a program that needs a classifier."""
    parser.add_argument(
        "--weights",
        required=True,
        metavar="FILE",
        help="a file or folder, such as runs/mnist_vit, or the name of a published model",
    )
    parser.add_argument("--labels", metavar="FILE", help="one label a line, or JSON (default: config.json beside FILE)")
    parser.add_argument("--profile", help="project whose settings are used (default: the one that wrote FILE)")
    parser.add_argument("--invert", action="store_true", help="invert light and dark: MNIST's digits are light")
    command_line.add_device(parser)


def add_explanation_options(parser: argparse.ArgumentParser) -> None:
    """The options of the figure of an answer."""
    parser.add_argument("--class", dest="class_number", type=int, metavar="N", help="of Grad-CAM (default: predicted)")
    parser.add_argument("--block", type=int, metavar="N", help="Grad-CAM of its input (default: the last)")


@dataclass(frozen=True, eq=False)
class Classifier:
    """A model with K classes, the preprocessing of its images, the names of its classes, and the device it is on."""

    model: Model
    prepare: Preprocess
    labels: list[str]
    device: str
    vectors: Array | None = None  # (K, D) on the device: of the classes, which the output (D,) is compared with
    scale: float = USUAL_SCALE  # of these similarities

    def __repr__(self) -> str:
        return f"Classifier({type(self.model).__name__}, {len(self.labels)} classes, {self.prepare})"

    def probabilities(self, image: Any) -> Array:
        """(K,) of a PIL image."""
        output = self.model.predict(self._input(image))
        if self.vectors is None:
            return to_numpy(F.softmax(output)[0])[0]
        return to_numpy(zero_shot_probabilities(output, self.vectors, self.scale))[0]

    def note_of_light(self, image: Any) -> None:
        """Say so if the image is light, and the images of one channel that the model was trained on were dark."""
        if self.prepare.channels == 1 and self.prepare.mean[0] < 0.5 < self.prepare.pixels(image).mean() / 255:
            print("  the image is mostly light, and those of the training were mostly dark: is --invert missing?")

    def check_class(self, number: int | None) -> None:
        """Refuse the number of a class that the model does not have."""
        count = len(self.labels)
        if number is not None and not 0 <= number < count:
            raise ValueError(f"--class {number} does not exist: the model has {count:,} classes, 0 to {count - 1}")

    def draw(self, image: Any, probabilities: Array, file: Path, number: int | None, block: int | None) -> None:
        """One figure: the image, attention rollout (ViT) and Grad-CAM over it, and the map of every head.

        Args:
            image: a PIL image.
            probabilities: what `probabilities` returned for it.
            file: a .png or .svg to write.
            number: of the class that Grad-CAM explains; None is the most probable one.
            block: Grad-CAM's; None is the last.
        """
        check_matplotlib()
        images, answer = self._input(image), int(probabilities.argmax())
        chosen = answer if number is None else number
        rollout = to_numpy(explain.attention_rollout(self.model, images))[0] if isinstance(self.model, ViT) else None
        write_explanation(
            file,
            f"{self.labels[answer]}: {100 * probabilities[answer]:.1f}%",
            self.prepare.pixels(image),
            rollout=rollout,
            cam=to_numpy(explain.grad_cam(self.model, images, chosen, -1 if block is None else block))[0],
            class_name=self.labels[chosen],
            heads=[to_numpy(maps)[0] for maps in explain.head_maps(self.model, images)],
        )
        print(f"  drawn to {file}")

    def _input(self, image: Any) -> Array:
        return to_device(self.prepare(image)[None], self.device)  # (1, C, H, W)


def load(args: argparse.Namespace, class_vectors: str | None = None) -> Classifier:
    """The classifier that the options name; prints what it is.

    Args:
        class_vectors: a file of one vector for each class, for a model that embeds images.
    """
    vectors = read_class_vectors(class_vectors) if class_vectors else None
    path = args.weights if Path(args.weights).exists() else hub.fetch(args.weights, report=print)
    found, model = recognize(read_weights(path)), from_pretrained(path, profile=args.profile)
    if vectors is not None:
        return _zero_shot(args, found, model, vectors)
    if model.num_classes == 0:
        raise ValueError(
            f"{args.weights} has no classifier: take weights that were trained to name classes, or for a model of "
            "images and texts `minivit classify --class-vectors`"
        )
    prepare = preprocessing(found, model)
    labels = read_labels(args.labels, model.num_classes) if args.labels else None
    labels = labels or labels_beside(found.weights.config, model.num_classes)
    print(f"model: {type(model).__name__} of {found.source}, {model.num_classes:,} classes, from {found.path}")
    print(f"images: {prepare}")
    labels = labels or [f"class {k}" for k in range(model.num_classes)]
    return Classifier(to_device(model, args.device), prepare, labels, args.device)


def _zero_shot(args: argparse.Namespace, found: Recognized, model: Model, vectors: Array) -> Classifier:
    """The classifier of class vectors; prints what it is, and the source of its scale."""
    count, stored = len(vectors), scale_of(found)
    labels = read_labels(args.labels, count) if args.labels else [f"class {k}" for k in range(count)]
    prepare, scale = preprocessing(found, model), USUAL_SCALE if stored is None else stored
    print(f"model: {type(model).__name__} of {found.source}, from {found.path}")
    print(f"images: {prepare}")
    source = "CLIP's, as the file has no logit_scale" if stored is None else "the file's"
    print(f"classes: {count:,} vectors, similarities times {scale:.4g} ({source})")
    vectors = to_device(vectors, args.device)
    return Classifier(to_device(model, args.device), prepare, labels, args.device, vectors, scale)


def numbered(file: Path, number: int, count: int) -> Path:
    """The file of one of several images: with more than one, its number stands behind the name."""
    return file if count == 1 else file.with_name(f"{file.stem}-{number}{file.suffix}")


def image_of(pixels: Array) -> Any:
    """The PIL image of gray pixels (H, W) uint8."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("images need Pillow: pip install Pillow") from None
    return Image.fromarray(pixels)


def opened(path: str, invert: bool) -> Any:
    """The image in a file, upright; with light and dark inverted if `invert`."""
    image = read_image(path)
    return inverted(image) if invert else image


def inverted(image: Any) -> Any:
    """A PIL image with light and dark inverted."""
    from PIL import ImageOps

    return ImageOps.invert(flattened(image))  # transparent paper is white, and 16 bits are 8
