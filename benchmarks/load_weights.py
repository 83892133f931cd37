"""How long loading ViT-B/16 takes, measured against reading its 330 MB alone, and how much memory it needs.

    python benchmarks/load_weights.py

Each turn is a process of its own, the ways in turn, on files that are in the system's cache: the disk is not measured.
Reading is one `read` of the whole file into fresh memory. Memory is the peak above what the process had before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from memory import Meter

import minivit

NAME = "vit_base_patch16_224"
# what is timed, on which file
WAYS = {
    "read": ("timm.safetensors", "read the file"),
    "read pth": ("vit.pth", "read the file"),
    "read npz": ("google.npz", "read the file"),
    "from_pretrained, timm's safetensors": ("timm.safetensors", "from_pretrained"),
    "load into a model, the same": ("timm.safetensors", "load"),
    "from_pretrained, minivit's own, SHA-256 checked": ("minivit.safetensors", "from_pretrained"),
    "from_pretrained, .pth": ("vit.pth", "from_pretrained"),
    "from_pretrained, Google's .npz": ("google.npz", "from_pretrained"),
}
BASES = {".safetensors": "read", ".pth": "read pth", ".npz": "read npz"}


def files(folder: Path) -> list[str]:
    """The files, from random weights; the .pth needs PyTorch to write it and is left out without."""
    model = minivit.create_model(NAME)
    minivit.save(model, folder / "minivit.safetensors")
    minivit.export(model, folder / "timm.safetensors")
    minivit.export(minivit.create_model(NAME, gelu="tanh"), folder / "google.npz", "google")
    try:
        import torch

        state = {name: torch.from_numpy(array) for name, array in model.state_dict().items()}
        torch.save(state, folder / "vit.pth")
    except ImportError:
        pass
    return [way for way, (file, _) in WAYS.items() if (folder / file).exists()]


def turn(what: str, path: Path) -> dict[str, Any]:
    """Seconds and peak memory of one way, in this process."""
    model = minivit.create_model(NAME) if what == "load" else None
    small = path.with_name("small.safetensors")
    minivit.from_pretrained(small)  # first-use work: imports, the list of sizes
    actions: dict[str, Callable[[], Any]] = {
        "read the file": path.read_bytes,
        "from_pretrained": lambda: minivit.from_pretrained(path),
        "load": lambda: minivit.load(model, path),
    }
    meter = Meter()
    start = time.perf_counter()
    kept = actions[what]()
    seconds = time.perf_counter() - start
    found = meter.read()
    del kept
    return {"seconds": seconds, "added": found["added"] if found else None}


def measure(rounds: int) -> list[dict[str, Any]]:
    """A row for each way: medians, quartiles of the ratio to reading, peak over size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ways = files(folder)
        minivit.save(minivit.create_model("test_vit"), folder / "small.safetensors")
        for file in folder.iterdir():
            file.read_bytes()
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                file, what = WAYS[way]
                command = [sys.executable, __file__, "--turn", what, str(folder / file)]
                found[way].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        rows = []
        for way in ways:
            path = folder / WAYS[way][0]
            seconds = np.array([each["seconds"] for each in found[way]])
            base = np.array([each["seconds"] for each in found[BASES[path.suffix]]])
            added = [each["added"] for each in found[way] if each["added"] is not None]
            rows.append(
                {
                    "way": way,
                    "median_ms": float(np.median(seconds) * 1e3),
                    "ratio": float(np.median(seconds) / np.median(base)),
                    "ratio_quartiles": [float(value) for value in np.percentile(seconds / base, (25, 75))],
                    "peak_over_size": float(np.median(added) / path.stat().st_size) if added else None,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns of each way (9)")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    parser.add_argument("--turn", nargs=2, metavar=("WHAT", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.turn:
        print(json.dumps(turn(args.turn[0], Path(args.turn[1]))))
        return
    rows = measure(args.rounds)
    print(f"{'':48}{'median ms':>10}{'ratio':>7}  {'quartiles':14}{'peak / size':>11}")
    for row in rows:
        low, high = row["ratio_quartiles"]
        peak = f"{row['peak_over_size']:.2f}" if row["peak_over_size"] is not None else "-"
        print(f"{row['way']:48}{row['median_ms']:10.0f}{row['ratio']:7.2f}  {low:.2f} to {high:.2f}  {peak:>11}")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
