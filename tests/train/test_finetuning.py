"""Fine-tuning: what moves and what does not, how a run goes on, and which epoch is kept."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
from test_examples import ROOT

import minivit
from minivit import data, nn, optim, parallel
from minivit.distributed import ranks
from minivit.io.safetensors import load_arrays
from minivit.models.lora import lora_parameters
from minivit.train import finetuning, fingerprint
from minivit.train.finetuning import Best, PartlyFrozen, Recipe, fine_tune, head_names, overview, usual_lr
from minivit.train.tasks import Part, Task

EXAMPLE = ROOT / "examples" / "finetune.py"
VIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 3, "num_heads": 2}
SWIN = {"img_size": 16, "in_chans": 1, "num_classes": 3, "embed_dim": 4, "depths": (2, 2), "num_heads": (1, 2)}
MODELS = {
    "vit": lambda **options: minivit.ViT(**VIT, **options),
    "distilled": lambda **options: minivit.ViT(**VIT, distilled=True, **options),
    "swin": lambda **options: minivit.Swin(**{**SWIN, **options}, window_size=2),
}
QUICK = Recipe(epochs=3, batch_size=6, lr=3e-3)


def task(size=8, seed=0):
    """Small squares whose class is the row of a bright bar."""
    rng = np.random.default_rng(seed)
    labels = np.arange(30) % 3
    images = rng.integers(60, size=(30, size, size))
    for image, label in zip(images, labels):
        image[2 * label : 2 * label + 2] = 255
    images = images.astype(np.uint8)

    def batches(batch_size, **place):
        return data.batches(images[:18], labels[:18], batch_size, **place)

    return Task(
        "bars",
        ("low", "middle", "high"),
        Part(images[:18], labels[:18]),
        Part(images[18:24], labels[18:24]),
        Part(images[24:], labels[24:]),
        data.Preprocess(size, mean=(0.5,), std=(0.5,)),
        data.normalize,
        batches,
        fingerprint(images, labels),
    )


# --- freezing ---


@pytest.mark.parametrize("pattern", ["patch_embed.*", "*.norm?.*", "head*", "*blocks.[01].*"])
@pytest.mark.parametrize("kind", MODELS)
def test_what_is_frozen_stays_to_the_bit_and_all_else_moves(kind, pattern, tmp_path):
    model = MODELS[kind](seed=1)
    frozen = optim.matching(model.parameters(), [pattern])
    before = model.state_dict()
    fine_tune(model, task(model.config["img_size"]), QUICK, tmp_path, frozen=frozen, threads=1, quiet=True)
    for name, param in model.parameters().items():
        same = np.array_equal(param.data, before[name])
        assert same == (name in frozen), name


def test_frozen_gradients_do_not_pile_up(tmp_path):
    model = MODELS["vit"](seed=1)
    frozen = optim.matching(model.parameters(), ["blocks.2.*"])  # above what learns, so gradients pass through it
    fine_tune(model, task(), QUICK, tmp_path, frozen=frozen, threads=1, quiet=True)
    assert all(model.parameters()[name].grad is None for name in frozen)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("patterns", [[], ["patch_embed.*", "*token", "pos_embed", "blocks.[01].*"], ["blocks.0.*"]])
def test_partly_frozen_gives_the_gradients_of_the_whole_model(patterns, threads):
    model = MODELS["vit"](seed=1)
    frozen = optim.matching(model.parameters(), patterns)
    x = np.random.default_rng(0).standard_normal((6, 1, 8, 8), np.float32)
    labels = np.arange(6) % 3

    def gradients(learner):
        for param in model.parameters().values():
            param.grad = None
        loss = parallel.DataParallel(learner, threads).loss_and_grad(x, labels)
        return loss, {name: param.grad for name, param in model.parameters().items()}

    (loss, found), (whole, expected) = gradients(PartlyFrozen(model, frozen)), gradients(model)
    assert loss == whole
    for name in model.parameters():
        if name not in frozen:
            assert np.array_equal(found[name], expected[name]), name
    if len(patterns) == 4:
        assert all(found[name] is None for name in frozen)


def test_partly_frozen_keeps_nothing_of_what_is_frozen():
    model = minivit.Swin(**{**SWIN, "drop_path_rate": 0.5}, window_size=2)
    body = model.parameters().keys() - head_names(model)
    learner = PartlyFrozen(model, body)
    assert learner.frozen_stages == len(list(model.leaves())) - 1
    assert list(learner.parameters()) == list(model.parameters()) and learner.dtype == model.dtype
    x = np.random.default_rng(0).standard_normal((4, 1, 16, 16), np.float32)
    logits, back = learner(x, np.random.default_rng(0))
    assert np.array_equal(logits, model.predict(x)), "what is frozen runs as in inference, without noise"
    dfeatures = back(np.ones_like(logits))
    assert dfeatures.shape == (4, 8)  # the gradient stops at what the head has read
    assert np.array_equal(learner.predict(x), model.predict(x))


def test_a_step_with_a_frozen_body_runs_no_backward_pass_below(monkeypatch, tmp_path):
    model = MODELS["vit"](seed=1)
    ran = []
    forward = nn.Block.forward

    def spy(self, x, rng=None):
        y, back = forward(self, x, rng)
        return y, lambda dy: (ran.append(self), back(dy))[1]

    monkeypatch.setattr(nn.Block, "forward", spy)
    frozen = model.parameters().keys() - head_names(model)
    fine_tune(model, task(), QUICK, tmp_path, frozen=frozen, threads=1, quiet=True)
    assert ran == []
    fine_tune(model, task(), dataclasses.replace(QUICK, epochs=1), tmp_path, threads=1, quiet=True)
    assert len(ran) == 3 * 3, "three blocks in three steps"


# --- the run ---


@pytest.mark.parametrize("kind", MODELS)
def test_it_learns(kind, tmp_path):
    model = MODELS[kind](seed=0)
    recipe = Recipe(epochs=60, batch_size=6, lr=1e-2, layer_decay=0.9)
    outcome = fine_tune(model, task(model.config["img_size"]), recipe, tmp_path, threads=1, quiet=True)
    assert outcome.test is not None and outcome.test >= 5 / 6 and outcome.held_out >= 5 / 6


def test_layers_move_at_their_own_rate(tmp_path):
    moved = {}
    for rate in (1.0, 0.1):
        model = MODELS["vit"](seed=0)
        before = model.state_dict()
        recipe = Recipe(epochs=1, batch_size=18, lr=1e-3, layer_decay=rate, weight_decay=0.0, warmup=0.0)
        fine_tune(model, task(), recipe, tmp_path, threads=1, quiet=True)
        after = model.state_dict()
        moved[rate] = {name: float(np.abs(after[name] - before[name]).max()) for name in before}
    # one step of Adam moves by lr whatever the gradient
    for name, factor in optim.layer_decay(MODELS["vit"](), 0.1).items():
        if not name.endswith("qkv.bias"):  # a key's bias has gradient 0
            assert moved[0.1][name] == pytest.approx(factor * moved[1.0][name], rel=0.05), name


def test_the_step_is_clipped_smoothed_and_decays_weights_alone(tmp_path):
    """One step of the run against the same step by hand."""
    work = task()
    ours, theirs = MODELS["vit"](seed=1), MODELS["vit"](seed=1)
    frozen = {"pos_embed"}
    recipe = Recipe(epochs=1, batch_size=18, lr=0.1, weight_decay=0.5, warmup=0.0, label_smoothing=0.3)
    for model in (ours, theirs):
        model.head.weight.data = 30 * model.head.weight.data  # large gradients, which clipping limits
    fine_tune(ours, work, recipe, tmp_path, frozen=frozen, seed=7, threads=1, quiet=True)

    trained = {name: param for name, param in theirs.parameters().items() if name not in frozen}
    rates = optim.layer_decay(theirs, recipe.layer_decay)
    plain = {name for name in trained if trained[name].data.ndim == 1 or name == "cls_token"}
    opt = optim.AdamW(trained, 0.1, 0.5, no_decay=plain, lr_scale={name: rates[name] for name in trained}, eps=1e-8)
    ((x, y),) = work.batches(18, seed=7, epoch=0, start=0)
    step = parallel.DataParallel(theirs, threads=1)
    step.loss_and_grad(x, y, label_smoothing=0.3)
    assert optim.clip_grad_norm(trained, 1.0) > 3
    first = {name: param.grad.copy() for name, param in trained.items()}
    opt.step()
    for name, param in ours.parameters().items():
        assert np.array_equal(param.data, theirs.parameters()[name].data), name
    # Adam's step hardly shows the gradient's size, its mean does
    mean = load_arrays(tmp_path / "checkpoint.safetensors")[0]["optimizer/first"]
    assert np.allclose(mean, 0.1 * np.concatenate([grad.ravel() for grad in first.values()]), rtol=1e-5, atol=1e-8)


def test_a_run_that_stops_goes_on_bit_for_bit(tmp_path):
    def go(out, epochs_until_stop=None, resume=False):
        model = MODELS["vit"](seed=0, drop_path_rate=0.3)
        work = task()
        if epochs_until_stop is not None:
            prepare, calls = work.prepare, []

            def stop(images):
                calls.append(1)
                if len(calls) > epochs_until_stop:
                    raise KeyboardInterrupt
                return prepare(images)

            work = dataclasses.replace(work, prepare=stop)
        recipe = Recipe(epochs=4, batch_size=6)
        frozen = {"pos_embed"}
        outcome = fine_tune(model, work, recipe, out, frozen=frozen, seed=5, threads=1, resume=resume, quiet=True)
        return model.state_dict(), outcome

    whole, outcome = go(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "part", epochs_until_stop=2)
    again, resumed = go(tmp_path / "part", resume=True)
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    assert resumed[:3] == outcome[:3]
    finished, _ = go(tmp_path / "part", resume=True)
    assert all(np.array_equal(whole[name], finished[name]) for name in whole), "and a finished run only tests again"


@pytest.mark.parametrize("kind", MODELS)
def test_with_updates_of_low_rank_nothing_else_moves_and_a_run_goes_on(kind, tmp_path):
    def go(out, alpha=8.0, resume=False, stop=None):
        model = MODELS[kind](seed=1)
        trained = minivit.lora(model, 2, alpha, targets=("qkv", "fc2"))
        before, work = model.state_dict(), task(model.config["img_size"])
        if stop is not None:
            plain, calls = work.prepare, iter(range(stop))
            work = dataclasses.replace(work, prepare=lambda images: (next(calls), plain(images))[1])
        frozen = model.parameters().keys() - trained.keys()
        recipe = dataclasses.replace(QUICK, keep="last")
        fine_tune(model, work, recipe, out, frozen=frozen, threads=1, quiet=True, resume=resume)
        for name, array in model.state_dict().items():
            assert np.array_equal(array, before[name]) == (name not in trained), name
        return model

    model = go(tmp_path / "whole")
    with pytest.raises((StopIteration, RuntimeError)):
        go(tmp_path / "part", stop=2)
    with pytest.raises(minivit.CheckpointError, match="lora_alpha"):
        go(tmp_path / "part", alpha=9.0, resume=True)
    again = go(tmp_path / "part", resume=True)
    assert all(np.array_equal(array, again.state_dict()[name]) for name, array in model.state_dict().items())
    table = overview(model, QUICK, model.parameters().keys() - lora_parameters(model).keys())
    plain = overview(minivit.merge_lora(model.replica()), QUICK, set())
    rows = [[line.split()[0] for line in text.splitlines()] for text in (table, plain)]
    assert rows[0] == rows[1] and table.splitlines()[1].endswith("frozen")


def test_a_resumed_run_must_start_from_the_same_weights(tmp_path):
    fine_tune(MODELS["vit"](seed=0), task(), QUICK, tmp_path, threads=1, quiet=True)
    with pytest.raises(minivit.CheckpointError, match="weights"):
        fine_tune(MODELS["vit"](seed=1), task(), QUICK, tmp_path, threads=1, resume=True, quiet=True)
    with pytest.raises(minivit.CheckpointError, match="frozen"):
        fine_tune(MODELS["vit"](seed=0), task(), QUICK, tmp_path, frozen={"pos_embed"}, resume=True, quiet=True)


@pytest.mark.parametrize("keep, scores, kept", [
    ("best", [0.5, 0.9, 0.7], 2),
    ("best", [0.9, 0.5, 0.9], 3),  # of two that are level the later one
    ("best", [0.0, 0.0, 0.0], 3),
    ("last", [0.9, 0.5, 0.7], 3),
])  # fmt: skip
def test_which_epoch_is_kept(keep, scores, kept):
    model = MODELS["vit"](seed=0)
    best = Best(model, keep)
    for epoch, score in enumerate(scores, 1):
        model.head.bias.data = np.full(3, epoch)
        best.offer(score, epoch)
    again = Best(model, keep)
    again.load_state_dict(best.state_dict())
    for each in (best, again):
        assert (each.epoch, each.score) == (kept, scores[kept - 1])
        assert np.array_equal(each.weights["head.bias"], np.full(3, kept))


def test_the_kept_epoch_is_what_the_model_has_in_the_end(tmp_path, monkeypatch):
    scores = iter([0.2, 0.8, 0.5, 0.1])
    seen = []

    def accuracy(predict, images, labels, prepare, device, batch_size):
        seen.append(model.state_dict())
        return next(scores), None

    monkeypatch.setattr(finetuning, "accuracy", accuracy)
    model = MODELS["vit"](seed=0)
    outcome = fine_tune(model, task(), QUICK, tmp_path, threads=1, quiet=True)
    assert (outcome.epoch, outcome.held_out, outcome.test) == (2, 0.8, 0.1)
    for weights in (seen[1], seen[3]):  # after the second epoch, and when the test images are shown
        assert all(np.array_equal(weights[name], array) for name, array in model.state_dict().items())
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [float(row["held_out_accuracy"]) for row in csv.DictReader(file)] == [0.2, 0.8, 0.5]


def test_the_usual_lr_falls_with_the_width():
    assert usual_lr(minivit.ViT(**{**VIT, "embed_dim": 64})) == 2e-3
    assert usual_lr(minivit.ViT(**{**VIT, "embed_dim": 128}, distilled=True)) == 1e-3
    assert usual_lr(minivit.Swin(**{**SWIN, "embed_dim": 32}, window_size=2)) == 2e-3, "the last stage has 64"


def test_the_threads_are_those_that_were_asked_for(tmp_path, monkeypatch):
    asked = []

    def recorded(learner, threads, *others):
        asked.append(threads)
        raise InterruptedError

    monkeypatch.setattr(ranks, "DataParallel", recorded)
    with pytest.raises(InterruptedError):
        fine_tune(MODELS["vit"](), task(), QUICK, tmp_path, threads=3, quiet=True)
    assert asked == [3]


def test_overview():
    model = MODELS["vit"]()
    table = overview(model, Recipe(layer_decay=0.5), optim.matching(model.parameters(), ["blocks.0.*", "*.1.mlp.*"]))
    rows = {line.split()[0]: line.split()[1:] for line in table.splitlines()}
    assert list(rows) == [
        *("stage", "cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head")
    ]
    assert rows["blocks.0"] == ["872", "0", "frozen"] and rows["blocks.2"] == ["872", "872", "0.5"]
    assert rows["blocks.1"] == ["872", str(872 - 2 * 8 * 32 - 40), "0.25"]
    assert rows["head"] == ["27", "27", "1"] and rows["pos_embed"] == ["40", "40", "0.0625"]
    swin = [line.split()[0] for line in overview(MODELS["swin"](), Recipe(), ()).splitlines()]
    assert swin[1:] == [
        "patch_embed", "layers.0.blocks.0", "layers.0.blocks.1", "layers.1.downsample", "layers.1.blocks.0",
        "layers.1.blocks.1", "norm", "head",
    ]  # fmt: skip


REFUSED = {
    "classes": (lambda out: fine_tune(minivit.ViT(**{**VIT, "num_classes": 4}), task(), QUICK, out), "num_classes=3"),
    "epochs": (lambda out: fine_tune(MODELS["vit"](), task(), Recipe(epochs=0), out), "epochs=0"),
    "keep": (lambda out: fine_tune(MODELS["vit"](), task(), Recipe(keep="first", batch_size=6), out), "keep='first'"),
    "batch": (lambda out: fine_tune(MODELS["vit"](), task(), Recipe(batch_size=19), out), "batch_size=19"),
    "frozen": (
        lambda out: fine_tune(MODELS["vit"](), task(), QUICK, out, frozen=set(MODELS["vit"]().parameters())),
        "nothing to learn",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_arguments_are_named(case, tmp_path):
    call, fragment = REFUSED[case]
    with pytest.raises(ValueError, match=fragment):
        call(tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing is written before the refusal"
