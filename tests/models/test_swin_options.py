"""Every argument of the Swin Transformers has an effect or is refused with a reason; and two golden runs."""

from __future__ import annotations

import inspect
import math
import warnings
from typing import Any

import numpy as np
import pytest
from swin_tools import KINDS, images, settings, shapes, tiny

from minivit import nn, optim, parallel
from minivit.models import Swin, SwinV2

# --- every option has an effect -------------------------------------------------------------------------------------

# option: (another value, where its effect shows)
OPTIONS: dict[str, Any] = {
    "img_size": ((8, 4), "logits"),  # the window shrinks in the second stage
    "patch_size": ((2, 4), "names"),
    "in_chans": (3, "names"),
    "num_classes": (4, "names"),
    "global_pool": ("token", "refused"),
    "embed_dim": (8, "names"),
    "depths": ((2, 4), "names"),
    "num_heads": ((2, 2), "names"),
    "window_size": ((2, 3), "logits"),
    "mlp_ratio": (3.0, "names"),
    "qkv_bias": (False, "names"),
    "ape": (True, "names"),
    "patch_norm": (False, "names"),
    "drop_rate": (0.5, "noise"),
    "pos_drop_rate": (0.5, "noise"),
    "proj_drop_rate": (0.5, "noise"),
    "attn_drop_rate": (0.5, "noise"),
    "drop_path_rate": (0.5, "noise"),
    "norm_eps": (0.5, "logits"),
    "gelu": ("tanh", "logits"),
    "mask_value": (-math.inf, "leak"),
    "mask_padding": (True, "padding"),
    "covered": ("stay", "windows"),
    "pad_first": (False, "windows"),
    "partial_patches": ("drop", "pixels"),
    "allow_odd_depths": (True, "odd"),
    "dtype": ("float32", "dtype"),
    "seed": (1, "weights"),
}
EVERY_OPTION: dict[Any, Any] = {
    Swin: {**OPTIONS, "img_size": ((8, 4), "names"), "window_size": ((2, 3), "names")},
    SwinV2: {**OPTIONS, "pretrained_window_sizes": ((4, 5), "logits"), "cpb_hidden": (4, "names")},
}


def leaking(state: Any) -> Any:
    """Each key the opposite of its query, and scores so far apart that -100 does not outweigh them."""
    for name, value in state.items():
        if name.endswith("qkv.weight"):
            dim = value.shape[1]
            value[: 2 * dim] *= 100
            value[dim : 2 * dim] = -value[:dim]
        elif name.endswith("logit_scale"):
            value[...] = 9
        elif name.endswith("q_bias"):
            value[...] = 0
    return state


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_of_options_is_complete(kind: Any) -> None:
    assert set(EVERY_OPTION[kind]) == set(inspect.signature(kind).parameters)


