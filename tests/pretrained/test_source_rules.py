"""Where a source's model computes otherwise than its arrays suggest, it is honored, refused by name, or said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published_names import drawn

from minivit import CheckpointError, ViT, create_model, export, from_pretrained
from minivit.io.safetensors import save_arrays

VIT: dict[str, Any] = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 8, "depth": 1, "num_heads": 2}


def written(folder: Path, model: Any, layout: str, config: dict[str, Any] | None = None) -> Path:
    """The folder, with the model's file in that layout and a config.json beside it."""
    export(model, folder / "model.safetensors", layout)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_distilled_model_has_no_norm_behind_its_tokens(tmp_path: Path) -> None:
    # timm's reads its tokens after `norm`, and with fc_norm=True it has no norm at all
    with pytest.raises(ValueError, match="distilled=True has its norm before .*: leave fc_norm out"):
        create_model("deit_tiny_distilled_patch16_224", fc_norm=True)
    config = {"architecture": "deit_tiny_distilled_patch16_224", "model_args": {"num_heads": 2, "fc_norm": True}}
    path = written(tmp_path, drawn(ViT, **VIT, distilled=True), "timm", config)
    arrays = dict(drawn(ViT, **VIT, distilled=True).state_dict())
    arrays |= {f"fc_norm.{part}": arrays.pop(f"norm.{part}") for part in ("weight", "bias")}
    save_arrays(path / "model.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match="leave fc_norm out"):
        from_pretrained(path)
