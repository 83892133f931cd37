"""Classify an image, with any published or self-trained weights, and explain the prediction.

    python examples/classify_image.py cat.jpg --weights vit_b_16-c867db91.pth --labels imagenet.txt
    python examples/classify_image.py cat.jpg --weights vit_tiny_patch16_224 --explain cat.png
    python examples/classify_image.py seven.png --weights runs/mnist_vit/model.safetensors --explain seven.svg

Prints the five most probable classes of each image. --explain draws the image as the model sees it, attention rollout
(ViT) and Grad-CAM over it, and the map of every head; docs/classify_an_image.md says what they mean.
"""

import argparse
from pathlib import Path

import numpy as np

from minivit import explain, functional as F
from minivit.data import read_image
from minivit.data.images import flattened
from minivit.data.labels import labels_beside, read_labels
from minivit.device import check_device, to_device, to_numpy
from minivit.draw.attention import write_explanation
from minivit.io.weights import read_weights
from minivit.models import ViT
from minivit.pretrained import from_pretrained, hub
from minivit.pretrained.preprocessing import preprocessing
from minivit.pretrained.recognition import recognize
from minivit.train import command_line


def load(args):
    """The model, its image preprocessing, and the names of its classes."""
    path = args.weights if Path(args.weights).exists() else hub.fetch(args.weights, report=print)
    found, model = recognize(read_weights(path)), from_pretrained(path, profile=args.profile)
    if model.num_classes == 0:
        raise ValueError(f"{args.weights} has no classifier: take weights that were trained to name classes")
    prepare = preprocessing(found, model)
    labels = read_labels(args.labels, model.num_classes) if args.labels else None
    labels = labels or labels_beside(found.weights.config, model.num_classes)
    print(f"model: {type(model).__name__} of {found.source}, {model.num_classes:,} classes, from {found.path}")
    print(f"pictures: {prepare}")
    return to_device(model, args.device), prepare, labels or [f"class {k}" for k in range(model.num_classes)]


def opened(path, invert):
    """The image, upright; with light and dark inverted if `invert`."""
    image = read_image(path)
    if not invert:
        return image
    from PIL import ImageOps

    return ImageOps.invert(flattened(image))  # transparent paper is white, and 16 bits are 8


def draw(model, images, pixels, labels, probabilities, file, args):
    """One figure of the maps of images (1, C, H, W)."""
    chosen = int(probabilities.argmax()) if args.class_number is None else args.class_number
    cam = to_numpy(explain.grad_cam(model, images, chosen, args.block))[0]
    rollout = to_numpy(explain.attention_rollout(model, images))[0] if isinstance(model, ViT) else None
    heads = [to_numpy(block)[0] for block in explain.head_maps(model, images)]
    answer = int(probabilities.argmax())
    title = f"{labels[answer]}: {100 * probabilities[answer]:.1f} %"
    if not write_explanation(file, title, pixels, rollout=rollout, cam=cam, class_name=labels[chosen], heads=heads):
        raise ImportError("--explain draws with matplotlib: pip install 'minivit[examples]'")
    print(f"  drawn to {file}")


def main(args):
    check_device(args.device)
    model, prepare, labels = load(args)
    for number, path in enumerate(args.images, 1):
        image = opened(path, args.invert)
        images = to_device(prepare(image)[None], args.device)  # (1, C, H, W)
        probabilities = to_numpy(F.softmax(model.predict(images))[0])[0]  # (K,)
        print(f"\n{path}")
        for k in np.argsort(-probabilities, kind="stable")[: args.top]:
            print(f"{100 * probabilities[k]:7.2f} %  {labels[k]}")
        if args.explain:
            file = Path(args.explain)
            file = file if len(args.images) == 1 else file.with_name(f"{file.stem}-{number}{file.suffix}")
            draw(model, images, prepare.pixels(image), labels, probabilities, file, args)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a PNG, JPEG or other file that Pillow reads")
    parser.add_argument(
        "--weights", required=True, metavar="FILE", help="file or folder: see docs/published_weights.md"
    )
    parser.add_argument("--labels", metavar="FILE", help="one label a line, or JSON (default: config.json beside FILE)")
    parser.add_argument("--explain", metavar="OUT.png", help="draw the explanation of the prediction (.png or .svg)")
    parser.add_argument("--class", dest="class_number", type=int, metavar="N", help="Grad-CAM's (default: predicted)")
    parser.add_argument("--block", type=int, default=-1, help="Grad-CAM's: the map that enters it (default: the last)")
    parser.add_argument(
        "--top", type=command_line.at_least(1), default=5, help="how many classes to print (default: 5)"
    )
    parser.add_argument("--invert", action="store_true", help="invert light and dark: MNIST's digits are light")
    parser.add_argument("--profile", help="compute as this project does (default: the one that wrote FILE)")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    return parser.parse_args()


if __name__ == "__main__":
    command_line.run(main, arguments())
