"""Command lines of training programs: common options, and errors as one line."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minivit import distributed
from minivit.device import check_device
from minivit.fast.half import PRECISIONS
from minivit.io.text import printable
from minivit.train.console import Console, flush_or_discard
from minivit.train.folder import load_checkpoint, resumable


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: integers of at least `least`."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small: choose at least {least}")
        return value

    number.__name__ = "int"  # argparse prints it where the text is not a number
    return number


def above_zero(text: str) -> float:
    """An argparse type: finite numbers above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return value


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help in which every option says its default, unless it has none or its own words for it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default is None or action.default is False or "default" in (action.help or "")
        return action.help if said else super()._get_help_string(action)


def parser(
    description: str | None, *, data: str, out: str, limit: str = "use only the first N training images"
) -> argparse.ArgumentParser:
    """A parser with the options of every run and `--debug`; a program adds its own.

    Args:
        description: the program's docstring.
        data, out, limit: as in `add_options`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=Help)
    add_options(parser, data=data, out=out, limit=limit)
    add_debug(parser)
    return parser


def add_options(
    parser: argparse.ArgumentParser,
    *,
    data: str,
    out: str,
    limit: str = "use only the first N training images",
    defaults: Mapping[str, object] | None = None,
) -> None:
    """Add the options of every run to a parser.

    Args:
        data: help text of `--data`.
        out: default of `--out`.
        limit: help text of `--limit N`.
        defaults: what the help says that epochs, batch_size and lr are where they are not given; else the preset's.
    """
    said = defaults or dict.fromkeys(("epochs", "batch_size", "lr"), "the preset's")
    parser.add_argument("--data", help=data)
    parser.add_argument("--out", default=out, help="folder for checkpoint, metrics and model")
    epochs, batch_size, lr = (f"(default: {said[name]})" for name in ("epochs", "batch_size", "lr"))
    parser.add_argument("--epochs", type=at_least(1), help=f"passes over the training images {epochs}")
    parser.add_argument("--batch-size", type=at_least(1), help=f"images per step {batch_size}")
    parser.add_argument("--lr", type=above_zero, help=f"peak learning rate {lr}")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of initial weights, order of the images, and noise"
    )
    parser.add_argument("--threads", type=at_least(1), help="default: the cores that this process may use")
    parser.add_argument(
        "--shards",
        type=at_least(1),
        metavar="N",
        help="parts of a batch; with it the result has the same bits on any number of ranks "
        "(default: as the threads need; under mpiexec 8)",
    )
    add_device(parser)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32", help="of activations, with --device gpu")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help=f"{limit} (default: all)")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add `--device`; `run` refuses one that is not there before anything is loaded."""
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="what computes")


def add_img_size(parser: argparse.ArgumentParser) -> None:
    """Add `--img-size`."""
    meaning = "side of the images in pixels (default: the model's)"
    parser.add_argument("--img-size", type=at_least(1), metavar="N", help=meaning)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add `--debug`, which `run` reads."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_mnist_options(parser: argparse.ArgumentParser, presets: Mapping[str, Mapping[str, object]]) -> None:
    """Add the options of a program that trains on MNIST: those of `add_options`, `--model` and `--preset`.

    Args:
        presets: {model: {preset: ...}}; the first model is the default, and each has its own choice of presets.
    """
    first, names = next(iter(presets)), {name: None for each in presets.values() for name in each}
    found = "folder with the four MNIST files (default: cache, download, or the subset)"
    parser.add_argument("--model", choices=presets, default=first, help="what to train")
    parser.add_argument("--preset", choices=names, help="hyperparameters (default: by the data that is found)")
    add_options(parser, data=found, out="runs/mnist_MODEL")


def check_mnist_options(args: argparse.Namespace, presets: Mapping[str, Mapping[str, object]]) -> None:
    """Put the model into the name of the folder.

    Raises:
        ValueError: a preset that the model does not have.
    """
    if args.preset is not None and args.preset not in presets[args.model]:
        choices = " or ".join(presets[args.model])
        raise ValueError(f"--model {args.model} has no preset {args.preset}: choose {choices}")
    args.out = args.out.replace("MODEL", args.model)


def mnist_options(description: str | None, presets: Mapping[str, Mapping[str, object]]) -> argparse.Namespace:
    """What the command line says to a program that trains on MNIST.

    Args:
        description: the program's docstring.
        presets: see `add_mnist_options`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=Help)
    add_mnist_options(parser, presets)
    add_debug(parser)
    args = parser.parse_args()
    try:
        check_mnist_options(args, presets)
    except ValueError as error:
        parser.error(str(error))
    return args


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The named options that were given a value."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options that a resumed run must have again, beside its preset."""
    return {"seed": args.seed} | ({} if args.precision == "float32" else {"precision": args.precision})


# what a program's user can do something about; anything else is a fault of the program
EXPECTED = (ValueError, RuntimeError, FloatingPointError, OSError, ImportError, MemoryError)


def one_line(error: Exception) -> str:
    """What an error says, on one line and fit for a terminal; the type of an unexpected one stands before it."""
    text = printable(" ".join(str(error).split()))
    return text if text and isinstance(error, EXPECTED) else f"{type(error).__name__}: {text}"


def interruption(args: argparse.Namespace) -> str:
    """What Ctrl-C leaves of a program, in words."""
    kept = getattr(args, "resume", None) is not None and resumable(Path(args.out))
    return "interrupted; the last checkpoint is kept: add --resume to continue" if kept else "interrupted"


def join(args: argparse.Namespace) -> distributed.Ranks:
    """The ranks of a run with these options. A resumed run has the number of shards that was saved with it.

    Raises:
        ValueError, ImportError, RuntimeError: as of `distributed.join`.
    """
    shards = getattr(args, "shards", None)
    rank = distributed.launched_rank()
    if shards is None and args.resume and rank in (None, 0) and resumable(Path(args.out)):
        settings = load_checkpoint(Path(args.out), lambda text: None)[1].get("settings")
        saved = settings.get("shards") if isinstance(settings, dict) else None
        shards = saved if isinstance(saved, int) and saved > 0 else None
    return distributed.join(shards, args.device)


def run(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Call main(args); an error becomes one line on stderr and exit code 1; `--debug` prints its traceback.

    `--device` is checked before anything is loaded, under mpiexec by `join`, since a process that forks may not have
    used a GPU. Characters that the console cannot print are escaped, and a closed console does not stop the run.
    """
    stdout = sys.stdout
    try:
        first = distributed.launched_rank() in (None, 0)  # of several ranks only one prints
        with contextlib.redirect_stdout(Console(stdout if first else None)):
            if distributed.launched_rank() is None:
                check_device(getattr(args, "device", "cpu"))
            main(args)
    except EXPECTED as error:
        if getattr(args, "debug", False):
            raise
        if distributed.launched_rank() is not None:
            distributed.fail(f"error: {one_line(error)}")
        raise SystemExit(f"error: {one_line(error)}") from None
    except KeyboardInterrupt:
        if distributed.launched_rank() is not None:
            distributed.fail(interruption(args))
        raise SystemExit(interruption(args)) from None
    finally:
        flush_or_discard(stdout)
