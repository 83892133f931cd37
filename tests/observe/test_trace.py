"""A traced step is the step: same logits, same gradients, same memory; and what it says of each part is what is there.

And the first NaN or infinity is blamed on the part that made it.
"""

from __future__ import annotations

import copy
import gc
import re
import weakref
from functools import partial
from typing import Any

import numpy as np
import pytest

from minivit import Swin, SwinV2, ViT, explain, functional as F, nn, optim
from minivit.draw import trace as trace_pictures
from minivit.nn.kept_memory import Kept
from minivit.observe.formulas import _FORMULAS, formula
from minivit.observe.hooks import watched
from minivit.parallel import DataParallel
from minivit.protocol import once
from minivit.summary import summary

NOISE = {"drop_rate": 0.2, "pos_drop_rate": 0.2, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.3}
VIT = {"img_size": 12, "patch_size": 4, "in_chans": 2, "num_classes": 3, "embed_dim": 8, "depth": 3, "num_heads": 2}
SWIN = {"img_size": 18, "patch_size": 2, "in_chans": 2, "num_classes": 3, "embed_dim": 8, "depths": (2, 2)}
SWIN |= {"num_heads": (2, 4), "window_size": (4, 3)}

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "class token": (ViT, VIT),
    "every token": (ViT, VIT | {"skip_unused_tokens": False}),
    "distilled": (ViT, VIT | {"distilled": True}),
    "mean": (ViT, VIT | {"class_token": False, "global_pool": "avg", "patch_norm": True}),
    "all options": (ViT, VIT | {"pos_embed": "relative", "representation_size": 6}),
    "two sides": (ViT, VIT | {"pos_embed": "learned_2d"}),
    "hybrid": (ViT, VIT | {"resnet_layers": (1, 1), "resnet_width": 4, "resnet_groups": 2, "patch_size": 1}),
    "swin": (Swin, SWIN | {"ape": True}),
    "swin v2": (SwinV2, SWIN | {"cpb_hidden": 5}),
}
everyone = pytest.mark.parametrize("name", MODELS)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def made(name: str, recompute: bool = False, **changes: Any) -> Any:
    """A model whose parameters are far from their start."""
    kind, arguments = MODELS[name]
    model, rng = kind(**arguments | changes), np.random.default_rng(3)
    for param in model.parameters().values():
        param.data = param.data + 0.3 * rng.standard_normal(param.shape)
    if recompute:
        for owner in [model] if isinstance(model, ViT) else model.layers:
            owner.blocks = [nn.Recompute(block) for block in owner.blocks]
    return model


def some_images(model: Any, batch: int = 3) -> Any:
    side = 18 if isinstance(model, Swin) else 12
    return np.random.default_rng(5).standard_normal((batch, 2, side, side)).astype(model.config["dtype"])


LABELS = np.array([2, 0, 1])


def step(model: Any, images: Any, rng: Any) -> tuple[Any, Any, Any]:
    """loss, logits, dx; the gradients are in the model."""
    logits, back = model(images, rng)
    loss, back_loss = F.softmax_cross_entropy(logits, LABELS)
    return loss, logits, back(back_loss())


# --- a traced step is the step ---------------------------------------------------------------------------------------


@everyone
@both_dtypes
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_numbers_are_bit_equal_and_the_model_stays_as_it_was(name, dtype, recompute):
    model = made(name, recompute, dtype=dtype, **NOISE)
    images = some_images(model)
    images.setflags(write=False)
    parts, before = [id(part) for _, part in model.leaves()], model.state_dict()
    loss, logits, dx = step(copy.deepcopy(model), images, np.random.default_rng(7))
    first = next(iter(model.parameters().values()))
    first.grad = mark = np.ones_like(first.data)
    got = explain.trace(model, images, LABELS, np.random.default_rng(7))
    assert got.loss == float(loss) and np.array_equal(got.logits, logits) and np.array_equal(got.dx, dx)
    assert got.logits.dtype == got.dx.dtype == np.dtype(dtype)
    # the model that was traced: its own gradients, parts and numbers
    assert first.grad is mark and (mark == 1).all()
    assert sum(param.grad is not None for param in model.parameters().values()) == 1
    assert [id(part) for _, part in model.leaves()] == parts
    assert all(np.array_equal(before[key], array) for key, array in model.state_dict().items())
    assert type(model) is MODELS[name][0]
    # and the gradients: those of an untraced step
    first.grad = None
    step(model, images, np.random.default_rng(7))
    assert list(got.gradients) == list(model.parameters())
    for key, param in model.parameters().items():
        assert got.gradients[key].dtype == param.grad.dtype and np.array_equal(got.gradients[key], param.grad), key


