"""The command `minivit`, also `python -m minivit`: runs the requested program, and reports its errors."""

from __future__ import annotations

import argparse
import contextlib
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from minivit import distributed
from minivit.data import DataError
from minivit.device import check_device
from minivit.io.safetensors import CheckpointError
from minivit.programs import COMMANDS, UNATTENDED, note
from minivit.train.command_line import Help, interruption, one_line
from minivit.train.console import Console, flush_or_discard
from minivit.version import __version__

BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports a program whose reader has gone
INTERRUPTED = 130  # 128 + SIGINT


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        missing = message.startswith("the following arguments are required")
        self.exit(2, f"error: {message}{f'; `{self.prog} --help` explains them' if missing else ''}\n")


def _parser(named: str | None) -> argparse.ArgumentParser:
    """The parser, with the options of the program that is named: the others are not imported."""
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show where an error arose")
    parser = _Parser("minivit", parents=[common], formatter_class=Help)
    parser.description = "Vision Transformers in pure NumPy."
    parser.epilog = "`minivit COMMAND --help` lists the options of a command."
    parser.add_argument("--version", action="version", version=f"minivit {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        added = commands.add_parser(name, help=text, parents=[common], formatter_class=Help)
        if name == named:
            program = import_module(f"minivit.programs.{name}")
            added.description = program.__doc__
            program.add_options(added)
            added.set_defaults(main=program.main)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a file that does not load, 2 for a wrong call.

    Without arguments it prints its help. What the console cannot print is escaped.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    named = next((word for word in words if not word.startswith("-")), None)
    stdout = sys.stdout
    try:
        shown = stdout if distributed.launched_rank() in (None, 0) else None  # of several ranks only one prints
        with contextlib.redirect_stdout(Console(shown, needed=named not in UNATTENDED)) as console:
            code = _run(words or ["--help"], named)
            console.flush()  # so that a broken pipe shows here and not at exit
            return code
    except BrokenPipeError:
        return BROKEN_PIPE
    finally:
        flush_or_discard(stdout)


def _run(words: list[str], named: str | None) -> int:
    try:
        args = _parser(named).parse_args(words)
    except SystemExit as stop:  # after --help and --version too
        return int(stop.code or 0)
    try:
        check_device(getattr(args, "device", "cpu"))
        args.main(args)
        return 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        if distributed.launched_rank() is not None:
            distributed.fail(interruption(args))
        note(interruption(args))
        return INTERRUPTED
    except Exception as error:
        if "debug" in args:
            traceback.print_exc()
        if distributed.launched_rank() is not None:
            distributed.fail(f"error: {one_line(error)}")
        note(f"error: {one_line(error)}")
        wrong_call = isinstance(error, ValueError) and not isinstance(error, CheckpointError | DataError)
        return 2 if wrong_call else 1


if __name__ == "__main__":
    sys.exit(main())
