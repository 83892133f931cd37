"""Folders that transformers writes of CLIP, SigLIP, DINOv2 and 3 become the same models here, and exports load there.

Nothing is downloaded: the models are built from configurations, with random parameters.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_tools import torch

from minivit.io.safetensors import CheckpointError
from minivit.io.weights import read_weights
from minivit.pretrained import export, from_pretrained
from minivit.pretrained.recognition import recognize
from minivit.pretrained.zero_shot import USUAL_SCALE, scale_of, zero_shot_probabilities

transformers = pytest.importorskip(
    "transformers", reason="compared with transformers' models: install the `parity` extra, see CONTRIBUTING.md"
)

SIZES: dict[str, Any] = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
SIZES |= {"image_size": 8, "patch_size": 4}
TOWER = {**SIZES, "intermediate_size": 30}
TEXT = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
TEXT |= {"vocab_size": 10, "max_position_embeddings": 5, "bos_token_id": 0, "eos_token_id": 1}
DINO = {**SIZES, "mlp_ratio": 2}
BEIT = {**TOWER, "use_relative_position_bias": True}
SHARED = {**TOWER, "use_shared_relative_position_bias": True, "use_mask_token": True}
DINO3 = {**TOWER, "hidden_size": 24, "num_register_tokens": 2}  # heads of 8 have two frequencies

# the class, its configuration, and how its image vector is read: of an output, or as the class token or mean
CASES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "clip_vision": ("CLIPVisionModel", "CLIPVisionConfig", TOWER, "pooler_output"),
    "clip_vision_gelu": ("CLIPVisionModel", "CLIPVisionConfig", {**TOWER, "hidden_act": "gelu"}, "pooler_output"),
    "clip_projection": (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        {**TOWER, "projection_dim": 7, "layer_norm_eps": 1e-3},
        "image_embeds",
    ),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {"vision_config": TOWER, "text_config": TEXT, "projection_dim": 7},
        "get_image_features",
    ),
    "clip_classifier": (
        "CLIPForImageClassification",
        "CLIPConfig",
        {"vision_config": TOWER, "text_config": TEXT, "num_labels": 5},
        "logits",
    ),
    "siglip_vision": ("SiglipVisionModel", "SiglipVisionConfig", TOWER, "pooler_output"),
    "siglip_without_head": (
        "SiglipVisionModel",
        "SiglipVisionConfig",
        {**TOWER, "vision_use_head": False},
        "mean",
    ),
    "siglip": ("SiglipModel", "SiglipConfig", {"vision_config": TOWER, "text_config": TEXT}, "get_image_features"),
    "siglip_classifier": (
        "SiglipForImageClassification",
        "SiglipConfig",
        {"vision_config": TOWER, "text_config": TEXT, "num_labels": 5},
        "logits",
    ),
    "dinov2": ("Dinov2Model", "Dinov2Config", DINO, "pooler_output"),
    "dinov2_swiglu": ("Dinov2Model", "Dinov2Config", {**DINO, "use_swiglu_ffn": True}, "pooler_output"),
    "dinov2_no_bias": ("Dinov2Model", "Dinov2Config", {**DINO, "qkv_bias": False}, "pooler_output"),
    "dinov2_registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO, "pooler_output"),
    "dinov2_registers_swiglu": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {**DINO, "use_swiglu_ffn": True, "num_register_tokens": 2},
        "pooler_output",
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", DINO3, "pooler_output"),
    "dinov3_key_bias": ("DINOv3ViTModel", "DINOv3ViTConfig", {**DINO3, "key_bias": True}, "pooler_output"),
    "dinov3_gated": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {
            **DINO3,
            "num_register_tokens": 0,
            "use_gated_mlp": True,
            "hidden_act": "silu",
            "query_bias": False,
            "value_bias": False,
        },
        "pooler_output",
    ),
    "beit": ("BeitModel", "BeitConfig", BEIT, "pooler_output"),
    "beit_classifier": ("BeitForImageClassification", "BeitConfig", {**BEIT, "num_labels": 5}, "logits"),
    "beit_token": ("BeitModel", "BeitConfig", {**BEIT, "use_mean_pooling": False}, "pooler_output"),
    "beit_shared": ("BeitForImageClassification", "BeitConfig", {**SHARED, "num_labels": 5}, "logits"),
    "beit_both": ("BeitModel", "BeitConfig", {**SHARED, "use_relative_position_bias": True}, "pooler_output"),
    "beit_unscaled": ("BeitModel", "BeitConfig", {**BEIT, "layer_scale_init_value": 0.0}, "pooler_output"),
    "beit_placed": (
        "BeitModel",
        "BeitConfig",
        {**BEIT, "use_relative_position_bias": False, "use_absolute_position_embeddings": True},
        "pooler_output",
    ),
    "vit_mae": ("ViTMAEModel", "ViTMAEConfig", {**TOWER, "mask_ratio": 0.0}, "token"),
    "ijepa": ("IJepaModel", "IJepaConfig", TOWER, "mean"),
    "ijepa_classifier": ("IJepaForImageClassification", "IJepaConfig", {**TOWER, "num_labels": 5}, "logits"),
}
PRETRAINING = {"beit_pretraining": ("BeitForMaskedImageModeling", "BeitConfig", {**SHARED, "vocab_size": 9}, "")}
BESIDE = {"clip": "text_model", "siglip": "text_model"}


def twin_of(case: str, **more: Any) -> Any:
    """The model of transformers in float64, with every parameter far from its start."""
    kind, config, arguments, _ = {**CASES, **PRETRAINING}[case]
    twin = getattr(transformers, kind)(getattr(transformers, config)(**{**arguments, **more})).to(torch.float64).eval()
    rng = np.random.default_rng(3)
    with torch.no_grad():
        for name, param in twin.named_parameters():
            gain = "norm" in name and name.endswith("weight")
            param.copy_(torch.tensor(gain + 0.4 * rng.standard_normal(tuple(param.shape))))
    return with_exact_rotation(twin)


@pytest.fixture(autouse=True)
def exact_centers(monkeypatch: pytest.MonkeyPatch) -> None:
    """DINOv3's coordinates in float64, of which transformers has float32."""
    module = importlib.import_module("transformers.models.dinov3_vit.modeling_dinov3_vit")
    centers = module.get_patches_center_coordinates
    exact = {"dtype": torch.float64}
    monkeypatch.setattr(module, centers.__name__, lambda *grid, **more: centers(*grid, **{**more, **exact}))


