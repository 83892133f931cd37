"""The arguments behind every published name and every preset: another value is another model, or another training.

The names were compared with timm (tests/parity/test_timm_names.py), and the presets trained what README says. After a
change on purpose compare and train again, and then `python tests/test_arguments.py` writes the file again.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from minivit.models.configs import class_of, published
from minivit.train.presets import PRESETS

ARGUMENTS = Path(__file__).parent / "golden" / "arguments.txt"


def arguments() -> Iterator[str]:
    """A line for each name and preset."""
    for name, config in published():
        yield f"{name}: {class_of(name)} {dict(sorted(config.items()))}"
    for model, presets in PRESETS.items():
        for name, preset in presets.items():
            yield f"{model} {name}: {asdict(preset)}"


def test_every_name_and_preset_has_its_arguments() -> None:
    assert ARGUMENTS.read_text("utf-8").splitlines() == list(arguments())


if __name__ == "__main__":
    ARGUMENTS.write_text("\n".join(arguments()) + "\n", "utf-8")
    print(f"wrote {ARGUMENTS}")
    sys.exit()
