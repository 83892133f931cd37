"""`minivit.prepare(model)`: the model in a form for inference alone, computed once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Any, cast

import numpy as np

from minivit import functional as F, nn
from minivit.device import array_module, owner
from minivit.fast.blas_threads import limit_threads
from minivit.fast.freed_memory import keep_freed_memory
from minivit.fast.threads import in_threads, workers
from minivit.fork import Lock
from minivit.inference.encoder import Encoder
from minivit.inference.folding import copied
from minivit.inference.known import known, known_parts
from minivit.inference.maps import Stages
from minivit.inference.memory import Memory
from minivit.models import Model, Swin, ViT
from minivit.models.lora import has_lora, merge_lora
from minivit.models.model import WORTH_THREADS
from minivit.models.options import patch_grid
from minivit.models.swin import Stage
from minivit.protocol import Array, inference
from minivit.sizes import pair

Part = Encoder | Stages | list[nn.Layer]  # the layers run as they are

_TABLES = 0.05  # of the model's bytes, for the summed tables of a Swin's windows; others are made at each call
_IMAGES = 8  # of one core at a time, so that memory does not grow with the batch


def prepare(model: Model) -> Runner:
    """A form of the model for inference alone: what does not depend on the image is computed once, here.

    The logits are those of `model.predict` but for rounding. The runner holds copies: it does not follow a model that
    is trained or loaded afterwards, so prepare it again. Its weights take as much memory as the model's; a model that
    is not needed any more may be dropped.

    Args:
        model: a ViT, Swin or SwinV2 on the CPU, float32 or float64. Updates of low rank (`minivit.lora`) are merged.

    Raises:
        ValueError: for anything else, for a model on a GPU, and for a class with a `forward` of its own.

    What is folded, with the formulas: docs/inference.md.
    """
    if not isinstance(model, Model):
        raise ValueError(f"prepare takes a model, not a {type(model).__name__}: minivit.prepare(minivit.ViT(...))")
    name = type(model).__name__
    if type(model).forward not in (ViT.forward, Swin.forward) or type(model).predict is not Model.predict:
        raise ValueError(f"{name} computes its logits in a way of its own, which prepare cannot know: use predict")
    if any(array_module(each.data) is not np for each in model.state().values()):
        raise ValueError(f"{name} is on a GPU, and prepare is for the CPU: minivit.to_device(model, 'cpu') moves it")
    if has_lora(model):
        model = cast(Model, merge_lora(model.replica()))  # which leaves the given model as it is
    return Runner(model)


class Runner:
    """A model prepared for inference by `minivit.prepare`, which see.

    Attributes:
        config, num_classes, dtype: the model's.
    """

    def __init__(self, model: Model) -> None:
        self.config, self.num_classes, self.dtype = dict(model.config), model.num_classes, model.dtype
        self._parts = _parts(model)
        self._asked = _without_layers(model)
        self._turn = Lock()  # one call at a time: the buffers are its own
        self._memories: list[Memory] = []  # one for each thread
        height, width = pair(model.config["img_size"])
        self._work = nn.multiply_adds(model, (1, model.config["in_chans"], height, width)) / (height * width)
        size = sum(each.data.nbytes for each in model.state().values())
        for part in self._parts:
            if isinstance(part, Stages):
                part.keep(patch_grid(model.config), int(_TABLES * size))

    def predict(self, x: Array, batch_size: int | None = None) -> Array:
        """The logits (B, num_classes) of images (B, C, H, W), as of `model.predict`.

        All usable cores work: on images of their own, or, for fewer images than cores, on parts of each product.
        `OMP_NUM_THREADS` sets their number. Calls from several threads run one after the other.

        Args:
            batch_size: the number of images at a time; None runs all in one call.

        Raises:
            ValueError: for images of another dtype than the model's, or that the model refuses.
        """
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._asked.check_input(x)
        if x.dtype != self.dtype:  # the model takes half precision too
            raise ValueError(f"a prepared model computes in {self.dtype}, got {x.dtype}: x.astype('{self.dtype}')")
        with self._turn:
            if batch_size is None or batch_size >= len(x):
                return self._predict(x)
            starts = range(0, len(x), batch_size)
            return np.concatenate([self._predict(x[start : start + batch_size]) for start in starts])

    def predict_proba(self, x: Array, batch_size: int | None = None) -> Array:
        """The probability of each class (B, K): softmax of `predict`."""
        if not self.num_classes:
            raise ValueError("num_classes=0: a model without a head gives no probabilities")
        return F.softmax(self.predict(x, batch_size))[0]

    def _predict(self, x: Array) -> Array:
        if not x.size:
            with inference():
                return _layers([layer for part in self._parts if isinstance(part, list) for layer in part], x)
        threads = workers() if self._work * x[:, 0].size >= WORTH_THREADS else 1
        if threads > 1:
            keep_freed_memory()
        while len(self._memories) < threads:
            self._memories.append(Memory(self.dtype))
        if len(x) < threads or threads == 1:  # BLAS shares each product among the cores
            return self._run(self._memories[0], x)
        bounds = [len(x) * number // threads for number in range(threads + 1)]
        shards = [(memory, x[start:end]) for memory, start, end in zip(self._memories, bounds, bounds[1:])]
        with limit_threads(1):
            return np.concatenate(in_threads(lambda shard: self._run(*shard), shards, threads))

    def _run(self, memory: Memory, x: Array) -> Array:
        """Images from the first layer to the last, a few at a time."""
        logits = []
        for at in range(0, len(x), _IMAGES):
            y = x[at : at + _IMAGES]
            with inference():  # of this thread: GELU then needs no slope
                for part in self._parts:
                    y = _layers(part, y) if isinstance(part, list) else part.run(memory, y)
            logits.append(y)
        return np.concatenate(logits)

    @property
    def nbytes(self) -> int:
        """The bytes of its weights and tables, without the buffers of a call."""
        return sum(array.nbytes for array in _arrays(self._parts, set()))

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "a prepared model has no backward pass: call runner.predict(x); to train, call the model itself"
        )

    def __getattr__(self, name: str) -> Any:
        if hasattr(Model, name):
            raise AttributeError(
                f"a prepared model has no {name!r}: it is for predict and predict_proba alone, and holds copies of the "
                "weights; change the model, and prepare it again"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"Runner({type(self._asked).__name__}, {self.num_classes} classes, {self.nbytes / 2**20:.1f} MiB)"


def _parts(model: Model) -> list[Part]:
    """The model's layers in running order, those of a kind together: blocks, stages, and the others as copies."""
    parts: list[Part] = []
    steps = [step.layer if isinstance(step, nn.Recompute) else step for step in model.steps()]
    for kind, group in groupby(steps, _kind):
        layers: list[Any] = list(group)
        prepared = Encoder if kind == "block" else Stages if kind == "stage" else _copies
        parts.append(prepared(layers))
    return parts


