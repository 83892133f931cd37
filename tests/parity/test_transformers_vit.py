"""Whole models against transformers' ViT and distilled DeiT, with the same random parameters in every tensor.

In float64 the logits, the gradient of the images and the gradients of all parameters agree to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parity_tools import MODEL_FORWARD, check_forward, check_gradients, tensor, timm_arrays, timm_name, torch
from vit_pairs import transformers_twin

from minivit import functional as F
from minivit.models import ViT

SMALL: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 5,
    "embed_dim": 12,
    "depth": 3,
    "num_heads": 3,
    "mlp_ratio": 2.0,
}

SHAPES = {
    "square": {},
    "wide_image": {"img_size": (8, 16)},
    "tall_image_and_patch": {"img_size": (12, 8), "patch_size": (4, 2), "in_chans": 1},
    "one_block": {"depth": 1},
    "no_qkv_bias": {"qkv_bias": False},
    "tanh_gelu": {"gelu": "tanh"},
    "eps_1e-12": {"norm_eps": 1e-12},
    "one_patch": {"patch_size": 8, "num_heads": 1},
}


def batch_for(config: dict[str, Any], dtype: str, seed: int = 5) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    size = config["img_size"]
    height, width = (size, size) if isinstance(size, int) else size
    images = rng.standard_normal((4, config["in_chans"], height, width)).astype(dtype)
    images[1] *= 0.01  # a nearly black image: tokens of low variance
    return images, rng.integers(0, config["num_classes"], 4)


def compare(config: dict[str, Any], skip: bool, dtype: str = "float64", attention: str = "sdpa") -> None:
    ours = ViT(**{**config, "skip_unused_tokens": skip, "dtype": dtype})
    theirs = transformers_twin(ours, np.random.default_rng(4), attention)
    images, labels = batch_for(ours.config, dtype)
    timages = tensor(images)
    expected = theirs(timages).logits
    torch.nn.functional.cross_entropy(expected, torch.tensor(labels)).backward()

    logits, back = ours(images)
    _, back_loss = F.softmax_cross_entropy(logits, labels)
    dimages = back(back_loss())

    check_forward(logits, expected, MODEL_FORWARD[dtype])
    got = {name: param.grad for name, param in ours.parameters().items()}
    wanted = timm_arrays({name: param.grad for name, param in theirs.named_parameters()})
    check_gradients(got | {"images": dimages}, wanted | {"images": timages.grad})
    check_forward(ours.predict(images), expected, MODEL_FORWARD[dtype])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_vit(shape: str, skip: bool) -> None:
    compare(SMALL | SHAPES[shape], skip)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("shape", ["square", "wide_image", "tall_image_and_patch", "one_block", "eps_1e-12"])
def test_distilled_deit(shape: str, skip: bool) -> None:
    compare(SMALL | SHAPES[shape] | {"distilled": True}, skip)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("distilled", [False, True])
def test_in_float32(distilled: bool, attention: str) -> None:
    compare(SMALL | {"distilled": distilled}, True, "float32", attention)


def test_both_heads_of_a_distilled_model() -> None:
    ours = ViT(**SMALL, distilled=True, dtype="float64")
    theirs = transformers_twin(ours, np.random.default_rng(4))
    images, _ = batch_for(ours.config, "float64")
    expected = theirs(torch.tensor(images))
    logits, distilled = ours.heads(images)
    check_forward(logits, expected.cls_logits)
    check_forward(distilled, expected.distillation_logits)


def test_features_are_the_normed_class_token() -> None:
    ours = ViT(**SMALL, dtype="float64")
    theirs = transformers_twin(ours, np.random.default_rng(4))
    images, _ = batch_for(ours.config, "float64")
    check_forward(ours.features(images), theirs.vit(torch.tensor(images)).last_hidden_state[:, 0])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("vit.encoder.layer.3.attention.attention.query.bias", "blocks.3.attn.q_proj.bias"),
        ("vit.encoder.layer.3.attention.attention.value.weight", "blocks.3.attn.v_proj.weight"),
        ("vit.encoder.layer.3.attention.output.dense.weight", "blocks.3.attn.proj.weight"),
        ("vit.encoder.layer.3.intermediate.dense.bias", "blocks.3.mlp.fc1.bias"),
        ("vit.encoder.layer.3.output.dense.bias", "blocks.3.mlp.fc2.bias"),
        ("vit.encoder.layer.3.layernorm_after.weight", "blocks.3.norm2.weight"),
    ],
)
def test_the_older_names_are_understood(theirs: str, ours: str) -> None:
    # transformers 4 named the same parameters otherwise than transformers 5
    assert timm_name(theirs) == ours
