"""`forward_intermediates` against timm's: the same features for the same arguments, and the same gradients."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from parity_tools import torch

import minivit
from minivit.sizes import pair

timm = pytest.importorskip("timm", reason="compared with timm's models: pip install --no-deps timm torchvision")

from timm.models.deit import VisionTransformerDistilled  # noqa: E402
from timm.models.swin_transformer import SwinTransformer  # noqa: E402
from timm.models.swin_transformer_v2 import SwinTransformerV2  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

VIT: dict[str, Any] = {"img_size": (8, 12), "patch_size": 4, "num_classes": 3, "embed_dim": 8, "depth": 4}
VIT |= {"num_heads": 2, "mlp_ratio": 2.0}
SWIN: dict[str, Any] = {"img_size": 32, "patch_size": 2, "num_classes": 3, "embed_dim": 8, "depths": (2, 2, 2)}
SWIN |= {"num_heads": (1, 2, 2), "window_size": 4, "drop_path_rate": 0.0}
REGISTERS = {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.3}
HYBRID, SMALL_HYBRID = "vit_tiny_r_s16_p8_224", {"img_size": (32, 64), "depth": 3, "num_classes": 3}
LIMIT = 1e-9  # relative to the largest element; timm keeps the offsets of Swin v2 in float32, which are sharpened


def pairs(kind: str) -> tuple[Any, Any]:
    """A model of ours and timm's with the same random parameters, in float64."""
    makes = {
        "vit": (minivit.ViT, VisionTransformer, VIT, {}),
        "mean": (minivit.ViT, VisionTransformer, {**VIT, "global_pool": "avg"}, {}),
        "no class token": (minivit.ViT, VisionTransformer, {**VIT, "global_pool": "avg", "class_token": False}, {}),
        "registers": (minivit.ViT, VisionTransformer, {**VIT, **REGISTERS}, {}),
        "norm in front": (minivit.ViT, VisionTransformer, {**VIT, "pre_norm": True}, {}),
        "no last norm": (minivit.ViT, VisionTransformer, {**VIT, "final_norm": False}, {}),
        "attention pooling": (minivit.ViT, VisionTransformer, {**VIT, "global_pool": "map", "class_token": False}, {}),
        "distilled": (minivit.ViT, VisionTransformerDistilled, VIT, {"distilled": True}),
        "hybrid": (partial(minivit.create_model, HYBRID), partial(timm.create_model, HYBRID), SMALL_HYBRID, {}),
        "swin": (minivit.Swin, SwinTransformer, SWIN, {}),
        "swin v2": (minivit.SwinV2, SwinTransformerV2, SWIN, {}),
    }
    make, theirs, options, more = makes[kind]
    ours, twin = make(**options, **more, dtype="float64"), theirs(**options).double().eval()
    rng = np.random.default_rng(3)
    state = {}
    for name, param in ours.parameters().items():
        scale = 0.1 if name.endswith("cpb_mlp.2.weight") else 0.4
        gain = "norm" in name and name.endswith("weight")
        state[name] = gain + scale * rng.standard_normal(param.shape)
    ours.load_state_dict(state)
    result = twin.load_state_dict({name: torch.tensor(value) for name, value in state.items()}, strict=False)
    assert not result.unexpected_keys and {name for name, _ in twin.named_parameters()} == set(state)
    for module in twin.modules():
        if hasattr(module, "relative_coords_table"):
            steps = torch.arange(1 - module.window_size[0], module.window_size[0], dtype=torch.float64) * 8
            steps = steps / (module.window_size[0] - 1)
            axis = steps.sign() * (1 + steps.abs()).log2() / 3
            fine = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1)
            assert torch.allclose(module.relative_coords_table, fine[None].to(torch.float64), atol=1e-6)
            module.register_buffer("relative_coords_table", fine[None], persistent=False)
    return ours, twin


def flat(features: Any) -> list[Any]:
    return [features] if hasattr(features, "dtype") else [part for each in features for part in flat(each)]


KINDS = [
    "vit",
    "mean",
    "no class token",
    "distilled",
    "registers",
    "norm in front",
    "no last norm",
    "attention pooling",
]
KINDS += ["hybrid", "swin", "swin v2"]
CHOICES: list[dict[str, Any]] = [
    {},
    {"indices": 2, "intermediates_only": True},
    {"indices": [0, -1], "norm": True},
    {"indices": [2, 0, 2]},
    {"indices": [1], "stop_early": True},
    {"indices": [1, 0], "stop_early": True, "norm": True},
    {"indices": 1, "norm": True, "return_prefix_tokens": True, "intermediates_only": True},
    {"indices": [-2, 0], "return_prefix_tokens": True},
]


@pytest.mark.parametrize("options", CHOICES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_features_and_gradients_as_timm(kind: str, options: dict[str, Any]) -> None:
    swin = "swin" in kind
    if swin and "return_prefix_tokens" in options:
        pytest.skip("timm's Swin has no prefix tokens to return")
    ours, twin = pairs(kind)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 3, *pair(ours.config["img_size"])))
    tx = torch.tensor(x, requires_grad=True)
    expected = twin.forward_intermediates(tx, **options)
    features, back = ours.forward_intermediates(x, **options)
    assert type(features) is type(expected)
    arrays, tensors = flat(features), flat(expected)
    for array, wanted in zip(arrays, tensors, strict=True):
        close(array, wanted)
    dy = [rng.standard_normal(array.shape) for array in arrays]
    torch.autograd.backward(tensors, [torch.tensor(each) for each in dy])
    close(back(*dy), tx.grad)
    params = ours.parameters()
    for name, param in twin.named_parameters():
        assert (param.grad is None) == (params[name].grad is None), name
        if param.grad is not None:
            close(params[name].grad, param.grad)


def close(ours: Any, theirs: Any) -> None:
    theirs = theirs.detach().numpy()
    assert ours.shape == theirs.shape and ours.dtype == np.float64
    assert np.abs(ours - theirs).max() <= LIMIT * max(1, np.abs(theirs).max())


def test_the_same_choices_are_refused_as_by_timm() -> None:
    ours, twin = pairs("vit")
    x = np.zeros((1, 3, 8, 12))
    for indices in (0, 5, -1, [4], [-5]):
        with pytest.raises(AssertionError):
            twin.forward_intermediates(torch.tensor(x), indices)
        with pytest.raises(ValueError, match="indices"):
            ours.forward_intermediates(x, indices)