def with_exact_rotation(twin: Any) -> Any:
    """DINOv3's frequencies in float64, likewise."""
    if hasattr(twin, "rope_embeddings"):
        size = twin.config.hidden_size // twin.config.num_attention_heads
        twin.rope_embeddings.inv_freq = 1 / 100 ** torch.arange(0, 1, 4 / size, dtype=torch.float64)
    return twin


def output_of(twin: Any, x: Any, how: str) -> Any:
    """The image vectors or logits, as a tensor with its graph."""
    if how.startswith("get_"):
        seen = getattr(twin, how)(x)
        return getattr(seen, "pooler_output", seen)
    seen = twin(x)
    if how == "token":
        return seen.last_hidden_state[:, 0]
    if how == "mean":
        return seen.last_hidden_state.mean(dim=1)
    return getattr(seen, how)


def vector_of(twin: Any, images: Any, how: str) -> Any:
    with torch.no_grad():
        return output_of(twin, torch.tensor(images), how).numpy()


def images() -> Any:
    return np.random.default_rng(5).standard_normal((2, 3, 8, 8))


def close(got: Any, expected: Any, limit: float = 1e-9) -> bool:
    return got.shape == expected.shape and bool(np.abs(got - expected).max() <= limit * np.abs(expected).max())


@pytest.mark.parametrize("size", ["5GB", "4KB"])
@pytest.mark.parametrize("case", CASES)
def test_what_transformers_saves_is_the_same_model_here(tmp_path: Path, case: str, size: str) -> None:
    twin, lines = twin_of(case), list[str]()
    twin.save_pretrained(tmp_path, max_shard_size=size)
    found = from_pretrained(tmp_path, dtype="float64", report=lines.append)
    assert close(found.predict(images()), vector_of(twin, images(), CASES[case][3]))
    said = "".join(lines)
    assert all(line.startswith("minivit: omitted, as not part of the model: ") for line in lines)
    assert BESIDE.get(case, "") in said and ("mask_token" in said) == (
        "dino" in case or bool(CASES[case][2].get("use_mask_token"))
    )


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_images_and_parameters(tmp_path: Path, case: str) -> None:
    """Those of parameters along one random direction, which both projects' files carry over to the other's names."""
    twin, rng = twin_of(case), np.random.default_rng(7)
    twin.save_pretrained(tmp_path / "before")
    ours = from_pretrained(tmp_path / "before", dtype="float64", report=lambda line: None)
    y, back = ours(images())
    dy, x = rng.standard_normal(y.shape), torch.tensor(images(), requires_grad=True)
    dx = back(dy)
    output_of(twin, x, CASES[case][3]).backward(torch.tensor(dy))
    assert close(dx, x.grad.numpy())
    expected = 0.0
    with torch.no_grad():
        for param in (each for each in twin.parameters() if each.grad is not None):  # not MAE's fixed positions
            move = torch.tensor(rng.standard_normal(tuple(param.shape)))
            expected += float((param.grad * move).sum())
            param += move
    twin.save_pretrained(tmp_path / "after")
    moved = from_pretrained(tmp_path / "after", dtype="float64", report=lambda line: None).parameters()
    changes = {name: moved[name].data - param.data for name, param in ours.parameters().items()}
    got = sum(float((param.grad * changes[name]).sum()) for name, param in ours.parameters().items())
    assert got == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_the_names_in_memory(tmp_path: Path, case: str) -> None:
    # state_dict() names some arrays otherwise than save_pretrained does
    twin = twin_of(case)
    torch.save(twin.state_dict(), tmp_path / "file.pt")
    (tmp_path / "config.json").write_text(json.dumps(twin.config.to_dict()))
    found = from_pretrained(tmp_path / "file.pt", dtype="float64", report=lambda line: None)
    assert close(found.predict(images()), vector_of(twin, images(), CASES[case][3]))


