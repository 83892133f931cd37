"""Runs that are disturbed at random: each must end with the bits of an undisturbed one, or say what is lost.

python tests/tools/kill_runs.py                    # 60 runs, with a table
python tests/tools/kill_runs.py --count 10 --seed 3
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import minivit
from minivit.io.safetensors import load_arrays
from minivit.train.folder import CHECKPOINT, PREVIOUS

KINDS = ("SIGKILL", "SIGTERM", "full disk", "two together", "damaged newest", "both damaged")
PROGRAM = """
import os, resource, sys, time
import numpy as np
import minivit
from minivit import data, optim, train
from minivit.parallel import DataParallel
from minivit.train import command_line

def main(args):
    rng = np.random.default_rng(5)
    images, labels = rng.integers(256, size=(60, 8, 8), dtype=np.uint8), rng.integers(3, size=60)
    model = minivit.ViT(8, 4, 1, 3, 8, 1, 2, drop_path_rate=0.2, seed=1)
    opt, loss = optim.AdamW(model.parameters(), threads=1), train.CountingLoss()
    step = DataParallel(model, threads=1, loss=loss)
    run = train.Run(args.out, {"seed": args.seed}, {"model": model, "optimizer": opt}, resume=args.resume, every=0.0)
    room = int(os.environ.get("ROOM_AFTER", -1))
    def batches(epoch, start):
        for batch in data.batches(images, labels, 10, seed=3, epoch=epoch, start=start):
            if run.iteration == room:  # the disk is full from now on: a write ends in the middle
                resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["ROOM"]), resource.RLIM_INFINITY))
            time.sleep(float(os.environ.get("PAUSE", 0)))
            yield batch
    train.fit(run, step, opt, batches, lambda: 0.5, epochs=3, batches_per_epoch=6, lr=0.01, warmup=2, seed=3)
    minivit.save(model, run.out / "model.safetensors")

command_line.run(main, command_line.parser("A small run.", data="none", out="run").parse_args())
"""


def start(folder: Path, *options: str, **environment: object) -> subprocess.Popen[str]:
    """The program in a folder."""
    path = os.pathsep.join([str(Path(minivit.__file__).parents[1]), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, "--out", "run", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **{name: str(value) for name, value in environment.items()}},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    printed, _ = process.communicate(timeout=300)
    return process.returncode, printed


def result(folder: Path) -> tuple[dict[str, bytes], object]:
    """Of a complete run: all weights and the state of the optimizer, and the history without its times."""
    out = folder / "run"
    arrays, content = load_arrays(out / CHECKPOINT)
    model, _ = load_arrays(out / "model.safetensors")
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in content["history"]]
    return {name: array.tobytes() for name, array in {**arrays, **model}.items()}, rows


def damage(file: Path, rng: random.Random) -> None:
    """Cut a file off, or flip a bit of it."""
    content = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        content = content[: rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def disturb(kind: str, folder: Path, rng: random.Random) -> str:
    """Start a run, disturb it, and return what is wrong already, "" if nothing is."""
    if kind == "full disk":
        code, printed = ended(start(folder, ROOM_AFTER=rng.randrange(18), ROOM=rng.randrange(200, 12000)))
        return "" if code == 1 and "error: " in printed and str(CHECKPOINT) in printed else f"{code}: {printed}"
    process = start(folder, PAUSE=0.03)
    while not (folder / "run" / CHECKPOINT).exists() and process.poll() is None:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.6))
    if kind == "two together":
        code, printed = ended(start(folder, *rng.choice([[], ["--resume"]])))
        living = process.poll() is None
        if living and (code != 1 or f"process {process.pid} on host" not in printed):
            return f"the second one: {code}: {printed}"
        if rng.random() < 0.5:
            code, printed = ended(process)
            return "" if code == 0 else f"{code}: {printed}"
    number = signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL
    process.send_signal(number)
    code, printed = ended(process)
    if code not in (0, -number, 128 + number) or (code == 143 and "continue with" not in printed):
        return f"{code}: {printed}"
    if "damaged" in kind:
        damage(folder / "run" / CHECKPOINT, rng)
    if kind == "both damaged" and (folder / "run" / PREVIOUS).exists():
        damage(folder / "run" / PREVIOUS, rng)
    return ""


def outcome(kind: str, expected: object, rng: random.Random) -> tuple[str, str]:
    """ "bit-equal", "said" or "wrong" of one run, and what was printed at its end."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fault = disturb(kind, folder, rng)
        if fault:
            return "wrong", fault
        code, printed = ended(start(folder, "--resume"))
        if code == 0:
            return ("bit-equal" if result(folder) == expected else "wrong"), printed
        says = code == 1 and "error: " in printed and ("damaged" in printed or "not a complete" in printed)
        return ("said" if says and "damaged" in kind else "wrong"), printed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        code, printed = ended(start(Path(name)))
        if code:
            raise SystemExit(printed)
        expected = result(Path(name))
    counts: Counter[tuple[str, str]] = Counter()
    for number in range(args.count):
        kind = KINDS[number % len(KINDS)]
        how, printed = outcome(kind, expected, random.Random(f"{args.seed} {number}"))
        counts[kind, how] += 1
        if how == "wrong":
            print(f"run {number}, {kind}: {printed}", flush=True)
    columns = ("bit-equal", "said", "wrong")
    print("| kind | runs | resumed bit-equal | said what is lost | wrong |\n|---|---|---|---|---|")
    for kind in KINDS:
        row = [counts[kind, how] for how in columns]
        print(f"| {kind} | {sum(row)} | " + " | ".join(map(str, row)) + " |")
    return int(any(counts[kind, "wrong"] for kind in KINDS))


if __name__ == "__main__":
    sys.exit(main())
