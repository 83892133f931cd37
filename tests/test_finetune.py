"""Fine-tuning: what moves and what does not, which epoch is kept, and the example as its reader runs it.
Read test_examples.py next, whose digits are learned here too.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
from test_examples import ROOT, digits, run

import minivit
from minivit import data, nn, optim, parallel, training
from minivit.checkpoint import load_arrays
from minivit.data.folder import split_folder
from minivit.finetuning import Best, PartlyFrozen, Recipe, fine_tune, head_names, overview, usual_lr
from minivit.tasks import Part, Task, balanced, folder_task, mnist_task

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
        data.normalise,
        batches,
        training.fingerprint(images, labels),
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
    assert [type(stage).__name__ for stage in learner.stages()] == ["Linear"]
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
    mean = load_arrays(tmp_path / "checkpoint.safetensors")[0]["optimiser/first"]
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

    def accuracy(predict, images, labels, prepare, batch_size):
        seen.append(model.state_dict())
        return next(scores), None

    monkeypatch.setattr(training, "accuracy", accuracy)
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


# --- tasks ---


def test_balanced():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 20)
    chosen = balanced(labels, 30, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [10, 10, 10] and len(set(chosen)) == 30
    assert set(balanced(labels, 15, seed=1)) != set(balanced(labels, 15, seed=2)), "the seed decides which"
    assert np.array_equal(chosen, balanced(labels, 30, seed=1)) and not np.array_equal(chosen, balanced(labels, 30, 2))
    assert len(set(labels[chosen][:6])) > 1, "the order is random"
    for count, fragment in ((31, "multiple of 3"), (0, "multiple of 3"), (33, "class 1 has 10: choose at most 30")):
        with pytest.raises(ValueError, match=fragment):
            balanced(labels, count, 0)


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    """MNIST's four files with images that a small model learns."""
    folder = tmp_path_factory.mktemp("digits")
    for stem, count in (("train", 1800), ("t10k", 200)):
        images, labels = digits(count, count)
        data.write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        data.write_idx(folder / f"{stem}-labels-idx1-ubyte", labels)
    return folder


def test_mnist_task(digits_folder):
    mnist = data.load_mnist(digits_folder)
    work = mnist_task(mnist, limit=40, seed=1)
    assert work.classes == tuple("0123456789")
    assert np.bincount(work.learn.labels).tolist() == [4] * 10
    assert (len(work.held_out.labels), len(work.test.labels)) == (1000, 200)
    assert np.array_equal(work.held_out.images, mnist_task(mnist, seed=2).held_out.images)
    assert work.fingerprint != mnist_task(mnist, limit=40, seed=2).fingerprint
    held = {image.tobytes() for image in work.held_out.images}
    assert not held & {image.tobytes() for image in mnist_task(mnist).learn.images}
    x, y = next(iter(work.batches(8, seed=0, epoch=0, start=0)))
    assert x.shape == (8, 1, 28, 28) and y.shape == (8,)
    images = digits(1, 0)[0]
    assert np.array_equal(work.prepare(images), data.normalise(images))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of two classes of pictures, light and dark."""
    image = pytest.importorskip("PIL.Image")
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 155)):
        (folder / name).mkdir()
        for number in range(20):
            image.fromarray(rng.integers(low, low + 100, (20, 24, 3), np.uint8)).save(folder / name / f"{number}.png")
    return folder


def test_folder_task(pictures):
    preprocess = data.Preprocess((16, 20), crop=0.9, interpolation="bilinear")
    work = folder_task(*split_folder(pictures), preprocess, limit=20, seed=1)
    assert work.source == f"40 pictures in {pictures}"
    assert np.bincount(work.learn.labels).tolist() == [10, 10] and np.bincount(work.held_out.labels).tolist() == [2, 2]
    assert work.test is None
    batches = list(work.batches(8, seed=0, epoch=0, start=0))
    assert len(batches) == 2 and batches[0][0].shape == (8, 3, 16, 20)
    again = next(iter(work.batches(8, seed=0, epoch=0, start=1)))
    assert np.array_equal(again[0], batches[1][0])
    plain = work.prepare(work.learn.images[:3])
    assert np.array_equal(plain[0], preprocess(work.learn.images[0]))
    assert work.fingerprint != folder_task(*split_folder(pictures), preprocess, limit=20, seed=2).fingerprint
    assert (batches[0][0] == 0).any() and not (plain == 0).any(), "moved images have the mean colour at their edges"


def test_pictures_are_moved_and_mirrored(pictures):
    """The first batch, in which each picture is looked for in all places where it could be."""
    preprocess = data.Preprocess(16)
    work = folder_task(*split_folder(pictures), preprocess, limit=32)
    x, _ = next(iter(work.batches(32, seed=0, epoch=0, start=0)))
    order = data.epoch_order(32, 0, 0)
    found = []
    for image, path in zip(x, work.learn.images[order]):
        padded = np.pad(preprocess(path), ((0, 0), (2, 2), (2, 2)))  # 2 = 16 // 8
        for mirrored, source in enumerate((padded, padded[:, :, ::-1])):
            for top, left in np.ndindex(5, 5):
                if np.array_equal(image, source[:, top : top + 16, left : left + 16]):
                    found.append((mirrored, top, left))
    assert len(found) == 32 and 8 < sum(mirrored for mirrored, _, _ in found) < 24
    for axis in (1, 2):
        assert {place[axis] for place in found} == set(range(5))


def test_config_is_read_back_as_the_preprocessing(pictures, tmp_path):
    from minivit.weights.labels import labels_beside
    from minivit.weights.preprocessing import preprocessing

    preprocess = data.Preprocess(
        16, crop=0.8, interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(1, 2, 3), squash=True
    )
    work = folder_task(*split_folder(pictures), preprocess)
    model = minivit.ViT(16, 4, 3, 2, 8, 1, 2)
    minivit.save(model, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(work.config()))
    assert preprocessing(tmp_path / "model.safetensors", model) == preprocess
    assert labels_beside(work.config(), 2) == ["dark", "light"]


# --- the example ---

LAST = re.compile(r"kept: epoch (\d+); held-out accuracy: (\d+\.\d\d)%(?:; test accuracy: (\d+\.\d\d)%)?")


def rows(out):
    with open(out / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A ViT for gray images of 28 pixels and four classes, and a Swin for colours."""
    folder = tmp_path_factory.mktemp("weights")
    minivit.save(minivit.ViT(28, 7, 1, 4, 32, 2, 2, mlp_ratio=2.0, seed=3), folder / "vit.safetensors")
    swin = minivit.Swin(32, 4, 3, 5, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4, seed=3)
    minivit.save(swin, folder / "swin.safetensors")
    return folder


