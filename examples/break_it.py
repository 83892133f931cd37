"""Ablation of a transformer: remove or break one part at a time, and compare loss, accuracy and gradients.

    python examples/break_it.py                            # every switch, a minute or two on one core
    python examples/break_it.py --switch no_residual       # one switch and the whole model

Each switch changes one line of a model, and all models are trained on the same images for the same short time. A wrong
model has a right gradient: the gradient check passes, and the accuracy may or may not drop. A wrong gradient is found
by the check, whatever the loss is. The results are explained in docs/lessons/10_break_it.py.

Notation: B images, N tokens, D channels, H heads, d = D/H.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import minivit
from minivit import data, functional as F, nn, optim
from minivit.models import Model
from minivit.protocol import Array, once
from minivit.sizes import pair
from minivit.train import command_line

# --- two whole models and their data --------------------------------------------------------------------------------

# 16 patches of 7 x 7 pixels; "jax" is Xavier initialization: the usual standard deviation of 0.02 is for a width of 768
VIT = {"img_size": 28, "patch_size": 7, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 6, "num_heads": 2,
       "mlp_ratio": 2.0, "class_token": False, "global_pool": "avg", "weight_init": "jax"}  # fmt: skip
# a map of 8 x 8 tokens, windows of 4 x 4: one plain block and one shifted one
SWIN = {"img_size": 8, "patch_size": 1, "in_chans": 1, "num_classes": 2, "embed_dim": 16, "depths": (2,),
        "num_heads": (2,), "window_size": 4, "mlp_ratio": 2.0, "drop_path_rate": 0.0}  # fmt: skip
TINY = {False: {"embed_dim": 8, "depth": 2}, True: {"embed_dim": 8}}  # ViT and Swin for the gradient check
WIDER = 8.0  # Swin's initial weights have a standard deviation of 0.02, for a width of 96 and more; here it is 16


class Images(NamedTuple):  # (B, 1, H, W), and labels (B,)
    learn: Array
    labels: Array
    test: Array
    answers: Array


def digits(mnist: data.Mnist, count: int = 4000) -> Images:
    """`count` images of MNIST for training, 1,000 others for the test."""
    learn, test = (data.normalize(part[:, None]) for part in (mnist.train_images[:count], mnist.test_images[:1000]))
    return Images(learn, mnist.train_labels[:count], test, mnist.test_labels[:1000])


def dots(count: int = 2400, seed: int = 0) -> Images:
    """Images (B, 1, 8, 8) of a bright and a dark dot in one row: class 1 side by side, class 0 at the image's two ends.

    Side by side is in columns 3 and 4, at the border of two windows; the ends are columns 0 and 7. So in both classes
    each window has one dot, in its first or last column: only attention across windows can tell the classes apart.
    """
    rng, total = np.random.default_rng(seed), count + 1000
    images = 0.1 * rng.standard_normal((total, 1, 8, 8), dtype=np.float32)
    labels, rows, sign = rng.integers(2, size=total), rng.integers(8, size=total), rng.choice((-2, 2), size=total)
    left = np.where(labels == 1, 3, 0)
    images[np.arange(total), 0, rows, left] += sign
    images[np.arange(total), 0, rows, 7 - left] -= sign
    return Images(images[:count], labels[:count], images[count:], labels[count:])


# --- wrong models: another function, and its right gradient ---------------------------------------------------------


class NoScale(nn.Attention):
    """Scores q k^T that are not divided by sqrt(d)."""

    def forward(self, x: Array, rng: Any = None) -> Any:
        qkv, back_qkv = self.qkv(x)  # (B, N, 3D)
        (q, k, v), back_split = F.split_qkv(qkv, self.num_heads)  # each (B, H, N, d)
        heads, back_attention = F.scaled_dot_product_attention(q, k, v, scale=1.0)  # the mistake
        merged, back_merge = F.merge_heads(heads)
        y, back_proj = self.proj(merged)  # (B, N, D)

        @once
        def back(dy: Array) -> Array:
            dq, dk, dv, _ = back_attention(back_merge(back_proj(dy)))
            return back_qkv(back_split(dq, dk, dv))

        return y, back


class NoResidual(nn.Block):
    """x <- attn(norm1(x)); x <- mlp(norm2(x)): the input is not added."""

    def forward(self, x: Array, rng: Any = None) -> Any:
        attended, back_attn = self._branch(self.norm1, self.attn, x, rng)
        y, back_mlp = self._branch(self.norm2, self.mlp, attended, rng)
        return y, once(lambda dy: back_attn(back_mlp(dy)))


class PostNorm(nn.Block):
    """x <- norm1(x + attn(x)); x <- norm2(x + mlp(x)): norms on the residual stream itself (Vaswani et al. 2017)."""

    def forward(self, x: Array, rng: Any = None) -> Any:
        attended, back_attn = self.attn(x, rng)
        middle, back_norm1 = self.norm1(x + attended)
        transformed, back_mlp = self.mlp(middle, rng)
        y, back_norm2 = self.norm2(middle + transformed)

        @once
        def back(dy: Array) -> Array:
            dsum = back_norm2(dy)  # in the forward pass: y = norm2(middle + mlp(middle))
            dsum = back_norm1(dsum + back_mlp(dsum))  # and middle = norm1(x + attn(x))
            return dsum + back_attn(dsum)

        return y, back


class NoMask(nn.WindowAttention):
    """Windows in which all tokens attend to each other, also across the seam of the roll."""

    def forward(self, x: Array, rng: Any = None, mask: Array | None = None) -> Any:
        return super().forward(x, rng, mask=None)


# --- wrong gradients: the right function, and a mistake in the backward pass ----------------------------------------


class SoftmaxOverBatch(nn.Attention):
    """The gradient of softmax is divided by the number of images, as if every layer were a loss."""

    def forward(self, x: Array, rng: Any = None) -> Any:
        qkv, back_qkv = self.qkv(x)  # (B, N, 3D)
        (q, k, v), back_split = F.split_qkv(qkv, self.num_heads)  # each (B, H, N, d)
        scale = q.shape[-1] ** -0.5
        weights, back_softmax = F.softmax(q @ k.swapaxes(-1, -2) * scale)  # (B, H, N, N)
        merged, back_merge = F.merge_heads(weights @ v)
        y, back_proj = self.proj(merged)  # (B, N, D)

        @once
        def back(dy: Array) -> Array:
            dheads = back_merge(back_proj(dy))  # (B, H, N, d)
            dscores = back_softmax(dheads @ v.swapaxes(-1, -2)) * scale
            dscores /= len(dy)  # the mistake
            dq, dk, dv = dscores @ k, dscores.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ dheads
            return back_qkv(back_split(dq, dk, dv))

        return y, back


class GainOutside(nn.LayerNorm):
    """dx is multiplied by the gain at the end, after the two means, instead of dy before them."""

    def forward(self, x: Array, rng: Any = None) -> Any:
        y, vjp = F.layer_norm(x, self.weight.data, self.bias.data, self.eps)
        _, vjp_plain = F.layer_norm(x, None, None, self.eps)

        @once
        def back(dy: Array) -> Array:
            _, dweight, dbias = vjp(dy)
            self.weight.accumulate(dweight)
            self.bias.accumulate(dbias)
            return vjp_plain(dy)[0] * self.weight.data  # the mistake: it should be vjp_plain(dy * weight)

        return y, back


class ResidualForgotten(nn.Block):
    """y = x + f(x), whose gradient is passed on as if it were f(x)."""

    def forward(self, x: Array, rng: Any = None) -> Any:
        attended, back_attn = self._branch(self.norm1, self.attn, x, rng)
        middle = x + attended
        transformed, back_mlp = self._branch(self.norm2, self.mlp, middle, rng)
        return middle + transformed, once(lambda dy: back_attn(back_mlp(dy)))  # the mistake: dy is added nowhere


# --- the switches ---------------------------------------------------------------------------------------------------


def replaced(part: Any, old: type, make: Callable[[Any], Any]) -> Any:
    """A part of a model in which every layer of the class `old` has become make(layer)."""
    if type(part) is old:
        return make(part)
    if isinstance(part, list):
        return [replaced(item, old, make) for item in part]
    if isinstance(part, nn.Layer):
        for name, inner in list(vars(part).items()):
            setattr(part, name, replaced(inner, old, make))
    return part


def swap(kind: type) -> Callable[[Any], Any]:
    """Every layer of the class above `kind` becomes a `kind`: the same parameters, another forward or backward pass."""

    def become(layer: Any) -> Any:
        twin = copy.copy(layer)
        twin.__class__ = kind
        return twin

    return lambda model: replaced(model, kind.__bases__[0], become)


def no_norm(model: Any) -> None:
    """Every LayerNorm is replaced by an empty chain of layers, which is the identity and has no parameters."""
    replaced(model, nn.LayerNorm, lambda norm: nn.Sequential())


def no_shift(model: Any) -> None:
    """Every block's windows stay where they are."""
    for block in model.layers[0].blocks:
        block.attn.shift_size = (0, 0)


