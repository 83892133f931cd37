"""The first logits of a process: time from its start, its peak memory, and what has to be installed.

Each run is a process of its own: it imports the library, reads the model from its file, and infers one batch. minivit
reads safetensors, ONNX Runtime and OpenVINO the exported ONNX file, PyTorch a state dictionary. Files are in the
system's cache, because an earlier run of each side, which is not counted, has read them.

    python benchmarks/first_logits.py                                # ViT-B/16 and Swin-T, one image
    python benchmarks/first_logits.py --case vit-b16-b8 --json out.json
"""

from __future__ import annotations

import argparse
import importlib.metadata as metadata
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, Case, read_start
from turns import HERE, environment, make_start

SIDES = {  # and the packages that each needs
    "minivit": ("numpy", "safetensors", "threadpoolctl"),
    "minivit: prepared": ("numpy", "safetensors", "threadpoolctl"),
    "ONNX Runtime": ("onnxruntime",),
    "OpenVINO": ("openvino",),
    "PyTorch": ("torch",),
}


def write_files(case: Case, folder: Path, threads: int) -> Path:
    """The start file, and beside it the model for each side."""
    start = folder / "start.npz"
    make_start(case, threads, start)
    for script in (["runtime_side.py", case.name, str(start)], ["first_logits.py", "--write", case.name, str(start)]):
        command = [sys.executable, str(HERE / script[0]), *script[1:]]
        subprocess.run(command, env=environment(threads), check=True, stdout=subprocess.DEVNULL)
    return start


def write(case: Case, start: Path) -> None:
    """minivit's file and PyTorch's, of the start's weights."""
    import torch

    from minivit import models, save

    model = getattr(models, case.architecture.name)(**case.model)
    weights = read_start(start).weights
    model.load_state_dict(weights)
    save(model, start.with_suffix(".safetensors"))
    torch.save({name: torch.from_numpy(array) for name, array in weights.items()}, start.with_suffix(".pt"))


def first_logits(side: str, case: Case, start: Path, threads: int) -> float:
    """What a fresh process does; the sum of the logits, so that nothing is left out."""
    with np.load(start) as file:
        images = file["images"]
    if side.startswith("minivit"):
        import minivit

        model = minivit.from_pretrained(start.with_suffix(".safetensors"))
        if side == "minivit: prepared":
            model = minivit.prepare(model)
        return float(model.predict(images).sum())
    if side == "PyTorch":
        import torch
        from torch_side import MODELS

        torch.set_num_threads(threads)
        network = MODELS[case.architecture.name](case.model, "sdpa")
        network.load_state_dict(torch.load(start.with_suffix(".pt")))
        with torch.inference_mode():
            return float(network.eval()(torch.from_numpy(images)).sum())
    from runtime_side import LOADERS, onnx_path

    run, _ = LOADERS[side](str(onnx_path(start)), threads, "default")
    return float(run(images).sum())


def run(side: str, case: Case, start: Path, threads: int) -> tuple[float, int]:
    """Seconds to the first logits, and the process's peak memory in bytes."""
    command = [sys.executable, str(HERE / "first_logits.py"), "--side", side, case.name, str(start), str(threads)]
    begin = time.perf_counter()
    with subprocess.Popen(command, env=environment(threads), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        seconds = time.perf_counter() - begin
        return seconds, int(process.stdout.readline())


def peak() -> int:
    """The most bytes of this process that were resident (Linux)."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]


def installed(names: tuple[str, ...]) -> int:
    """Bytes of packages and of all that they require."""
    waiting, seen, size = list(names), set(), 0
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:  # only needed elsewhere
            continue
        size += _bytes(Path(str(each.locate())) for each in found.files or ())
        needed = [each for each in found.requires or () if "extra ==" not in each]
        waiting += [re.match(r"[\w.-]+", each)[0] for each in needed]  # type: ignore[index]
    return size


def _bytes(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".pyc")


def measure(case: Case, rounds: int, threads: int) -> list[dict[str, Any]]:
    """A row for each side."""
    with tempfile.TemporaryDirectory() as folder:
        start = write_files(case, Path(folder), threads)
        for side in SIDES:  # not counted
            run(side, case, start, threads)
        turns = [[run(side, case, start, threads) for side in SIDES] for _ in range(rounds)]
    rows = []
    for side, runs in zip(SIDES, zip(*turns)):
        seconds = np.percentile([each[0] for each in runs], (25, 50, 75))
        size = installed(SIDES[side])
        if side.startswith("minivit"):
            size += _bytes((HERE.parent / "minivit").rglob("*"))
        most = float(np.median([each[1] for each in runs]))
        rows.append({"case": case.name, "side": side, "seconds": seconds.tolist(), "peak_bytes": most, "size": size})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=[name for name, c in CASES.items() if c.task == "infer"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(CASES[options.write[0]], Path(options.write[1]))
    elif options.side:
        side, case, start, threads = options.side
        print(first_logits(side, CASES[case], Path(start), int(threads)), flush=True)
        print(peak(), flush=True)
    else:
        report(options)


def report(options: argparse.Namespace) -> None:
    rows = []
    for name in options.case or ["vit-b16-b1", "swin-t-b1"]:
        rows += measure(CASES[name], options.rounds, options.threads)
    print("| case | side | first logits, s | peak MiB | installed MB |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        low, median, high = row["seconds"]
        numbers = f"{median:.2f} ({low:.2f} to {high:.2f}) | {row['peak_bytes'] / 2**20:.0f} | {row['size'] / 1e6:.0f}"
        print(f"| `{row['case']}` | {row['side']} | {numbers} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
