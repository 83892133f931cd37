"""The loop of training, written once for every run: the four-line step, what stands before it, and what comes after.

What is trained, and on what, is said by `mnist.py` and `finetuning.py`. Next: `report.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from minivit import optim
from minivit.backend import to_device
from minivit.parallel import DataParallel
from minivit.protocol import Array
from minivit.training.run import Run, noise_generator

Batches: TypeAlias = Iterable[tuple[Array, Array]]


@dataclass(frozen=True)
class Course:
    """How a run goes.

    Attributes:
        epochs: passes over the data.
        batches: in each epoch.
        lr: the peak of the learning rate, which rises to it for `warmup_epochs` and then falls as half a cosine.
        label_smoothing: the share of a target that is spread over all classes.
        seed: of the noise (dropout, drop path).
        device: "cpu" or "gpu".
    """

    epochs: int
    batches: int
    lr: float
    warmup_epochs: float
    label_smoothing: float
    seed: int
    device: str = "cpu"


def learn(
    run: Run,
    step: DataParallel,
    opt: optim.Optimiser,
    batches: Callable[[int, int], Batches],
    evaluate: Callable[[], float],
    course: Course,
    average: optim.ModelEma | None = None,
) -> None:
    """Train from where the run stands to its last epoch.

    Args:
        run: notes each step and each epoch, and keeps checkpoints.
        step: the model; its loss is a `CountingLoss`.
        opt: the optimiser; parameters that it does not have stay as they are.
        batches: (epoch, position) -> the epoch's batches (x, y) from that position on.
        evaluate: () -> the held-out accuracy; called after each epoch.
        course: how long, how fast.
        average: averaged weights to keep up.
    """
    steps, warmup = course.epochs * course.batches, int(course.warmup_epochs * course.batches)
    frozen = [param for name, param in step.model.parameters().items() if name not in opt.params]
    loss: Any = step.loss
    for epoch in run.epochs(course.epochs):
        for x, y in run.steps(batches(epoch, run.position), course.batches):
            opt.lr = optim.warmup_cosine(run.step, steps, peak=course.lr, warmup=warmup)
            rng = noise_generator(course.seed, run.step)

            opt.zero_grad()
            value = step.loss_and_grad(to_device(x, course.device), y, rng, label_smoothing=course.label_smoothing)
            optim.clip_grad_norm(opt.params, 1.0)
            opt.step()

            for param in frozen:
                param.grad = None  # the optimiser does not know it, so nobody else would clear it
            if average is not None:
                average.update()
            run.log(value, loss.take(), len(x))
        run.end_epoch(opt.lr, evaluate())