@pytest.mark.parametrize(
    "case", ["clip_vision", "siglip_vision", "clip", "siglip", "dinov2", "dinov2_registers", "dinov3", "beit"]
)
def test_what_config_json_leaves_out_is_transformers_default(tmp_path: Path, case: str) -> None:
    twin = twin_of(case)
    twin.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for part in (config, config.get("vision_config", {})):
        for name in ("hidden_act", "layer_norm_eps"):
            part.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = from_pretrained(tmp_path, dtype="float64", report=lambda line: None)
    assert close(found.predict(images()), vector_of(twin, images(), CASES[case][3]))


def test_a_beit_in_pretraining_is_its_encoder(tmp_path: Path) -> None:
    twin = twin_of("beit_pretraining")
    twin.save_pretrained(tmp_path)
    lines: list[str] = []
    found = from_pretrained(tmp_path, dtype="float64", report=lines.append)
    assert any("lm_head.weight" in line for line in lines)
    with torch.no_grad():
        expected = twin.layernorm(twin.beit(torch.tensor(images())).last_hidden_state)[:, 0].numpy()
    assert close(found.predict(images()), expected)


@pytest.mark.parametrize("case", ["clip", "siglip"])
def test_class_vectors_give_the_probabilities_of_clip(tmp_path: Path, case: str) -> None:
    twin = twin_of(case)
    twin.save_pretrained(tmp_path)
    with torch.no_grad():
        out = twin(input_ids=torch.tensor([[0, 3, 1], [0, 4, 1], [0, 5, 1]]), pixel_values=torch.tensor(images()))
        expected = out.logits_per_image.softmax(dim=1).numpy()
    features = from_pretrained(tmp_path, dtype="float64", report=lambda line: None).predict(images())
    scale = scale_of(recognize(read_weights(tmp_path)))
    assert scale is not None and scale != USUAL_SCALE
    assert close(zero_shot_probabilities(features, 3 * out.text_embeds.numpy(), scale), expected)


@pytest.mark.parametrize("case", ["Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification"])
def test_a_head_that_reads_two_vectors_is_refused_and_its_features_are_not(tmp_path: Path, case: str) -> None:
    config = getattr(transformers, case.replace("ForImageClassification", "Config"))(**DINO, num_labels=5)
    twin = getattr(transformers, case)(config).to(torch.float64).eval()
    twin.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="reads 24 channels.*class token and the mean.*num_classes=0"):
        from_pretrained(tmp_path, report=lambda line: None)
    found = from_pretrained(tmp_path, num_classes=0, dtype="float64", report=lambda line: None)
    with torch.no_grad():
        expected = twin.base_model(torch.tensor(images())).pooler_output.numpy()
    assert close(found.predict(images()), expected)


@pytest.mark.parametrize(
    "case", ["dinov2", "dinov2_registers", "dinov2_swiglu", "dinov3", "beit", "clip_vision", "siglip_vision"]
)
def test_other_sizes_are_resampled_as_there(tmp_path: Path, case: str) -> None:
    twin = twin_of(case)
    twin.save_pretrained(tmp_path)
    found = from_pretrained(tmp_path, img_size=(12, 20), dtype="float64", report=lambda line: None)
    wide = np.random.default_rng(5).standard_normal((2, 3, 12, 20))
    more = {} if "dino" in case or "beit" in case else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = twin(torch.tensor(wide), **more).pooler_output.numpy()
    assert close(found.predict(wide), expected, 1e-5)  # transformers resamples DINOv2's positions in float32


EXPORTED = ["clip_vision", "clip_projection", "siglip_vision", "dinov2", "dinov2_swiglu", "dinov2_no_bias"]
EXPORTED += ["dinov2_registers", "dinov2_registers_swiglu", "dinov3", "dinov3_key_bias", "dinov3_gated"]
EXPORTED += ["beit", "beit_classifier", "beit_token", "beit_unscaled"]


@pytest.mark.parametrize("case", EXPORTED)
def test_an_export_loads_into_transformers(tmp_path: Path, case: str) -> None:
    twin = twin_of(case)
    twin.save_pretrained(tmp_path)
    model = from_pretrained(tmp_path, dtype="float64", report=lambda line: None)
    (tmp_path / "model.safetensors").unlink()
    export(model, tmp_path / "model.safetensors", "huggingface")
    loaded, report = type(twin).from_pretrained(tmp_path, output_loading_info=True, dtype=torch.float64)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    assert close(vector_of(with_exact_rotation(loaded.eval()), images(), CASES[case][3]), model.predict(images()))