class Switch(NamedTuple):
    """What is broken: in words, by a change of the model before training, or by other arguments of the model.

    A `swin` classifies dots, the others digits. A `noisy_test` runs the model as in training, with a generator.
    """

    says: str
    breaks: Callable[[Any], Any] = lambda model: None
    options: dict[str, Any] = {}
    swin: bool = False
    noisy_test: bool = False


SWITCHES = {
    "whole": Switch("nothing: the whole ViT"),
    "no_scale": Switch("scores not divided by sqrt(d)", swap(NoScale)),
    "no_residual": Switch("no x + ... around the branches", swap(NoResidual)),
    "no_norm": Switch("no LayerNorm anywhere", no_norm),
    "post_norm": Switch("norms behind the additions", swap(PostNorm)),
    "no_position": Switch("no position added to the tokens", options={"pos_embed": "none"}),
    "wrong_eps": Switch("LayerNorm's eps 1e-3, not 1e-6", options={"norm_eps": 1e-3}),
    "tanh_gelu": Switch("GELU by its tanh approximation", options={"gelu": "tanh"}),
    "dropout": Switch("dropout 0.2, off in the test", options={"proj_drop_rate": 0.2}),
    "dropout_at_test": Switch("dropout 0.2, left on", options={"proj_drop_rate": 0.2}, noisy_test=True),
    "softmax_over_batch": Switch("WRONG GRADIENT: softmax's / batch", swap(SoftmaxOverBatch)),
    "gain_outside": Switch("WRONG GRADIENT: gain after means", swap(GainOutside)),
    "residual_forgotten": Switch("WRONG GRADIENT: x of x + f(x)", swap(ResidualForgotten)),
    "whole_swin": Switch("nothing: the whole Swin", swin=True),
    "no_mask": Switch("no mask over the seam", swap(NoMask), swin=True),
    "no_shift": Switch("no block shifts its windows", no_shift, swin=True),
}


