"""A training step on a GPU that is recorded once and launched as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import isfinite
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.device import array_module
from minivit.fast.half import activation_dtype
from minivit.fast.precision import current_precision
from minivit.nn import LoRALinear
from minivit.nn.layer import Layer, check_layer
from minivit.nn.parameter import Parameter
from minivit.optim import LossScale, ModelEma, together
from minivit.parallel.data_parallel import Loss, checked_batch
from minivit.parallel.recorded_update import NOTHING, Outcome, RecordedUpdate
from minivit.protocol import Array, Rng
from minivit.random import split_generator

_MOST_GRAPHS = 6  # each has separate memory; training and evaluation need two each, for full batches and the last one


class CapturedStep:
    """loss_and_grad(images, labels, rng) on a GPU as one CUDA graph: the kernels follow each other without the host.

    The first batch of each shape runs twice and is recorded; later ones are launched in one call. A model with a
    replaced head, other parameters or other weight arrays is recorded again. The result is that of
    `DataParallel` with one shard to the last bit: dropout and drop path draw the same numbers from the same generator.
    The gradients are in the same memory after each call.

        step = parallel.CapturedStep(model)   # after minivit.to_device(model, "gpu")
        loss = step.loss_and_grad(images, labels, rng)
        opt.step()

    `update` records clipping, AdamW and averaged weights too, and never waits for the GPU:

        found = step.update(opt, images, labels, rng, max_norm=1.0)

    Args:
        model: on a GPU, without running statistics (BatchNorm).
        loss: `loss(logits, targets, **options) -> loss, back`; it is given targets (B, K), never class numbers. A
            `train.CountingLoss` receives how many predictions were correct.
        precision: of activations, "float32", "bfloat16" or "float16"; see minivit/fast/half.py.

    Attributes:
        scale: the `optim.LossScale` in float16, which may be replaced by another, else None.

    Raises:
        ValueError: for a model on the CPU, or with running statistics, or another precision.
        RuntimeError: for bfloat16 without the package ml_dtypes, or with a CuPy before 14.
    """

    threads = 1  # of the host

    def __init__(self, model: Layer, loss: Loss = F.softmax_cross_entropy, precision: str = "float32") -> None:
        check_layer("CapturedStep", model)
        self.model: Any = model
        self.loss: Any = loss
        self.dtype = activation_dtype(precision)
        self.scale = LossScale() if precision == "float16" else None
        self._graphs: dict[Any, Any] = {}
        self._update: RecordedUpdate | None = None
        self._parts: list[Layer] = []
        self._params: list[Parameter] = []
        self._data: list[Array] = []
        self._renew()
        try:
            array_module(self._data[0]).zeros(1, self.dtype)
        except (TypeError, ValueError) as error:
            raise RuntimeError(f"this CuPy has no {precision}: install CuPy 14 or later, or use 'float16'") from error

    def __repr__(self) -> str:
        precision = "" if self.dtype == np.float32 else f", precision={self.dtype.name!r}"
        return f"CapturedStep({type(self.model).__name__}{precision}, graphs={len(self._graphs)})"

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
        checked_batch(self.model, images, labels)
        self._renew()
        inputs: tuple[Array, ...] = (images, self._targets(labels))
        if self.scale is not None:
            inputs += (np.array(dloss * self.scale.value, np.float32),)
        options = tuple(sorted(loss_options.items()))
        key = (*_kind(inputs), rng is None, dloss, options)
        (generator,) = split_generator(rng, 1)
        graph = self._graph(key, lambda: self._record(inputs, rng is not None, dloss, loss_options))
        _, _, grads = graph.outputs
        for param, grad in zip(self._params, grads):
            if param.grad is grad and grad is not None:  # the launch writes into its memory
                param.grad = grad.copy()
        loss, correct, _ = graph.launch(inputs, generator)
        if self.scale is not None:
            self._unscale(self.scale, [grad for grad in grads if grad is not None])
        for param, grad in zip(self._params, grads):
            if grad is not None:
                param.accumulate(grad, fresh=True)
        if correct is not None:
            self.loss.add_correct(int(correct))
        return loss

    def update(
        self,
        opt: Any,
        images: Array,
        labels: Array,
        rng: Rng = None,
        *,
        max_norm: float | None = None,
        average: ModelEma | None = None,
        **loss_options: Any,
    ) -> Outcome:
        """One training step in one launch: gradients, `clip_grad_norm`, `opt.step()` and `average.update()`.

        A step whose gradient is not finite changes no weight and is not counted in `opt.steps`. In float16 the GPU
        adapts `scale` too. `.grad` stays as it is.

        Args:
            opt: an `optim.AdamW` of this model's parameters, or of some of them; `opt.lr` may be set before each step.
            images, labels, rng, loss_options: as in `loss_and_grad`.
            max_norm: of the gradients, as in `optim.clip_grad_norm`; None does not clip.
            average: averaged weights of this model.

        Returns:
            loss, norm of the gradient before clipping, and correct predictions, on the GPU.

        Raises:
            RuntimeError: naming the part of the step that cannot be captured.
            ValueError: for another optimizer, or one of another model.
        """
        checked_batch(self.model, images, labels)
        self._renew()
        update = self._update
        if update is None or not update.is_of(opt, max_norm, average, self.scale):
            if self.scale is not None:
                self.scale.move_to(self._data[0])
            update = RecordedUpdate(self._params, opt, max_norm, average, self.scale)
            self._graphs = {key: graph for key, graph in self._graphs.items() if key[0] != "update"}
            self._update = update
        inputs = (images, self._targets(labels))
        key = ("update", *_kind(inputs), rng is None, tuple(sorted(loss_options.items())))
        (generator,) = split_generator(rng, 1)
        graph = self._graph(key, lambda: self._record((*inputs, NOTHING), rng is not None, 1.0, loss_options, update))
        found, _ = graph.launch((*inputs, update.settings()), generator)
        found = found.copy()  # the next launch writes into its memory
        return Outcome(*(found[place] for place in range(3)))

    def predict(self, images: Array, batch_size: int = 256) -> Array:
        """The logits (B, K): `model.predict` in this step's precision, a graph for each part of `batch_size` images.

        Args:
            images: (B, C, H, W), on the GPU or the host.
            batch_size: the number of images at a time, at least 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model.check_input(images)
        self._renew()
        starts = range(0, len(images), batch_size) or (0,)  # no images: one empty part
        parts = [self._logits(images[start : start + batch_size]) for start in starts]
        xp = array_module(self._data[0])
        return xp.concatenate(parts) if len(parts) != 1 else parts[0]

    def _logits(self, images: Array) -> Array:
        from minivit.fast.cupy.capture import Graph

        def run(images: Array) -> Array:
            logits: Array = self.model.predict(images.astype(self.dtype, copy=False))
            return logits

        key = ("predict", *_kind((images,)))
        logits: Array = self._graph(key, lambda: Graph(run, (images,), None)).launch((images,), None)
        return logits.copy()  # the next launch writes into the same memory

    def saved_parts(self) -> dict[str, Any]:
        """What a run must save beside the model, to continue with the same bits: the scale of float16, by name."""
        return {} if self.scale is None else {"scale": self.scale}

    def _unscale(self, scale: LossScale, grads: list[Array]) -> None:
        """Divide the gradients by the scale, and adapt it; this waits for the GPU."""
        together.scale(*grads, factor=1 / scale.value)
        scale.update(isfinite(float(together.squared_norm(*grads))))

    def _graph(self, key: Any, record: Callable[[], Any]) -> Any:
        """The graph of this key; the oldest goes where there are too many."""
        if key not in self._graphs:
            while len(self._graphs) >= _MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[key] = record()
        return self._graphs[key]

    def _renew(self) -> None:
        """Forget the graphs of a model that has got other layers, parameters or weights: they have the old addresses.

        `__init__` refuses by this what no graph can be made of, and so does a step after the model was changed.
        """
        parts, params = list(_every_part(self.model)), list(self.model.parameters().values())
        state = self.model.state()
        data = [each.data for each in state.values()]
        if _same(parts, self._parts) and _same(params, self._params) and _same(data, self._data):
            return
        if not params:
            raise ValueError("a model without parameters has no step to capture")
        constant = sum(isinstance(part, LoRALinear) for part in parts)  # each has a weight that no step changes
        if len(state) > len(params) + constant:
            raise ValueError("a model with running statistics cannot be captured: use DataParallel")
        on_host = next((name for name, each in state.items() if array_module(each.data) is np), None)
        if on_host is not None:
            raise ValueError(
                f"a step is captured on a GPU, and {on_host} is not there: move the model by "
                'minivit.to_device(model, "gpu")'
            )
        self._graphs, self._parts, self._params, self._data, self._update = {}, parts, params, data, None

    def memory(self) -> int:
        """Bytes of GPU memory that the recorded steps hold: activations, gradients and inputs."""
        return sum(graph.memory() for graph in self._graphs.values())

    def _record(
        self,
        inputs: tuple[Array, ...],
        noise: bool,
        dloss: float,
        options: dict[str, Any],
        update: RecordedUpdate | None = None,
    ) -> Any:
        """The graph of forward and backward pass, and of an update; it gets dloss or settings of the update last."""
        from minivit.fast.cupy.capture import Draws, Graph

        draws: Any = Draws() if noise else None
        replica: Any = self.model.replica()
        params = list(replica.parameters().values())
        counts = hasattr(self.loss, "add_correct")
        loss_function = self.loss.uncounted if counts else self.loss

        def run(images: Array, targets: Array, last: Any = dloss) -> Any:
            for param in params:
                param.grad = None
            logits, back = replica(images.astype(self.dtype, copy=False), draws)
            loss, back_loss = loss_function(logits, targets, **options)
            correct = (logits.argmax(axis=1) == targets.argmax(axis=1)).sum() if counts else None
            back(back_loss(update.dloss() if update else last))
            grads = [param.grad for param in params]
            # the kernels of the update know the gradients' addresses, so the graph keeps them too
            return (update(loss, correct, grads, last), grads) if update else (loss, correct, grads)

        return Graph(run, inputs, draws)

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


def _kind(inputs: tuple[Array, ...]) -> tuple[Any, ...]:
    """What needs a recording of its own: a precision of products, and shapes and dtypes of arrays."""
    return (current_precision(), *((array.shape, array.dtype) for array in inputs))


def _every_part(layer: Layer) -> Iterator[Layer]:
    """All layers of a tree, parents first."""
    yield layer
    for _, part in layer.parts():
        yield from _every_part(part)


def _same(found: Sequence[object], known: Sequence[object]) -> bool:
    """Whether both hold the same objects."""
    return len(found) == len(known) and all(a is b for a, b in zip(found, known))