@everyone
def test_every_row_says_what_its_part_does(name):
    """Each part that ran, run again by hand on what it was given: the same shapes and norms, forward and backward."""
    model = made(name, dtype="float64")
    seen: list[Any] = []

    def look(layer, place, run, x):
        y, back_part = run()
        note = {"name": place.name, "kind": place.kind, "layer": layer, "x": x.copy(), "y": y.copy()}
        seen.append(note)

        @once
        def back(dy):
            note["dy"] = dy.copy()
            dx = back_part(dy)
            note["dx"] = dx.copy()  # whoever gets dx may add to it
            return dx

        return y, back

    loss, _, _ = step(watched(model, look), some_images(model), None)
    got = explain.trace(model, some_images(model), LABELS)
    rows = [row for row in got.rows if row.name != "loss"]
    assert len(rows) == len(seen) and len({(row.name, row.kind) for row in rows}) == len(rows)
    by_name = {(note["name"], note["kind"]): note for note in seen}
    for row in rows:
        note = by_name[row.name, row.kind]
        assert (row.shape_in, row.shape_out) == (note["x"].shape, note["y"].shape)
        for norm, key in ((row.norm_x, "x"), (row.norm_y, "y"), (row.norm_dy, "dy"), (row.norm_dx, "dx")):
            assert norm == pytest.approx(np.linalg.norm(note[key].ravel()), rel=1e-12, abs=1e-300), (row.name, key)
        grads = [param.grad for param in note["layer"].parameters().values()]
        assert row.parameters == sum(grad.size for grad in grads)
        if grads:
            assert row.norm_dparameters == pytest.approx(sum((g**2).sum() for g in grads) ** 0.5, rel=1e-12)
        else:
            assert row.norm_dparameters is None
        assert row.formula
    assert got["loss"].norm_y == pytest.approx(float(loss)) and got["loss"].norm_dy == 1
    assert got["loss"].norm_dx == got[""].norm_dy


@everyone
def test_names_are_those_of_the_parameters(name):
    model = made(name)
    names = set(model.parameters())
    got = explain.trace(model, some_images(model), LABELS)
    for row in got.rows:
        if row.kind in ("Linear", "LayerNorm", "PatchProjection"):
            assert f"{row.name}.weight" in names and got.gradients[f"{row.name}.weight"].ndim in (1, 2, 4)
    mlps = {row.name for row in got.rows if row.kind == "Mlp"}
    assert mlps == {key.removesuffix(".fc1.weight") for key in names if key.endswith(".mlp.fc1.weight")}


def test_parts_within_parts_are_shown_in_the_order_in_which_they_run():
    got = explain.trace(made("every token", depth=1), some_images(made("every token")), LABELS)
    names = [row.name for row in got.rows]
    block = ["norm1", "attn", "attn.qkv", "attn.proj", "norm2", "mlp", "mlp.fc1", "mlp.fc2"]
    expected = ["", "embed", "patch_embed", "patch_embed.proj", "blocks.0", *(f"blocks.0.{part}" for part in block)]
    assert names == [*expected, "norm", "pool", "head_drop", "head", "loss"]
    back = ["mlp", "mlp.fc2", "mlp.fc1", "norm2", "attn", "attn.proj", "attn.qkv", "norm1"]
    expected = ["loss", "", "head", "head_drop", "pool", "norm", "blocks.0", *(f"blocks.0.{part}" for part in back)]
    assert [row.name for row in got.backward] == [*expected, "embed", "patch_embed", "patch_embed.proj"]
    assert [row.depth for row in got.rows][:7] == [0, 1, 2, 3, 1, 2, 2]
    assert [row.label for row in got.rows][:7] == ["ViT", "embed", "patch_embed", "proj", "blocks.0", "norm1", "attn"]


