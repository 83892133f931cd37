"""The Vision Transformer as published: parameter counts, names, multiply-adds, options, errors, and one golden run."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest

import minivit
from minivit import functional as F, nn, optim, parallel
from minivit.models import configs
from minivit.models.positions import KINDS, SinCos
from minivit.summary import summary

TINY = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 2,
    "num_classes": 3,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
}


def tiny(**changes):
    """A small model in float64 whose weights are large enough for every part to matter."""
    model = minivit.ViT(**{**TINY, "dtype": "float64", **changes})
    rng = np.random.default_rng(7)
    for param in model.parameters().values():
        param.data = param.data + 0.3 * rng.standard_normal(param.shape)
    return model


def images(batch=3, size=(8, 8), dtype="float64", channels=2):
    return np.random.default_rng(1).standard_normal((batch, channels, *size)).astype(dtype)


def shapes(model):
    return [(name, param.shape) for name, param in model.parameters().items()]


# --- the published sizes ---

PARAMETERS = {
    "vit_tiny_patch16_224": 5_717_416,
    "vit_small_patch16_224": 22_050_664,
    "vit_small_patch32_224": 22_878_952,
    "vit_base_patch32_224": 88_224_232,
    "vit_base_patch16_224": 86_567_656,
    "vit_base_patch16_gap_224": 86_566_120,
    "vit_base_patch16_rpn_224": 86_538_472,
    "vit_base_patch8_224": 86_576_872,
    "vit_large_patch16_224": 304_326_632,
    "vit_large_patch32_224": 306_535_400,
    "vit_huge_patch14_224": 632_045_800,
    "deit_tiny_distilled_patch16_224": 5_910_800,
    "deit_small_distilled_patch16_224": 22_436_432,
    "deit_base_distilled_patch16_224": 87_338_192,
}
GIGA_MACS = {
    "vit_tiny_patch16_224": "1.25",
    "vit_small_patch16_224": "4.60",
    "vit_small_patch32_224": "1.14",
    "vit_base_patch32_224": "4.41",
    "vit_base_patch16_224": "17.56",
    "vit_base_patch8_224": "78.15",
    "vit_large_patch16_224": "61.55",
    "vit_large_patch32_224": "15.38",
    "vit_huge_patch14_224": "167.30",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_parameter_counts(weightless, name):
    model = minivit.create_model(name)
    assert optim.parameter_count(model.parameters()) == PARAMETERS[name]
    assert sum(param.size for param in model.parameters().values()) == PARAMETERS[name]


@pytest.mark.parametrize("name", GIGA_MACS)
def test_published_multiply_adds(weightless, name):
    model = minivit.create_model(name)
    macs = nn.multiply_adds(model, (1, 3, 224, 224))
    assert f"{macs / 1e9:.2f}" == GIGA_MACS[name]
    assert nn.multiply_adds(model, (5, 3, 224, 224)) == 5 * macs


@pytest.mark.parametrize("name", [name for name in configs.list_models() if not name.startswith("swin")])
def test_every_listed_model_is_what_its_name_says(weightless, name):
    model = minivit.create_model(name)
    words = name.split("_")
    assert model.num_classes == 1000 and model.config["in_chans"] == 3
    assert ("distilled" in words) == model.config["distilled"]
    if words[0] != "test":
        plain = [int(word[5:]) for word in words if word.startswith("patch")]
        if plain:
            assert model.config["patch_size"] == plain[0] and model.config["resnet_layers"] is None
        sizes = [int(word) for word in words if word.isdigit()]
        assert sizes in ([], [model.config["img_size"]])


def test_list_models_is_sorted_and_exported():
    assert minivit.list_models() == sorted(minivit.list_models()) and len(minivit.list_models()) == 228
    assert minivit.list_models("swin_s3*") == ["swin_s3_base_224", "swin_s3_small_224", "swin_s3_tiny_224"]
    assert minivit.list_models("*dinov2", pretrained=True)[0] == "vit_base_patch14_dinov2.lvd142m"
    assert minivit.list_models("test_vit4") == ["test_vit4"]
    assert minivit.list_models("test_vit4", pretrained=True) == []


def test_create_model_passes_its_arguments_on():
    model = minivit.create_model(
        "test_vit", num_classes=7, in_chans=1, img_size=(16, 32), dtype="float64", seed=5, depth=1, drop_path_rate=0.1
    )
    chosen = {"num_classes": 7, "in_chans": 1, "img_size": (16, 32), "dtype": "float64", "depth": 1}
    assert chosen.items() <= model.config.items() and model.config["drop_path_rate"] == 0.1
    assert model.predict(np.zeros((2, 1, 16, 32))).shape == (2, 7)
    twin = type(model)(**model.config, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values()))


# --- names, shapes and order are timm's ---

PLAIN = [
    ("cls_token", (1, 1, 8)),
    ("pos_embed", (1, 7, 8)),
    ("patch_embed.proj.weight", (8, 2, 4, 4)),
    ("patch_embed.proj.bias", (8,)),
    ("blocks.0.norm1.weight", (8,)),
    ("blocks.0.norm1.bias", (8,)),
    ("blocks.0.attn.qkv.weight", (24, 8)),
    ("blocks.0.attn.qkv.bias", (24,)),
    ("blocks.0.attn.proj.weight", (8, 8)),
    ("blocks.0.attn.proj.bias", (8,)),
    ("blocks.0.norm2.weight", (8,)),
    ("blocks.0.norm2.bias", (8,)),
    ("blocks.0.mlp.fc1.weight", (16, 8)),
    ("blocks.0.mlp.fc1.bias", (16,)),
    ("blocks.0.mlp.fc2.weight", (8, 16)),
    ("blocks.0.mlp.fc2.bias", (8,)),
    ("norm.weight", (8,)),
    ("norm.bias", (8,)),
    ("head.weight", (3, 8)),
    ("head.bias", (3,)),
]
NORM = [("norm.weight", (8,)), ("norm.bias", (8,))]
FC_NORM = [("fc_norm.weight", (8,)), ("fc_norm.bias", (8,))]
# option: (what goes, what comes) compared with PLAIN; a shape that changes stands in both
NAMES = {
    "distilled": (
        {"distilled": True},
        [("pos_embed", (1, 7, 8))],
        [
            ("dist_token", (1, 1, 8)),
            ("pos_embed", (1, 8, 8)),
            ("head_dist.weight", (3, 8)),
            ("head_dist.bias", (3,)),
        ],
    ),
    "average": ({"global_pool": "avg"}, NORM, FC_NORM),
    "no class token": (
        {"global_pool": "avg", "class_token": False},
        [*NORM, ("cls_token", (1, 1, 8)), ("pos_embed", (1, 7, 8))],
        [*FC_NORM, ("pos_embed", (1, 6, 8))],
    ),
    "pre_logits": (
        {"representation_size": 5},
        [("head.weight", (3, 8))],
        [("pre_logits.fc.weight", (5, 8)), ("pre_logits.fc.bias", (5,)), ("head.weight", (3, 5))],
    ),
    "patch_norm": ({"patch_norm": True}, [], [("patch_embed.norm.weight", (8,)), ("patch_embed.norm.bias", (8,))]),
    "no qkv bias": ({"qkv_bias": False}, [("blocks.0.attn.qkv.bias", (24,))], []),
    "no head": ({"num_classes": 0}, [("head.weight", (3, 8)), ("head.bias", (3,))], []),
    "learned_1d": ({"pos_embed": "learned_1d"}, [], []),
    "none": ({"pos_embed": "none"}, [("pos_embed", (1, 7, 8))], []),
    "sincos_1d": ({"pos_embed": "sincos_1d"}, [("pos_embed", (1, 7, 8))], []),
    "sincos_2d": ({"pos_embed": "sincos_2d"}, [("pos_embed", (1, 7, 8))], []),
    "learned_2d": (
        {"pos_embed": "learned_2d"},
        [("pos_embed", (1, 7, 8))],
        [("pos_embed_row", (2, 4)), ("pos_embed_col", (3, 4))],
    ),
}


def one_block(**changes):
    return minivit.ViT(**{**TINY, "img_size": (8, 12), "depth": 1, **changes})


def test_names_shapes_and_order_of_a_plain_vit():
    assert shapes(one_block()) == PLAIN


@pytest.mark.parametrize("option", NAMES)
def test_names_and_shapes_of_each_option(option):
    changes, gone, new = NAMES[option]
    found = shapes(one_block(**changes))
    assert sorted(found) == sorted([*(item for item in PLAIN if item not in gone), *new])
    assert len(dict(found)) == len(found)


def test_relative_positions_are_a_table_in_every_block():
    found = dict(shapes(one_block(pos_embed="relative", depth=2)))
    tables = {name: shape for name, shape in found.items() if name.endswith("relative_position_bias_table")}
    assert [name.split(".")[1] for name in tables] == ["0", "1"]
    assert set(tables.values()) == {(3 * 5 + 3, 2)}  # offsets of a 2x3 grid, and the class token's three rows
    assert "pos_embed" not in found


def test_norms_stand_before_the_head_in_order():
    names = [name for name, _ in shapes(one_block(representation_size=5, global_pool="avg"))]
    assert names[-6:] == [
        "fc_norm.weight",
        "fc_norm.bias",
        "pre_logits.fc.weight",
        "pre_logits.fc.bias",
        "head.weight",
        "head.bias",
    ]


# --- every option has an effect ---

# option: (another value, where its effect shows)
OPTIONS = {
    "img_size": ((8, 12), "names"),
    "patch_size": ((2, 4), "names"),
    "in_chans": (3, "names"),
    "num_classes": (4, "names"),
    "embed_dim": (16, "names"),
    "depth": (3, "names"),
    "num_heads": (4, "logits"),
    "mlp_ratio": (3.0, "names"),
    "qkv_bias": (False, "names"),
    "class_token": (False, "names"),
    "global_pool": ("avg", "names"),
    "fc_norm": (True, "names"),
    "pos_embed": ("sincos_2d", "names"),
    "representation_size": (5, "names"),
    "patch_norm": (True, "names"),
    "drop_rate": (0.5, "noise"),
    "pos_drop_rate": (0.5, "noise"),
    "proj_drop_rate": (0.5, "noise"),
    "attn_drop_rate": (0.5, "noise"),
    "drop_path_rate": (0.5, "noise"),
    "gelu": ("tanh", "logits"),
    "norm_eps": (0.5, "logits"),
    "weight_init": ("jax", "weights"),
    "distilled": (True, "names"),
    "post_norm": (True, "logits"),
    "reg_tokens": (2, "names"),
    "no_embed_class": (True, "names"),
    "pre_norm": (True, "names"),
    "final_norm": (False, "names"),
    "pool_include_prefix": (True, "logits"),
    "norm_layer": ("rmsnorm", "names"),
    "block_fn": ("parallel_things", "names"),
    "init_values": (0.1, "names"),
    "attn_layer": ("diff", "names"),
    "qk_norm": (True, "names"),
    "scale_attn_norm": (True, "names"),
    "proj_bias": (False, "names"),
    "mlp_layer": ("swiglu", "names"),
    "scale_mlp_norm": (True, "names"),
    "rotary_periods": ("bfloat16", "logits"),
    "dynamic_img_size": (True, "sizes"),
    "partial_patches": ("drop", "pixels"),
    "skip_unused_tokens": (False, "cost"),
    "resnet_layers": ((1,), "names"),
    "resnet_width": (8, "names"),
    "resnet_groups": (2, "logits"),
    "resnet_eps": ("google", "logits"),
    "dtype": ("float32", "dtype"),
    "seed": (1, "weights"),
}


def test_the_table_of_options_is_complete():
    assert set(OPTIONS) == set(inspect.signature(minivit.ViT).parameters)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_has_an_effect(option):
    value, where = OPTIONS[option]
    more = {"global_pool": "avg"} if option in ("class_token", "pool_include_prefix") else {}
    if option == "rotary_periods":  # heads of 8 have two, which are whole numbers
        more = {"pos_embed": "rotary", "embed_dim": 32, "num_heads": 2}
    if option.startswith("resnet"):
        more = {"resnet_layers": (), "resnet_width": 4, "resnet_groups": 4, "patch_size": 1}
    build = {"dtype": "float64", **TINY, **more}
    plain, other = minivit.ViT(**build), minivit.ViT(**{**build, option: value})
    if option != "seed":
        assert other.config[option] == value and plain.config[option] != value
    x = images()
    if where == "names":
        assert shapes(plain) != shapes(other)
    elif where == "weights":
        assert shapes(plain) == shapes(other)
        assert any(not np.array_equal(a, b) for a, b in zip(plain.state_dict().values(), other.state_dict().values()))
    elif where == "logits":
        rng = np.random.default_rng(3)
        state = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes(plain)}
        for model in (plain, other):
            model.load_state_dict(state)
        assert np.abs(plain.predict(x) - other.predict(x)).max() > 1e-9  # in float64
    elif where == "noise":
        trained = {**build, option: value}
        rng = np.random.default_rng(3)
        model = minivit.ViT(**trained)
        first, second = model(x, rng)[0], model(x, rng)[0]
        assert not np.array_equal(first, second), "two draws of the same generator gave the same"
        assert np.array_equal(model(x)[0], plain.predict(x)), "there is noise in inference"
        rng = np.random.default_rng(3)
        assert np.array_equal(plain(x, rng)[0], plain.predict(x)), "there is noise at rate 0"
    elif where == "sizes":
        assert other.predict(images(size=(12, 8))).shape == (3, 3)
    elif where == "pixels":
        plain, other = (minivit.ViT(**{**build, "img_size": (10, 9), option: name}) for name in ("pad", value))
        assert shapes(plain) != shapes(other)
        with pytest.raises(ValueError, match="10x9 is not divisible by patch 4x4.*use partial_patches='pad' or 'drop'"):
            minivit.ViT(**{**build, "img_size": (10, 9)})
    elif where == "cost":
        skipping, full = summary(plain, quiet=True), summary(other, quiet=True)
        assert skipping.macs < full.macs == full.published_macs
        assert skipping.kept_bytes < full.kept_bytes
    else:
        assert other.predict(images(dtype="float32")).dtype == np.float32


@pytest.mark.parametrize("dynamic", [False, True])
def test_partial_patches_are_padded_or_dropped(dynamic):
    sizes = {"pad": (12, 12), "drop": (8, 8)}
    x = images(size=(10, 9))
    for choice, (height, width) in sizes.items():
        size = {"img_size": (12, 12) if dynamic else (10, 9), "dynamic_img_size": dynamic}
        model = minivit.ViT(**{**TINY, "dtype": "float64", **size}, partial_patches=choice)
        whole = minivit.ViT(**{**TINY, "dtype": "float64", "img_size": (height, width)})
        arrays = model.state_dict()
        if dynamic and choice == "drop":
            table = arrays["pos_embed"][0, 1:].reshape(3, 3, -1)
            arrays["pos_embed"] = np.concatenate(
                (arrays["pos_embed"][:, :1], minivit.functional.resize_grid(table, (2, 2))[0].reshape(1, 4, -1)), axis=1
            )
        whole.load_state_dict(arrays)
        full = np.zeros((*x.shape[:2], 12, 12))
        full[:, :, :10, :9] = x
        np.testing.assert_allclose(model.predict(x), whole.predict(full[:, :, :height, :width]), rtol=1e-12)
        assert summary(model, img_size=(10, 9), quiet=True).macs == summary(whole, quiet=True).macs


def test_no_image_is_dropped_whole():
    for kind in (minivit.ViT, minivit.Swin):
        with pytest.raises(ValueError, match="an image of 3x3 pixels has no complete patch of 4x4"):
            kind(img_size=3, patch_size=4, partial_patches="drop")
        with pytest.raises(ValueError, match="partial_patches='cut': choose .*'drop'"):
            kind(img_size=8, patch_size=4, partial_patches="cut")
    with pytest.raises(ValueError, match="partial_patches='pad': patches of a stem's map must be complete"):
        minivit.ViT(**{**TINY, "resnet_layers": (), "resnet_groups": 4, "resnet_width": 4}, partial_patches="pad")
    with pytest.raises(ValueError, match="an image of 3x8 pixels has no complete patch of 4x4: enlarge it"):
        minivit.Swin(img_size=8, partial_patches="drop").predict(np.zeros((1, 3, 3, 8), np.float32))


def test_drop_path_rises_linearly_from_zero_at_the_first_block():
    rates = [block.drop_path for block in minivit.ViT(**{**TINY, "depth": 5, "drop_path_rate": 0.4}).blocks]
    assert np.allclose(rates, [0.0, 0.1, 0.2, 0.3, 0.4])
    assert minivit.ViT(**{**TINY, "depth": 1, "drop_path_rate": 0.4}).blocks[0].drop_path == 0.0


def test_weight_init_of_the_parts_that_came_later():
    """Norms within the branches keep their ones, and attention pooling is drawn as the blocks are."""
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "class_token": False}
    size |= {"global_pool": "map", "scale_attn_norm": True, "scale_mlp_norm": True}
    timm, jax = (minivit.ViT(**size, weight_init=scheme).state_dict() for scheme in ("timm", "jax"))
    for name in ("blocks.0.mlp.norm.weight", "blocks.0.attn.norm.weight", "attn_pool.norm.weight", "attn_pool.latent"):
        assert np.array_equal(timm[name], jax[name]), name
    for name in ("attn_pool.q.weight", "attn_pool.kv.weight", "attn_pool.proj.weight", "attn_pool.mlp.fc1.weight"):
        bound = (6 / sum(jax[name].shape)) ** 0.5  # of the uniform distribution
        assert 0.8 * bound < np.abs(jax[name]).max() <= bound, name
    for name in ("blocks.0.mlp.fc1.bias", "attn_pool.mlp.fc2.bias"):
        assert 0 < np.abs(jax[name]).max() < 1e-5, name


def test_weight_inits():
    size = {**TINY, "embed_dim": 64, "depth": 1, "dtype": "float64", "representation_size": 32}
    timm, jax, nlhb = (minivit.ViT(**size, weight_init=scheme).state_dict() for scheme in ("timm", "jax", "jax_nlhb"))
    qkv = "blocks.0.attn.qkv.weight"
    assert np.abs(timm[qkv]).max() <= 0.04 and abs(timm[qkv].std() - 0.02 * 0.8796) < 1e-3
    bound = (6 / (192 + 64)) ** 0.5
    assert 0.98 * bound < np.abs(jax[qkv]).max() <= bound
    assert abs(jax["patch_embed.proj.weight"].var() * 32 - 1) < 0.1  # LeCun: variance 1 / (2 * 4 * 4)
    assert 0 < np.abs(jax["blocks.0.mlp.fc1.bias"]).max() < 1e-5
    for state in (jax, nlhb):
        assert not state["head.weight"].any() and not state["patch_embed.proj.bias"].any()
        assert not state["blocks.0.attn.qkv.bias"].any()
    assert not jax["head.bias"].any() and np.allclose(nlhb["head.bias"], -math.log(3))
    for state in (timm, jax):
        assert (state["norm.weight"] == 1).all() and not state["norm.bias"].any()


# --- positions ---


def test_sincos_1d_is_the_formula():
    table, back = SinCos("sincos_1d", 1, 6, np.float64).table((2, 3))
    assert table.shape == (7, 6) and not table[0].any()
    for token in range(6):
        for i in range(3):
            angle = token / 10_000 ** (2 * i / 6)
            assert abs(table[1 + token, i] - math.sin(angle)) < 1e-14
            assert abs(table[1 + token, 3 + i] - math.cos(angle)) < 1e-14
    assert back(np.ones_like(table)) is None


def test_sincos_2d_is_the_formula():
    table, _ = SinCos("sincos_2d", 0, 8, np.float64).table((2, 3))
    for y in range(2):
        for x in range(3):
            row = []
            for place in (y, x):
                angles = [place / 10_000 ** (i / 2) for i in range(2)]
                row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            assert np.allclose(table[3 * y + x], row, rtol=0, atol=1e-14)


def test_learned_2d_is_row_beside_column_and_leaves_the_class_token_alone():
    model = tiny(pos_embed="learned_2d", img_size=(8, 12))
    row, column = model.state_dict()["pos_embed_row"], model.state_dict()["pos_embed_col"]
    table, back = model.embed.positions.table((2, 3))
    assert not table[0].any()
    for y in range(2):
        for x in range(3):
            assert np.array_equal(table[1 + 3 * y + x], np.concatenate((row[y], column[x])))
    back(np.arange(56.0).reshape(7, 8))
    expected = np.arange(56.0).reshape(7, 8)[1:].reshape(2, 3, 8)
    assert np.array_equal(model.parameters()["pos_embed_row"].grad, expected[:, :, :4].sum(axis=1))
    assert np.array_equal(model.parameters()["pos_embed_col"].grad, expected[:, :, 4:].sum(axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_only_positions_tell_the_order_of_patches(kind):
    # rotary positions of four channels have one wavelength, half the image, after which the angles repeat
    model = tiny(pos_embed=kind, embed_dim=16)
    x = images()
    swapped = np.concatenate((x[..., 4:], x[..., :4]), axis=3)
    same = np.allclose(model.predict(x), model.predict(swapped), rtol=0, atol=1e-12)
    assert same == (kind == "none")


# --- sizes of images ---


@pytest.mark.parametrize("kind", KINDS)
def test_rectangular_images(kind):
    model = tiny(img_size=(8, 12), patch_size=(4, 2), pos_embed=kind)
    y, back = model(images(size=(8, 12)))
    assert y.shape == (3, 3) and back(np.ones_like(y)).shape == (3, 2, 8, 12)


def test_a_wrong_size_names_both_sizes_and_the_remedies():
    with pytest.raises(ValueError, match="12x8.*8x8.*img_size=\\(12, 8\\).*dynamic_img_size=True"):
        tiny()(images(size=(12, 8)))


DYNAMIC = [kind for kind in KINDS if kind != "relative"]


@pytest.mark.parametrize("kind", DYNAMIC)
def test_dynamic_size_equals_the_fixed_model_at_its_own_size(kind):
    fixed, dynamic = tiny(pos_embed=kind), tiny(pos_embed=kind, dynamic_img_size=True)
    assert np.array_equal(fixed.predict(images()), dynamic.predict(images()))


@pytest.mark.parametrize("size", [(12, 8), (16, 20), (4, 4)])
@pytest.mark.parametrize("kind", DYNAMIC)
def test_dynamic_size_is_the_model_of_that_size_with_resampled_positions(kind, size):
    model = tiny(pos_embed=kind, dynamic_img_size=True)
    if kind == "rotary" and size[0] != size[1]:
        with pytest.raises(ValueError, match=rf"takes those of its ratio of sides: build it with img_size=\({size[0]}"):
            model(images(size=size))
        return
    grid = (size[0] // 4, size[1] // 4)
    state = model.state_dict()
    if kind == "learned_1d":
        place = F.resize_grid(state["pos_embed"][0, 1:].reshape(2, 2, 8), grid)[0].reshape(-1, 8)
        state["pos_embed"] = np.concatenate((state["pos_embed"][0, :1], place))[None]
    elif kind == "learned_2d":
        for axis, name in enumerate(("pos_embed_row", "pos_embed_col")):
            if grid[axis] != 2:
                state[name] = F.resize_grid(state[name][:, None], (grid[axis], 1))[0][:, 0]
    built = tiny(pos_embed=kind, img_size=size)
    built.load_state_dict(state)
    x = images(size=size)
    y, back = model(x)
    assert np.allclose(y, built.predict(x), rtol=0, atol=1e-12)
    assert back(np.ones_like(y)).shape == x.shape
    for param in model.parameters().values():
        assert param.grad.shape == param.shape


# --- what comes out ---


@pytest.mark.parametrize("changes", [{}, {"global_pool": "avg"}, {"representation_size": 5}, {"distilled": True}])
def test_without_classes_the_features_come_out(changes):
    with_head, without = tiny(**changes), tiny(**changes, num_classes=0)
    without.load_state_dict(with_head.state_dict(), strict=False)
    features = with_head.features(images())
    assert features.ndim == 2 and np.array_equal(without.predict(images()), features)
    assert np.array_equal(without(images())[0], features) and np.array_equal(without.features(images()), features)
    if "distilled" not in changes:  # which has a head for each token, not one for their mean
        assert np.array_equal(with_head.head(features)[0], with_head.predict(images()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "changes", [{}, {"global_pool": "avg"}, {"pos_embed": "relative"}, {"distilled": True}, {"gelu": "tanh"}]
)
def test_predict_equals_forward(dtype, changes):
    model, x = tiny(dtype=dtype, drop_rate=0.5, drop_path_rate=0.5, **changes), images(7, dtype=dtype)
    whole = model(x)[0]
    assert np.array_equal(model.predict(x), whole)
    for size in (1, 2, 3, 7, 100):
        parts = model.predict(x, batch_size=size)
        assert parts.dtype == dtype and parts.shape == whole.shape
        # BLAS sums in another order for other sizes, and in yet another on another processor
        limit = 1e-5 if dtype == "float32" else 1e-13
        assert np.abs(parts - whole).max() <= limit * max(1, np.abs(whole).max())
    assert all(param.grad is None for param in model.parameters().values())


def test_an_empty_batch_gives_no_logits():
    assert tiny().predict(images(0)).shape == (0, 3)
    assert tiny().predict(images(0), batch_size=4).shape == (0, 3)


def test_heads_of_a_distilled_model():
    model = tiny(distilled=True)
    one, two = model.heads(images())
    assert one.shape == two.shape == (3, 3) and not np.allclose(one, two)
    assert np.allclose((one + two) / 2, model.predict(images()), rtol=1e-14, atol=0)
    state, tokens = model.state_dict(), images()
    for layer in (model.embed, *model.blocks, model.norm):
        tokens, _ = layer(tokens)
    assert np.allclose(one, tokens[:, 0] @ state["head.weight"].T + state["head.bias"])
    assert np.allclose(two, tokens[:, 1] @ state["head_dist.weight"].T + state["head_dist.bias"])
    assert np.allclose(model.features(images()), (tokens[:, 0] + tokens[:, 1]) / 2, rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"depth": 1},
        {"distilled": True},
        {"pos_embed": "relative"},
        {"qkv_bias": False, "representation_size": 5},
        {"global_pool": "avg"},
    ],
)
def test_skipping_unused_tokens_is_exact(changes):
    found = []
    for skip in (True, False):
        model = tiny(skip_unused_tokens=skip, **changes)
        y, back = model(images())
        dx = back(np.arange(9.0).reshape(3, 3))
        found.append({"y": y, "dx": dx, **{name: p.grad for name, p in model.parameters().items()}})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert np.allclose(value, found[1][name], rtol=1e-12, atol=1e-12), name


# --- seeds, dtypes, state ---


def test_seeds_are_reproducible_and_the_same_in_both_dtypes():
    first, same, other = (minivit.ViT(**TINY, seed=seed).state_dict() for seed in (3, 3, 4))
    generator = minivit.ViT(**TINY, seed=np.random.default_rng(3)).state_dict()
    double = minivit.ViT(**TINY, seed=3, dtype=np.float64).state_dict()
    for name, value in first.items():
        assert value.dtype == np.float32 and double[name].dtype == np.float64
        assert np.array_equal(value, same[name]) and np.array_equal(value, generator[name])
        assert np.array_equal(value, double[name].astype(np.float32))
    assert not np.array_equal(first["head.weight"], other["head.weight"])


def test_float64_is_float64_throughout():
    model = tiny()
    y, back = model(images())
    assert y.dtype == np.float64 and back(np.ones_like(y)).dtype == np.float64
    assert {param.grad.dtype for param in model.parameters().values()} == {np.dtype("float64")}


def test_float32_is_float32_throughout():
    model = minivit.ViT(**TINY, drop_rate=0.1, drop_path_rate=0.1, attn_drop_rate=0.1, proj_drop_rate=0.1)
    y, back = model(images(dtype="float32"), np.random.default_rng(0))
    assert y.dtype == np.float32 and back(np.ones_like(y)).dtype == np.float32
    assert {param.grad.dtype for param in model.parameters().values()} == {np.dtype("float32")}


def test_state_dict_is_a_copy_and_loads_back():
    model, other = tiny(), tiny(seed=9)
    state = model.state_dict()
    other.load_state_dict(state)
    assert np.array_equal(model.predict(images()), other.predict(images()))
    state["head.bias"][:] = 99
    assert not (model.head.bias.data == 99).any() and not (other.head.bias.data == 99).any()


def test_loading_casts_to_the_models_dtype_and_keeps_the_buffer():
    model = minivit.ViT(**TINY)
    buffers = [param.data for param in model.parameters().values()]
    state = tiny().state_dict()
    model.load_state_dict(state)
    for buffer, param, value in zip(buffers, model.parameters().values(), state.values()):
        assert param.data is buffer and buffer.dtype == np.float32
        assert np.array_equal(buffer, value.astype(np.float32))


@pytest.mark.parametrize("strict", [True, False])
def test_a_state_that_does_not_fit_changes_nothing(strict):
    model = tiny()
    before = model.state_dict()
    bad = {name: value + 1 for name, value in before.items()}
    bad["head.bias"] = np.zeros(5)  # the last entry, so that a loop that copies as it checks would be caught
    with pytest.raises(ValueError, match=r"head\.bias.*\(3,\).*\(5,\)"):
        model.load_state_dict(bad, strict=strict)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


def test_missing_and_unexpected_entries():
    model = tiny()
    before = model.state_dict()
    part = {"head.bias": np.ones(3), "stranger": np.zeros(1)}
    with pytest.raises(ValueError, match="cls_token"):
        model.load_state_dict(part)
    with pytest.raises(ValueError, match="stranger"):
        model.load_state_dict({**before, "stranger": np.zeros(1)})
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())
    model.load_state_dict(part, strict=False)
    assert (model.head.bias.data == 1).all()
    assert np.array_equal(model.head.weight.data, before["head.weight"])


def test_assigning_data_copies_in_place():
    param = nn.Parameter(np.zeros((2, 3), np.float32))
    buffer, values = param.data, np.arange(6.0).reshape(2, 3)
    param.data = values
    assert param.data is buffer and buffer.dtype == np.float32 and np.array_equal(buffer, values)
    values[:] = 0
    assert buffer.any()
    twin = param.replica()
    param.data = np.full((2, 3), 4.0)
    assert (twin.data == 4).all() and twin.grad is None


# --- errors say what was given and what to do ---


def _loss(labels, **options):
    return F.softmax_cross_entropy(np.zeros((2, 3)), labels, **options)


TWO = np.array([0, 1])
ERRORS = {
    "patch": (lambda: tiny(patch_size=3), ["8x8", "3x3", "choose patch 2 or 4"]),
    "patch 0": (lambda: tiny(patch_size=0), ["0x0", "choose patch"]),
    "image 0": (lambda: tiny(img_size=0), ["0x0", "another size"]),
    "one side": (lambda: tiny(img_size=(8, 9)), ["8x9", "4x4", "pad it"]),
    "heads": (lambda: tiny(num_heads=3), ["embed_dim=8", "num_heads=3", "divides"]),
    "no heads": (lambda: tiny(num_heads=0), ["num_heads=0"]),
    "width": (lambda: tiny(embed_dim=0), ["embed_dim=0", "at least 1"]),
    "depth": (lambda: tiny(depth=-1), ["depth=-1", "at least 0"]),
    "channels": (lambda: tiny(in_chans=0), ["in_chans=0", "at least 1"]),
    "classes": (lambda: tiny(num_classes=-1), ["num_classes=-1", "at least 0"]),
    "pool": (lambda: tiny(global_pool="max"), ["'max'", "'token', 'avg' or 'map'"]),
    "no token": (lambda: tiny(class_token=False), ["class_token=False", "global_pool='avg'"]),
    "distilled avg": (lambda: tiny(distilled=True, global_pool="avg"), ["distilled=True", "global_pool='token'"]),
    "distilled wide": (
        lambda: tiny(distilled=True, representation_size=4),
        ["distilled=True", "representation_size=None"],
    ),
    "positions": (lambda: tiny(pos_embed="rope"), ["'rope'", *map(repr, KINDS)]),
    "relative": (
        lambda: tiny(pos_embed="relative", dynamic_img_size=True),
        ["'relative'", "dynamic_img_size", "img_size"],
    ),
    "learned_2d": (lambda: tiny(pos_embed="learned_2d", embed_dim=9, num_heads=3), ["learned_2d", "even", "9"]),
    "sincos_1d": (lambda: tiny(pos_embed="sincos_1d", embed_dim=9, num_heads=3), ["sincos_1d", "multiple of 2", "9"]),
    "sincos_2d": (lambda: tiny(pos_embed="sincos_2d", embed_dim=6), ["sincos_2d", "multiple of 4", "6"]),
    "drop": (lambda: tiny(drop_rate=1.0), ["[0, 1)", "1.0"]),
    "position drop": (lambda: tiny(pos_drop_rate=1.5)(images()), ["[0, 1)", "1.5"]),
    "projection drop": (lambda: tiny(proj_drop_rate=-0.5)(images()), ["[0, 1)", "-0.5"]),
    "attention drop": (lambda: tiny(attn_drop_rate=2.0)(images()), ["[0, 1)", "2.0"]),
    "drop path": (lambda: tiny(drop_path_rate=1.0)(images()), ["drop_path", "[0, 1)", "1.0"]),
    "gelu": (lambda: tiny(gelu="fast")(images()), ["'fast'", "'none'", "'tanh'"]),
    "weights": (lambda: tiny(weight_init="xavier"), ["'xavier'", "'timm'", "'jax'", "'jax_nlhb'"]),
    "half": (lambda: tiny(dtype="float16"), ["float16", "'float32' or 'float64'"]),
    "a dtype that NumPy lacks": (lambda: tiny(dtype="bfloat16x"), ["bfloat16x", "'float32' or 'float64'"]),
    "integers": (lambda: tiny(dtype="int64"), ["int64", "'float32' or 'float64'"]),
    "uint8 images": (lambda: tiny()(np.zeros((1, 2, 8, 8), "u1")), ["uint8", "astype('float64')", "255"]),
    "other floats": (lambda: tiny()(images(dtype="float32")), ["float32", "float64", "astype", "dtype='float32'"]),
    "uint8 predict": (lambda: tiny().predict(np.zeros((1, 2, 8, 8), "u1")), ["uint8", "255"]),
    "one image": (lambda: tiny()(images()[0]), ["(B, C, H, W)", "(2, 8, 8)"]),
    "three channels": (lambda: tiny()(images(channels=3)), ["with 2 channels", "(3, 3, 8, 8)", "in_chans=3"]),
    "image size": (lambda: tiny()(images(size=(4, 8))), ["4x8", "8x8", "dynamic_img_size=True"]),
    "dynamic": (lambda: tiny(dynamic_img_size=True)(images(size=(9, 8))), ["9x8", "4x4", "pad or resize"]),
    "batch size": (lambda: tiny().predict(images(), 0), ["batch_size", "at least 1", "0"]),
    "not distilled": (lambda: tiny().heads(images()), ["distilled=True"]),
    "parameter": (lambda: setattr(tiny().head.weight, "data", np.zeros(3)), ["(3, 8)", "(3,)"]),
    "label": (lambda: _loss(np.array([0, 3])), ["label 3", "3 classes", "0 to 2"]),
    "negative label": (lambda: _loss(np.array([0, -1])), ["label -1", "0 to 2"]),
    "float labels": (lambda: _loss(np.array([0.0, 1.0])), ["(2, 3)", "(2,)", "integers"]),
    "label shape": (lambda: _loss(np.array([[0], [1]])), ["(2,)", "(2, 1)"]),
    "smoothing": (lambda: _loss(TWO, label_smoothing=2), ["label_smoothing", "[0, 1]", "2"]),
    "no logits": (lambda: F.softmax_cross_entropy(np.zeros((0, 3)), TWO[:0]), ["empty", "skip"]),
    "flat logits": (lambda: F.softmax_cross_entropy(np.zeros(3), TWO), ["(B, K)", "(3,)"]),
    "threads": (lambda: parallel.DataParallel(tiny(), threads=0), ["threads=0", "at least 1"]),
    "shards": (lambda: parallel.DataParallel(tiny(), shards=-1), ["shards=-1", "at least 1"]),
    "empty batch": (lambda: parallel.DataParallel(tiny()).loss_and_grad(images(0), TWO[:0]), ["empty", "skip"]),
    "labels": (lambda: parallel.DataParallel(tiny()).loss_and_grad(images(3), TWO), ["3 images", "2 labels"]),
    "device": (lambda: minivit.to_device(tiny(), "tpu"), ["'tpu'", "'cpu' or 'gpu'"]),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_value_and_the_remedy(case):
    call, fragments = ERRORS[case]
    with pytest.raises(ValueError) as error:
        call()
    assert all(fragment in str(error.value) for fragment in fragments), error.value


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ValueError, match="'vit_tiny_patch61_224'.*did you mean.*vit_tiny_patch16_224"):
        minivit.create_model("vit_tiny_patch61_224")
    with pytest.raises(ValueError, match="'zzz'.*list_models"):
        minivit.create_model("zzz")
    with pytest.raises(TypeError, match="color"):
        minivit.create_model("test_vit", color="red")


def test_a_spent_back_says_so():
    y, back = tiny()(images())
    back(np.ones_like(y))
    with pytest.raises(RuntimeError, match="single-use.*forward"):
        back(np.ones_like(y))


def test_a_layer_without_its_method_says_which():
    with pytest.raises(TypeError, match="Layer must define forward"):
        nn.Layer()(np.zeros(2))


# --- ten steps of training, to the ninth digit ---

GOLDEN = [
    1.0979056680297643,
    1.0983668190813896,
    1.0819006854206026,
    1.0839394293805853,
    1.0333018411857118,
    0.9484194148060767,
    0.8754064299701876,
    0.8050547911095504,
    0.7720697602985156,
    0.7563563657471628,
]


def test_golden_losses():
    """Any change of behavior in the model, the loss, the noise, the optimizer or the schedule shows here."""
    rng = np.random.default_rng(11)
    x, y = rng.standard_normal((16, 2, 8, 8)), rng.integers(3, size=16)
    model = minivit.ViT(**TINY, dtype="float64", seed=2, drop_path_rate=0.2, drop_rate=0.1, attn_drop_rate=0.1)
    opt = optim.AdamW(model.parameters(), weight_decay=0.1, no_decay=optim.no_decay(model))
    step = parallel.DataParallel(model, threads=1, shards=2)
    losses = []
    for number in range(10):
        opt.lr = optim.warmup_cosine(number, 10, peak=2e-2, warmup=2)
        opt.zero_grad()
        losses.append(step.loss_and_grad(x, y, np.random.default_rng((5, number)), label_smoothing=0.1))
        optim.clip_grad_norm(model.parameters(), 1.0)
        opt.step()
    assert losses == pytest.approx(GOLDEN, rel=1e-9), losses
