"""Folders that transformers writes become the same models here, and what minivit exports becomes one of transformers'.

Nothing is downloaded: the models are built from configurations, with random parameters.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import swin_pairs
import vit_pairs
from parity_tools import torch

from minivit.models import Swin, SwinV2, ViT
from minivit.pretrained import PROFILES, export, from_pretrained, load

transformers = pytest.importorskip(
    "transformers", reason="compared with transformers' models: install the `parity` extra, see CONTRIBUTING.md"
)

VIT: dict[str, Any] = {"img_size": 8, "patch_size": 4, "num_classes": 5, "embed_dim": 12, "depth": 3, "num_heads": 3}
VIT |= {"mlp_ratio": 2.0}
SWIN: dict[str, Any] = {"img_size": 24, "patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2, 2)}
SWIN |= {"num_heads": (2, 4), "window_size": 3, "mlp_ratio": 2.0}  # maps of 12x12 and 6x6

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "vit": (ViT, VIT),
    "vit_published_eps": (ViT, {**VIT, "norm_eps": 1e-12}),
    "vit_tanh": (ViT, {**VIT, "gelu": "tanh"}),
    "vit_no_bias": (ViT, {**VIT, "qkv_bias": False}),
    "vit_wide": (ViT, {**VIT, "img_size": (8, 16)}),
    "deit": (ViT, {**VIT, "distilled": True, "norm_eps": 1e-12}),
    "swin": (Swin, SWIN),
    "swin_positions": (Swin, {**SWIN, "ape": True}),
    "swin_wide": (Swin, {**SWIN, "img_size": (24, 12), "window_size": 2}),
    "swin_v2": (SwinV2, SWIN),
    "swin_v2_trained": (SwinV2, {**SWIN, "pretrained_window_sizes": (5, 2)}),
}
# transformers computes the offsets of version 2 in float32
LIMIT = {"ViT": 1e-10, "Swin": 1e-10, "SwinV2": 1e-6}


def pair_of(case: str, dtype: str = "float64") -> tuple[Any, Any]:
    """A model here and the same in transformers."""
    kind, arguments = CASES[case]
    model = kind(**arguments, dtype=dtype)
    twin = (vit_pairs if kind is ViT else swin_pairs).transformers_twin(model, np.random.default_rng(4)).eval()
    return model, twin


def logits_of(twin: Any, images: Any) -> Any:
    with torch.no_grad():
        return twin(torch.tensor(images)).logits.numpy()


def images_for(model: Any) -> Any:
    side = model.config["img_size"]
    height, width = (side, side) if isinstance(side, int) else side
    return np.random.default_rng(5).standard_normal((2, 3, height, width)).astype(model.config["dtype"])


def close(got: Any, expected: Any, limit: float) -> bool:
    return bool(np.abs(got - expected).max() <= limit * np.abs(expected).max())


@pytest.mark.parametrize("size", ["5GB", "10KB"])
@pytest.mark.parametrize("case", CASES)
def test_what_transformers_saves_is_the_same_model_here(tmp_path: Path, case: str, size: str) -> None:
    model, twin = pair_of(case)
    twin.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "10KB")
    found = from_pretrained(tmp_path, dtype="float64")
    assert type(found) is type(model)
    settled = {name: value for name, value in found.config.items() if "drop" not in name}
    expected = {**model.config, **(PROFILES["huggingface"].settings(type(model).__name__) if "swin" in case else {})}
    assert settled == {name: expected[name] for name in settled}
    images = images_for(model)
    assert close(found.predict(images), logits_of(twin, images), LIMIT[type(model).__name__])
    other = load(type(model)(**CASES[case][1], dtype="float64", seed=9), tmp_path)
    assert all(np.array_equal(other.state_dict()[name], array) for name, array in model.state_dict().items())


@pytest.mark.parametrize("case", ["vit", "deit", "swin", "swin_v2"])
def test_in_float32(tmp_path: Path, case: str) -> None:
    model, twin = pair_of(case, "float32")
    twin.save_pretrained(tmp_path)
    found = from_pretrained(tmp_path)
    images = images_for(model)
    assert close(found.predict(images), logits_of(twin, images), 1e-5)


@pytest.mark.parametrize("case", ["vit", "deit", "swin", "swin_v2"])
def test_a_body_without_a_classifier(tmp_path: Path, case: str) -> None:
    model, twin = pair_of(case)
    twin.base_model.save_pretrained(tmp_path)
    found = from_pretrained(tmp_path, dtype="float64", num_classes=0)
    images = images_for(model)
    with torch.no_grad():
        seen = twin.base_model(torch.tensor(images))
    if isinstance(model, ViT):
        heads = seen.last_hidden_state[:, : 1 + model.config["distilled"]].numpy()
        expected = heads.mean(axis=1)  # of class and distillation token, as the mean of their two heads' logits
    else:
        expected = seen.pooler_output.numpy()
    assert close(found.predict(images), expected, LIMIT[type(model).__name__])


@pytest.mark.parametrize("case", [case for case in CASES if case != "swin_v2_trained"])
def test_an_export_loads_into_transformers(tmp_path: Path, case: str) -> None:
    model, twin = pair_of(case)
    twin.config.save_pretrained(tmp_path)  # what only transformers writes
    export(model, tmp_path / "model.safetensors", "huggingface")
    loaded, report = type(twin).from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    missing = [name for name in report["missing_keys"] if "relative_" not in name]
    assert not missing and not report["unexpected_keys"] and not report["mismatched_keys"]
    images = images_for(model)
    assert close(logits_of(loaded.eval(), images), model.predict(images), LIMIT[type(model).__name__])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("case", ["vit", "deit", "swin", "swin_v2"])
def test_a_state_dict_that_torch_saved(tmp_path: Path, case: str, zipped: bool) -> None:
    model, twin = pair_of(case)
    twin.save_pretrained(tmp_path)
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "model.safetensors")  # under the names that are published
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    other = load(type(model)(**CASES[case][1], dtype="float64", seed=9), path)
    assert all(np.array_equal(other.state_dict()[name], array) for name, array in model.state_dict().items())
    assert np.array_equal(from_pretrained(tmp_path, dtype="float64").predict(images_for(model)).shape, (2, 5))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("case", ["vit", "deit", "swin", "swin_v2"])
def test_the_names_in_memory_that_transformers_5_has(tmp_path: Path, case: str, zipped: bool) -> None:
    # state_dict() names them otherwise than save_pretrained does
    model, twin = pair_of(case)
    torch.save(twin.state_dict(), tmp_path / "file.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "config.json").write_text(json.dumps(twin.config.to_diff_dict()))
    other = load(type(model)(**CASES[case][1], dtype="float64", seed=9), tmp_path / "file.pt")
    assert all(np.array_equal(other.state_dict()[name], array) for name, array in model.state_dict().items())
