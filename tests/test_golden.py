"""What the first edition computed and wrote: files load, gradients and losses are the same, runs resume.

The golden files and how they were made: tests/golden/.
"""

from __future__ import annotations

import argparse
import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import data
from minivit.fast import dispatch
from minivit.train import CHECKPOINT
from minivit.train.finetuning import Recipe, fine_tune
from minivit.train.presets import PRESETS, Preset
from minivit.train.tasks import mnist_task

GOLDEN = Path(__file__).resolve().parent / "golden"
EXAMPLES = GOLDEN.parents[1] / "examples"
sys.path.insert(0, str(GOLDEN))
import content  # noqa: E402

EXPECTED = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))
families = pytest.mark.parametrize("family", content.MODELS)
both_modes = pytest.mark.parametrize("mode", dispatch.MODES)


@families
@both_modes
def test_files_of_the_first_edition_load(family: str, mode: str) -> None:
    model = minivit.from_pretrained(GOLDEN / f"{family}.safetensors")
    with dispatch.use(mode):
        logits = model.predict(content.images(family, "float32"))
    expected = np.array(EXPECTED["logits"][family])
    # other BLAS kernels alone, such as OPENBLAS_CORETYPE=Haswell, move them by 1.2e-6
    assert np.abs(logits - expected).max() <= 3e-6 * np.abs(expected).max()
    twin = content.model(family, "float32")
    for param in twin.parameters().values():
        param.data = param.data * 0
    minivit.load(twin, GOLDEN / f"{family}.safetensors")
    for name, array in model.state_dict().items():
        np.testing.assert_array_equal(array, twin.state_dict()[name])


@pytest.mark.parametrize("family", [*content.MODELS, *content.OPTIONS])
@both_modes
@pytest.mark.parametrize("noise", [False, True], ids=["plain", "noise"])
def test_gradients_are_those_of_the_first_edition(family: str, mode: str, noise: bool) -> None:
    with dispatch.use(mode):
        found = content.gradients(family, noise)
    with np.load(GOLDEN / ("gradients.npz" if family in content.MODELS else "options.npz")) as file:
        prefix = f"{family}/{'noise' if noise else 'plain'}/"
        expected = {key.removeprefix(prefix): file[key] for key in file.files if key.startswith(prefix)}
    assert found.keys() == expected.keys()
    largest = max(np.abs(array).max() for array in expected.values())
    for name, array in expected.items():
        # a key's bias has gradient 0 but for rounding, which only the largest gradient gives a scale
        scale = max(np.abs(array).max(), 1e-3 * largest)
        assert np.abs(found[name] - array).max() <= 1e-12 * scale, name


@families
@both_modes
def test_ten_losses_are_those_of_the_first_edition(family: str, mode: str) -> None:
    with dispatch.use(mode):
        losses, norms = content.losses(family)
    np.testing.assert_allclose(losses, EXPECTED["losses"][family], rtol=1e-6)
    for name, norm in EXPECTED["norms"][family].items():
        if name.endswith("qkv.bias"):
            continue  # a key's bias has gradient 0 but for rounding, which AdamW scales up to whole steps
        assert norms[name] == pytest.approx(norm, rel=1e-5), name


# --- runs -----------------------------------------------------------------------------------------------------------


def resumed(name: str, tmp_path: Path) -> Path:
    """A folder with the checkpoint of an unfinished run of the first edition, and the MNIST that it was trained on."""
    content.write_mnist(tmp_path / "mnist")
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(GOLDEN / f"run_{name}.safetensors", out / CHECKPOINT)
    return out


def check_run(name: str, out: Path, printed: str, trained: Any) -> None:
    """Its metrics, and the trained model: the average of an example's weights, the best epoch's of a fine-tuning."""
    assert "resumed" in printed and "in epoch 2" in printed  # it was stopped after five steps
    lines = (out / "metrics.csv").read_text().splitlines()
    history = [dict(zip(lines[0].split(","), map(float, line.split(",")))) for line in lines[1:]]
    assert len(history) == len(EXPECTED["histories"][name]) == 3
    for row, expected in zip(history, EXPECTED["histories"][name]):
        for column in ("epoch", "learning_rate", "loss", "accuracy", "held_out_accuracy"):
            assert row[column] == pytest.approx(expected[column], rel=1e-6), column
    expected = np.array(EXPECTED["trained"][name])
    logits = content.logits_of_test_images(trained, out.parent / "mnist")
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(("name", "options"), [("vit", content.VIT_RUN), ("swin", content.SWIN_RUN)])
def test_a_run_of_the_first_edition_resumes(
    name: str, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = resumed(name, tmp_path)
    program = runpy.run_path(str(EXAMPLES / f"train_mnist_{name}.py"))
    monkeypatch.setitem(PRESETS[name], "default", Preset(options, **content.RECIPES[name]))
    given = {"epochs": None, "batch_size": None, "lr": None, "preset": "default", "limit": None, "model": name}
    args = argparse.Namespace(
        data=str(tmp_path / "mnist"),
        out=str(out),
        device="cpu",
        precision="float32",
        threads=1,
        seed=1,
        resume=True,
        **given,
    )
    program["main"](args)
    check_run(name, out, capsys.readouterr().out, minivit.from_pretrained(out / "model.safetensors"))


def test_a_fine_tuning_of_the_first_edition_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = resumed("finetune", tmp_path)
    model = minivit.ViT(**content.VIT_RUN, seed=2)
    frozen = {name for name in model.parameters() if name.startswith("patch_embed")}
    task = mnist_task(data.load_mnist(tmp_path / "mnist"), 60, 1, 20)
    recipe, seed = Recipe(**content.TUNING), content.TUNING_SEED
    outcome = fine_tune(model, task, recipe, out, frozen=frozen, seed=seed, threads=1, resume=True)
    assert outcome.epoch == 1
    check_run("finetune", out, capsys.readouterr().out, model)
