"""Train a Swin Transformer on MNIST, every gradient by hand: the loop of train_mnist_vit.py around another model.

    python examples/train_mnist_swin.py                    # finds MNIST, trains for less than ten minutes

Ctrl-C or SIGTERM completes the step, saves, and prints the command that continues; after a kill, `--resume` continues
from the last checkpoint. explain_swin.py shows what the windows, shifts and masks of this model look like.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from math import isfinite

import minivit
from minivit import data, optim
from minivit.train import CountingLoss, Run, accuracy, command_line, fingerprint, noise_generator, report
from minivit.train.presets import PRESETS


def main(args: argparse.Namespace) -> None:
    """Train, evaluate, and write model, metrics, figures and model card to args.out."""
    ranks = command_line.join(args)  # the processes that mpiexec has started, or this one alone

    # Data: images (n, 28, 28) uint8, labels (n,).
    mnist = ranks.per_machine(lambda: data.load_mnist(args.data))  # one rank of a machine reads
    preset = PRESETS["swin"][args.preset or ("subset" if mnist.is_subset else "default")]
    preset = replace(preset, **command_line.given(args, "epochs", "batch_size", "lr"))
    kept, held_out = data.holdout(mnist.train_labels, preset.held_out, seed=0)
    images, labels = mnist.train_images[kept[: args.limit]], mnist.train_labels[kept[: args.limit]]
    held_out_images, held_out_labels = mnist.train_images[held_out], mnist.train_labels[held_out]
    print(f"data: {mnist.source}; {len(images):,} training images")

    # Model: images (B, 1, 28, 28) -> logits (B, 10).
    model = minivit.Swin(**preset.model, seed=args.seed)
    minivit.to_device(model, args.device)
    print(f"model: {optim.parameter_count(model.parameters()):,} parameters")

    # Optimizer, averaged weights, loss, and the forward and backward pass, with a thread for each shard of a batch.
    opt = optim.AdamW(model.parameters(), preset.lr, weight_decay=preset.weight_decay, no_decay=optim.no_decay(model))
    opt = ranks.optimizer(opt)  # each rank updates its share of the parameters
    average = optim.ModelEma(model, preset.ema)
    criterion = CountingLoss()
    step = ranks.data_parallel(model, opt, args.threads, criterion, args.precision)

    # Training, from the first epoch or from the position of a resumed run.
    settings = {**asdict(preset), **command_line.settings(args), "data": fingerprint(images, labels)}
    count = data.num_batches(len(images), preset.batch_size)
    parts = {"model": model, "optimizer": opt, "average": average, **step.saved_parts()}
    run = Run(args.out, settings, parts, resume=args.resume, ranks=ranks)
    images = minivit.to_device(images, args.device)  # all of them, once: batches are made where the model is
    total, warmup = preset.epochs * count, int(preset.warmup_epochs * count)
    for epoch in run.epochs(preset.epochs):
        batches = data.batches(
            images, labels, preset.batch_size, seed=args.seed, epoch=epoch, start=run.position, augment=preset.augment
        )
        for x, y in run.batches(batches, count):  # shows progress, and saves every 30 seconds and when stopped
            opt.lr = optim.warmup_cosine(run.iteration, total, peak=preset.lr, warmup=warmup)
            rng = noise_generator(args.seed, run.iteration)

            opt.zero_grad()
            loss = step.loss_and_grad(x, y, rng, label_smoothing=preset.label_smoothing)
            norm = ranks.clip_grad_norm(opt.params, 1.0)
            if isfinite(norm):  # else clip_grad_norm has cleared the gradients
                opt.step()

            average.update()
            run.log(loss, criterion.take_correct(), len(x), norm)
        average.swap()  # the averaged weights are evaluated, the others trained
        held_out_accuracy, _ = accuracy(step.predict, held_out_images, held_out_labels, data.normalize, args.device)
        average.swap()
        run.end_epoch(opt.lr, held_out_accuracy)

    # Evaluation of the averaged weights, once, on images that nothing above has used.
    average.swap()
    test_accuracy, logits = accuracy(step.predict, mnist.test_images, mnist.test_labels, data.normalize, args.device)
    result = f"{100 * test_accuracy:.2f}%" + ("" if mnist.is_published else f" ({mnist.kind})")

    if not ranks.first:  # one rank writes
        return
    # Report: the model, three figures, and a model card.
    minivit.save(model, run.out / "model.safetensors")
    report.write_pictures(run.out, run.history, mnist.test_images, mnist.test_labels, logits)
    facts = {
        "test accuracy": result,
        "data": mnist.source,
        "training images": f"{len(images):,}",
        "parameters": f"{optim.parameter_count(model.parameters()):,}",
        "training": f"{run.seconds:.0f} s with threads={step.threads} and device={args.device}",
        "seed": args.seed,
        "preset": preset,
    }
    report.write_model_card(run.out, "A Swin Transformer for handwritten digits", facts)
    print(f"model, metrics and report are in {run.out}\ntest accuracy: {result}")


if __name__ == "__main__":
    command_line.run(main, command_line.mnist_options(__doc__, {"swin": PRESETS["swin"]}))
