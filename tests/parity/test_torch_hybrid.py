"""The hybrid against PyTorch's operations: a ResNet's root and bottlenecks written out, then the ViT of test_torch_vit.

Padding is TensorFlow's "SAME", which PyTorch has for stride 1 alone; here it is written as a sum over both sides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parity_tools import (
    DTYPES,
    check_forward,
    check_gradients,
    compare_function,
    compare_layer,
    randomize,
    tensor,
    torch,
)
from test_torch_vit import reference

from minivit import functional as F, nn
from minivit.models import ViT

TF = torch.nn.functional
SLACK = 1e-9  # of a whole hybrid in float64, logits and every gradient
STEM: dict[str, Any] = {"in_chans": 3, "resnet_width": 8, "resnet_groups": 4, "patch_size": 1}
SIZE: dict[str, Any] = {"num_classes": 5, "embed_dim": 12, "depth": 2, "num_heads": 3}
# name: (options, image)
HYBRIDS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "three_stages": ({"img_size": 64, "resnet_layers": (2, 1, 2)}, (64, 64)),
    "odd_sides": ({"img_size": (45, 70), "resnet_layers": (1, 2)}, (45, 70)),  # maps 12x18 and 6x9
    "root_alone": ({"img_size": 32, "resnet_layers": (), "patch_size": 4}, (32, 32)),
    "patches_of_the_map": ({"img_size": 48, "resnet_layers": (1, 1), "patch_size": (2, 3)}, (48, 48)),
    "average": ({"img_size": 32, "resnet_layers": (1,), "global_pool": "avg", "class_token": False}, (32, 32)),
    "another_size": ({"img_size": 32, "resnet_layers": (1, 1), "dynamic_img_size": True}, (50, 40)),
}


def same(x: Any, kernel: int, stride: int, value: float = 0.0) -> Any:
    """The map with the padding that gives ceil(side / stride) places, the odd zero behind."""
    sides = []
    for length in (x.shape[3], x.shape[2]):  # PyTorch's pad begins with the last axis
        total = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        sides += [total // 2, total - total // 2]
    return TF.pad(x, sides, value=value)


def stem(c: dict[str, Any], p: dict[str, Any], images: Any) -> Any:
    """Images -> the map of the root and the stages, from parameters p under timm's names."""
    root = "patch_embed.backbone." + ("stem." if c["resnet_layers"] else "")

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        weight = p[f"{name}.weight"]
        flat = weight.flatten(1)
        variance, mean = torch.var_mean(flat, dim=1, keepdim=True, correction=0)
        standard = ((flat - mean) / torch.sqrt(variance + 1e-8)).view_as(weight)
        return TF.conv2d(same(x, weight.shape[2], stride), standard, stride=stride)

    def norm(x: Any, name: str) -> Any:
        return TF.group_norm(x, c["resnet_groups"], p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)

    x = norm(conv(images, f"{root}conv", 2), f"{root}norm").relu()
    x = TF.max_pool2d(same(x, 3, 2, -torch.inf), 3, 2)
    for i, depth in enumerate(c["resnet_layers"]):
        for j in range(depth):
            block, stride = f"patch_embed.backbone.stages.{i}.blocks.{j}", 2 if i and not j else 1
            shortcut = x
            if j == 0:
                shortcut = norm(conv(x, f"{block}.downsample.conv", stride), f"{block}.downsample.norm")
            y = norm(conv(x, f"{block}.conv1"), f"{block}.norm1").relu()
            y = norm(conv(y, f"{block}.conv2", stride), f"{block}.norm2").relu()
            x = (norm(conv(y, f"{block}.conv3"), f"{block}.norm3") + shortcut).relu()
    return x


@pytest.mark.parametrize("name", HYBRIDS)
def test_logits_and_every_gradient(name: str) -> None:
    options, (height, width) = HYBRIDS[name]
    rng = np.random.default_rng(0)
    model = ViT(**(STEM | SIZE | options), dtype="float64", seed=1)
    randomize(model, rng)
    params = {name: tensor(param.data) for name, param in model.parameters().items()}
    images = rng.standard_normal((2, 3, height, width))
    maps = tensor(images)
    built = stem(model.config, params, torch.zeros(1, 3, *np.broadcast_to(options["img_size"], 2), dtype=maps.dtype))
    inside = model.config | {"img_size": tuple(built.shape[2:])}  # from here on the map is the ViT's image
    expected = reference(inside, params, stem(model.config, params, maps))
    logits, back = model(images)
    check_forward(logits, expected, SLACK)
    check_forward(model.predict(images), expected, SLACK)
    dlogits = rng.standard_normal(logits.shape)
    expected.backward(torch.tensor(dlogits))
    got = {"images": back(dlogits)} | {name: param.grad for name, param in model.parameters().items()}
    check_gradients(got, {"images": maps.grad} | {name: param.grad for name, param in params.items()}, SLACK)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
def test_same_padding(kernel: int, stride: int, dtype: str) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 4, 10, 9)).astype(dtype)
    weight = rng.standard_normal((6, 4, kernel, kernel)).astype(dtype)
    compare_function(
        lambda x, w: F.conv2d(x, w, stride=stride, padding="same"),
        lambda x, w: TF.conv2d(same(x, kernel, stride), w, stride=stride),
        [x, weight],
        rng,
        slack=2.0 if dtype == "float32" else 1.0,  # sums of up to 196 products, in another order
    )
    compare_function(
        lambda x: F.max_pool2d(x, kernel, stride, "same"),
        lambda x: TF.max_pool2d(same(x, kernel, stride, -torch.inf), kernel, stride),
        [x],
        rng,
    )
    assert F.conv2d(x, weight, stride=stride, padding="same")[0].shape[2:] == (-(-10 // stride), -(-9 // stride))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # it may copy, and need not
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [(3, 2), (4, 5)])
def test_same_padding_with_stride_1_is_pytorchs(kernel: tuple[int, int], dilation: int) -> None:
    rng = np.random.default_rng(3)
    options: dict[str, Any] = {"padding": "same", "dilation": dilation}
    compare_function(
        lambda x, w: F.conv2d(x, w, **options),
        lambda x, w: TF.conv2d(x, w, **options),
        [rng.standard_normal((2, 3, 8, 9)), rng.standard_normal((5, 3, *kernel))],
        rng,
    )
    layer = nn.Conv2d(3, 4, kernel, padding="same", dilation=dilation, dtype="float64")
    module = torch.nn.Conv2d(3, 4, kernel, **options, dtype=torch.float64)
    compare_layer(layer, module, rng.standard_normal((2, 3, 8, 9)), rng, {"weight": "weight", "bias": "bias"})
