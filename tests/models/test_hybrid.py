"""The hybrid as published: parameter counts, names, multiply-adds, sizes, where its weights start, what it refuses.

Its numbers are compared with PyTorch's operations in parity/test_torch_hybrid.py.
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from published_sizes import check_size

import minivit
from minivit import explain, nn
from minivit.io.safetensors import save_arrays
from minivit.models.resnet import ResNetV2, map_size
from minivit.nn.counting import cost
from minivit.summary import summary

# name: (parameters as timm publishes them, 10^9 multiply-adds of products at the model's size)
PUBLISHED = {
    "vit_tiny_r_s16_p8_224": (6_337_704, "0.43"),
    "vit_tiny_r_s16_p8_384": (6_355_944, "1.33"),
    "vit_small_r26_s32_224": (36_431_912, "3.46"),
    "vit_small_r26_s32_384": (36_468_392, "10.26"),
    "vit_base_r26_s32_224": (101_383_976, "6.71"),
    "vit_base_r50_s16_224": (98_659_112, "21.54"),
    "vit_base_r50_s16_384": (98_950_952, "67.16"),
    "vit_large_r50_s32_224": (328_994_856, "19.41"),
    "vit_large_r50_s32_384": (329_092_136, "57.14"),
}
SMALL: dict[str, Any] = {
    "img_size": (9, 12),
    "patch_size": 1,
    "in_chans": 2,
    "num_classes": 3,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "resnet_layers": (2, 1),
    "resnet_width": 4,
    "resnet_groups": 2,
}


def small(**changes: Any) -> minivit.ViT:
    """A hybrid in float64 whose weights are large enough for every part to matter."""
    model = minivit.ViT(**{**SMALL, "dtype": "float64", **changes})
    rng = np.random.default_rng(7)
    for param in model.parameters().values():
        param.data = param.data + 0.3 * rng.standard_normal(param.shape)
    return model


def images(height: int, width: int, batch: int = 3, dtype: str = "float64") -> Any:
    return np.random.default_rng(1).standard_normal((batch, 2, height, width)).astype(dtype)


# --- the published sizes --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("weightless")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_counts_and_multiply_adds(name: str) -> None:
    check_size(name, *PUBLISHED[name])


@pytest.mark.usefixtures("weightless")
def test_every_published_hybrid_is_in_the_table() -> None:
    configs = {name: minivit.create_model(name).config for name in minivit.list_models()}
    assert sorted(PUBLISHED) == [name for name in configs if configs[name].get("resnet_layers") is not None]


def test_names_shapes_and_order_are_timms() -> None:
    model = minivit.ViT(**SMALL | {"resnet_layers": (1, 1)})
    found = [(name, param.shape) for name, param in model.parameters().items()]
    backbone = "patch_embed.backbone"

    def block(name: str, inputs: int, middle: int) -> list[tuple[str, tuple[int, ...]]]:
        outputs = 4 * middle
        convolutions = [
            ("downsample.conv", "downsample.norm", (outputs, inputs, 1, 1)),
            ("conv1", "norm1", (middle, inputs, 1, 1)),
            ("conv2", "norm2", (middle, middle, 3, 3)),
            ("conv3", "norm3", (outputs, middle, 1, 1)),
        ]
        parameters = []
        for conv, norm, shape in convolutions:
            parameters.append((f"{name}.{conv}.weight", shape))
            parameters += [(f"{name}.{norm}.{each}", shape[:1]) for each in ("weight", "bias")]
        return parameters

    assert found[:-28] == [
        ("cls_token", (1, 1, 8)),
        ("pos_embed", (1, 5, 8)),
        (f"{backbone}.stem.conv.weight", (4, 2, 7, 7)),
        (f"{backbone}.stem.norm.weight", (4,)),
        (f"{backbone}.stem.norm.bias", (4,)),
        *block(f"{backbone}.stages.0.blocks.0", 4, 4),
        *block(f"{backbone}.stages.1.blocks.0", 16, 8),
        ("patch_embed.proj.weight", (8, 32, 1, 1)),
        ("patch_embed.proj.bias", (8,)),
    ]
    assert found[-28][0] == "blocks.0.norm1.weight"


def test_a_stem_without_a_seed_has_that_of_0() -> None:
    stems = [ResNetV2(1, (1,), 4, 2, **seed).state_dict() for seed in ({}, {"seed": 0})]
    assert all(np.array_equal(stems[0][name], array) for name, array in stems[1].items())


def test_the_root_alone_has_shorter_names() -> None:
    model = minivit.ViT(**SMALL | {"resnet_layers": ()})
    names = [name for name in model.parameters() if "backbone" in name]
    assert names == [f"patch_embed.backbone.{each}" for each in ("conv.weight", "norm.weight", "norm.bias")]


def test_only_the_first_block_of_a_stage_has_a_projection() -> None:
    names = small(resnet_layers=(2, 2)).parameters()
    projected = {name.split(".downsample")[0] for name in names if "downsample" in name}
    assert projected == {f"patch_embed.backbone.stages.{stage}.blocks.0" for stage in (0, 1)}


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [(), (1,), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize("size", [(32, 32), (33, 31), (50, 17), (1, 70)])
def test_the_size_of_the_map_is_what_comes_out(size: tuple[int, int], layers: tuple[int, ...]) -> None:
    height, width = size
    for _ in range(1 + max(1, len(layers))):  # convolution, maximum, and each stage but the first
        height, width = (height + 1) // 2, (width + 1) // 2
    assert map_size(size, layers) == (height, width)
    model = minivit.ViT(**SMALL | {"img_size": size, "resnet_layers": layers})
    backbone = model.embed.patch_embed.backbone
    y, _ = backbone(images(*size, dtype="float32"))
    assert y.shape == cost(backbone, (3, 2, *size)).shape and y.shape[2:] == (height, width)


def test_other_images_are_taken_where_they_may_be_and_refused_where_not() -> None:
    assert small(dynamic_img_size=True).predict(images(17, 8)).shape == (3, 3)
    with pytest.raises(ValueError, match=r"with 2 channels, got shape \(1, 3, 9, 12\): .*in_chans=3"):
        small().predict(np.zeros((1, 3, 9, 12)))
    with pytest.raises(ValueError, match=r"17x8 does not fit a model built for img_size 9x12: .*dynamic_img_size=True"):
        small().predict(images(17, 8))


# --- one way, and inference -----------------------------------------------------------------------------------------


def test_predict_is_the_forward_pass() -> None:
    model, x = small(), images(9, 12)
    np.testing.assert_allclose(model.predict(x), model(x)[0], rtol=1e-12)
    np.testing.assert_allclose(model.predict(x, batch_size=2), model(x)[0], rtol=1e-12)


def test_inference_holds_one_block_and_not_the_whole_stem() -> None:
    model = minivit.ViT(**SMALL | {"img_size": 64, "resnet_layers": (4,), "resnet_width": 16, "dtype": "float32"})
    x = images(64, 64, 4, "float32")

    def peak(function: Any) -> int:
        tracemalloc.start()
        try:
            function()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(lambda: model.predict(x))  # the first run makes tables
    assert peak(lambda: model.predict(x)) < 0.5 * peak(lambda: model(x))


def test_the_table_of_a_summary_adds_up() -> None:
    model = small()
    table = summary(model, quiet=True)
    assert table.parameters == sum(param.size for param in model.parameters().values())
    assert table.rows[0].macs == nn.multiply_adds(model.embed, (1, 2, 9, 12))
    first = next(row for row in table.rows if row.name == "embed")
    backbone = model.embed.patch_embed.backbone
    assert first.macs == nn.multiply_adds(backbone, (1, 2, 9, 12)) + 2 * 2 * 32 * 8  # a map of 2x2, 32 channels to 8


def test_multiply_adds_of_a_bottleneck_by_hand() -> None:
    block = nn.Bottleneck(8, 16, 2, 2)
    projection, conv1, conv2, conv3 = 3 * 4 * 8 * 16, 5 * 7 * 8 * 4, 3 * 4 * 9 * 4 * 4, 3 * 4 * 4 * 16
    assert nn.multiply_adds(block, (2, 8, 5, 7)) == 2 * (projection + conv1 + conv2 + conv3)
    assert cost(block, (2, 8, 5, 7)).shape == (2, 16, 3, 4)
    assert nn.multiply_adds(nn.Bottleneck(16, 16, 1, 2), (1, 16, 3, 4)) == 12 * (16 * 4 + 9 * 4 * 4 + 4 * 16)


# --- where weights start --------------------------------------------------------------------------------------------


def test_a_new_block_is_its_shortcut() -> None:
    x = np.abs(images(5, 4)).repeat(8, axis=1)  # not negative, so the last ReLU changes nothing
    y, _ = nn.Bottleneck(16, 16, 1, 4, dtype="float64")(x)
    np.testing.assert_array_equal(y, x)


def test_standardized_filters_start_for_the_way_back() -> None:
    weight = nn.StdConv2d(64, 32, 3, seed=0).weight.data
    assert weight.std() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.02)


def test_googles_start_draws_the_filters_by_what_comes_in() -> None:
    layers = {"resnet_layers": (1,), "resnet_width": 32, "resnet_groups": 8}
    state = minivit.ViT(**SMALL | layers | {"weight_init": "jax"}).state_dict()
    weight = state["patch_embed.backbone.stages.0.blocks.0.conv2.weight"]  # (32, 32, 3, 3)
    assert weight.std() == pytest.approx((32 * 9) ** -0.5, rel=0.03)
    assert not state["patch_embed.backbone.stages.0.blocks.0.norm3.weight"].any()
    assert (state["patch_embed.backbone.stem.norm.weight"] == 1).all()


def test_a_seed_means_the_same_weights_in_every_dtype() -> None:
    narrow, wide = (minivit.ViT(**SMALL, dtype=dtype, seed=3).state_dict() for dtype in ("float32", "float64"))
    for name, array in narrow.items():
        np.testing.assert_array_equal(array, wide[name].astype("float32"))


# --- around the model -----------------------------------------------------------------------------------------------


def test_a_file_gives_the_same_model_back(tmp_path: Any) -> None:
    model, path = small(), tmp_path / "hybrid.safetensors"
    minivit.save(model, path)
    again = minivit.from_pretrained(path)
    assert again.config == model.config
    np.testing.assert_array_equal(again.predict(images(9, 12)), model.predict(images(9, 12)))


@pytest.fixture
def published(tmp_path: Any) -> Any:
    """A file of a hybrid for color images, as timm writes it: names and numbers."""
    model, path = small(in_chans=3, img_size=16), tmp_path / "model.safetensors"
    minivit.export(model, path)
    return model, path


def test_a_file_is_fitted_to_gray_images_of_another_size(published: Any) -> None:
    model, path = published
    lines: list[str] = []
    other = minivit.from_pretrained(path, in_chans=1, img_size=24, num_classes=5, num_heads=2, report=lines.append)
    assert other.config["img_size"] == 24 and other.config["resnet_layers"] == (2, 1)
    root = "patch_embed.backbone.stem.conv.weight"
    np.testing.assert_allclose(other.state_dict()[root][:, 0], model.state_dict()[root].sum(axis=1), rtol=1e-6)
    assert f"minivit: {root}: from 3 to 1 channels" in lines
    assert "minivit: pos_embed: resampled from 2x2 grid to 3x3 grid" in lines
    assert other.predict(np.zeros((2, 1, 24, 24), other.dtype)).shape == (2, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("patch_embed.backbone.stages.0.blocks.1.conv2.weight"), "1 of .* missing.*blocks.1.conv2"),
        (lambda a: a.pop("patch_embed.backbone.stem.norm.bias"), "missing, first .*stem.norm.bias"),
        (
            lambda a: a.update({"patch_embed.backbone.stages.1.blocks.0.norm3.weight": np.ones(7)}),
            r"norm3.weight.*: expected shape \(32,\), the file has \(7,\)",
        ),
        (
            lambda a: a.update({"patch_embed.backbone.conv1.0.weight": a.pop("patch_embed.backbone.stem.conv.weight")}),
            "only stem is a ResNetV2's",
        ),
        (lambda a: a.update({"patch_embed.backbone.stages.0.blocks.0.se.weight": np.ones(7)}), "not the model's"),
    ],
)
def test_a_file_that_is_damaged_or_of_another_stem_is_refused(published: Any, change: Any, message: str) -> None:
    model, path = published
    arrays = {name: np.asarray(array) for name, array in model.state_dict().items()}
    change(arrays)
    save_arrays(path, arrays, None)
    with pytest.raises(minivit.CheckpointError, match=message):
        minivit.from_pretrained(path, num_heads=2)


@pytest.mark.parametrize("layout", ["huggingface", "torchvision"])
def test_a_project_without_such_a_model_gets_none(tmp_path: Any, layout: str) -> None:
    with pytest.raises(ValueError, match=f"{layout} has no name for 'patch_embed.backbone.*export it as 'timm'"):
        minivit.export(small(), tmp_path / "x.safetensors", layout)


def test_a_hybrid_goes_to_google_and_back(tmp_path: Any) -> None:
    for layers in ((2, 1), ()):
        model, path = small(resnet_layers=layers, gelu="tanh", patch_size=1, resnet_eps="google"), tmp_path / "x.npz"
        minivit.export(model, path, "google")
        again = minivit.from_pretrained(path, num_heads=2, img_size=(9, 12), dtype="float64", resnet_groups=2)
        np.testing.assert_array_equal(again.predict(images(9, 12)), model.predict(images(9, 12)))


def test_a_hybrids_epsilons_are_its_sources_and_stay_in_our_own_file(tmp_path: Any) -> None:
    model = small(gelu="tanh", resnet_eps="google")
    minivit.export(model, tmp_path / "x.npz", "google")
    options: dict[str, Any] = {"num_heads": 2, "img_size": (9, 12), "dtype": "float64", "resnet_groups": 2}
    google = minivit.from_pretrained(tmp_path / "x.npz", **options)
    timm = minivit.from_pretrained(tmp_path / "x.npz", resnet_eps="timm", **options)
    assert (google.config["resnet_eps"], timm.config["resnet_eps"]) == ("google", "timm")
    assert np.abs(google.predict(images(9, 12)) - timm.predict(images(9, 12))).max() > 1e-9
    minivit.save(google, tmp_path / "own.safetensors")
    own = minivit.from_pretrained(tmp_path / "own.safetensors")
    assert own.config["resnet_eps"] == "google"
    np.testing.assert_array_equal(own.predict(images(9, 12)), model.predict(images(9, 12)))
    with pytest.raises(ValueError, match="timm's ViT has resnet_eps='timm', and this model 'google'"):
        minivit.export(model, tmp_path / "timm.safetensors", "timm")
    minivit.export(timm, tmp_path / "timm.safetensors", "timm")  # names of timm's, so its epsilons
    assert minivit.from_pretrained(tmp_path / "timm.safetensors", **options).config["resnet_eps"] == "timm"


def test_every_deviation_of_the_stem_gets_the_epsilon_of_its_project() -> None:
    expected = {"timm": ({(1e-8, False)}, {1e-5}), "google": ({(1e-5, True)}, {1e-6})}
    for project, (filters, norms) in expected.items():
        for layers in ((2, 1), ()):
            parts = list(_inside(small(resnet_eps=project, resnet_layers=layers).embed.patch_embed))
            assert {(each.eps, each.outside) for each in parts if isinstance(each, nn.StdConv2d)} == filters
            assert {each.eps for each in parts if isinstance(each, nn.GroupNorm)} == norms


def _inside(layer: Any) -> Any:
    for _, part in layer.parts():
        yield part
        yield from _inside(part)


@pytest.mark.parametrize(("width", "groups"), [(64, 32), (8, 8), (48, 16)])
def test_groups_which_no_shape_tells_are_32_or_what_divides(tmp_path: Any, width: int, groups: int) -> None:
    model = minivit.ViT(**SMALL | {"img_size": 8, "resnet_layers": (), "resnet_width": width, "resnet_groups": groups})
    minivit.export(model, tmp_path / "x.safetensors")
    assert minivit.from_pretrained(tmp_path / "x.safetensors").config["resnet_groups"] == groups


def test_attention_and_positions_are_drawn_on_the_grid_of_the_map() -> None:
    model = small()
    assert [each.shape for each in explain.head_maps(model, images(9, 12))] == [(3, 2, 2, 2)] * 2
    assert explain.position_similarity(model).shape == (2, 2, 2, 2)
    assert explain.grad_cam(model, images(9, 12), [0, 1, 2]).shape == (3, 2, 2)


def test_a_trace_names_the_stem() -> None:
    model, x = small(), images(9, 12)
    text = str(explain.trace(model, x, np.arange(3)))
    assert "backbone" in text


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, r"the 2x2 map that resnet_layers=\(2, 1\) make of an image 9x12 is not .* patch 3x3"),
        ({"resnet_groups": 3}, "resnet_groups=3 must divide resnet_width=4: choose resnet_groups=2"),
        ({"resnet_width": 0}, "choose a width of at least 1"),
        ({"resnet_groups": 0}, "resnet_groups=0 must divide"),
        ({"resnet_layers": (2, 0)}, r"resnet_layers=\(2, 0\): give the number of blocks of each stage"),
        ({"resnet_eps": "flax"}, "resnet_eps='flax': choose 'timm' or 'google'"),
        ({"resnet_layers": 3}, r"resnet_layers=3: give .* such as \(3, 4, 9\)"),
        ({"resnet_layers": (1.5,)}, r"resnet_layers=\(1.5,\): give"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        minivit.ViT(**SMALL | changes)


def test_a_bottleneck_whose_groups_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a quarter of out_channels=16 must be a multiple of groups=3"):
        nn.Bottleneck(16, 16, 1, 3)
    with pytest.raises(ValueError, match="eps='flax': choose 'timm' or 'google'"):
        nn.Bottleneck(16, 16, 1, 4, eps="flax")
