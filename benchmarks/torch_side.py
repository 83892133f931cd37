"""PyTorch's side of the comparison, with its fused AdamW, its fused attention, and its compiler.

Only the PyTorch worker imports this file, so that no other thread pool lives in that process.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch
from cases import LABEL_SMOOTHING, LEARNING_RATE, WEIGHT_DECAY, Case, Start
from torch import Tensor
from torch.nn import functional as F
from torch_swin import TorchSwin
from torch_vit import TorchViT

MODELS = {"ViT": TorchViT, "Swin": TorchSwin}  # by the architecture's name


class TorchSide:
    """One model, its optimizer and its batch.

    `variant` is "sdpa" or "plain"; before it "compile " for the compiler, and before that "bfloat16 " for products and
    activations in bfloat16 by autocast, with weights and gradients in float32, as PyTorch recommends it.
    """

    def __init__(self, case: Case, start: Start, threads: int, variant: str) -> None:
        torch.set_num_threads(threads)
        self.task, self.threads = case.task, threads
        dtype = torch.bfloat16 if variant.startswith("bfloat16 ") else torch.float32
        self.autocast = torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16)
        variant = variant.removeprefix("bfloat16 ")
        kind = variant.removeprefix("compile ")
        self.model = MODELS[case.architecture.name](case.model, kind)
        if start.weights:
            self.model.load_state_dict({name: torch.from_numpy(array) for name, array in start.weights.items()})
        self.images, self.labels = torch.from_numpy(start.images), torch.from_numpy(start.labels)
        # the loss is compiled together with the model, so that the compiler sees all it could fuse
        call = self._loss if self.task == "train" else self.model
        self.call = torch.compile(call) if variant != kind else call
        self.optimizer = self._adamw(start.no_decay) if self.task == "train" else None

    def describe(self) -> dict[str, str]:
        optimizer = "" if self.optimizer is None else "fused AdamW" if self.optimizer.defaults["fused"] else "AdamW"
        return {"library": f"torch {torch.__version__}", "blas": _blas(), "detail": optimizer}

    def check_threads(self) -> None:
        found = torch.get_num_threads()
        assert found == self.threads, f"PyTorch uses {found} threads, not {self.threads}"

    def step(self) -> float:
        """One step of training, or one forward pass; returns the loss, or 0."""
        if self.optimizer is None:
            with torch.inference_mode(), self.autocast:
                self.call(self.images)
            return 0.0
        self.optimizer.zero_grad()
        with self.autocast:
            loss = self.call(self.images, self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def outcome(self) -> dict[str, np.ndarray]:
        """What both sides must agree on before anything is timed: all gradients, or the logits."""
        if self.optimizer is None:
            with torch.inference_mode(), self.autocast:
                return {"logits": self.call(self.images).float().numpy()}
        self.optimizer.zero_grad()
        with self.autocast:
            loss = self.call(self.images, self.labels)
        loss.backward()
        return {name: param.grad.numpy() for name, param in self.model.named_parameters()}

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images), labels, label_smoothing=LABEL_SMOOTHING)

    def _adamw(self, no_decay: Any) -> torch.optim.Optimizer:
        named = dict(self.model.named_parameters())
        groups = [
            {"params": [p for name, p in named.items() if name not in no_decay], "weight_decay": WEIGHT_DECAY},
            {"params": [p for name, p in named.items() if name in no_decay], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        try:
            return torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
        except RuntimeError:  # a build without the fused kernel for this processor
            return torch.optim.AdamW(groups, lr=LEARNING_RATE, foreach=True)


def _blas() -> str:
    if torch.backends.mkl.is_available():
        return "MKL"
    return "Accelerate" if platform.system() == "Darwin" else "its own BLAS"
