"""The table of benchmarks/parity_table.py, row by row: files as each project publishes them, logits and all gradients.

`test_transformers_weights.py` has more of Hugging Face; what is not installed is written out in torch_published.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_tools import torch

from minivit import CheckpointError
from minivit.pretrained import from_pretrained

transformers = pytest.importorskip(
    "transformers", reason="compared with transformers' models: install the `parity` extra, see CONTRIBUTING.md"
)
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not (BENCHMARKS / "parity_table.py").is_file():
    pytest.skip("the benchmarks are not installed with the package", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import parity_table as parity  # noqa: E402
import torch_published as published  # noqa: E402

BY_NAME = {case.name: case for case in parity.CASES}


def test_no_two_rows_have_one_name() -> None:
    assert len(BY_NAME) == len(parity.CASES)


@pytest.mark.parametrize("dtype", parity.DTYPES)
@pytest.mark.parametrize("name", BY_NAME)
def test_a_row_is_within_its_bar(tmp_path: Path, name: str, dtype: str) -> None:
    row = parity.compare(BY_NAME[name], dtype, tmp_path)
    assert row["passed"], row


def swapped(write: Any, *pair: str) -> Any:
    """A project that gives two arrays each other's names."""

    def write_swapped(arrays: Any, model: Any) -> Any:
        found = write(arrays, model)
        return found | {pair[0]: found[pair[1]], pair[1]: found[pair[0]]}

    return write_swapped


def changed(name: str, **changes: Any) -> Any:
    case = BY_NAME[name]
    return replace(case, how=replace(case.how, **changes))


OTHERWISE = {
    "epsilon": changed("timm ViT, safetensors", eps=2e-6),
    "epsilon of Swin": changed("microsoft Swin, pth", eps=1.1e-5),
    "GELU": changed("google ViT, npz", gelu="none"),
    "GELU of Swin v2": changed("microsoft Swin v2, pth", gelu="tanh"),
    "epsilons of Google's hybrid": changed("google hybrid, npz", resnet_eps="timm"),
    "padding before the roll": changed("timm Swin, padded maps, safetensors", roll_first=False),
    "a shift of what covers the map": changed("torchvision Swin, pth", plan=published.always_shifted),
    "a window that shrinks": changed("torchvision Swin, map below window, pth", plan=published.shrinking),
    "heads": replace(BY_NAME["timm ViT, safetensors"], options={"num_heads": 4}),
    "names": replace(
        BY_NAME["wzmiaomiao ViT, pth"], write=swapped(parity.names.timm, "blocks.0.norm1.bias", "blocks.0.norm2.bias")
    ),
}


@pytest.mark.parametrize("difference", OTHERWISE)
def test_a_project_that_computed_otherwise_would_be_noticed(tmp_path: Path, difference: str) -> None:
    row = parity.compare(OTHERWISE[difference], "float64", tmp_path)
    assert not row["passed"] and row["logits"] > 100 * row["bars"]["logits"], row


def test_a_wrong_gradient_alone_would_be_noticed() -> None:
    theirs = {"large": np.full(3, 1e6), "small": np.ones(3)}
    ours = {"large": np.full(3, 1e6), "small": np.array([1, 1, 1.01])}
    assert parity.distance(ours, theirs) == pytest.approx(1e-8)  # beside the largest of all it nearly vanishes
    assert parity.distance({"small": ours["small"]}, {"small": theirs["small"]}) == pytest.approx(0.01)
    for wrong in ({"small": np.ones(3)}, theirs | {"large": np.ones(2)}, theirs | {"small": None}):
        assert parity.distance(wrong, theirs) == float("inf")
    assert parity.distance(theirs | {"small": np.array([1, np.nan, 1])}, theirs) == float("inf")


def test_a_deit_whose_distillation_token_has_no_head_is_read_right_or_refused(tmp_path: Path) -> None:
    """transformers' DeiTForImageClassification has both tokens, and reads the class token alone."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    config = transformers.DeiTConfig(image_size=12, patch_size=4, num_labels=5, **sizes)
    model = transformers.DeiTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    images = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype("float32")
    expected = model(torch.tensor(images)).logits.detach().numpy()
    try:
        found = from_pretrained(tmp_path, report=lambda line: None).predict(images)
    except CheckpointError:
        return
    assert parity.distance({"": found}, {"": expected}) <= 1e-5


def test_the_script_prints_writes_and_says_by_its_exit_code_whether_all_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parity.main(["--source", "google", "--json", str(tmp_path / "rows.json")]) == 0
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["passed"] for row in rows] == [True] * 6 and printed.count(" pass\n") == 6
    assert "6 of 6 rows within their bar" in printed
    lacking = replace(BY_NAME["google ViT, npz"], write=lambda arrays, model: {"unknown": np.ones(2)})
    monkeypatch.setattr(parity, "CASES", [BY_NAME["google ViT, npz"], lacking])
    assert parity.main([]) == 1
    printed = capsys.readouterr().out
    assert printed.count("FAIL") == 2 and "not read" in printed and "known source" in printed
    assert "2 of 4 rows within their bar" in printed


def test_the_masks_that_are_written_out_are_those_of_the_shift() -> None:
    """Of 4x4 pixels in windows of 2, shifted by 1, the windows have 0, 8, 8 and 12 pairs that the roll brought."""
    mask = published.seam_mask((4, 4), 2, (1, 1))
    assert [int((window != 0).sum()) for window in mask] == [0, 8, 8, 12]
    assert torch.equal(mask.unique(), torch.tensor([-100.0, 0.0]))
    assert [int((window != 0).sum()) for window in published.seam_mask((4, 4), 2, (1, 0))] == [0, 0, 8, 8]
