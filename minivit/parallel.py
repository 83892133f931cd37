"""Data parallelism in threads: the batch is split into shards, and each core runs forward and backward of one shard.

NumPy releases Python's lock inside its loops and products, so threads share the elementwise work too, unlike the
threads of one BLAS call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.argument_checks import check_array
from minivit.device import array_module
from minivit.fast.blas_threads import limit_threads
from minivit.fast.freed_memory import keep_freed_memory
from minivit.fast.precision import current_precision
from minivit.fast.threads import at_most, in_threads, usable_cores
from minivit.fork import Lock, at_fork
from minivit.nn.counting import cost
from minivit.nn.layer import Layer, check_layer
from minivit.nn.parameter import Parameter
from minivit.protocol import Array, Rng, inference
from minivit.random import split_generator

Loss = Callable[..., Any]


# multiply-adds of a shard's forward pass, below which its fixed cost shows: 4 shards instead of 2
# cost 5 % of the time at 2.1e9 (the flagship), 6 shards 13 %; 4 shards cost 25 % at 2.3e8 (the small model)
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
        batch, dloss = _checked_batch(self.model, images, labels), float(dloss)
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


def _checked_batch(model: Any, images: Array, labels: Array) -> int:
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


class CapturedStep:
    """loss_and_grad(images, labels, rng) on a GPU as one CUDA graph: the kernels follow each other without the host.

    The first batch of each shape runs twice and is recorded; later ones are launched in one call. A model with a
    replaced head, other parameters or other weight arrays is recorded anew. The result is that of
    `DataParallel` with one shard to the last bit: dropout and drop path draw the same numbers from the same generator.
    The gradients are in the same memory after each call.

        step = parallel.CapturedStep(model)   # after minivit.to_device(model, "gpu")
        loss = step.loss_and_grad(images, labels, rng)
        opt.step()

    Args:
        model: on a GPU, without running statistics (BatchNorm).
        loss: `loss(logits, targets, **options) -> loss, back`; it is given targets (B, K), never class numbers.

    Raises:
        ValueError: for a model on the CPU, or with running statistics.
    """

    def __init__(self, model: Layer, loss: Loss = F.softmax_cross_entropy) -> None:
        check_layer("CapturedStep", model)
        self.model: Any = model
        self.loss = loss
        self._graphs: dict[Any, Any] = {}
        self._parts: list[Layer] = []
        self._params: list[Parameter] = []
        self._data: list[Array] = []
        self._renew()

    def __repr__(self) -> str:
        return f"CapturedStep({type(self.model).__name__}, graphs={len(self._graphs)})"

    def loss_and_grad(
        self, images: Array, labels: Array, rng: Rng = None, *, dloss: float = 1.0, **loss_options: Any
    ) -> Array:
        """The mean loss over the batch; adds dloss * its gradient to the model's `.grad`.

        Args:
            images: (B, C, H, W), on the GPU or the host.
            labels: class numbers (B,) on the host, or distributions (B, K).
            rng: a generator (training) or None.
            dloss: factor of the gradient.
            loss_options: passed to the loss, such as label_smoothing=0.1. They are recorded: other options start a new
                recording.

        Returns:
            the loss, of shape () on the GPU; `float(loss)` waits for it. The next call writes into the same memory.

        Raises:
            RuntimeError: naming the part of the step that cannot be captured.
        """
        _checked_batch(self.model, images, labels)
        self._renew()
        targets = self._targets(labels)
        key = (
            current_precision(),
            images.shape,
            targets.shape,
            rng is None,
            dloss,
            tuple(sorted(loss_options.items())),
        )
        (generator,) = split_generator(rng, 1)
        if key not in self._graphs:
            while len(self._graphs) >= _MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = self._record(images, targets, rng is not None, dloss, loss_options)
        graph = self._graphs[key]
        _, grads = graph.outputs
        for param, grad in zip(self._params, grads):
            if param.grad is grad and grad is not None:  # the launch writes into its memory
                param.grad = grad.copy()
        loss, _ = graph.launch((images, targets), generator)
        for param, grad in zip(self._params, grads):
            if grad is not None:
                param.accumulate(grad, fresh=True)
        return loss

    def _renew(self) -> None:
        """Forget the graphs of a model that has got other layers, parameters or weights: they have the old addresses.

        `__init__` refuses by this what no graph can be made of, and so does a step after the model was changed.
        """
        parts, params = list(_every_part(self.model)), list(self.model.parameters().values())
        data = [param.data for param in params]
        if _same(parts, self._parts) and _same(params, self._params) and _same(data, self._data):
            return
        if not params:
            raise ValueError("a model without parameters has no step to capture")
        if len(self.model.state()) > len(params):
            raise ValueError("a model with running statistics cannot be captured: use DataParallel")
        on_host = next((name for name, each in self.model.parameters().items() if array_module(each.data) is np), None)
        if on_host is not None:
            raise ValueError(
                f"a step is captured on a GPU, and {on_host} is not there: move the model by "
                'minivit.to_device(model, "gpu")'
            )
        self._graphs, self._parts, self._params, self._data = {}, parts, params, data

    def memory(self) -> int:
        """Bytes of GPU memory that the recorded steps hold: activations, gradients and inputs."""
        return sum(graph.memory() for graph in self._graphs.values())

    def _record(self, images: Array, targets: Array, noise: bool, dloss: float, options: dict[str, Any]) -> Any:
        from minivit.fast.cupy.capture import Draws, Graph

        draws: Any = Draws() if noise else None
        replica: Any = self.model.replica()
        params = list(replica.parameters().values())

        def run(images: Array, targets: Array) -> tuple[Array, list[Array | None]]:
            for param in params:
                param.grad = None
            logits, back = replica(images, draws)
            loss, back_loss = self.loss(logits, targets, **options)
            back(back_loss(dloss))
            return loss, [param.grad for param in params]

        return Graph(run, (images, targets), draws)

    def _targets(self, labels: Array) -> Array:
        """(B, K): class numbers as distributions, checked here, because the graph cannot check them."""
        if labels.dtype.kind not in "iu":
            return labels
        if array_module(labels) is not np:
            raise ValueError("class numbers on the GPU cannot be checked without waiting for it: give them on the host")
        classes = self.model.num_classes
        if labels.ndim != 1 or labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"labels must be (B,) numbers from 0 to {classes - 1}, got {labels.shape}: {labels[:8]}")
        return (labels[:, None] == np.arange(classes)).astype(self._params[0].data.dtype)


def _every_part(layer: Layer) -> Iterator[Layer]:
    """All layers of a tree, parents first."""
    yield layer
    for _, part in layer.parts():
        yield from _every_part(part)


def _same(found: Sequence[object], known: Sequence[object]) -> bool:
    """Whether both hold the same objects."""
    return len(found) == len(known) and all(a is b for a, b in zip(found, known))


_MOST_GRAPHS = 4  # each has separate memory; an epoch needs two, for full batches and the last one
