"""`minivit.prepare`: the logits of the plain model for every family and option, its memory, and its refusals."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import functional as F, nn
from minivit.fast import threads
from minivit.inference import block, encoder, maps, runner
from minivit.protocol import in_inference

VIT = {"img_size": 32, "patch_size": 8, "num_classes": 7, "embed_dim": 48, "depth": 3, "num_heads": 3}
SWIN = {
    "img_size": 32, "patch_size": 2, "num_classes": 7, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4),
    "window_size": 4,
}  # fmt: skip
STEM = {"resnet_width": 16, "resnet_groups": 4, "patch_size": 1}
VITS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean of the patches": {"global_pool": "avg"},
    "no class token": {"global_pool": "avg", "class_token": False, "fc_norm": False},
    "every token": {"skip_unused_tokens": False},
    "distilled": {"distilled": True},
    "norms behind": {"post_norm": True},
    "relative positions": {"pos_embed": "relative"},
    "sines": {"pos_embed": "sincos_2d"},
    "pretraining head": {"representation_size": 20},
    "no bias": {"qkv_bias": False},
    "tanh": {"gelu": "tanh"},
    "norm of the patches": {"patch_norm": True},
    "four heads": {"num_heads": 4},
    "no head": {"num_classes": 0},
    "any size": {"dynamic_img_size": True},
    "partial patches": {"img_size": 30, "partial_patches": "pad"},
    "hybrid": {"resnet_layers": (1, 1), **STEM},
    "hybrid of Google": {"resnet_layers": (1,), "resnet_eps": "google", **STEM},
    "no blocks": {"depth": 0},
}
SWINS: dict[str, dict[str, Any]] = {
    "plain": {},
    "positions": {"ape": True},
    "padded windows": {"window_size": 7},
    "masked padding": {"window_size": 7, "mask_padding": True},
    "excluded": {"mask_value": -np.inf},
    "stay": {"covered": "stay", "window_size": 7},
    "shrink both": {"covered": "shrink_both", "window_size": (8, 7)},
    "shift": {"covered": "shift", "window_size": 20},
    "pad after": {"pad_first": False, "window_size": 7},
    "odd maps": {"img_size": 36},
    "no bias": {"qkv_bias": False},
    "tanh": {"gelu": "tanh"},
}
CASES = [
    *(("ViT", name, {**VIT, **more}) for name, more in VITS.items()),
    *((kind, name, {**SWIN, **more}) for kind in ("Swin", "SwinV2") for name, more in SWINS.items()),
]
# of the largest logit: float32 sums in another order differ by a few of its last digits
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


def random_model(kind: str, dtype: str = "float64", **options: Any) -> Any:
    """A model with no part near its initialization."""
    model = getattr(minivit, kind)(**options, dtype=dtype, seed=0)
    rng = np.random.default_rng(1)
    for param in model.parameters().values():
        param.data += 0.1 * rng.standard_normal(param.shape)
    return model


def images(model: Any, count: int = 5, side: int | None = None) -> Any:
    side = side or model.config["img_size"]
    return np.random.default_rng(2).standard_normal((count, 3, side, side)).astype(model.dtype)


def difference(prepared: Any, model: Any, x: Any) -> float:
    expected = model.predict(x)
    return float(np.abs(prepared.predict(x) - expected).max() / np.abs(expected).max())


def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all cores work even on the smallest images."""
    monkeypatch.setattr(runner, "WORTH_THREADS", 0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("kind", "name", "options"), CASES, ids=[f"{kind}, {name}" for kind, name, _ in CASES])
def test_logits_are_the_models(kind: str, name: str, options: dict[str, Any], dtype: str) -> None:
    model = random_model(kind, dtype, **options)
    prepared = minivit.prepare(model)
    assert difference(prepared, model, images(model)) <= TOLERANCE[dtype]
    if kind != "ViT" or name == "any size":
        assert difference(prepared, model, images(model, 2, 40)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("kind", "name", "options"), CASES, ids=[f"{kind}, {name}" for kind, name, _ in CASES])
def test_cores_share_the_images(
    kind: str, name: str, options: dict[str, Any], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared(monkeypatch)
    model = random_model(kind, **options)
    prepared = minivit.prepare(model)
    with threads.at_most(count):
        for number in (1, count - 1, count + 1):
            assert difference(prepared, model, images(model, number)) <= TOLERANCE["float64"]


def test_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_ROWS", 20)
    monkeypatch.setattr(maps, "_ROWS", 40)
    monkeypatch.setattr(runner, "_IMAGES", 2)
    for kind, options in (("ViT", VIT), ("Swin", SWIN)):
        model = random_model(kind, **options)
        assert difference(minivit.prepare(model), model, images(model)) <= TOLERANCE["float64"]


@pytest.mark.parametrize("kind", ["ViT", "Swin", "SwinV2"])
def test_extreme_scores(kind: str) -> None:
    """Scores beyond the range of exponentials without a shift."""
    model = random_model(kind, **(VIT if kind == "ViT" else SWIN))
    for name, param in model.parameters().items():
        if name.endswith("qkv.weight"):
            param.data *= 30
        if name.endswith("logit_scale"):
            param.data += 9
    assert difference(minivit.prepare(model), model, images(model)) <= 1e-10


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30, 1e38])
@pytest.mark.parametrize(("kind", "options"), [("ViT", {"pos_embed": "relative"}), ("ViT", {}), ("Swin", {})])
def test_a_bad_image_changes_no_bit_of_the_others(kind: str, options: dict[str, Any], bad: float) -> None:
    model = random_model(kind, **(VIT if kind == "ViT" else SWIN), **options, dtype="float32")
    prepared, x = minivit.prepare(model), images(model, 5)
    damaged = x.copy()
    damaged[1, 0, 5, 5] = bad
    with np.errstate(all="ignore"):
        whole, with_bad = prepared.predict(x), prepared.predict(damaged)
    rest = [0, 2, 3, 4]
    assert np.isfinite(whole).all() and not np.array_equal(whole[1], with_bad[1])
    np.testing.assert_array_equal(with_bad[rest], whole[rest])


