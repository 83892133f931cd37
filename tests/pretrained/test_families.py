"""Files of CLIP, SigLIP, DINO (1 to 3), DeiT III, MAE and AIMv2 as their projects write them become the same models.

The names are written out in `published_families.py`. What no array shows must be said by a configuration, or be given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import published_families as names
import pytest
from published_names import drawn, huggingface_vit
from torch_files import new_file, tensor

from minivit import CheckpointError, ViT, export, from_pretrained, load
from minivit.data import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from minivit.io.safetensors import save_arrays
from minivit.io.weights import Weights, read_weights
from minivit.pretrained.plan import plan_of
from minivit.pretrained.preprocessing import preprocessing
from minivit.pretrained.recognition import recognize
from minivit.sizes import pair

SIZES: dict[str, Any] = {"img_size": 12, "patch_size": 4, "num_classes": 5, "embed_dim": 8, "depth": 2, "num_heads": 2}
FEATURES = {**SIZES, "num_classes": 0}
CLIP = {**SIZES, "pre_norm": True, "norm_eps": 1e-5, "gelu": "quick"}
SIGLIP = {**FEATURES, "class_token": False, "global_pool": "map", "gelu": "tanh"}
DINO = {**FEATURES, "init_values": 1e-5}
REGISTERS = {**DINO, "reg_tokens": 2, "no_embed_class": True}
# its files show no image size, and heads of 8 have two frequencies
DINO3 = {**FEATURES, "img_size": 224, "patch_size": 32, "embed_dim": 16, "init_values": 1e-5, "reg_tokens": 2}
DINO3 |= {"norm_eps": 1e-5, "pos_embed": "rotary", "qkv_bias": "qv", "dynamic_img_size": True}
BEIT = {**SIZES, "pos_embed": "relative", "qkv_bias": "qv", "init_values": 1e-5, "global_pool": "avg"}
BEIT |= {"norm_eps": 1e-12}
META3 = {**DINO3, "embed_dim": 32, "rotary_periods": "bfloat16"}
DEIT3 = {**SIZES, "init_values": 1e-5, "no_embed_class": True}
AIM = {**FEATURES, "class_token": False, "global_pool": "avg", "fc_norm": False, "mlp_layer": "swiglu"}
AIM |= {"norm_eps": 1e-5, "norm_layer": "rmsnorm", "patch_norm": True, "proj_bias": False, "qkv_bias": False}
GATED = {"mlp_layer": "swiglu_packed", "mlp_ratio": 3.0}
MEAN = {**FEATURES, "class_token": False, "global_pool": "avg", "fc_norm": False}
HEADS, QUICK, EXACT = {"num_heads": 2}, {"num_heads": 2, "gelu": "quick"}, {"num_heads": 2, "gelu": "none"}

# source, family, arguments, writer, what must be given, what is left out
CASES: dict[str, tuple[str, str, dict[str, Any], Any, dict[str, Any], str]] = {
    "openai": ("openclip", "CLIP", CLIP, names.clip, QUICK, "positional_embedding"),
    "laion": ("openclip", "CLIP", {**CLIP, "gelu": "none"}, names.clip, EXACT, "token_embedding.weight"),
    "openai_in_module": ("openclip", "CLIP", CLIP, names.clip_in_module, QUICK, "module.logit_scale"),
    "openai_alone": ("openclip", "CLIP", CLIP, names.clip_alone, QUICK, ""),
    "openai_features": ("openclip", "CLIP", {**CLIP, "num_classes": 0}, names.clip_alone, QUICK, ""),
    "openclip_scaled": ("openclip", "CLIP", {**CLIP, "init_values": 1e-5}, lambda a, m: {
        **names.clip_alone(a, m),
        **{f"transformer.resblocks.{i}.ls_{n}.gamma": a[f"blocks.{i}.ls{n}.gamma"] for i in (0, 1) for n in (1, 2)},
    }, QUICK, ""),
    "openclip_siglip": (
        "openclip", "SigLIP", SIGLIP, names.trunk, {**HEADS, "gelu": "tanh", "norm_eps": 1e-6}, "text.ln_final.weight"
    ),
    "openclip_trunk": (
        "openclip", "CLIP", CLIP, names.trunk, {**QUICK, "norm_eps": 1e-5}, "text.text_projection"
    ),
    "transformers_clip": ("huggingface", "CLIP", CLIP, names.huggingface_tower, QUICK, ""),
    "transformers_siglip": ("huggingface", "SigLIP", SIGLIP, names.huggingface_tower, HEADS, ""),
    "transformers_dinov2": ("huggingface", "DINOv2", DINO, names.huggingface_dino, EXACT, "embeddings.mask_token"),
    "transformers_dinov2_reg": (
        "huggingface", "DINOv2", REGISTERS, names.huggingface_dino, EXACT, "embeddings.mask_token"
    ),
    "transformers_dinov2_gated": (
        "huggingface", "DINOv2", {**DINO, **GATED}, names.huggingface_dino, HEADS, "embeddings.mask_token"
    ),
    "transformers_dinov3": ("huggingface", "DINOv3", DINO3, names.huggingface_dino3, EXACT, "embeddings.mask_token"),
    "transformers_dinov3_gated": (
        "huggingface", "DINOv3", {**DINO3, "mlp_layer": "swiglu"}, names.huggingface_dino3, HEADS,
        "embeddings.mask_token",
    ),
    "transformers_beit": ("huggingface", "BEiT", BEIT, names.huggingface_beit, {"gelu": "none"}, ""),
    "transformers_beit_features": (
        "huggingface", "BEiT", {**BEIT, "num_classes": 0}, lambda a, m: names.huggingface_beit(a, m, ""),
        {"gelu": "none"}, "",
    ),
    "dinov2": ("meta", "DINOv2", DINO, names.meta_dino, {**EXACT, "norm_eps": 1e-6}, "mask_token"),
    "dinov2_reg": ("meta", "DINOv2", REGISTERS, names.meta_dino, {**EXACT, "norm_eps": 1e-6}, "mask_token"),
    "dinov2_gated": ("meta", "DINOv2", {**DINO, **GATED}, names.meta_dino, {**HEADS, "norm_eps": 1e-6}, "mask_token"),
    "dinov2_gated_reg": (
        "meta", "DINOv2", {**REGISTERS, **GATED}, names.meta_dino, {**HEADS, "norm_eps": 1e-6}, "mask_token"
    ),
    "dinov3": ("meta", "DINOv3", META3, names.meta_dino3, {"gelu": "none"}, "local_cls_norm.weight"),
    "dinov3_gated": (
        "meta", "DINOv3", {**META3, "mlp_layer": "swiglu"}, names.meta_dino3, {}, "local_cls_norm.weight"
    ),
    "deit3": ("meta", "DeiT III", DEIT3, names.meta_deit3, {**EXACT, "norm_eps": 1e-6}, ""),
    "mae": ("meta", "MAE", FEATURES, names.meta_mae, HEADS, "decoder_blocks.0.attn.qkv.weight"),
    "dino": ("meta", "DINO", FEATURES, names.meta_self_distilled, HEADS, "head.last_layer.weight_g"),
    "dino_in_module": (
        "meta", "DINO", FEATURES, lambda a, m: names.meta_self_distilled(a, m, "module."), HEADS,
        "module.head.mlp.2.weight",
    ),
    "ijepa": ("timm", "", MEAN, lambda a, m: {f"module.{n}": x for n, x in a.items()}, EXACT, ""),
    "aimv2": ("apple", "AIMv2", AIM, names.apple, HEADS, ""),
}  # fmt: skip


def model_of(case: str, **more: Any) -> ViT:
    model = drawn(ViT, **{**CASES[case][2], **more})
    if CASES[case][0] in ("openclip", "huggingface") and "head.bias" in model.parameters():
        model.parameters()["head.bias"].data[:] = 0  # the projection of CLIP has none
    return model


def stored(folder: Path, case: str, **more: Any) -> tuple[Path, ViT]:
    model = model_of(case, **more)
    save_arrays(folder / "model.safetensors", CASES[case][3](model.state_dict(), model), None)
    return folder / "model.safetensors", model


def images(model: ViT) -> Any:
    return np.random.default_rng(5).standard_normal((2, 3, *pair(model.config["img_size"])))


def same(found: Any, model: ViT) -> bool:
    got, expected = found.predict(images(model)), model.predict(images(model))
    return bool(np.abs(got - expected).max() <= 1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_a_published_file_becomes_its_model(tmp_path: Path, case: str) -> None:
    source, family, _, _, given, omitted = CASES[case]
    path, model = stored(tmp_path, case)
    found = recognize(read_weights(path))
    assert (found.source, found.layout.family if found.layout else None, found.unknown) == (source, family, [])
    assert (omitted in found.left_out) if omitted else not found.left_out
    lines: list[str] = []
    read = from_pretrained(path, dtype="float64", report=lines.append, **given)
    assert same(read, model)
    assert read.config == model.config
    # nothing is left out without a word
    assert [line.partition(": '")[0] for line in lines] == ["minivit: omitted, as not part of the model"] * bool(
        omitted
    )
    counted = sum(
        int(line.rpartition(" and ")[2].removesuffix(" more")) + 5 for line in lines if line.endswith(" more")
    )
    assert counted == (len(found.left_out) if len(found.left_out) > 5 else 0)
    other = load(ViT(**{**CASES[case][2], "dtype": "float64", "seed": 9}), path)
    assert same(other, model)


SHOWN = ("mae", "dino", "dino_in_module", "dinov3_gated")  # as their arrays, or those of any such model


@pytest.mark.parametrize("case", [case for case in CASES if case not in SHOWN])
def test_what_no_array_shows_is_asked_for(tmp_path: Path, case: str) -> None:
    given = CASES[case][4]
    path, _ = stored(tmp_path, case)
    with pytest.raises(CheckpointError, match="give") as error:
        from_pretrained(path, report=lambda line: None)
    assert all(f"{name}=" in str(error.value) for name in given)


@pytest.mark.parametrize(
    ("name", "asked"), [("vit_base_patch32_clip_224", "gelu="), ("vit_large_patch14_clip_336", "gelu=")]
)
def test_openais_and_laions_towers_differ_in_the_gelu_alone(name: str, asked: str) -> None:
    from minivit.models import configs

    sizes = dict(configs.published())[name]
    small = ViT(**{**sizes, "embed_dim": 64, "num_heads": 1, "depth": 1, "img_size": sizes["patch_size"]})
    small.config["depth"] = 1
    arrays = names.clip(small.state_dict(), small)
    width, rows = sizes["embed_dim"], 1 + (sizes["img_size"] // sizes["patch_size"]) ** 2
    wide: dict[str, Any] = {}
    for key, array in arrays.items():
        sides = [side if side < 64 else side // 64 * width for side in array.shape]
        if key == "visual.positional_embedding":
            sides[0] = rows
        keys = [key.replace(".0.", f".{i}.") for i in range(sizes["depth"])] if "visual.transformer" in key else [key]
        wide |= dict.fromkeys(keys, np.broadcast_to(np.float32(0), sides))
    wide["visual.proj"] = np.broadcast_to(np.float32(0), (width, 512))
    with pytest.raises(CheckpointError, match=f"differ in gelu='none' or 'quick': give {asked}$"):
        plan_of(recognize(Weights(Path("x"), wide)))
    plan = plan_of(recognize(Weights(Path("x"), wide)), requested={"gelu": "quick"})
    assert {key: plan.arguments[key] for key in (*sizes, "gelu")} == {**sizes, "gelu": "quick"}
    assert plan.arguments["num_classes"] == 512 and plan.assumed == []


# --- OpenCLIP's configuration ---

TOWER = {"image_size": 12, "layers": 2, "width": 8, "head_width": 4, "patch_size": 4}


def open_clip(folder: Path, vision: dict[str, Any], **more: Any) -> None:
    content = {"model_cfg": {"embed_dim": 5, "vision_cfg": vision, "text_cfg": {}, **more.pop("model", {})}, **more}
    (folder / "open_clip_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("vision", "model", "options"),
    [
        ({}, {"quick_gelu": True}, {"gelu": "quick"}),
        ({}, {}, {"gelu": "none"}),
        ({"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-3}}, {}, {"gelu": "tanh", "norm_eps": 1e-3}),
        ({"head_width": 2}, {}, {"gelu": "none", "num_heads": 4}),
    ],
)
def test_open_clip_config_is_honored(tmp_path: Path, vision: Any, model: Any, options: Any) -> None:
    path, tower = stored(tmp_path, "openai", **options)
    open_clip(tmp_path, {**TOWER, **vision}, model=model)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": {"hidden_size": 99}}))
    assert same(from_pretrained(path, dtype="float64", report=lambda line: None), tower)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attentional_pool": True}, "attentional_pool=True"),
        ({"pool_type": "avg"}, "pool_type='avg'"),
        ({"no_ln_pre": True}, "no_ln_pre=True"),
        ({"act_kwargs": {"inplace": True}}, "inplace among act_kwargs"),
        ({"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "rot_attn"}, "timm_pool='rot_attn'"),
        ({"width": 12}, "embed_dim=12, and the arrays make a ViT with .*embed_dim=8"),
        ({"layers": 3}, "depth=3"),
        ({"image_size": 16}, "img_size=16"),
        ({"patch_size": 8, "image_size": 24}, "img_size=24, a grid of 6x6, and pos_embed has 9 positions"),
        ({"patch_size": 3}, "patch_size=3"),
        ({"mlp_ratio": 2.0}, "mlp_ratio=2.0"),
        ({"ls_init_value": 1e-5}, "init_values=1e-05"),
        ({"pos_embed_type": "sin_cos_2d"}, "pos_embed_type='sin_cos_2d'"),
        ({"block_type": "custom"}, "block_type='custom'"),
        ({"qk_norm": True}, "qk_norm=True"),
        ({"scaled_cosine_attn": True}, "scaled_cosine_attn=True"),
        ({"scale_heads": True}, "scale_heads=True"),
        ({"attn_type": "linear"}, "attn_type='linear'"),
        ({"width": "wide"}, "describes no image tower"),
    ],
)
def test_what_open_clip_config_says_and_minivit_lacks_is_refused_by_name(
    tmp_path: Path, change: Any, message: str
) -> None:
    path, _ = stored(tmp_path, "openai")
    open_clip(tmp_path, {**TOWER, **change})
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(path, report=lambda line: None)


def test_entries_of_open_clip_config_without_effect_are_read_over(tmp_path: Path) -> None:
    path, tower = stored(tmp_path, "openai", gelu="none")
    without = {"patch_dropout": 0.5, "output_tokens": True, "pool_type": "tok", "qk_norm": False, "attn_type": None}
    without |= {"attn_pooler_queries": 256, "pos_embed_type": "learnable", "block_type": "default", "mlp_ratio": 4.0}
    open_clip(tmp_path, {**TOWER, **without})
    assert same(from_pretrained(path, dtype="float64", report=lambda line: None), tower)


def test_an_open_clip_config_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path, _ = stored(tmp_path, "openai")
    (tmp_path / "open_clip_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="open_clip_config.json is not JSON"):
        from_pretrained(path, **QUICK, report=lambda line: None)


def test_a_trunk_has_its_timm_models_settings(tmp_path: Path) -> None:
    sizes = {"img_size": 16, "patch_size": 16, "embed_dim": 96, "depth": 9, "num_heads": 3, "mlp_ratio": 2.0}
    options = {"class_token": False, "reg_tokens": 1, "global_pool": "map", "pool_include_prefix": True}
    model = drawn(ViT, **{**FEATURES, **sizes, **options, "init_values": 1e-5})
    save_arrays(tmp_path / "x.safetensors", names.trunk(model.state_dict(), model), None)
    open_clip(tmp_path, {"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none", "image_size": 16})
    assert same(from_pretrained(tmp_path / "x.safetensors", dtype="float64", report=lambda line: None), model)
    own = {"timm_model_name": "test_vit3", "timm_pool": "map", "image_size": 16}
    open_clip(tmp_path, {**own, "timm_drop_path": 0.1, "timm_model_kwargs": {"act_layer": "quick_gelu"}})
    found = from_pretrained(tmp_path / "x.safetensors", dtype="float64", report=lambda line: None)
    assert (found.config["gelu"], found.config["drop_path_rate"]) == ("quick", 0.1)
    open_clip(tmp_path, {**own, "timm_model_kwargs": {"mlp_ratio": 3.0}})
    with pytest.raises(CheckpointError, match="mlp_ratio=3.0, and the arrays make a ViT with"):
        from_pretrained(tmp_path / "x.safetensors", report=lambda line: None)
    open_clip(tmp_path, {"timm_model_name": "vit_unheard_of", "image_size": 16})
    with pytest.raises(CheckpointError, match="architecture='vit_unheard_of'"):
        from_pretrained(tmp_path / "x.safetensors", report=lambda line: None)


# --- transformers' configuration ---

VISION = {"num_attention_heads": 2, "image_size": 12, "hidden_size": 8, "num_hidden_layers": 2}
VISION3 = {"num_attention_heads": 2, "hidden_size": 16, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("case", "config", "options"),
    [
        ("transformers_clip", {"model_type": "clip_vision_model", **VISION}, {}),
        ("transformers_clip", {"model_type": "clip", "vision_config": VISION}, {}),
        (
            "transformers_clip",
            {"model_type": "clip", "vision_config": {**VISION, "hidden_act": "gelu"}},
            {"gelu": "none"},
        ),
        ("transformers_siglip", {"model_type": "siglip", "vision_config": VISION}, {}),
        (
            "transformers_siglip",
            {"model_type": "siglip", "vision_config": {**VISION, "hidden_act": "gelu"}},
            {"gelu": "none"},
        ),
        ("transformers_dinov2", {"model_type": "dinov2", **VISION, "layer_norm_eps": 1e-2}, {"norm_eps": 1e-2}),
        ("transformers_dinov2_reg", {"model_type": "dinov2_with_registers", **VISION}, {}),
        ("transformers_dinov3", {"model_type": "dinov3_vit", **VISION3, "layer_norm_eps": 1e-2}, {"norm_eps": 1e-2}),
        ("transformers_dinov3", {"model_type": "dinov3_vit", **VISION3, "image_size": 64}, {"img_size": 64}),
        (
            "transformers_dinov3_gated",
            {"model_type": "dinov3_vit", **VISION3, "use_gated_mlp": True, "hidden_act": "silu"},
            {},
        ),
        ("transformers_beit", {"model_type": "beit", **VISION, "layer_norm_eps": 1e-2}, {"norm_eps": 1e-2}),
        ("openai", {"model_type": "clip", "vision_config": VISION}, {}),
        ("aimv2", {"model_type": "aimv2", **VISION, "rms_norm_eps": 1e-2}, {"norm_eps": 1e-2}),
    ],
)
def test_config_json_is_honored(tmp_path: Path, case: str, config: Any, options: Any) -> None:
    path, model = stored(tmp_path, case, **options)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert same(from_pretrained(path, dtype="float64", report=lambda line: None), model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "clip", "vision_config": {**VISION, "hidden_size": 9}}, "embed_dim=9"),
        ({"model_type": "clip", "vision_config": {**VISION, "hidden_act": "relu"}}, "hidden_act='relu'"),
        ({"model_type": "clip", "vision_config": {**VISION, "image_size": 20}}, "img_size=20"),
        ({"model_type": "swin", **VISION, "hidden_act": "gelu"}, "model_type='swin'"),
    ],
)
def test_a_config_json_of_another_model_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    path, _ = stored(tmp_path, "transformers_clip")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(path, report=lambda line: None)


@pytest.mark.parametrize(
    ("case", "config", "message"),
    [
        ("transformers_dinov3", {"rope_theta": 1e4}, "rope_theta=10000.0, and minivit's rotary positions have 100"),
        ("transformers_dinov3", {"hidden_act": "silu"}, "hidden_act='silu', and minivit has only GELU"),
        ("transformers_dinov3_gated", {"use_gated_mlp": True}, "hidden_act='gelu' of a gated MLP.*only 'silu'"),
    ],
)
def test_another_arithmetic_of_dinov3_is_refused(tmp_path: Path, case: str, config: Any, message: str) -> None:
    path, _ = stored(tmp_path, case)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dinov3_vit", **VISION3, **config}))
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(path, report=lambda line: None)


def test_a_linear_patch_embedding_is_refused_by_name(tmp_path: Path) -> None:
    model = model_of("transformers_siglip")
    arrays = names.huggingface_tower(model.state_dict(), model)
    arrays["vision_model.embeddings.patch_embedding.weight"] = np.ones((8, 48))
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match="linear layer of flattened patches.*NaFlex"):
        from_pretrained(tmp_path / "x.safetensors", **HEADS)


# --- what is refused, and what is left ---


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("openai", "visual.attn_pool.query"),
        ("openai", "visual_adapter.weight"),
        ("transformers_clip", "vision_model.adapter.weight"),
        ("transformers_clip", "adapter.weight"),
        ("dinov2", "dino_head.mlp.0.weight"),
        ("aimv2", "head.cls_token"),
    ],
)
def test_other_arrays_in_the_file_are_refused_by_name(tmp_path: Path, case: str, name: str) -> None:
    model = model_of(case)
    arrays = CASES[case][3](model.state_dict(), model) | {name: np.ones((3, 3))}
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    with pytest.raises(CheckpointError, match=rf"names are not the model's, first '{name.split('.', 1)[-1]}|'{name}'"):
        from_pretrained(tmp_path / "x.safetensors", **CASES[case][4], report=lambda line: None)


def test_of_an_encoder_and_its_average_the_average_is_read(tmp_path: Path) -> None:
    # I-JEPA keeps both, and its paper evaluates the average, the target encoder
    model = model_of("ijepa")
    state = {f"module.{name}": array for name, array in model.state_dict().items()}
    worse = {name: array + 1 for name, array in state.items()}
    content = {part: {name: tensor(array) for name, array in arrays.items()} for part, arrays in
               (("encoder", worse), ("target_encoder", state))}  # fmt: skip
    (tmp_path / "x.pth").write_bytes(new_file({**content, "epoch": 300}))
    assert same(from_pretrained(tmp_path / "x.pth", dtype="float64", **EXACT), model)


def test_a_masked_autoencoder_of_transformers_is_its_encoder(tmp_path: Path) -> None:
    model = drawn(ViT, **FEATURES)
    arrays = huggingface_vit(model.state_dict(), model) | {"decoder.decoder_pred.bias": np.ones(3)}
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    lines: list[str] = []
    found = from_pretrained(tmp_path / "x.safetensors", dtype="float64", norm_eps=1e-6, report=lines.append, **HEADS)
    assert same(found, model) and lines == ["minivit: omitted, as not part of the model: 'decoder.decoder_pred.bias'"]


# --- transformers' BEiT ---


@pytest.mark.parametrize("beside", [False, True])
def test_a_table_that_all_blocks_share_becomes_one_in_each(tmp_path: Path, beside: bool) -> None:
    model = model_of("transformers_beit")
    arrays = names.huggingface_beit(model.state_dict(), model)
    shared = "beit.encoder.relative_position_bias.relative_position_bias_table"
    arrays[shared] = np.random.default_rng(1).standard_normal((28, 2))  # 25 offsets of a 3x3 grid, 3 of the class token
    for i, block in enumerate(model.blocks):
        own = arrays.pop(
            f"beit.encoder.layer.{i}.attention.attention.relative_position_bias.relative_position_bias_table"
        )
        if beside:
            arrays[
                f"beit.encoder.layer.{i}.attention.attention.relative_position_bias.relative_position_bias_table"
            ] = own
        block.attn.parameters()["relative_position_bias_table"].data = arrays[shared] + beside * own
    save_arrays(tmp_path / "x.safetensors", arrays, None)
    assert same(from_pretrained(tmp_path / "x.safetensors", dtype="float64", gelu="none"), model)


def test_what_beit_may_have_and_minivit_lacks_is_refused_by_name(tmp_path: Path) -> None:
    model = model_of("transformers_beit")
    arrays = names.huggingface_beit(model.state_dict(), model)
    for more, message in (
        ({"beit.embeddings.position_embeddings": np.ones((1, 10, 8))}, "first 'blocks.0.attn.relative_position_bias"),
        ({"decode_head.classifier.bias": np.ones(3)}, "first 'decode_head.classifier.bias'"),
    ):
        save_arrays(tmp_path / "x.safetensors", {**arrays, **more}, None)
        with pytest.raises(CheckpointError, match=message):
            from_pretrained(tmp_path / "x.safetensors", **EXACT, report=lambda line: None)


# --- facebookresearch's DINOv3 ---


def meta_dinov3(folder: Path, **changes: Any) -> tuple[Path, ViT, dict[str, Any]]:
    """A file with these arrays instead of its own, the model in it, and its arrays; None leaves one out."""
    model = model_of("dinov3")
    arrays = {**names.meta_dino3(model.state_dict(), model), **changes}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    save_arrays(folder / "x.safetensors", arrays, None)
    return folder / "x.safetensors", model, arrays


MASK = "blocks.0.attn.qkv.bias_mask"


@pytest.mark.parametrize("mask", ["never set", "of k alone", "of all"])
def test_a_mask_of_biases_may_be_nan(tmp_path: Path, mask: str) -> None:
    kept, nan = np.ones(32), np.full(32, np.nan)
    parts = {"never set": (nan, nan, nan), "of k alone": (kept, nan, kept), "of all": (0 * kept,) * 3}[mask]
    path, model, _ = meta_dinov3(tmp_path, **{MASK: np.concatenate(parts)})
    if mask == "of all":
        for each in "qv":
            model.parameters()[f"blocks.0.attn.{each}_bias"].data[:] = 0
    assert same(from_pretrained(path, gelu="none", dtype="float64", report=lambda line: None), model)


def test_a_masked_bias_may_be_nan_and_one_without_mask_counts(tmp_path: Path) -> None:
    nan = np.full(32, np.nan)
    _, model, arrays = meta_dinov3(tmp_path)
    q, k, v = np.split(arrays["blocks.0.attn.qkv.bias"], 3)
    path, *_ = meta_dinov3(tmp_path, **{"blocks.0.attn.qkv.bias": np.concatenate((q, nan, v))})
    assert same(from_pretrained(path, gelu="none", dtype="float64", report=lambda line: None), model)
    path, *_ = meta_dinov3(tmp_path, **{MASK: None})
    found = from_pretrained(path, gelu="none", dtype="float64", report=lambda line: None)
    state = found.state_dict()
    assert np.array_equal(state["blocks.0.attn.qkv.bias"], np.concatenate((q, k, v)))  # and k's turns with the position
    assert not state["blocks.1.attn.qkv.bias"][32:64].any() and not same(found, model)


@pytest.mark.parametrize(("periods", "rounding"), [([1, 3.16227766, 10, 31.6227766], "exact"), (None, "bfloat16")])
def test_the_periods_in_the_file_are_those_of_the_model(tmp_path: Path, periods: Any, rounding: str) -> None:
    changes = {} if periods is None else {"rope_embed.periods": np.array(periods, np.float32)}
    path, model, _ = meta_dinov3(tmp_path, **changes)
    found = from_pretrained(path, gelu="none", dtype="float64", report=lambda line: None)
    assert found.config["rotary_periods"] == rounding and same(found, model) == (rounding == "bfloat16")
    exact = from_pretrained(path, gelu="none", rotary_periods="exact", dtype="float64", report=lambda line: None)
    export(exact, tmp_path / "timm.safetensors", "timm")
    if rounding == "bfloat16":
        with pytest.raises(ValueError, match="timm's ViT has rotary_periods='exact', and this model 'bfloat16'"):
            export(found, tmp_path / "timm.safetensors", "timm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_embed.periods": np.array([1, 5.62, 31.6, 178])}, "periods go from 1 to 178, and minivit's.*bfloat16"),
        ({"rope_embed.periods": np.ones(3)}, "rope_embed.periods has 3 numbers, a quarter of .* of which it has 32"),
        ({"cls_norm.weight": np.ones(32)}, "names are not the model's, first 'cls_norm.weight'"),
    ],
)
def test_what_dinov3_may_have_and_minivit_lacks_is_refused_by_name(tmp_path: Path, changes: Any, message: str) -> None:
    path, *_ = meta_dinov3(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(path, gelu="none", report=lambda line: None)


# --- exports ---

EXPORTED = ["openai", "transformers_clip", "transformers_siglip", "transformers_dinov2", "transformers_dinov2_reg"]
EXPORTED += ["transformers_dinov2_gated", "transformers_dinov3", "transformers_dinov3_gated", "transformers_beit"]


@pytest.mark.parametrize("case", EXPORTED)
def test_an_export_is_what_the_source_would_have_written(tmp_path: Path, case: str) -> None:
    model = model_of(case)
    export(model, tmp_path / "x.safetensors", CASES[case][0])
    expected = CASES[case][3](model.state_dict(), model)
    expected = {name: array for name, array in expected.items() if name not in names.clip_text()}
    got = read_weights(tmp_path / "x.safetensors").arrays
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("case", ["transformers_dinov2_reg", "dinov2", "transformers_clip"])
@pytest.mark.parametrize("unplaced", [False, True])
def test_positions_of_prefix_tokens_are_exported_as_the_source_has_them(
    tmp_path: Path, case: str, unplaced: bool
) -> None:
    model = model_of(case, no_embed_class=unplaced)
    export(model, tmp_path / "x.safetensors", "huggingface")
    found = from_pretrained(tmp_path / "x.safetensors", dtype="float64", **CASES[case][4], report=lambda line: None)
    assert same(found, model)


def test_what_a_projection_cannot_hold_is_refused(tmp_path: Path) -> None:
    for layout in ("openclip", "huggingface"):
        with pytest.raises(ValueError, match="no bias, and head.bias is not 0"):
            export(drawn(ViT, **CLIP), tmp_path / "x", layout)
    with pytest.raises(ValueError, match="class token and the mean of the patches side by side"):
        export(drawn(ViT, **{**DINO, "num_classes": 5}), tmp_path / "x", "huggingface")
    with pytest.raises(ValueError, match=r"huggingface has no name for 'head.weight' \(2 such\)"):
        export(drawn(ViT, **{**SIGLIP, "num_classes": 5}), tmp_path / "x", "huggingface")
    with pytest.raises(ValueError, match="openclip has no name for"):
        export(drawn(ViT, **SIZES), tmp_path / "x", "openclip")
    with pytest.raises(ValueError, match="DINOv3 has global_pool='token', and this model 'avg': export it as 'timm'"):
        export(drawn(ViT, **{**DINO3, "global_pool": "avg", "fc_norm": False}), tmp_path / "x", "huggingface")
    with pytest.raises(ValueError, match="BEiT has global_pool='token', and this model 'avg'"):
        export(drawn(ViT, **{**BEIT, "fc_norm": False}), tmp_path / "x", "huggingface")
    with pytest.raises(ValueError, match="huggingface has no name for 'blocks.0.attn.qkv.bias'"):
        export(drawn(ViT, **{**BEIT, "qkv_bias": True}), tmp_path / "x", "huggingface")
    for lacking in ({"final_norm": False}, {"class_token": False, "global_pool": "avg", "fc_norm": False}):
        with pytest.raises(ValueError, match=f"huggingface's DINOv3 has {next(iter(lacking))}=True"):
            export(drawn(ViT, **{**DINO3, **lacking}), tmp_path / "x", "huggingface")
    for layout in ("openclip", "torchvision"):
        with pytest.raises(ValueError, match=f"within each block's attention, and {layout} has no such ViT"):
            export(drawn(ViT, **DINO3), tmp_path / "x", layout)
    with pytest.raises(ValueError, match="huggingface has no name for"):  # not as DINOv3, which would rotate
        export(drawn(ViT, **{**DINO3, "pos_embed": "none"}), tmp_path / "x", "huggingface")
    for layout in ("meta", "apple"):
        with pytest.raises(ValueError, match=f"layout='{layout}' has no ViT: choose one of .*huggingface, openclip"):
            export(drawn(ViT, **SIZES), tmp_path / "x", layout)
    assert not list(tmp_path.iterdir())


# --- preprocessing ---

OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)
IMAGES: dict[str, tuple[Any, float, bool]] = {
    "openai": (OPENAI, 1.0, False),
    "transformers_clip": (OPENAI, 1.0, False),
    "transformers_siglip": (HALF, 1.0, True),
    "openclip_siglip": (HALF, 1.0, True),
    "transformers_dinov2": (IMAGENET, 224 / 256, False),
    "transformers_beit": (HALF, 1.0, True),
    "transformers_dinov3": (IMAGENET, 1.0, True),
    "dinov2_reg": (IMAGENET, 224 / 256, False),
    "dinov3": (IMAGENET, 1.0, True),
    "deit3": (IMAGENET, 1.0, False),
    "mae": (IMAGENET, 224 / 256, False),
    "dino": (IMAGENET, 224 / 256, False),
    "aimv2": (OPENAI, 1.0, False),
}


@pytest.mark.parametrize("case", IMAGES)
def test_the_preprocessing_of_each_family(tmp_path: Path, case: str) -> None:
    path, model = stored(tmp_path, case)
    numbers, crop, squash = IMAGES[case]
    filtered = "bilinear" if "dinov3" in case else "bicubic"
    size = model.config["img_size"]
    offset = "floor" if case in ("transformers_clip", "transformers_dinov2", "aimv2") else "round"
    assert preprocessing(path, model) == Preprocess(size, crop, filtered, *numbers, squash=squash, offset=offset)


def test_the_preprocessing_in_open_clip_config(tmp_path: Path) -> None:
    path, model = stored(tmp_path, "openai")
    said = {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3], "interpolation": "bilinear", "resize_mode": "squash"}
    open_clip(tmp_path, TOWER, preprocess_cfg=said)
    expected = Preprocess(12, 1.0, "bilinear", (0.1, 0.2, 0.3), (1, 2, 3), squash=True)
    assert preprocessing(path, model) == expected
    openai = {"mean": OPENAI[0], "std": OPENAI[1]}
    for some, expected in (
        ({}, Preprocess(12, **openai)),
        ({"interpolation": "random", "mean": None}, Preprocess(12, **openai)),
        ({"interpolation": "bilinear", "resize_mode": "squash"}, Preprocess(12, 1, "bilinear", **openai, squash=True)),
        ({"mean": 0.5, "std": [0.1, 0.2, 0.3]}, Preprocess(12, mean=HALF[0], std=(0.1, 0.2, 0.3))),
    ):
        open_clip(tmp_path, TOWER, preprocess_cfg=some)
        assert preprocessing(path, model) == expected
    open_clip(tmp_path, TOWER, preprocess_cfg={**said, "resize_mode": "longest"})
    with pytest.raises(CheckpointError, match="crop_mode='longest'"):
        preprocessing(path, model)


def test_open_clips_filter_for_images_that_are_not_square(tmp_path: Path) -> None:
    """Where the shape is kept it resizes with the bicubic filter, whatever the file says."""
    path, model = stored(tmp_path, "openai", img_size=(12, 16))
    for mode, expected in (("shortest", "bicubic"), ("squash", "bilinear")):
        said = {"interpolation": "bilinear", "resize_mode": mode}
        open_clip(tmp_path, {**TOWER, "image_size": [12, 16]}, preprocess_cfg=said)
        assert preprocessing(path, model).interpolation == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # openai/clip-vit-base-patch32, written before sizes had names: a number is the short side
        (
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 14, "crop_size": 12, "do_center_crop": True,
             "resample": 3, "image_mean": OPENAI[0], "image_std": OPENAI[1]},
            Preprocess(12, 12 / 14, "bicubic", *OPENAI),
        ),
        ({"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 12}, "crop_size": 12},
         Preprocess(12, 1.0, "bicubic", *OPENAI)),
        ({"image_processor_type": "SiglipImageProcessor", "size": {"height": 12, "width": 12}},
         Preprocess(12, 1.0, "bicubic", *HALF, squash=True)),
        ({"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 14}, "image_mean": IMAGENET[0],
          "image_std": IMAGENET[1], "crop_size": {"height": 12, "width": 12}},
         Preprocess(12, 12 / 14, "bicubic", *IMAGENET)),
    ],
)  # fmt: skip
def test_the_defaults_of_transformers_processors(tmp_path: Path, config: Any, expected: Preprocess) -> None:
    path, model = stored(tmp_path, "transformers_clip")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    found = preprocessing(path, model)
    np.testing.assert_allclose(found.mean + found.std, expected.mean + expected.std, rtol=1e-12)
    assert (found.crop, found.interpolation, found.squash) == (expected.crop, expected.interpolation, expected.squash)