def test_the_example_on_digits(digits_folder, weights, tmp_path):
    options = ["--data", digits_folder, "--weights", weights / "vit.safetensors", "--limit", 200, "--threads", 1]
    options += ["--freeze", "patch_embed.*", "blocks.0.*", "--epochs", 12, "--batch-size", 20]
    done = run(tmp_path, *options, "--lr", 3e-3, "--layer-decay", 0.9, example=EXAMPLE)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    lines = done.stdout.splitlines()
    assert any("head.weight" in line and "4 classes in the file, 10 in the model" in line for line in lines)
    assert any("200 images to learn from, 1,000 held out" in line for line in lines)
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("blocks", "head", "patch"))}
    assert table["patch_embed"][2] == table["blocks.0"][2] == "frozen"
    assert table["blocks.1"][2] == "0.9" and table["head"] == ["330", "330", "1"]
    out = tmp_path / "runs" / "finetune"
    assert sorted(path.name for path in out.iterdir()) == [
        "MODEL_CARD.md", "checkpoint.safetensors", "config.json", "metrics.csv", "model.safetensors",
    ]  # fmt: skip
    match = LAST.fullmatch(lines[-1])
    assert match and float(match[3]) > 50, lines[-1]
    history = [float(row["held_out_accuracy"]) for row in rows(out)]
    assert len(history) == 12 and history[int(match[1]) - 1] == max(history) and f"{max(history):.2%}" == f"{match[2]}%"
    model = minivit.from_pretrained(out / "model.safetensors")
    images, labels = digits(200, 200)
    assert f"{(model.predict(data.normalise(images)).argmax(1) == labels).mean():.2%}" == f"{match[3]}%"
    start, end = load_arrays(weights / "vit.safetensors")[0], load_arrays(out / "model.safetensors")[0]
    for name in start:
        assert np.array_equal(start[name], end[name]) == name.startswith(("patch_embed.", "blocks.0.")), name
    assert json.loads((out / "config.json").read_text())["label_names"] == list("0123456789")
    card = (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    for fragment in (
        f"| test accuracy | {match[3]}% |",
        "blocks.0.*",
        "layer_decay=0.9",
        "lr=0.003",
        "vit.safetensors",
    ):
        assert fragment in card, fragment


def test_the_example_on_pictures(pictures, weights, tmp_path):
    options = ["--data", pictures, "--weights", weights / "swin.safetensors", "--epochs", 3, "--batch-size", 6]
    done = run(tmp_path, *options, "--head-only", "--lr", 0.05, "--threads", 1, bare=False, example=EXAMPLE)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "classes: dark, light" in done.stdout and "36 images to learn from, 4 held out" in done.stdout
    match = LAST.fullmatch(done.stdout.splitlines()[-1])
    assert match and match[3] is None and float(match[2]) == 100
    out = tmp_path / "runs" / "finetune"
    start, end = load_arrays(weights / "swin.safetensors")[0], load_arrays(out / "model.safetensors")[0]
    assert {name for name in start if not np.array_equal(start[name], end[name])} == {"head.fc.weight", "head.fc.bias"}


def test_the_example_from_nothing(digits_folder, tmp_path):
    done = run(tmp_path, "--data", digits_folder, "--limit", 100, "--epochs", 1, "--threads", 1, example=EXAMPLE)
    assert done.returncode == 0, done.stderr
    factors = re.findall(r"^[a-z_.0-9]+ +[\d,]+ +[\d,]+ +(\S+)$", done.stdout, flags=re.MULTILINE)
    assert len(factors) == 9 and set(factors) == {"1"}, "fresh weights have nothing to forget"
    assert "| started from | fresh weights |" in (tmp_path / "runs/finetune/MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options, fragment",
    [
        ([], "--data mnist"),
        (["--data", "nowhere", "--weights", "x"], "nowhere is no folder"),
        (["--data", "{digits}", "--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--data", "{digits}", "--limit", 101], "limit=101"),
        (["--data", "{digits}", "--limit", 100, "--freeze", "block.*"], "'blocks.*'"),
        (["--data", "{digits}", "--model", "vit_base_patch16_224"], "28x28 is not divisible by patch 16x16"),
        (["--data", "{digits}", "--model", "test_vit", "--weights", "x"], "leave --model out"),
        (["--data", "{pictures}"], "--weights FILE, or --model NAME"),
    ],
)
def test_the_example_refuses_in_one_line(options, fragment, digits_folder, pictures, tmp_path):
    done = run(tmp_path, *[str(o).format(digits=digits_folder, pictures=pictures) for o in options], example=EXAMPLE)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ") and fragment in done.stderr


# --- does pretraining pay? ---


def test_turned_digits_carry_their_turn_and_not_their_label(digits_folder, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    import pretraining_pays

    images = digits(40, 1)[0][:, None]
    turned, quarters = pretraining_pays.turn(images, np.zeros(40, int), np.random.default_rng(0))
    assert set(quarters) == {0, 1, 2, 3}
    for image, made, k in zip(images, turned, quarters):
        for _ in range(k):
            image = image[:, :, ::-1].transpose(0, 2, 1)  # a quarter turn: mirrored, then rows and columns exchanged
        assert np.array_equal(image, made)
    mnist = data.load_mnist(digits_folder)
    work = pretraining_pays.rotation_task(mnist)
    assert not work.learn.labels.any() and len(work.learn.labels) == 1800 and work.test is None
    x, y = next(iter(work.batches(400, seed=0, epoch=0, start=0)))
    assert np.bincount(y, minlength=4).min() > 60 and y.max() == 3 and x.shape == (400, 1, 28, 28)


def test_the_comparison_makes_its_table(digits_folder, tmp_path):
    options = ["--data", digits_folder, "--seeds", 0, 3, "--epochs", 1, 2, "--labelled", 50, "--pretraining-epochs", 1]
    script = EXAMPLE.with_name("pretraining_pays.py")
    done = run(tmp_path, *options, example=script)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    rows = re.findall(r"^\| (\d+) \| ([a-z ]+) \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+) \|$", done.stdout, re.M)
    assert [row[:2] for row in rows] == [
        ("1", "from nothing"), ("1", "pretrained"), ("2", "from nothing"), ("2", "pretrained"),
    ]  # fmt: skip
    for row in rows:
        scores = [float(cell) for cell in row[2:4]]
        assert float(row[4]) == pytest.approx(np.mean(scores), abs=0.006)
        assert float(row[5]) == pytest.approx(np.std(scores, ddof=1), abs=0.01)
    again = run(tmp_path, *options, example=script)
    assert again.stdout.split("test accuracy over")[1] == done.stdout.split("test accuracy over")[1]
    assert "after" not in again.stdout, "results that are there already are used"
    assert (tmp_path / "runs/pretraining_pays/table.md").read_text().strip() in done.stdout
