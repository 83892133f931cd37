"""Weights as training programs save them: under other prefixes, beside other things, one model of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn

from minivit import CheckpointError, ViT, from_pretrained
from minivit.io.safetensors import save_arrays

SIZES = {"img_size": 16, "patch_size": 4, "in_chans": 3, "num_classes": 5, "embed_dim": 8, "depth": 1, "num_heads": 2}
PREFIXES = ["module.", "_orig_mod.module.", "module._orig_mod.", "model.", "net.", "backbone.", "encoder.", "vit."]
PREFIXES += ["base_model.", "module.base_encoder.", "module.student.backbone."]


def stored(path: Path, arrays: dict[str, Any]) -> Path:
    save_arrays(path / "model.safetensors", arrays, None)
    return path


def same(found: Any, model: Any) -> bool:
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(found.dtype)
    return np.array_equal(found.predict(x), model.predict(x))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_taken_off(tmp_path: Path, prefix: str) -> None:
    model, lines = drawn(ViT, **SIZES), list[str]()
    arrays = {prefix + name: array for name, array in model.state_dict().items()}
    assert same(from_pretrained(stored(tmp_path, arrays), num_heads=2, report=lines.append), model) and not lines


def test_what_stands_beside_the_model_is_left_out_in_words(tmp_path: Path) -> None:
    model, lines = drawn(ViT, **SIZES), list[str]()
    arrays = {f"module.{name}": array for name, array in model.state_dict().items()}
    arrays |= {"n_averaged": np.zeros(1), "criterion.weight": np.ones(3)}
    assert same(from_pretrained(stored(tmp_path, arrays), num_heads=2, report=lines.append), model)
    assert len(lines) == 1 and "'n_averaged'" in lines[0] and "'criterion.weight'" in lines[0]


def test_a_head_outside_the_prefix_is_the_models(tmp_path: Path) -> None:
    model = drawn(ViT, **SIZES)
    state = model.state_dict()
    arrays = {f"backbone.{name}": array for name, array in state.items() if not name.startswith("head")}
    arrays |= {f"classifier.{part}": state[f"head.{part}"] for part in ("weight", "bias")}
    assert same(from_pretrained(stored(tmp_path, arrays), num_heads=2), model)


def test_of_two_models_none_is_guessed(tmp_path: Path) -> None:
    arrays = drawn(ViT, **SIZES).state_dict()
    both = {f"{which}.{name}": array for which in ("teacher", "student") for name, array in arrays.items()}
    with pytest.raises(
        CheckpointError, match="several models, under 'student.', 'teacher.': save the arrays of one of them"
    ):
        from_pretrained(stored(tmp_path, both))
