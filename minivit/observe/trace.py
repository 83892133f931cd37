"""One step of training, part by part: shapes, norms, gradients, and the memory kept for the backward pass.

A watched replica of the model runs. Its numbers are those of an untraced run to the last bit, and the given model's
gradients do not change.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from math import hypot
from typing import Any

from minivit import functional as F
from minivit.device import array_module, to_numpy
from minivit.nn import Chain, Layer
from minivit.nn.kept_memory import Kept
from minivit.observe.formulas import formula
from minivit.observe.hooks import Location, Run, watched
from minivit.protocol import Array, Back, Rng, once
from minivit.tables import Cells, aligned, html

_WIDEST = 120  # characters of a table
_FORWARD = ("part", "layer", "in", "out", "|y|", "kept KiB", "formula")
_BACKWARD = ("part", "layer", "|dy|", "|dx|", "parameters", "|dparameters|")


@dataclass
class Row:
    """One call of one part. Norms are Euclidean, over all elements.

    Attributes:
        name: dotted, as its parameters: "blocks.0.attn.qkv"; "" is the model itself.
        label: the last part of the name.
        kind: of layer.
        formula: its formula, in a line of text.
        depth: 0 for the model, 1 for its parts, ...
        chain: whether it only calls its parts in turn, without its own arithmetic.
        shape_in, shape_out: of x and y; the gradients dx and dy have the same.
        norm_x, norm_y: of the activations.
        norm_dy, norm_dx: of the gradients; None where there is none, such as the dx of an Embedding.
        norm_dparameters: of the gradients of all its parameters and its parts'; None if it has none. A part that is
            used several times has the sum of all.
        parameters: the number of learned numbers.
        kept: bytes that its back holds after the forward pass, including its parts'. A block of memory that several
            parts hold counts for the first of them.
        parts: the calls made within this one.
    """

    name: str
    label: str
    kind: str
    formula: str
    depth: int
    chain: bool = False
    shape_in: tuple[int, ...] = ()
    shape_out: tuple[int, ...] = ()
    norm_x: float = 0.0
    norm_y: float = 0.0
    norm_dy: float | None = None
    norm_dx: float | None = None
    norm_dparameters: float | None = None
    parameters: int = 0
    kept: int = 0
    parts: list[Row] = field(default_factory=list, repr=False)


@dataclass(repr=False)
class Trace:
    """The trace of a step.

    Attributes:
        rows: in the order in which the parts are called, each before its own parts; the loss last.
        backward: the same rows in the order in which their backs run, the loss first.
        loss: the loss.
        logits: the model's output.
        gradients: dLoss/dparameter by name, for the parameters that have one.
        dx: dLoss/dx, None if the first layer returns none.
    """

    rows: list[Row]
    backward: list[Row]
    loss: float
    logits: Array
    gradients: dict[str, Array]
    dx: Array | None

    def __getitem__(self, name: str) -> Row:
        """The first row of a name."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(
            f"no part {name!r} ran; the parts are {', '.join(row.name or '(the model)' for row in self.rows)}"
        )

    @property
    def kept(self) -> int:
        """Bytes held for the backward pass by the model and the loss, when the forward pass has ended."""
        return sum(row.kept for row in self.rows if row.depth == 0)

    def table(self, depth: int | None = None) -> str:
        """Both passes as text, down to parts of this depth (None: all), in lines of at most 120 characters."""
        lines: list[str] = []
        for title, head, rows, left in self._tables(depth):
            lines += [title, *_table(head, rows, left), ""]
        return "\n".join([*lines, self._end()])

    def __str__(self) -> str:
        return self.table()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        tables = [html(head, rows, left, title=title) for title, head, rows, left in self._tables()]
        return f"{''.join(tables)}<p>{self._end()}</p>"

    def _tables(self, depth: int | None = None) -> list[tuple[str, Cells, list[Cells], tuple[int, ...]]]:
        """Title, head, rows, and the columns of words, of both passes."""
        rows, backward = (
            [row for row in rows if depth is None or row.depth <= depth] for rows in (self.rows, self.backward)
        )
        return [
            ("forward, from top to bottom", _FORWARD, [_forward_cells(row) for row in rows], (0, 1, 2, 3, 6)),
            ("backward, as the backs run", _BACKWARD, [_backward_cells(row) for row in backward], (0, 1)),
        ]

    def _end(self) -> str:
        return f"loss {self.loss:.6g}; between the passes {self.kept / 1024:,.1f} KiB are kept"


def trace(
    model: Layer,
    x: Array,
    labels: Any,
    rng: Rng = None,
    loss: Callable[[Array, Any], tuple[Array, Back]] = F.softmax_cross_entropy,
) -> Trace:
    """Run forward and backward once and record each part; print the result for a table.

    The model does not change, nor its `.grad`. It takes the memory of a step of training, and the time to read each
    activation and gradient once more.

    Args:
        model: any layer; a ViT or a Swin shows its blocks, and these their attention and MLP.
        x: the model's input, images (B, C, H, W).
        labels: the loss's second argument.
        rng: a generator for training with dropout, None for inference.
        loss: `loss(y, labels) -> loss, back`, a function of `minivit.functional` or your own.
    """
    recorder = _Recorder()
    replica = model.replica()
    logits, back = watched(replica, recorder)(x, rng)
    value, back_loss = _record_loss(recorder, loss, logits, labels)
    recorder.count_kept(_arrays(replica))
    dx = back(back_loss())
    recorder.measure_parameters()
    gradients = {name: param.grad for name, param in replica.parameters().items() if param.grad is not None}
    rows = [each for row in recorder.top.parts for each in _unfolded(row)]
    return Trace(rows, recorder.backward, float(value), logits, gradients, dx)


