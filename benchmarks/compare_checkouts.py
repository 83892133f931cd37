"""Two checkouts of minivit against each other: every case, peak memory, and what an import takes.

    git worktree add ../before HEAD~1
    python benchmarks/compare_checkouts.py ../before .                 # B over A, all cases
    python benchmarks/compare_checkouts.py ../before . --case flagship --rounds 3

The turns are those of `turns.py`: each side alone in its process, at least two seconds of work in a row after untimed
steps, in turn. Both sides run this checkout's benchmark code and their own minivit.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import results
from cases import CASES
from turns import QUIET, Side, Variant, environment, make_start, take_turns

IMPORTS = 25  # processes of each side


def compare(name: str, checkouts: list[Path], rounds: int, threads: int) -> list[str]:
    """One row: medians, ratio, its quartiles, peaks and their ratio."""
    case = CASES[name]
    variant = Variant("minivit", next(iter(case.architecture.variants)))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        start = Path(folder) / "start.npz"
        make_start(case, threads, start)
        sides = [stack.enter_context(closing(Side(case, variant, threads, start, checkout))) for checkout in checkouts]
        outcomes = []
        for number, side in enumerate(sides):
            side.ask("build")
            path = Path(folder) / f"outcome{number}.npz"
            side.ask("outcome", str(path))
            with np.load(path) as file:
                outcomes.append({key: file[key] for key in file.files})
            side.ask("warm_up")
        apart = max(
            float(np.abs(a - outcomes[0][key]).max() / max(np.abs(outcomes[0][key]).max(), 1e-30))
            for key, a in outcomes[1].items()
        )
        seconds, others = take_turns(sides, rounds)
        before, after = (results.row(name, "", seconds[:, place], None) for place in (0, 1))
        results.add_ratio(after, before)
        peaks = []
        for checkout in checkouts:
            with closing(Side(case, variant, threads, start, checkout)) as fresh:
                found = fresh.ask("memory")
                peaks.append(found["added"] if found else None)
    low, high = after["ratio_quartiles"]
    memory = f"{peaks[1] / peaks[0]:.3f}" if all(peaks) else "-"
    return [
        name,
        f"{before['median_ms']:.1f}",
        f"{after['median_ms']:.1f}",
        f"{after['ratio']:.3f}",
        f"{low:.3f} to {high:.3f}",
        memory,
        f"{apart:.0e}",
        "-" if others is None else f"{others:.2f}" + ("" if others <= QUIET else " (!)"),
    ]


def import_seconds(checkouts: list[Path], threads: int) -> list[float]:
    """Median seconds that `import minivit` takes beyond `import numpy`, of fresh processes in turn."""
    code = "import time, numpy; t = time.perf_counter(); import minivit; print(time.perf_counter() - t)"
    found: list[list[float]] = [[] for _ in checkouts]
    for number in range(IMPORTS + 2):
        for seconds, checkout in zip(found, checkouts, strict=True):
            done = subprocess.run(
                [sys.executable, "-c", code],
                cwd=checkout,  # with -c, Python looks in the working directory before PYTHONPATH
                env=environment(threads, checkout),
                capture_output=True,
                check=True,
            )
            if number >= 2:  # the first ones write the byte code
                seconds.append(float(done.stdout))
    return [float(np.median(seconds)) for seconds in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT", help="before and after")
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    checkouts = [path.resolve() for path in options.checkouts]
    for path in checkouts:
        if not (path / "minivit").is_dir():
            parser.error(f"{path} holds no minivit/")
    columns = ["case", "before ms", "after ms", "ratio", "its quartiles", "memory", "apart", "other cores"]
    print("  ".join(word.rjust(16) for word in columns), flush=True)
    for name in options.case:
        cells = compare(name, checkouts, options.rounds, options.threads)
        print("  ".join(cell.rjust(16) for cell in cells), flush=True)
    before, after = import_seconds(checkouts, options.threads)
    print(f"import minivit beyond import numpy: {before:.3f} s before, {after:.3f} s after")
    print(time.strftime("%Y-%m-%d"), f"numpy {np.__version__}, {options.threads} threads")


if __name__ == "__main__":
    main()
