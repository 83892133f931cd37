"""Fine-tune a model on your pictures, every gradient by hand.

    python examples/finetune.py --weights model.safetensors --data pets     # pets/cat/*.jpg, pets/dog/*.jpg, ...
    python examples/finetune.py --weights model.safetensors --data pets --head-only
    python examples/finetune.py --weights model.safetensors --data mnist --limit 1000
    python examples/finetune.py --data mnist --limit 1000                   # from nothing, to compare
    python examples/classify_image.py rex.jpg --weights runs/finetune/model.safetensors

`--weights` takes a file of any known source (docs/published_weights.md); without it the model starts from nothing. The
defaults and their reasons stand in `Recipe` in minivit/training/finetuning.py, the options in docs/finetuning.md.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from train_mnist_vit import QUICK

import minivit
from minivit import data, optim
from minivit.data.folder import split_folder
from minivit.models import Model
from minivit.training import program, report
from minivit.training.finetuning import Recipe, fine_tune, head_names, overview, usual_lr
from minivit.training.tasks import Task, folder_task, mnist_task
from minivit.weights.preprocessing import preprocessing


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = program.parser(__doc__, data="mnist, or a folder of images by class", out="runs/finetune")
    parser.add_argument("--weights", help="file with the weights to start from (default: fresh ones)")
    parser.add_argument("--model", help="without --weights: one of minivit.list_models()")
    parser.add_argument("--img-size", type=int, help="side of the images in pixels (default: the model's)")
    parser.add_argument("--freeze", nargs="+", default=[], metavar="PATTERN", help="such as 'blocks.[0-5].*'")
    parser.add_argument("--head-only", action="store_true", help="freeze all but the classifier")
    parser.add_argument("--layer-decay", type=float, help="factor of lr from layer to layer, going down")
    parser.add_argument("--keep", choices=("best", "last"), help="which epoch's weights (default: best held out)")
    return parser.parse_args()


def make_model(args: argparse.Namespace, num_classes: int, mnist: bool) -> Model:
    """The model with a head for so many classes, from a file or fresh."""
    if args.weights and args.model:
        raise ValueError("--weights says which model it is: leave --model out")
    size, chans = (28, 1) if mnist else (args.img_size, None)
    if args.weights:
        return minivit.from_pretrained(args.weights, num_classes=num_classes, img_size=size, in_chans=chans)
    if args.model:
        options = {"num_classes": num_classes, "img_size": size, "in_chans": chans or 3, "seed": args.seed}
        return minivit.create_model(args.model, **options)
    if mnist:
        return minivit.ViT(**QUICK, seed=args.seed)
    raise ValueError("say where to start: --weights FILE, or --model NAME for fresh weights")


def model_and_task(args: argparse.Namespace) -> tuple[Model, Task]:
    """What learns, and what it learns."""
    if args.data is None:
        raise ValueError("say what to learn: --data mnist, or --data FOLDER with a folder of images for each class")
    if args.data == "mnist" or any(Path(args.data).glob("train-images*")):
        mnist = data.load_mnist(os.environ.get("MINIVIT_MNIST") if args.data == "mnist" else args.data)
        task = mnist_task(mnist, args.limit, args.seed)
        return make_model(args, len(task.classes), mnist=True), task
    pictures, held_out = split_folder(args.data)
    model = make_model(args, len(pictures.classes), mnist=False)
    preprocess = preprocessing(args.weights, model) if args.weights else data.Preprocess(model.config["img_size"])
    return model, folder_task(pictures, held_out, preprocess, args.limit, args.seed)


def main(args: argparse.Namespace) -> None:
    """Fine-tune as the command line says, and leave model, config.json, metrics and model card in args.out."""
    model, task = model_and_task(args)
    asked = {name: getattr(args, name) for name in ("epochs", "batch_size", "lr", "layer_decay", "keep")}
    recipe = Recipe() if args.weights else Recipe(layer_decay=1.0)  # fresh weights have nothing to forget
    recipe = replace(recipe, lr=usual_lr(model))
    recipe = replace(recipe, **{name: value for name, value in asked.items() if value is not None})
    frozen = optim.matching(model.parameters(), args.freeze)
    if args.head_only:
        frozen |= model.parameters().keys() - head_names(model)

    print(
        f"data: {task.source}; {len(task.learn.labels):,} images to learn from, {len(task.held_out.labels):,} held out"
    )
    print(f"classes: {', '.join(task.classes[:20])}{' ...' if len(task.classes) > 20 else ''}")
    print(overview(model, recipe, frozen))
    options = {"frozen": frozen, "seed": args.seed, "threads": args.threads, "device": args.device}
    outcome = fine_tune(model, task, recipe, args.out, resume=args.resume, **options)

    out = Path(args.out)
    minivit.save(model, out / "model.safetensors")
    (out / "config.json").write_text(json.dumps(task.config(), indent=1), encoding="utf-8")
    result = {"kept": f"epoch {outcome.epoch}", "held-out accuracy": f"{outcome.held_out:.2%}"}
    if outcome.test is not None:
        result["test accuracy"] = f"{outcome.test:.2%}"
    facts = {
        **result,
        "data": task.source,
        "classes": ", ".join(task.classes),
        "images learned from": f"{len(task.learn.labels):,}",
        "started from": args.weights or "fresh weights",
        "frozen": ", ".join([*args.freeze, *(["all but the head"] if args.head_only else [])]) or "nothing",
        "seed": args.seed,
        "time": f"{outcome.seconds:.0f} s",
        "recipe": recipe,
    }
    report.write_model_card(out, f"A fine-tuned {type(model).__name__}", facts)
    print(f"model, config.json with the classes, metrics and model card are in {out}")
    print("; ".join(f"{name}: {value}" for name, value in result.items()))


if __name__ == "__main__":
    program.run(main, arguments())
