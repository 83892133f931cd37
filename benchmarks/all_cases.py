"""The whole table of docs/performance.md: every case against PyTorch's best and JAX's, in several runs.

    python benchmarks/all_cases.py                            # about half an hour; needs PyTorch and JAX
    python benchmarks/all_cases.py --case small --runs 1 --rounds 3
    python benchmarks/all_cases.py --write                    # and put the table into docs/performance.md

A run opens fresh processes on all sides, checks that they compute the same, and lets them take turns. The first run
also finds the fastest variant of each library, and measures memory. Each case's rows are written to --json as soon as
they are there, and a case that stands in that file is not measured again.
"""

from __future__ import annotations

import json
import textwrap
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import results
import scaling
from cases import CASES
from recompute import Recomputed
from turns import QUIET
from vs_jax import WithJax
from vs_pytorch import compare, finish, header, parser

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
MARKERS = (
    "<!-- measured by benchmarks/all_cases.py -->",
    "<!-- end of what was measured by benchmarks/all_cases.py -->",
)
# what this project set itself: time over PyTorch's best, the same with every token computed, and peak memory
GOALS = {
    "flagship": (0.75, 0.85, 0.6), "small": (0.7, None, 0.6), "vit-ti16": (0.8, None, 0.8),
    "vit-s16": (0.87, None, 1.0), "vit-b16-b1": (0.9, None, 1.0), "vit-b16-b8": (0.85, None, 1.0),
    "swin-t": (0.8, None, 1.0), "swin-t-b1": (0.8, None, 1.0),
}  # fmt: skip
RECOMPUTE = "recompute"
GOALS_OF_RECOMPUTE = (1.35, 0.3)
COLUMNS = ("case", "PyTorch's best", "time", "every token", "memory", "time over JAX")


class Repeated(WithJax):
    """One case: a full run, then further ones of the variants that won it."""

    def run(self) -> list[results.Row]:
        rows = super().run()
        others = [] if self.others is None else [self.others]
        runs = [self._ratios(rows)]
        for _ in range(self.options.runs - 1):
            self.stack.close()
            again = self.timed([self.open(variant) for variant in (*self.rivals, *self.minivit)])
            runs.append(self._ratios(again))
            others += [] if self.others is None else [self.others]
        self.others = max(others, default=None)
        self.table = {
            "best": self.rivals[1].name,
            "runs": runs,
            "memory": self._memory(rows),
            "peak_mib": {row["side"]: row["peak_bytes"] / 2**20 for row in rows if row.get("peak_bytes")},
            "others": self.others,
        }
        return rows

    def _ratios(self, rows: list[results.Row]) -> dict[str, Any]:
        """minivit over PyTorch and over JAX: by variant, the ratio and the quartiles of its turns."""
        jax, torch, *mine = rows[-2 - len(self.minivit) :]
        found: dict[str, Any] = {}
        for name, rival in (("pytorch", torch), ("jax", jax)):
            for row in mine:
                results.add_ratio(row, rival)
                found.setdefault(name, []).append((row["ratio"], *row["ratio_quartiles"]))
        return found

    def _memory(self, rows: list[results.Row]) -> float | None:
        _, torch, first, *_ = rows[-2 - len(self.minivit) :]
        peaks = first.get("peak_bytes"), torch.get("peak_bytes")
        return peaks[0] / peaks[1] if all(peaks) else None


class RepeatedRecompute(Recomputed):
    """Recomputation against none, in several runs."""

    def run(self) -> list[results.Row]:
        runs, worst = [], 0.0
        for _ in range(self.options.runs):
            rows = super().run()
            runs.append((rows[1]["ratio"], *rows[1]["ratio_quartiles"]))
            worst = max(worst, self.others or 0.0)
            self.stack.close()
        self.table = {"runs": runs, "memory": rows[1].get("peak_ratio"), "others": worst}
        return rows


def measured(name: str, options: Any) -> dict[str, Any]:
    case, kind = (CASES["vit-s16"], RepeatedRecompute) if name == RECOMPUTE else (CASES[name], Repeated)
    rows, comparison = compare(case, options, kind)
    head = header(results.machine(), comparison.about, options)
    print(head, results.table(rows), "\n".join(comparison.notes), sep="\n\n", end="\n\n", flush=True)
    return {**comparison.table, "header": head, "date": str(date.today())}


def markdown(found: dict[str, dict[str, Any]]) -> str:
    """The table, and what it was measured on."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name, (time, every, memory) in GOALS.items():
        if name in found:
            lines.append("| " + " | ".join(_cells(name, found[name], time, every, memory)) + " |")
    if RECOMPUTE in found:
        goal = GOALS_OF_RECOMPUTE
        part = found[RECOMPUTE]
        memory = _against(part["memory"], goal[1])
        lines.append(
            f"| `vit-s16` with recomputation, over itself without | | {_runs(part['runs'], goal[0])} | | {memory} of "
            "the activations | |"
        )
    heads = dict.fromkeys(part["header"] for part in found.values())
    others = {name: part["others"] for name, part in found.items() if part["others"] is not None}
    loud = [f"`{name}` ({cores:.2f})" for name, cores in others.items() if cores > QUIET]
    note = f"Other programs used up to {max(others.values(), default=0.0):.2f} cores during the turns."
    if loud:
        note += f" More than {QUIET}, so that the ratio is less certain: {', '.join(loud)}."
    machines = "\n".join(["```text", *list(heads)[0].splitlines(), "```"]) if heads else ""
    dates = sorted({part["date"] for part in found.values()})
    text = textwrap.fill(f"Measured {' and '.join(dates)}. {note}", width=120)
    return "\n\n".join(["\n".join(lines), text, machines])


def _cells(name: str, part: dict[str, Any], time: float, every: float | None, memory: float) -> list[str]:
    runs = part["runs"]
    torch = [run["pytorch"] for run in runs]
    all_tokens = _runs([run[1] for run in torch], every) if len(torch[0]) > 1 else "the same"
    jax = _runs([run["jax"][0] for run in runs], None)
    task = f"{CASES[name].task}, batch {CASES[name].batch}"
    return [
        f"`{name}`, {task}", part["best"], _runs([run[0] for run in torch], time), all_tokens,
        _against(part["memory"], memory), jax,
    ]  # fmt: skip


def _runs(ratios: list[Any], goal: float | None) -> str:
    """The median of the runs, the least and the greatest, and the goal where there is one."""
    values = np.array([ratio[0] for ratio in ratios])
    spread = f" ({values.min():.2f} to {values.max():.2f})" if len(values) > 1 else ""
    return _against(float(np.median(values)), goal, spread)


def _against(value: float | None, goal: float | None, spread: str = "") -> str:
    if value is None:
        return "not measured"
    text = f"{value:.2f}{spread}"
    if goal is None:
        return text
    return f"{text}, goal {goal:g}" if round(value, 2) <= goal else f"**{text}**, goal {goal:g}"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    arguments.set_defaults(case=None, rounds=5, steps=None, pytorch=True)
    options = arguments.parse_args()
    names = options.case or [*GOALS, RECOMPUTE]
    options = finish(options)
    found = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for name in names:
        if name not in found:
            found[name] = measured(name, options)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))
    text = markdown(found)
    print(text)
    if options.write:
        scaling.write_between(PAGE, MARKERS, text)


if __name__ == "__main__":
    main()
