"""The page's requests and their answers, as dictionaries of numbers, arrays and text."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from minivit.lab.readings import LR, accuracy, attention_from, training_step, windows_of
from minivit.lab.recorded import Reader, Reading, with_every_token
from minivit.lab.source_lines import formula_of, kind_of, lines_of
from minivit.lab.switches import available
from minivit.lab.wire import shown, unpacked_pixels, whole_number
from minivit.models import Model, Swin
from minivit.models.options import patch_grid
from minivit.observe.attention import block_names, prefix_tokens
from minivit.observe.positions import position_similarity
from minivit.observe.trace import euclidean_norm
from minivit.protocol import Array
from minivit.sizes import pair

_READINGS = 4  # kept, so that a page can ask about the last ones
_READERS = 4  # kept, each a copy of the layers for one choice of switches
_UNDO = 50  # training steps that can be undone
TEST_IMAGES = 1000
_PART = 125  # of them in one answer: a new drawing waits for no more than one part


class Digits(NamedTuple):
    """Images (n, H, W) uint8 and labels (n,) to measure the accuracy with, and their source in words."""

    images: Array
    labels: Array
    source: str


class Lab:
    """A model on one image at a time, its switches, and training steps that can be undone.

    Not safe for several threads: the caller lets one request in at a time.

    Args:
        model: ViT or Swin with a head; it is copied.
        labels: the names of its classes.
        mean, std: of the pixels in [0, 1], one number for each channel.
        digits: test images, None if there are none.
        source: the model in words.

    Raises:
        ValueError: for a model without a head.
    """

    def __init__(
        self,
        model: Model,
        labels: list[str],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        digits: Digits | None = None,
        source: str = "",
    ) -> None:
        if model.num_classes == 0:
            raise ValueError("the lab needs a classifier: this model has no head (num_classes=0)")
        complete: Any = with_every_token(model).replica()
        self.model: Model = complete
        for param in self.model.parameters().values():
            param.swap(param.data.copy())  # training steps in the lab leave the given model as it is
        self.labels, self.source, self.digits = labels, source, digits
        self.mean, self.std = (np.array(numbers, dtype="float32").reshape(1, -1, 1, 1) for numbers in (mean, std))
        self.size = (model.config["in_chans"], *pair(model.config["img_size"]))
        self._readings: OrderedDict[int, Reading] = OrderedDict()
        self._reader = lru_cache(_READERS)(partial(Reader, self.model))  # by switches and head
        self._count = 0
        self._before: list[dict[str, Array]] = []
        self._correct: dict[tuple[Any, ...], dict[int, int]] = {}

    def answer(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request of the page.

        Raises:
            LookupError: for an unknown name.
            ValueError: for a request that makes no sense; the message says why.
        """
        if name not in _ANSWERS:
            raise LookupError(f"the lab has no {name!r}: it answers {', '.join(_ANSWERS)}")
        return _ANSWERS[name](self, request)

    # --- the answers, by name ---

    def about(self, request: dict[str, Any]) -> dict[str, Any]:
        """The model: its sizes, classes, blocks and switches."""
        config = self.model.config
        blocks = block_names(self.model)
        parameters = sum(param.size for param in self.model.parameters().values())
        return {
            "kind": type(self.model).__name__,
            "source": self.source,
            "size": list(self.size),
            "grid": list(patch_grid(config)),
            "prefix": prefix_tokens(self.model),
            "pool": config["global_pool"],
            "labels": self.labels,
            "blocks": blocks,
            "parameters": parameters,
            "switches": available(self.model),
            "windows": isinstance(self.model, Swin),
            "positions": _has_positions(self.model),
            "steps": len(self._before),
            "lr": LR,
            "test": None if self.digits is None else {"source": self.digits.source, "count": self._tests()},
            "mean": self.mean.ravel().tolist(),
            "std": self.std.ravel().tolist(),
        }

    def read(self, request: dict[str, Any]) -> dict[str, Any]:
        """A reading of a drawing: {pixels, target, switches, head, patch}."""
        pixels = unpacked_pixels(request.get("pixels"), self.size)
        target = whole_number(request, "target", len(self.labels), optional=True)
        chosen, head = _switches(request)
        reader = self._reader(tuple(sorted(chosen)), head)
        found, shuffle = reader.read(self._normalized(pixels[None]), target), reader.shuffle
        self._count += 1
        self._readings[self._count] = found
        while len(self._readings) > _READINGS:
            self._readings.popitem(last=False)
        stages = [
            {
                "name": part.name,
                "kind": kind_of(part.layer),
                "depth": part.depth,
                "shape": list(part.y.shape),
                "y": euclidean_norm(part.y),
                "dy": None if part.dy is None else euclidean_norm(part.dy),
                "dx": None if part.dx is None else euclidean_norm(part.dx),
            }
            for part in found.parts.values()
        ]
        return {
            "reading": self._count,
            "logits": found.logits,
            "probabilities": found.probabilities,
            "target": found.target,
            "loss": found.loss,
            "pixels": pixels if shuffle is None else shuffle(pixels[None])[0],  # as the model sees them, not rounded
            "dpixels": (found.dx / self.std.astype(found.dx.dtype))[0],  # x = (pixel - mean) / std
            "tokens": _tokens(found),
            "parts": stages,
            "backward": found.backward,
            "gradients": {name: euclidean_norm(gradient) for name, gradient in found.gradients.items()},
            "rollout": found.rollout,
            **self._attention(found, request),
        }

    def attend(self, request: dict[str, Any]) -> dict[str, Any]:
        """The attention of one patch in a reading: {reading, patch}."""
        return self._attention(self._reading(request), request)

    def tensor(self, request: dict[str, Any]) -> dict[str, Any]:
        """A part's output or input, or a parameter, with its gradient and its lines: {reading, name, which}."""
        found, name = self._reading(request), request.get("name")
        which = request.get("which", "y")
        if which == "parameter":
            return self._parameter(found, name)
        if not isinstance(name, str) or name not in found.parts or which not in ("x", "y"):
            raise ValueError(
                f"there is no {which!r} of {name!r:.60}: take the name of a part, and 'x', 'y' or 'parameter'"
            )
        part = found.parts[name]
        value, gradient = (part.y, part.dy) if which == "y" else (part.x, part.dx)
        prefix = f"{name}." if name else ""
        params = [each for each in found.model.parameters() if each.startswith(prefix) and part.depth > 0]
        return {
            "name": name,
            "which": which,
            "kind": kind_of(part.layer),
            "formula": formula_of(part.layer),
            "lines": lines_of(part.layer)._asdict(),
            "value": shown(value),
            "gradient": None if gradient is None else shown(gradient),
            "parameters": params[:40],
        }

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        """One training step on a drawing: {pixels, label, switches, head}."""
        images = self.images(request.get("pixels"))
        label = whole_number(request, "label", len(self.labels)) or 0
        done = training_step(self.model, images, label, *_switches(request))
        self._before = [*self._before, self.model.state_dict()][-_UNDO:]
        self.model.load_state_dict(done.state, strict=False)
        self._correct.clear()
        return {
            "label": label,
            "before": done.before,
            "after": done.after,
            "probabilities": done.probabilities,
            "moved": [{"name": name, "largest": most, "share": share} for name, most, share in done.moved],
            "attention": [{"name": name, "largest": most} for name, most in done.attention],
            "steps": len(self._before),
        }

    def undo(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take back the last training step."""
        if not self._before:
            raise ValueError("there is no training step to undo")
        self.model.load_state_dict(self._before.pop())
        self._correct.clear()
        return {"steps": len(self._before)}

    def accuracy(self, request: dict[str, Any]) -> dict[str, Any]:
        """The accuracy on the test images, part by part: {switches, head, start}.

        `next` is the start of the next part, None after the last; the answer to the last part has the accuracy of all.
        """
        chosen, head = _switches(request)
        digits, count = self._digits(), self._tests()
        start = whole_number(request, "start", count, optional=True) or 0
        key = (tuple(sorted(chosen)), head)
        done = self._correct.setdefault(key, {})
        if start not in done:
            part = slice(start, min(count, start + _PART))
            images = self._normalized(digits.images[part, None].astype(self.model.dtype) / 255)
            done[start] = round(len(images) * accuracy(self.model, images, digits.labels[part], chosen, head))
        missing = next((at for at in range(0, count, _PART) if at not in done), None)
        share = None if missing is not None else sum(done.values()) / count
        return {"next": missing, "accuracy": share, "count": count, "source": digits.source}

    def example(self, request: dict[str, Any]) -> dict[str, Any]:
        """A test image that shows a digit: {digit, nth}."""
        digits, label = self._digits(), whole_number(request, "digit", len(self.labels))
        found = np.flatnonzero(digits.labels == label)
        if len(found) == 0:
            raise ValueError(f"the test images have no {label}")
        nth = whole_number(request, "nth", 1_000_000) or 0
        image = digits.images[found[nth % len(found)]]
        return {"pixels": (image[None] / 255).astype("float32"), "digit": label}

    def windows(self, request: dict[str, Any]) -> dict[str, Any]:
        """The windows of one block of a Swin: {reading, block}."""
        found = self._reading(request)
        number = whole_number(request, "block", len(found.attention))
        assert number is not None
        windows = windows_of(found, number)
        if windows is None:
            raise ValueError(f"block {number} attends over the whole image, without windows")
        return {
            **{name: list(size) for name, size in windows.layout._asdict().items()},
            "slots": windows.slots.tolist(),
            "regions": windows.regions.tolist(),
            "masks": windows.masks.astype(int).tolist(),
        }

    def similarity(self, request: dict[str, Any]) -> dict[str, Any]:
        """The cosine between the vectors of each two positions, (gh, gw, gh, gw)."""
        return {"similarity": position_similarity(self.model)}

    # --- parts of the answers ---

    def images(self, text: Any) -> Array:
        """(1, C, H, W): the model's input, from the page's pixels; see `unpacked_pixels`."""
        return self._normalized(unpacked_pixels(text, self.size)[None])

    def _normalized(self, pixels: Array) -> Array:
        """Pixels (B, C, H, W) in [0, 1] as the model's input, in its dtype."""
        x, mean, std = (array.astype(self.model.dtype) for array in (pixels, self.mean, self.std))
        return (x - mean) / std

    def _attention(self, found: Reading, request: dict[str, Any]) -> dict[str, Any]:
        patch = request.get("patch")
        if patch is None:
            return {"patch": None, "maps": found.maps, "prefix": None}
        if not (isinstance(patch, list) and len(patch) == 2 and all(type(number) is int for number in patch)):
            raise ValueError("patch must be [row, column], or null for what the head reads")
        rows = attention_from(found, (patch[0], patch[1]))
        return {"patch": patch, "maps": [maps for maps, _ in rows], "prefix": [prefix for _, prefix in rows]}

    def _reading(self, request: dict[str, Any]) -> Reading:
        number = request.get("reading")
        if type(number) is not int or number not in self._readings:
            raise ValueError("this reading is no longer kept: read the drawing again")
        return self._readings[number]

    def _parameter(self, found: Reading, name: Any) -> dict[str, Any]:
        params = found.model.parameters()
        if not isinstance(name, str) or name not in params:
            raise ValueError(f"there is no parameter {name!r:.60}")
        owner = name.rpartition(".")[0]
        part = found.parts.get(owner or "embed")  # a parameter without a dot is the embedding's
        gradient = found.gradients.get(name)
        return {
            "name": name,
            "which": "parameter",
            "kind": "Parameter",
            "formula": "" if part is None else f"in {formula_of(part.layer)}",
            "lines": None if part is None else lines_of(part.layer)._asdict(),
            "value": shown(params[name].data),
            "gradient": None if gradient is None else shown(gradient),
            "parameters": [],
        }

    def _digits(self) -> Digits:
        if self.digits is None:
            raise ValueError("there are no test images for this model: they are MNIST's, for digits of 28 x 28 pixels")
        return self.digits

    def _tests(self) -> int:
        return 0 if self.digits is None else min(TEST_IMAGES, len(self.digits.labels))


_ANSWERS: dict[str, Callable[[Lab, dict[str, Any]], dict[str, Any]]] = {
    "about": Lab.about,
    "read": Lab.read,
    "attend": Lab.attend,
    "tensor": Lab.tensor,
    "step": Lab.step,
    "undo": Lab.undo,
    "accuracy": Lab.accuracy,
    "example": Lab.example,
    "windows": Lab.windows,
    "similarity": Lab.similarity,
}


def _has_positions(model: Model) -> bool:
    """Whether `position_similarity` has vectors to compare."""
    try:
        position_similarity(model)
    except ValueError:
        return False
    return True


def _tokens(found: Reading) -> Array:
    """(N, D): each patch's token after the patch embedding, before positions are added."""
    tokens = found.parts["patch_embed"].y[0]
    return tokens.reshape(-1, tokens.shape[-1])


def _switches(request: dict[str, Any]) -> tuple[list[str], int]:
    names = request.get("switches", [])
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("switches must be a list of names")
    return names, whole_number(request, "head", 1000, optional=True) or 0
