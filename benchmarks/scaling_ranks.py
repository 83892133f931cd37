"""Speed over MPI ranks with one core each: the same batch for all (strong), and as many images for each (weak).

    python benchmarks/scaling_ranks.py                       # ViT-Ti/16 and as many ranks as there are cores
    python benchmarks/scaling_ranks.py --ranks 1 2 4 --model vit_small_patch16_224

Every number of ranks trains in processes of its own, in turn, and each repeat starts with another. Per row: images/s,
the speed-up over one rank, the share of a step that rank 0 spends in messages and in waiting for other ranks, and the
bytes that a rank sends in a step, over the least possible, 2 G (R-1)/R for G bytes of parameters.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import minivit
from minivit import distributed, optim
from minivit.fast.threads import usable_cores

UNTIMED, TIMED = 3, 10  # steps in each process


def rank(model_name: str, batch: int, shards: int) -> None:
    """What each process runs; rank 0 prints a JSON line."""
    ranks: Any = distributed.join(shards)
    model = minivit.create_model(model_name, num_classes=1000, seed=0)
    opt = ranks.optimizer(optim.AdamW(model.parameters(), no_decay=optim.no_decay(model)))
    step = ranks.data_parallel(model, opt)
    random, size = np.random.default_rng(0), model.config["img_size"]
    x = random.standard_normal((batch, 3, size, size), dtype=np.float32)
    y = random.integers(0, 1000, batch)
    seconds, talked, sent = [], [], []
    for number in range(UNTIMED + TIMED):
        ranks.wait()
        start, waited, bytes_before = time.perf_counter(), ranks.waited, ranks.sent
        opt.zero_grad()
        step.loss_and_grad(x, y, np.random.default_rng(number))
        ranks.clip_grad_norm(opt.params, 1.0)
        opt.step()
        ranks.wait()
        seconds.append(time.perf_counter() - start)
        talked.append(ranks.waited - waited)
        sent.append(ranks.sent - bytes_before)
    least = 2 * sum(param.data.nbytes for param in model.parameters().values()) * (ranks.size - 1) / ranks.size
    all_sent = ranks.gather(sent[-1])
    if ranks.first:
        timed = statistics.median(seconds[UNTIMED:])
        share = sum(talked[UNTIMED:]) / sum(seconds[UNTIMED:])
        ratio = sum(all_sent) / len(all_sent) / least if least else None
        print(json.dumps({"seconds": timed, "share": share, "ratio": ratio}))


def measured(ranks: int, model: str, batch: int, shards: int) -> dict[str, Any]:
    """One process for each rank, with one core."""
    beside = Path(sys.executable).with_name("mpiexec")
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    if mpiexec is None:
        raise SystemExit("error: mpiexec is missing: pip install mpi4py mpich")
    program = [sys.executable, __file__, "--rank", "--model", model, "--batch", str(batch), "--shards", str(shards)]
    done = subprocess.run(
        [mpiexec, "-bind-to", "core", "-n", str(ranks), *program],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"error: {ranks} ranks ended with {done.returncode}: {done.stderr}")
    return {"ranks": ranks, "batch": batch, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=32, help="images of a step (strong), and for each rank (weak)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, usable_cores()])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shards", type=int, default=4, help="of a batch, at least the ranks")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        return rank(args.model, args.batch, args.shards)
    for title, scale in (("strong", 0), ("weak", 1)):
        print(f"{title} scaling of {args.model}, {args.shards} shards, batch {args.batch}{' x ranks' * scale}")
        found: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in args.ranks}
        for repeat in range(args.repeats):
            for place in range(len(args.ranks)):
                ranks = args.ranks[(repeat + place) % len(args.ranks)]
                found[ranks].append(measured(ranks, args.model, args.batch * (ranks if scale else 1), args.shards))
        for ranks, rows in found.items():
            row = sorted(rows, key=lambda row: row["seconds"])[len(rows) // 2]
            first = statistics.median(row["batch"] / row["seconds"] for row in found[args.ranks[0]])
            speed = row["batch"] / row["seconds"]
            sent = "" if row["ratio"] is None else f"  sent / least {row['ratio']:.3f}"
            print(
                f"{ranks:4d} ranks  {speed:8.1f} images/s  {speed / first:5.2f} times  "
                f"exchange and waiting {row['share']:5.1%}{sent}"
            )
    return None


if __name__ == "__main__":
    main()
