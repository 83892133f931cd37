"""Command lines of programs that train: the options that they share, and errors as one line."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minivit import distributed
from minivit.device import check_device
from minivit.train.console import Console
from minivit.train.folder import load_checkpoint, resumable


def at_least(least: int) -> Callable[[str], int]:
    """A type of options: whole numbers from `least` on; others are refused before anything is done."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small: choose at least {least}")
        return value

    number.__name__ = "int"  # argparse names it where the text is no number
    return number


def above_zero(text: str) -> float:
    """A type of options: finite numbers above 0."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{value} is not a number above 0")
    return value


def parser(
    description: str | None, *, data: str, out: str, limit: str = "use only the first N training images"
) -> argparse.ArgumentParser:
    """A parser with the options of every run; a program adds its own.

    Args:
        description: the program's docstring.
        data: help text of `--data`.
        out: default of `--out`.
        limit: help text of `--limit N`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help=data)
    parser.add_argument("--out", default=out, help=f"folder for checkpoint, metrics and model (default: {out})")
    parser.add_argument("--epochs", type=at_least(1), help="passes over the training images")
    parser.add_argument("--batch-size", type=at_least(1), help="images per step")
    parser.add_argument("--lr", type=above_zero, help="peak learning rate")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of initial weights, order of the images, and noise"
    )
    parser.add_argument("--threads", type=at_least(1), help="default: the cores that this process may use")
    parser.add_argument(
        "--shards",
        type=at_least(1),
        metavar="N",
        help="parts of a batch; with it the result has the same bits on any number of ranks (default under mpiexec: 8)",
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help=limit)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def mnist_options(description: str | None, presets: Mapping[str, Mapping[str, object]]) -> argparse.Namespace:
    """The options of a program that trains on MNIST: those of `parser`, `--model` and `--preset`.

    Args:
        description: the program's docstring.
        presets: {model: {preset: ...}}; the first model is the default, and each has its own choice of presets.
    """
    first, names = next(iter(presets)), {name: None for each in presets.values() for name in each}
    found = "folder with the four MNIST files (default: cache, download, or the subset)"
    options = parser(description, data=found, out="runs/mnist_MODEL")
    options.add_argument("--model", choices=presets, default=first, help=f"what to train (default: {first})")
    options.add_argument("--preset", choices=names, help="hyperparameters (default: by the data that is found)")
    args = options.parse_args()
    if args.preset is not None and args.preset not in presets[args.model]:
        choices = " or ".join(presets[args.model])
        options.error(f"--model {args.model} has no preset {args.preset}: choose {choices}")
    args.out = args.out.replace("MODEL", args.model)
    return args


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the named options that were given a value."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def join(args: argparse.Namespace) -> distributed.Ranks:
    """The ranks of a run with these options. A resumed run has the number of shards that was saved with it.

    Raises:
        ValueError: ranks or shards on a GPU, and as of `distributed.join`.
    """
    shards = getattr(args, "shards", None)
    rank = distributed.launched_rank()
    if args.device == "gpu" and (shards or rank is not None):
        raise ValueError("ranks compute on CPUs: leave out --device gpu, or mpiexec and --shards")
    if shards is None and args.resume and rank in (None, 0) and resumable(Path(args.out)):
        settings = load_checkpoint(Path(args.out), lambda text: None)[1].get("settings")
        saved = settings.get("shards") if isinstance(settings, dict) else None
        shards = saved if isinstance(saved, int) and saved > 0 else None
    return distributed.join(shards)


def run(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Call main(args); an error becomes one line on stderr and exit code 1, unless `--debug` asks for its traceback.

    Whether `--device` is there is asked first, before anything is loaded. Whatever the console cannot print is escaped,
    and a console that is gone stops nothing.
    """
    stdout = sys.stdout
    try:
        first = distributed.launched_rank() in (None, 0)  # of several ranks only one prints
        with contextlib.redirect_stdout(Console(stdout if first else None)):
            check_device(getattr(args, "device", "cpu"))
            main(args)
    except (ValueError, RuntimeError, FloatingPointError, OSError, ImportError, MemoryError) as error:
        if args.debug:
            raise
        if distributed.launched_rank() is not None:
            distributed.fail(f"error: {error}")
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        kept = getattr(args, "resume", None) is not None and resumable(Path(args.out))
        message = "interrupted; the last checkpoint is kept: add --resume to continue" if kept else "interrupted"
        if distributed.launched_rank() is not None:
            distributed.fail(message)
        raise SystemExit(message) from None
    finally:
        try:
            stdout.flush()
        except (OSError, ValueError, AttributeError):  # so that Python does not fail with it at its end
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