def build(name: str, seed: int = 0, **options: Any) -> Model:
    """The model that a switch leaves, with the initial weights of the whole one."""
    switch = SWITCHES[name]
    kind, sizes = (minivit.Swin, SWIN) if switch.swin else (minivit.ViT, VIT)
    model = kind(**{**sizes, **switch.options, **options}, seed=seed)
    if switch.swin:
        for param in model.parameters().values():
            param.data = param.data * (WIDER if len(param.shape) == 2 else 1)
    switch.breaks(model)
    return model


# --- what is measured -----------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """Of one training: the loss at each step, the test accuracy, and block gradients (median over the steps)."""

    losses: list[float]
    accuracy: float
    first: float
    last: float


def learn(name: str, images: Images, epochs: int = 4, seed: int = 0, batch: int = 50) -> Outcome:
    """Train what a switch leaves, with AdamW, clipping, warm-up and cosine, and the same order for all switches."""
    if epochs < 1:
        raise ValueError(f"epochs={epochs}: choose at least 1")
    model, lr = build(name, seed), 5e-3 if SWITCHES[name].swin else 8e-3  # the whole models learn well at these
    opt = optim.AdamW(model.parameters(), lr, no_decay=optim.no_decay(model), threads=1)
    steps = data.num_batches(len(images.learn), batch)
    losses, norms = [], []
    for step in range(epochs * steps):
        epoch, place = divmod(step, steps)
        chosen = data.batch_indices(len(images.learn), batch, seed, epoch, place)
        opt.lr = optim.warmup_cosine(step, epochs * steps, peak=lr, warmup=epochs * steps // 10)
        opt.zero_grad()
        logits, back = model(images.learn[chosen], np.random.default_rng((seed, step)))  # (batch, K)
        loss, back_loss = F.softmax_cross_entropy(logits, images.labels[chosen])
        back(back_loss())
        norms.append(block_gradients(model))
        optim.clip_grad_norm(model.parameters(), 1.0)
        opt.step()
        losses.append(float(loss))
    score = accuracy(model, images, np.random.default_rng(seed) if SWITCHES[name].noisy_test else None)
    first, last = np.median(norms, axis=0).tolist()
    return Outcome(losses, score, first, last)


def accuracy(model: Model, images: Images, rng: Any = None) -> float:
    """The share of test images that are classified correctly; with a generator the model is run as in training."""
    logits = model.predict(images.test) if rng is None else model(images.test, rng)[0]
    return float((logits.argmax(axis=1) == images.answers).mean())


def block_gradients(model: Any) -> tuple[float, float]:
    """The Euclidean norms of the gradients of the first block and of the last."""
    blocks = model.layers[0].blocks if isinstance(model, minivit.Swin) else model.blocks
    ends = [block.parameters().values() for block in (blocks[0], blocks[-1])]
    first, last = (sum(float((param.grad**2).sum()) for param in params) ** 0.5 for params in ends)
    return first, last


def check(name: str) -> str:
    """The result of `check_vjp` for a small copy of the model, in float64, with two images: "passes" or the error."""
    model = build(name, **TINY[SWITCHES[name].swin], dtype="float64")
    images = np.random.default_rng(0).standard_normal((2, 1, *pair(model.config["img_size"])))
    try:
        minivit.check_vjp(model, images, rng_seed=1)
    except minivit.GradientError as error:
        return str(error)
    return "passes"


HEAD = "switch                loss  accuracy  grad first      last  check   what is different"


def row(name: str, outcome: Outcome, verdict: str) -> str:
    """A line of the table; the loss is the mean of the last 20 steps."""
    numbers = f"{np.mean(outcome.losses[-20:]):6.3f} {outcome.accuracy:9.1%} {outcome.first:10.1e} {outcome.last:9.1e}"
    return f"{name:19s} {numbers}  {'passes' if verdict == 'passes' else 'FAILS ':6s}  {SWITCHES[name].says}"


def main(args: argparse.Namespace) -> None:
    """The table of the selected switches."""
    wanted = set(args.switch) | {"whole_swin" if SWITCHES[name].swin else "whole" for name in args.switch}
    mnist = data.load_mnist(args.data or os.environ.get("MINIVIT_MNIST"))
    print(f"data: {mnist.source}\n{HEAD}", flush=True)
    for name in [name for name in SWITCHES if name in wanted]:
        images = dots(args.images * 3 // 5) if SWITCHES[name].swin else digits(mnist, args.images)
        verdict = check(name)
        print(row(name, learn(name, images, args.epochs, args.seed), verdict), flush=True)
        if verdict != "passes":
            print(f"    {verdict}")


def arguments() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command_line.Help)
    parser.add_argument("--switch", choices=SWITCHES, nargs="+", default=list(SWITCHES), help="default: all")
    parser.add_argument("--images", type=command_line.at_least(1), default=4000, help="digits to train on")
    parser.add_argument("--epochs", type=command_line.at_least(1), default=4, help="passes over them")
    parser.add_argument("--seed", type=command_line.at_least(0), default=0, help="of initial weights and order")
    parser.add_argument("--data", help="folder with the four MNIST files (default: cache, download, or the subset)")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    return parser.parse_args()


if __name__ == "__main__":
    command_line.run(main, arguments())
