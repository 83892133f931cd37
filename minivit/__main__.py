"""`python -m minivit`: list the published sizes, sum up a model, look into a file of weights, and convert one.

Nothing is computed here that the library does not offer; read it to see which call does what.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import hashlib
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from minivit.io.safetensors import CheckpointError
from minivit.io.text import printable
from minivit.io.weights import read_weights, shards_of
from minivit.models import configs, create_model, list_models
from minivit.pretrained import export, from_pretrained
from minivit.pretrained.layouts import LAYOUTS
from minivit.pretrained.plan import plan_of
from minivit.pretrained.recognition import Recognized, recognize
from minivit.summary import summary
from minivit.version import __version__

BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell reports a program that wrote to nobody


def models(args: argparse.Namespace) -> None:
    """The names of `list_models()`, with class and image size; nothing is built."""
    sizes = dict(configs.published())
    names = [name for name in list_models() if fnmatch.fnmatchcase(name, f"*{args.pattern.lower()}*")]
    if not names:
        raise ValueError(f"no model has {args.pattern!r} in its name: `models` alone lists all {len(sizes)}")
    _table([("name", "class", "image"), *((name, _kind(sizes[name]), str(sizes[name]["img_size"])) for name in names)])


def _kind(config: dict[str, Any]) -> str:
    return "SwinV2" if "pretrained_window_sizes" in config else "Swin" if "depths" in config else "ViT"


def summarize(args: argparse.Namespace) -> None:
    """`minivit.summary` of a fresh model of a published size, or of the model in a file."""
    asked = {name: getattr(args, name) for name in ("img_size", "num_classes") if getattr(args, name) is not None}
    path = Path(args.model)
    if args.model not in list_models() and (path.exists() or path.suffix or path.name != args.model):
        summary(from_pretrained(path, report=_note, **asked))
    else:
        summary(create_model(args.model, **asked))


def inspect(args: argparse.Namespace) -> None:
    """What a file holds, and which model that makes."""
    found = recognize(read_weights(args.file))
    arrays = found.weights.arrays
    arguments = _arguments(found)
    dtypes = Counter(str(array.dtype) for array in arrays.values())
    lines = [
        *(("file", text) for text in _files(found.weights.path)),
        ("source", found.source),
        ("class", found.model),
        ("arguments", arguments),
        ("arrays", f"{len(arrays)}: " + ", ".join(f"{count} of {dtype}" for dtype, count in dtypes.items())),
        ("parameters", f"{sum(array.size for array in found.arrays.values()):,}"),
        ("not learned", f"{len(found.buffers)} arrays"),
        ("unknown", f"{len(found.unknown)} names" + "".join(f", {_shown(name)}" for name in found.unknown[:5])),
    ]
    for label, text in lines:
        print(f"{label:<12}{text}")
    if args.tensors:
        largest = sorted(arrays.items(), key=lambda item: -item[1].size)[: args.tensors]
        rows = [(_shown(name), "x".join(map(str, a.shape)), str(a.dtype), f"{a.size:,}") for name, a in largest]
        print()
        _table([("largest arrays", "shape", "dtype", "numbers"), *rows])


def _arguments(found: Recognized) -> str:
    """The arguments of the class as text, as far as the file tells them."""
    try:
        arguments = plan_of(found).arguments
    except CheckpointError as error:
        return f"none, the arrays make no such model: {error}"
    values = {
        name: tuple(value) if isinstance(value, list) else value for name, value in arguments.items()
    }  # JSON's lists
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _files(path: Path) -> list[str]:
    """Path, size and SHA-256 of the file, or of an index and the shards that it names."""
    files = [path]
    if path.name.endswith(".index.json"):
        files += [path.parent / name for name in sorted(set(shards_of(path).values()))]
    return [f"{file} ({file.stat().st_size:,} bytes)\n{'':<12}SHA-256 {_sha256(file)}" for file in files]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def convert(args: argparse.Namespace) -> None:
    """Read the model in a file, and write it under the names of another project."""
    out = Path(args.output)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name the file to write")
    if out.exists() and not args.force:
        raise ValueError(f"{out} exists: say --force to replace it")
    model = from_pretrained(args.input, dtype=args.dtype, report=_note, **dict(args.set))
    export(model, out, args.layout)
    count = sum(param.size for param in model.parameters().values())
    print(f"{out}: {type(model).__name__}, {count:,} parameters, layout {args.layout}, {out.stat().st_size:,} bytes")
    try:
        twin = from_pretrained(out, dtype=args.dtype, report=lambda line: None)
    except CheckpointError as error:
        _note(f"minivit: from_pretrained cannot read it back without help: {error}")
    else:  # names and numbers are all that a file of another project holds
        lost = [f"{name}={value!r}" for name, value in model.config.items() if twin.config[name] != value]
        if lost:
            _note(f"minivit: the file does not say {', '.join(lost)}: give it to from_pretrained")


def _argument(text: str) -> tuple[str, Any]:
    """NAME=VALUE, an argument of the model: a Python value, or a word such as tanh."""
    name, _, value = text.partition("=")
    if not name.isidentifier() or not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE, such as window_size=8")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _note(line: str) -> None:
    print(line, file=sys.stderr)


def _table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())


def _shown(name: str) -> str:
    """A name from a file, fit for a terminal."""
    return name[:80] if name.isprintable() else ascii(name)[:80]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show where an error arose")
    parser = _Parser("python -m minivit", description="Vision Transformers in NumPy.", parents=[common])
    parser.add_argument("--version", action="version", version=f"minivit {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[common])
        added.set_defaults(run=run)
        return added

    one = command("models", models, "list the published sizes")
    one.add_argument("pattern", nargs="?", default="", help="part of the name; * and ? as in file names")
    one = command("summary", summarize, "stages, parameters and multiply-adds of a model")
    one.add_argument("model", metavar="NAME|FILE", help="a published size, or a file of weights")
    one.add_argument("--img-size", type=int, metavar="N", help="side of the image in pixels")
    one.add_argument("--num-classes", type=int, metavar="K", help="0 leaves the head out")
    one = command("inspect", inspect, "what a file of weights holds")
    one.add_argument("file", help="a file of weights, or a folder with one")
    one.add_argument("--tensors", type=int, default=8, metavar="N", help="how many of the largest arrays to list (8)")
    one = command("convert", convert, "write a file of weights under another project's names")
    one.add_argument("input", help="a file of weights, or a folder with one")
    one.add_argument("output", help="the file to write")
    one.add_argument("--layout", required=True, choices=sorted({layout.source for layout in LAYOUTS}))
    one.add_argument("--dtype", default="float32", choices=["float32", "float64"], help="of the arrays (float32)")
    one.add_argument(
        "--set",
        action="append",
        type=_argument,
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the model that the file does not show, such as window_size=8; may be given several times",
    )
    one.add_argument("--force", action="store_true", help="replace the file if it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a file that does not load, 2 for a wrong call."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()  # so that a broken pipe shows here and not at exit
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still in the buffer goes nowhere
        return BROKEN_PIPE
    except Exception as error:
        if "debug" in args:
            traceback.print_exc()
        wrong_call = isinstance(error, ValueError) and not isinstance(error, CheckpointError)
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        _note(f"error: {kind}{printable(' '.join(str(error).split()))}")
        return 2 if wrong_call else 1


if __name__ == "__main__":
    sys.exit(main())