def test_batches_of_a_call() -> None:
    model = random_model("ViT", **VIT)
    prepared, x = minivit.prepare(model), images(model)
    np.testing.assert_allclose(prepared.predict(x, batch_size=2), model.predict(x), rtol=1e-11)
    np.testing.assert_allclose(prepared.predict_proba(x), model.predict_proba(x), rtol=1e-11)
    assert prepared.predict(x[:0]).shape == (0, 7)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        prepared.predict(x, batch_size=0)


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window16_256", "test_vit"]
)
def test_memory_is_the_models(name: str) -> None:
    model = minivit.create_model(name, num_classes=10)
    size = sum(each.data.nbytes for each in model.state().values())
    assert 0.9 * size <= minivit.prepare(model).nbytes <= 1.1 * size


def test_tables_beyond_the_budget_are_made_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_TABLES", 0)
    model = random_model("Swin", **SWIN)
    prepared = minivit.prepare(model)
    stages = next(part for part in prepared._parts if isinstance(part, maps.Stages))
    assert all(block.kept is None for blocks in stages.blocks for block in blocks)
    assert difference(prepared, model, images(model)) <= TOLERANCE["float64"]


def test_the_runner_holds_copies() -> None:
    model = random_model("ViT", **VIT)
    prepared, x = minivit.prepare(model), images(model)
    before = prepared.predict(x)
    for param in model.parameters().values():
        param.data += 1
    np.testing.assert_array_equal(prepared.predict(x), before)


def test_every_standard_block_is_prepared() -> None:
    vit, swin = minivit.prepare(random_model("ViT", **VIT)), minivit.prepare(random_model("Swin", **SWIN))
    assert [type(part).__name__ for part in vit._parts] == ["list", "Encoder", "list"]
    assert [type(part).__name__ for part in swin._parts] == ["list", "Stages", "list"]


class _Doubled(nn.Block):
    def forward(self, x: Any, rng: Any = None) -> Any:
        y, back = super().forward(x, rng)
        return 2 * y, lambda dy: back(2 * dy)


def test_a_block_with_more_runs_as_it_is() -> None:
    model = random_model("ViT", **VIT)
    model.blocks[1].__class__ = _Doubled
    model.blocks[2].extra = 3
    model.blocks[0] = nn.Recompute(model.blocks[0])
    prepared = minivit.prepare(model)
    assert [type(part).__name__ for part in prepared._parts] == ["list", "Encoder", "list"]
    assert difference(prepared, model, images(model)) <= TOLERANCE["float64"]


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(minivit.ViT):
        def forward(self, x: Any, rng: Any = None) -> Any:
            return super().forward(x, rng)

    with pytest.raises(ValueError, match="takes a model, not a Linear"):
        minivit.prepare(nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="computes its logits in a way of its own"):
        minivit.prepare(Own(**VIT))
    model = random_model("ViT", **VIT)
    prepared = minivit.prepare(model)
    with pytest.raises(ValueError, match="input is float32, but the parameters are float64"):
        prepared.predict(images(model).astype("float32"))
    with pytest.raises(ValueError, match="ViT"):
        prepared.predict(images(model)[:, :2])
    with pytest.raises(TypeError, match="no backward pass"):
        prepared(images(model))
    with pytest.raises(AttributeError, match="holds copies of the weights"):
        prepared.parameters()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        prepared.nothing  # noqa: B018
    with pytest.raises(ValueError, match="num_classes=0"):
        minivit.prepare(random_model("ViT", **{**VIT, "num_classes": 0})).predict_proba(images(model))
    monkeypatch.setattr(runner, "array_module", lambda x: None)
    with pytest.raises(ValueError, match="is on a GPU"):
        minivit.prepare(model)
    assert repr(prepared).startswith("Runner(ViT, 7 classes")


@pytest.mark.parametrize("dtype", ["float16", "complex64"])
def test_another_dtype_than_the_models_is_refused(dtype: str) -> None:
    model = random_model("ViT", "float32", **VIT)
    with pytest.raises(ValueError, match=rf"computes in float32, got {dtype}: x.astype\('float32'\)"):
        minivit.prepare(model).predict(images(model).astype(dtype))


def test_blocks_prepare_nothing_for_a_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = random_model("ViT", **VIT), []

    def noted(*arguments: Any) -> Any:
        seen.append(in_inference())
        return F.gelu(*arguments)

    monkeypatch.setattr(block, "F", type("functions", (), {"gelu": staticmethod(noted)}))
    minivit.prepare(model).predict(images(model))
    assert seen and all(seen) and not in_inference()


def test_threads_take_turns() -> None:
    model = random_model("Swin", **SWIN)
    prepared, x = minivit.prepare(model), images(model)
    expected, found = model.predict(x), []
    calls = [threading.Thread(target=lambda: found.append(prepared.predict(x))) for _ in range(4)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    for each in found:
        np.testing.assert_allclose(each, expected, rtol=1e-10)
