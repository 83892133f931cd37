"""What layers, parameters and backward functions print: shapes, settings, sizes, and memory; never an address."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from device_tools import Device
from table import EVERYTHING, LAYERS, MODELS, Case, name_of

import minivit
from minivit import functional as F, nn
from minivit.nn import printing
from minivit.nn.kept_memory import Kept
from minivit.protocol import inference, once


def vit(**options: Any) -> minivit.ViT:
    sizes = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10, "embed_dim": 64, "num_heads": 4}
    return minivit.ViT(**{**sizes, "depth": 3, **options})


# --- layers ---


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (nn.Linear(64, 192), "Linear(64 -> 192, bias, 12,480 parameters)"),
        (nn.Linear(64, 192, bias=False), "Linear(64 -> 192, no bias, 12,288 parameters)"),
        (nn.Linear(2, 3, dtype="float64"), "Linear(2 -> 3, bias, float64, 9 parameters)"),
        (nn.LinearGELU(2, 3, approximate="tanh"), "LinearGELU(2 -> 3, bias, approximate='tanh', 9 parameters)"),
        (nn.LayerNorm(64), "LayerNorm(64, 128 parameters)"),
        (nn.LayerNorm(64, 1e-5), "LayerNorm(64, eps=1e-05, 128 parameters)"),
        (nn.GroupNorm(4, 64), "GroupNorm(64, num_groups=4, 128 parameters)"),
        (nn.BatchNorm2d(64), "BatchNorm2d(64, 128 parameters)"),
        (nn.Embedding(10, 64), "Embedding(10 rows of 64, 640 parameters)"),
        (nn.Conv2d(4, 8, 3), "Conv2d(4 -> 8, kernel 3x3, bias, 296 parameters)"),
        (
            nn.Conv2d(4, 8, (1, 3), 2, groups=2, bias=False),
            "Conv2d(4 -> 8, kernel 1x3, no bias, stride=2, groups=2, 48 parameters)",
        ),
        (nn.StdConv2d(4, 8, 3, stride=2), "StdConv2d(4 -> 8, kernel 3x3, bias, stride=2, 296 parameters)"),
        (nn.MaxPool2d(3, 2), "MaxPool2d(kernel_size=3, stride=2)"),
        (nn.GELU(), "GELU()"),
        (nn.Dropout(0.0), "Dropout(rate=0)"),
        (nn.DropPath(1 / 3), "DropPath(rate=0.3333)"),
        (nn.Layer(), "Layer()"),
    ],
)
def test_a_single_layer_is_one_line(layer: nn.Layer, text: str) -> None:
    assert repr(layer) == text


def test_a_model_is_a_tree_with_equal_blocks_folded() -> None:
    assert repr(vit()) == (
        "ViT(img_size=28, patch_size=7, embed_dim=64, depth=3, num_heads=4, in_chans=1, num_classes=10, "
        "155,082 parameters)\n"
        "  (embed): Tokens(cls_token (1, 1, 64), image=(28, 28), dynamic=False, partial=False, drop=0, "
        "4,352 parameters)\n"
        "    (positions): Learned1d(pos_embed (1, 17, 64), grid=(4, 4), prefix=1, 1,088 parameters)\n"
        "    (patch_embed): PatchEmbed(3,200 parameters)\n"
        "      (proj): PatchProjection(1 -> 64, patch 7x7, bias, 3,200 parameters)\n"
        "  (blocks.0-2): 3 x Block(49,984 parameters)\n"
        "    (norm1): LayerNorm(64, 128 parameters)\n"
        "    (attn): Attention(64, 4 heads, queries=None or 1, 16,640 parameters)\n"
        "      (qkv): Linear(64 -> 192, bias, 12,480 parameters)\n"
        "      (proj): Linear(64 -> 64, bias, 4,160 parameters)\n"
        "    (norm2): LayerNorm(64, 128 parameters)\n"
        "    (mlp): Mlp(33,088 parameters)\n"
        "      (fc1): LinearGELU(64 -> 256, bias, 16,640 parameters)\n"
        "      (fc2): Linear(256 -> 64, bias, 16,448 parameters)\n"
        "  (norm): LayerNorm(64, 128 parameters)\n"
        "  (pool): Pool(mode='token', prefix=1)\n"
        "  (head_drop): Dropout(rate=0)\n"
        "  (head): Linear(64 -> 10, bias, 650 parameters)"
    )


def test_what_differs_between_folded_layers_is_shown() -> None:
    rates = [nn.DropPath(rate) for rate in (0.0, 0.1, 0.2)]
    assert repr(nn.Sequential(*rates)) == "Sequential()\n  (0-2): 3 x DropPath(rate=0 to 0.2)"
    assert "(0-1): 2 x DropPath(rate=0 or 0.1)" in repr(nn.Sequential(*rates[:2]))
    swin = repr(minivit.Swin(img_size=28, in_chans=1, embed_dim=8, depths=(2,), num_heads=(2,), window_size=2))
    assert "2 x Block(drop_path=0 or" in swin and "shift_size=(0, 0) or " in swin


def test_only_neighbors_of_one_structure_are_folded() -> None:
    two, other = [nn.Linear(2, 2), nn.Linear(2, 2)], nn.Linear(2, 3)
    assert repr(nn.Sequential(*two, other, nn.Linear(2, 2))).splitlines()[1:] == [
        "  (0-1): 2 x Linear(2 -> 2, bias, 6 parameters)",
        "  (2): Linear(2 -> 3, bias, 9 parameters)",
        "  (3): Linear(2 -> 2, bias, 6 parameters)",
    ]
    # equal attributes, inside a folded pair, whose own parts differ in depth of the tree
    nested = nn.Sequential(nn.Sequential(*two), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert repr(nested).splitlines()[1:] == [
        "  (0-1): 2 x Sequential(12 parameters)",
        "    (0-1): 2 x Linear(2 -> 2, bias, 6 parameters)",
    ]


class Gated(nn.Layer):
    """A layer as somebody writes it in a notebook."""

    def __init__(self, dim: int, gain: float = 1.0, mode: str = "soft", drop: float = 0.1) -> None:
        self.gate = nn.Parameter(np.zeros((dim, 2), np.float32))
        self.count = nn.Buffer(np.zeros(3, np.float32))
        self.inner = nn.Linear(dim, dim)
        self.gain, self.mode, self.drop, self.sizes, self.off = gain, mode, drop, [1, 2.5], False
        self.table, self.function, self._private = np.zeros(5), len, 7

    def forward(self, x: Any, rng: Any = None) -> Any:
        return self.inner(x, rng)


def test_a_layer_of_the_users_own_says_what_it_has() -> None:
    assert repr(Gated(4, gain=2.0, drop=0.0)).splitlines() == [
        "Gated(gate (4, 2), count (3,), gain=2, drop=0, sizes=(1, 2.5), 28 parameters)",
        "  (inner): Linear(4 -> 4, bias, 20 parameters)",
    ]


class Adapted(nn.Linear):
    def __init__(self, dim: int, rank: int) -> None:
        super().__init__(dim, dim)
        self.down = nn.Parameter(np.zeros((rank, dim), np.float32))


def test_a_subclass_says_also_what_its_base_lacks() -> None:
    assert repr(Adapted(4, 2)) == "Adapted(4 -> 4, bias, down (2, 4), 28 parameters)"


@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d, nn.LayerNorm, nn.Attention, minivit.ViT, nn.Sequential])
def test_a_layer_under_construction_prints(kind: type[nn.Layer]) -> None:
    layer = kind.__new__(kind)
    assert repr(layer) == f"{kind.__name__}()"
    layer.weight = nn.Parameter(np.zeros((2, 3), np.float32))  # type: ignore[attr-defined]
    assert repr(layer).startswith(f"{kind.__name__}(") and "6 parameters" in repr(layer)


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    __hash__ = None  # type: ignore[assignment]


def test_strange_attributes_do_no_harm() -> None:
    layer: Any = nn.Linear(2, 2)
    layer.a, layer.b, layer.c, layer.d = Hostile(), [Hostile()], {"x": 1}, (nn.Layer, 1)
    layer.long = "x" * 1000
    layer.loop = []
    layer.loop.append(layer.loop)
    text = repr(layer)
    assert text.startswith("Linear(") and len(text) <= 120


def test_a_part_that_cannot_be_read_spoils_no_tree() -> None:
    class Broken(nn.Layer):
        def parts(self) -> Any:
            raise RuntimeError("no")

    assert repr(nn.Sequential(nn.ReLU(), Broken())).splitlines() == [
        "Sequential()",
        "  (0): ReLU()",
        "  (1): Broken(...)",
    ]


def test_a_layer_that_stands_twice_is_named_and_counted_once() -> None:
    linear, loop = nn.Linear(2, 3), nn.Sequential(nn.ReLU())
    assert repr(nn.Sequential(linear, nn.ReLU(), linear)).splitlines() == [
        "Sequential(9 parameters)",
        "  (0): Linear(2 -> 3, bias, 9 parameters)",
        "  (1): ReLU()",
        "  (2): Linear(the same as (0))",
    ]
    loop.itself = loop  # type: ignore[attr-defined]
    assert repr(loop).splitlines() == ["Sequential()", "  (0): ReLU()", "  (itself): Sequential(the same as the root)"]


def test_a_very_deep_layer_prints() -> None:
    layer: nn.Layer = nn.ReLU()
    for _ in range(5000):
        layer = nn.Sequential(layer)
    assert repr(layer).startswith("Sequential(")


def test_a_long_tree_is_elided() -> None:
    different = nn.Sequential(*(nn.Linear(2, 2 + number) for number in range(1000)))
    lines = repr(different).splitlines()
    assert len(lines) == 101 and "  ... 901 more" in lines
    assert lines[-1] == "  (999): Linear(2 -> 1001, bias, 3,003 parameters)"
    # the inner parts are left out first
    pairs = nn.Sequential(*(nn.Sequential(nn.Linear(2, number), nn.ReLU()) for number in range(1, 60)))
    lines = repr(pairs).splitlines()
    assert len(lines) == 60 and lines[1] == "  (0): Sequential(3 parameters, ...)"


@pytest.mark.parametrize(
    "name", ["vit_base_patch16_224", "vit_base_r50_s16_224", "swin_large_patch4_window7_224", "swinv2_base_window8_256"]
)
def test_every_line_of_a_model_fits(name: str, weightless: None) -> None:
    model = minivit.create_model(name)
    text = repr(model)
    assert max(map(len, text.splitlines())) <= 120 and len(text.splitlines()) <= 101
    assert f"{sum(param.size for param in model.parameters().values()):,} parameters" in text.splitlines()[0]


@pytest.mark.parametrize("case", LAYERS + MODELS, ids=name_of)
def test_every_layer_of_the_table_prints_its_size(case: Case) -> None:
    layer = case.callable(case.arguments())
    lines = repr(layer).splitlines()
    count = sum(param.size for param in layer.parameters().values())
    assert lines[0].startswith(f"{type(layer).__name__}(") and "(...)" not in repr(layer)
    assert (f"{count:,} parameter" in lines[0]) == (count > 0)
    assert " at 0x" not in repr(layer)


# --- parameters ---


def test_parameters_and_buffers() -> None:
    param = nn.Parameter(np.zeros((2, 3), np.float32))
    assert repr(param) == "Parameter(shape=(2, 3), dtype=float32, no gradient)"
    param.grad = np.ones((2, 3), np.float32)
    assert repr(param) == "Parameter(shape=(2, 3), dtype=float32, with gradient)"
    assert repr(nn.Buffer(np.zeros(4))) == "Buffer(shape=(4,), dtype=float64)"
    assert repr(nn.Parameter([1.0])) == "Parameter(no array but a list, no gradient)"  # type: ignore[arg-type]


def test_what_lies_on_a_gpu_says_so(device: Device) -> None:
    layer = nn.Linear(2, 3)
    layer.move_to(device.put)
    assert ("on GPU" in repr(layer)) != device.on_host
    assert ("device='cuda:0'" in repr(layer.weight)) != device.on_host


# --- backward functions ---


def test_a_back_says_whose_it_is_what_it_holds_and_whether_it_has_run() -> None:
    layer = nn.Linear(100, 50)
    y, back = layer(np.zeros((1000, 100), np.float32))
    assert repr(back) == "<backward of Linear, holds 400 kB, not yet run>"  # x, and not the weights
    back(y)
    assert repr(back) == "<backward of Linear, spent>"


def test_the_back_of_a_model_holds_what_its_parts_hold() -> None:
    model = vit(drop_rate=0.1)
    images = np.zeros((8, 1, 28, 28), np.float32)
    _, back = model(images, np.random.default_rng(0))
    own = [*(param.data for param in model.parameters().values()), *model.constants()]
    kept = Kept(own).add(back)
    assert repr(back) == f"<backward of ViT, holds {printing.bytes_text(kept)}, not yet run>"
    del back
    with inference():
        _, back = model(images)
    assert repr(back) == "<backward of ViT, holds 0 bytes, not yet run>"


def test_the_back_of_a_function_has_the_functions_name() -> None:
    x = np.zeros((10, 100))
    y, vjp = F.gelu(x)
    assert repr(vjp).startswith("<backward of gelu, holds ") and repr(vjp).endswith(" kB, not yet run>")
    vjp(y)
    assert repr(vjp) == "<backward of gelu, spent>"
    assert repr(once(SimpleNamespace())) == "<backward function, holds 0 bytes, not yet run>"  # type: ignore[arg-type]


def test_a_back_that_is_not_finished_prints() -> None:
    def forward() -> Any:
        @once
        def back(dy: Any) -> Any:
            return dy * later

        text = repr(back)
        later = 2.0
        return text, back

    text, back = forward()
    assert text.startswith("<backward function") and "holds" not in text
    assert "holds 0 bytes" in repr(back)


@pytest.mark.parametrize("case", EVERYTHING, ids=name_of)
def test_every_back_of_the_table_says_what_it_holds(case: Case) -> None:
    args = case.arguments()
    f = case.callable(args)
    result = f(args[0], np.random.default_rng(0)) if case.layer else f(*args)
    text = repr(result[-1])
    assert re.fullmatch(r"<backward (of [A-Za-z]\w*|function), holds [\d.]+ (bytes|kB|MB), not yet run>", text)
    if case.layer:
        assert f" of {type(f).__name__}, " in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1, "1 byte"), (999, "999 bytes"), (1000, "1 kB"), (1234567, "1.23 MB"), (86 * 10**9, "86 GB")],
)
def test_bytes_as_text(count: int, text: str) -> None:
    assert printing.bytes_text(count) == text
