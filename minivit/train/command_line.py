"""Command lines of training programs: common options, and errors as one line."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from minivit.device import check_device
from minivit.train.console import Console
from minivit.train.folder import resumable


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
    """The named options that were given a value."""
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def run(main: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Call main(args); an error becomes one line on stderr and exit code 1; `--debug` prints its traceback.

    `--device` is checked before anything is loaded. Characters that the console cannot print are escaped, and a closed
    console does not stop the run.
    """
    stdout = sys.stdout
    try:
        with contextlib.redirect_stdout(Console(stdout)):
            check_device(getattr(args, "device", "cpu"))
            main(args)
    except (ValueError, RuntimeError, FloatingPointError, OSError, ImportError, MemoryError) as error:
        if args.debug:
            raise
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        kept = getattr(args, "resume", None) is not None and resumable(Path(args.out))
        message = "interrupted; the last checkpoint is kept: add --resume to continue" if kept else "interrupted"
        raise SystemExit(message) from None
    finally:
        try:
            stdout.flush()
        except (OSError, ValueError, AttributeError):  # so that Python does not fail at exit
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
