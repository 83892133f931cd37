"""benchmarks/gpu.py with its stages that need PyTorch and timm, on the fake device and PyTorch's CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cuda_emulator
import fake_cupy
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is what is compared with")
pytest.importorskip("timm", reason="timm is not installed: pip install --no-deps timm torchvision")
pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: it has bfloat16")

TINY = {
    "img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 1, "num_heads": 2,
}  # fmt: skip


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes for a CPU, and PyTorch's calls of a GPU that do nothing."""
    sizes: dict[str, Any] = {
        "MODELS": {"tiny": ("vit_tiny_patch16_224", TINY, 2)},
        "FLAGSHIP": TINY | {"img_size": 28, "num_classes": 10},
        **dict.fromkeys(("TURNS", "STEPS", "WARM_UP"), 1),
        "LOOP": 2,
        "BATCH": 2,
        "COPIED": 64,
        "SIDE": 8,
    }
    for name, value in sizes.items():
        monkeypatch.setattr(gpu, name, value)
    for owner in (torch.Tensor, torch.nn.Module):
        monkeypatch.setattr(owner, "cuda", lambda self: self)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 0)
    monkeypatch.setattr(torch, "compile", lambda model, mode: model)
    monkeypatch.setattr(gpu, "card", lambda: "no card, 0")
    monkeypatch.setattr(gpu, "profile", lambda step: (step() or 1, 0.5, []))  # PyTorch's profiler asks the GPU


@pytest.mark.skipif(cuda_emulator.compiler() is None, reason="g++ is not installed: it compiles the kernels")
@pytest.mark.filterwarnings("ignore")  # of PyTorch, which has no GPU
def test_every_stage_runs_on_the_fake_device(tmp_path: Path, on_the_host: None) -> None:
    found: dict[str, Any] = {}
    with fake_cupy.installed():
        for name in ("machine", "train", "predict", "loop"):
            found[name] = json.loads(json.dumps(gpu.STAGES[name][0](tmp_path, None)))
    tiny = found["train"]["tiny"]
    assert tiny["captured_has_the_same_bits"] and tiny["gradient_difference"] < 1e-4
    assert {"float16: captured", "bfloat16: PyTorch compiled", "float32: beside it"} <= tiny["ms"].keys()
    assert found["predict"]["tiny"]["logit_difference"] < 1e-4 and len(found["loop"]) == 4
    text = gpu.report(found)
    for part in ("no card, 0; CUDA runtime", "| tiny | float32: captured |", "captured has the bits", "- loop: {"):
        assert part in text
