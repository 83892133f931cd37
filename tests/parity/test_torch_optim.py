"""The optimizers against torch.optim, on the same gradients and in training whole models, and clipping and averaging.

A trajectory of 20 steps agrees to 1e-9 in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parity_tools import timm_name, torch
from vit_pairs import parameter_error, transformers_twin

from minivit import functional as F, nn, optim
from minivit.models import ViT
from minivit.nn import Parameter

STEPS = 20
TRAJECTORY = 1e-9
SHAPES = {"a.weight": (4, 3), "a.bias": (4,), "frozen.weight": (2, 2), "b.weight": (2, 5, 3), "b.bias": (5,)}
PLAIN = ("a.bias", "b.bias")  # take no weight decay
FROZEN = "frozen.weight"  # never has a gradient


def twins(seed: int = 0) -> tuple[dict[str, Parameter], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    ours = {name: Parameter(rng.standard_normal(shape)) for name, shape in SHAPES.items()}
    return ours, {name: torch.nn.Parameter(torch.tensor(param.data)) for name, param in ours.items()}


def groups(theirs: dict[str, Any], decay: float, plain: Any) -> list[dict[str, Any]]:
    return [
        {"params": [param for name, param in theirs.items() if name not in plain], "weight_decay": decay},
        {"params": [param for name, param in theirs.items() if name in plain], "weight_decay": 0.0},
    ]


def scaled_groups(theirs: dict[str, Any], decay: float, scales: dict[str, float]) -> list[dict[str, Any]]:
    """A group for each parameter; `scale` is no option of torch's, it is read by `set_lr`."""
    return [
        {"params": [param], "weight_decay": decay, "scale": scales.get(name, 1.0)} for name, param in theirs.items()
    ]


def set_lr(ours: optim.Optimizer, theirs: Any, lr: float) -> None:
    ours.lr = lr
    for group in theirs.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)


def follow(ours: dict[str, Parameter], opt: optim.Optimizer, theirs: dict[str, Any], reference: Any) -> None:
    """Twenty steps on the same gradients, of all sizes, at a learning rate that changes."""
    rng = np.random.default_rng(1)
    for step in range(STEPS):
        set_lr(opt, reference, 0.05 / (1 + 0.1 * step))
        opt.zero_grad()
        for name, param in ours.items():
            if name == FROZEN:
                continue
            grad = rng.standard_normal(param.shape) * 10.0 ** rng.integers(-5, 2)
            param.accumulate(grad)
            theirs[name].grad = torch.tensor(grad)
        opt.step()
        reference.step()
        for name, param in ours.items():
            expected = theirs[name].detach().numpy()
            error = np.abs(param.data - expected).max() / np.abs(expected).max()
            assert error <= TRAJECTORY, f"step {step}, {name}: {error:.1e}"


@pytest.mark.parametrize("plain", [(), PLAIN], ids=["one_group", "no_decay_group"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.7, 0.95), 1e-3)])
def test_adamw(betas: tuple[float, float], eps: float, decay: float, plain: tuple[str, ...]) -> None:
    ours, theirs = twins()
    opt = optim.AdamW(ours, 0.05, decay, betas, eps, plain)
    follow(ours, opt, theirs, torch.optim.AdamW(groups(theirs, decay, plain), 0.05, betas, eps))


@pytest.mark.parametrize("plain", [(), PLAIN], ids=["one_group", "no_decay_group"])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum: float, nesterov: bool, decay: float, plain: tuple[str, ...]) -> None:
    ours, theirs = twins()
    opt = optim.SGD(ours, 0.05, momentum, decay, nesterov, plain)
    reference = torch.optim.SGD(groups(theirs, decay, plain), 0.05, momentum, nesterov=nesterov)
    follow(ours, opt, theirs, reference)


SCALES = {"a.weight": 0.1, "a.bias": 0.5, "b.bias": 3.0, "frozen.weight": 0.2}


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_learning_rate_for_each_group(kind: str) -> None:
    ours, theirs = twins()
    if kind == "adamw":
        opt: optim.Optimizer = optim.AdamW(ours, 0.05, 0.3, lr_scale=SCALES)
        reference = torch.optim.AdamW(scaled_groups(theirs, 0.3, SCALES), 0.05)
    else:
        opt = optim.SGD(ours, 0.05, 0.9, 0.3, True, lr_scale=SCALES)
        reference = torch.optim.SGD(scaled_groups(theirs, 0.3, SCALES), 0.05, 0.9, nesterov=True)
    follow(ours, opt, theirs, reference)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("max_norm", [0.5, 3.0, 1e4])
