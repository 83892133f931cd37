"""Files as Microsoft, torchvision, Hugging Face, Google and timm write them, made by hand, become the same model again.

The names here are written out loop by loop, without `minivit.pretrained`; what `export` writes is compared too.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from published_names import (
    drawn,
    google,
    google_old_norms,
    huggingface_base,
    huggingface_deit,
    huggingface_swin,
    huggingface_vit,
    microsoft,
    timm,
    torchvision_old,
    torchvision_swin,
    torchvision_vit,
)
from torch_files import new_file, old_file, tensor

from minivit import CheckpointError, Swin, SwinV2, ViT
from minivit.io.weights import read_weights
from minivit.pretrained import PROFILES, export, from_pretrained, load

VIT = {
    "img_size": 12,
    "patch_size": 4,
    "num_classes": 5,
    "embed_dim": 128,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 1.5,
}
SMALL = {"img_size": 8, "patch_size": 2, "in_chans": 2, "num_classes": 3, "embed_dim": 24, "depth": 3, "num_heads": 3}
HYBRID = {**VIT, "img_size": 32, "patch_size": 1, "resnet_layers": (2, 1, 2), "resnet_width": 8, "resnet_groups": 8}
ROOT = {**HYBRID, "resnet_layers": (), "patch_size": 2}
SWIN = {"img_size": 12, "patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2, 4), "num_heads": (2, 4)}
SWIN |= {"window_size": 3, "mlp_ratio": 2.0}
SHRUNK = {**SWIN, "img_size": 16, "in_chans": 1, "num_classes": 2, "window_size": 4}
SHRUNK |= {"depths": (2, 2, 2), "num_heads": (2, 2, 8)}  # maps of 8x8, 4x4 and 2x2: the last window is 2x2
WINDOW8 = {**SWIN, "window_size": 8, "img_size": 32}
THREE = {**SWIN, "img_size": 24, "depths": (2, 2, 2), "num_heads": (2, 2, 8), "mlp_ratio": 3.5}

HF = {"norm_eps": 1e-12}  # what transformers says where a configuration says nothing
GAUSS = {"gelu": "tanh", "resnet_eps": "google"}  # Google's
TIMM_CONFIG = {"architecture": "vit_tiny_patch16_224.augreg_in21k", "model_args": {"num_heads": 2}}
VIT_CONFIG = {"num_attention_heads": 3, "layer_norm_eps": 1e-6, "image_size": 8, "hidden_act": "gelu"}
SWIN_CONFIG = {"window_size": 3, "image_size": 12, "layer_norm_eps": 1e-5}

# layout: class, arguments, writer, suffix, config.json
CASES: dict[str, tuple[str, Any, dict[str, Any], Any, str, dict[str, Any]]] = {
    "microsoft": ("microsoft", Swin, SWIN, microsoft, "pth", {}),
    "microsoft_shrunk": ("microsoft", Swin, SHRUNK, microsoft, "pth", {}),
    "microsoft_three": ("microsoft", Swin, THREE, microsoft, "pth", {}),
    "microsoft_v2": ("microsoft", SwinV2, SWIN, microsoft, "pth", {}),
    "microsoft_v2_shrunk": ("microsoft", SwinV2, SHRUNK, microsoft, "pth", {}),
    "torchvision_vit": ("torchvision", ViT, VIT, torchvision_vit, "pth", {}),
    "torchvision_pre_logits": ("torchvision", ViT, {**VIT, "representation_size": 6}, torchvision_vit, "pth", {}),
    "torchvision_old": ("torchvision", ViT, VIT, torchvision_old, "old.pth", {}),
    "torchvision_swin": ("torchvision", Swin, SWIN, torchvision_swin, "pth", {}),
    "torchvision_swin_three": ("torchvision", Swin, THREE, torchvision_swin, "old.pth", {}),
    "torchvision_swin_v2": ("torchvision", SwinV2, SWIN, torchvision_swin, "pth", {}),
    "torchvision_swin_v2_window8": ("torchvision", SwinV2, WINDOW8, torchvision_swin, "pth", {}),
    "huggingface_vit": ("huggingface", ViT, SMALL, huggingface_vit, "safetensors", VIT_CONFIG),
    "huggingface_eps": ("huggingface", ViT, {**VIT, **HF}, huggingface_vit, "safetensors", {}),
    "huggingface_deit": ("huggingface", ViT, {**SMALL, "distilled": True}, huggingface_deit, "bin", VIT_CONFIG),
    "huggingface_base": ("huggingface", ViT, {**SMALL, "num_classes": 0}, huggingface_base, "bin", VIT_CONFIG),
    "huggingface_swin": ("huggingface", Swin, SWIN, huggingface_swin, "safetensors", SWIN_CONFIG),
    "huggingface_swin_alone": ("huggingface", Swin, SWIN, huggingface_swin, "bin", {}),
    "huggingface_swin_base": (
        "huggingface", Swin, {**SWIN, "num_classes": 0}, lambda a, m: huggingface_swin(a, m, ""), "safetensors", {}
    ),
    "huggingface_swin_v2": ("huggingface", SwinV2, SWIN, huggingface_swin, "safetensors", SWIN_CONFIG),
    "huggingface_swin_v2_trained": (
        "huggingface", SwinV2, {**SWIN, "pretrained_window_sizes": (4, 2)}, huggingface_swin, "safetensors",
        {**SWIN_CONFIG, "pretrained_window_sizes": [4, 2]},
    ),
    "google": ("google", ViT, VIT | GAUSS, google, "npz", {}),
    "google_pre_logits": ("google", ViT, {**VIT, **GAUSS, "representation_size": 7}, google, "npz", {}),
    "google_params": ("google", ViT, VIT | GAUSS, lambda a, m: google(a, m, "params/"), "npz", {}),
    "google_target": ("google", ViT, VIT | GAUSS, lambda a, m: google(a, m, "opt/target/"), "npz", {}),
    "google_hybrid": ("google", ViT, HYBRID | GAUSS, google, "npz", {}),
    "google_hybrid_target": ("google", ViT, HYBRID | GAUSS, lambda a, m: google(a, m, "opt/target/"), "npz", {}),
    "google_hybrid_old_norms": ("google", ViT, HYBRID | GAUSS, google_old_norms, "npz", {}),
    "google_root_alone": ("google", ViT, ROOT | GAUSS, google, "npz", {}),
    "timm_hybrid": ("timm", ViT, HYBRID, timm, "safetensors", {}),
    "timm_root_alone": ("timm", ViT, ROOT, timm, "pth", {}),
    "timm_vit": ("timm", ViT, VIT, timm, "safetensors", TIMM_CONFIG),
    "timm_distilled": ("timm", ViT, {**VIT, "distilled": True}, timm, "safetensors", {}),
    "timm_average": ("timm", ViT, {**VIT, "class_token": False, "global_pool": "avg"}, timm, "pth", {}),
    "timm_swin": ("timm", Swin, THREE, timm, "safetensors", {}),
}  # fmt: skip
_BUFFER = re.compile(r".*(relative_position_index|relative_coords_table|attn_mask)|pooler\..*")


def written(folder: Path, arrays: dict[str, Any], suffix: str, config: dict[str, Any]) -> Path:
    """The file that the source would publish, and config.json beside it if there is one."""
    path = folder / f"model.{suffix}"
    if suffix == "npz":
        np.savez(path, **arrays)
    elif suffix == "safetensors":
        plain = {name: np.array(array, order="C") for name, array in arrays.items()}
        safetensors.numpy.save_file(plain, path, {"format": "pt"})
    else:
        tensors: Any = {name: tensor(np.array(array, order="C")) for name, array in arrays.items()}
        wrapped = {"model": tensors} if any("attn_mask" in name for name in arrays) else tensors
        path.write_bytes((old_file if suffix == "old.pth" else new_file)(wrapped))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("case", CASES)
def test_a_published_file_becomes_its_model(tmp_path: Path, case: str) -> None:
    _, kind, arguments, write, suffix, config = CASES[case]
    model = drawn(kind, **arguments)
    path = written(tmp_path, write(model.state_dict(), model), suffix, config)
    lines: list[str] = []
    found = from_pretrained(path, dtype="float64", report=lines.append)
    layout = CASES[case][0]
    heads_told = kind is not ViT or layout == "google" or {"num_attention_heads", "architecture"} & {*config}
    assumed = [] if heads_told else ["minivit: num_heads="]
    noted = ["minivit: omitted, a"] if case == "huggingface_base" else []  # its pooler
    noted += ["minivit: windows an"] if case.startswith("huggingface_swin_v2") else []
    assert type(found) is kind and [line[: len("minivit: num_heads=")] for line in lines] == noted + assumed
    assert found.config == {**model.config, **(PROFILES[layout].settings(kind.__name__) if kind is not ViT else {})}
    side = model.config["img_size"]
    images = np.random.default_rng(5).standard_normal((2, model.config["in_chans"], side, side))
    expected = model.predict(images)
    assert np.abs(found.predict(images) - expected).max() <= 1e-12 * np.abs(expected).max()
    other = load(kind(**arguments, dtype="float64", seed=9), path)
    assert all(np.array_equal(other.state_dict()[name], array) for name, array in model.state_dict().items())
    heads = {} if heads_told else {"num_heads": model.config["num_heads"]}
    again: list[str] = []
    assert from_pretrained(path, dtype="float32", report=again.append, **heads).config["dtype"] == "float32"
    assert again == lines[: len(noted)]


ONLY_READ = ("torchvision_old", "huggingface_swin_base", "huggingface_base", "google_params", "google_target")
ONLY_READ += ("google_hybrid_target", "google_hybrid_old_norms")


@pytest.mark.parametrize("case", [case for case in CASES if case not in ONLY_READ])
def test_an_export_is_what_the_source_would_have_written(tmp_path: Path, case: str) -> None:
    layout, kind, arguments, write, suffix, _ = CASES[case]
    model = drawn(kind, **arguments)
    path = tmp_path / f"exported.{'npz' if layout == 'google' else 'safetensors'}"
    export(model, path, layout)
    expected = {name: a for name, a in write(model.state_dict(), model).items() if not _BUFFER.fullmatch(name)}
    expected = {re.sub(r"^(vit|deit|swin|swinv2)\.", "", name): array for name, array in expected.items()}
    got = {name: array for name, array in read_weights(path).arrays.items() if not _BUFFER.fullmatch(name)}
    got = {re.sub(r"^(vit|deit|swin|swinv2)\.", "", name): array for name, array in got.items()}
    assert got.keys() == expected.keys()
    assert all(got[name].dtype == np.float64 and np.array_equal(got[name], expected[name]) for name in expected)
    again = load(kind(**arguments, dtype="float64", seed=9), path).state_dict()
    assert all(again[name].tobytes() == array.tobytes() for name, array in model.state_dict().items())


@pytest.mark.parametrize("case", ["huggingface_vit", "huggingface_deit", "huggingface_swin", "huggingface_swin_v2"])
def test_an_export_for_transformers_has_the_prefixes_of_its_files(tmp_path: Path, case: str) -> None:
    _, kind, arguments, write, _, _ = CASES[case]
    model = drawn(kind, **arguments)
    export(model, tmp_path / "file", "huggingface")
    expected = [name for name in write(model.state_dict(), model) if not _BUFFER.fullmatch(name)]
    assert sorted(read_weights(tmp_path / "file").arrays) == sorted(expected)


def test_an_export_for_google_is_an_npz(tmp_path: Path) -> None:
    model = drawn(ViT, **VIT, gelu="tanh")
    export(model, tmp_path / "file.npz", "google")
    with np.load(tmp_path / "file.npz") as file:
        assert np.array_equal(file["head/kernel"], model.state_dict()["head.weight"].T)


def test_the_windows_of_pretraining_are_read_off_microsofts_table(tmp_path: Path) -> None:
    # swinv2_*_window12to16_192to256 and 12to24: the offsets are scaled by the window that the weights were trained with
    model = drawn(SwinV2, **SWIN, pretrained_window_sizes=(2, 2))
    path = written(tmp_path, microsoft(model.state_dict(), model), "pth", {})
    assert from_pretrained(path).config["pretrained_window_sizes"] == (2, 2)


def test_an_activation_that_config_json_names_is_used(tmp_path: Path) -> None:
    model = drawn(ViT, **SMALL, gelu="tanh")
    config = {**VIT_CONFIG, "hidden_act": "gelu_pytorch_tanh"}
    path = written(tmp_path, huggingface_vit(model.state_dict(), model), "safetensors", config)
    assert from_pretrained(path).config["gelu"] == "tanh"


@pytest.mark.parametrize(("layout", "kind"), [("google", Swin), ("microsoft", ViT), ("nonsense", ViT)])
def test_a_layout_without_such_a_model_is_refused(tmp_path: Path, layout: str, kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"layout='{layout}' has no {kind.__name__}: choose one of .*timm"):
        export(kind(**(VIT if kind is ViT else SWIN)), tmp_path / "file", layout)
    assert not list(tmp_path.iterdir())


def test_an_export_of_what_the_source_cannot_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"torchvision has no name for 'dist_token' \(3 such\): export it as 'timm'"):
        export(ViT(**VIT, distilled=True), tmp_path / "file", "torchvision")
    assert not list(tmp_path.iterdir())


# --- what does not fit ---

TINY = {"img_size": 8, "patch_size": 4, "num_classes": 3, "embed_dim": 4, "depth": 2, "num_heads": 1}


@pytest.mark.parametrize("name", ["safetensors", "npz", "pth"])
def test_the_names_of_an_unknown_source_are_shown(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, {f"resnet.layer{number}.conv": np.zeros(2) for number in range(5)}, name, {})
    for read in (from_pretrained, lambda path: load(ViT(**TINY), path)):
        with pytest.raises(CheckpointError, match="resnet.layer0.conv'.*known source.*timm") as error:
            read(path)
        assert all(source in str(error.value) for source in ("google", "huggingface", "microsoft", "torchvision", name))


def altered(**more: Any) -> dict[str, Any]:
    arrays = {**ViT(**TINY, seed=3).state_dict(), **{name.replace("__", "."): array for name, array in more.items()}}
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (altered(blocks__1__norm1__bias=None), r"1 of 32 parameters are missing, first 'blocks\.1\.norm1\.bias'"),
        (altered(extra__x=np.zeros(1)), r"1 names are not the model's, first 'extra\.x'"),
        (altered(norm__bias=np.zeros(5, np.float32)), r"'norm\.bias': expected shape \(4,\), the file has \(5,\)"),
        (altered(norm__bias=np.zeros((), np.float32)), r"'norm\.bias': expected shape \(4,\), the file has \(\)"),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path, arrays: Any, message: str) -> None:
    path, model = written(tmp_path, arrays, "safetensors", {}), ViT(**TINY, seed=4)
    before = model.state_dict()
    expected = rf"model\.safetensors does not fit this ViT: .*{message}"
    with pytest.raises(CheckpointError, match=expected):
        load(model, path)
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(path)
    assert all(np.array_equal(before[name], value) for name, value in model.state_dict().items())


UNKNOWN = {
    "microsoft": (Swin, SWIN, {"layers.0.extra.x.y": np.zeros(1)}, "layers.0.extra.x.y"),
    "huggingface": (ViT, SMALL | HF, {"vit.embeddings.strange": np.zeros(1)}, "embeddings.strange"),
    "torchvision": (Swin, SWIN, {"features.99.x.y.z": np.zeros(1)}, "features.99.x.y.z"),
    "google": (ViT, VIT | GAUSS, {"Transformer/more/scale": np.zeros(1)}, "Transformer/more/scale"),
}


@pytest.mark.parametrize("source", UNKNOWN)
def test_names_that_a_sources_table_lacks(tmp_path: Path, source: str) -> None:
    kind, arguments, more, name = UNKNOWN[source]
    model = drawn(kind, **arguments)
    write = {"microsoft": microsoft, "huggingface": huggingface_vit, "torchvision": torchvision_swin, "google": google}
    path = written(tmp_path, write[source](model.state_dict(), model) | more, "npz", {})
    other = kind(**arguments, dtype="float64", seed=9)
    expected = rf"1 names are not the model's, first '{name}'. This is a {source} checkpoint of a {kind.__name__}"
    with pytest.raises(CheckpointError, match=expected):
        load(other, path)
    load(other, path, strict=False)
    assert all(np.array_equal(other.state_dict()[each], array) for each, array in model.state_dict().items())


def test_what_is_missing_stays_as_it_was_where_that_is_allowed(tmp_path: Path) -> None:
    model, other = drawn(ViT, **VIT), ViT(**VIT, dtype="float64", seed=9)
    arrays, before = torchvision_vit(model.state_dict(), model), other.state_dict()
    del arrays["encoder.layers.encoder_layer_1.ln_1.weight"]
    path = written(tmp_path, arrays, "npz", {})
    missing = r"1 of 32 parameters are missing, first 'blocks\.1\.norm1\.weight'. This is a torchvision checkpoint"
    with pytest.raises(CheckpointError, match=missing):
        load(other, path)
    load(other, path, strict=False)
    for name, array in other.state_dict().items():
        assert np.array_equal(array, (before if name == "blocks.1.norm1.weight" else model.state_dict())[name])
    with pytest.raises(CheckpointError, match="expected shape .*num_classes=5 in the file, 4 in the model"):
        load(ViT(**{**VIT, "num_classes": 4}), path, strict=False)


def test_a_file_of_another_class_is_refused(tmp_path: Path) -> None:
    model = drawn(Swin, **SWIN)
    path = written(tmp_path, microsoft(model.state_dict(), model), "pth", {})
    with pytest.raises(CheckpointError, match=r"does not fit this ViT: .*This is a microsoft checkpoint of a Swin"):
        load(ViT(**VIT), path)


# --- two names of one array ---

_OLD, _NEW = "vit.encoder.layer.0.attention.attention", "vit.layers.0.attention"
TWICE = [
    ("torchvision", "encoder.layers.encoder_layer_1.mlp.0.bias", "encoder.layers.encoder_layer_1.mlp.linear_1.bias"),
    ("huggingface", "vit.encoder.layer.1.output.dense.bias", "vit.layers.1.mlp.fc2.bias"),
    ("timm", "blocks.0.ls1.gamma", "blocks.0.gamma_1"),
]


@pytest.mark.parametrize(("layout", "one", "other"), TWICE)
def test_two_names_of_one_array_are_refused_unless_they_are_equal(
    tmp_path: Path, layout: str, one: str, other: str
) -> None:
    scaled: dict[str, Any] = {"init_values": 0.1, "class_token": False, "global_pool": "avg"}
    model = drawn(ViT, **VIT, **(scaled if layout == "timm" else {}))
    export(model, tmp_path / "x.safetensors", layout)
    arrays = read_weights(tmp_path / "x.safetensors").arrays
    for factor in (1, 2):
        path = written(tmp_path, {**arrays, other: factor * arrays[one]}, "safetensors", {})
        if factor == 1:
            load(model, path)
        else:
            bare = one.removeprefix("vit."), other.removeprefix("vit.")
            for refuse in (from_pretrained, lambda path: load(model, path)):
                with pytest.raises(CheckpointError, match="which are one array of the model and differ") as error:
                    refuse(path)
                assert all(name in str(error.value) for name in bare)


def test_a_projection_under_the_names_of_two_versions_is_refused(tmp_path: Path) -> None:
    model = drawn(ViT, **VIT)
    export(model, tmp_path / "x.safetensors", "huggingface")
    arrays = read_weights(tmp_path / "x.safetensors").arrays
    for old, new in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        arrays[f"{_NEW}.{new}.weight"] = 2 * arrays[f"{_OLD}.{old}.weight"]
    path = written(tmp_path, arrays, "safetensors", {})
    with pytest.raises(CheckpointError, match="attention.query.weight' and .*q_proj.weight', which are one array"):
        from_pretrained(path)
