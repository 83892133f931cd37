"""LoRA: updates of low rank that start at zero, train beside constant weights, merge, and make a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import nn, optim, parallel
from minivit.io.safetensors import CheckpointError, load_arrays, save_arrays
from minivit.models.lora import has_lora

VIT: dict[str, Any] = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 2, "num_heads": 2,
}  # fmt: skip
SWIN: dict[str, Any] = {"img_size": 16, "in_chans": 1, "num_classes": 3, "embed_dim": 4, "depths": (2, 2)}
SWIN |= {"num_heads": (1, 2), "window_size": 2}
ALL = ("qkv", "proj", "fc1", "fc2")
MODELS: dict[str, Any] = {
    "class token": lambda **more: minivit.ViT(**VIT | more),
    "distilled": lambda **more: minivit.ViT(**VIT | more, distilled=True),
    "every token": lambda **more: minivit.ViT(**VIT | more, skip_unused_tokens=False),
    "average": lambda **more: minivit.ViT(**VIT | more, global_pool="avg"),
    "relative": lambda **more: minivit.ViT(**VIT | more, pos_embed="relative"),
    "no biases": lambda **more: minivit.ViT(**VIT | more, qkv_bias=False),
    "swin": lambda **more: minivit.Swin(**SWIN | more),
    "swin v2": lambda **more: minivit.SwinV2(**SWIN | more, cpb_hidden=4),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def images(model: Any, count: int = 3) -> Any:
    side = model.config["img_size"]
    return np.random.default_rng(0).standard_normal((count, 1, side, side)).astype(model.dtype)


def drawn(model: Any, seed: int = 3, size: float = 0.3) -> Any:
    """The model with all arrays far from their start."""
    rng = np.random.default_rng(seed)
    for each in model.state().values():
        each.data += size * rng.standard_normal(each.shape).astype(each.data.dtype)
    return model


@every_model
@pytest.mark.parametrize("targets", [("qkv", "proj"), ALL, "fc1"])
def test_it_starts_equal_and_merges_into_the_plain_model(kind: str, targets: Any) -> None:
    model = drawn(MODELS[kind](dtype="float64"))
    x, before = images(model), model.state_dict()
    logits = model.predict(x)
    trained = minivit.lora(model, rank=2, alpha=3, targets=targets)
    assert np.allclose(model.predict(x), logits, rtol=0, atol=1e-14)
    assert {name: model.state_dict()[name].tobytes() for name in before} == {
        name: array.tobytes() for name, array in before.items()
    }
    names = (targets,) if isinstance(targets, str) else targets
    updates = {name for name in model.state() if ".lora_" in name}
    assert len(updates) == 2 * len(names) * sum(model.config.get("depths", (2,)))
    assert trained.keys() == updates | {name for name in before if name.startswith(("head.", "head_dist."))}
    assert not any(f".{name}.weight" in each for name in names for each in model.parameters() if "patch" not in each)
    drawn(model, 4)
    changed = model.predict(x)
    assert np.abs(changed - logits).max() > 0.1
    plain = minivit.merge_lora(model.replica())
    assert has_lora(model) and not has_lora(plain)
    assert np.abs(plain.predict(x) - changed).max() < 1e-12
    twin = MODELS[kind](dtype="float64")
    assert plain.parameters().keys() == twin.parameters().keys() and repr(plain) == repr(twin)
    twin.load_state_dict(plain.state_dict())
    assert np.array_equal(twin.predict(x), plain.predict(x))
    assert np.array_equal(minivit.merge_lora(model).predict(x), plain.predict(x))


@pytest.mark.parametrize("kind", ["class token", "swin v2"])
def test_gradients_of_a_whole_model(kind: str) -> None:
    small = {"depth": 1} if kind == "class token" else {"depths": (2,), "num_heads": (1,)}
    model = MODELS[kind](dtype="float64", **small)
    minivit.lora(model, 2, targets=ALL)
    minivit.check_vjp(drawn(model), images(model, 2))


@every_model
def test_the_first_tokens_alone_are_those_of_all(kind: str) -> None:
    """The last block before a head on the class token has rows of q, k and v of its own."""
    model = drawn(MODELS[kind](dtype="float64"))
    minivit.lora(model, 2, targets=ALL)
    drawn(model)
    x = images(model)
    with minivit.plain():
        expected = model.predict(x)
    assert np.allclose(model.predict(x), expected, rtol=0, atol=1e-13)
    if kind == "class token":
        every = drawn(minivit.ViT(**VIT, skip_unused_tokens=False, dtype="float64"))
        minivit.lora(every, 2, targets=ALL)
        every.load_state_dict(model.state_dict())
        assert np.allclose(every.predict(x), expected, rtol=0, atol=1e-13)


def test_weights_stay_to_the_bit_where_an_optimizer_gets_what_lora_returns() -> None:
    model = drawn(minivit.ViT(**VIT, drop_path_rate=0.2))
    trained = minivit.lora(model, 2, targets=("qkv", "fc2"))
    before = model.state_dict()
    opt = optim.AdamW(trained, 1e-2, no_decay=optim.no_decay(model) & trained.keys())
    step, x, labels = parallel.DataParallel(model, 2), images(model, 6), np.arange(6) % 3
    first = None
    for number in range(30):
        model.zero_grad()
        loss = step.loss_and_grad(x, labels, np.random.default_rng(number))
        first = loss if first is None else first
        opt.step()
    assert loss < first / 2
    for name, array in model.state_dict().items():
        assert np.array_equal(array, before[name]) == (name not in trained), name


def test_a_prepared_model_has_the_updates() -> None:
    for kind in ("class token", "swin"):
        model = MODELS[kind]()
        minivit.lora(model, 2, targets=ALL)
        x = images(drawn(model))
        runner = minivit.prepare(model)
        assert has_lora(model), "the model itself is not merged"
        assert np.allclose(runner.predict(x), model.predict(x), rtol=0, atol=1e-4)
        assert runner.nbytes == pytest.approx(minivit.prepare(minivit.merge_lora(model)).nbytes, rel=0.01)


def test_multiply_adds_and_kept_memory_count_the_updates() -> None:
    for kind in ("class token", "every token", "swin"):
        plain, model = MODELS[kind](), MODELS[kind]()
        minivit.lora(model, 2, targets=("fc1",))
        linears = [layer.mlp.fc1 for _, layer in model.leaves() if isinstance(layer, nn.Block)]
        assert all(type(linear) is nn.LoRALinearGELU for linear in linears)
        table = minivit.summary(model, quiet=True)
        more = table.macs - minivit.summary(plain, quiet=True).macs
        shapes = {row.name: row.shape for row in table.rows}
        tokens = [np.prod(shapes[name][1:-1]) for name, layer in model.leaves() if isinstance(layer, nn.Block)]
        expected = sum(count * (linear.lora_a.size + linear.lora_b.size) for count, linear in zip(tokens, linears))
        assert more == expected
        # what the backs hold has no weights
        assert table.kept_bytes < minivit.summary(plain, quiet=True).kept_bytes + 8 * 4 * 4 * 32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank=0 must be an integer from 1 to 8"),
        ({"rank": 9}, "rank=9 must be an integer from 1 to 8"),
        ({"rank": 2.0}, "rank=2.0 must be an integer"),
        ({"alpha": 0}, "alpha=0 must be a finite number above 0"),
        ({"alpha": "16"}, "alpha='16' must be a finite number"),
        ({"targets": ("qkv", "fc3")}, r"targets=\('qkv', 'fc3'\): .*one has 'fc1', 'fc2', 'proj', 'qkv'"),
        ({"targets": ()}, r"targets=\(\)"),
    ],
)
def test_what_no_update_can_be_is_refused(arguments: Any, message: str) -> None:
    model = minivit.ViT(**VIT)
    with pytest.raises(ValueError, match=message):
        minivit.lora(model, **arguments)
    assert not has_lora(model) and len(model.parameters()) == len(minivit.ViT(**VIT).parameters())


def test_a_factor_below_one_is_allowed() -> None:
    assert nn.LoRALinear(nn.Linear(2, 2), 1, alpha=0.5).alpha == 0.5


def test_what_has_no_updates_or_has_them_twice_is_refused(tmp_path: Path) -> None:
    model = minivit.ViT(**VIT)
    for call in (minivit.merge_lora, lambda model: minivit.save_lora(model, tmp_path / "x.safetensors")):
        with pytest.raises(ValueError, match=r"no updates of low rank: minivit.lora\(model\)"):
            call(model)
    with pytest.raises(ValueError, match="a block, or a model, without any"):
        minivit.lora(minivit.ViT(**VIT | {"depth": 0}))
    with pytest.raises(ValueError, match="lora takes the model itself"):
        minivit.lora(minivit.ViT)
    minivit.lora(model)
    calls: list[Any] = [
        minivit.lora,
        lambda model: minivit.save(model, tmp_path / "x.safetensors"),
        lambda model: minivit.export(model, tmp_path / "x.safetensors"),
        lambda model: minivit.load_lora(model, tmp_path / "x.safetensors"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"minivit.merge_lora\(model\) adds them.*minivit.save_lora"):
            call(model)
    assert not list(tmp_path.iterdir())


# --- files ---


@every_model
def test_updates_alone_make_a_small_file(kind: str, tmp_path: Path) -> None:
    base = drawn(MODELS[kind](seed=5))
    model = MODELS[kind](seed=5)
    model.load_state_dict(base.state_dict())
    model.reset_classifier(4)
    trained = minivit.lora(model, 2, 5.0, ("proj", "fc1"), seed=7)
    rng = np.random.default_rng(1)
    for param in trained.values():
        param.data += rng.standard_normal(param.shape)
    minivit.save_lora(model, tmp_path / "updates.safetensors")
    arrays, content = load_arrays(tmp_path / "updates.safetensors")
    assert arrays.keys() == trained.keys()
    assert content["lora"] == {"rank": 2, "alpha": 5.0, "targets": ["proj", "fc1"]}
    x = images(model)
    found = minivit.load_lora(base, tmp_path / "updates.safetensors")
    assert found.keys() == trained.keys() and base.num_classes == base.config["num_classes"] == 4
    assert np.array_equal(base.predict(x), model.predict(x))
    minivit.save(minivit.merge_lora(model), tmp_path / "merged.safetensors")
    merged = minivit.from_pretrained(tmp_path / "merged.safetensors", report=pytest.fail)
    assert np.allclose(merged.predict(x), base.predict(x), rtol=0, atol=1e-5)


def test_updates_fit_the_same_weights_in_another_dtype(tmp_path: Path) -> None:
    model = minivit.ViT(**VIT)
    minivit.lora(model)
    minivit.save_lora(drawn_updates(model), tmp_path / "x.safetensors")
    wide = minivit.ViT(**VIT, dtype="float64")
    wide.load_state_dict(minivit.ViT(**VIT).state_dict())
    minivit.load_lora(wide, tmp_path / "x.safetensors")
    x = images(model)
    assert np.allclose(wide.predict(x.astype("float64")), model.predict(x), rtol=0, atol=1e-5)


def drawn_updates(model: Any) -> Any:
    rng = np.random.default_rng(1)
    for name, param in model.parameters().items():
        if "lora_" in name:
            param.data += 0.1 * rng.standard_normal(param.shape)
    return model


def test_a_file_of_other_updates_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    model = minivit.ViT(**VIT, seed=1)
    minivit.lora(model, 2)
    minivit.save_lora(model, path)
    with pytest.raises(CheckpointError, match=r"updates of low rank \(LoRA\) and no model.*minivit.load_lora"):
        minivit.from_pretrained(path)
    others: list[tuple[Any, str]] = [
        (minivit.ViT(**VIT, seed=2), "of this size with other weights: load the weights that it was trained on"),
        (minivit.ViT(**VIT | {"depth": 3}), "depth=2 in the file, 3 in the model"),
        (minivit.ViT(**VIT, seed=1, gelu="tanh"), "gelu='none' in the file, 'tanh' in the model"),
        (minivit.Swin(**SWIN), "updates of a 'ViT', and this is a Swin"),
    ]
    arrays, content = load_arrays(path)
    changed: dict[str, Any] = {
        "rank": (
            arrays,
            {"rank": 3},
            "'blocks.0.attn.qkv.lora_a' has shape .2, 8. in the file, and .3, 8. in the model",
        ),
        "targets": (arrays, {"targets": ["qkv"]}, "'blocks.0.attn.proj.lora_a' has shape .* and none in the model"),
        "none": (arrays, {"targets": None}, "does not fit this ViT"),
        "alpha": (arrays, {"alpha": -1}, "alpha=-1 must be a finite number above 0"),
        "fewer": (
            {name: array for name, array in arrays.items() if "head" not in name},
            {},
            "'head.weight' has shape none",
        ),
    }
    for name, (found, settings, message) in changed.items():
        save_arrays(tmp_path / name, found, {**content, "lora": content["lora"] | settings})
        others.append((minivit.ViT(**VIT, seed=1), message))
    files = [path] * 4 + [tmp_path / name for name in changed]
    minivit.save(minivit.ViT(**VIT), tmp_path / "weights.safetensors")
    others.append((minivit.ViT(**VIT, seed=1), "holds no updates of low rank: minivit.load and from_pretrained"))
    for (other, message), file in zip(others, [*files, tmp_path / "weights.safetensors"], strict=True):
        before = other.state_dict()
        with pytest.raises(CheckpointError, match=message):
            minivit.load_lora(other, file)
        after = other.state_dict()
        assert list(after) == list(before) and all(np.array_equal(after[name], before[name]) for name in before)