def _kind(layer: Any) -> str:
    """ "block" or "stage" where its formula is the one of block.py and maps.py, else "as it is"."""
    if known(layer, nn.Block) and known(layer.attn, nn.Attention) and known_parts(layer):
        return "block"
    if type(layer) is Stage and all(_in_windows(block) for block in layer.blocks):
        return "stage"
    return "as it is"


def _in_windows(block: Any) -> bool:
    if not (known(block, nn.Block) and known(block.attn, nn.ShiftedWindows) and known_parts(block)):
        return False
    attention = block.attn.attention
    # with scores that are cosines a constant in k counts, so no norm may be folded into it
    cosine = known(attention, nn.CosineWindowAttention) and block.post_norm
    return cosine or known(attention, nn.WindowAttention)


def _copies(layers: list[nn.Layer]) -> list[nn.Layer]:
    return [copied(layer) for layer in layers]


def _layers(layers: list[nn.Layer], x: Array) -> Array:
    for layer in layers:
        x, _ = layer(x)
    return x


def _without_layers(model: Model) -> Model:
    """The model without its layers, which checks inputs as the model does."""
    twin: Model = object.__new__(type(model))
    vars(twin).update(config=dict(model.config), num_classes=model.num_classes, dtype=model.dtype)
    return twin


def _arrays(value: Any, seen: set[int]) -> Iterator[Array]:
    """The arrays that hold the memory of an object: of its attributes, their items, and so on, each once."""
    if isinstance(value, np.ndarray):
        value = owner(value)
        if id(value) not in seen:
            seen.add(id(value))
            yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _arrays(each, seen)
    elif type(value).__module__.startswith("minivit"):
        for each in vars(value).values():
            yield from _arrays(each, seen)