def test_names_of_layers_that_lend_theirs():
    got = explain.trace(made("swin", recompute=True), some_images(made("swin")), LABELS)
    kinds = {(row.name, row.kind) for row in got.rows}
    for each in (
        ("layers.1.blocks.0", "Recompute"),
        ("layers.1.blocks.0.layer", "Block"),
        ("layers.1.blocks.0.attn", "ShiftedWindows"),
        ("layers.1.blocks.0.attn.attention", "WindowAttention"),
        ("layers.1.blocks.0.attn.qkv", "Linear"),
        ("layers.1.downsample.reduction", "Linear"),
        ("patch_embed.norm", "LayerNorm"),
    ):
        assert each in kinds
    got = explain.trace(made("distilled"), some_images(made("distilled")), LABELS)
    assert [(row.name, row.kind) for row in got.rows if row.name.startswith("head") and row.parameters] == [
        ("head", "DistilledHead"),
        ("head", "Linear"),
        ("head_dist", "Linear"),
    ]


@everyone
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_kept_bytes_are_those_that_the_backs_hold_each_block_once(name, recompute):
    model = made(name, recompute)
    images = some_images(model)
    got = explain.trace(model, images, LABELS)
    logits, back = model(images)
    ignored = [*(param.data for param in model.parameters().values()), *model.constants()]
    assert got[""].kept == Kept(ignored).add(back) > 0
    _, back_loss = F.softmax_cross_entropy(logits, LABELS)
    assert got.kept == Kept(ignored).add([back, back_loss])
    for row in got.rows:
        assert row.kept >= sum(part.kept for part in row.parts)
    assert sum(part.kept for part in got[""].parts) == got[""].kept  # a chain holds nothing itself
    one = explain.trace(model, images[:1].copy(), LABELS[:1])  # a view would hold all images
    for each in summary(model, quiet=True).rows:  # which runs one image
        assert one[each.name].kept == each.kept_bytes, each.name


def test_what_recomputes_keeps_its_input_and_still_shows_its_parts_gradients():
    plain, wrapped = made("class token"), made("class token", recompute=True)
    images = some_images(plain)
    one, other = (explain.trace(model, images, LABELS, np.random.default_rng(1)) for model in (plain, wrapped))
    block = other["blocks.0"]
    assert block.kind == "Recompute" and block.kept == images.itemsize * 3 * 10 * 8 and other.kept < one.kept / 2
    assert {row.kept for row in other.rows if row.name.startswith("blocks.0.")} == {0}
    for row in one.rows:
        same = other[row.name]
        if row.kind not in ("Block", "ViT"):
            assert (same.kind, same.formula) == (row.kind, row.formula)
        numbers = [
            (each.norm_x, each.norm_y, each.norm_dy, each.norm_dx, each.norm_dparameters) for each in (row, same)
        ]
        assert numbers[0] == numbers[1], row.name
    assert [row.name for row in one.backward] == [row.name for row in other.backward if row.label != "layer"]


class Twice(nn.Layer):
    """The same layer used twice, once of them recomputed within another recomputation."""

    def __init__(self, dim):
        self.first = nn.Linear(dim, dim, dtype="float64", seed=0)
        self.outer = nn.Recompute(nn.Sequential(self.first, nn.Recompute(nn.Sequential(self.first, nn.Tanh()))))

    def forward(self, x, rng=None):
        y, back_first = self.first(x)
        z, back_outer = self.outer(y)

        @once
        def back(dy):
            return back_first(back_outer(dy))

        return z, back


