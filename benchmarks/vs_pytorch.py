"""minivit against PyTorch's best on this machine: time per step, peak memory, and whether both compute the same.

Both sides run in processes of their own from the same weights and batch, agree on all gradients, and then take turns.

    python benchmarks/vs_pytorch.py                      # the two MNIST models, training
    python benchmarks/vs_pytorch.py --case vit-s16 --quick
    python benchmarks/vs_pytorch.py --case swin-t --no-compile
    python benchmarks/vs_pytorch.py --infer --json out.json
    python benchmarks/vs_pytorch.py --case vit-s16 --bfloat16   # PyTorch in bfloat16 as well, minivit in float32
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import results
from cases import CASES, Case
from turns import PAUSE, QUIET, TURN, Side, SideFailed, Variant, make_start, take_turns

LOSS_AGREEMENT = 1e-3  # of the losses of the first steps, relative: the optimizers must agree as well
# of bfloat16, which has 2 to 3 digits: of all gradients together, because a small one may be off by its own size
HALF_AGREEMENT = 0.1
TRIAL_ROUNDS = 5
COMPILED = 2  # processes that compile: one and the same program runs at one of two speeds, 110 or 160 ms the flagship
# variables that make a library use other instructions than it would choose for this processor
CHANGED_BY = ("MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "XLA_FLAGS")
EAGER = (Variant("PyTorch", "sdpa"), Variant("PyTorch", "plain"))


class Comparison:
    """One case: its sides are opened, checked against the first one, and timed."""

    def __init__(self, case: Case, options: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
        self.case, self.options, self.folder, self.stack = case, options, folder, stack
        self.minivit = [Variant("minivit", name) for name in case.architecture.variants]
        self.start = folder / "start.npz"
        self.reference: tuple[dict[str, np.ndarray], np.ndarray] | None = None
        self.differences: dict[Variant, float] = {}
        self.about: dict[str, dict[str, str]] = {}
        self.busy, self.others = 0.0, None
        self.notes: list[str] = []  # printed below the table
        make_start(case, options.threads, self.start)

    def run(self) -> list[results.Row]:
        minivit = [self.open(variant) for variant in self.minivit]
        best, trials = self.pytorch_best()
        halves: list[Side] = []
        if self.options.bfloat16:
            half, more = self.bfloat16_best(best)
            halves, trials = [half], trials + more
        rows = self.timed([best, *halves, *minivit])
        half_rows, own = rows[1 : 1 + len(halves)], rows[1 + len(halves) :]
        for mine, rival in product(own, half_rows):
            self.compare_with(mine, rival)
        if self.options.memory:
            self.add_memory([rows[0], *own])
        return [*trials, *rows]

    def bfloat16_best(self, best: Side) -> tuple[Side, list[results.Row]]:
        """The fastest of PyTorch's variants in bfloat16, and a row for each."""
        names = dict.fromkeys([*(variant.name for variant in EAGER), best.variant.name])
        halves = [self.open(Variant("PyTorch", f"bfloat16 {name}"), HALF_AGREEMENT) for name in names]
        return self.trial(halves, "trial")

    def compare_with(self, mine: results.Row, rival: results.Row) -> None:
        """Another ratio of a row of minivit's: in the row, under the rival's name, and in a line below the table."""
        ratio = dict(mine)
        results.add_ratio(ratio, rival)
        low, high = ratio["ratio_quartiles"]
        mine.setdefault("over", {})[rival["side"]] = {"ratio": ratio["ratio"], "quartiles": [low, high]}
        line = f"{self.case.name}, {mine['side']} over {rival['side']}: {ratio['ratio']:.2f} ({low:.2f} to {high:.2f})"
        self.notes.append(line)

    def open(self, variant: Variant, agreement: float | None = None) -> Side:
        """A side that has been checked and warmed up; `agreement`, of all arrays together, stands for the case's."""
        side = self.stack.enter_context(closing(Side(self.case, variant, self.options.threads, self.start)))
        self.about[variant.library] = side.about = side.ask("build")
        path = self.folder / "outcome.npz"
        side.ask("outcome", str(path))
        with np.load(path) as file:
            outcome = {name: file[name] for name in file.files}
        losses = np.array(side.ask("warm_up"))
        if self.reference is None:
            self.reference = outcome, losses
        difference = largest_difference if agreement is None else difference_of_all
        self.differences[variant] = difference(outcome, self.reference[0])
        apart = np.abs(losses - self.reference[1]).max() / max(1e-30, np.abs(losses).max())
        gradients, loss = (self.case.architecture.agreement, LOSS_AGREEMENT) if agreement is None else (agreement,) * 2
        if not (self.differences[variant] <= gradients and apart <= loss):
            raise SystemExit(
                f"{self.case.name}: {variant} and {self.minivit[0]} do not compute the same, so no time is measured: "
                f"gradients or logits {self.differences[variant]:.1e} apart, losses {apart:.1e}"
            )
        return side

    def pytorch_best(self) -> tuple[Side, list[results.Row]]:
        """The fastest PyTorch variant, and a row for each that was tried."""
        eager = [self.open(variant) for variant in EAGER]
        best, rows = self.trial(eager, "trial")
        if self.options.compile:
            try:
                compiled = [self.open(Variant("PyTorch", f"compile {best.variant.name}")) for _ in range(COMPILED)]
            except SideFailed as reason:
                print(f"{self.case.name}: goes on without torch.compile, which failed:\n{reason}\n")
            else:
                best, more = self.trial([best, *compiled], "2nd trial")
                rows += more
        return best, rows

    def trial(self, sides: list[Side], remark: str) -> tuple[Side, list[results.Row]]:
        """A few rounds among PyTorch's variants; all but the fastest are closed."""
        seconds, _ = take_turns(sides, TRIAL_ROUNDS, self.options.steps)
        rows = [self.row(side, seconds[:, place], f" ({remark})") for place, side in enumerate(sides)]
        best = sides[int(np.argmin([row["median_ms"] for row in rows]))]
        for side in sides:
            if side is not best:
                side.close()
        return best, rows

    def timed(self, sides: list[Side]) -> list[results.Row]:
        """The rounds that count; the first side is the one that the others are compared with."""
        seconds, self.others = take_turns(sides, self.options.rounds, self.options.steps)
        rows = [self.row(side, seconds[:, place]) for place, side in enumerate(sides)]
        for row in rows[1:]:
            results.add_ratio(row, rows[0])
        self.busy = max(side.busy for side in sides)
        return rows

    def row(self, side: Side, seconds: np.ndarray, remark: str = "") -> results.Row:
        return results.row(self.case.name, f"{side.variant}{remark}", seconds, self.differences[side.variant])

    def add_memory(self, rows: list[results.Row], rivals: Sequence[tuple[Variant, ...]] = (EAGER,)) -> None:
        """Peaks, each from a fresh process: of each rival's leanest variant and of minivit's; ratios are to the first.

        PyTorch's compiled model is left out: what the compiler itself holds would count against PyTorch.
        """
        groups = [*rivals, *((variant,) for variant in self.minivit)]
        for row, group in zip(rows, groups, strict=True):
            row["peaks_bytes"] = {str(variant): self.peak(variant) for variant in group}
            row["peak_bytes"] = min(filter(None, row["peaks_bytes"].values()), default=None)
        best = rows[0]["peak_bytes"]
        for row in rows[1:]:
            if row["peak_bytes"] and best:
                row["peak_ratio"] = row["peak_bytes"] / best

    def peak(self, variant: Variant) -> int | None:
        with closing(Side(self.case, variant, self.options.threads, self.start)) as side:
            found = side.ask("memory")
            return found["added"] if found else None


