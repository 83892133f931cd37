"""The accuracy of each recipe in README over seeds and kernels of BLAS, which round differently.

    python benchmarks/accuracies.py hybrid --seed 0 1 2 --data FOLDER       # trains, adds to accuracies.json
    OPENBLAS_CORETYPE=Haswell python benchmarks/accuracies.py hybrid        # by another kernel
    python benchmarks/accuracies.py                                         # prints the ranges

A recipe is a command of examples/. Its test images are used once, after training. README's ranges are those of
accuracies.json: a test compares them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from minivit.fast.blas_kernel import blas_libraries

ROOT = Path(__file__).resolve().parents[1]
ACCURACIES = ROOT / "benchmarks" / "accuracies.json"
RECIPES = {
    "vit": ("train_mnist_vit.py",),
    "vit accurate": ("train_mnist_vit.py", "--preset", "accurate"),
    "hybrid": ("train_mnist_vit.py", "--model", "hybrid"),
    "swin": ("train_mnist_swin.py",),
    "vit without network": ("train_mnist_vit.py",),
}

Run = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("recipe", nargs="?", choices=RECIPES, help="what to train (default: nothing)")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--data", help="folder with the four MNIST files (default: cache or download)")
    args = parser.parse_args(arguments)
    for seed in args.seed if args.recipe else ():
        found = trained(args.recipe, seed, args.data)
        ACCURACIES.write_text(dumped([*recorded(), found]), encoding="utf-8")
        print(found)
    runs = recorded()
    for recipe in dict.fromkeys(run["recipe"] for run in runs):
        print(f"{recipe}: {span(runs, recipe)}")


def trained(recipe: str, seed: int, data: str | None) -> Run:
    """Run the recipe in a folder of its own.

    Raises:
        RuntimeError: it failed, or trained on other data than the recipe says; with what it printed.
    """
    script, *options = RECIPES[recipe]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    alone = recipe == "vit without network"
    with tempfile.TemporaryDirectory() as folder:
        if alone:  # an empty cache, and a proxy at a port that nothing serves
            environment |= {"MINIVIT_CACHE": folder, "https_proxy": "http://127.0.0.1:9"}
        elif data is not None:
            options += ["--data", data]
        command = [
            sys.executable,
            str(ROOT / "examples" / script),
            *options,
            "--seed",
            str(seed),
            "--out",
            f"{folder}/run",
        ]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    accuracy = re.search(r"^test accuracy: ([0-9.]+)%(.*)", done.stdout, re.MULTILINE)
    if accuracy is None or ("subset" in accuracy[2]) != alone:
        raise RuntimeError(f"{recipe} with seed {seed}:\n{done.stdout}{done.stderr}")
    kernel = ", ".join(dict.fromkeys(each["architecture"] for each in blas_libraries())) or "unknown"
    return {"recipe": recipe, "seed": seed, "kernel": kernel, "date": str(date.today()), "accuracy": float(accuracy[1])}


def recorded() -> list[Run]:
    """The runs of accuracies.json."""
    runs: list[Run] = json.loads(ACCURACIES.read_text(encoding="utf-8"))
    return runs


def dumped(runs: list[Run]) -> str:
    """The file's text, a line for each run, by recipe, seed and kernel."""
    order = list(RECIPES)
    runs = sorted(runs, key=lambda run: (order.index(run["recipe"]), run["seed"], run["kernel"], run["date"]))
    return "[\n" + ",\n".join(f"  {json.dumps(run)}" for run in runs) + "\n]\n"


def span(runs: list[Run], recipe: str, to: str = "to") -> str:
    """The least and the greatest accuracy of a recipe, in percent, as README writes them."""
    found = [run["accuracy"] for run in runs if run["recipe"] == recipe]
    digits = 1 if recipe == "vit without network" else 2  # of 1,000 images, not of 10,000
    ends = dict.fromkeys(f"{end(found):.{digits}f}" for end in (min, max))
    return f" {to} ".join(ends) + "%"


if __name__ == "__main__":
    main()