@pytest.mark.parametrize(("kind", "option"), [(kind, option) for kind in KINDS for option in EVERY_OPTION[kind]])
def test_every_option_has_an_effect(kind: Any, option: str) -> None:
    value, where = EVERY_OPTION[kind][option]
    build = settings(kind, dtype="float64", drop_path_rate=0.0)
    if where == "refused":
        with pytest.raises(ValueError, match=option):
            kind(**{**build, option: value})
        return
    if where == "odd":
        with pytest.warns(UserWarning, match=option):
            kind(**{**build, "depths": (1, 2)})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kind(**{**build, "depths": (1, 2), option: value})
        return
    plain, other = kind(**build), kind(**{**build, option: value})
    if option != "seed":
        assert other.config[option] == value and plain.config[option] != value
    x = images()
    if where == "names":
        assert shapes(plain) != shapes(other)
        return
    if where == "weights":
        assert shapes(plain) == shapes(other)
        assert any(not np.array_equal(a, b) for a, b in zip(plain.state_dict().values(), other.state_dict().values()))
        return
    rng = np.random.default_rng(3)
    state = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes(plain)}
    if where == "leak":
        state = leaking(state)
    for model in (plain, other):
        model.load_state_dict(state)
    if where in ("logits", "leak"):
        assert np.abs(plain.predict(x) - other.predict(x)).max() > 1e-6
    elif where == "windows":  # of 4, on maps of 10 and 5 and, for a small image, 3 and 2
        plain, other = (kind(**{**build, "window_size": 4, "img_size": 20, **more}) for more in ({}, {option: value}))
        rng = np.random.default_rng(0)
        state = {name: value + rng.standard_normal(value.shape) for name, value in plain.state_dict().items()}
        for model in (plain, other):
            model.load_state_dict(state)
        found = [[model.predict(images(size=(side, side))) for side in (16, 20, 6)] for model in (plain, other)]
        assert [bool(np.abs(a - b).max() > 1e-6) for a, b in zip(*found)] == [
            False,
            option == "pad_first",
            option == "covered",
        ]
    elif where == "pixels":
        assert np.array_equal(plain.predict(x), other.predict(x))
        for odd in (images(size=(17, 19)), images(size=(16, 19)), images(size=(17, 18))):
            height, width = (side // 2 * 2 for side in odd.shape[2:])
            assert np.array_equal(other.predict(odd), plain.predict(odd[:, :, :height, :width]))
        assert np.abs(plain.predict(odd) - other.predict(odd)).max() > 1e-6
    elif where == "padding":
        assert np.array_equal(plain.predict(x), other.predict(x))
        odd = images(size=(18, 18))
        assert np.abs(plain.predict(odd) - other.predict(odd)).max() > 1e-6
    elif where == "noise":
        rng = np.random.default_rng(3)
        assert not np.array_equal(other(x, rng)[0], other(x, rng)[0]), "two draws of the same generator gave the same"
        assert np.array_equal(other(x)[0], plain.predict(x)), "there is noise in inference"
        assert np.array_equal(plain(x, rng)[0], plain.predict(x)), "there is noise at rate 0"
    else:
        assert other.predict(images(dtype="float32")).dtype == np.float32


def everything_in(layer: Any) -> Any:
    """The layer, its parts, their parts, and so on."""
    yield layer
    for _, part in layer.parts():
        yield from everything_in(part)


@pytest.mark.parametrize("kind", KINDS)
def test_an_option_of_the_layers_reaches_every_one_of_them(kind: Any) -> None:
    options = {"norm_eps": 0.5, "gelu": "tanh", "proj_drop_rate": 0.1, "attn_drop_rate": 0.2, "mask_value": -math.inf}
    model = kind(**settings(kind, **options, mask_padding=True, pos_drop_rate=0.3, drop_rate=0.4))
    found: dict[str, list[Any]] = {}
    for layer in everything_in(model):
        for name in ("eps", "approximate", "proj_drop", "attn_drop", "mask_value", "mask_padding", "drop", "rate"):
            if name in vars(layer) and not isinstance(vars(layer)[name], nn.Layer):
                found.setdefault(name, []).append(vars(layer)[name])
    assert found == {
        "eps": 11 * [0.5],  # of the patches, the merging, the end, and two in each of four blocks
        "approximate": 4 * ["tanh"],
        "proj_drop": 4 * [0.1],
        "attn_drop": 4 * [0.2],
        "mask_value": 4 * [-math.inf],
        "mask_padding": 4 * [True],
        "drop": [0.3] + 4 * [0.1],  # after the embedding, and in each MLP
        "rate": [0.4],  # before the head
    }


# --- errors say what was given and what to do -----------------------------------------------------------------------

ERRORS: dict[str, Any] = {
    "no depths": ({"depths": (), "num_heads": ()}, ["depths=()", "each stage"]),
    "no blocks": ({"depths": (2, 0)}, ["depths=(2, 0)", "positive"]),
    "fewer heads": ({"num_heads": (1,)}, ["depths=(2, 2)", "num_heads=(1,)", "each stage"]),
    "more heads": ({"num_heads": (1, 2, 4)}, ["depths=(2, 2)", "num_heads=(1, 2, 4)"]),
    "heads": ({"num_heads": (1, 3)}, ["stage 1", "embed_dim=4 * 2 = 8", "num_heads=3", "divides it"]),
    "no heads": ({"num_heads": (0, 1)}, ["stage 0", "num_heads=0"]),
    "width": ({"embed_dim": 0}, ["embed_dim=0", "at least 1"]),
    "channels": ({"in_chans": 0}, ["in_chans=0", "at least 1"]),
    "classes": ({"num_classes": -1}, ["num_classes=-1", "at least 0"]),
    "window": ({"window_size": 0}, ["window_size=0", "at least 1"]),
    "one side of the window": ({"window_size": (2, -1)}, ["window_size=(2, -1)", "at least 1"]),
    "window of a stage": ({"window_size": ((2, 2), (0, 2))}, ["window_size=((2, 2), (0, 2))", "at least 1"]),
    "a window too many": ({"window_size": (2, 2, 2)}, ["window_size=(2, 2, 2)", "each of the 2 stages"]),
    "no window": ({"window_size": ()}, ["window_size=()", "each of the 2 stages"]),
    "sides of a stage": ({"window_size": ((2, 2), (2, 2, 2))}, ["(2, 2, 2)", "two for height and width"]),
    "patch": ({"patch_size": 0}, ["patch_size=0", "at least 1"]),
    "image": ({"img_size": (8, 0)}, ["img_size=(8, 0)", "at least 1"]),
    "pool": ({"global_pool": "token"}, ["'token'", "no class token", "'avg'"]),
    "mask value": ({"mask_value": -5.0}, ["mask_value=-5.0", "-100 or less", "float('-inf')"]),
    "positive mask value": ({"mask_value": math.inf}, ["mask_value=inf", "-100 or less"]),
    "mask value nan": ({"mask_value": math.nan}, ["mask_value=nan", "-100 or less"]),
    "drop": ({"drop_rate": 1.0}, ["drop_rate=1.0", "[0, 1)"]),
    "position drop": ({"pos_drop_rate": 1.5}, ["pos_drop_rate=1.5", "[0, 1)"]),
    "projection drop": ({"proj_drop_rate": -0.5}, ["proj_drop_rate=-0.5", "[0, 1)"]),
    "attention drop": ({"attn_drop_rate": 2}, ["attn_drop_rate=2", "[0, 1)"]),
    "drop path": ({"drop_path_rate": math.nan}, ["drop_path_rate=nan", "[0, 1)"]),
    "gelu": ({"gelu": "fast"}, ["'fast'", "'none'", "'tanh'"]),
    "norm": ({"norm_eps": 0}, ["norm_eps=0", "positive"]),
    "mlp": ({"mlp_ratio": -1.0}, ["mlp_ratio=-1.0", "positive"]),
    "hidden": ({"mlp_ratio": 0.1}, ["mlp_ratio=0.1", "hidden"]),
    "one depth": ({"depths": 2}, ["depths=2", "each stage"]),
    "one number of heads": ({"num_heads": 2}, ["num_heads=2", "each stage"]),
    "no mask value": ({"mask_value": None}, ["mask_value=None", "-100 or less"]),
    "half a class": ({"num_classes": 2.5}, ["num_classes=2.5", "integer"]),
    "half a window": ({"window_size": 2.5}, ["2.5", "integer"]),
    "three sides": ({"img_size": (8, 8, 8)}, ["(8, 8, 8)", "or two"]),
    "dtype": ({"dtype": "float16"}, ["'float16'", "'float32' or 'float64'"]),
}
INPUT_ERRORS: dict[str, Any] = {
    "one image": (images()[0], ["(B, C, H, W)", "(2, 16, 16)"]),
    "no pixels": (images(size=(0, 16)), ["(3, 2, 0, 16)", "no pixels"]),
    "channels": (images(channels=3), ["with 2 channels", "(3, 3, 16, 16)", "in_chans=3"]),
    "integers": (np.zeros((1, 2, 16, 16), "u1"), ["uint8", "astype('float64')", "255"]),
    "other floats": (images(dtype="float32"), ["float32", "float64", "dtype='float32'"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_value_and_the_remedy(kind: Any, case: str) -> None:
    changes, fragments = ERRORS[case]
    with pytest.raises(ValueError) as error:
        tiny(kind, **changes)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", INPUT_ERRORS)
def test_errors_about_images(kind: Any, case: str) -> None:
    x, fragments = INPUT_ERRORS[case]
    for call in (tiny(kind), tiny(kind).predict):
        with pytest.raises(ValueError) as error:
            call(x)
        assert all(fragment in str(error.value) for fragment in fragments), error.value


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"pretrained_window_sizes": (2,)}, ["pretrained_window_sizes=(2,)", "each of depths=(2, 2)"]),
        ({"pretrained_window_sizes": (2, 2, 2)}, ["pretrained_window_sizes=(2, 2, 2)", "depths=(2, 2)"]),
        ({"cpb_hidden": 0}, ["cpb_hidden=0", "at least 1"]),
    ],
)
def test_errors_of_version_2(changes: Any, fragments: Any) -> None:
    with pytest.raises(ValueError) as error:
        tiny(SwinV2, **changes)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


