"""What differs between projects beside names, what config.json tells, and what an option of `from_pretrained` does.

Read test_adaptation.py first, for tables and heads of other sizes.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from published_names import drawn, google, huggingface_vit, microsoft, torchvision_swin
from torch_files import Storage, new_file, tensor

import minivit
from minivit import CheckpointError, Swin, SwinV2, ViT, export, from_pretrained, nn
from minivit.io.weights import read_weights
from minivit.pretrained import adaptation as fit

VIT: dict[str, Any] = {"img_size": 8, "patch_size": 4, "num_classes": 5, "embed_dim": 64, "depth": 2, "num_heads": 1}
SWIN: dict[str, Any] = {"img_size": 16, "patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2, 2)}
SWIN |= {"num_heads": (2, 4), "window_size": 4, "mlp_ratio": 2.0}


def images(side: int = 8) -> Any:
    return np.random.default_rng(5).standard_normal((2, 3, side, side))


def silent(line: str) -> None:
    """Where reports go that are not looked at."""


def stored(path: Path, arrays: dict[str, Any]) -> Path:
    plain = {name: np.array(array, order="C") for name, array in arrays.items()}
    safetensors.numpy.save_file(plain, path)
    return path


# --- how a window that covers the map is treated ---


MAPS = ((5, 9), (3, 9), (4, 4), (2, 3))  # under windows of 4, shifted by 2
PLANS = {  # for each map the window, the shift and the padded size
    "shrink": [(4, 4, 2, 2, 8, 12), (3, 4, 0, 2, 3, 12), (4, 4, 0, 0, 4, 4), (2, 3, 0, 0, 2, 3)],
    "shrink_both": [(4, 4, 2, 2, 8, 12), (3, 3, 0, 0, 3, 9), (4, 4, 0, 0, 4, 4), (2, 2, 0, 0, 2, 4)],
    "stay": [(4, 4, 2, 2, 8, 12), (4, 4, 0, 2, 4, 12), (4, 4, 0, 0, 4, 4), (4, 4, 0, 0, 4, 4)],
    "shift": [(4, 4, 2, 2, 8, 12), (4, 4, 2, 2, 4, 12), (4, 4, 2, 2, 4, 4), (4, 4, 2, 2, 4, 4)],
}


@pytest.mark.parametrize("covered", PLANS)
def test_each_projects_rule_for_a_map_that_a_window_covers(covered: str) -> None:
    layer = nn.ShiftedWindows(nn.Layer(), 4, 2, covered=covered)
    assert [sum(layer.plan(*size), ()) for size in MAPS] == PLANS[covered]


def test_an_unknown_rule_and_a_contradiction_are_refused() -> None:
    with pytest.raises(ValueError, match="covered='grow': choose one of 'shrink', 'shrink_both', 'stay', 'shift'"):
        Swin(**SWIN, covered="grow")
    with pytest.raises(ValueError, match="mask_padding=True needs pad_first=True"):
        Swin(**SWIN, mask_padding=True, pad_first=False)


# --- config.json ---


def test_the_window_of_timms_swin_v2_is_known_by_its_architecture(tmp_path: Path) -> None:
    model = minivit.create_model("swinv2_tiny_window16_256")
    path = stored(tmp_path / "model.safetensors", model.state_dict())
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"architecture": "swinv2_tiny_window16_256", "num_classes": 1000}))
    assert from_pretrained(path).config["window_size"] == 16
    config.write_text(
        json.dumps(
            {"architecture": "swinv2_tiny_window16_256.ms_in1k", "model_args": {"window_size": 32, "img_size": 512}}
        )
    )
    found = from_pretrained(path).config
    assert (found["window_size"], found["img_size"]) == (32, 512)
    config.write_text(json.dumps({"architecture": 3, "pretrained_cfg": {"input_size": [3, 256, 512]}}))
    with pytest.raises(CheckpointError, match="no array shows the windows of a Swin v2: give window_size="):
        from_pretrained(path)
    found = from_pretrained(path, window_size=8).config
    assert (found["window_size"], found["img_size"]) == (8, (256, 512))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu', and minivit has only GELU"),
        ({"hidden_act": ["gelu"]}, "hidden_act=.*only GELU"),
        ({"layer_norm_eps": "1e-6"}, "norm_eps='1e-6', which makes no sense: correct or remove"),
        ({"layer_norm_eps": 0}, "norm_eps=0, which makes no sense"),
        ({"num_attention_heads": 1.5}, "num_heads=1.5, which makes no sense"),
        ({"num_attention_heads": [2, 2]}, "num_heads=.2, 2., expected one number"),
        ({"image_size": -8}, "img_size=-8, which makes no sense"),
    ],
)
def test_what_makes_no_sense_in_config_json(tmp_path: Path, config: Any, message: str) -> None:
    path = stored(tmp_path / "model.safetensors", ViT(**VIT).state_dict())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors.*{message}"):
        from_pretrained(path)


# --- names ---


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model."])
def test_what_programs_put_before_every_name_is_taken_off(tmp_path: Path, wrapper: str) -> None:
    model = drawn(ViT, **VIT)
    for names in (dict, lambda a: huggingface_vit(a, model)):
        arrays = {wrapper + name: array for name, array in names(model.state_dict()).items()}
        found = from_pretrained(stored(tmp_path / "x", arrays), num_heads=1, norm_eps=1e-6)
        assert np.array_equal(found.predict(images()), model.predict(images()))


def big_vision(model: Any, class_row: bool, stacked: bool) -> dict[str, Any]:
    """Google's later names: other numbers, positions at the top, and perhaps one array for all blocks."""
    found = {}
    for name, array in google(model.state_dict(), model, "params/").items():
        for theirs, ours in (
            ("posembed_input/", "@"), ("Attention_1", "Attention_0"), ("MlpBlock_3", "MlpBlock_0"),
            ("LayerNorm_2", "LayerNorm_1"), ("Transformer/@pos", "pos"),
        ):  # fmt: skip
            name = name.replace(theirs, ours)
        found[name] = array[:, 1:] if name.endswith("pos_embedding") and not class_row else array
    if stacked:
        first = [name for name in found if "encoderblock_0/" in name]
        rows = {name: np.stack([found.pop(name.replace("_0/", f"_{i}/", 1)) for i in (0, 1)]) for name in first}
        found |= {name.replace("encoderblock_0/", "encoderblock/"): array for name, array in rows.items()}
    return found


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("class_row", [False, True])
def test_big_visions_files(tmp_path: Path, class_row: bool, stacked: bool) -> None:
    model = drawn(ViT, **VIT, gelu="tanh")
    if not class_row:  # there the class token gets no position
        model.parameters()["pos_embed"].data[:, 0] = 0
    np.savez(tmp_path / "x.npz", **big_vision(model, class_row, stacked))
    found = from_pretrained(tmp_path / "x.npz")
    assert np.allclose(found.predict(images()), model.predict(images()), rtol=0, atol=1e-12)


