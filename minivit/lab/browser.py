"""The lab inside of a browser: Pyodide runs it in a worker, from one file with weights and test images.

`write(file, model, ...)` makes the file when the documentation is built. In the worker `start(file)` opens it, and
`answer(name, request)` exchanges JSON with the page, as the server does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from minivit.lab.lab import Digits, Lab
from minivit.lab.wire import packed
from minivit.models import Model, Swin, SwinV2, ViT

_KINDS = {kind.__name__: kind for kind in (ViT, Swin, SwinV2)}
_lab: Lab | None = None


def write(file: str | Path, model: Model, labels: list[str], mean: float, std: float, digits: Digits) -> None:
    """Write a model and its test images as a compressed `.npz`, which needs no more than NumPy to read.

    Args:
        file: to write.
        model: with weights in float32.
        labels, mean, std, digits: as of `Lab`.
    """
    facts = {
        "kind": type(model).__name__,
        "config": model.config,
        "labels": labels,
        "mean": mean,
        "std": std,
        "source": digits.source,
    }
    arrays: dict[str, Any] = {f"state.{name}": array for name, array in model.state_dict().items()}
    np.savez_compressed(file, facts=np.array(json.dumps(facts)), images=digits.images, labels=digits.labels, **arrays)


def read_file(file: Any) -> Lab:
    """The lab of a file that `write` made.

    Args:
        file: a path or an open binary file.
    """
    with np.load(file, allow_pickle=False) as found:
        facts = json.loads(str(found["facts"]))
        model = _KINDS[facts["kind"]](**facts["config"])
        model.load_state_dict({n.removeprefix("state."): found[n] for n in found.files if n.startswith("state.")})
        digits = Digits(found["images"], found["labels"], facts["source"])
    return Lab(model, facts["labels"], (facts["mean"],), (facts["std"],), digits, "in this browser")


def start(file: Any) -> None:
    """Open the file, and read a blank image once: the first run of each function takes longer."""
    global _lab
    _lab = read_file(file)
    blank = np.zeros(_lab.size, dtype="<f4")
    _lab.answer("read", {"pixels": packed(blank)["float32"]})


def answer(name: str, request: str) -> str:
    """The answer to a request, both as JSON; an error is {"error": why}."""
    try:
        if _lab is None:
            raise ValueError("the lab has not started")
        return json.dumps(packed(_lab.answer(name, json.loads(request))), allow_nan=False, separators=(",", ":"))
    except (ValueError, LookupError) as error:
        return json.dumps({"error": str(error.args[0] if error.args else error)})
    except Exception as error:  # a fault of the program: the page shows it
        return json.dumps({"error": f"{type(error).__name__}: {error}"})
