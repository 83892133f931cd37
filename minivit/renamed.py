"""Names that are not here: old public names, which work with a warning until version 1.0, and those of PyTorch.

docs/migration.md has the table of the first. A name of PyTorch, `model.eval()` or `nn.Module`, is an AttributeError
that says what takes its place; docs/coming_from.md has the table.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from typing import Any, cast

# modules of version 0.1, and the modules that replace them
MODULES = {
    "minivit.backend": "minivit.fast",
    "minivit.backend.blas": "minivit.fast.blas_threads",
    "minivit.backend.devices": "minivit.device",
    "minivit.backend.memory": "minivit.fast.freed_memory",
    "minivit.backend.random": "minivit.random",
    "minivit.backend.threads": "minivit.fast.threads",
    "minivit.checkpoint": "minivit.io.safetensors",
    "minivit.files": "minivit.io.atomic",
    "minivit.optim.optimisers": "minivit.optim.optimizers",
    "minivit.training": "minivit.train",
    "minivit.weights": "minivit.pretrained",
}

# names that users of PyTorch try, and what to write here
ELSEWHERE = {
    "minivit.functional": {
        "cross_entropy": "loss, back_loss = functional.softmax_cross_entropy(logits, labels)",
        "log_softmax": "functional.softmax, or functional.softmax_cross_entropy for a loss",
    },
    "minivit.nn": {
        "Module": "a subclass of nn.Layer, whose forward returns y and back",
        "CrossEntropyLoss": "functional.softmax_cross_entropy",
        "MultiheadAttention": "nn.Attention",
        "TransformerEncoderLayer": "nn.Block",
    },
    "minivit.optim": {"Adam": "optim.AdamW(params, lr, weight_decay=0)"},
}
OF_A_LAYER = {
    "eval": "model(x) without a generator is inference already; model.predict(x) also keeps nothing",
    "train": "model(x, rng) with a NumPy generator trains: dropout is then random",
    "to": "minivit.to_device(model, 'gpu'), and dtype= when the model is built",
    "cuda": "minivit.to_device(model, 'gpu')",
    "named_parameters": "model.parameters(), a dict by name",
    "backward": "y, back = layer(x), then dx = back(dy)",
    "modules": "layer.parts(), the direct parts by name",
    "named_modules": "layer.parts(), the direct parts by name",
}


def remedy(name: str, names: dict[str, str]) -> str:
    """What an error about a name of PyTorch adds; "" for any other name."""
    return f": in place of PyTorch's {name}, {names[name]} (docs/coming_from.md)" if name in names else ""


def old_names(module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module in which names have changed.

    Args:
        module: its name.
        names: old name -> new name in the same module, or dotted from the top: "minivit.sizes.pair".
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            known = remedy(name, ELSEWHERE.get(module, {}))
            raise AttributeError(f"module {module!r} has no attribute {name!r}{known}")
        new = names[name] if "." in names[name] else f"{module}.{names[name]}"
        _warn(f"{module}.{name}", new)
        home, _, attribute = new.rpartition(".")
        return getattr(import_module(home), attribute)

    return __getattr__


def _warn(old: str, new: str) -> None:
    message = f"{old} is now {new}: the old name is removed in version 1.0"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


class _OldModules:
    """An old module is the new one itself. Tried first, or `minivit.backend.blas` would be imported twice."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, cast(Any, self)) if fullname in MODULES else None

    def create_module(self, spec: ModuleSpec) -> Any:
        _warn(spec.name, MODULES[spec.name])
        module = import_module(MODULES[spec.name])
        self._spec = module.__spec__  # the import system is about to overwrite it
        return module

    def exec_module(self, module: Any) -> None:
        module.__spec__ = self._spec


def install() -> None:
    """Let the old modules be imported."""
    sys.meta_path.insert(0, _OldModules())