def test_the_norm_of_an_average_stands_where_its_name_says(tmp_path: Path) -> None:
    average = {**VIT, "class_token": False, "global_pool": "avg"}
    before, behind = drawn(ViT, **average, fc_norm=False), drawn(ViT, **average)
    assert not np.allclose(before.predict(images()), behind.predict(images()))
    for model in (before, behind):
        path = stored(tmp_path / "x", model.state_dict())
        said = {} if model.config["fc_norm"] else {"num_heads": model.config["num_heads"], "gelu": "none"}
        found = from_pretrained(path, **said)
        assert found.config["fc_norm"] == model.config["fc_norm"]
        assert np.array_equal(found.predict(images()), model.predict(images()))
    # Google's pooling by average has the norm before it
    arrays = google({**before.state_dict(), "cls_token": 0}, before)
    del arrays["cls"]
    np.savez(tmp_path / "x.npz", **arrays)
    found = from_pretrained(tmp_path / "x.npz", gelu="none")
    assert np.allclose(found.predict(images()), before.predict(images()), rtol=0, atol=1e-12)


# --- options ---


def test_classes_keeps_rows_of_the_head(tmp_path: Path) -> None:
    for kind, arguments in ((ViT, VIT), (ViT, {**VIT, "distilled": True}), (Swin, SWIN)):
        model = drawn(kind, **arguments)
        path = stored(tmp_path / "x", model.state_dict())
        heads = {"num_heads": model.config["num_heads"]} if kind is ViT else {}
        found = from_pretrained(path, classes=[3, 0], report=pytest.fail, **heads)
        x = images(arguments["img_size"])
        assert np.allclose(found.predict(x), model.predict(x)[:, [3, 0]], rtol=0, atol=1e-12)
        assert found.num_classes == 2
    for wrong in ([5], [-1], [], [0.5], "ab", [[0]]):
        with pytest.raises(CheckpointError, match="classes must be integers from 0 to 4"):
            from_pretrained(path, classes=wrong)
    headless = stored(tmp_path / "y", drawn(ViT, **{**VIT, "num_classes": 0}).state_dict())
    with pytest.raises(CheckpointError, match="classes: the file has no head"):
        from_pretrained(headless, classes=[0])


