"""A run in a folder, which tests start with and without mpiexec, stop, kill and resume.

It prints the process numbers of all ranks, then each step, and last a digest of weights, optimizer and average.
"""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

import numpy as np
import program

import minivit
from minivit import data, distributed, optim
from minivit.train import CountingLoss, Run, accuracy, command_line, fingerprint, noise_generator


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--other-data", type=int)  # the rank that has them
    parser.add_argument("--other-code", type=int)
    # 0 leaves it to what was saved
    parser.set_defaults(device="cpu", debug=False)
    args = parser.parse_args()
    args.shards = args.shards or None
    return args


def say(ranks: distributed.Ranks, content: Any) -> None:
    if ranks.first:
        print(json.dumps(content), flush=True)


def main(args: argparse.Namespace) -> None:
    if args.other_code == distributed.launched_rank() is not None:
        minivit.__version__ = "99.0.0"
    ranks = command_line.join(args)
    say(ranks, ranks.gather(os.getpid()))
    random = np.random.default_rng(5)
    images, labels = random.integers(0, 256, (100, 28, 28), dtype=np.uint8), random.integers(0, 10, 100)
    if args.other_data == ranks.rank:
        images[0] = 0
    model = program.FAMILIES["vit"]()
    opt = ranks.optimizer(optim.AdamW(model.parameters(), no_decay=optim.no_decay(model)))
    average, criterion = optim.ModelEma(model, 0.9), CountingLoss()
    step = ranks.data_parallel(model, opt, loss=criterion)
    settings = {"data": fingerprint(images, labels)}
    parts = {"model": model, "optimizer": opt, "average": average}
    run = Run(args.out, settings, parts, resume=args.resume, every=0.02, quiet=True, ranks=ranks)
    for epoch in run.epochs(args.steps // 5):
        batches = data.batches(images, labels, 20, seed=1, epoch=epoch, start=run.position)
        for x, y in run.batches(batches, 5):
            say(ranks, {"step": run.iteration})
            opt.zero_grad()
            loss = step.loss_and_grad(x, y, noise_generator(1, run.iteration), label_smoothing=0.1)
            norm = ranks.clip_grad_norm(opt.params, 1.0)
            opt.step()
            average.update()
            run.log(loss, criterion.take_correct(), len(x), norm)
        run.end_epoch(opt.lr, accuracy(step.predict, images, labels, data.normalize)[0])
    state = {f"optimizer/{name}": np.asarray(value) for name, value in opt.state_dict().items()}
    state |= {f"average/{name}": array for name, array in average.average.items()}
    state |= {"accuracy": np.array([row["held_out_accuracy"] for row in run.history])}
    say(ranks, {"digest": program.digest({**model.state_dict(), **state})})


def run() -> None:
    command_line.run(main, arguments())


if __name__ == "__main__":
    run()
