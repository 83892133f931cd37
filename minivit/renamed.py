"""Old public names: they work, with a warning, until version 1.0. docs/migration.md has the table."""

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


def old_names(module: str, names: dict[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a module in which names have changed.

    Args:
        module: its name.
        names: old name -> new name in the same module, or dotted from the top: "minivit.sizes.pair".
    """

    def __getattr__(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
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