def test_a_layer_that_is_used_again_has_a_row_for_each_use():
    layer, x = Twice(3), np.random.default_rng(0).standard_normal((4, 3))
    got = explain.trace(layer, x, np.zeros((4, 3)), loss=F.mean_squared_error)
    uses = [row for row in got.rows if row.kind == "Linear"]
    assert [row.name for row in uses] == ["first"] * 3 and got.loss == pytest.approx((layer(x)[0] ** 2).mean())
    y, back = layer(x)
    back(F.mean_squared_error(y, np.zeros((4, 3)))[1]())
    assert [row.norm_dparameters for row in uses] == [
        pytest.approx(np.sqrt(sum((p.grad**2).sum() for p in layer.parameters().values())))
    ] * 3  # all uses together
    # by hand, use by use
    w, b = layer.first.weight.data, layer.first.bias.data
    inputs = [x, x @ w.T + b, (x @ w.T + b) @ w.T + b]
    assert [row.norm_x for row in uses] == pytest.approx([np.linalg.norm(each) for each in inputs])
    dy = 2 * y / y.size * (1 - y**2)
    norms = []
    for _ in range(3):
        norms.append(np.linalg.norm(dy))
        dy = dy @ w
    assert [row.norm_dy for row in uses] == pytest.approx(norms[::-1])
    assert np.allclose(got.dx, dy)


class Reversible(nn.Layer):
    """y = x + f(g(x)) whose back runs g and f again, in another order than the forward pass, and one more time."""

    def __init__(self):
        self.f, self.g = nn.Linear(2, 2, dtype="float64", seed=1), nn.Linear(2, 2, dtype="float64", seed=2)

    def forward(self, x, rng=None):
        y = x + self.f(self.g(x)[0])[0]

        def back(dy):
            middle, back_g = self.g(x)
            self.g(x)
            _, back_f = self.f(middle)
            return dy + back_g(back_f(dy))

        return y, back


def test_a_back_may_run_parts_again_as_it_likes():
    layer, x = Reversible(), np.random.default_rng(0).standard_normal((4, 2))
    got = explain.trace(layer, x, np.zeros((4, 2)), loss=F.mean_squared_error)
    assert got["g"].norm_dx is not None and got["f"].norm_dx == got["g"].norm_dy
    assert [row.name for row in got.backward] == ["loss", "", "f", "g"]
    assert [row.name for row in got.rows].count("g") == 2  # the one more time was a call that the forward pass had not


def test_any_layer_and_any_loss():
    layer = nn.Embedding(5, 3, dtype="float64", seed=0)
    numbers = np.array([[1, 4], [1, 0]])
    target = np.ones((2, 2, 3))
    got = explain.trace(layer, numbers, target, loss=F.mean_squared_error)
    row = got[""]
    assert (row.kind, row.formula, row.shape_in, row.shape_out) == ("Embedding", "W[x]", (2, 2), (2, 2, 3))
    assert got.dx is None and row.norm_dx is None and got.gradients["weight"].shape == (5, 3)
    assert got["loss"].kind == "mean_squared_error" and got["loss"].formula == "mean (x - target)^2"
    model = made("class token")
    images = some_images(model)
    soft = explain.trace(model, images, LABELS, loss=partial(F.softmax_cross_entropy, label_smoothing=0.3))
    assert soft["loss"].kind == "softmax_cross_entropy" and soft["loss"].formula == "-mean log softmax(x)[label]"
    assert soft.loss == float(F.softmax_cross_entropy(model(images)[0], LABELS, label_smoothing=0.3)[0])
    with pytest.raises(KeyError, match="no part 'blocks.9' ran"):
        soft["blocks.9"]


def test_nothing_is_held_after_a_traced_step():
    held: list[Any] = []

    class Spy(nn.Layer):
        def forward(self, x, rng=None):
            y = x * 2
            held.append(weakref.ref(y))
            return y, once(lambda dy: dy * 2)

    gc.disable()
    try:
        layer = nn.Sequential(Spy(), nn.Linear(3, 3, dtype="float64", seed=0))
        got = explain.trace(layer, np.ones((2, 3)), np.zeros((2, 3)), loss=F.mean_squared_error)
        assert held[0]() is None and got.rows[1].kind == "Spy"
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["distilled", "swin v2"])
def test_on_every_device(name, device):
    model = made(name, dtype="float32", **NOISE)
    images = some_images(model)
    expected = explain.trace(model, images, LABELS)
    model.move_to(device.put)
    got = explain.trace(model, device.put(images), device.put(LABELS))
    assert len(got.rows) == len(expected.rows) and type(got.dx) is type(device.put(images))
    for one, other in zip(expected.rows, got.rows, strict=True):
        assert (one.name, one.kind, one.shape_in, one.shape_out) == (
            other.name,
            other.kind,
            other.shape_in,
            other.shape_out,
        )
        assert other.norm_dy == pytest.approx(one.norm_dy, rel=1e-4, abs=1e-8)
        if one.norm_dparameters is None:
            assert other.norm_dparameters is None
        else:
            assert other.norm_dparameters == pytest.approx(one.norm_dparameters, rel=1e-4, abs=1e-7)


