"""The tables of names work in both directions: what goes out under a source's names comes back bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from minivit import Swin, SwinV2, ViT
from minivit.pretrained import renaming as rules
from minivit.pretrained.layouts import LAYOUTS
from minivit.pretrained.layouts.microsoft import as_layer_scale
from minivit.pretrained.renaming import OUTER_THIRDS, STACKED, TRANSPOSED, Rule, Template, translate

WORDS = st.text("abcdefghijklmnopqrstuvwxyz_0123456789", min_size=1, max_size=8)
PLACES = st.sampled_from(["{i}", "{j}", "{i+1}", "{2i}", "{2i+1}", "{3j+2}", "{p}", "{part}"])
TEMPLATES = st.lists(st.one_of(PLACES, st.sampled_from(["blocks", "a+b", "x_{i}", "(n)", "norm{j}"])), min_size=1)
VALUES = st.fixed_dictionaries(
    {"i": st.integers(0, 999), "j": st.integers(0, 999), "p": WORDS, "part": st.sampled_from(["weight", "fc1"])}
)


def one(heads_of):
    return 1


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- one name ---


@given(pieces=TEMPLATES, between=st.sampled_from("./"), values=VALUES)
def test_reading_finds_what_filling_put_in(pieces, between, values):
    template = Template(between.join(pieces))
    places = {place for place, _, _ in template.fields}
    assert template.read(template.fill(values)) == {place: values[place] for place in places}


@given(
    pieces=st.lists(st.sampled_from(["{i}", "{2i+1}", "{p}", "norm"]), min_size=1, max_size=3),
    name=st.lists(st.sampled_from(["0", "1", "7", "12", "007", "norm", "a_b", "", "x/y"]), min_size=1, max_size=3),
)
def test_filling_puts_back_what_reading_found(pieces, name):
    template, name = Template(".".join(pieces)), ".".join(name)
    values = template.read(name)
    if values is None:
        return
    again = template.fill(values)
    assert template.read(again) == values
    assert again == name or "007" in name  # a number that was written with zeros in front loses them


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("layers.{i+1}.x", "layers.1.x", {"i": 0}),
        ("layers.{i+1}.x", "layers.10.x", {"i": 9}),
        ("layers.{i+1}.x", "layers.0.x", None),  # there is no stage before the first
        ("features.{2i+1}.{j}.x", "features.7.12.x", {"i": 3, "j": 12}),
        ("features.{2i+1}.{j}.x", "features.6.0.x", None),  # even
        ("features.{2i}.{part}.{p}", "features.4.norm.bias", {"i": 2, "part": "norm", "p": "bias"}),
        ("features.{2i}.{part}.{p}", "features.3.norm.bias", None),
        ("a.{p}", "a.b.c", None),  # a stretch without a dot
        ("a/{p}", "a/b/c", None),  # or a slash
        ("a.{p}", "a.", None),
        ("a.{p}", "xa.b", None),
        ("a.{p}", "a.b\n", {"p": "b\n"}),
        ("a.{i}", "a.x", None),
        ("a.{i}", "a.-1", None),
        ("a.{i}.{i}", "a.3.3", {"i": 3}),
        ("a.{i}.{i}", "a.3.4", None),
        ("{p}.{p}", "x.y", None),
        ("a.b", "a.b", {}),
        ("a.b", "axb", None),  # a dot is a dot
    ],
)
def test_what_fits_a_template(text, name, expected):
    assert Template(text).read(name) == expected


# --- rules ---


def test_several_names_make_one():
    rule = Rule("{i}.qkv", ["{i}.q", "{i}.k", "{i}.v"], STACKED)
    arrays = {f"{i}.{letter}": np.full((2, 3), 10 * i + ord(letter)) for i in range(2) for letter in "vkq"}
    ours, unknown = translate([rule], arrays, one)
    assert sorted(ours) == ["0.qkv", "1.qkv"] and unknown == []
    assert ours["1.qkv"][:, 0].tolist() == [10 + ord(letter) for letter in "qqkkvv"]
    theirs, unknown = translate([rule], ours, one, out=True)
    assert theirs.keys() == arrays.keys() and unknown == []
    assert all(same_bits(theirs[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("missing", ["q", "k", "v"])
def test_a_name_whose_partner_is_missing_is_reported(missing):
    arrays = {f"0.{letter}": np.zeros(2) for letter in "qkv" if letter != missing} | {"1.x": np.ones(1)}
    rule = Rule("{i}.qkv", ["{i}.q", "{i}.k", "{i}.v"], STACKED)
    ours, unknown = translate([rule, Rule("{i}.y", "{i}.x")], arrays, one)
    assert list(ours) == ["1.y"]
    assert unknown == [name for name in arrays if name != "1.x"]


def test_one_name_makes_two_and_a_middle_of_zeros_comes_back():
    rule = Rule(["{j}.q_bias", "{j}.v_bias"], "{j}.qkv.bias", OUTER_THIRDS)
    bias = np.array([1.0, 2, 0, 0, 5, 6])
    ours, _ = translate([rule], {"4.qkv.bias": bias}, one)
    assert ours["4.q_bias"].tolist() == [1, 2] and ours["4.v_bias"].tolist() == [5, 6]
    assert translate([rule], ours, one, out=True)[0]["4.qkv.bias"].tolist() == bias.tolist()


def test_the_first_rule_that_fits_takes_a_name():
    arrays = {"a.0.0.w": np.zeros(1), "a.0.1.w": np.ones(1)}
    ours, unknown = translate([Rule("stem.{p}", "a.0.0.{p}"), Rule("x.{part}.{p}", "a.0.{part}.{p}")], arrays, one)
    assert list(ours) == ["stem.w", "x.1.w"] and not unknown


def test_unknown_names_are_listed_in_their_order():
    names = ["z", "a.b", "blocks.00.w", "blocks.1.w", "blocks.x.w", ""]
    ours, unknown = translate([Rule("{i}.{p}", "blocks.{i}.{p}")], {name: np.zeros(1) for name in names}, one)
    assert list(ours) == ["1.w"]
    assert unknown == ["z", "a.b", "blocks.00.w", "blocks.x.w", ""]  # 00 is no number that a source writes


def test_the_number_of_heads_is_asked_for_by_our_name():
    asked = []
    rule = Rule("ours.{i}", "theirs.{i}", TRANSPOSED)
    arrays = {"theirs.3": np.zeros((2, 1))}
    ours, _ = translate([rule], arrays, lambda name: asked.append(name) or 1)
    translate([rule], ours, lambda name: asked.append(name) or 1, out=True)
    assert asked == ["ours.3", "ours.3"]


# --- how arrays change ---


@pytest.mark.parametrize("name", ["SAME", "STACKED", "TRANSPOSED", "HWIO", "JAX_QKV", "JAX_QKV_BIAS", "JAX_OUT"])
@given(heads=st.integers(1, 3), size=st.integers(1, 3), seed=st.integers(0, 99))
def test_every_way_has_a_way_back(name, heads, size, seed):
    dim = heads * size
    shape = {"HWIO": (3, 2, size, heads), "STACKED": (3 * dim, 2), "JAX_QKV_BIAS": (3 * dim,)}.get(name, (dim, dim))
    shape = (3 * dim, dim) if name == "JAX_QKV" else shape
    ours = np.random.default_rng(seed).standard_normal(shape)
    way = getattr(rules, name)
    (back,) = way.to_ours(way.to_theirs([ours], heads), heads)
    assert np.array_equal(back, ours)


@given(heads=st.integers(1, 3), size=st.integers(1, 3))
def test_jax_keeps_the_heads_apart(heads, size):
    dim = heads * size
    ours = np.arange(3 * dim * dim).reshape(3 * dim, dim)
    parts = rules.JAX_QKV.to_theirs([ours], heads)
    for number, part in enumerate(parts):
        assert part.shape == (dim, heads, size)
        for channel in range(dim):
            for head in range(heads):
                for place in range(size):
                    row = number * dim + head * size + place
                    assert part[channel, head, place] == ours[row, channel]
    (out,) = rules.JAX_OUT.to_theirs([ours[:dim]], heads)
    assert out.shape == (heads, size, dim)
    assert all(out[h, d, c] == ours[c, h * size + d] for h in range(heads) for d in range(size) for c in range(dim))


# --- whole tables ---

VIT = {"img_size": 8, "patch_size": 4, "num_classes": 3, "embed_dim": 12, "depth": 2, "num_heads": 3}
HYBRID = {**VIT, "img_size": 16, "patch_size": 1, "resnet_width": 4, "resnet_groups": 2}
SWIN = {"img_size": 16, "patch_size": 2, "num_classes": 3, "embed_dim": 4, "depths": (2, 2), "num_heads": (1, 2)}
SWIN |= {"window_size": 4}  # which no stage shrinks: WZMIAOMIAO's never do
MODELS = {
    "ViT": (ViT, VIT),
    "ViT without biases": (ViT, {**VIT, "qkv_bias": False}),
    "ViT without a head": (ViT, {**VIT, "num_classes": 0}),
    "ViT with pre_logits": (ViT, {**VIT, "representation_size": 5}),
    "distilled ViT": (ViT, {**VIT, "distilled": True}),
    "hybrid": (ViT, {**HYBRID, "resnet_layers": (2, 1)}),
    "root alone": (ViT, {**HYBRID, "resnet_layers": ()}),
    "Swin": (Swin, SWIN),
    "Swin without biases": (Swin, {**SWIN, "qkv_bias": False, "window_size": 2}),
    "Swin without a head": (Swin, {**SWIN, "num_classes": 0}),
    "Swin with positions": (Swin, {**SWIN, "ape": True}),
    "SwinV2": (SwinV2, SWIN),
    "SwinV2 without biases": (SwinV2, {**SWIN, "qkv_bias": False}),
    "SwinV2 with three stages": (SwinV2, {**SWIN, "depths": (2, 2, 12), "num_heads": (1, 1, 1)}),
}
CANNOT = {
    ("huggingface", "ViT with pre_logits"),
    ("torchvision", "distilled ViT"),
    ("google", "distilled ViT"),
    *((source, which) for source in ("huggingface", "torchvision") for which in ("hybrid", "root alone")),
    ("torchvision", "Swin with positions"),
}


def belongs(layout, which):
    """DeiT has names of its own in transformers, and each kind of stem a table of its own in Google's.

    The families after the first ViT are in test_families.py.
    """
    if layout.family or not layout.written:
        return False
    if layout.source == "huggingface":
        return ("deit" in layout.prefixes[0]) == ("distilled" in which)
    if layout.source == "google":
        return len(layout.signs) == {"root alone": 3, "hybrid": 4}.get(which, 2)
    return True


PAIRS = [
    pytest.param(layout, which, id=f"{layout.source}-{which.replace(' ', '_')}")
    for layout in LAYOUTS
    for which, (kind, _) in MODELS.items()
    if layout.model == kind.__name__ and belongs(layout, which)
]


def arrays_of(layout, which):
    """A model's arrays, and what this source keeps beside them and is known by."""
    kind, arguments = MODELS[which]
    arrays = kind(**arguments, seed=1).state_dict()
    if (layout.source, layout.model) == ("wzmiaomiao", "Swin"):
        arrays["layers.0.blocks.0.attn.relative_position_index"] = np.zeros((4, 4), np.int64)
    return arrays


