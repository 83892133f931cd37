"""What users of timm and PyTorch look for on a model: forward_features, reset_classifier, zero_grad, predict_proba."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from device_tools import Device

import minivit
from minivit import functional as F, nn, optim, parallel

VIT = {"img_size": 8, "patch_size": 4, "in_chans": 2, "num_classes": 3, "embed_dim": 8, "depth": 2, "num_heads": 2}
SWIN = {"img_size": 32, "patch_size": 2, "in_chans": 2, "num_classes": 3, "embed_dim": 8}
SWIN |= {"depths": (2, 2), "num_heads": (2, 2), "window_size": 4}
KINDS = {
    "vit": (minivit.ViT, VIT),
    "mean of patches": (minivit.ViT, {**VIT, "global_pool": "avg"}),
    "mean, norm before": (minivit.ViT, {**VIT, "global_pool": "avg", "fc_norm": False, "class_token": False}),
    "relative": (minivit.ViT, {**VIT, "pos_embed": "relative"}),
    "distilled": (minivit.ViT, {**VIT, "distilled": True}),
    "pre-logits": (minivit.ViT, {**VIT, "representation_size": 5}),
    "hybrid": (minivit.ViT, {**VIT, "patch_size": 2, "resnet_layers": (), "resnet_width": 8, "resnet_groups": 2}),
    "jax": (minivit.ViT, {**VIT, "weight_init": "jax_nlhb"}),
    "swin": (minivit.Swin, SWIN),
    "swin v2": (minivit.SwinV2, SWIN),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def build(kind: str, **changes: Any) -> Any:
    """A model in float64 whose weights are large enough for every part to matter."""
    make, options = KINDS[kind]
    model = make(**{**options, "dtype": "float64", **changes})
    rng = np.random.default_rng(7)
    for param in model.parameters().values():
        param.data = param.data + 0.3 * rng.standard_normal(param.shape)
    return model


def images(model: Any, batch: int = 3) -> Any:
    side = model.config["img_size"]
    return np.random.default_rng(1).standard_normal((batch, 2, side, side))


def head_of(model: Any) -> dict[str, Any]:
    return {name: value for name, value in model.state_dict().items() if name.startswith("head")}


# --- forward_features ---


@kinds
def test_features_before_pooling_lead_to_the_models_logits(kind: str) -> None:
    """Also where the last block of a forward pass leaves out the tokens that the head does not read."""
    model = build(kind)
    x = images(model)
    found = model.forward_features(x)
    if isinstance(model, minivit.ViT):
        prefix = model.config["class_token"] + model.config["distilled"]
        patches = (8 // (model.config["patch_size"] * (4 if kind == "hybrid" else 1))) ** 2
        assert found.shape == (3, prefix + patches, 8)
    else:
        assert found.shape == (3, 8, 8, 16)  # 32 pixels, patches of 2, merged once
    behind = [part for name, part in model.parts() if name in ("pool", "fc_norm", "pre_logits", "head_drop", "head")]
    y = found
    for layer in behind:
        y, _ = layer(y)
    assert np.allclose(y, model.predict(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["vit", "distilled", "relative"])
def test_every_token_is_among_the_features(kind: str) -> None:
    model, whole = build(kind), build(kind, skip_unused_tokens=False)
    x = images(model)
    expected, blocks = x, [whole.embed, *whole.blocks, whole.norm]
    for layer in blocks:
        expected, _ = layer(expected)
    assert np.allclose(model.forward_features(x), expected, rtol=1e-12, atol=1e-12)
    model.blocks[-1] = nn.Recompute(model.blocks[-1])
    assert np.allclose(model.forward_features(x), expected, rtol=1e-12, atol=1e-12)
    assert model.blocks[-1].layer.attn.queries is not None, "the model itself goes on leaving them out"


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_features_come_in_batches_and_keep_nothing(kind: str) -> None:
    model = build(kind)
    x = images(model, 5)
    whole = model.forward_features(x)
    assert np.allclose(model.forward_features(x, batch_size=2), whole, rtol=1e-12, atol=1e-12)
    assert model.forward_features(x[:0]).shape == (0, *whole.shape[1:])
    assert all(param.grad is None for param in model.parameters().values())
    with pytest.raises(ValueError, match="batch_size"):
        model.forward_features(x, batch_size=0)
    with pytest.raises(ValueError, match="float32"):
        model.forward_features(x.astype("float32"))


def test_features_on_a_device(device: Device) -> None:
    model = build("vit")
    expected, x = model.forward_features(images(model)), images(model)
    if not device.on_host:
        minivit.to_device(model, "gpu")
    assert np.allclose(device.get(model.forward_features(device.put(x))), expected, rtol=1e-12, atol=1e-12)


# --- reset_classifier ---


@kinds
@pytest.mark.parametrize("classes", [1, 3, 7])
def test_a_new_head_starts_as_the_models_class_starts_it(kind: str, classes: int) -> None:
    model = build(kind)
    before = model.state_dict()
    model.reset_classifier(classes, seed=5)
    fresh = type(model)(**model.config, seed=0)
    assert model.num_classes == classes == model.config["num_classes"] == fresh.num_classes
    assert list(model.state_dict()) == list(fresh.state_dict()), "the names, and their order"
    assert model.predict(images(model)).shape == (3, classes)
    for name, value in model.state_dict().items():
        if not name.startswith("head"):
            assert np.array_equal(value, before[name]), name
            continue
        start = fresh.state_dict()[name]
        assert value.shape == start.shape and value.dtype == start.dtype
        if name.endswith("bias") or kind == "jax":
            assert np.array_equal(value, start)
        else:
            assert 0 < np.abs(value).max() <= 0.04, "truncated normal with deviation 0.02"


@kinds
def test_no_classes_remove_the_head_and_a_number_brings_one_back(kind: str) -> None:
    model = build(kind)
    x = images(model)
    features = model.features(x)
    model.reset_classifier(0)
    assert not head_of(model) and model.num_classes == 0 and np.array_equal(model.predict(x), features)
    assert np.array_equal(model(x)[0], features)
    model.reset_classifier(4)
    y, back = model(x)
    assert y.shape == (3, 4) and np.array_equal(model.features(x), features)
    back(np.ones_like(y))
    assert all(param.grad.shape == param.shape for param in model.parameters().values())


def test_a_seed_decides_the_new_head() -> None:
    model = build("vit")
    heads = []
    for seed in (0, 0, 1, np.random.default_rng(1)):
        model.reset_classifier(4, seed=seed)
        heads.append(head_of(model)["head.weight"])
    assert np.array_equal(heads[0], heads[1]) and not np.array_equal(heads[0], heads[2])
    assert np.array_equal(heads[2], heads[3]), "a generator in the state of the seed"


@kinds
@pytest.mark.parametrize("classes", [0, 5])
def test_a_file_keeps_the_new_head(kind: str, classes: int, tmp_path: Any) -> None:
    model = build(kind)
    model.reset_classifier(classes)
    minivit.save(model, tmp_path / "model.safetensors")
    twin = minivit.from_pretrained(tmp_path / "model.safetensors")
    assert twin.config == model.config and np.array_equal(twin.predict(images(model)), model.predict(images(model)))


@pytest.mark.parametrize("classes", [-1, 2.5, "3", None])
def test_a_bad_number_of_classes_changes_nothing(classes: Any) -> None:
    model = build("vit")
    before, config = model.state_dict(), copy.deepcopy(model.config)
    with pytest.raises(ValueError, match="num_classes=.*integer"):
        model.reset_classifier(classes)
    assert model.config == config and model.num_classes == 3
    assert all(np.array_equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["vit", "distilled", "swin"])
def test_a_new_head_is_made_where_the_model_is(device: Device, kind: str) -> None:
    model = build(kind)
    x = images(model)
    if not device.on_host:
        minivit.to_device(model, "gpu")
    model.reset_classifier(4)
    assert device.get(model.predict(device.put(x))).shape == (3, 4)
    logits, back = model(device.put(x))
    back(logits)


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize("classes", [3, 5])
def test_data_parallel_trains_the_new_head(kind: str, classes: int) -> None:
    """Its replicas were made of the old one, and gradients would go to parameters that the model no longer has."""
    model, labels = build(kind), np.array([0, 1, 2, 0])
    x = images(model, 4)
    step = parallel.DataParallel(model, threads=1, shards=2)
    step.loss_and_grad(x, labels)
    model.reset_classifier(classes)
    model.zero_grad()
    loss = step.loss_and_grad(x, labels)
    fresh = copy.deepcopy(model)
    fresh.zero_grad()
    assert loss == parallel.DataParallel(fresh, threads=1, shards=2).loss_and_grad(x, labels)
    for name, param in fresh.parameters().items():
        assert np.array_equal(param.grad, model.parameters()[name].grad), name


# --- zero_grad and predict_proba ---


def test_zero_grad_clears_every_gradient_of_models_and_layers() -> None:
    model = build("vit")
    opt = optim.SGD({"head.bias": model.parameters()["head.bias"]}, lr=0.1)
    for layer, x in ((model, images(model)), (nn.Linear(4, 3, dtype="float64", seed=0), np.ones((2, 4)))):
        y, back = layer(x)
        back(y)
        assert all(param.grad is not None for param in layer.parameters().values())
        if layer is model:
            opt.zero_grad()  # which knows one of them
            assert model.parameters()["head.weight"].grad is not None
        layer.zero_grad()
        assert all(param.grad is None for param in layer.parameters().values())


@pytest.mark.parametrize("kind", ["vit", "distilled", "swin v2"])
def test_probabilities_are_the_softmax_of_the_logits(kind: str) -> None:
    model = build(kind)
    x = images(model, 5)
    found = model.predict_proba(x)
    assert np.array_equal(found, F.softmax(model.predict(x))[0]) and found.shape == (5, 3)
    assert np.allclose(found.sum(axis=1), 1, rtol=1e-12) and (found > 0).all()
    assert np.allclose(model.predict_proba(x, batch_size=2), found, rtol=1e-12)
    assert np.array_equal(found.argmax(axis=1), model.predict(x).argmax(axis=1))


def test_a_model_without_a_head_gives_no_probabilities() -> None:
    model = build("vit", num_classes=0)
    with pytest.raises(ValueError, match=r"num_classes=0.*features\(x\)"):
        model.predict_proba(images(model))
