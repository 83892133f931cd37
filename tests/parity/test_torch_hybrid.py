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
from plain_torch_stem import same, stem
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
    "googles_epsilons": ({"img_size": 48, "resnet_layers": (1, 2), "resnet_eps": "google"}, (48, 48)),
    "googles_root_alone": ({"img_size": 32, "resnet_layers": (), "patch_size": 4, "resnet_eps": "google"}, (32, 32)),
    "patches_of_the_map": ({"img_size": 48, "resnet_layers": (1, 1), "patch_size": (2, 3)}, (48, 48)),
    "average": ({"img_size": 32, "resnet_layers": (1,), "global_pool": "avg", "class_token": False}, (32, 32)),
    "another_size": ({"img_size": 32, "resnet_layers": (1, 1), "dynamic_img_size": True}, (50, 40)),
}


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
