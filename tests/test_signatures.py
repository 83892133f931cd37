"""The names, order and defaults of arguments: who leaves one out gets today's numbers after an update as well.

After a change on purpose, `python tests/test_signatures.py` writes the file again, and the changelog says what changed.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from minivit import functional
from minivit.fast.numpy import REPLACEMENTS
from minivit.nn.counting import cost

SIGNATURES = Path(__file__).parent / "golden" / "signatures.txt"
MODULES = [f"minivit.{name}" for name in ("functional", "models", "nn", "optim", "parallel", "train")]
MODULES += [f"minivit.train.{name}" for name in ("finetuning", "tasks", "report", "command_line", "frozen")]


def signature(name: str, function: Any) -> str:
    """Without types, which a version of Python may write in another way."""
    words = []
    for argument in inspect.signature(function).parameters.values():
        stars = {argument.VAR_POSITIONAL: "*", argument.VAR_KEYWORD: "**"}.get(argument.kind, "")
        default = argument.default.__name__ if inspect.isroutine(argument.default) else repr(argument.default)
        words.append(stars + argument.name + ("" if argument.default is argument.empty else f"={default}"))
    return f"{name}({', '.join(words)})"


def signatures(module: str) -> Iterator[str]:
    """Of its functions and classes, and of the classes' own methods that have a default other than None."""
    values = vars(import_module(module))
    own = [name for name, value in values.items() if getattr(value, "__module__", "") == module and name[0] != "_"]
    for name in values.get("__all__", own):
        value = values[name]
        if inspect.isroutine(value) or hasattr(value, "plain"):
            yield signature(f"{module}.{name}", value)
        elif inspect.isclass(value):
            for method, function in vars(value).items():
                if inspect.isfunction(function) and (method == "__init__" or not method.startswith("_")):
                    line = signature(f"{module}.{name}.{method}", function)
                    if method == "__init__" or "=" in line.replace("=None", ""):
                        yield line


def every_signature() -> list[str]:
    return [line for module in MODULES for line in sorted(signatures(module))]


def test_arguments_keep_their_order_and_defaults() -> None:
    assert SIGNATURES.read_text("utf-8").splitlines() == every_signature()


@pytest.mark.parametrize("name", functional.__all__)
def test_checks_and_fast_functions_take_the_arguments_of_the_formula(name: str) -> None:
    """Also their defaults: whoever leaves an argument out has it checked, and gets the formula's numbers."""
    formula = getattr(functional, name)
    defaults = {each.name: each.default for each in inspect.signature(formula).parameters.values()}
    check, fast = getattr(sys.modules[formula.__module__], f"check_{name}", None), REPLACEMENTS.get(name)
    for function in (check, fast and fast.function):
        for each in inspect.signature(function).parameters.values() if function else ():
            if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
                assert each.default == defaults[each.name], each


def test_the_cost_of_every_layer_omits_unread_tokens_by_default() -> None:
    """A layer's own function is called without the argument where `cost` is."""
    for function in cost.registry.values():
        assert inspect.signature(function).parameters["every_token"].default is False, function


if __name__ == "__main__":
    SIGNATURES.write_text("\n".join([*every_signature(), ""]), "utf-8")
