"""minivit against JAX on this machine, and against PyTorch's best in the same table if asked: time, memory, agreement.

Everything is as in `vs_pytorch.py`, whose cases, checks and turns this uses; ratios are to JAX.

    python benchmarks/vs_jax.py                          # the two MNIST models, training
    python benchmarks/vs_jax.py --pytorch                # with PyTorch's best beside it
    python benchmarks/vs_jax.py --case swin-t --quick
    python benchmarks/vs_jax.py --infer --json out.json
"""

from __future__ import annotations

import importlib.util

import results
from turns import Side, Variant
from vs_pytorch import EAGER, Comparison, finish, parser, report

JAX = (Variant("JAX", "jit"), Variant("JAX", "jit, whole operations"))  # jax_side.py says what they are


class WithJax(Comparison):
    """One case: JAX's best, PyTorch's if asked, and minivit's variants, which take turns."""

    def run(self) -> list[results.Row]:
        minivit = [self.open(variant) for variant in self.minivit]
        jitted = [self.open(variant) for variant in JAX]
        best, trials = self.trial(jitted, "trial")
        rivals, tried = [best], [JAX]
        if self.options.pytorch:
            best, more = self.pytorch_best()
            trials += more
            rivals.append(best)
            tried.append(EAGER)
        self.rivals = [side.variant for side in rivals]
        sides = [*rivals, *minivit]
        rows = self.timed(sides)
        if self.options.memory:
            self.add_memory(rows, tried)
        self.notes += [self.compile_times(jitted), self.cores(sides)]
        for mine in rows[2:] if self.options.pytorch else []:
            self.compare_with(mine, rows[1])
        return [*trials, *rows]

    def compile_times(self, sides: list[Side]) -> str:
        times = ", ".join(f"{side.variant} {side.about['compiling']}" for side in sides)
        return f"{self.case.name}, compiling, which no step includes: {times}"

    def cores(self, sides: list[Side]) -> str:
        """What the sides really used of the threads they have; the worker refuses more than that."""
        used = ", ".join(f"{side.variant} {side.cores():.2f}" for side in sides)
        return f"{self.case.name}, cores used during the turns: {used}"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--pytorch", action="store_true", help="PyTorch's best in the same table")
    options = finish(arguments.parse_args())
    wanted = ("jax", "torch") if options.pytorch else ("jax",)
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            raise SystemExit(f"{name} is not installed; benchmarks/README.md says how to get it")
    report(options, WithJax)


if __name__ == "__main__":
    main()