# --- as text and as a chart ------------------------------------------------------------------------------------------


@everyone
def test_the_table_is_narrow_and_names_every_part(name):
    got = explain.trace(made(name, recompute=True), some_images(made(name)), LABELS)
    text = str(got)
    assert text == got.table() and max(map(len, text.splitlines())) <= 120
    for row in got.rows:
        assert len(re.findall(rf"^ *{re.escape(row.label)} +{re.escape(row.kind)} ", text, flags=re.MULTILINE)) >= 2
    assert "x W^T + b" in text and f"loss {got.loss:.6g}" in text and f"{got.kept / 1024:,.1f} KiB" in text
    short = got.table(depth=1)
    assert "mlp" not in short.replace("+ mlp", "") and "embed" in short and len(short) < len(text) / 2


def test_a_line_of_the_table():
    got = explain.trace(made("every token"), some_images(made("every token")), LABELS)
    row = got["blocks.1.attn.qkv"]
    line = next(line for line in str(got).splitlines()[12:] if line.startswith("      qkv")).split()
    assert line[:4] == ["qkv", "Linear", "3x10x8", "3x10x24"] and " ".join(line[6:]) == "x W^T + b"
    last = [line for line in str(got).splitlines() if line.startswith("      qkv")][-2].split()
    assert last == ["qkv", "Linear", f"{row.norm_dy:.3g}", f"{row.norm_dx:.3g}", "216", f"{row.norm_dparameters:.3g}"]


class Swish(nn.Layer):
    """y = x * sigmoid(x)

    More words.
    """

    def forward(self, x, rng=None):
        return x, once(lambda dy: dy)


class Silent(nn.Layer):
    def forward(self, x, rng=None):
        return x, once(lambda dy: dy)


def test_formulas():
    assert formula(Swish()) == "y = x * sigmoid(x)" and formula(Silent()) == ""
    assert formula(nn.Linear(2, 3)) == "x W^T + b" and formula(nn.Linear(2, 3, bias=False)) == "x W^T"
    assert formula(nn.GELU()) != formula(nn.GELU("tanh")) and "0.25" in formula(nn.DropPath(0.25))
    assert formula(F.softmax_cross_entropy) == formula(partial(F.softmax_cross_entropy, label_smoothing=0.1))
    assert formula(lambda y, labels: None) == ""

    class Mine(nn.Linear):
        pass

    assert formula(Mine(2, 3)) == "x W^T + b"  # its base's, for it has no words of its own
    layers = [kind for kind in map(vars(nn).get, nn.__all__) if isinstance(kind, type) and issubclass(kind, nn.Layer)]
    assert [kind for kind in layers if not set(kind.__mro__) & set(_FORMULAS)] == [nn.Layer]
    for name in MODELS:
        for row in explain.trace(made(name), some_images(made(name)), LABELS).rows:
            assert row.formula and "\n" not in row.formula


@pytest.mark.parametrize("name", ["class token", "swin v2"])
def test_the_chart_shows_each_stage_and_each_parameter(name):
    pytest.importorskip("matplotlib")
    model = made(name)
    got = explain.trace(model, some_images(model), LABELS)
    figure, (stages, parameters) = trace_pictures.draw_gradient_flow(got)
    forward, backward = stages.get_lines()
    leaves = [got[each] for each, _ in model.leaves()]
    assert np.allclose(forward.get_ydata(), [row.norm_y for row in leaves])
    assert np.allclose(backward.get_ydata(), [row.norm_dy for row in leaves])
    assert [text.get_text() for text in stages.get_xticklabels()] == [row.name for row in leaves]
    points = [(x, y) for line in parameters.get_lines() if line.get_linestyle() == "None" for x, y in line.get_xydata()]
    norms = [np.linalg.norm(grad.ravel()) for grad in got.gradients.values()]
    assert [round(x) for x, _ in sorted(points)] == list(range(len(norms)))
    assert np.allclose([y for _, y in sorted(points)], norms)
    assert stages.get_yscale() == parameters.get_yscale() == "log"


