"""The training loop as a function: `examples/train_mnist_vit.py` writes it out, with bitwise the same result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from typing import Any, Protocol, TypeAlias

from minivit import nn, optim
from minivit.device import to_device
from minivit.distributed import Ranks
from minivit.parallel import CapturedStep, DataParallel
from minivit.parallel.recorded_update import Outcome
from minivit.protocol import Array
from minivit.train.metrics import CountingLoss
from minivit.train.run import noise_generator

Batches: TypeAlias = Iterable[tuple[Array, Array]]


class TrainingRun(Protocol):
    """The run that `fit` needs: `minivit.train.Run`, which can be resumed, or one in memory only."""

    position: int
    iteration: int

    def epochs(self, total: int) -> Iterator[int]: ...

    def batches(self, batches: Batches, count: int) -> Iterator[tuple[Array, Array]]: ...

    def log(self, loss: Any, correct: int, images: int, gradient_norm: float = 0.0) -> None: ...

    def log_later(self, found: Outcome, images: int) -> None: ...

    def end_epoch(self, learning_rate: float, held_out_accuracy: float) -> None: ...


def fit(
    run: TrainingRun,
    step: DataParallel | CapturedStep,
    opt: Any,
    batches: Callable[[int, int], Batches],
    evaluate: Callable[[], float],
    *,
    epochs: int,
    batches_per_epoch: int,
    lr: float,
    warmup: int = 0,
    label_smoothing: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
    average: optim.ModelEma | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Train from the run's position to its last epoch.

    Args:
        run: the parts of a `Run` are the model, `opt` and, if given, `average`.
        step: the model, with `loss=CountingLoss()`. A `CapturedStep` records AdamW's update too.
        opt: AdamW or SGD, or what `Ranks.optimizer` made of it; parameters of the model that it does not have are
            frozen.
        batches: (epoch, start) -> the batches (x, y) of an epoch, without the first `start`.
        evaluate: () -> the held-out accuracy, called after each epoch; the model then has the averaged weights.
        epochs: their total number.
        batches_per_epoch: their number.
        lr: peak of the learning rate, which rises to it linearly and then falls as half a cosine.
        warmup: the number of batches in which the learning rate rises.
        label_smoothing: share of each target that is spread over all classes.
        seed: of dropout and drop path.
        device: "cpu" or "gpu", where the model is.
        average: averaged weights, updated after each step.
        ranks: the processes of the run, with whose `optimizer` and `data_parallel` opt and step were made.

    Raises:
        ValueError: `step` with another loss.
        FloatingPointError: a loss that is not finite.
        SystemExit: Ctrl-C; the run is saved.
    """
    criterion = step.loss
    if not isinstance(criterion, CountingLoss):
        raise ValueError(f"the loss of `step` is {criterion!r}: build DataParallel with loss=CountingLoss()")
    ranks = Ranks() if ranks is None else ranks
    has_statistics = len(step.model.state()) > len(step.model.parameters())  # buffers, such as BatchNorm's
    frozen = [param for name, param in step.model.parameters().items() if name not in opt.params]
    whole = step if isinstance(step, CapturedStep) and isinstance(opt, optim.AdamW) else None
    for epoch in run.epochs(epochs):
        for x, y in run.batches(batches(epoch, run.position), batches_per_epoch):
            opt.lr = optim.warmup_cosine(run.iteration, epochs * batches_per_epoch, peak=lr, warmup=warmup)
            rng = noise_generator(seed, run.iteration)
            if whole is not None:  # one launch, for which the host does not wait
                x = to_device(x, device)
                found = whole.update(opt, x, y, rng, max_norm=1.0, average=average, label_smoothing=label_smoothing)
                run.log_later(found, len(x))
                continue
            opt.zero_grad()
            loss = step.loss_and_grad(to_device(x, device), y, rng, label_smoothing=label_smoothing)
            norm = ranks.clip_grad_norm(opt.params, 1.0)
            if isfinite(norm):  # else clip_grad_norm has cleared the gradients, and the step changes nothing
                opt.step()
            for param in frozen:
                param.grad = None  # opt.zero_grad() clears only the optimizer's parameters
            if has_statistics:
                nn.update_statistics(step.model)
            if average is not None:
                average.update()
            run.log(loss, criterion.take_correct(), len(x), norm)
        if average is not None:
            average.swap()
        held_out_accuracy = evaluate()
        if average is not None:
            average.swap()
        run.end_epoch(opt.lr, held_out_accuracy)
