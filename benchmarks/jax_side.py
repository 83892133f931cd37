"""JAX's side of the comparison: one jitted function does the whole step, and its weights are updated in place.

Only the JAX worker imports this file, so that no other thread pool works in that process. Next: `vs_jax.py`.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import LABEL_SMOOTHING, LEARNING_RATE, WEIGHT_DECAY, Case, Start
from jax import Array
from jax_models import MODELS, Weights

# which is faster changes with the model: each operation cut among the threads, or each operation in one of them
VARIANTS: dict[str, dict[str, Any]] = {"jit": {}, "jit, whole operations": {"xla_cpu_multi_thread_eigen": False}}
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # of AdamW, as in minivit and PyTorch by default
POOL = "tf_XLAEigen"  # how XLA names the threads that compute

State = dict[str, Any]  # "weights", "first" and "second" moments by name, and "steps"
_compiled: dict[str, tuple[Any, float]] = {}  # what this process has compiled, and how many seconds it took


class JaxSide:
    """One model, its optimizer and its batch; `variant` is one of `VARIANTS`."""

    def __init__(self, case: Case, start: Start, threads: int, variant: str) -> None:
        self.case, self.threads, self.variant = case, threads, variant
        start = _with_weights(case, start)
        self.call, self.compile_seconds = compiled(case, start, variant)
        weights = {name: jnp.array(array) for name, array in start.weights.items()}  # copies: they will be overwritten
        self.state: Any = weights if case.task == "infer" else fresh_state(weights)
        self.images, self.labels = jnp.asarray(start.images), jnp.asarray(start.labels, jnp.int32)

    @staticmethod
    def prepare(case: Case, start: Start, variant: str) -> None:
        """Compile, so that the memory that the compiler takes is not the model's; nothing of the model is made."""
        compiled(case, start, variant)

    def describe(self) -> dict[str, str]:
        compiling = f"{self.compile_seconds:.1f} s"
        return {"library": f"jax {jax.__version__}", "blas": "XLA's own products", "detail": "", "compiling": compiling}

    def check_threads(self) -> None:
        """XLA takes the size of its pool from NPROC and never tells it; Linux counts. The worker measures as well."""
        tasks = Path("/proc/self/task")
        if tasks.is_dir():
            found = sum((task / "comm").read_text().strip() == POOL for task in tasks.iterdir())
            assert found == self.threads, f"XLA has {found} threads, not {self.threads}: set NPROC before it starts"

    def step(self) -> float:
        """One step of training, or one forward pass; returns the loss, or 0."""
        if self.case.task == "infer":
            jax.block_until_ready(self.call(self.state, self.images))
            return 0.0
        self.state, loss = jax.block_until_ready(self.call(self.state, self.images, self.labels))
        return float(loss)

    def outcome(self) -> dict[str, np.ndarray]:
        """What both sides must agree on before anything is timed: all gradients, or the logits."""
        if self.case.task == "infer":
            return {"logits": np.asarray(self.call(self.state, self.images))}
        grads = jax.jit(jax.grad(partial(loss_of, self.case)))(self.state["weights"], self.images, self.labels)
        return {name: np.asarray(grad) for name, grad in grads.items()}


def compiled(case: Case, start: Start, variant: str) -> tuple[Any, float]:
    """The compiled step, or forward pass, for arrays shaped as in `start`, and the seconds that compiling took."""
    key = repr((case, variant, sorted(start.no_decay)))
    if key not in _compiled:
        begin = time.perf_counter()
        weights = {name: jax.ShapeDtypeStruct(a.shape, jnp.float32) for name, a in start.weights.items()}
        images = jax.ShapeDtypeStruct(start.images.shape, jnp.float32)
        labels = jax.ShapeDtypeStruct(start.labels.shape, jnp.int32)
        if case.task == "infer":
            lowered = jax.jit(partial(logits_of, case), compiler_options=VARIANTS[variant]).lower(weights, images)
        else:
            step = partial(training_step, case, frozenset(start.no_decay))
            jitted = jax.jit(step, donate_argnums=0, compiler_options=VARIANTS[variant])
            lowered = jitted.lower(jax.eval_shape(fresh_state, weights), images, labels)
        _compiled[key] = lowered.compile(), time.perf_counter() - begin
    return _compiled[key]


def fresh_state(weights: Weights) -> State:
    first, second = ({name: jnp.zeros_like(array) for name, array in weights.items()} for _ in range(2))
    return {"weights": weights, "first": first, "second": second, "steps": jnp.zeros((), jnp.int32)}


def training_step(
    case: Case, no_decay: frozenset[str], state: State, images: Array, labels: Array
) -> tuple[State, Array]:
    """Forward, loss, backward and AdamW as PyTorch computes it (Loshchilov and Hutter 2019); also returns the loss."""
    loss, grads = jax.value_and_grad(partial(loss_of, case))(state["weights"], images, labels)
    steps = state["steps"] + 1
    # 1 - beta^steps, exact in float32 also where beta^steps is near 1
    bias1, bias2 = (-jnp.expm1(steps * np.log(beta)) for beta in (BETA1, BETA2))
    new: State = {"weights": {}, "first": {}, "second": {}, "steps": steps}
    for name, weight in state["weights"].items():
        grad = grads[name]
        first = BETA1 * state["first"][name] + (1 - BETA1) * grad
        second = BETA2 * state["second"][name] + (1 - BETA2) * jnp.square(grad)
        kept = 1.0 if name in no_decay else 1 - LEARNING_RATE * WEIGHT_DECAY
        update = (first / bias1) / (jnp.sqrt(second / bias2) + EPS)
        new["weights"][name] = kept * weight - LEARNING_RATE * update
        new["first"][name], new["second"][name] = first, second
    return new, loss


def loss_of(case: Case, weights: Weights, images: Array, labels: Array) -> Array:
    """Cross entropy with label smoothing, the mean over the batch."""
    log_p = jax.nn.log_softmax(logits_of(case, weights, images))  # (B, K)
    of_labels = jnp.take_along_axis(log_p, labels[:, None], axis=1)
    return -(1 - LABEL_SMOOTHING) * of_labels.mean() - LABEL_SMOOTHING * log_p.mean()


def logits_of(case: Case, weights: Weights, images: Array) -> Array:
    return MODELS[case.architecture.name](weights, images, case.model)


def _with_weights(case: Case, start: Start) -> Start:
    """The start as it is, or, where each side draws its own weights to warm up, with minivit's."""
    if start.weights:
        return start
    from minivit_side import start_of

    return Start(start.images, start.labels, (), start_of(case)[0])
