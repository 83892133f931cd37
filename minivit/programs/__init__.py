"""The programs of the command `minivit`, one file for each word that follows it; `minivit/__main__.py` starts them.

Each has `add_options(parser)` and `main(args)`. Nothing is computed here that the library does not offer: read one to
see which call does what.
"""

from __future__ import annotations

import sys

# in the order of the help
COMMANDS = {
    "train": "train a model on handwritten digits",
    "classify": "name what images show",
    "explain": "draw what a classification depends on",
    "lab": "draw a digit, see attention and gradients",
    "finetune": "train a pretrained model on your own images",
    "probe": "measure a model's features: nearest neighbors, linear probe",
    "models": "list the published sizes",
    "summary": "stages, parameters and multiply-adds of a model",
    "inspect": "what a file of weights holds",
    "convert": "write a file of weights under another project's names",
    "info": "versions, matrix library, cores and GPU",
}
UNATTENDED = ("train", "finetune")  # what counts is the files that they leave: a closed output does not stop them


def note(line: str) -> None:
    """Say something besides the output."""
    print(line, file=sys.stderr)
