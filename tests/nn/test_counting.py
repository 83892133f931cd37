"""What layers cost, planned from shapes alone, against what their forward passes do: shapes, products, kept numbers."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import pytest
from table import LAYERS, MODELS, Case, name_of

import minivit
from minivit import nn
from minivit.nn.counting import Cost, cost, multiply_adds
from minivit.nn.kept_memory import Kept

every_layer = pytest.mark.parametrize("case", LAYERS + MODELS, ids=name_of)


class Counting(np.ndarray):
    """An array that counts the multiply-adds of the products that it takes part in; what comes out counts on.

    Products of three, which resample positions, have the same cost for any number of images and are not counted.
    """

    macs = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        options = {name: plain(value) for name, value in options.items()}
        result = getattr(ufunc, method)(*plain(inputs), **options)
        if ufunc is np.matmul:
            Counting.macs += result.size * inputs[0].shape[-1]
        return result.view(Counting) if isinstance(result, np.ndarray) else result

    def __array_function__(self, function: Any, types: Any, args: Any, options: Any) -> Any:
        if function is np.einsum and len(args) == 3:
            letters = {name: size for word, x in zip(args[0].split("->")[0].split(","), args[1:])
                       for name, size in zip(word, x.shape)}  # fmt: skip
            Counting.macs += prod(letters.values())
        result = function(*plain(args), **plain(options))
        return result.view(Counting) if isinstance(result, np.ndarray) else result


def plain(value: Any) -> Any:
    """The same without `Counting`, in containers too."""
    if isinstance(value, Counting):
        return np.asarray(value)
    if isinstance(value, list | tuple):
        return type(value)(plain(each) for each in value)
    return {name: plain(each) for name, each in value.items()} if isinstance(value, dict) else value


@every_layer
def test_the_shape_and_the_products_are_those_of_the_forward_pass(case: Case) -> None:
    (x,) = case.arguments()
    layer = case.build(x)
    for name, param in layer.parameters().items():
        if "cpb_mlp" not in name:  # Swin v2's biases: computed once, for any number of images
            param.swap(param.data.view(Counting))
    Counting.macs = 0
    with minivit.plain():
        y, _ = layer(x.view(Counting))
    assert cost(layer, x.shape).shape == y.shape
    assert multiply_adds(layer, x.shape, every_token=False) == Counting.macs


def test_unread_tokens_are_not_counted_unless_all_are_requested() -> None:
    layer = nn.Attention(4, 2, queries=1)
    assert Cost((3, 1, 4)) == ((3, 1, 4), 0, 0)  # no products, and nothing kept
    assert cost(layer, (3, 5, 4)).shape == (3, 1, 4) and cost(layer, (3, 5, 4), True).shape == (3, 5, 4)
    assert multiply_adds(layer, (3, 5, 4)) == multiply_adds(layer, (3, 5, 4), True)
    assert multiply_adds(layer, (3, 5, 4)) > multiply_adds(layer, (3, 5, 4), False) == cost(layer, (3, 5, 4)).macs


def test_products_are_counted() -> None:
    """So that the test above can fail."""
    a, b = np.ones((2, 3, 4)).view(Counting), np.ones((4, 5))
    Counting.macs = 0
    y = (np.concatenate((a + 1, a)) @ b).sum(axis=0)
    assert isinstance(y, Counting) and Counting.macs == 4 * 3 * 4 * 5
    np.einsum("bij,jk->bik", a, b)
    assert Counting.macs == 4 * 3 * 4 * 5 + 2 * 3 * 4 * 5


@every_layer
def test_every_token_counts_as_if_none_were_skipped(case: Case) -> None:
    (x,) = case.arguments()
    layer = case.build(x)
    all_tokens, needed = (multiply_adds(layer, x.shape, every_token=every) for every in (True, False))
    skips = [part for part in every_part(layer) if isinstance(part, nn.Attention) and part.queries is not None]
    assert all_tokens > needed if skips else all_tokens == needed
    for part in skips:
        part.queries = None
    assert multiply_adds(layer, x.shape, every_token=False) == all_tokens


def every_part(layer: Any) -> Any:
    yield layer
    for _, part in layer.parts():
        yield from every_part(part)


_SIZE: dict[str, Any] = {"num_classes": 5, "drop_path_rate": 0.0}
_VIT: dict[str, Any] = {"patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 4}
_SWIN: dict[str, Any] = {"img_size": 64, "embed_dim": 32, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
_STEM: dict[str, Any] = {"resnet_layers": (2, 2), "resnet_width": 16, "resnet_groups": 8, "patch_size": 1}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (minivit.ViT, {"img_size": 28, **_VIT}),
        (minivit.ViT, {"img_size": 64, **_VIT}),  # so many keys that attention runs in blocks and keeps no weights
        (minivit.ViT, {"img_size": 64, **_VIT, **_STEM}),
        (minivit.Swin, _SWIN),
        (minivit.SwinV2, _SWIN),
    ],
)
def test_what_a_forward_pass_keeps_is_estimated_well(kind: Any, options: Any) -> None:
    model = kind(**options, **_SIZE)
    x = np.random.default_rng(0).standard_normal((2, 3, options["img_size"], options["img_size"]), dtype=np.float32)
    _, back = model(x, np.random.default_rng(1))
    known = [param.data for param in model.parameters().values()]
    kept = Kept([*known, *model.constants()]).add(back) / x.itemsize
    assert 0.9 * kept < cost(model, x.shape).kept < 1.02 * kept


def test_a_layer_of_unknown_cost_is_named() -> None:
    class Own(nn.Layer):
        def forward(self, x: Any, rng: Any = None) -> Any:
            return x, lambda dy: dy

    with pytest.raises(LookupError, match=r"cost of Own is not known.*minivit\.nn\.counting\.cost"):
        cost(nn.Sequential(nn.GELU(), Own()), (2, 3))