# --- a window for each stage ---


# as given: (stages, as the configuration keeps it, the windows)
WINDOWS: list[tuple[Any, int, Any, Any]] = [
    (2, 3, 2, [(2, 2)] * 3),
    ((2, 3), 3, (2, 3), [(2, 3)] * 3),
    ([2, 3], 2, (2, 3), [(2, 3)] * 2),  # two numbers are height and width, as in timm
    ((2, 2, 2), 3, 2, [(2, 2)] * 3),
    ([4, (2, 3), 2], 3, (4, (2, 3), 2), [(4, 4), (2, 3), (2, 2)]),
    (((4, 4), [2, 2]), 2, ((4, 4), (2, 2)), [(4, 4), (2, 2)]),
    ((4, (2, 2)), 2, ((4, 4), (2, 2)), [(4, 4), (2, 2)]),
    (((2, 4), (2, 4)), 2, (2, 4), [(2, 4)] * 2),
    ((3,), 1, 3, [(3, 3)]),
    (np.int64(2), 1, 2, [(2, 2)]),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("given", "stages", "kept", "windows"), WINDOWS)
def test_each_stage_has_its_window(kind: Any, given: Any, stages: int, kept: Any, windows: Any) -> None:
    more = {"depths": (2,) * stages, "num_heads": (1,) * stages, "img_size": 64}
    model = tiny(kind, window_size=given, **more)
    assert model.config["window_size"] == kept and repr(model.config["window_size"]) == repr(kept)
    found = [[block.attn.window_size for block in stage.blocks] for stage in model.layers]
    assert found == [[window] * 2 for window in windows]
    shifts = [stage.blocks[1].attn.shift_size for stage in model.layers]
    assert shifts == [(height // 2, width // 2) for height, width in windows]
    again = tiny(kind, **{**more, "window_size": model.config["window_size"]})
    assert again.config == model.config


# --- ten steps of training, to the ninth digit ----------------------------------------------------------------------

GOLDEN: dict[Any, Any] = {
    Swin: [
        1.0968916539682074,
        1.0802437849158937,
        1.0338553959622985,
        0.9901310927191778,
        0.9404893737563865,
        0.8969923724862758,
        0.8300745664062317,
        0.8061981219239922,
        0.7936735552567221,
        0.7176941680004576,
    ],
    SwinV2: [
        1.0940082965970284,
        1.0669729179562712,
        1.016170040851502,
        0.9573826522881606,
        0.893955627184133,
        0.8716442628447647,
        0.8145944647011851,
        0.7786476619887188,
        0.7583410166351163,
        0.7249919399383012,
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_golden_losses(kind: Any) -> None:
    """Any change of behavior in the models, their noise, masks, padding or initial weights shows here."""
    rng = np.random.default_rng(11)
    x, y = rng.standard_normal((8, 2, 14, 12)), rng.integers(3, size=8)
    noise = {"drop_path_rate": 0.2, "drop_rate": 0.1, "attn_drop_rate": 0.1, "proj_drop_rate": 0.1}
    model = kind(**settings(kind, dtype="float64", seed=2, ape=True, **noise))
    opt = optim.AdamW(model.parameters(), weight_decay=0.1, no_decay=optim.no_decay(model), threads=1)
    step = parallel.DataParallel(model, threads=1, shards=2)
    losses = []
    for number in range(10):
        opt.lr = optim.warmup_cosine(number, 10, peak=2e-2, warmup=2)
        opt.zero_grad()
        losses.append(step.loss_and_grad(x, y, np.random.default_rng((5, number)), label_smoothing=0.1))
        optim.clip_grad_norm(model.parameters(), 1.0)
        opt.step()
    assert losses == pytest.approx(GOLDEN[kind], rel=1e-9), losses
