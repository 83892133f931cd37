"""Fine-tune a pretrained model on your own images, every gradient by hand.

    minivit finetune --weights model.safetensors --data pets        # pets/cat/*.jpg, pets/dog/*.jpg, ...
    minivit finetune --weights model.safetensors --data pets --head-only
    minivit finetune --weights model.safetensors --data pets --lora 8
    minivit finetune --weights model.safetensors --data mnist --limit 1000
    minivit finetune --data mnist --limit 1000                      # from scratch, to compare
    minivit classify rex.jpg --weights runs/finetune

`--weights` takes a file of any known source; without it the model is trained from scratch. The defaults and their
reasons are in `Recipe` in minivit/train/finetuning.py.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import minivit
from minivit import data, distributed, optim
from minivit.data.folder import split_folder
from minivit.io.atomic import write_atomically
from minivit.models import Model
from minivit.models.lora import head_names
from minivit.pretrained.preprocessing import preprocessing
from minivit.train import command_line, report
from minivit.train.finetuning import LR_TIMES_WIDTH, Recipe, fine_tune, overview, usual_lr
from minivit.train.folder import original, refuse_among_classes
from minivit.train.presets import QUICK
from minivit.train.tasks import Task, folder_task, mnist_task


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `minivit finetune`."""
    recipe = Recipe()
    images = "mnist, or a folder with a folder of images for each class (no default)"
    limit = "use only N training images, the same number of each class"
    defaults = {**asdict(recipe), "lr": f"{LR_TIMES_WIDTH} / the model's width"}
    parser.add_argument("--weights", metavar="FILE", help="file of pretrained weights (default: train from scratch)")
    parser.add_argument("--model", metavar="NAME", help="from scratch: one of `minivit models` (default: none)")
    command_line.add_img_size(parser)
    parser.add_argument(
        "--freeze",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="parameters that are not trained, such as 'blocks.[0-5].*' (default: none)",
    )
    parser.add_argument("--head-only", action="store_true", help="freeze all but the classifier")
    parser.add_argument(
        "--lora",
        type=command_line.at_least(1),
        metavar="RANK",
        help="train the classifier and updates of this rank beside frozen weights, LoRA (default: all weights)",
    )
    parser.add_argument(
        "--lora-alpha",
        type=command_line.above_zero,
        metavar="ALPHA",
        help="the factor of an update is ALPHA / RANK (default: 16)",
    )
    parser.add_argument(
        "--lora-targets",
        nargs="+",
        metavar="NAME",
        help="the linear maps that get an update, of qkv, proj, fc1 and fc2 (default: qkv proj)",
    )
    parser.add_argument(
        "--layer-decay",
        type=command_line.above_zero,
        metavar="R",
        help="factor of the learning rate from a layer to the one below "
        f"(default: {recipe.layer_decay}; from scratch: 1)",
    )
    parser.add_argument(
        "--keep", choices=("best", "last"), default=recipe.keep, help="which epoch's weights, by held-out accuracy"
    )
    command_line.add_options(parser, data=images, out="runs/finetune", limit=limit, defaults=defaults)


def make_model(args: argparse.Namespace, num_classes: int, mnist: bool) -> Model:
    """A model with a head for so many classes (0: none), from a file or with random weights."""
    if args.weights and args.model:
        raise ValueError("the file of --weights determines the model: leave --model out")
    size, chans = (28, 1) if mnist else (args.img_size, None)
    if args.weights:
        return minivit.from_pretrained(args.weights, num_classes=num_classes, img_size=size, in_chans=chans)
    if args.model:
        options = {"num_classes": num_classes, "img_size": size, "in_chans": chans or 3, "seed": args.seed}
        return minivit.create_model(args.model, **options)
    if mnist:
        return minivit.ViT(**{**QUICK, "num_classes": num_classes}, seed=args.seed)
    raise ValueError("choose a model: --weights FILE, or --model NAME to train from scratch")


