"""The forward and backward pass of a batch whose shards several ranks compute."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from minivit.device import array_module, to_numpy
from minivit.distributed.messages import Messages
from minivit.distributed.segments import Segments
from minivit.distributed.tree import Span, add_up, shards_of, subtrees
from minivit.fast.blas_threads import limit_threads
from minivit.fast.threads import at_most, in_threads
from minivit.nn.layer import Layer
from minivit.nn.parameter import Parameter
from minivit.parallel import DataParallel, Loss
from minivit.protocol import Array, Rng


class ShardedStep(DataParallel):
    """`DataParallel` over all ranks: the same loss on each, and the gradient's sum on the rank that owns a parameter.

    A batch of B images is cut into min(S, B) shards; shard s has a generator of its own, a function of the caller's
    generator and s. Each rank computes some of the shards, in threads, and adds the gradients of the largest subtrees
    that it has whole (see `tree`). Then each rank receives those sums for its own segment of the parameters, and adds
    them in the order of the tree. So the result does not depend on the number of ranks, nor on that of threads. On GPUs
    a rank computes its shards one after the other; where `ranks.exact` is false, NCCL adds the ranks' sums in an order
    of its own.

    Args:
        ranks: with a number of shards.
        model: without running statistics (BatchNorm), on the CPU, or on the GPU of this rank.
        opt: its parameters are trained, the gradients of others are dropped; see `Ranks.optimizer`.
        threads: of this rank.
        loss: see `DataParallel`.

    Raises:
        ValueError: a model with running statistics, which would differ between ranks.
    """

    def __init__(self, ranks: Messages, model: Layer, opt: Any, threads: int, loss: Loss) -> None:
        if len(model.state()) > len(model.parameters()):
            raise ValueError(
                "a model with running statistics (BatchNorm) cannot be trained by shards: each would have statistics "
                "of its own. Train it without --shards, in one process"
            )
        super().__init__(model, threads, ranks.shards, loss)
        self.ranks = ranks
        self.loss: Any = loss
        self._segments: Segments = getattr(opt, "segments", None) or Segments(opt.params, 1)
        self._places: list[int] = []  # of the segments' parameters among the model's

    def loss_and_grad(
        self, images: Array, labels: Array, rng: Rng = None, *, dloss: float = 1.0, **loss_options: Any
    ) -> float:
        """As of `DataParallel`; images and labels are the whole batch, the same on each rank, and so is `rng`."""
        earlier = self.loss.take_correct() if hasattr(self.loss, "take_correct") else 0  # of all ranks already
        loss = super().loss_and_grad(images, labels, rng, dloss=dloss, **loss_options)
        if earlier:
            self.loss.add_correct(earlier)
        self.ranks.under_way()
        return loss

    def _shards_here(self, count: int) -> range:
        return shards_of(self.ranks.rank, self.ranks.size, count)

    def _add_shards(self, losses: list[float], here: range, count: int) -> list[float]:
        place = {id(param): index for index, param in enumerate(self._params)}
        self._places = [place[id(param)] for param in self._segments.parameters]
        present = [any(params[index].grad is not None for params in self._replica_params) for index in self._places]
        counts = hasattr(self.loss, "take_correct")  # `train.CountingLoss`
        said = self.ranks.gather((losses, self.loss.take_correct() if counts else 0, np.packbits(present).tobytes()))
        if counts:
            self.loss.add_correct(sum(correct for _, correct, _ in said))
        flags = [np.unpackbits(np.frombuffer(bits, np.uint8)) for _, _, bits in said]
        self._sum(here, count, np.any(flags, axis=0))
        return [loss for part, _, _ in said for loss in part]

    def _sum(self, here: range, count: int, present: Array) -> None:
        """The gradients of this rank's segment, added in the order of the tree.

        Args:
            here: this rank's shards.
            count: of all shards.
            present: which of the parameters have a gradient on any rank.
        """
        segments, ranks = self._segments, self.ranks
        if ranks.exact:
            self._accumulate(self._sum_in_tree(here, count), present)
            return
        flat = self._subtree((here.start, here.stop), here)
        ranks.add_all(flat)
        self._accumulate(flat[segments.bounds[ranks.rank] : segments.bounds[ranks.rank + 1]], present)

    def _sum_in_tree(self, here: range, count: int) -> Array:
        """The sum of all shards over this rank's segment of the flat buffer."""
        segments, ranks = self._segments, self.ranks
        sums: dict[Span, Array] = {span: self._subtree(span, here) for span in subtrees(here, count)}
        mine = slice(segments.bounds[ranks.rank], segments.bounds[ranks.rank + 1])
        found = {span: flat[mine] for span, flat in sums.items()}
        outgoing: list[list[Array]] = [[] for _ in range(ranks.size)]
        incoming: list[list[Array]] = [[] for _ in range(ranks.size)]
        for other in range(ranks.size):
            if other != ranks.rank:
                start, end = segments.bounds[other : other + 2]
                outgoing[other] = [flat[start:end] for flat in sums.values()]
                for span in subtrees(shards_of(other, ranks.size, count), count):
                    found[span] = self._xp().empty(mine.stop - mine.start, segments.dtype)
                    incoming[other].append(found[span])
        ranks.exchange(outgoing, incoming)
        return add_up(0, count, lambda a, b: found.get((a, b)), operator.iadd)

    def _accumulate(self, total: Array, present: Array) -> None:
        """Add this rank's segment of the summed gradients to those of its parameters."""
        segments, first = self._segments, self._segments.bounds[self.ranks.rank]
        for index in segments.owned[self.ranks.rank]:
            if present[index]:
                param, place = segments.parameters[index], segments.spans[index]
                grad = total[place.start - first : place.stop - first].reshape(param.shape)
                param.accumulate(grad, fresh=True)

    def _subtree(self, span: Span, here: range) -> Array:
        """The sum of a subtree that this rank has whole, as a flat buffer; the threads take the parameters in turn."""
        segments = self._segments
        flat: Array = self._xp().zeros(segments.size, segments.dtype)

        def grad_of(shard: int, index: int) -> Array:
            param: Parameter = self._replica_params[shard - here.start][self._places[index]]
            return self._xp().zeros_like(param.data) if param.grad is None else param.grad

        def add(first: int) -> None:
            for index in range(first, len(segments.parameters), self.threads):
                leaf = lambda a, b: grad_of(a, index) if b == a + 1 else None  # noqa: B023, E731
                grad = add_up(*span, leaf, operator.iadd)
                flat[segments.spans[index]] = grad.reshape(-1)

        in_threads(add, range(self.threads), self.threads)
        return flat

    def predict(self, images: Array, batch_size: int = 256) -> Array:
        """The logits (B, K) on each rank: at most `batch_size` images at a time, cut into the shards of a batch."""
        logits = [self._predict(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
        return array_module(images).concatenate(logits) if logits else self.model.predict(images)

    def _predict(self, images: Array) -> Array:
        count = min(self.ranks.shards or 1, len(images))
        bounds = [len(images) * shard // count for shard in range(count + 1)]

        def run(shard: int) -> Array:
            with at_most(1):
                logits: Array = self.model.predict(images[bounds[shard] : bounds[shard + 1]])
                return logits

        with limit_threads(1):
            here = in_threads(run, self._shards_here(count), self.threads)
            here = [to_numpy(part) for part in here]
        whole = np.concatenate([part for parts in self.ranks.gather(here) for part in parts])
        moved: Array = array_module(images).asarray(whole)
        return moved

    def _xp(self) -> Any:
        return array_module(self._segments.parameters[0].data)
