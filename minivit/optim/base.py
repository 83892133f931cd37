"""The base class of the optimizers: parameters, learning rate, settings by name, and a state that can be saved.

A parameter that no optimizer has is frozen.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from minivit.device import array_module
from minivit.nn.parameter import Parameter
from minivit.nn.printing import arguments_of, settings_of, settings_text, without_errors
from minivit.protocol import Array

Params = dict[str, Parameter]


class Optimizer:
    """The base of SGD and AdamW: the parameters, `lr` (may be set each step), and a state that can be saved.

    `no_decay` and `lr_scale` are settings, not state: build the optimizer with the same ones before loading a state.

    Attributes:
        skipped: steps of `parallel.CapturedStep.update` whose gradient was not finite, 0 or an array on the GPU.
    """

    def __init__(
        self,
        params: Params,
        lr: float,
        weight_decay: float,
        no_decay: Collection[str],
        lr_scale: Mapping[str, float] | None = None,
    ) -> None:
        check_params(type(self).__name__, params)
        if not params:
            raise ValueError("the optimizer got no parameters")
        check_rate("lr", lr)
        check_rate("weight_decay", weight_decay)
        scales = dict(lr_scale or {})
        for argument, names in (("no_decay", no_decay), ("lr_scale", scales)):
            unknown = [name for name in names if name not in params]
            if unknown:
                raise ValueError(f"{argument} names {unknown[:1]}, which is not among the {len(params)} parameters")
        for name, factor in scales.items():
            if not 0 <= factor < float("inf"):
                raise ValueError(f"lr_scale of {name!r} is {factor}: it must be 0 or more, and finite")
        self.params, self.lr, self.weight_decay = params, lr, weight_decay
        self.no_decay, self.lr_scale = frozenset(no_decay), scales
        self._counted = 0
        self.skipped: Any = 0

    @property
    def steps(self) -> int:
        """Steps so far. A step recorded on a GPU counts there what it skips: reading this then waits for the GPU."""
        return self._counted - int(self.skipped)

    @steps.setter
    def steps(self, steps: int) -> None:
        self._counted = steps + int(self.skipped)

    def count(self) -> int:
        """Count one more step, which the GPU may skip, and return how many were counted, those that it skipped too."""
        self._counted += 1
        return self._counted

    def zero_grad(self) -> None:
        """Clear all gradients."""
        for param in self.params.values():
            param.grad = None

    def step(self) -> None:
        """One step for every parameter that has a gradient; the others do not change. Warns if none has one.

        Raises:
            ValueError: if `lr` has become negative or is not finite.
        """
        raise TypeError(f"{type(self).__name__} must define step(self)")

    def _is_due(self) -> bool:
        """Whether any parameter has a gradient; warns if none has."""
        check_rate("lr", self.lr)
        if any(param.grad is not None for param in self.params.values()):
            return True
        warnings.warn(
            f"{type(self).__name__}.step: no parameter has a gradient, so nothing was learned. After zero_grad and "
            "before step call loss_and_grad(images, labels), or y, back = model(x) and then back(dy); model.predict "
            "computes no gradients, those of another model are not these parameters', and clip_grad_norm clears "
            "gradients that are not finite",
            stacklevel=3,
        )
        return False

    def _decay_of(self, name: str) -> float:
        return 0.0 if name in self.no_decay else self.weight_decay

    def _lr_of(self, name: str) -> float:
        return self.lr * self.lr_scale.get(name, 1.0)

    def __repr__(self) -> str:
        return without_errors(self._text, f"{type(self).__name__}(...)")

    def _text(self) -> str:
        rates = {"lr": self.lr, "weight_decay": self.weight_decay}
        hidden = (*rates, "threads", "skipped")
        others = {name: value for name, value in settings_of(self).items() if name not in hidden}
        others = {"steps": self.steps, **others}
        groups = len({(self._lr_of(name), self._decay_of(name)) for name in self.params})
        count = f"{len(self.params)} parameters in {groups} group{'s' if groups > 1 else ''}"
        words = settings_text([rates], dict.fromkeys(rates, ...)) + settings_text([others], arguments_of(type(self)))
        return f"{type(self).__name__}({', '.join([*words, count])})"

    def _moments(self) -> dict[str, Array]:
        """The optimizer's moments by name."""
        raise TypeError(f"{type(self).__name__} must define _moments(self)")

    def state_dict(self) -> dict[str, Any]:
        """The state needed to continue: `steps`, `lr` and copies of the moments."""
        return {"steps": self.steps, "lr": self.lr, **{name: array.copy() for name, array in self._moments().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved state; the parameters must be the same.

        Raises:
            ValueError: naming the first moment that is missing or of another shape.
        """
        restore("optimizer", self._moments(), state)
        self.steps, self.lr = int(state["steps"]), float(state.get("lr", self.lr))


def check_params(name: str, params: Any) -> None:
    """Refuse an argument that is not a dict of parameters, such as the model; the message names the function `name`."""
    if isinstance(params, Mapping):
        wrong = next(((key, value) for key, value in params.items() if not isinstance(value, Parameter)), None)
        if wrong is None:
            return
        what = f"a dict whose {wrong[0]!r} is a {type(wrong[1]).__name__}, not a Parameter"
        if hasattr(wrong[1], "shape"):
            what += " (state_dict() returns copies, from which the model would not learn)"
    else:
        what = "a function, without ()" if callable(params) else f"a {type(params).__name__}"
        what = f"the {type(params).__name__} itself" if hasattr(params, "parameters") else what
    raise ValueError(
        f"{name} takes parameters by name, model.parameters(), got {what}. To train only some, give a smaller dict; "
        "no_decay and lr_scale are for groups"
    )


def check_rate(name: str, value: Any) -> None:
    """Refuse a learning rate or decay that is not a number, negative, or not finite; a schedule may end at 0."""
    if not isinstance(value, int | float | np.integer | np.floating):
        raise ValueError(f"{name}={value!r} must be a number, got a {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value} must be finite and not be negative: usual are 1e-4 to 1e-1")


def restore(owner: str, arrays: dict[str, Array], state: dict[str, Any]) -> None:
    """Copy saved arrays into live ones, after checking all of them.

    Raises:
        ValueError: naming the owner and the first array that is missing or of another shape; nothing is then changed.
    """
    for name, array in arrays.items():
        found = tuple(state[name].shape) if name in state else None
        if found != array.shape:
            raise ValueError(f"{owner} state {name}: expected shape {array.shape}, found {found}")
    if "steps" not in state:
        raise ValueError(f"{owner} state: expected an entry 'steps', found {sorted(state)[:3]}")
    for name, array in arrays.items():
        array[...] = array_module(array).asarray(state[name])
