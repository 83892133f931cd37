"""ONNX Runtime's and OpenVINO's sides: PyTorch's model of the same weights, exported to ONNX, run for inference.

The file is written by `export` in a process of its own, so that no worker of a runtime holds PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from cases import CASES, Case, Start, read_start


def onnx_path(start: Path) -> Path:
    """The exported model beside the start file."""
    return start.with_suffix(".onnx")


def export(case: Case, start: Path) -> None:
    """Write the case's model, with the start's weights, to `onnx_path(start)`; the batch is fixed, as a user may do."""
    import torch
    from torch_side import TorchSide

    side = TorchSide(case, read_start(start), 1, "sdpa")
    with torch.inference_mode():
        torch.onnx.export(
            side.model.eval(), (side.images,), str(onnx_path(start)), input_names=["images"], output_names=["logits"],
            opset_version=17, dynamo=False,
        )  # fmt: skip


class _RuntimeSide:
    """What both share: a batch, and logits from `run`."""

    def __init__(self, case: Case, start: Start, threads: int, variant: str) -> None:
        if case.task != "infer" or start.path is None:
            raise ValueError(f"{case.name} trains: the runtimes only infer")
        self.images, self.threads = np.ascontiguousarray(start.images), threads
        self.load(str(onnx_path(start.path)), variant)

    def load(self, path: str, variant: str) -> None:
        raise NotImplementedError

    def run(self) -> np.ndarray:
        raise NotImplementedError

    def check_threads(self) -> None:
        """The worker measures the cores that a turn used."""

    def step(self) -> float:
        self.run()
        return 0.0

    def outcome(self) -> dict[str, np.ndarray]:
        return {"logits": self.run()}


class OnnxRuntimeSide(_RuntimeSide):
    """`variant` is "default", or "no spinning", in which waiting threads sleep."""

    def load(self, path: str, variant: str) -> None:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = self.threads, 1
        if variant == "no spinning":
            settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session: Any = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

    def run(self) -> np.ndarray:
        return self.session.run(["logits"], {"images": self.images})[0]

    def describe(self) -> dict[str, str]:
        import onnxruntime

        return {"library": f"onnxruntime {onnxruntime.__version__}", "blas": "its own BLAS", "detail": ""}


class OpenVinoSide(_RuntimeSide):
    """OpenVINO for the lowest latency, in float32: by itself it would take bfloat16 where the processor has it."""

    def load(self, path: str, variant: str) -> None:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": self.threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
        }  # fmt: skip
        self.model: Any = openvino.Core().compile_model(path, "CPU", settings)

    def run(self) -> np.ndarray:
        return np.array(self.model([self.images])[0])

    def describe(self) -> dict[str, str]:
        import openvino

        return {"library": f"openvino {openvino.__version__.split('-')[0]}", "blas": "oneDNN", "detail": ""}


if __name__ == "__main__":
    import sys

    export(CASES[sys.argv[1]], Path(sys.argv[2]))
