"""Old public names give the new ones, with a warning, until version 1.0; docs/migration.md lists them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

import minivit
from minivit import data, functional as F, nn, optim
from minivit.io.torch_file import read_torch_file
from minivit.sizes import pair

OLD: dict[str, Any] = {
    "minivit.nn.Gelu": nn.GELU,
    "minivit.nn.Param": nn.Parameter,
    "minivit.nn.Relu": nn.ReLU,
    "minivit.optim.Optimiser": optim.Optimizer,
    "minivit.data.normalise": data.normalize,
    "minivit.data.read_labelled": data.read_labeled,
    "minivit.functional.pair": pair,
    "minivit.functional.standardise_weight": F.standardize_weight,
    "minivit.weights.PROFILES": minivit.pretrained.PROFILES,
    "minivit.weights.export": minivit.export,
    "minivit.weights.from_pretrained": minivit.from_pretrained,
    "minivit.weights.load": minivit.load,
    "minivit.weights.read_torch_file": read_torch_file,
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_gives_the_new_one_with_a_warning(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    with pytest.warns(DeprecationWarning, match=rf"{re.escape(name)} is now minivit\..*goes in version 1\.0"):
        assert getattr(importlib.import_module(module), attribute) is OLD[name]


@pytest.mark.parametrize("module", ["nn", "optim", "data", "functional", "weights"])
def test_a_name_that_never_was_is_an_attribute_error(module: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'minivit.{module}' has no attribute 'Nothing'"):
        getattr(importlib.import_module(f"minivit.{module}"), "Nothing")  # noqa: B009


def test_the_page_lists_every_old_name() -> None:
    page = (Path(__file__).parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")
    missing = [name for name in OLD if name.rpartition(".")[2] not in page and "weights" not in name]
    assert not missing