def test_clip_grad_norm(max_norm: float, dtype: str) -> None:
    rng = np.random.default_rng(0)
    ours = {name: Parameter(np.zeros(shape, dtype)) for name, shape in SHAPES.items()}
    theirs = {name: torch.nn.Parameter(torch.tensor(param.data)) for name, param in ours.items()}
    for name, param in ours.items():
        if name != FROZEN:
            param.accumulate(rng.standard_normal(param.shape).astype(dtype))
            theirs[name].grad = torch.tensor(param.grad)
    norm = optim.clip_grad_norm(ours, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs.values(), max_norm).item()
    limit = {"float64": 1e-14, "float32": 1e-6}[dtype]
    assert norm == pytest.approx(expected, rel=limit, abs=0)
    assert (norm > max_norm) == (max_norm < 100)  # both branches are run
    for name, param in ours.items():
        if name == FROZEN:
            assert param.grad is None
            continue
        wanted = theirs[name].grad.numpy()
        assert param.grad.dtype == wanted.dtype
        assert np.abs(param.grad - wanted).max() <= limit * np.abs(wanted).max()


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_model_ema(decay: float) -> None:
    rng = np.random.default_rng(0)
    model = nn.Linear(3, 4, dtype="float64", seed=0)
    ema = optim.ModelEma(model, decay)
    expected = {name: param.data.copy() for name, param in model.parameters().items()}
    for step in range(STEPS):
        for name, param in model.parameters().items():
            param.data = rng.standard_normal(param.shape)
            share = min(decay, (1 + step) / (10 + step))
            expected[name] = share * expected[name] + (1 - share) * param.data
        ema.update()
        for name, wanted in expected.items():
            assert np.abs(ema.average[name] - wanted).max() <= 1e-14
    last, average = model.state_dict(), ema.state_dict()
    ema.swap()
    for name, param in model.parameters().items():
        assert np.array_equal(param.data, average[name])
    ema.swap()
    for name, param in model.parameters().items():
        assert np.array_equal(param.data, last[name])


# --- training whole models ---

CONFIG: dict[str, Any] = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 5,
    "embed_dim": 12,
    "depth": 2,
    "num_heads": 3,
    "mlp_ratio": 2.0,
}


class Pair:
    """A ViT and its twin in transformers, each trained by its own program on the same batches."""

    def __init__(self, dtype: str, distilled: bool = False, scale: float = 0.4) -> None:
        self.dtype = dtype
        self.model = ViT(**CONFIG, distilled=distilled, dtype=dtype)
        self.twin = transformers_twin(self.model, np.random.default_rng(0), scale=scale)
        self.rng = np.random.default_rng(1)

    def groups(self, decay: float) -> list[dict[str, Any]]:
        """torch's parameter groups, by minivit's rule of what decays."""
        plain = optim.no_decay(self.model)
        named = dict(self.twin.named_parameters())
        stacked = {name: timm_name(name).replace("q_proj", "qkv") for name in named}
        stacked = {name: new.replace("k_proj", "qkv").replace("v_proj", "qkv") for name, new in stacked.items()}
        return groups(named, decay, {name for name, new in stacked.items() if new in plain})

    def step(self, opt: optim.Optimizer, reference: Any, max_norm: float) -> tuple[float, float]:
        """One step of both; returns both losses."""
        images = self.rng.standard_normal((6, 3, 8, 8)).astype(self.dtype)
        labels = self.rng.integers(0, 5, 6)
        opt.zero_grad()
        logits, back = self.model(images)
        loss, back_loss = F.softmax_cross_entropy(logits, labels, 0.1)
        back(back_loss())
        norm = optim.clip_grad_norm(self.model.parameters(), max_norm)
        opt.step()

        reference.zero_grad()
        expected = self.twin(torch.tensor(images)).logits
        wanted = torch.nn.functional.cross_entropy(expected, torch.tensor(labels), label_smoothing=0.1)
        wanted.backward()
        total = torch.nn.utils.clip_grad_norm_(self.twin.parameters(), max_norm)
        reference.step()
        assert norm == pytest.approx(total.item(), rel=1e-9 if self.dtype == "float64" else 1e-3)
        return float(loss), wanted.item()


OPTIMIZERS: dict[str, tuple[Any, Any]] = {
    "adamw": (
        lambda model: optim.AdamW(model.parameters(), 5e-3, 0.1, no_decay=optim.no_decay(model)),
        lambda pair: torch.optim.AdamW(pair.groups(0.1), 5e-3),
    ),
    "adamw_no_decay": (
        lambda model: optim.AdamW(model.parameters(), 5e-3, 0.0),
        lambda pair: torch.optim.AdamW(pair.twin.parameters(), 5e-3, weight_decay=0.0),
    ),
    "sgd": (
        lambda model: optim.SGD(model.parameters(), 0.05, 0.9, 0.01, True, optim.no_decay(model)),
        lambda pair: torch.optim.SGD(pair.groups(0.01), 0.05, 0.9, nesterov=True),
    ),
}


@pytest.mark.parametrize("distilled", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_in_float64_follows_the_same_path(name: str, distilled: bool) -> None:
    pair = Pair("float64", distilled)
    start = pair.model.state_dict()
    ours, theirs = OPTIMIZERS[name]
    opt, reference = ours(pair.model), theirs(pair)
    peak = opt.lr
    for step in range(STEPS):
        set_lr(opt, reference, optim.warmup_cosine(step, STEPS, peak=peak, warmup=3, final=0.1 * peak))
        loss, wanted = pair.step(opt, reference, max_norm=1.0)
        assert loss == pytest.approx(wanted, rel=TRAJECTORY, abs=0), f"loss of step {step}"
        error = parameter_error(pair.model, pair.twin)
        assert error <= TRAJECTORY, f"parameters after step {step}: {error:.1e}"
    moved = {name: np.abs(param.data - start[name]).max() for name, param in pair.model.parameters().items()}
    assert min(moved.values()) > 1e-4, "a parameter hardly moved, so its path proves little"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_in_float32_gives_the_same_losses(name: str) -> None:
    pair = Pair("float32", scale=0.2)
    ours, theirs = OPTIMIZERS[name]
    opt, reference = ours(pair.model), theirs(pair)
    for step in range(10):
        loss, wanted = pair.step(opt, reference, max_norm=1.0)
        assert abs(loss - wanted) <= 1e-4, f"loss of step {step}: {loss} and {wanted}"