@pytest.mark.parametrize(("source", "target"), [(13, 23), (23, 13), (13, 15), (3, 5), (1, 3), (5, 1)])
def test_the_stretched_grid_equals_loops(source: int, target: int) -> None:
    low, high = 1.01, 1.5
    while high - low > 1e-6:  # the ratio of neighboring distances, by halving
        ratio = (low + high) / 2
        low, high = (low, ratio) if sum(ratio**n for n in range(source // 2)) > target // 2 else (ratio, high)
    places = [0.0]
    for n in range(source // 2):
        places = [places[0] - ratio**n, *places, places[-1] + ratio**n]
    expected = np.zeros((target, source))
    for row in range(target):
        wanted = row - target // 2
        right = next((i for i, place in enumerate(places) if place >= wanted), None)
        if right is None or right == 0:  # beyond the ends, the last one
            expected[row, -1 if right is None else 0] = 1
        else:
            share = (wanted - places[right - 1]) / (places[right] - places[right - 1])
            expected[row, right - 1 : right + 1] = 1 - share, share
    assert np.allclose(fit.stretch_matrix(source, target), expected, rtol=0, atol=1e-12)
    assert np.allclose(fit.stretch_matrix(source, target).sum(axis=1), 1)


def test_swin_v2_in_larger_windows_remembers_its_own(tmp_path: Path) -> None:
    model = SwinV2(**{**SWIN, "pretrained_window_sizes": (0, 3)})
    minivit.save(model, tmp_path / "x")
    read = {"report": silent}
    assert from_pretrained(tmp_path / "x", **read).config["pretrained_window_sizes"] == (0, 3)
    larger = from_pretrained(tmp_path / "x", window_size=8, img_size=32, **read).config
    assert larger["pretrained_window_sizes"] == ((4, 4), 3)
    # with a larger image alone, its windows stay what they were
    assert from_pretrained(tmp_path / "x", img_size=32, **read).config["pretrained_window_sizes"] == (0, 3)
    own = from_pretrained(tmp_path / "x", window_size=8, pretrained_window_sizes=(2, 2), **read).config
    assert own["pretrained_window_sizes"] == (2, 2)


def test_the_dtype_is_the_files_unless_another_is_asked_for(tmp_path: Path) -> None:
    for stored_as, expected in (("float16", "float32"), ("float32", "float32"), ("float64", "float64")):
        arrays = {name: array.astype(stored_as) for name, array in drawn(ViT, **VIT).state_dict().items()}
        path = stored(tmp_path / "x", arrays)
        assert from_pretrained(path).dtype == expected and from_pretrained(path, dtype="float64").dtype == "float64"


def test_bfloat16_in_safetensors_is_widened(tmp_path: Path) -> None:
    values = np.array([[1.0, -2.5], [3.140625, np.inf]], np.float32)  # all of them are bfloat16 numbers
    halves = (values.view(np.uint32) >> 16).astype("<u2")
    header = {"x": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}}
    text = json.dumps(header).encode()
    (tmp_path / "x").write_bytes(len(text).to_bytes(8, "little") + text + halves.tobytes())
    found = read_weights(tmp_path / "x").arrays["x"]
    assert found.dtype == np.float32 and np.array_equal(found, values)


# --- what is read becomes the model's ---


def test_nothing_is_drawn_for_a_model_that_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, arguments in ((ViT, VIT), (ViT, {**VIT, "weight_init": "jax", "distilled": True}), (Swin, SWIN)):
        minivit.save(drawn(kind, **arguments), tmp_path / kind.__name__)
    minivit.save(drawn(SwinV2, **SWIN), tmp_path / "SwinV2")
    monkeypatch.setattr(np.random, "default_rng", lambda *seed: pytest.fail("a number was drawn"))
    for name in ("ViT", "Swin", "SwinV2"):
        from_pretrained(tmp_path / name)


def test_parameters_that_share_a_storage_in_the_file_do_not_in_the_model(tmp_path: Path) -> None:
    arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in drawn(ViT, **VIT).state_dict().items()}
    tensors = {name: tensor(array) for name, array in arrays.items()}
    shared = Storage(arrays["norm.weight"])
    tensors |= {name: tensor(shared, (64,), (1,)) for name in ("norm.weight", "norm.bias")}
    (tmp_path / "x.pth").write_bytes(new_file(tensors))
    found = from_pretrained(tmp_path / "x.pth")
    found.norm.weight.data += 1
    assert np.array_equal(found.norm.bias.data, arrays["norm.weight"])
    assert all(param.data.flags.writeable and param.data.flags.c_contiguous for param in found.parameters().values())


def test_a_large_model_is_in_memory_once(tmp_path: Path) -> None:
    model = ViT(**{**VIT, "embed_dim": 256, "num_heads": 4, "depth": 4})
    minivit.save(model, tmp_path / "own")
    for layout in ("timm", "torchvision"):
        export(model, tmp_path / layout, layout)
    arrays = {name: tensor(array) for name, array in model.state_dict().items()}
    (tmp_path / "torch").write_bytes(new_file(arrays))
    for name in ("own", "timm", "torchvision", "torch"):
        size = (tmp_path / name).stat().st_size
        from_pretrained(tmp_path / name)  # first-use work
        tracemalloc.start()
        found = from_pretrained(tmp_path / name)
        # NumPy's arrays for a model without weights are counted, though their memory is never touched: 1 more
        assert tracemalloc.get_traced_memory()[0] < 1.1 * size
        assert tracemalloc.get_traced_memory()[1] < 2.2 * size
        tracemalloc.stop()
        assert np.array_equal(found.head.weight.data, model.head.weight.data)


def test_the_same_model_makes_the_same_bytes(tmp_path: Path) -> None:
    model = drawn(ViT, **VIT)
    for name in "abcdefgh":
        minivit.save(model, tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcdefgh"}) == 1


# --- out ---


@pytest.mark.parametrize("kind", ["sincos_1d", "sincos_2d", "learned_2d", "learned_1d", "none"])
def test_positions_of_any_kind_leave_as_the_learned_table(tmp_path: Path, kind: str) -> None:
    model = drawn(ViT, **VIT, pos_embed=kind)
    for layout in ("timm", "huggingface", "torchvision"):
        export(model, tmp_path / "x", layout)
        found = from_pretrained(tmp_path / "x", num_heads=1, norm_eps=1e-6, img_size=8)
        assert np.allclose(found.predict(images()), model.predict(images()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pos_embed": "relative"}, "pos_embed='relative' is within each block's attention"),
        ({"patch_norm": True}, "timm's ViT has patch_norm=False, and this model True"),
    ],
)
def test_what_no_other_project_has_is_refused_on_the_way_out(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*keep it with minivit.save"):
        export(ViT(**VIT, **options), tmp_path / "x", "timm")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("layout", "write"), [("microsoft", microsoft), ("torchvision", torchvision_swin)])
@pytest.mark.parametrize("kind", [Swin, SwinV2])
def test_the_tables_beside_the_parameters_are_written_too(tmp_path: Path, layout: str, write: Any, kind: Any) -> None:
    model = drawn(kind, **SWIN)
    export(model, tmp_path / "x", layout)
    got, expected = read_weights(tmp_path / "x").arrays, write(model.state_dict(), model)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype, name
        if "attn_mask" not in name:
            assert np.allclose(got[name], array, rtol=0, atol=1e-6), name
    masks = [array for name, array in got.items() if "attn_mask" in name]
    assert len(masks) == (layout == "microsoft") and all(set(np.unique(mask)) == {-100.0, 0.0} for mask in masks)


def test_a_file_for_transformers_says_its_format(tmp_path: Path) -> None:
    export(drawn(ViT, **VIT), tmp_path / "x", "huggingface")
    with safetensors.safe_open(tmp_path / "x", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_likely_cause_is_named(tmp_path: Path) -> None:
    tiny, small = (minivit.create_model(f"swin_{size}_patch4_window7_224") for size in ("tiny", "small"))
    path = tmp_path / "x.safetensors"
    export(small, path, "torchvision")
    with pytest.raises(CheckpointError) as error:
        minivit.load(tiny, path)
    assert "156 names are not the model's, first 'layers.2.blocks.1" in str(error.value), error.value
    assert "This is a torchvision checkpoint of a Swin (swin_small_patch4_window7_224)" in str(error.value)
    assert "depths=(2, 2, 18, 2) in the file, (2, 2, 6, 2) in the model" in str(error.value)


# --- images that the patch does not divide ---


@pytest.mark.parametrize("kind", [Swin, SwinV2])
@pytest.mark.parametrize(
    ("layout", "dropped"), [("timm", True), ("torchvision", True), ("microsoft", True), ("huggingface", False)]
)
def test_each_project_pads_or_drops_partial_patches(tmp_path: Path, kind: Any, layout: str, dropped: bool) -> None:
    model = drawn(kind, **{**SWIN, "window_size": 4})
    export(model, tmp_path / "x", layout)
    found = from_pretrained(tmp_path / "x", window_size=4, report=silent)
    x = images(17)
    whole = x[:, :, :16, :16] if dropped else np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
    assert np.array_equal(found.predict(x), found.predict(whole))
    padded = from_pretrained(tmp_path / "x", window_size=4, partial_patches="pad", report=silent)
    assert np.array_equal(padded.predict(x), padded.predict(np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))))
    with_profile = from_pretrained(tmp_path / "x", window_size=4, profile="wzmiaomiao", report=silent)
    assert with_profile.config["partial_patches"] == "pad"


@pytest.mark.parametrize("layout", ["timm", "torchvision", "huggingface"])
def test_a_vit_built_for_an_image_with_partial_patches_drops_them(tmp_path: Path, layout: str) -> None:
    model = drawn(ViT, **{**VIT, "img_size": 8})
    export(model, tmp_path / "x", layout)
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 11, "num_attention_heads": 1}))
    found = from_pretrained(tmp_path / "x", norm_eps=1e-6)
    assert (found.config["img_size"], found.config["partial_patches"]) == (11, "drop")
    x = images(11)
    assert np.allclose(found.predict(x), model.predict(x[:, :, :8, :8]), rtol=0, atol=1e-12)
