"""ONNX Runtime's and OpenVINO's sides: PyTorch's model of the same weights, exported to ONNX, run for inference.

The file is written by `export` in a process of its own, so that no worker of a runtime holds PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from cases import CASES, Case, Start, read_start

Loaded: TypeAlias = tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]  # images -> logits, and what computes it


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


class RuntimeSide:
    """One runtime with the exported model and its batch: `step` is one forward pass.

    `variant` is ONNX Runtime's "default" or "no spinning", in which waiting threads sleep, or anything for OpenVINO.
    """

    def __init__(self, library: str, case: Case, start: Start, threads: int, variant: str) -> None:
        if case.task != "infer" or start.path is None:
            raise ValueError(f"{case.name} trains: the runtimes only infer")
        self.images = np.ascontiguousarray(start.images)
        self.run, self.about = LOADERS[library](str(onnx_path(start.path)), threads, variant)

    def describe(self) -> dict[str, str]:
        return self.about

    def check_threads(self) -> None:
        """The worker measures the cores that a turn used."""

    def step(self) -> float:
        self.run(self.images)
        return 0.0

    def outcome(self) -> dict[str, np.ndarray]:
        return {"logits": self.run(self.images)}


def _onnx_runtime(path: str, threads: int, variant: str) -> Loaded:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    if variant == "no spinning":
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    about = {"library": f"onnxruntime {onnxruntime.__version__}", "blas": "its own BLAS", "detail": ""}
    return lambda images: session.run(["logits"], {"images": images})[0], about


def _openvino(path: str, threads: int, variant: str) -> Loaded:
    """For the lowest latency, in float32: by itself it would take bfloat16 where the processor has it."""
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
    }  # fmt: skip
    model = openvino.Core().compile_model(path, "CPU", settings)
    about = {"library": f"openvino {openvino.__version__.split('-')[0]}", "blas": "oneDNN", "detail": ""}
    return lambda images: np.array(model([images])[0]), about


LOADERS: dict[str, Callable[[str, int, str], Loaded]] = {"ONNX Runtime": _onnx_runtime, "OpenVINO": _openvino}


if __name__ == "__main__":
    import sys

    export(CASES[sys.argv[1]], Path(sys.argv[2]))