def model_and_task(
    args: argparse.Namespace, *, head: bool = True, ranks: distributed.Ranks | None = None
) -> tuple[Model, Task]:
    """The model, with a head for the classes or without one, and the images to train and test it with."""
    ranks = distributed.Ranks() if ranks is None else ranks
    if args.data is None:
        raise ValueError("choose the images: --data mnist, or --data FOLDER with a folder of images for each class")
    if args.data == "mnist" or any(Path(args.data).glob("train-images*")):
        folder = os.environ.get("MINIVIT_MNIST") if args.data == "mnist" else args.data
        mnist = ranks.per_machine(lambda: data.load_mnist(folder))
        task = mnist_task(mnist, args.limit, args.seed)
        return make_model(args, len(task.classes) * head, mnist=True), task
    pictures, held_out = ranks.per_machine(lambda: split_folder(args.data))
    if args.out is not None:
        refuse_among_classes(args.out, pictures.folder, held_out.folder)
    model = make_model(args, len(pictures.classes) * head, mnist=False)
    preprocess = preprocessing(args.weights, model) if args.weights else data.Preprocess(model.config["img_size"])
    return model, folder_task(pictures, held_out, preprocess, args.limit, args.seed)


def main(args: argparse.Namespace) -> None:
    """Fine-tune, and write model, config.json, metrics and model card to args.out."""
    if args.weights and args.resume:
        args.weights = original(args.weights, args.out)
    ranks = command_line.join(args)
    _check_lora(args)
    model, task = model_and_task(args, ranks=ranks)
    # random weights have no features to preserve, and beside updates of low rank the weights stay as they are
    layer_decay = Recipe.layer_decay if args.weights and args.lora is None else 1.0
    recipe = Recipe(lr=usual_lr(model), layer_decay=layer_decay)
    recipe = replace(recipe, **command_line.given(args, "epochs", "batch_size", "lr", "layer_decay", "keep"))
    frozen = optim.matching(model.parameters(), args.freeze)
    if args.head_only:
        frozen |= model.parameters().keys() - head_names(model)
    if args.lora is not None:
        chosen = {"alpha": args.lora_alpha, "targets": args.lora_targets}
        given = {name: value for name, value in chosen.items() if value is not None}
        trained = minivit.lora(model, args.lora, **given, seed=args.seed)
        frozen = model.parameters().keys() - trained.keys()

    print(f"data: {task.source}; {len(task.learn.labels):,} training images, {len(task.held_out.labels):,} held out")
    print(f"classes: {', '.join(task.classes[:20])}{' ...' if len(task.classes) > 20 else ''}")
    print(overview(model, recipe, frozen))
    options = {"frozen": frozen, "seed": args.seed, "threads": args.threads, "device": args.device,
               "precision": args.precision}  # fmt: skip
    outcome = fine_tune(model, task, recipe, args.out, resume=args.resume, ranks=ranks, **options)
    if not ranks.first:  # one rank writes
        return

    out = Path(args.out)
    if args.lora is not None:
        minivit.save_lora(model, out / "lora.safetensors")
        minivit.merge_lora(model)
    minivit.save(model, out / "model.safetensors")
    write_atomically(out / "config.json", json.dumps(task.config(), indent=1).encode())
    result = {"kept": f"epoch {outcome.epoch}", "held-out accuracy": f"{outcome.held_out:.2%}"}
    if outcome.test is not None:
        result["test accuracy"] = f"{outcome.test:.2%}"
    facts = {
        **result,
        "data": task.source,
        "classes": ", ".join(task.classes),
        "training images": f"{len(task.learn.labels):,}",
        "started from": args.weights or "random weights",
        "frozen": _frozen(args),
        "seed": args.seed,
        "time": f"{outcome.seconds:.0f} s",
        "recipe": recipe,
    }
    report.write_model_card(out, f"A fine-tuned {type(model).__name__}", facts)
    print(f"model, config.json with the classes, metrics and model card are in {out}")
    print("; ".join(f"{name}: {value}" for name, value in result.items()))


def _check_lora(args: argparse.Namespace) -> None:
    """Refuse options that contradict --lora, or that need it."""
    if args.lora is None:
        if args.lora_alpha is not None or args.lora_targets is not None:
            raise ValueError("--lora-alpha and --lora-targets are of --lora RANK: give the rank, such as --lora 8")
        return
    if args.freeze or args.head_only:
        raise ValueError("--lora freezes all but its updates and the classifier: leave --freeze and --head-only out")
    if not args.weights:
        raise ValueError("--lora keeps the weights as they are, and random ones are of no use: give --weights FILE")


def _frozen(args: argparse.Namespace) -> str:
    if args.lora is not None:
        return f"all but the head and updates of rank {args.lora}"
    return ", ".join([*args.freeze, *(["all but the head"] if args.head_only else [])]) or "nothing"
