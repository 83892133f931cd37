"""Draw a digit in a page, and see a model read it, its backward pass, and one step of training.

    minivit lab                                # trains the default model first, where there is none yet
    minivit lab --weights runs/mnist_swin      # any model of this library, or published weights

The page runs on this machine alone. What it shows is described in docs/lab.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

from minivit import data
from minivit.io.weights import read_weights
from minivit.lab import Lab
from minivit.lab.lab import Digits
from minivit.lab.server import Server
from minivit.programs import classifier
from minivit.train import command_line
from minivit.train.folder import resumable
from minivit.train.presets import PRESETS


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `minivit lab`."""
    first = next(iter(PRESETS))
    parser.add_argument("--weights", metavar="FILE", help="a file or folder of weights (default: --out, trained first)")
    parser.add_argument("--labels", metavar="FILE", help="one label a line, or JSON (default: config.json beside FILE)")
    parser.add_argument("--profile", help="project whose settings are used (default: the one that wrote FILE)")
    parser.add_argument("--model", choices=PRESETS, default=first, help="what to train where there is no model")
    parser.add_argument("--out", default="runs/mnist_MODEL", help="folder of the model that is trained")
    parser.add_argument("--epochs", type=command_line.at_least(1), help="of that training (default: the preset's)")
    parser.add_argument("--limit", type=command_line.at_least(1), metavar="N", help="of its images (default: all)")
    parser.add_argument("--data", help="folder with the four MNIST files (default: cache, download, or the subset)")
    parser.add_argument("--port", type=command_line.at_least(0), default=0, help="0 is a free one")
    parser.add_argument(
        "--site", default="", metavar="ADDRESS", help="of the built documentation, for the page's links"
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, and open no browser")


def main(args: argparse.Namespace) -> None:
    """Serve the lab until Ctrl-C."""
    if args.port > 65535:
        raise ValueError(f"--port {args.port}: ports end at 65535, and 0 takes a free one")
    with Server(lambda report: _make(args, report), args.port, args.site) as server:
        print(f"the lab is at {server.address}\nCtrl-C ends it", flush=True)
        if not args.no_browser:
            webbrowser.open(server.address)
        server.serve()


def _make(args: argparse.Namespace, report: Callable[[str], None]) -> Lab:
    """Load the model, after training it if there is none."""
    args.device, args.invert = "cpu", False
    if args.weights is None:
        folder = Path(args.out.replace("MODEL", args.model))
        if not (folder / "model.safetensors").exists():
            train(args, folder, report)
        args.weights = str(folder)
    report("loading the model")
    found = classifier.load(args)
    config = found.model.config
    digits = None
    if (config["in_chans"], config["img_size"], len(found.labels)) == (1, 28, 10):
        report("loading the test images")
        digits = _digits(args.data)
    labels = [str(digit) for digit in range(10)] if digits and found.labels[0] == "class 0" else found.labels
    source = read_weights(args.weights).path if Path(args.weights).exists() else args.weights
    return Lab(found.model, labels, found.prepare.mean, found.prepare.std, digits, str(source))


def _digits(folder: str | None) -> Digits | None:
    try:
        mnist = data.load_mnist(folder, quiet=True)
    except data.DataError:
        return None
    return Digits(mnist.test_images, mnist.test_labels, mnist.kind)


def train(args: argparse.Namespace, folder: Path, report: Callable[[str], None]) -> None:
    """Run `minivit train` in a process of its own, and report each line that it prints.

    Raises:
        RuntimeError: with its last line, if it fails.
    """
    command = [sys.executable, "-m", "minivit", "train", "--model", args.model, "--out", str(folder)]
    for name in ("epochs", "limit", "data"):
        if getattr(args, name) is not None:
            command += [f"--{name}", str(getattr(args, name))]
    if resumable(folder):
        command.append("--resume")
    report(f"no model in {folder}: it is trained first")
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    last = ""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True, errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = line.strip() or last
                report(f"training in {folder}: {last}")
        finally:
            process.terminate()
    if process.returncode:
        raise RuntimeError(f"training in {folder} failed: {last}")
