"""The base of all models: a chain of layers from images to logits, and inference without a backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minivit import functional as F
from minivit.argument_checks import check_images
from minivit.device import array_module
from minivit.fast.blas_threads import limit_threads
from minivit.fast.freed_memory import keep_freed_memory
from minivit.fast.threads import in_threads, workers
from minivit.models.intermediates import forward_intermediates
from minivit.nn import multiply_adds
from minivit.nn.layer import Chain, Layer
from minivit.protocol import Array, Back, Rng, inference
from minivit.random import as_generator

HEAD = ("head_drop", "head")  # the attributes after the pooled features
WORTH_THREADS = 20_000_000  # multiply-adds: below, a millisecond's work, threads cost as much as they gain
# multiply-adds of a thread at a time, four images of ViT-B/16: with one at a time its products take 14% longer
_MOST_WORK = 72_000_000_000


class Model(Chain):
    """A chain of layers from images (B, C, H, W) to logits (B, num_classes).

    Attributes:
        config: the constructor's arguments, as plain numbers and strings; `type(model)(**config)` builds a model alike.
        num_classes: K, 0 for a model that returns pooled features.
    """

    config: dict[str, Any]
    num_classes: int
    options: type[Any]  # the dataclass of the constructor's arguments

    def check_input(self, x: Array) -> None:
        """Refuse an input that is not a batch of images of the model's dtype and channels."""
        super().check_input(x)
        if "in_chans" in getattr(self, "config", {}):
            check_images(type(self).__name__, x, self.config["in_chans"])

    def body(self) -> list[Layer]:
        """The layers from the images to the pooled features (B, D)."""
        return [part for name, part in self.parts() if name not in HEAD]

    def before_pooling(self) -> list[Layer]:
        """The layers from the images to the features that are pooled: tokens (B, T, D) or a map (B, H, W, D)."""
        names = [name for name, _ in self.parts()]
        return self.steps()[: names.index("pool")]

    def reset_classifier(self, num_classes: int, *, seed: Any = 0) -> None:
        """Replace the head by a new one, initialized as the model's class does; timm's name.

        `config` and `num_classes` change with it, also in files. Build optimizers afterwards: they hold the old head.

        Args:
            num_classes: K; 0 removes the head, so that the model returns pooled features (B, D).
            seed: of the new weights, an int or a generator.
        """
        options = self.options(**{**self.config, "num_classes": num_classes})  # refuses an invalid number of classes
        xp = array_module(next(iter(self.parameters().values())).data)
        self.set_head(options, as_generator(seed))
        for name, part in self.parts():
            if name in HEAD:
                part.move_to(xp.asarray)
        self.num_classes = self.config["num_classes"] = num_classes

    def set_head(self, o: Any, rng: Rng) -> None:
        """Set the parts of the model after the pooled features from the options; each class defines its own."""
        raise TypeError(f"{type(self).__name__} must define set_head(self, o, rng), to build its head")

    def predict(self, x: Array, batch_size: int | None = None) -> Array:
        """The logits (B, num_classes) of images (B, C, H, W), for inference: no randomness, and nothing kept.

        It is the forward pass on a few images at a time, with each `back` dropped immediately. Large inputs use
        all usable cores: each works on separate images, or, for a single image, on parts of each matrix
        product. `OMP_NUM_THREADS` sets their number.

        Args:
            batch_size: the number of images at a time; None runs all in one call.
        """
        return self._infer(self.steps(), x, batch_size)

    def features(self, x: Array, batch_size: int | None = None) -> Array:
        """The pooled features (B, D) that the head reads, computed like `predict`."""
        return self._infer(self.body(), x, batch_size)

    def forward_features(self, x: Array, batch_size: int | None = None) -> Array:
        """The features before pooling, computed like `predict`, without a backward function; timm's name.

        A ViT gives the tokens (B, T, D) after its last norm, prefix tokens first; with the norm after the pooling
        (`fc_norm`), the tokens after the last block. A Swin gives the map (B, H, W, D) after its last norm.
        """
        return self._infer(self.before_pooling(), x, batch_size)

    def forward_intermediates(
        self,
        x: Array,
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
        stop_early: bool = False,
        rng: Rng = None,
    ) -> tuple[Any, Back]:
        """The maps after chosen blocks, of a Swin after chosen stages, and their backward pass; timm's name.

        Args:
            x: images (B, C, H, W).
            indices: None for all blocks, n for the last n, or their numbers; negative ones count from the end.
            norm: apply the last norm to each map; a Swin's fits its last stage alone. Without a norm before the
                pooling (`fc_norm`) there is none to apply.
            intermediates_only: leave out the final features.
            return_prefix_tokens: give each map as a pair with the prefix tokens (B, p, D) of a model that has some.
            stop_early: skip the blocks after the last chosen one; the final features are then those behind it.
            rng: a generator for training, or None for inference.

        Returns:
            `features, back`. The features are `(final, maps)`, or `maps` alone: a list of maps (B, D, gh, gw) in the
            order of the blocks. `final` is as of `forward_features`. `back` takes a gradient for each returned array
            in order, final, map, prefix tokens, map, ..., or None for one without; it returns dx, and adds the
            gradients of the parameters. Blocks that no gradient reaches are skipped.

        Raises:
            ValueError: for indices out of range.
        """
        return forward_intermediates(
            self,
            x,
            indices,
            norm=norm,
            intermediates_only=intermediates_only,
            return_prefix_tokens=return_prefix_tokens,
            stop_early=stop_early,
            rng=rng,
        )

    def predict_proba(self, x: Array, batch_size: int | None = None) -> Array:
        """The probability of each class (B, K): softmax of `predict`."""
        if not self.num_classes:
            raise ValueError("num_classes=0: a model without a head gives no probabilities, use features(x)")
        return F.softmax(self.predict(x, batch_size))[0]

    def _infer(self, layers: list[Layer], x: Array, batch_size: int | None) -> Array:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.check_input(x)
        if batch_size is None or batch_size >= len(x):
            return self._shared(layers, x)
        parts = [self._shared(layers, x[start : start + batch_size]) for start in range(0, len(x), batch_size)]
        return array_module(x).concatenate(parts)

    def _shared(self, layers: list[Layer], x: Array) -> Array:
        """The layers' output, computed by all usable cores if that is faster."""
        threads, xp = workers(), array_module(x)
        if xp is not np or x.ndim != 4 or not x.size:
            return _run(layers, x)
        try:
            work = multiply_adds(self, x.shape)
        except LookupError:  # a layer of unknown cost: assume that it is worth all cores
            work = WORTH_THREADS
        # images at a time, so that the memory of a layer does not grow with the batch
        few = max(1, _MOST_WORK * len(x) // max(1, work))
        if threads == 1 or work < WORTH_THREADS:
            return _in_parts(layers, x, few)
        keep_freed_memory()
        if len(x) < threads:  # each product uses all cores
            return _in_parts(layers, x, few)
        bounds = [len(x) * number // threads for number in range(threads + 1)]
        shards = [x[start:end] for start, end in zip(bounds, bounds[1:])]
        with limit_threads(1):
            return xp.concatenate(in_threads(lambda shard: _in_parts(layers, shard, few), shards, threads))


def _in_parts(layers: list[Layer], x: Array, count: int) -> Array:
    parts = [_run(layers, x[start : start + count]) for start in range(0, len(x), count)]
    return parts[0] if len(parts) == 1 else array_module(x).concatenate(parts)


def _run(layers: list[Layer], x: Array) -> Array:
    with inference():
        for layer in layers:
            x, _ = layer(x)
    return x
