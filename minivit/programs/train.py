"""Train a model on MNIST, every gradient by hand.

    minivit train                        # finds MNIST, trains for a few minutes
    minivit train --preset accurate      # over 99.3%, in 15 minutes or more
    minivit train --model hybrid         # tokens from the feature map of a small ResNet
    minivit train --model swin

Ctrl-C or SIGTERM completes the step, saves, and prints the command that continues; after a kill, `--resume` continues
from the last checkpoint. In both cases the final result is bit-identical. The examples train_mnist_vit.py and
train_mnist_swin.py show the training loop and end with the same model.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace

import minivit
from minivit import data, optim
from minivit.train import CountingLoss, Run, accuracy, command_line, fingerprint, fit, report
from minivit.train.loop import Batches
from minivit.train.presets import CLASSES, PRESETS, TITLES, table


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `minivit train`."""
    command_line.add_mnist_options(parser, PRESETS)
    parser.epilog = f"presets, of which `subset` is for the 5,000 images that are found without a network:\n\n{table()}"


def main(args: argparse.Namespace) -> None:
    """Train, evaluate, and write model, metrics, figures and model card to args.out."""
    command_line.check_mnist_options(args, PRESETS)
    ranks = command_line.join(args)
    mnist = ranks.per_machine(lambda: data.load_mnist(args.data))
    preset = PRESETS[args.model][args.preset or ("subset" if mnist.is_subset else "default")]
    preset = replace(preset, **command_line.given(args, "epochs", "batch_size", "lr"))
    kept, held_out = data.holdout(mnist.train_labels, preset.held_out, seed=0)
    images, labels = mnist.train_images[kept[: args.limit]], mnist.train_labels[kept[: args.limit]]
    print(f"data: {mnist.source}; {len(images):,} training images")

    model = CLASSES[args.model](**preset.model, seed=args.seed)
    minivit.to_device(model, args.device)
    parameters = f"{optim.parameter_count(model.parameters()):,}"
    print(f"model: {parameters} parameters")
    opt = optim.AdamW(model.parameters(), preset.lr, weight_decay=preset.weight_decay, no_decay=optim.no_decay(model))
    opt = ranks.optimizer(opt)
    average = optim.ModelEma(model, preset.ema)
    step = ranks.data_parallel(model, opt, args.threads, CountingLoss(), args.precision)
    settings = {**asdict(preset), **command_line.settings(args), "data": fingerprint(images, labels)}
    parts = {"model": model, "optimizer": opt, "average": average, **step.saved_parts()}
    run = Run(args.out, settings, parts, resume=args.resume, ranks=ranks)
    images = minivit.to_device(images, args.device)  # all of them, once: batches are made where the model is

    def batches(epoch: int, start: int) -> Batches:
        order = {"seed": args.seed, "epoch": epoch, "start": start}
        return data.batches(images, labels, preset.batch_size, **order, augment=preset.augment)

    def evaluate() -> float:
        watched = mnist.train_images[held_out], mnist.train_labels[held_out]
        return accuracy(step.predict, *watched, data.normalize, args.device)[0]

    count = data.num_batches(len(images), preset.batch_size)
    fit(
        run,
        step,
        opt,
        batches,
        evaluate,
        epochs=preset.epochs,
        batches_per_epoch=count,
        lr=preset.lr,
        warmup=int(preset.warmup_epochs * count),
        label_smoothing=preset.label_smoothing,
        seed=args.seed,
        device=args.device,
        average=average,
        ranks=ranks,
    )

    average.swap()  # the averaged weights are tested and saved
    tested, logits = accuracy(step.predict, mnist.test_images, mnist.test_labels, data.normalize, args.device)
    result = f"{100 * tested:.2f}%" + ("" if mnist.is_published else f" ({mnist.kind})")
    if not ranks.first:  # one rank writes
        return
    minivit.save(model, run.out / "model.safetensors")
    report.write_pictures(run.out, run.history, mnist.test_images, mnist.test_labels, logits)
    facts = {
        "test accuracy": result,
        "data": mnist.source,
        "training images": f"{len(images):,}",
        "parameters": parameters,
        "training": f"{run.seconds:.0f} s with threads={step.threads} and device={args.device}",
        "seed": args.seed,
        "preset": preset,
    }
    report.write_model_card(run.out, f"{TITLES[args.model]} for handwritten digits", facts)
    print(f"model, metrics and report are in {run.out}\ntest accuracy: {result}")
