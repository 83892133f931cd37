"""The options of programs that train, and how their errors end."""

from __future__ import annotations

import argparse
import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from minivit.train import Run, command_line, presets
from minivit.train.folder import keep_earlier

PRESETS = {"vit": {"full": 1, "subset": 2}, "swin": {"full": 3, "small": 4}}
DEFAULTS: dict[str, Any] = {
    "data": None,
    "out": "runs/x",
    "epochs": None,
    "batch_size": None,
    "lr": None,
    "seed": 0,
    "threads": None,
    "shards": None,
    "device": "cpu",
    "precision": "float32",
    "limit": None,
    "resume": False,
    "debug": False,
}


def options(*words: str) -> dict[str, Any]:
    return vars(command_line.parser("A program.", data="a folder", out="runs/x").parse_args(words))


def test_options_that_are_left_out_have_these_values() -> None:
    assert options() == DEFAULTS


def test_options_are_read_as_numbers_words_and_switches() -> None:
    words = (
        "--data d --out o --epochs 3 --batch-size 5 --lr 1e-2 --seed 7 --threads 2 --shards 6 --device gpu --limit 20 "
        "--precision bfloat16"
    )
    assert options(*words.split(), "--resume", "--debug") == {
        "data": "d",
        "out": "o",
        "epochs": 3,
        "batch_size": 5,
        "lr": 0.01,
        "seed": 7,
        "threads": 2,
        "shards": 6,
        "device": "gpu",
        "precision": "bfloat16",
        "limit": 20,
        "resume": True,
        "debug": True,
    }


def test_help_says_what_each_option_is(capsys: pytest.CaptureFixture[str]) -> None:
    parser = command_line.parser("A program.\n\n  In lines.", data="a folder", out="runs/x", limit="at most N")
    with pytest.raises(SystemExit):
        parser.parse_args(["-h"])
    text = " ".join(capsys.readouterr().out.split())
    assert "A program. In lines." in text and "(default: runs/x)" in text
    for option, meaning in {
        "--data DATA": "a folder",
        "--out OUT": "folder for checkpoint, metrics and model",
        "--epochs EPOCHS": "passes over the training images (default: the preset's)",
        "--batch-size BATCH_SIZE": "images per step (default: the preset's)",
        "--lr LR": "peak learning rate (default: the preset's)",
        "--device {cpu,gpu}": "what computes (default: cpu)",
        "--seed SEED": "of initial weights, order of the images, and noise (default: 0)",
        "--threads THREADS": "default: the cores that this process may use",
        "--limit N": "at most N (default: all)",
        "--resume": "continue from the checkpoint in --out",
        "--debug": "show the traceback of an error",
    }.items():
        assert f"{option} {meaning}" in text


def test_each_model_has_its_own_presets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def read(*words: str) -> argparse.Namespace:
        monkeypatch.setattr("sys.argv", ["program", *words])
        return command_line.mnist_options("Trains.", PRESETS)

    args = read()
    assert (args.model, args.preset, args.out) == ("vit", None, "runs/mnist_vit")
    args = read("--model", "swin", "--preset", "small", "--out", "here")
    assert (args.model, args.preset, args.out) == ("swin", "small", "here")
    assert read("--preset", "subset").preset == "subset"
    with pytest.raises(SystemExit):
        read("--preset", "small")
    assert "--model vit has no preset small: choose full or subset" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        read("--preset", "other")
    assert "--preset" in capsys.readouterr().err


def test_only_what_was_given_is_handed_on() -> None:
    args = argparse.Namespace(epochs=0, lr=None, seed=3)
    assert command_line.given(args, "epochs", "lr") == {"epochs": 0}


def test_an_error_is_one_line_unless_its_traceback_is_asked_for() -> None:
    def fails(args: argparse.Namespace) -> None:
        raise args.error

    for error in (ValueError("a"), RuntimeError("a"), FloatingPointError("a"), OSError("a"), ImportError("a")):
        with pytest.raises(SystemExit, match="^error: a$"):
            command_line.run(fails, argparse.Namespace(error=error, debug=False))
        with pytest.raises(type(error), match="a"):
            command_line.run(fails, argparse.Namespace(error=error, debug=True))
    with pytest.raises(SystemExit, match="^interrupted$"):
        command_line.run(fails, argparse.Namespace(error=KeyboardInterrupt(), debug=False))
    with pytest.raises(TypeError):
        command_line.run(fails, argparse.Namespace(error=TypeError("a slip"), debug=False))
    done: list[int] = []
    command_line.run(lambda args: done.append(args.seed), argparse.Namespace(seed=3))
    assert done == [3]


@pytest.mark.parametrize(
    "option",
    ["--epochs 0", "--epochs -1", "--limit -5", "--limit 0", "--batch-size 0", "--lr 0", "--lr -1", "--lr nan"]
    + ["--lr inf", "--seed -1", "--threads 0", "--threads -2"],
)
def test_numbers_out_of_range_are_refused_before_anything_is_done(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        options(*option.split())
    assert stopped.value.code == 2 and option.split()[0] in capsys.readouterr().err


class Stream(io.StringIO):
    """A console that can print ASCII alone, or none that is there any more."""

    encoding = "ascii"  # type: ignore[assignment]
    gone = False

    def write(self, text: str) -> int:
        text.encode("ascii")
        if self.gone:
            raise BrokenPipeError
        return super().write(text)


def test_no_console_stops_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one without a letter, nor one that is closed, nor none; programs and runs alike."""
    args = argparse.Namespace(debug=False)
    for stream in (Stream(), io.StringIO(), None):
        monkeypatch.setattr("sys.stdout", stream)
        if isinstance(stream, Stream):
            Run(tmp_path / "\u732b", {}, {}).end_epoch(0.1, 0.5)
            Run(tmp_path / "\u732b", {}, {}, resume=True)
            command_line.run(lambda args: print("\u732b caf\xe9 \udce9"), args)
            assert "\\u732b caf\\xe9 \\udce9" in stream.getvalue() and "resumed" in stream.getvalue()
            stream.gone = True
        elif stream is not None:
            stream.close()
        command_line.run(lambda args: print("lost output"), args)
        Run(tmp_path / "other", {}, {}).end_epoch(0.1, 0.5)


@pytest.mark.parametrize("step", ["mkdir", "rename"])
def test_an_earlier_run_that_cannot_be_moved_is_named_and_stays(tmp_path, monkeypatch, step):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.csv").write_text("epoch")

    def refused(*arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"out cannot be moved .*\(Permission denied\)"):
        patch.setattr(Path if step == "mkdir" else os, step, refused)
        keep_earlier(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["metrics.csv"]


def test_a_size_of_one_pixel_is_a_size():
    parser = argparse.ArgumentParser()
    command_line.add_img_size(parser)
    assert parser.parse_args(["--img-size", "1"]).img_size == 1
    with pytest.raises(SystemExit):
        parser.parse_args(["--img-size", "0"])


def test_one_epoch_is_enough_and_none_is_not():
    parser = argparse.ArgumentParser()
    command_line.add_mnist_options(parser, PRESETS)
    assert parser.parse_args(["--epochs", "1"]).epochs == 1
    with pytest.raises(SystemExit):
        parser.parse_args(["--epochs", "0"])


def test_the_table_of_presets_has_each_number_below_its_name():
    rows = [line.split() for line in presets.table().splitlines()]
    assert rows[0] == ["model", "preset", "epochs", "batch", "size", "lr", "held", "out"]
    assert rows[1] == ["vit", "default", "16", "128", "0.002", "1000"]
