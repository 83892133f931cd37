"""minivit's side of the comparison: shards of the batch in threads, and AdamW over one flat array.

Only the minivit worker imports this file, so that no other thread pool lives in that process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from cases import LABEL_SMOOTHING, LEARNING_RATE, WEIGHT_DECAY, Case, Start
from threadpoolctl import threadpool_info

from minivit import functional as F, models, nn, prepare
from minivit.optim import AdamW, no_decay
from minivit.parallel import DataParallel


class MinivitSide:
    """One model, its optimizer and its batch; `variant` is one of the architecture's, "recompute", or "prepared"."""

    def __init__(self, case: Case, start: Start, threads: int, variant: str) -> None:
        self.task, self.threads = case.task, threads
        self.model = _model(case, **case.architecture.variants.get(variant, {}))
        if variant == "recompute":  # not the last block: its backward pass comes next, so it would gain nothing
            *others, last = self.model.blocks
            self.model.blocks = [*(nn.Recompute(block) for block in others), last]
        if start.weights:
            self.model.load_state_dict(start.weights)
        self.predict = prepare(self.model).predict if variant == "prepared" else self.model.predict
        self.images, self.labels = start.images, start.labels
        self.parallel = DataParallel(self.model, threads=threads, loss=F.softmax_cross_entropy)
        params = self.model.parameters()
        settings = {"lr": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "no_decay": start.no_decay}
        self.optimizer = AdamW(params, **settings, threads=threads)

    def describe(self) -> dict[str, str]:
        blas = next((pool for pool in threadpool_info() if pool["user_api"] == "blas"), None)
        name = f"{blas['internal_api']} {blas['version']} ({blas.get('architecture')})" if blas else "unknown BLAS"
        return {"library": f"numpy {np.__version__}", "blas": name, "detail": ""}

    def check_threads(self) -> None:
        found = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
        assert found == [self.threads] or not found, f"BLAS uses {found} threads, not {self.threads}"
        assert self.parallel.threads == self.threads

    def step(self) -> float:
        """One step of training, or one forward pass; returns the loss, or 0."""
        if self.task == "infer":
            self.predict(self.images)
            return 0.0
        self.optimizer.zero_grad()
        loss = self.parallel.loss_and_grad(self.images, self.labels, label_smoothing=LABEL_SMOOTHING)
        self.optimizer.step()
        return loss

    def outcome(self) -> dict[str, np.ndarray]:
        """What both sides must agree on before anything is timed: all gradients, or the logits."""
        if self.task == "infer":
            return {"logits": self.predict(self.images)}
        self.optimizer.zero_grad()
        self.parallel.loss_and_grad(self.images, self.labels, label_smoothing=LABEL_SMOOTHING)
        return {name: param.grad for name, param in self.model.parameters().items()}


def start_of(case: Case) -> tuple[dict[str, np.ndarray], set[str]]:
    """The weights from which both sides start, and the names of those that take no weight decay."""
    model = _model(case, seed=0)
    weights = model.state_dict()
    for name, array in weights.items():
        if name.endswith("norm3.weight"):  # a bottleneck's last gain starts at 0: its branch would have no gradients,
            array += 1  # and nothing could be compared
    return weights, no_decay(model)


def _model(case: Case, **more: Any) -> Any:
    return getattr(models, case.architecture.name)(**case.model, **more)