def _arrays(model: Layer) -> list[Array]:
    return [*(param.data for param in model.parameters().values()), *model.constants()]


def _record_loss(recorder: _Recorder, loss: Any, logits: Array, labels: Any) -> tuple[Array, Back]:
    kind = getattr(getattr(loss, "func", loss), "__name__", type(loss).__name__)
    row = Row("loss", "loss", kind, formula(loss), 0)
    return recorder.record(row, logits, lambda: loss(logits, labels))


def _unfolded(row: Row) -> list[Row]:
    return [row, *(each for part in row.parts for each in _unfolded(part))]


class _Frame:
    """A running call or back, and the rows of its parts so far."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.met: list[Row] = []

    def row_of(self, name: str, kind: str) -> Row | None:
        """The row of a part that ran in the forward pass and runs again here: in the back of a Recompute."""
        for row in self.row.parts:
            if (row.name, row.kind) == (name, kind) and not any(row is each for each in self.met):
                return row
        return None


class _Recorder:
    """The watcher, which fills a tree of rows."""

    def __init__(self) -> None:
        self.top = Row("", "", "", "", -1)
        self.frames = [_Frame(self.top)]
        self.backward: list[Row] = []
        # weak references: backs without other references, such as the first ones within a Recompute, must be freed
        self.backs: list[tuple[Row, weakref.ref[Any]]] = []
        self.layers: list[tuple[Row, Layer]] = []

    def __call__(self, layer: Layer, location: Location, run: Run, x: Array) -> tuple[Array, Back]:
        row = self.frames[-1].row_of(location.name, location.kind)
        if row is None:
            row = Row(
                location.name, location.label, location.kind, formula(layer), location.depth, isinstance(layer, Chain)
            )
            self.layers.append((row, layer))
        return self.record(row, x, run)

    def record(self, row: Row, x: Array, run: Run) -> tuple[Array, Back]:
        """Run the part, record its forward pass, and wrap its back to record the backward pass."""
        frame = self.frames[-1]
        if not any(row is part for part in frame.row.parts):
            frame.row.parts.append(row)
        frame.met.append(row)
        y, back_part = self._within(row, run)
        row.shape_in, row.shape_out = tuple(x.shape), tuple(y.shape)
        row.norm_x, row.norm_y = euclidean_norm(x), euclidean_norm(y)

        @once
        def back(*dy: Array) -> Any:
            self.backward.append(row)
            row.norm_dy = euclidean_norm(dy[0]) if dy else 1.0  # a loss starts with dloss = 1
            dx = self._within(row, lambda: back_part(*dy))
            row.norm_dx = None if dx is None else euclidean_norm(dx)
            return dx

        self.backs.append((row, weakref.ref(back)))
        return y, back

    def _within(self, row: Row, run: Callable[[], Any]) -> Any:
        self.frames.append(_Frame(row))
        try:
            return run()
        finally:
            self.frames.pop()

    def count_kept(self, ignored: list[Array]) -> None:
        """Assign each block of memory to the first part that holds it. In `backs`, parts precede their parent."""
        kept, own = Kept(ignored), dict[int, int]()
        alive = [(row, reference()) for row, reference in self.backs]
        for row, back in alive:
            own[id(row)] = own.get(id(row), 0) + (0 if back is None else kept.add(back))
        for row in self.top.parts:
            _add_up(row, own)

    def measure_parameters(self) -> None:
        norms: dict[int, float] = {}
        for row, layer in self.layers:
            params = layer.parameters().values()
            row.parameters = sum(param.size for param in params)
            for param in params:
                if param.grad is not None and id(param) not in norms:
                    norms[id(param)] = euclidean_norm(param.grad)
            if row.parameters:
                row.norm_dparameters = hypot(*(norms.get(id(param), 0.0) for param in params))


def _add_up(row: Row, own: dict[int, int]) -> int:
    row.kept = own.get(id(row), 0) + sum(_add_up(part, own) for part in row.parts)
    return row.kept


def euclidean_norm(a: Any) -> float:
    """The square root of the sum of squares, in float64."""
    flat = array_module(a).asarray(a).ravel()
    wide = (abs(flat) if flat.dtype.kind == "c" else flat).astype("float64")
    return float(to_numpy(wide @ wide)) ** 0.5


# --- as text --------------------------------------------------------------------------------------------------------


def _forward_cells(row: Row) -> tuple[str, ...]:
    shapes, kept = (_shape(row.shape_in), _shape(row.shape_out)), f"{row.kept / 1024:,.1f}"
    return _part(row), row.kind, *shapes, _number(row.norm_y), kept, row.formula


def _backward_cells(row: Row) -> tuple[str, ...]:
    count = f"{row.parameters:,}" if row.parameters else ""
    return _part(row), row.kind, _number(row.norm_dy), _number(row.norm_dx), count, _number(row.norm_dparameters)


def _part(row: Row) -> str:
    return "  " * row.depth + row.label


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _table(head: Cells, rows: list[Cells], left: tuple[int, ...]) -> list[str]:
    """A table as lines under a rule, cut off at the last column."""
    lines = [line if len(line) <= _WIDEST else line[: _WIDEST - 3] + "..." for line in aligned([head, *rows], left)]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]