@pytest.mark.parametrize(("layout", "which"), PAIRS)
def test_out_and_in_again_is_the_identity(layout, which):
    if not layout.rules:
        return  # its names are ours
    arrays, heads = arrays_of(layout, which), MODELS[which][1]["num_heads"]
    theirs, unknown = translate(layout.rules, arrays, lambda name: heads, out=True)
    if (layout.source, which) in CANNOT:
        assert unknown
        return
    assert unknown == []
    assert layout.bare(theirs) is not None
    ours, unknown = translate(layout.rules, theirs, lambda name: heads)
    assert unknown == [] and ours.keys() == arrays.keys()
    assert all(same_bits(np.ascontiguousarray(ours[name]), arrays[name]) for name in arrays)


@pytest.mark.parametrize(("layout", "which"), PAIRS)
def test_a_layout_is_recognized_as_itself_and_nothing_else(layout, which):
    arrays, heads = arrays_of(layout, which), MODELS[which][1]["num_heads"]
    theirs = translate(layout.rules, arrays, lambda name: heads, out=True)[0] if layout.rules else arrays
    if (layout.source, which) in CANNOT and which in ("hybrid", "root alone"):
        return  # what remains of it is a plain ViT
    first = next(each for each in LAYOUTS if each.bare(theirs) is not None)
    # WZMIAOMIAO's ViT cannot be distinguished from timm's, and need not be
    same = first is layout or layout.prepare is as_layer_scale and first.source == "timm"  # without LayerScale: plain
    assert same or (first.source, layout.source, layout.model) == ("timm", "wzmiaomiao", "ViT")
