"""The accuracies in README are the ranges of recorded runs, over seeds and kernels of BLAS."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import accuracies

ROOT = Path(__file__).resolve().parents[2]
ROWS = {
    "vit": "`train_mnist_vit.py`",
    "vit accurate": "`train_mnist_vit.py --preset accurate`",
    "hybrid": "`train_mnist_vit.py --model hybrid`",
    "swin": "`train_mnist_swin.py`",
    "vit without network": "`train_mnist_vit.py`",
}
PAGES = {"README.md": ("to", " without network"), "README.zh-CN.md": ("到", "，无网络")}


@pytest.mark.parametrize("recipe", accuracies.RECIPES)
@pytest.mark.parametrize("page", PAGES)
def test_readme_gives_the_range_of_an_accuracy_over_seeds_and_kernels(page: str, recipe: str) -> None:
    to, offline = PAGES[page]
    name = ROWS[recipe] + (offline if recipe == "vit without network" else "")
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith(f"| {name} |"))
    expected = accuracies.span(accuracies.recorded(), recipe, to)
    assert row.split("|")[4].strip().startswith(expected)


@pytest.mark.parametrize("recipe", ["vit", "hybrid", "vit without network"])
def test_a_range_is_of_several_seeds_and_kernels(recipe: str) -> None:
    runs = [run for run in accuracies.recorded() if run["recipe"] == recipe]
    assert len({run["seed"] for run in runs}) > 1
    assert len({run["accuracy"] for run in runs if run["seed"] == 0}) > 1, "kernels that round differently"


def test_readme_names_the_accuracies_that_are_of_one_seed() -> None:
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    few = {run["recipe"] for run in accuracies.recorded()} - {"vit", "hybrid", "vit without network"}
    assert few == {"swin", "vit accurate"}
    assert "`accurate` is of seed 0 on two kernels, and Swin of one run" in text


def test_a_recipe_is_run_and_its_accuracy_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the subset, of which README's row without network speaks."""
    options = ("--epochs", "1", "--limit", "200")
    monkeypatch.setitem(accuracies.RECIPES, "vit without network", ("train_mnist_vit.py", *options))
    monkeypatch.setattr(accuracies, "ACCURACIES", tmp_path / "accuracies.json")
    (tmp_path / "accuracies.json").write_text("[]")
    accuracies.main(["vit without network", "--seed", "3"])
    (run,) = accuracies.recorded()
    assert run["seed"] == 3 and 0 < run["accuracy"] < 100 and run["kernel"]


def test_other_data_than_the_recipes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of the complete MNIST takes no accuracy on the subset."""
    monkeypatch.setitem(accuracies.RECIPES, "vit", ("train_mnist_vit.py", "--epochs", "1", "--limit", "200"))
    monkeypatch.setenv("MINIVIT_CACHE", "/nonexistent")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match="subset"):
        accuracies.trained("vit", 0, None)
