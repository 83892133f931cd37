"""Old public names give the new ones, with a warning, until version 1.0; docs/migration.md lists them."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minivit import data, functional as F, nn, optim
from minivit.renamed import MODULES
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
}


@pytest.mark.parametrize("name", OLD)
def test_an_old_name_gives_the_new_one_with_a_warning(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    with pytest.warns(DeprecationWarning, match=rf"{re.escape(name)} is now minivit\..*is removed in version 1\.0"):
        assert getattr(importlib.import_module(module), attribute) is OLD[name]


@pytest.mark.parametrize("module", ["nn", "optim", "data", "functional", "fast"])
def test_a_name_that_never_was_is_an_attribute_error(module: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'minivit.{module}' has no attribute 'Nothing'"):
        getattr(importlib.import_module(f"minivit.{module}"), "Nothing")  # noqa: B009


def test_the_page_lists_every_old_name() -> None:
    page = (Path(__file__).parents[1] / "docs" / "migration.md").read_text(encoding="utf-8")
    missing = [name for name in OLD if name.rpartition(".")[2] not in page]
    assert not missing


MOVED = {
    "minivit.weights": ("PROFILES", "export", "from_pretrained", "load", "read_torch_file"),
    "minivit.checkpoint": ("CheckpointError", "load_arrays", "save", "save_arrays"),
    "minivit.training": ("CHECKPOINT", "CountingLoss", "METRICS", "Run", "accuracy", "fingerprint", "noise_generator"),
    "minivit.backend": ("array_module", "as_generator", "gpu_available", "to_device", "to_numpy"),
    "minivit.backend.threads": ("usable_cores",),
}


@pytest.mark.parametrize("module", MODULES)
def test_an_old_module_is_the_new_one_with_a_warning(module: str) -> None:
    code = f"""
import sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import {module}
old, new = sys.modules["{module}"], sys.modules["{MODULES[module]}"]
assert old is new and new.__spec__.name == new.__name__ == "{MODULES[module]}"
assert any("{module} is now {MODULES[module]}" in str(each.message) for each in caught)
for name in {MOVED.get(module, ())!r}:
    warnings.simplefilter("ignore")
    assert hasattr(old, name), name
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("home", "names"),
    [
        ("minivit.device", ("array_module", "gpu_available", "owner", "to_device", "to_numpy")),
        ("minivit.random", ("as_generator", "copy_generator", "split_generator", "UNSET")),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_the_backend_had_is_found_where_it_was(home: str, names: tuple[str, ...]) -> None:
    old, new = importlib.import_module("minivit.fast"), importlib.import_module(home)
    assert all(getattr(old, name) is getattr(new, name) for name in names)
