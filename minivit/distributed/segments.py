"""The trained parameters in one flat buffer, and its segments: each rank sums, and updates, one of them.

A segment consists of whole parameters, because the norm of a gradient is one product for each parameter, whose last
bits depend on its length.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivit.device import array_module
from minivit.optim import Params
from minivit.protocol import Array

_ALIGNED = 64  # bytes: each parameter begins where a vector register's load is fast


class Segments:
    """Where each parameter lies in the flat buffer, and which rank owns it.

    Attributes:
        names: of the parameters, in the order of the buffer.
        parameters: the same, as `Parameter`.
        spans: the slice of each parameter in the buffer.
        bounds: (R + 1,) numbers; rank r owns the elements bounds[r] ... bounds[r + 1] - 1.
        owned: for each rank the range of its parameters.
        size: of the buffer, in elements.
        dtype: of all parameters.
    """

    def __init__(self, params: Params, ranks: int) -> None:
        self.names, self.parameters = list(params), list(params.values())
        self.dtype = self.parameters[0].data.dtype
        step = max(1, _ALIGNED // self.dtype.itemsize)
        starts = [0]
        for param in self.parameters:
            starts.append(starts[-1] + -(-param.size // step) * step)
        self.size = starts[-1]
        self.spans = [slice(start, start + param.size) for start, param in zip(starts, self.parameters)]
        cuts = [_nearest(starts, self.size * rank / ranks) for rank in range(ranks + 1)]
        self.bounds = [starts[cut] for cut in cuts]
        self.owned = [range(first, last) for first, last in zip(cuts, cuts[1:])]

    def gather(self) -> Array:
        """A flat buffer (size,) with the parameters' values, which becomes their memory."""
        flat: Array = array_module(self.parameters[0].data).zeros(self.size, self.dtype)
        for param, span in zip(self.parameters, self.spans):
            view = flat[span].reshape(param.shape)
            view[...] = param.data
            param.swap(view)
        return flat


def _nearest(starts: Sequence[int], wanted: float) -> int:
    return min(range(len(starts)), key=lambda index: abs(starts[index] - wanted))
