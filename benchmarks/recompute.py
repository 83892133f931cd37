"""What recomputation costs and gains: a training step with every block but the last in `nn.Recompute`, and without.

    python benchmarks/recompute.py                       # ViT-S/16, batch 4
    python benchmarks/recompute.py --case flagship --json out.json

Both sides are minivit's, take turns as in `vs_pytorch.py`, and must agree on every gradient first. Activations are the
peak of five steps without weights, gradients and moments, which are four numbers for each parameter.
"""

from __future__ import annotations

import results
from turns import Variant
from vs_pytorch import Comparison, finish, parser, report

NUMBERS = 4  # of a parameter: itself, its gradient, two moments
BYTES = 4  # of a float32


class Recomputed(Comparison):
    """One case: minivit as it comes, and with its blocks recomputed."""

    def run(self) -> list[results.Row]:
        sides = [self.open(self.minivit[0]), self.open(Variant("minivit", "recompute"))]
        rows = self.timed(sides)
        assert self.reference is not None
        fixed = NUMBERS * BYTES * sum(gradient.size for gradient in self.reference[0].values())
        peaks = [self.peak(side.variant) for side in sides]
        for row, peak in zip(rows, peaks, strict=True):
            row["peak_bytes"] = None if peak is None else peak - fixed
        if all(peaks):
            rows[1]["peak_ratio"] = rows[1]["peak_bytes"] / rows[0]["peak_bytes"]
        self.notes.append(
            f"{self.case.name}: the peaks are activations; {fixed / 2**20:.1f} MiB of weights, gradients and moments "
            "are taken off on both sides."
        )
        return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    options.case = options.case or ["vit-s16"]
    report(finish(options), Recomputed)


if __name__ == "__main__":
    main()
