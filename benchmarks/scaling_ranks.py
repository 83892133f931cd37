"""Speed over MPI ranks with one core each: the same batch for all (strong), and as many images for each (weak).

    python benchmarks/scaling_ranks.py                       # ViT-Ti/16 and as many ranks as there are cores
    python benchmarks/scaling_ranks.py --ranks 1 2 4 --model vit_small_patch16_224
    python benchmarks/scaling_ranks.py --links 10:0 1:0 1:0.1 1:1 --batch 4 --shards 2 --repeats 1
    python benchmarks/scaling_ranks.py --machines 8 64 1024

Every number of ranks trains in processes of its own, in turn, and each repeat starts with another. So does one process
with as many threads as the most ranks, in which a user without MPI would train. Per row: images/s, the speed-up over
one rank, the share of a step that rank 0 spends in messages and in waiting for other ranks, and the
bytes that a rank sends in a step, over the least possible, 2 G (R-1)/R for G bytes of parameters.

--links: two ranks, with a link of so many Gbit/s and so many milliseconds of delay between them (shaped_link.py), and
what `step_seconds` expects of each. --machines: what it expects of many machines; nothing is measured.
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
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from shaped_link import missing, shaped_link

import minivit
from minivit import distributed, optim
from minivit.fast.threads import usable_cores

UNTIMED, TIMED = 3, 10  # steps in each process
COLLECTIVES = 7  # of a step: 2 gathers of 2 messages each, a maximum, and the waits for the slowest of 2 exchanges


class Link(NamedTuple):
    """What a message costs.

    Attributes:
        latency: seconds of one way of a short message.
        overhead: seconds of a processor for sending and receiving one.
        rate: bytes a second, in both directions at a time.
    """

    latency: float
    overhead: float
    rate: float


def step_seconds(compute: float, ranks: int, size: float, link: Link, ratio: float = 1.0) -> float:
    """The cost model of docs/scaling.md: T(R) = C/R + 7 log2(R) a + 4 (R-1) o + 2 w G (R-1)/(R b).

    Args:
        compute: C, seconds of a step on one rank, whose work the ranks divide evenly.
        ranks: R.
        size: G, bytes of the parameters.
        link: a, o and b.
        ratio: w, bytes sent over the least possible.
    """
    shared = 2 * ratio * size * (ranks - 1) / ranks / link.rate
    rounds = (ranks - 1).bit_length()  # of a collective message, whose rounds double what a rank knows
    return compute / ranks + COLLECTIVES * rounds * link.latency + 4 * (ranks - 1) * link.overhead + shared


def rank(model_name: str, batch: int, shards: int, untimed: int, timed: int) -> None:
    """What each process runs; rank 0 prints a JSON line. Without mpiexec, a shard for each thread."""
    ranks: Any = distributed.join(shards if distributed.launched_rank() is not None else None)
    model = minivit.create_model(model_name, num_classes=1000, seed=0)
    opt = ranks.optimizer(optim.AdamW(model.parameters(), no_decay=optim.no_decay(model)))
    step = ranks.data_parallel(model, opt)
    random, size = np.random.default_rng(0), model.config["img_size"]
    x = random.standard_normal((batch, 3, size, size), dtype=np.float32)
    y = random.integers(0, 1000, batch)
    seconds, talked, sent = [], [], []
    for number in range(untimed + timed):
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
    parameters = sum(param.data.nbytes for param in model.parameters().values())
    least = 2 * parameters * (ranks.size - 1) / ranks.size
    all_sent = ranks.gather(sent[-1])
    latency, rate = link_speed(ranks, size=sent[-1] // 2) if ranks.size == 2 else (0.0, float("inf"))
    if ranks.first:
        median = statistics.median(seconds[untimed:])
        share = sum(talked[untimed:]) / sum(seconds[untimed:])
        ratio = sum(all_sent) / len(all_sent) / least if least else None
        print(
            json.dumps(
                {
                    "seconds": median,
                    "share": share,
                    "ratio": ratio,
                    "latency": latency,
                    "rate": rate,
                    "size": parameters,
                }
            )
        )


def link_speed(ranks: Any, size: int) -> tuple[float, float]:
    """(seconds of one way of a short message, bytes a second) between two ranks that send at the same time."""

    def seconds(size: int, count: int) -> float:
        sent, received = np.zeros(size, np.uint8), np.empty(size, np.uint8)
        outgoing: list[list[Any]] = [[], []]
        incoming: list[list[Any]] = [[], []]
        outgoing[1 - ranks.rank], incoming[1 - ranks.rank] = [sent], [received]
        ranks.wait()
        start = time.perf_counter()
        for _ in range(count):  # none begins before the one before has come
            ranks.exchange(outgoing, incoming)
        return (time.perf_counter() - start) / count

    seconds(size, 1)
    short = seconds(16, 50)
    return short, size / max(1e-9, seconds(size, 5) - short)


def mpiexec() -> str:
    """Where it is."""
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise SystemExit("error: mpiexec is missing: pip install mpi4py mpich")
    return found


def measured(
    ranks: int, model: str, batch: int, shards: int, steps: tuple[int, int] = (UNTIMED, TIMED), start: Any = None
) -> dict[str, Any]:
    """One process for each rank, with one core.

    Args:
        ranks: 0 for one process with as many threads as it may use.
        start: the beginning of the command; this machine's mpiexec by default.
    """
    if ranks == 0:
        start = []
    elif start is None:
        start = [mpiexec(), "-bind-to", "core", "-n", str(ranks)]
    program = [sys.executable, __file__, "--rank", "--model", model, "--batch", str(batch), "--shards", str(shards)]
    threads = 1 if ranks else usable_cores()
    done = subprocess.run(
        [*start, *program, "--steps", *map(str, steps)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"error: {ranks} ranks ended with {done.returncode}: {done.stderr}")
    return {"ranks": ranks, "batch": batch, **json.loads(done.stdout.splitlines()[-1])}


def over_links(links: list[str], model: str, batch: int, shards: int, repeats: int, steps: tuple[int, int]) -> None:
    """Two ranks with a link between them; prints what the model expects of their messages, and the whole step.

    Cores that compute at the same time slow each other, so the rows are compared with each other, not with one rank.
    """
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for _ in range(repeats):
        for name in ("shared memory", *links):
            gbits, _, delay = name.partition(":")
            shared = name == "shared memory"
            with (
                nullcontext(None) if shared else shaped_link(float(gbits), float(delay or 0) / 1e3, mpiexec()) as start
            ):
                row = measured(2, model, batch, shards, steps, start)
            link = Link(row["latency"], 0.0, row["rate"])  # the latency of a message between two includes its overhead
            messages = step_seconds(0.0, 2, row["size"], link, row["ratio"])
            rows.setdefault(name, []).append((row["latency"], row["rate"], messages, row["seconds"]))
    print("link (Gbit/s:ms)   latency, us   GB/s   messages expected, s   step measured, s")
    for name, found in rows.items():
        latency, rate, messages, seconds = (statistics.median(column) for column in zip(*found))
        print(f"{name:17s} {1e6 * latency:12.0f} {rate / 1e9:6.2f} {messages:22.3f} {seconds:18.3f}")


def on_paper(machines: list[int]) -> None:
    """ViT-S/16 on machines of 16 cores: what the model expects, and of what the time consists."""
    image, size, cores = 6 * 4.6e9, 88.2e6, 16  # multiply-adds and adds of an image, bytes of parameters
    core = 50e9  # of them a second: half of what one core of a Zen 4 reaches in a large product
    print("machines  images  Gbit/s   step, s   computing   messages   bytes")
    for gbits, rate in ((10, 1.0e9), (100, 10e9)):
        for count in machines:
            for batch in sorted({1024, 16 * count}):
                compute = batch * image / (core * cores)
                computing = -(-batch // (count * cores)) * image / core  # a core has whole images
                step = step_seconds(compute, count, size, Link(50e-6, 10e-6, rate)) - compute / count + computing
                bytes_ = 2 * size * (count - 1) / count / rate
                shares = (computing / step, 1 - (computing + bytes_) / step, bytes_ / step)
                print(f"{count:8d} {batch:7d} {gbits:7d} {step:9.3f} " + "".join(f"{share:11.0%}" for share in shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    parser.add_argument("--batch", type=int, default=32, help="images of a step (strong), and for each rank (weak)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, usable_cores()])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shards", type=int, default=4, help="of a batch, at least the ranks")
    parser.add_argument("--steps", type=int, nargs=2, default=(UNTIMED, TIMED), help="untimed and timed steps")
    parser.add_argument("--links", nargs="+", metavar="GBIT:MS", help="two ranks with such a link between them")
    parser.add_argument("--machines", type=int, nargs="+", help="what the cost model expects of so many machines")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        return rank(args.model, args.batch, args.shards, *args.steps)
    if args.machines:
        return on_paper(args.machines)
    if args.links:
        if lacks := missing():
            raise SystemExit(f"skipped: {lacks}")
        return over_links(args.links, args.model, args.batch, args.shards, args.repeats, tuple(args.steps))
    for title, scale in (("strong", 0), ("weak", 1)):
        print(f"{title} scaling of {args.model}, {args.shards} shards, batch {args.batch}{' x ranks' * scale}")
        kinds = [*args.ranks, 0]
        found: dict[int, list[dict[str, Any]]] = {ranks: [] for ranks in kinds}
        for repeat in range(args.repeats):
            for place in range(len(kinds)):
                ranks = kinds[(repeat + place) % len(kinds)]
                batch = args.batch * ((ranks or usable_cores()) if scale else 1)
                found[ranks].append(measured(ranks, args.model, batch, args.shards, tuple(args.steps)))
        for ranks, rows in found.items():
            row = sorted(rows, key=lambda row: row["seconds"])[len(rows) // 2]
            first = statistics.median(row["batch"] / row["seconds"] for row in found[args.ranks[0]])
            speed = row["batch"] / row["seconds"]
            sent = "" if row["ratio"] is None else f"  sent / least {row['ratio']:.3f}"
            name = f"{ranks:4d} ranks  " if ranks else f"{usable_cores():4d} threads"
            print(
                f"{name}{speed:8.1f} images/s  {speed / first:5.2f} times  "
                f"exchange and waiting {row['share']:5.1%}{sent}"
            )
    return None


if __name__ == "__main__":
    main()
