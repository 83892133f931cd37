"""Old public names: they work, with a warning, until version 1.0. docs/migration.md has the table."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any


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
        warnings.warn(
            f"{module}.{name} is now {new}: the old name goes in version 1.0", DeprecationWarning, stacklevel=2
        )
        home, _, attribute = new.rpartition(".")
        return getattr(import_module(home), attribute)

    return __getattr__