def largest_difference(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The worst array's largest difference, relative to its largest element; infinite where names or shapes differ."""
    if {name: a.shape for name, a in ours.items()} != {name: a.shape for name, a in theirs.items()}:
        return float("inf")
    return max(float(np.abs(a - theirs[name]).max() / np.abs(theirs[name]).max()) for name, a in ours.items())


def difference_of_all(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> float:
    """The norm of the difference of all arrays over their norm."""
    apart = sum(np.square(ours[name] - a, dtype="float64").sum() for name, a in theirs.items())
    norm = sum(np.square(a, dtype="float64").sum() for a in theirs.values())
    return float((apart / norm) ** 0.5)


def compare(case: Case, options: argparse.Namespace, kind: type[Comparison]) -> tuple[list[results.Row], Comparison]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        comparison = kind(case, options, Path(folder), stack)
        return comparison.run(), comparison


def header(machine: dict[str, Any], about: dict[str, dict[str, str]], options: argparse.Namespace) -> str:
    load = "unknown" if machine["load_before"] is None else f"{machine['load_before']:.1f}"
    turn = f"{TURN:g} s of steps" if options.steps is None else f"{options.steps} steps"
    lines = [
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, load before: {load}",
        f"Python {machine['python']}, float32, {options.threads} threads on each side",
        *(f"{name}={os.environ[name]} is set" for name in CHANGED_BY if name in os.environ),
        *(f"{library}: {facts['library']} with {facts['blas']} {facts['detail']}" for library, facts in about.items()),
        f"{options.rounds} rounds in turn, each {turn} after {PAUSE} s of pause and some untimed steps",
    ]
    return "\n".join(line.rstrip() for line in lines)


def quiet(done: list[Comparison]) -> str:
    """What disturbed the measurement: a waiting side that was not idle, and other programs."""
    lines = [f"While it waited, the busiest side used {max(c.busy for c in done):.1%} of one core."]
    others = [c.others for c in done if c.others is not None]
    if others:
        lines.append(f"Other programs used up to {max(others):.2f} cores during the rounds.")
    if max(others, default=0) > QUIET:
        lines.append(
            "THE MACHINE WAS NOT QUIET, so do not quote these ratios: threads that wait for the slowest one after "
            "every operation (PyTorch's, and BLAS's in minivit's inference) lose more than those that meet once a step."
        )
    return "\n".join(lines)


def parser(description: str) -> argparse.ArgumentParser:
    """The options of a comparison; pass what was parsed through `finish`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=sorted(CASES), help="may be given several times")
    parser.add_argument("--infer", action="store_true", help="the inference cases instead of flagship and small")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="steps in a row in each turn (default: what takes 2 s)")
    parser.add_argument("--quick", action="store_true", help="5 rounds of 3 steps, to see whether it runs")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="leave peak memory out")
    parser.add_argument("--bfloat16", action="store_true", help="PyTorch in bfloat16 beside float32")
    parser.add_argument("--json", type=Path, help="write everything to this file too")
    return parser


def finish(options: argparse.Namespace) -> argparse.Namespace:
    """The options with what follows from others filled in."""
    if options.quick:
        options.rounds, options.steps = 5, 3
    if options.case is None:
        infer = [name for name, case in CASES.items() if case.task == "infer"]
        options.case = infer if options.infer else ["flagship", "small"]
    return options


def report(options: argparse.Namespace, kind: type[Comparison]) -> None:
    """Compare all chosen cases and print, and write, what was found."""
    machine, rows, done = results.machine(), [], []
    for name in options.case:
        found, comparison = compare(CASES[name], options, kind)
        rows += found
        done.append(comparison)
    about = done[-1].about
    notes = [note for comparison in done for note in comparison.notes]
    parts = [header(machine, about, options), results.table(rows), "\n".join(notes), quiet(done)]
    print(*filter(None, parts), sep="\n\n")
    if options.json:
        settings = {name: getattr(options, name) for name in ("threads", "rounds", "steps")}
        quietness = {c.case.name: {"busy_while_waiting": c.busy, "other_programs_cores": c.others} for c in done}
        facts = {"machine": machine, "libraries": about, **settings, "quietness": quietness, "notes": notes}
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1))


def main() -> None:
    report(finish(parser(__doc__).parse_args()), Comparison)


if __name__ == "__main__":
    main()
