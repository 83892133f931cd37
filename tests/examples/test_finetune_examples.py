"""What there is to learn, and the programs that learn it, run as their reader runs them."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
from test_examples import ROOT, digits, run

import minivit
from minivit import data
from minivit.__main__ import main
from minivit.data.folder import split_folder
from minivit.data.labels import labels_beside
from minivit.io.safetensors import load_arrays
from minivit.pretrained.preprocessing import preprocessing
from minivit.train.tasks import balanced, folder_task, mnist_task

EXAMPLE = ROOT / "examples" / "finetune.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not installed with the package")

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
    assert np.array_equal(work.prepare(images), data.normalize(images))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of two classes of images, light and dark."""
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
    assert work.source == f"40 images in {pictures}"
    assert np.bincount(work.learn.labels).tolist() == [10, 10] and np.bincount(work.held_out.labels).tolist() == [2, 2]
    assert work.test is None
    batches = list(work.batches(8, seed=0, epoch=0, start=0))
    assert len(batches) == 2 and batches[0][0].shape == (8, 3, 16, 20)
    again = next(iter(work.batches(8, seed=0, epoch=0, start=1)))
    assert np.array_equal(again[0], batches[1][0])
    plain = work.prepare(work.learn.images[:3])
    assert np.array_equal(plain[0], preprocess(work.learn.images[0]))
    assert work.fingerprint != folder_task(*split_folder(pictures), preprocess, limit=20, seed=2).fingerprint
    assert work.fingerprint == "b765858a0988ce5c", "runs of earlier versions resume"
    assert (batches[0][0] == 0).any() and not (plain == 0).any(), "moved images have the mean color at their edges"


def test_images_are_shifted_and_mirrored(pictures):
    """The first batch, in which each image is searched at all positions where it could be."""
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
    """A ViT for gray images of 28 pixels and four classes, and a Swin for colors."""
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
    assert any("200 training images, 1,000 held out" in line for line in lines)
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("blocks", "head", "patch"))}
    assert table["patch_embed"][2] == table["blocks.0"][2] == "frozen"
    assert table["blocks.1"][2] == "0.9" and table["head"] == ["330", "330", "1"]
    out = tmp_path / "runs" / "finetune"
    assert sorted(path.name for path in out.iterdir()) == [
        "MODEL_CARD.md", "checkpoint.safetensors", "checkpoint.safetensors.previous", "config.json", "metrics.csv",
        "model.safetensors",
    ]  # fmt: skip
    match = LAST.fullmatch(lines[-1])
    assert match and float(match[3]) > 50, lines[-1]
    history = [float(row["held_out_accuracy"]) for row in rows(out)]
    assert len(history) == 12 and history[int(match[1]) - 1] == max(history) and f"{max(history):.2%}" == f"{match[2]}%"
    model = minivit.from_pretrained(out / "model.safetensors")
    images, labels = digits(200, 200)
    assert f"{(model.predict(data.normalize(images)).argmax(1) == labels).mean():.2%}" == f"{match[3]}%"
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


def test_the_example_on_image_files(pictures, weights, tmp_path):
    options = ["--data", pictures, "--weights", weights / "swin.safetensors", "--epochs", 3, "--batch-size", 6]
    done = run(tmp_path, *options, "--head-only", "--lr", 0.05, "--threads", 1, bare=False, example=EXAMPLE)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "classes: dark, light" in done.stdout and "36 training images, 4 held out" in done.stdout
    match = LAST.fullmatch(done.stdout.splitlines()[-1])
    assert match and match[3] is None and float(match[2]) == 100
    out = tmp_path / "runs" / "finetune"
    start, end = load_arrays(weights / "swin.safetensors")[0], load_arrays(out / "model.safetensors")[0]
    assert {name for name in start if not np.array_equal(start[name], end[name])} == {"head.fc.weight", "head.fc.bias"}
    asked = [pictures / "light" / "3.png", "--weights", out / "model.safetensors", "--top", 1]
    answer = run(tmp_path, *asked, bare=False, example=EXAMPLE.with_name("classify_image.py"))
    assert answer.returncode == 0 and answer.stdout.splitlines()[-1].endswith("%  light"), answer.stdout + answer.stderr


