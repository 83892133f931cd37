"""Data parallelism in threads: the batch is split into shards, and each core runs forward and backward of one shard.

NumPy releases Python's lock inside its loops and products, so threads share the elementwise work too, unlike the
threads of one BLAS call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.argument_checks import check_array
from minivit.device import array_module
from minivit.fast.blas_threads import limit_threads
from minivit.fast.freed_memory import keep_freed_memory
from minivit.fast.threads import at_most, in_threads, usable_cores
from minivit.fork import Lock, at_fork
from minivit.nn.counting import cost
from minivit.nn.layer import Layer, check_layer
from minivit.protocol import Array, Rng, inference
from minivit.random import split_generator

Loss = Callable[..., Any]


# multiply-adds of a shard's forward pass, below which its fixed cost shows: 4 shards instead of 2
# cost 5% of the time at 2.1e9 (the flagship), 6 shards 13%; 4 shards cost 25% at 2.3e8 (the small model)
_WORTH_A_SHARD = 500_000_000


_adding = Lock()  # two objects may share a model; they add to its gradients one at a time


class DataParallel:
    """loss_and_grad(images, labels, rng) over shards of the batch, one thread for each.

    Every shard has a replica of the model that shares the parameters' data and owns its gradients; these are added to
    the model's `.grad` in the order of the shards, so a run repeats bitwise with the same number of shards
    and any number of threads.

    Args:
        model: the model; its `.data` is shared, its `.grad` receives the sums.
        threads: their number; the usable cores by default.
        shards: the number of parts of a batch; None is one for each thread, and more if that saves memory and shards
            stay large enough. More shards need less memory for activations, but each has its own gradients and some
            fixed cost.
        loss: `loss(logits, labels, **options) -> loss, back`, a mean over its shard.
    """

    def __init__(
        self,
        model: Layer,
        threads: int | None = None,
        shards: int | None = None,
        loss: Loss = F.softmax_cross_entropy,
    ) -> None:
        check_layer("DataParallel", model)
        self.threads = usable_cores() if threads is None else threads
        self.shards = shards
        if self.threads < 1:
            raise ValueError(f"threads={threads} must be at least 1")
        if shards is not None and shards < 1:
            raise ValueError(f"shards={shards} must be at least 1")
        self.model: Any = model
        self.loss = loss
        self._turn = Lock()  # the replicas allow one call at a time
        self._planned: dict[tuple[int, ...], int] = {}  # shards by the shape of a batch
        keep_freed_memory()
        self._make_replicas(self.shards or self.threads)
        _in_use.add(self)

    def __repr__(self) -> str:
        shards = "" if self.shards is None else f", shards={self.shards}"
        return f"DataParallel({type(self.model).__name__}, threads={self.threads}{shards})"

    def loss_and_grad(
        self, images: Array, labels: Array, rng: Rng = None, *, dloss: float = 1.0, **loss_options: Any
    ) -> float:
        """The mean loss over the batch; adds dloss * its gradient to the model's `.grad`.

        Args:
            images: (B, C, H, W).
            labels: (B,) or (B, K), as the loss takes them.
            rng: a generator (training) or None; each shard gets one derived from it and the shard's number.
            dloss: factor of the gradient, 1/n when n batches are accumulated.
            loss_options: passed to the loss, such as label_smoothing=0.1.

        Raises:
            any error of a shard; the model's gradients are then unchanged.
        """
        batch, dloss = checked_batch(self.model, images, labels), float(dloss)
        count = min(self._shards_for(images), batch)
        bounds = [batch * shard // count for shard in range(count + 1)]
        generators, here = split_generator(rng, count), self._shards_here(count)

        def run(shard: int) -> float:
            part = slice(bounds[shard], bounds[shard + 1])
            weight = (part.stop - part.start) / batch
            logits, back = self.replicas[shard - here.start](images[part], generators[shard])
            loss, back_loss = self.loss(logits, labels[part], **loss_options)
            back(back_loss(dloss * weight))
            return float(loss) * weight

        # one BLAS thread for each shard, even if one thread runs all shards: more would change the last bits
        with self._turn, limit_threads(1):
            self._prepare_replicas(len(here))
            try:
                losses = in_threads(run, here, self.threads)
                with _adding:
                    losses = self._add_shards(losses, here, count)
            except ValueError as error:
                raise (self._error_of_whole(images, labels, loss_options) if count > 1 else None) or error from None
            finally:
                self.forget_shards()
        return sum(losses)

    def _error_of_whole(self, images: Array, labels: Array, options: dict[str, Any]) -> ValueError | None:
        """Raise the errors of the batch, whose sizes the caller knows, instead of those of a shard."""
        try:
            with inference():
                logits, _ = self.replicas[0](images)
                self.loss(logits, labels, **options)
        except ValueError as error:
            return error
        return None

    def forget_shards(self) -> None:
        """Clear the gradients of the shards, after each step, and after another thread's step in a forked child."""
        for params in self._replica_params:
            for param in params:
                param.grad = None

    def _shards_for(self, images: Array) -> int:
        """The requested number of shards; else one for each thread, or the multiple of that with the least memory.

        With n shards, t threads hold t/n of the batch's activations, and n sets of gradients: the sum is least at
        n = sqrt(t * activations / gradients).
        """
        if self.shards or array_module(images) is not np or images.ndim != 4:
            return self.shards or self.threads
        if images.shape not in self._planned:
            self._planned[images.shape] = self._plan(images.shape)
        return self._planned[images.shape]

    def _plan(self, shape: tuple[int, ...]) -> int:
        try:
            _, macs, kept = cost(self.model, shape, every_token=True)
        except LookupError:  # a model with layers of unknown cost
            return self.threads
        leanest = (self.threads * kept / sum(param.size for param in self._params)) ** 0.5
        busy = macs / _WORTH_A_SHARD
        return self.threads * max(1, int(min(leanest, busy) / self.threads))

    def _make_replicas(self, count: int) -> None:
        self.replicas = [self.model.replica() for _ in range(count)]
        self._parts = [part for _, part in self.model.parts()]
        self._params = list(self.model.parameters().values())  # listed once, because walking the tree takes time
        self._replica_params = [list(replica.parameters().values()) for replica in self.replicas]

    def _prepare_replicas(self, count: int) -> None:
        """Make new replicas if the model has moved to another device or has a new head."""
        moved = any(ours.data is not theirs.data for ours, theirs in zip(self._params, self._replica_params[0]))
        if moved or count > len(self.replicas) or self._parts != [part for _, part in self.model.parts()]:
            self._make_replicas(max(count, len(self.replicas)))

    def _shards_here(self, count: int) -> range:
        """Those of a batch's `count` shards that this process computes: all."""
        return range(count)

    def _add_shards(self, losses: list[float], here: range, count: int) -> list[float]:
        """Add the gradients of the shards to the model's; returns the losses of all `count` shards.

        Shard after shard, always in the same order; the threads take the parameters in turn.
        """

        def add(first: int) -> None:
            for index in range(first, len(self._params), self.threads):
                for params in self._replica_params[:count]:
                    grad = params[index].grad
                    if grad is not None:
                        self._params[index].accumulate(grad, fresh=True)  # the replica releases it

        in_threads(add, range(self.threads), self.threads)
        return losses

    def predict(self, images: Array, batch_size: int = 256) -> Array:
        """The logits (B, K): `model.predict` on parts of at most `batch_size` images, with this object's threads."""
        with at_most(self.threads):
            return self.model.predict(images, batch_size)

    def saved_parts(self) -> dict[str, Any]:
        """What a run must save beside the model, to continue with the same bits: nothing."""
        return {}


def checked_batch(model: Any, images: Array, labels: Array) -> int:
    """The number of images, after checking images and labels."""
    check_array("loss_and_grad", "labels", labels)
    model.check_input(images)
    batch, count = len(images), len(labels) if labels.ndim else 1
    if batch == 0:
        raise ValueError("the batch is empty, so its mean loss is undefined: skip empty batches")
    if count != batch:
        raise ValueError(f"{batch} images but {count} labels: give each image its label")
    return batch


_in_use: weakref.WeakSet[DataParallel] = weakref.WeakSet()


def _forget_in_child() -> None:
    for step in list(_in_use):
        if not step._turn.is_mine:
            step.forget_shards()


at_fork(_forget_in_child)
