"""Keeps PyTorch to one thread, so that the parity tests repeat to the last bit and leave the other cores alone.

The helpers that the tests import are in `parity_tools.py`.
"""

from __future__ import annotations

import importlib.util

import pytest


def _import_torchvision() -> None:
    """Import torchvision beside a PyTorch that it was not built for; timm and transformers need none of its kernels.

    The wheel of the Python Package Index is built for CUDA. Beside a CPU build of PyTorch its library of kernels does
    not load, and the import then fails for two operators that it describes and that are in that library.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
        return
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


_import_torchvision()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