def test_updates_of_low_rank_are_saved_merged_and_alone(digits_folder, weights, tmp_path, capsys):
    out, start = tmp_path / "run", weights / "vit.safetensors"
    options = ["--data", digits_folder, "--weights", start, "--limit", 200, "--threads", 1, "--out", out]
    options += ["--lora", 4, "--lora-alpha", 8, "--lora-targets", "qkv", "fc1", "--epochs", 12, "--batch-size", 20]
    assert main(["finetune", *map(str, options), "--lr", "0.01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("blocks", "head", "patch"))}
    size = sum(array.size for name, array in load_arrays(start)[0].items() if name.startswith("blocks.0."))
    trained = 4 * (32 + 96) + 4 * (32 + 64)
    assert table["blocks.0"] == [f"{size + trained:,}", f"{trained:,}", "1"]
    assert table["patch_embed"][2] == "frozen" and table["head"] == ["330", "330", "1"]
    match = LAST.fullmatch(lines[-1])
    assert match and float(match[3]) > 50, lines[-1]
    assert "all but the head and updates of rank 4" in (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    x = data.normalize(digits(200, 200)[0])
    merged = minivit.from_pretrained(out, report=pytest.fail)
    base = minivit.from_pretrained(start, num_classes=10, report=lambda line: None)
    minivit.load_lora(base, out / "lora.safetensors")
    assert np.abs(base.predict(x) - merged.predict(x)).max() < 1e-4
    assert (out / "lora.safetensors").stat().st_size < start.stat().st_size / 2
    bytes_before = [(out / name).read_bytes() for name in ("model.safetensors", "lora.safetensors")]
    assert main(["finetune", *map(str, options), "--lr", "0.01", "--resume"]) == 0
    assert [(out / name).read_bytes() for name in ("model.safetensors", "lora.safetensors")] == bytes_before


def test_the_example_from_scratch(digits_folder, tmp_path):
    done = run(tmp_path, "--data", digits_folder, "--limit", 100, "--epochs", 1, "--threads", 1, example=EXAMPLE)
    assert done.returncode == 0, done.stderr
    factors = re.findall(r"^[a-z_.0-9]+ +[\d,]+ +[\d,]+ +(\S+)$", done.stdout, flags=re.MULTILINE)
    assert len(factors) == 9 and set(factors) == {"1"}, "random weights have no features to preserve"
    assert "| started from | random weights |" in (tmp_path / "runs/finetune/MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "code, options, fragment",
    [
        (2, [], "--data mnist"),
        (1, ["--data", "nowhere", "--weights", "x"], "nowhere is not a folder"),
        (1, ["--data", "{digits}", "--weights", "nowhere.safetensors"], "nowhere.safetensors"),
        (2, ["--data", "{digits}", "--limit", 101], "limit=101"),
        (2, ["--data", "{digits}", "--limit", 100, "--freeze", "block.*"], "'blocks.*'"),
        (2, ["--data", "{digits}", "--model", "vit_base_patch16_224"], "28x28 is not divisible by patch 16x16"),
        (2, ["--data", "{digits}", "--model", "test_vit", "--weights", "x"], "leave --model out"),
        (2, ["--data", "{pictures}"], "--weights FILE, or --model NAME"),
        (2, ["--data", "{digits}", "--lora", 4], "random ones are of no use: give --weights FILE"),
        (2, ["--data", "{digits}", "--weights", "x", "--lora", 4, "--head-only"], "leave --freeze and --head-only out"),
        (2, ["--data", "{digits}", "--lora-alpha", 4], "--lora-alpha and --lora-targets are of --lora RANK"),
    ],
)
def test_the_program_refuses_in_one_line(
    code, options, fragment, digits_folder, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIVIT_CACHE", str(tmp_path / "cache"))
    options = [str(option).format(digits=digits_folder, pictures=pictures) for option in options]
    found, error = main(["finetune", *options]), capsys.readouterr().err
    assert found == code and len(error.splitlines()) == 1, error
    assert error.startswith("error: ") and fragment in error


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
    options = ["--data", digits_folder, "--seeds", 0, 3, "--epochs", 1, 2, "--labeled", 50, "--pretraining-epochs", 1]
    script = EXAMPLE.with_name("pretraining_pays.py")
    done = run(tmp_path, *options, example=script)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    rows = re.findall(
        r"^\| (\d+) \| ([a-z ]+) \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+)% \| ([\d.]+) \|$", done.stdout, re.M
    )
    assert [row[:2] for row in rows] == [
        ("1", "from scratch"), ("1", "pretrained"), ("2", "from scratch"), ("2", "pretrained"),
    ]  # fmt: skip
    for row in rows:
        scores = [float(cell) for cell in row[2:4]]
        assert float(row[4]) == pytest.approx(np.mean(scores), abs=0.006)
        assert float(row[5]) == pytest.approx(np.std(scores, ddof=1), abs=0.01)
    out = tmp_path / "runs" / "pretraining_pays"
    assert (out / "table.md").read_text().strip() in done.stdout
    written = {path: path.read_bytes() for path in out.rglob("metrics.csv")}
    again = run(tmp_path, *options, example=script)
    assert again.stdout.split("test accuracy over")[1] == done.stdout.split("test accuracy over")[1]
    assert len(written) == 9 and all(path.read_bytes() == text for path, text in written.items()), (
        "nothing is learned twice"
    )
    other = run(tmp_path, *options, "--labeled", 60, example=script)
    assert other.returncode == 1 and "cannot resume" in other.stderr and "data" in other.stderr
