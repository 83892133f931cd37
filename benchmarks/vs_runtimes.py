"""minivit's inference against ONNX Runtime, OpenVINO and PyTorch's best: time of a batch, from the same weights.

The model is exported to ONNX from the weights that all sides share, logits are compared, and then all take turns, each
alone in its process. Ratios are to the row's own side: below 1 says that minivit needs less time.

    python benchmarks/vs_runtimes.py                     # every model, and 1, 2, 8 and 32 images
    python benchmarks/vs_runtimes.py --case swin-t-b1 --threads 1
    python benchmarks/vs_runtimes.py --no-pytorch --json out.json
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from itertools import product

import results
from turns import HERE, Side, Variant, environment
from vs_pytorch import Comparison, finish, parser, report

ONNX_RUNTIME = (Variant("ONNX Runtime", "default"), Variant("ONNX Runtime", "no spinning"))
PREPARED = Variant("minivit", "prepared")  # `minivit.prepare`, whose ratios the tables show
OPENVINO = Variant("OpenVINO", "latency, float32")


class WithRuntimes(Comparison):
    """One case: each rival's best, and minivit's model, prepared and as it is, which take turns."""

    def run(self) -> list[results.Row]:
        command = [sys.executable, str(HERE / "runtime_side.py"), self.case.name, str(self.start)]
        subprocess.run(command, env=environment(self.options.threads), check=True, stdout=subprocess.DEVNULL)
        mine = [self.open(self.minivit[0]), self.open(PREPARED)]
        best, trials = self.trial([self.open(variant) for variant in ONNX_RUNTIME], "trial")
        rivals = [best, self.open(OPENVINO)]
        if self.options.pytorch:
            torch, more = self.pytorch_best()
            rivals.append(torch)
            trials += more
        rows = self.timed([*rivals, *reversed(mine)])
        for own, row in product(rows[len(rivals) :], rows[: len(rivals)]):
            self.compare_with(own, row)
        return [*trials, *rows]

    def timed(self, sides: list[Side]) -> list[results.Row]:
        rows = super().timed(sides)
        for row in rows[1:]:
            if not row["side"].startswith("minivit"):  # no ratio of ours
                del row["ratio"], row["ratio_quartiles"]
        return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--no-pytorch", dest="pytorch", action="store_false", help="leave PyTorch out of the table")
    options = arguments.parse_args()
    options.infer, options.memory = True, False  # a runtime's peak holds its compiler
    options = finish(options)
    for name in ("onnxruntime", "openvino", "onnx", "torch"):
        if importlib.util.find_spec(name) is None:
            raise SystemExit(
                f"{name} is not installed: pip install onnx onnxruntime openvino, and a CPU build of torch"
            )
    report(options, WithRuntimes)


if __name__ == "__main__":
    main()
