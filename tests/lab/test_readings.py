"""The lab's numbers are those of the library: predict, explain, back and AdamW."""

from __future__ import annotations

import ast
import textwrap

import numpy as np
import pytest
from lab_tools import KINDS, build, image

from minivit import check_vjp, explain, functional as F, nn, optim
from minivit.lab.readings import accuracy, attention_from, training_step, windows_of
from minivit.lab.recorded import Reader, read, with_every_token
from minivit.lab.source_lines import formula_of, lines_of
from minivit.lab.switches import SWITCHES, Shuffle, available, switched

kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
def test_a_reading_is_the_models_own(kind):
    model, x = with_every_token(build(kind)), image()
    found = read(model, x, target=3)
    np.testing.assert_allclose(found.logits, model.predict(x)[0], atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(found.probabilities, model.predict_proba(x)[0], atol=1e-6)
    for mine, theirs in zip(found.maps, explain.head_maps(model, x)):
        np.testing.assert_allclose(mine, theirs[0], atol=1e-6)
    for mine, theirs in zip(found.attention, explain.attention_weights(model, x)):
        np.testing.assert_allclose(mine.weights, theirs.weights, atol=1e-6)
    if found.rollout is None:
        assert kind.startswith("swin")
    else:
        np.testing.assert_allclose(found.rollout, explain.attention_rollout(model, x)[0], atol=1e-6)


@kinds
def test_its_gradients_are_those_of_back_and_the_model_keeps_its_own(kind):
    model, x = with_every_token(build(kind)), image()
    found = read(model, x, target=3)
    assert all(param.grad is None for param in model.parameters().values())
    logits, back = model(x)
    loss, back_loss = F.softmax_cross_entropy(logits, np.array([3]))
    dx = back(back_loss())
    assert found.loss == pytest.approx(float(loss), abs=1e-6)
    np.testing.assert_allclose(found.dx, dx, atol=1e-6)
    assert found.gradients.keys() == model.parameters().keys()
    for name, param in model.parameters().items():
        np.testing.assert_allclose(found.gradients[name], param.grad, atol=1e-6)
    assert list(found.parts)[0] == "" and found.parts["embed"].dx is not None
    np.testing.assert_array_equal(found.parts["embed"].dx, found.dx)
    assert found.backward[0] == "loss" and found.backward[1] == ""
    first = list(found.parts)
    assert all(first.index(name.rpartition(".")[0]) < first.index(name) for name in first if name.startswith("head."))


def test_the_target_is_the_most_probable_class_unless_it_is_given():
    model, x = build("vit"), image()
    assert read(model, x).target == model.predict(x)[0].argmax()
    with pytest.raises(ValueError, match="class 10 does not exist"):
        read(model, x, target=10)
    with pytest.raises(ValueError, match="one image"):
        read(model, np.repeat(x, 2, axis=0))


def test_a_reader_reads_again_as_if_it_were_new_and_leaves_earlier_readings_alone():
    model, chosen = with_every_token(build("vit")), ["scale", "shuffle"]
    images = [image(), image() ** 2]
    reader = Reader(model, chosen)
    first = reader.read(images[0], target=3)
    kept = {name: gradient.copy() for name, gradient in first.gradients.items()}
    second, fresh = reader.read(images[1], target=3), read(model, images[1], 3, chosen)
    np.testing.assert_array_equal(second.dx, fresh.dx)
    for name, gradient in fresh.gradients.items():
        np.testing.assert_array_equal(second.gradients[name], gradient)
        np.testing.assert_array_equal(first.gradients[name], kept[name])
    assert list(second.parts) == list(fresh.parts) and second.backward == fresh.backward


def test_every_token_is_computed_with_the_same_answer():
    model = build("vit")
    assert model.blocks[-1].attn.queries == 1
    complete = with_every_token(model)
    assert complete.blocks[-1].attn.queries is None
    np.testing.assert_allclose(complete.predict(image()), model.predict(image()), atol=1e-5)
    assert with_every_token(complete) is complete


def test_attention_from_a_patch_is_its_row():
    model, x = with_every_token(build("vit")), image()
    rows = attention_from(read(model, x), (1, 2))
    for (maps, prefix), block in zip(rows, explain.attention_weights(model, x)):
        row = block.weights[0, :, 1 + 4 + 2]  # after the class token
        np.testing.assert_allclose(np.concatenate([prefix, maps.reshape(len(maps), 16)], axis=1), row, atol=1e-6)
    with pytest.raises(ValueError, match="not on the grid of 4 x 4"):
        attention_from(read(model, x), (4, 0))


@pytest.mark.parametrize("kind", ["swin", "swin_v2"])
def test_attention_from_a_pixel_stays_in_its_window_and_sums_to_one(kind):
    found = read(build(kind), image())
    for patch in [(0, 0), (3, 2), (6, 6)]:
        for number, (maps, padding) in enumerate(attention_from(found, patch)):
            np.testing.assert_allclose(maps.sum(axis=(1, 2)) + padding[:, 0], 1, atol=1e-5)
            windows = windows_of(found, number)
            row, column = (side if maps.shape[1] == 7 else side // 2 for side in patch)
            own = next(n for n, slots in enumerate(windows.slots) if row * maps.shape[2] + column in slots)
            outside = np.setdiff1d(np.arange(maps[0].size), windows.slots[own])
            assert (maps.reshape(len(maps), -1)[:, outside] == 0).all()


def test_the_mask_of_a_shifted_window_keeps_attention_out():
    """Where the mask is False the weight is 0, and pixels of one region and window attend to each other."""
    found = read(build("swin"), image())
    windows = windows_of(found, 1)
    assert windows.layout.shift == (2, 2) and not windows.masks.all()
    weights = found.attention[1].weights[0]  # (nW, H, N, N)
    assert np.abs(weights.transpose(1, 0, 2, 3)[:, ~windows.masks]).max() < 1e-6
    assert windows_of(found, 0).layout.shift == (0, 0)
    assert windows_of(read(build("vit"), image()), 0) is None


def test_windows_of_a_model_that_pads_last_are_the_layers_own():
    model = build("swin")
    for block in model.layers[0].blocks:
        block.attn.pad_first = False
    found = read(model, image())
    maps, padding = attention_from(found, (5, 1))[1]
    np.testing.assert_allclose(maps.sum(axis=(1, 2)) + padding[:, 0], 1, atol=1e-5)
    # the same pixel's output depends on exactly the pixels with a weight
    layer = model.layers[0].blocks[1].attn
    x = np.random.default_rng(0).standard_normal((1, 7, 7, 12)).astype("float32")
    _, back = layer(x)
    dy = np.zeros_like(x)
    dy[0, 5, 1] = 1
    depends = np.abs(back(dy)[0]).max(axis=-1) > 1e-6
    np.testing.assert_array_equal(depends, (maps > 1e-6).any(axis=0))


# --- switches -------------------------------------------------------------------------------------------------------


def test_the_switches_that_a_model_has():
    assert available(build("vit")) == list(SWITCHES) == available(build("swin"))
    assert available(build("average")) == list(SWITCHES) == available(build("swin_v2"))
    without = build("vit")
    without.embed.positions = None
    with pytest.raises(ValueError, match=r"'positions': a ViT of this kind has no such part; choose among scale"):
        switched(without, ["positions"])
    with pytest.raises(ValueError, match="'sofmax': it is unknown"):
        switched(build("vit"), ["sofmax"])
    with pytest.raises(ValueError, match="head=-1"):
        switched(build("vit"), ["heads"], head=-1)


@kinds
def test_a_switched_model_computes_something_else_with_the_right_gradient(kind):
    model = build(kind, "float64")
    x, names = image(dtype="float64"), [name for name in available(model) if name != "shuffle"]
    for chosen in [[name] for name in names] + [names]:
        network = switched(model, chosen, head=1)
        assert np.abs(network.predict(x) - model.predict(x)).max() > 1e-4, chosen
        check_vjp(network, np.concatenate([x, image(1, "float64")]), rng_seed=1)


def test_a_layer_that_the_switches_do_not_know_has_none():
    class Other(nn.Attention):
        pass

    model = build("vit")
    model.blocks[1].attn.__class__ = Other
    assert available(model) == ["residual", "shuffle"]
    model.blocks[0].__class__ = type("OtherBlock", (nn.Block,), {})
    assert available(model) == ["shuffle"]


def test_without_residual_the_scale_of_each_branch_stays():
    model, x = build("layer_scale", "float64"), image(dtype="float64")
    network = switched(model, ["residual"])
    expected = model.embed(x)[0]
    for block in model.blocks:
        attended = block.ls1(block.attn(block.norm1(expected)[0])[0])[0]
        expected = block.ls2(block.mlp(block.norm2(attended)[0])[0])[0]
    tokens = network.embed(x)[0]
    for block in network.blocks:
        tokens = block(tokens)[0]
    np.testing.assert_allclose(tokens, expected, atol=1e-12)
    check_vjp(network, x, rng_seed=1)
    assert "ls1(attn(norm1(x)))" in formula_of(network.blocks[0])


def test_the_cosines_of_swin_v2_without_scale_or_positions_are_the_weights():
    model, x = build("swin_v2"), image()
    found = read(model, x, switches=["scale", "softmax", "positions"])
    layer, part = model.layers[0].blocks[0].attn, found.parts["layers.0.blocks.0.attn"]
    windows, _ = F.shifted_windows(part.x, *layer.plan(7, 7), True)  # (nW, Mh, Mw, D)
    (q, k, _), _ = F.split_qkv(layer.attention.project_qkv(windows.reshape(4, 16, 12))[0], 3)
    cosines = F.normalize(q)[0] @ F.normalize(k)[0].swapaxes(-1, -2)
    np.testing.assert_allclose(found.attention[0].weights[0], cosines, atol=1e-6)
    assert not [name for name in found.gradients if "logit_scale" in name or "cpb_mlp" in name]
    assert formula_of(switched(model, ["scale"]).layers[0].blocks[0].attn.attention) == "proj(softmax(cos(q, k)) v)"
    assert formula_of(switched(model, ["residual"]).layers[0].blocks[0]) == "m = norm1(attn(x)); norm2(mlp(m))"


def test_swin_v2_with_a_switch_that_leaves_nothing_out_is_the_model():
    """The switched attention with all its parts computes what the layer does, also where the scale is clipped."""
    model, x = build("swin_v2", "float64"), image(dtype="float64")
    for block in model.layers[0].blocks:
        block.attn.attention.logit_scale.data = np.array([0.5, 6.0, 2.0]).reshape(3, 1, 1)  # log 100 is 4.6
    network, logits = switched(model, ["heads"]), model.predict(x)
    for layer in (block.attn.attention for stage in network.layers for block in stage.blocks):
        layer.only_head = None
    np.testing.assert_allclose(network.predict(x), logits, atol=1e-12)
    grads = []
    for each in (model, network):
        _, back = each(x)
        back(np.ones((1, 10)))
        grads.append({name: param.grad for name, param in each.parameters().items()})
    for name, expected in grads[0].items():
        np.testing.assert_allclose(grads[1][name], expected, atol=1e-12)


@kinds
def test_no_switch_is_the_model_itself(kind):
    model = build(kind)
    np.testing.assert_array_equal(switched(model, []).predict(image()), model.predict(image()))


def test_one_head_alone_is_the_others_projections_removed():
    model, x = build("vit"), image()
    alone = switched(model, ["heads"], head=1).predict(x)
    removed = switched(model, [])  # the same, by zeros in the projection: columns of head 0
    for block in removed.blocks:
        weight = block.attn.proj.weight
        changed = weight.data.copy()
        changed[:, :8] = 0
        weight.swap(changed)
    np.testing.assert_allclose(alone, removed.predict(x), atol=1e-5)


def test_without_softmax_the_weights_are_the_scores():
    model, x = with_every_token(build("vit")), image()
    found = read(model, x, switches=["softmax"])
    q, k, _ = F.split_qkv(found.parts["blocks.0.attn.qkv"].y, 2)[0]
    np.testing.assert_allclose(found.attention[0].weights, q @ k.swapaxes(-1, -2) / 8**0.5, atol=1e-5)
    assert found.rollout is None


def test_without_scale_the_scores_are_larger():
    model, x = with_every_token(build("vit")), image()
    found = read(model, x, switches=["scale", "softmax"])
    q, k, _ = F.split_qkv(found.parts["blocks.0.attn.qkv"].y, 2)[0]
    np.testing.assert_allclose(found.attention[0].weights, q @ k.swapaxes(-1, -2), atol=1e-5)


def test_shuffled_patches_are_a_permutation_and_the_gradient_comes_back_in_order():
    model, x = build("average", "float64"), image(dtype="float64")
    shuffle = Shuffle(model)
    assert not np.array_equal(shuffle(x), x)
    np.testing.assert_array_equal(shuffle.undo(shuffle(x)), x)
    found = read(model, x, 3, ["shuffle"])
    np.testing.assert_array_equal(found.images, shuffle(x))
    h, v = 1e-4, np.random.default_rng(2).standard_normal(x.shape)
    losses = [read(model, x + t * v, 3, ["shuffle"]).loss for t in (-h, h)]
    assert (losses[1] - losses[0]) / (2 * h) == pytest.approx(float((found.dx * v).sum()), rel=1e-5)


def test_without_positions_a_mean_of_tokens_ignores_the_order():
    model, x = build("average"), image()
    found = [read(model, x, 3, chosen) for chosen in (["positions"], ["positions", "shuffle"])]
    np.testing.assert_allclose(found[0].logits, found[1].logits, atol=1e-4)
    assert np.abs(read(model, x, 3, ["shuffle"]).logits - read(model, x, 3).logits).max() > 1e-3


# --- the training step, the accuracy, the lines of code ---------------------------------------------------------------


@kinds
def test_a_training_step_is_adamws_and_leaves_the_model(kind):
    model, x = with_every_token(build(kind)), image()
    before = model.state_dict()
    done = training_step(model, x, 7)
    assert all(np.array_equal(before[name], array) for name, array in model.state_dict().items())
    twin = with_every_token(build(kind))
    opt = optim.AdamW(twin.parameters(), 3e-4, no_decay=optim.no_decay(twin), threads=1)
    logits, back = twin(x)
    loss, back_loss = F.softmax_cross_entropy(logits, np.array([7]))
    back(back_loss())
    opt.step()
    assert done.before == pytest.approx(float(loss), abs=1e-6)
    for name, param in twin.parameters().items():
        np.testing.assert_allclose(done.state[name], param.data, atol=1e-6)
    assert done.after == pytest.approx(float(F.softmax_cross_entropy(twin.predict(x), np.array([7]))[0]), abs=1e-6)
    assert done.after < done.before
    assert done.moved[0][2] >= done.moved[-1][2] and done.moved[0][1] == pytest.approx(3e-4, rel=0.5)
    assert all(change > 0 for _, change in done.attention)


def test_accuracy_counts_what_predict_names():
    model, x = build("vit"), np.concatenate([image(seed) for seed in range(12)])
    labels = model.predict(x).argmax(axis=1)
    labels[:3] = (labels[:3] + 1) % 10
    assert accuracy(model, x, labels, batch_size=5) == pytest.approx(9 / 12)


@kinds
def test_every_part_shows_lines_of_its_own_code(kind):
    found = read(build(kind), image())
    for part in found.parts.values():
        lines = lines_of(part.layer)
        for code in (lines.forward, lines.backward):
            ast.parse(f"def f():\n{textwrap.indent(code or 'pass', '    ')}")
        assert lines.forward and '"""' not in lines.forward
    assert "x @ weight.T" in lines_of(nn.Linear(2, 2)).forward
    assert "dx = dy @ weight" in lines_of(nn.Linear(2, 2)).backward
    assert lines_of(F.softmax_cross_entropy).page == "derivations/cross_entropy"


def test_pages_that_the_lines_name_exist():
    from pathlib import Path

    from minivit.lab import source_lines

    docs = Path(__file__).resolve().parents[2] / "docs"
    for _, _, page in source_lines._FUNCTIONS:
        assert not page or (docs / f"{page}.md").exists() or (docs / f"{page}.py").exists(), page