def test_the_chart_of_a_layer_and_of_gradients_that_are_0():
    pytest.importorskip("matplotlib")
    block = made("every token").blocks[0]
    for name, param in block.parameters().items():
        if name.startswith("norm2"):
            param.data = np.zeros(param.shape)  # so that nothing comes back from the MLP
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype("float32")
    got = explain.trace(block, x, np.zeros_like(x), loss=F.mean_squared_error)
    _, (stages, parameters) = trace_pictures.draw_gradient_flow(got)
    names = [text.get_text() for text in stages.get_xticklabels()]
    assert names == ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    labels = [text.get_text() for text in parameters.get_legend().get_texts()]
    assert labels == ["of a weight", "of a bias, token or table", "exactly 0"]
    crosses = next(line for line in parameters.get_lines() if line.get_label() == "exactly 0")
    assert len(crosses.get_xdata()) == sum(not grad.any() for grad in got.gradients.values()) > 0


# --- the first NaN ---------------------------------------------------------------------------------------------------


def blamed(run: Any) -> Any:
    with pytest.raises(explain.NotFiniteError) as caught:
        run()
    return caught.value


@everyone
@both_dtypes
def test_a_guarded_model_gives_the_same_and_fills_the_same_gradients(name, dtype):
    model = made(name, dtype=dtype, **NOISE)
    twin, images = copy.deepcopy(model), some_images(model)
    guarded = explain.debug_nans(model)
    assert list(guarded.parameters()) == list(model.parameters())
    assert all(a is b for a, b in zip(guarded.parameters().values(), model.parameters().values(), strict=True))
    for one, other in zip(
        step(guarded, images, np.random.default_rng(7)), step(twin, images, np.random.default_rng(7)), strict=True
    ):
        assert np.array_equal(one, other)
    for key, param in twin.parameters().items():
        assert np.array_equal(model.parameters()[key].grad, param.grad), key
    assert np.array_equal(guarded.predict(images), model.predict(images))
    assert isinstance(guarded, type(model)) and type(model) is MODELS[name][0]


def test_a_guarded_model_trains_in_threads_and_with_an_optimizer_of_the_model():
    model, twin = made("class token"), made("class token")
    losses = []
    for each, run in ((model, explain.debug_nans(model)), (twin, twin)):
        opt, sharded = optim.SGD(each.parameters(), lr=0.1), DataParallel(run, threads=2)
        for _ in range(3):
            opt.zero_grad()
            losses.append(sharded.loss_and_grad(some_images(each), LABELS))
            opt.step()
    assert losses[:3] == losses[3:] and len(set(losses)) == 3
    assert explain.debug_nans(made("distilled")).heads(some_images(made("distilled")))[0].shape == (3, 3)


@pytest.mark.parametrize(
    "name, param, maker, kind",
    [
        ("class token", "blocks.1.mlp.fc2.weight", "blocks.1.mlp.fc2", "Linear"),
        ("class token", "blocks.1.norm1.bias", "blocks.1.norm1", "LayerNorm"),
        ("class token", "pos_embed", "embed", "Tokens"),
        ("class token", "patch_embed.proj.weight", "patch_embed.proj", "PatchProjection"),
        ("class token", "blocks.2.attn.qkv.weight", "blocks.2.attn", "Attention"),  # which takes it apart by itself
        ("class token", "head.bias", "head", "Linear"),
        ("distilled", "head_dist.weight", "head_dist", "Linear"),
        ("swin", "layers.1.downsample.norm.weight", "layers.1.downsample.norm", "LayerNorm"),
        ("swin", "layers.0.blocks.1.attn.relative_position_bias_table", "layers.0.blocks.1.attn.attention", ""),
        ("swin v2", "layers.0.blocks.0.attn.q_bias", "layers.0.blocks.0.attn.attention", "CosineWindowAttention"),
    ],
)
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_a_planted_nan_in_a_parameter_is_found_where_it_is(name, param, maker, kind, recompute):
    model = made(name, recompute)
    data = model.parameters()[param].data
    data.flat[-1] = np.nan
    error = blamed(lambda: explain.debug_nans(model)(some_images(model)))
    assert (error.name, error.phase) == (maker, "forward") and error.kind.startswith(kind)
    assert error.where == ("between parts" if "attention" in error.kind.lower() else "output")  # its proj comes next
    text = " ".join(str(error).split())
    place = tuple(int(at) for at in np.unravel_index(data.size - 1, data.shape))
    assert f"{maker} ({error.kind}) produced it in its forward pass" in text
    assert f"{param.rpartition('.')[2]} {data.shape} has 1 NaN of {data.size} numbers, the first at {place}" in text
    assert re.search(r"Forward, x: \([\d, ]+\) is finite|Its own input and its parts' outputs are finite", text)
    assert "The parameters were damaged before this call" in text


