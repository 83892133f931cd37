"""Weights as training programs save them: under other prefixes, beside other things, one model of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published_names import drawn
from torch_files import new_file, tensor

from minivit import CheckpointError, ViT, from_pretrained, load
from minivit.io.safetensors import save_arrays
from minivit.io.saved_object import named_arrays

SIZES = {"img_size": 16, "patch_size": 4, "in_chans": 3, "num_classes": 5, "embed_dim": 8, "depth": 1, "num_heads": 2}
PREFIXES = ["module.", "_orig_mod.module.", "module._orig_mod.", "model.", "net.", "backbone.", "encoder.", "vit."]
PREFIXES += ["base_model.", "module.base_encoder.", "module.student.backbone.", "_forward_module.", "ema_model."]


def stored(path: Path, arrays: dict[str, Any]) -> Path:
    save_arrays(path / "model.safetensors", arrays, None)
    return path


def same(found: Any, model: Any) -> bool:
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(found.dtype)
    return np.array_equal(found.predict(x), model.predict(x))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_is_taken_off(tmp_path: Path, prefix: str) -> None:
    model, lines = drawn(ViT, **SIZES), list[str]()
    arrays = {prefix + name: array for name, array in model.state_dict().items()}
    assert same(from_pretrained(stored(tmp_path, arrays), num_heads=2, report=lines.append), model) and not lines


def test_what_stands_beside_the_model_is_left_out_in_words(tmp_path: Path) -> None:
    model, lines = drawn(ViT, **SIZES), list[str]()
    arrays = {f"module.{name}": array for name, array in model.state_dict().items()}
    arrays |= {"n_averaged": np.zeros(1), "criterion.weight": np.ones(3)}
    assert same(from_pretrained(stored(tmp_path, arrays), num_heads=2, report=lines.append), model)
    assert len(lines) == 1 and "'n_averaged'" in lines[0] and "'criterion.weight'" in lines[0]


def test_a_head_outside_the_prefix_is_the_models(tmp_path: Path) -> None:
    model = drawn(ViT, **SIZES)
    state = model.state_dict()
    arrays = {f"backbone.{name}": array for name, array in state.items() if not name.startswith("head")}
    arrays |= {f"classifier.{part}": state[f"head.{part}"] for part in ("weight", "bias")}
    assert same(from_pretrained(stored(tmp_path, arrays), num_heads=2), model)


def test_of_two_models_none_is_guessed(tmp_path: Path) -> None:
    arrays = drawn(ViT, **SIZES).state_dict()
    both = {f"{which}.{name}": array for which in ("teacher", "student") for name, array in arrays.items()}
    with pytest.raises(
        CheckpointError, match="several models, under 'student.', 'teacher.': save the arrays of one of them"
    ):
        from_pretrained(stored(tmp_path, both))


# --- dictionaries and lists around the arrays ---


MODEL = drawn(ViT, **SIZES)
STATE = MODEL.state_dict()
OTHER = {name: array + 1 for name, array in STATE.items()}
HEAD = {part: STATE[f"head.{part}"] for part in ("weight", "bias")}
BODY = {name: array for name, array in STATE.items() if not name.startswith("head.")}
LOSS = {"weight": np.ones(3)}


def pickled(path: Path, content: Any) -> Path:
    (path / "model.pth").write_bytes(new_file(as_tensors(content)))
    return path


def as_tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: as_tensors(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(as_tensors, content))
    return tensor(content) if isinstance(content, np.ndarray) else content


# what training programs save -> lines of the report
WRAPPED: dict[str, tuple[Any, int]] = {
    **{key: ({"epoch": 3, key: STATE}, 0) for key in ("model_state_dict", "module", "ema_state_dict", "weights")},
    **{key: ({"epoch": 3, key: STATE}, 0) for key in ("teacher", "student", "network", "best_model", "params_ema")},
    "list": ([STATE], 0),
    "tuple": ((STATE, 3), 0),
    "list with an optimizer": ([STATE, {"state": {}, "param_groups": []}], 0),
    "list within": ({"model": [STATE]}, 0),
    "three levels": ({"state": {"model": {"net": STATE}}}, 0),
    "a configuration under model": ({"model": {"depth": 1}, "state_dict": STATE}, 0),
    "weights of a loss": ({"weights": LOSS, "state_dict": STATE}, 0),
    "a criterion": ({"criterion": LOSS, "net": STATE}, 0),
    "one model under two keys": ({"model": STATE, "state_dict": dict(STATE)}, 0),
    "one model under two prefixes": (
        {
            "student": {f"module.backbone.{name}": array for name, array in STATE.items()},
            "teacher": {f"backbone.{name}": array for name, array in STATE.items()},
        },
        0,
    ),
    "an average": ({"model": OTHER, "model_ema": STATE}, 1),
    "a head under its key": ({"backbone": BODY, "head": HEAD}, 0),
    "a classifier under its key": ({"model": {"encoder": BODY, "classifier": HEAD}}, 0),
    "a decoder": ({"encoder": STATE, "decoder": {"proj.weight": np.ones((3, 3))}}, 1),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_the_one_model_of_a_checkpoint_is_found(tmp_path: Path, case: str) -> None:
    content, count = WRAPPED[case]
    lines: list[str] = []
    found = from_pretrained(pickled(tmp_path, content), num_heads=2, dtype="float64", report=lines.append)
    assert same(found, MODEL) and len(lines) == count
    if case == "an average":
        assert lines == [
            "minivit: read 'model_ema', an average over training; the file has other weights under 'model'"
        ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"teacher": STATE, "student": OTHER}, "several models, under 'teacher', 'student': save the arrays of one"),
        ({"model": STATE, "state_dict": OTHER}, "several models, under 'model', 'state_dict'"),
        ({"generator": STATE, "discriminator": OTHER}, "several models, under 'generator', 'discriminator'"),
        ({"model_ema": STATE, "state_dict_ema": OTHER, "model": OTHER}, "several models, under 'model_ema'"),
        ([STATE, OTHER], "a list of 2 models"),
    ],
)
def test_of_two_models_under_two_keys_none_is_guessed(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_pretrained(pickled(tmp_path, content), num_heads=2)


def test_an_object_within_itself_is_searched_once() -> None:
    content: dict[str, Any] = {"state_dict": STATE}
    content |= {f"{number}": [content] * 1000 for number in range(1000)}  # 10^18 ways to a depth of three
    assert named_arrays({"model": content}) == (STATE, "")


# --- other arrays beside a model without prefix, and parts added to it ---


EXTRAS = ["n_averaged", "criterion.weight", "loss_fn.weight", "train_acc.tp", "metric.sum", "blocks.0.attn.total_ops"]


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("prefix", ["", "model."])
def test_what_a_training_counts_is_left_out_in_words(tmp_path: Path, extra: str, prefix: str) -> None:
    arrays = {prefix + name: array for name, array in MODEL.state_dict().items()} | {extra: np.ones(3)}
    lines: list[str] = []
    assert same(from_pretrained(stored(tmp_path, arrays), num_heads=2, report=lines.append), MODEL)
    assert lines == [f"minivit: omitted, as not part of the model: '{extra}'"]


LORA = ["blocks.0.attn.qkv.lora_A.weight", "base_model.model.vit.encoder.layer.0.query.lora_B.default.weight"]
LORA += ["blocks.0.attn.qkv.lora_A", "lora_unet_blocks_0_attn.lora_down.weight", "blocks.0.mlp.fc1.hada_w1_a"]
ADAPTERS = ["blocks.0.adapter.down.weight", "base_model.model.blocks.0.mlp.fc2.ia3_l", "blocks.0.adaptmlp.up_proj.bias"]


KINDS = [(name, "updates of low rank") for name in LORA] + [(name, "an adapter") for name in ADAPTERS]


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("alone", [True, False])
def test_lora_and_adapter_files_are_named_as_such(tmp_path: Path, name: str, kind: str, alone: bool) -> None:
    arrays = {name: np.ones((2, 8))} | ({} if alone else MODEL.state_dict())
    with pytest.raises(CheckpointError, match=f"holds {kind}.* of another program, such as '{name}'.*merge"):
        from_pretrained(stored(tmp_path, arrays), num_heads=2)
    with pytest.raises(CheckpointError, match=f"holds {kind}"):
        load(drawn(ViT, **SIZES), tmp_path / "model.safetensors")
