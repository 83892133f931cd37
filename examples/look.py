"""What does a model see in a photo? Patches as colors, the attention of each head, and the nearest images of a folder.

    python examples/look.py photo.jpg --weights vit_tiny_patch16_224        # downloaded once
    python examples/look.py cat.jpg dog.jpg --weights model.safetensors --foreground
    python examples/look.py photo.jpg --weights runs/finetune --folder photos
    python examples/look.py photo.jpg                                           # random weights, to compare

Writes colors.png, NAME-attention.png and with --folder NAME-neighbors.png into the folder --out. docs/features.md says
what they show.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import minivit
from minivit import data, explain
from minivit.data.folder import SUFFIXES
from minivit.draw import features as draw
from minivit.draw.style import check_matplotlib
from minivit.models import Model
from minivit.pretrained import hub
from minivit.pretrained.preprocessing import preprocessing
from minivit.protocol import Array
from minivit.train import command_line

RANDOM = "vit_tiny_patch16_224"  # the model with random weights


def load(args: argparse.Namespace) -> tuple[Model, data.Preprocess, str]:
    """The model, the preprocessing of its images, and a name for the headings."""
    if args.weights is None:
        print(f"random weights of {RANDOM}: the figures show what the architecture does without training")
        model = minivit.create_model(RANDOM, img_size=args.img_size, num_classes=0)
        return model, data.Preprocess(model.config["img_size"]), "random weights"
    path = args.weights if Path(args.weights).exists() else hub.fetch(args.weights, report=print)
    model = minivit.from_pretrained(path, img_size=args.img_size, num_classes=0)
    prepare = preprocessing(path, model)
    if args.img_size:
        prepare = replace(prepare, size=args.img_size)
    return model, prepare, Path(args.weights).name


def patch_maps(model: Model, x: Array, block: int) -> Array:
    """(B, D, gh, gw): the patches behind a block, or behind a stage of a Swin, after the last norm where it fits."""
    with minivit.protocol.inference():
        (maps,), _ = model.forward_intermediates(x, [block], norm=True, intermediates_only=True, stop_early=True)
    return np.asarray(maps)


def nearest(model: Model, prepare: data.Preprocess, photo: Path, x: Array, folder: str, count: int) -> list[Any]:
    """(name, cosine, pixels) of the images in a folder whose pooled features are nearest to those of x (1, C, H, W)."""
    if not Path(folder).is_dir():
        raise ValueError(f"--folder {folder} is not a folder: name one with images")
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in SUFFIXES)
    files = [path for path in files if path.resolve() != photo.resolve()]
    if not files:
        raise ValueError(f"--folder {folder} has no other images ({', '.join(SUFFIXES)})")
    embeddings = np.concatenate([model.features(prepare(path)[None]) for path in files])
    chosen, cosines = explain.nearest_embeddings(model.features(x)[0], embeddings, count)
    names = [str(files[index].relative_to(folder)) for index in chosen]
    pixels = [prepare.pixels(files[index]) for index in chosen]
    return list(zip(names, cosines.tolist(), pixels))


def main(args: argparse.Namespace) -> None:
    check_matplotlib()
    model, prepare, name = load(args)
    photos = [Path(photo) for photo in args.photos]
    pixels = [prepare.pixels(photo) for photo in photos]
    x = np.stack([prepare(photo) for photo in photos])
    out = Path(args.out)

    found = explain.patch_colors(patch_maps(model, x, args.block), foreground=args.foreground)
    note = "The background is dark: patches on the other side of the first component." if args.foreground else ""
    written = draw.write_colors(out / "colors.png", pixels, *found, f"Patches by their features: {name}", note=note)
    print(f"the first components hold {', '.join(f'{share:.1%}' for share in found.shares)} of the variance")

    for number, photo in enumerate(photos):
        maps = explain.token_attention(model, x[number : number + 1], -1)
        one = {token: heads[0] for token, heads in maps.items()}
        title = f"Attention in the last block: {name}"
        written += draw.write_token_attention(out / f"{photo.stem}-attention.png", pixels[number], one, title)
        if args.folder:
            images = nearest(model, prepare, photo, x[number : number + 1], args.folder, args.count)
            print(f"nearest to {photo}:", *(f"{cosine:7.3f}  {path}" for path, cosine, _ in images), sep="\n")
            title = f"Nearest images: {name}"
            written += draw.write_neighbors(out / f"{photo.stem}-neighbors.png", pixels[number], images, title)
    print("drawn:", *written, sep="\n  ")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Help)
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="a PNG, JPEG or other file that Pillow reads")
    parser.add_argument("--weights", metavar="FILE", help="a file, a folder or a published name (default: random)")
    parser.add_argument("--folder", help="images among which the nearest ones are found, also in its subfolders")
    parser.add_argument("--count", type=command_line.at_least(1), default=5, help="how many of them")
    parser.add_argument("--foreground", action="store_true", help="color only the foreground, by the first component")
    parser.add_argument("--block", type=int, default=-1, help="whose patches are colored; a Swin's stages are counted")
    command_line.add_img_size(parser)
    parser.add_argument("--out", default="runs/look", metavar="FOLDER", help="folder for the figures")
    command_line.add_debug(parser)
    command_line.run(main, parser.parse_args())