def test_a_damaged_parameter_is_found_even_where_it_does_no_harm_yet():
    table = nn.Embedding(4, 2, dtype="float64", seed=0)
    table.weight.data[3] = np.nan  # a row that is not looked up
    error = blamed(lambda: explain.debug_nans(table)(np.array([0, 1])))
    assert (error.name, error.phase, error.where) == ("", "forward", "weight")
    text = " ".join(str(error).split())
    assert "the parameter weight: (4, 2) has 2 NaN of 8 numbers, the first at (3, 0)" in text
    assert "the parameter was not read, or a comparison" in text and "The parameters were damaged" in text


@everyone
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_no_layers_fault(name, bad):
    model = made(name)
    images = some_images(model)
    images[1, 0, 2, 3] = bad
    for run in (explain.debug_nans(model), explain.debug_nans(model).predict):
        error = blamed(partial(run, images))
        assert (error.name, error.phase, error.where) == ("", "forward", "input")
        text = " ".join(str(error).split())
        assert "has 1 NaN" in text if np.isnan(bad) else "has 1 infinite" in text
        assert "first at (1, 0, 2, 3)" in text and "No layer produced it: it is in the input" in text


@everyone
def test_a_gradient_that_is_not_finite_when_it_comes_is_no_layers_fault(name):
    model = made(name)
    logits, back = explain.debug_nans(model)(some_images(model))
    dy = np.ones_like(logits)
    dy[2, 1] = np.nan
    error = blamed(lambda: back(dy))
    assert (error.name, error.phase, error.where) == ("", "backward", "dy")
    assert "No layer produced it" in str(error) and "the first at (2, 1)" in " ".join(str(error).split())
    assert all(param.grad is None for param in model.parameters().values())


def test_an_overflow_is_distinguished_from_a_nan():
    model = made("class token")
    for name in ("fc1", "fc2"):
        param = model.parameters()[f"blocks.1.mlp.{name}.weight"]
        param.data = np.abs(param.data) * 1e25  # one sign: infinity - infinity, a NaN, depends on the order of a sum
    error = blamed(lambda: explain.debug_nans(model)(some_images(model)))
    text = " ".join(str(error).split())
    assert error.name == "blocks.1.mlp.fc2" and "infinite of" in text and "is an overflow, or a division by 0" in text
    assert "Parameters: all finite, the largest number is" in text and "damaged" not in text


class Root(nn.Layer):
    """sqrt(x), whose slope at 0 is infinite"""

    def forward(self, x, rng=None):
        y = np.sqrt(x)
        return y, once(lambda dy: dy / (2 * y))


def test_a_back_that_makes_it():
    model = nn.Sequential(nn.Linear(3, 4, dtype="float64", seed=0), nn.ReLU(), Root(), nn.Linear(4, 2, dtype="float64"))
    y, back = explain.debug_nans(model)(np.random.default_rng(0).standard_normal((5, 3)))
    error = blamed(lambda: back(np.ones_like(y)))
    assert (error.name, error.kind, error.phase, error.where) == ("2", "Root", "backward", "dx")
    text = " ".join(str(error).split())
    assert "sqrt(x), whose slope at 0 is infinite" in text and "dy: (5, 4) is finite" in text
    assert "Forward, x: (5, 4) is finite" in text and "minivit.check_vjp" in text
    assert model.parameters()["3.weight"].grad is not None  # the last layer's back had run, the first one's had not
    assert model.parameters()["0.weight"].grad is None


