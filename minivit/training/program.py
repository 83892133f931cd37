"""What the programs that train have in common: their options, and errors as one line.

Next: `mnist.py`, where all of it comes together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

Train = Callable[[argparse.Namespace], None]


def parser(description: str | None, *, data: str, out: str) -> argparse.ArgumentParser:
    """A parser with the options of every run; a program adds its own.

    Args:
        description: the program's docstring.
        data: what `--data` may be.
        out: where files go unless the command line says otherwise.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help=data)
    parser.add_argument("--out", default=out, help="folder for checkpoint, metrics, pictures and model")
    parser.add_argument("--epochs", type=int, help="passes over the data")
    parser.add_argument("--batch-size", type=int, help="images in a step")
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and noise")
    parser.add_argument("--threads", type=int, help="default: the cores that this process may use")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--limit", type=int, help="learn from so many images only")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    return parser


def run(train: Train, args: argparse.Namespace) -> None:
    """Call train(args); an error is one line on stderr and exit code 1, unless `--debug` shows where it arose."""
    try:
        train(args)
    except (ValueError, RuntimeError, FloatingPointError, OSError, ImportError) as error:
        if args.debug:
            raise
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; the last checkpoint is kept: add --resume to go on") from None
