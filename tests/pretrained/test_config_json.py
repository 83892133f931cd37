"""What config.json says is honored or refused by name, and nothing of a file is dropped without a word."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn
from torch_files import new_file, tensor

from minivit import CheckpointError, Swin, SwinV2, ViT, export, from_pretrained, load, save
from minivit.__main__ import main
from minivit.io.safetensors import save_arrays
from minivit.io.weights import read_weights
from minivit.pretrained.preprocessing import preprocessing

TIMM = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"input_size": [3, 16, 16]}}
SIZES = {"img_size": 16, "patch_size": 4, "in_chans": 3, "num_classes": 5, "embed_dim": 8, "depth": 1, "num_heads": 2}


def beside(folder: Path, config: dict[str, Any], **options: Any) -> tuple[Path, ViT]:
    """A ViT's file under timm's names with a config.json beside it."""
    model = drawn(ViT, **{**SIZES, **options})
    export(model, folder / "model.safetensors", "timm")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder, model


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ({"act_layer": "gelu_tanh"}, {"gelu": "tanh"}),
        ({"act_layer": "quick_gelu"}, {"gelu": "quick"}),
        ({"norm_eps": 1e-2}, {"norm_eps": 1e-2}),
        ({"global_pool": "avg", "fc_norm": False}, {"global_pool": "avg", "fc_norm": False}),
        ({"drop_path_rate": 0.25}, {"drop_path_rate": 0.25}),
        ({"norm_layer": "layernorm", "weight_init": "skip", "depth": 1}, {}),
    ],
)
def test_timms_model_args_are_honored(tmp_path: Path, args: Any, options: Any) -> None:
    path, model = beside(tmp_path, {**TIMM, "model_args": {"num_heads": 2, **args}}, **options)
    found = from_pretrained(path)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(found.dtype)
    np.testing.assert_array_equal(found.predict(x), model.predict(x))
    assert {name: found.config[name] for name in options} == options


def test_timms_pooling_at_the_top_of_config_json_is_honored(tmp_path: Path) -> None:
    config = {**TIMM, "global_pool": "avg", "model_args": {"num_heads": 2, "fc_norm": False}}
    path, _ = beside(tmp_path, config, global_pool="avg", fc_norm=False)
    assert from_pretrained(path).config["global_pool"] == "avg"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "vit_base_mci_224"}, "architecture='vit_base_mci.*does not know.*give num_heads"),
        ({"model_args": {"act_layer": "silu"}}, "model_args act_layer='silu'"),
        ({"model_args": {"act_layer": "relu"}}, "model_args act_layer='relu'"),
        ({"model_args": {"attn_pool": "lse"}}, "model_args attn_pool='lse', which minivit does not have"),
        ({"model_args": {"num_heads": 2, "patch_drop_rate": 0.5}}, "model_args patch_drop_rate=0.5"),
        ({"architecture": None, "pretrained_cfg": {"architecture": "vit_x"}}, "architecture='vit_x'.*does not know"),
        (
            {"architecture": "vit_base_patch16_224", "model_args": {"num_heads": None}},
            "says num_heads=12|embed_dim=768",
        ),
        ({"quantization_config": {"bits": 8}}, "quantization_config.*floating point only"),
        ({"model_args": {"reg_tokens": 4}}, "says reg_tokens=4, and the arrays make a ViT with reg_tokens=0"),
        ({"model_args": {"norm_layer": "rmsnorm"}}, "says norm_layer='rmsnorm', and the arrays make a ViT"),
        ({"model_args": {"init_values": 0.1}}, "says init_values=0.1, and the arrays make a ViT with init_values=None"),
        ({"global_pool": "map"}, "global_pool='map', and the arrays have no attention pooling"),
        ({"model_type": "swin"}, "model_type='swin'.*belongs to another file"),
        ({"hidden_size": 192}, "embed_dim=192, and the arrays make a ViT with embed_dim=8.*belongs to another file"),
        ({"num_hidden_layers": 12}, "depth=12, and the arrays make a ViT with depth=1"),
    ],
)
def test_what_cannot_be_honored_is_refused_by_name(tmp_path: Path, change: Any, message: str) -> None:
    path, _ = beside(tmp_path, {**TIMM, **change})
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(path)


# arguments of another model in transformers' config.json, and the word of the refusal
OTHERS: list[tuple[Any, dict[str, Any], str]] = [
    (ViT, {"model_type": "resnet"}, "model_type='resnet'"),
    (ViT, {"model_type": "data2vec-vision"}, "model_type='data2vec-vision'"),
    (ViT, {"model_type": ["vit"]}, "model_type="),
    (ViT, {"hidden_size": 16}, "embed_dim=16"),
    (ViT, {"num_hidden_layers": 2}, "depth=2"),
    (ViT, {"intermediate_size": 8}, "intermediate_size=8"),
    (ViT, {"patch_size": 8}, "patch_size=8"),
    (ViT, {"num_channels": 1}, "in_chans=1"),
    (ViT, {"qkv_bias": False}, "qkv_bias=False"),
    (Swin, {"model_type": "swinv2"}, "model_type='swinv2'"),
    (Swin, {"num_heads": [1, 2]}, r"num_heads=\[1, 2\]"),
    (Swin, {"depths": [2, 6]}, r"depths=\[2, 6\]"),
    (Swin, {"embed_dim": 16}, "embed_dim=16"),
    (Swin, {"hidden_size": 8}, "hidden_size=8"),
    (Swin, {"mlp_ratio": 2.0}, "mlp_ratio=2.0"),
    (Swin, {"use_absolute_embeddings": True}, "ape=True"),
]
SWIN = {"img_size": 16, "patch_size": 2, "num_classes": 5, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2)}


@pytest.mark.parametrize(("kind", "change", "message"), OTHERS)
def test_a_config_json_of_another_model_is_refused(tmp_path: Path, kind: Any, change: Any, message: str) -> None:
    own: dict[str, Any] = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    own |= {"intermediate_size": 32, "patch_size": 4, "num_channels": 3, "qkv_bias": True, "image_size": 16}
    if kind is Swin:
        own = {"model_type": "swin", "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "hidden_size": 16}
        own |= {"mlp_ratio": 4.0, "window_size": 4, "image_size": 16, "patch_size": 2, "use_absolute_embeddings": False}
    model = drawn(kind, **SIZES) if kind is ViT else drawn(kind, **SWIN, window_size=4)
    export(model, tmp_path / "model.safetensors", "huggingface")
    for config in (own, own | change):
        (tmp_path / "config.json").write_text(json.dumps(config))
        if config is own:
            from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"config.json says {message}.*belongs to another file"):
        from_pretrained(tmp_path)


def test_heads_of_an_architecture_of_another_width_are_not_believed(tmp_path: Path) -> None:
    # 192 channels, which 12 heads divide too
    path, _ = beside(tmp_path, {"architecture": "vit_base_patch16_224"}, embed_dim=192, num_heads=3)
    with pytest.raises(CheckpointError, match="says embed_dim=768, and the arrays make a ViT with embed_dim=192"):
        from_pretrained(path)
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224"}))
    assert from_pretrained(path).config["num_heads"] == 3
    v2 = drawn(SwinV2, **{**SWIN, "embed_dim": 96, "num_heads": (2, 2)}, window_size=4)
    export(v2, path / "model.safetensors", "timm")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "swinv2_base_window16_256"}))
    with pytest.raises(CheckpointError, match="says embed_dim=128, and the arrays make a SwinV2 with embed_dim=96"):
        from_pretrained(path)


HEADS = ["head.0", "head.1", "head.fc", "head.mlp.0", "heads", "heads.0", "heads.1", "fc", "classifier", "classifier.1"]


@pytest.mark.parametrize("head", HEADS)
def test_a_head_under_another_name_is_never_dropped(tmp_path: Path, head: str) -> None:
    model = drawn(ViT, **SIZES)
    arrays = {name.replace("head.", f"{head}."): array for name, array in model.state_dict().items()}
    save_arrays(tmp_path / "model.safetensors", arrays, None)
    found = from_pretrained(tmp_path, num_heads=2)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(found.dtype)
    np.testing.assert_array_equal(found.predict(x), model.predict(x))
    features = from_pretrained(tmp_path, num_heads=2, num_classes=0)
    assert features.num_classes == 0


@pytest.mark.parametrize("names", [["bias"], ["weight"]])
@pytest.mark.parametrize("head", ["head", "head.1", "fc"])
def test_half_of_a_head_is_refused(tmp_path: Path, head: str, names: list[str]) -> None:
    state = drawn(ViT, **SIZES).state_dict()
    arrays = {name: array for name, array in state.items() if not name.startswith("head.")}
    arrays |= {f"{head}.{part}": state[f"head.{part}"] for part in names}
    save_arrays(tmp_path / "model.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match="head.bias' *.*|1 names are not the model's, first .*bias'"):
        from_pretrained(tmp_path, num_heads=2)


@pytest.mark.parametrize("layout", ["timm", "huggingface", "torchvision"])
@pytest.mark.parametrize("head", ["mlp_head.1", "linear", "last_layer", "output", "head.linear"])
def test_a_head_under_a_name_that_says_nothing_is_refused(tmp_path: Path, head: str, layout: str) -> None:
    export(drawn(ViT, **SIZES), tmp_path / "x.safetensors", layout)
    arrays = read_weights(tmp_path / "x.safetensors").arrays
    own = next(name.removesuffix(".weight") for name, array in arrays.items() if array.shape == (5, 8))
    arrays = {name.replace(own, head): array for name, array in arrays.items()}
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    refusal = f"2 names are not the model's, first '{head}.|'{head}.weight' beside its encoder.*num_classes=0"
    with pytest.raises(CheckpointError, match=refusal):
        from_pretrained(tmp_path / "x.safetensors", num_heads=2)
    beside = {name if name.startswith(head) else f"backbone.{name}": array for name, array in arrays.items()}
    save_arrays(tmp_path / "x.safetensors", beside, None)
    with pytest.raises(CheckpointError, match=refusal):
        from_pretrained(tmp_path / "x.safetensors", num_heads=2)
    files = [str(tmp_path / name) for name in ("x.safetensors", "y.safetensors")]
    assert main(["convert", *files, "--layout", "timm", "--set", "num_heads=2"]) == 1  # nor is it dropped there
    assert not (tmp_path / "y.safetensors").exists()


@pytest.mark.parametrize("outer", ["", "model.", "model.backbone."])
def test_a_head_beside_the_prefix_is_the_models(tmp_path: Path, outer: str) -> None:
    model = drawn(ViT, **SIZES)
    state = model.state_dict()
    arrays = {f"model.backbone.{name}": array for name, array in state.items() if not name.startswith("head.")}
    arrays |= {f"{outer}classifier.{part}": state[f"head.{part}"] for part in ("weight", "bias")}
    save_arrays(tmp_path / "model.safetensors", arrays, None)
    found = from_pretrained(tmp_path, num_heads=2, report=pytest.fail)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
    np.testing.assert_array_equal(found.predict(x), model.predict(x))
    arrays["head.weight"] = arrays["model.head.weight"] = np.ones((5, 8))
    save_arrays(tmp_path / "model.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match="which are one array of the model: remove one of them"):
        from_pretrained(tmp_path, num_heads=2)


def test_a_head_of_two_layers_is_refused(tmp_path: Path) -> None:
    arrays = drawn(ViT, **SIZES).state_dict()
    arrays |= {f"head.{layer}.{part}": arrays[f"head.{part}"] for layer in (0, 2) for part in ("weight", "bias")}
    del arrays["head.weight"], arrays["head.bias"]
    save_arrays(tmp_path / "model.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match="4 names are not the model's"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1}, "seed: from_pretrained draws no weights"),
        ({"norm_eps": None}, "norm_eps=None must be a positive number"),
        ({"num_heads": 2.0}, "num_heads=2.0 must be an integer"),
    ],
)
def test_an_argument_of_another_kind_is_refused_by_name(tmp_path: Path, arguments: Any, message: str) -> None:
    path, _ = beside(tmp_path, {**TIMM, "model_args": {"num_heads": 2}})
    with pytest.raises(ValueError, match=message):
        from_pretrained(path, **arguments)


def test_of_several_files_none_is_guessed(tmp_path: Path) -> None:
    for name in ("epoch_2", "epoch_10", "best"):
        save(drawn(ViT, **SIZES), tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=r"3 files of weights \('best.safetensors'.*choose one and pass its path"):
        from_pretrained(tmp_path)


@pytest.mark.parametrize("ending", [".safetensors", ".npz", ".pth", ".pt", ".ckpt", ".pth.tar", ".bin"])
def test_a_file_of_weights_is_found_in_a_folder_by_any_ending_and_none_is_preferred(
    tmp_path: Path, ending: str
) -> None:
    arrays, file = drawn(ViT, **SIZES).state_dict(), tmp_path / f"vit{ending}"
    if ending == ".safetensors":
        save_arrays(file, arrays, None)
    elif ending == ".npz":
        np.savez(file, **arrays)
    else:
        file.write_bytes(new_file({name: tensor(array) for name, array in arrays.items()}))
    assert read_weights(tmp_path).path == file
    save_arrays(tmp_path / "another.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match=rf"2 files of weights \('another.safetensors', 'vit{ending}'\)"):
        read_weights(tmp_path)


# --- parts that minivit's models have, under other conditions, and parts that they have not ---


def test_a_distilled_model_without_classes_gives_the_mean_of_its_tokens(tmp_path: Path) -> None:
    model = drawn(ViT, **SIZES, distilled=True)
    export(model, tmp_path / "x.safetensors", "timm")
    found = from_pretrained(tmp_path / "x.safetensors", num_classes=0, num_heads=2)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
    tokens = x
    for layer in (model.embed, *model.blocks, model.norm):
        tokens, _ = layer(tokens)
    np.testing.assert_allclose(found.predict(x), tokens[:, :2].mean(axis=1), rtol=1e-12)


def test_a_token_of_masked_pretraining_is_left_out_and_said(tmp_path: Path) -> None:
    model = drawn(ViT, **SIZES)
    for layout, name in (("timm", "mask_token"), ("huggingface", "vit.embeddings.mask_token")):
        export(model, tmp_path / "x.safetensors", layout)
        arrays = read_weights(tmp_path / "x.safetensors").arrays | {name: np.ones((1, 8))}
        save_arrays(tmp_path / "y.safetensors", arrays, None)
        lines: list[str] = []
        found = from_pretrained(tmp_path / "y.safetensors", num_heads=2, norm_eps=1e-6, report=lines.append)
        x = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
        np.testing.assert_array_equal(found.predict(x), model.predict(x))
        assert lines == [f"minivit: omitted, as not part of the model: '{name}'"]
        load(drawn(ViT, **SIZES), tmp_path / "y.safetensors")


OTHER_PARTS = {
    "storage_tokens": "register tokens under another name",
    "blocks.0.mlp.w1.weight": "a gated MLP under another name",
    "blocks.0.attns.2.attn.qkv.weight": "more than two parallel branches",
    "blocks.0.attn.lambda_a": "one factor for each softmax of differential attention",
}


@pytest.mark.parametrize("name", OTHER_PARTS)
def test_a_part_that_minivit_lacks_is_named_and_not_the_positions(tmp_path: Path, name: str) -> None:
    arrays = drawn(ViT, **SIZES).state_dict() | {name: np.ones(8)}
    arrays["pos_embed"] = arrays["pos_embed"][:, 1:]  # as models with these parts often have it
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match=rf"it has {OTHER_PARTS[name]} \({name}\).*no such parts") as error:
        from_pretrained(tmp_path / "x.safetensors")
    assert "pos_embed" not in str(error.value)


# options that the arrays show, and what must be given with them where no published model has such arrays
PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "LayerScale": ({"init_values": 0.1}, "num_heads= and norm_eps= and gelu="),
    "registers": ({"reg_tokens": 2, "no_embed_class": True}, "num_heads= and norm_eps= and gelu="),
    "pooled registers": (
        {"reg_tokens": 2, "class_token": False, "global_pool": "avg"},
        "num_heads= and norm_eps= and gelu= and pool_include_prefix=",
    ),
    "pre_norm": ({"pre_norm": True, "gelu": "quick", "norm_eps": 1e-5}, "num_heads= and norm_eps= and gelu="),
    "map": ({"class_token": False, "global_pool": "map"}, "num_heads= and norm_eps= and gelu="),
    "qk_norm": ({"qk_norm": True}, "norm_eps= and gelu="),  # whose size shows the heads
    "norms within": ({"scale_attn_norm": True, "scale_mlp_norm": True}, "num_heads= and norm_eps= and gelu="),
    "RMSNorm": ({"norm_layer": "rmsnorm"}, "num_heads= and norm_eps= and gelu= and norm_layer="),
    "SwiGLU": ({"mlp_layer": "swiglu"}, "num_heads= and norm_eps="),
    "packed SwiGLU": ({"mlp_layer": "swiglu_packed"}, "num_heads= and norm_eps= and mlp_layer="),
    "no projection biases": ({"proj_bias": False}, "num_heads= and norm_eps= and gelu="),
    "no last norm": ({"final_norm": False}, "num_heads= and norm_eps= and gelu="),
    "differential": ({"attn_layer": "diff"}, "norm_eps= and gelu="),
    "parallel_things": ({"block_fn": "parallel_things", "init_values": 1.0}, "num_heads= and norm_eps= and gelu="),
    "parallel_scaling": ({"block_fn": "parallel_scaling", "qkv_bias": False}, "num_heads= and norm_eps= and gelu="),
    "diff_parallel": ({"block_fn": "diff_parallel_scaling"}, "norm_eps= and gelu="),
}


@pytest.mark.parametrize("part", PARTS)
def test_what_the_arrays_show_is_read_and_what_they_hide_is_asked_for(tmp_path: Path, part: str) -> None:
    options, asked = PARTS[part]
    model = drawn(ViT, **SIZES, **options)
    save_arrays(tmp_path / "x.safetensors", model.state_dict(), None)
    with pytest.raises(CheckpointError, match=f"none shows {asked}: give them"):
        from_pretrained(tmp_path / "x.safetensors")
    given = {name: model.config[name] for name in re.findall(r"(\w+)=", asked)}
    found = from_pretrained(tmp_path / "x.safetensors", **given)
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(found.dtype)
    np.testing.assert_array_equal(found.predict(x), model.predict(x))
    with pytest.raises(CheckpointError, match="families with these parts differ in it: put the config.json"):
        preprocessing(tmp_path / "x.safetensors", found)


def test_rows_that_fit_with_and_without_prefix_tokens_are_asked_for(tmp_path: Path) -> None:
    """Nine rows: a grid of 3x3, or five prefix tokens and a grid of 2x2."""
    model = drawn(ViT, **{**SIZES, "img_size": 8, "patch_size": 4}, reg_tokens=4)
    save_arrays(tmp_path / "x.safetensors", model.state_dict(), None)
    given = {"num_heads": 2, "norm_eps": 1e-6, "gelu": "none"}
    with pytest.raises(CheckpointError, match="9 rows, with or without those of prefix tokens: give no_embed_class="):
        from_pretrained(tmp_path / "x.safetensors", **given)
    found = from_pretrained(tmp_path / "x.safetensors", **given, no_embed_class=False)
    assert found.config["img_size"] == 8


def test_a_class_token_without_a_position_is_read_from_the_number_of_rows(tmp_path: Path) -> None:
    model = drawn(ViT, **SIZES, no_embed_class=True)
    save_arrays(tmp_path / "x.safetensors", model.state_dict(), None)
    found = from_pretrained(tmp_path / "x.safetensors", num_heads=2, norm_eps=1e-6, gelu="none")
    assert found.config["no_embed_class"] is True
    larger = from_pretrained(tmp_path / "x.safetensors", num_heads=2, norm_eps=1e-6, gelu="none", img_size=32)
    assert larger.parameters()["pos_embed"].shape[1] == 4 * model.parameters()["pos_embed"].shape[1]


@pytest.mark.parametrize("options", [{"qkv_bias": "qv"}, {"mlp_layer": "swiglu_packed", "mlp_ratio": 64.0}])
def test_a_file_of_our_own_says_the_new_options(tmp_path: Path, options: dict[str, Any]) -> None:
    """Biases of q and v alone, and a gate whose second layer is half as large as the sizes suggest."""
    model = drawn(ViT, **SIZES, **options)
    save(model, tmp_path / "x.safetensors")
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
    np.testing.assert_array_equal(from_pretrained(tmp_path / "x.safetensors").predict(x), model.predict(x))