def test_a_nan_from_finite_numbers_in_a_forward_pass():
    error = blamed(lambda: explain.debug_nans(Root())(np.array([[-1.0, 4.0]])))
    text = " ".join(str(error).split())
    assert (error.name, error.kind, error.where) == ("", "Root", "output") and "the model (Root) produced it" in text
    assert "has 1 NaN of 2 numbers, the first at (0, 0)" in text and "Parameters: none" in text
    assert "A NaN from finite numbers is" in text


class Residual(nn.Layer):
    """inner(scale x) + x, where scale x overflows"""

    def __init__(self, scale, back_scale):
        self.inner = nn.Tanh()
        self.scale, self.back_scale = scale, back_scale

    def forward(self, x, rng=None):
        y, back_inner = self.inner(x * self.scale)

        @once
        def back(dy):
            return dy + back_inner(dy * self.back_scale)

        return y + x, back


def test_arithmetic_between_parts_is_blamed_on_the_whole():
    x = np.full((2, 3), 1e10)
    error = blamed(lambda: explain.debug_nans(nn.Sequential(nn.Tanh(), Residual(np.inf, 1.0)))(x))
    assert (error.name, error.kind, error.phase, error.where) == ("1", "Residual", "forward", "between parts")
    text = " ".join(str(error).split())
    assert "Its input to 1.inner (Tanh): (2, 3) has 6 infinite" in text
    y, back = explain.debug_nans(nn.Sequential(nn.Tanh(), Residual(1.0, np.inf)))(x)
    error = blamed(lambda: back(np.ones_like(y)))
    assert (error.name, error.kind, error.phase, error.where) == ("1", "Residual", "backward", "between parts")
    assert "Its gradient to 1.inner (Tanh)" in " ".join(str(error).split())


class Overgrown(nn.Layer):
    """A layer whose parameter's gradient alone is not finite."""

    def __init__(self):
        self.gain = nn.Parameter(np.ones(3))

    def forward(self, x, rng=None):
        @once
        def back(dy):
            self.gain.accumulate(np.array([1.0, np.inf, 1.0]))
            return dy * self.gain.data

        return x * self.gain.data, back


def test_the_gradient_of_a_parameter_that_is_not_finite():
    model = nn.Sequential(Overgrown(), nn.Tanh())
    y, back = explain.debug_nans(model)(np.ones((2, 3)))
    error = blamed(lambda: back(y))
    assert (error.name, error.phase, error.where) == ("0", "backward", "gradient of gain")
    assert "dgain: (3,) has 1 infinite of 3 numbers, the first at (1,)" in " ".join(str(error).split())


def test_a_gradient_from_an_earlier_backward_pass_is_not_blamed_on_this_one():
    model = nn.Sequential(nn.Linear(3, 3, dtype="float64", seed=0), nn.Tanh())
    model.parameters()["0.bias"].grad = np.full(3, np.nan)
    y, back = explain.debug_nans(model)(np.ones((2, 3)))
    assert np.isfinite(back(y)).all()


def test_numpy_is_silent_where_the_error_speaks():
    """Warnings are errors in these tests, so this fails as a RuntimeWarning unless the guard silences NumPy."""
    model = nn.Sequential(nn.Linear(2, 2, seed=0), nn.Linear(2, 2, seed=1))
    model.parameters()["0.weight"].data = np.full((2, 2), 3e38)
    error = blamed(lambda: explain.debug_nans(model)(np.full((1, 2), 10, np.float32)))
    assert error.name == "0" and isinstance(error, FloatingPointError)


def test_the_guard_on_every_device(device):
    model = made("class token")
    images = some_images(model)
    model.move_to(device.put)
    guarded = explain.debug_nans(model)
    y, back = guarded(device.put(images))
    assert np.isfinite(device.get(back(y))).all()
    bad = np.array(device.get(model.blocks[1].mlp.fc1.weight.data))
    bad[3, 4] = np.inf
    model.blocks[1].mlp.fc1.weight.data = device.put(bad)
    error = blamed(lambda: guarded(device.put(images)))
    assert error.name == "blocks.1.mlp.fc1" and "weight (32, 8) has 1 infinite of 256 numbers" in " ".join(
        str(error).split()
    )
