"""A Vision Transformer and a Swin Transformer in plain jax.numpy: functions of a dictionary with timm's names.

They are what minivit is compared with, so they take no detour, and what does not depend on the weights (who stands
where in the table of biases, who may look at whom) is a constant. Next: `jax_side.py`.

Notation: B batch, C image channels, D channels, N tokens, Hd heads, d channels of a head, nW windows.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Weights = dict[str, Array]
FORBIDDEN = -100.0  # added to the scores of positions that only the shift has made neighbors, as published


def vit(w: Weights, x: Array, model: dict[str, Any]) -> Array:
    """Images (B, C, H, W) -> logits; `model` holds the arguments that `minivit.ViT` takes."""
    if model.get("resnet_layers") is not None:
        x = resnet(w, x, model["resnet_layers"])
    patches = embed(w, x, model["patch_size"])  # (B, D, H/P, W/P)
    patches = patches.reshape(*patches.shape[:2], -1).transpose(0, 2, 1)  # (B, N, D)
    cls = jnp.broadcast_to(w["cls_token"], (len(x), 1, patches.shape[-1]))
    x = jnp.concatenate((cls, patches), axis=1) + w["pos_embed"]
    for number in range(model["depth"]):
        block = f"blocks.{number}"
        x = x + attention(w, f"{block}.attn", layer_norm(w, f"{block}.norm1", x, 1e-6), model["num_heads"])
        x = x + mlp(w, f"{block}.mlp", layer_norm(w, f"{block}.norm2", x, 1e-6))
    return linear(w, "head", layer_norm(w, "norm", x, 1e-6)[:, 0])


def swin(w: Weights, x: Array, model: dict[str, Any]) -> Array:
    """Images (B, C, H, W) -> logits; `model` holds the arguments that `minivit.Swin` takes.

    Maps must have even sides where they merge, and sides that the window divides or covers: nothing is padded.
    """
    x = layer_norm(w, "patch_embed.norm", embed(w, x, model["patch_size"]).transpose(0, 2, 3, 1))  # (B, H, W, D)
    for stage, (depth, heads) in enumerate(zip(model["depths"], model["num_heads"], strict=True)):
        if stage:
            x = merge(w, f"layers.{stage}.downsample", x)
        side = x.shape[1]
        window = min(side, model["window_size"])
        assert side % window == 0, f"windows of {window} do not divide a map of {side}"
        for place in range(depth):
            block = f"layers.{stage}.blocks.{place}"
            # a window that covers the map shows everyone everyone already
            shift = window // 2 if place % 2 and side > window else 0
            y = layer_norm(w, f"{block}.norm1", x)
            x = x + shifted_attention(w, f"{block}.attn", y, heads, window, shift)
            x = x + mlp(w, f"{block}.mlp", layer_norm(w, f"{block}.norm2", x))
    return linear(w, "head.fc", layer_norm(w, "norm", x).mean(axis=(1, 2)))


MODELS = {"ViT": vit, "Swin": swin}  # by the architecture's name


# --- the parts ------------------------------------------------------------------------------------------------------


def linear(w: Weights, name: str, x: Array) -> Array:
    """(..., Din) -> (..., Dout); the weight is (Dout, Din), as PyTorch keeps it, and the bias may be missing."""
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(w: Weights, name: str, x: Array, eps: float = 1e-5) -> Array:
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
    return (x - mean) * lax.rsqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def mlp(w: Weights, name: str, x: Array) -> Array:
    """Two linear layers with the exact GELU in between."""
    return linear(w, f"{name}.fc2", jax.nn.gelu(linear(w, f"{name}.fc1", x), approximate=False))


def resnet(w: Weights, x: Array, layers: tuple[int, ...]) -> Array:
    """The hybrid's stem, of at least one stage: (B, C, H, W) -> its map. Padding is what JAX calls "SAME"."""
    at = "patch_embed.backbone"
    x = jax.nn.relu(std_conv(w, f"{at}.stem", x, 2))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 3, 3), (1, 1, 2, 2), "SAME")
    for stage, depth in enumerate(layers):
        for place in range(depth):
            block, stride = f"{at}.stages.{stage}.blocks.{place}", 2 if stage and not place else 1
            shortcut = std_conv(w, f"{block}.downsample", x, stride) if not place else x
            y = jax.nn.relu(std_conv(w, block, x, 1, "1"))
            y = jax.nn.relu(std_conv(w, block, y, stride, "2"))
            x = jax.nn.relu(std_conv(w, block, y, 1, "3") + shortcut)
    return x


def std_conv(w: Weights, name: str, x: Array, stride: int, number: str = "", groups: int = 32) -> Array:
    """A convolution whose filters have mean 0 and variance 1, and a GroupNorm."""
    weight = w[f"{name}.conv{number}.weight"]
    mean, variance = (each(weight, axis=(1, 2, 3), keepdims=True) for each in (jnp.mean, jnp.var))
    y = lax.conv(x, (weight - mean) * lax.rsqrt(variance + 1e-8), (stride, stride), "SAME")
    parts = y.reshape(len(y), groups, -1)
    mean, variance = (each(parts, axis=-1, keepdims=True) for each in (jnp.mean, jnp.var))
    y = ((parts - mean) * lax.rsqrt(variance + 1e-5)).reshape(y.shape)
    gain, offset = (w[f"{name}.norm{number}.{each}"][:, None, None] for each in ("weight", "bias"))
    return y * gain + offset


def embed(w: Weights, x: Array, patch: int) -> Array:
    """One strided convolution: (B, C, H, W) -> (B, D, H/P, W/P)."""
    y = lax.conv(x, w["patch_embed.proj.weight"], (patch, patch), "VALID")
    return y + w["patch_embed.proj.bias"][:, None, None]


def attention(w: Weights, name: str, x: Array, heads: int, bias: Array | None = None) -> Array:
    """Multi-head self-attention of tokens (..., N, D); `bias` is added to the scores (..., Hd, N, N)."""
    size = x.shape[-1] // heads
    qkv = linear(w, f"{name}.qkv", x).reshape(*x.shape[:-1], 3, heads, size)
    q, k, v = (jnp.swapaxes(qkv[..., part, :, :], -3, -2) for part in range(3))  # each (..., Hd, N, d)
    scores = q * size**-0.5 @ jnp.swapaxes(k, -2, -1)
    seen = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1) @ v
    return linear(w, f"{name}.proj", jnp.swapaxes(seen, -3, -2).reshape(x.shape))


def shifted_attention(w: Weights, name: str, x: Array, heads: int, window: int, shift: int) -> Array:
    """Attention within the windows of a map (B, H, W, D), which is rolled before and back afterwards."""
    tokens = window * window
    table = w[f"{name}.relative_position_bias_table"]
    # JAX clips an index that is out of range and says nothing
    assert len(table) == (2 * window - 1) ** 2, f"a table of {len(table)} rows does not belong to windows of {window}"
    bias = table[offsets(window)].T.reshape(heads, tokens, tokens)
    if shift:
        bias = bias + seam(x.shape[1], window, shift)  # (nW, Hd, N, N)
        x = jnp.roll(x, (-shift, -shift), (1, 2))
    y = join(attention(w, name, cut(x, window), heads, bias), x.shape, window)
    return jnp.roll(y, (shift, shift), (1, 2)) if shift else y


def merge(w: Weights, name: str, x: Array) -> Array:
    """A map (B, H, W, D) -> (B, H/2, W/2, 2D)."""
    batch, height, width, dim = x.shape
    assert height % 2 == 0, f"a map of {height} x {width} does not merge"
    squares = x.reshape(batch, height // 2, 2, width // 2, 2, dim).transpose(0, 1, 3, 4, 2, 5)  # down before right
    flat = squares.reshape(batch, height // 2, width // 2, 4 * dim)
    return linear(w, f"{name}.reduction", layer_norm(w, f"{name}.norm", flat))


# --- windows: these serve jax's arrays and, for the constants, NumPy's ---------------------------------------------


def cut(x: Any, window: int) -> Any:
    """A map (B, H, W, D) -> its windows (B, nW, N, D)."""
    batch, height, width, dim = x.shape
    squares = x.reshape(batch, height // window, window, width // window, window, dim).swapaxes(2, 3)
    return squares.reshape(batch, -1, window * window, dim)


def join(windows: Array, shape: tuple[int, ...], window: int) -> Array:
    """Windows (B, nW, N, D) -> the map (B, H, W, D)."""
    batch, height, width, dim = shape
    squares = windows.reshape(batch, height // window, width // window, window, window, dim)
    return squares.swapaxes(2, 3).reshape(shape)


def offsets(window: int) -> np.ndarray:
    """(N N,) the row of the table for each query and key, by how far they stand apart."""
    places = np.stack(np.meshgrid(np.arange(window), np.arange(window), indexing="ij")).reshape(2, -1)
    down, right = places[:, :, None] - places[:, None, :] + window - 1  # each (N, N), at least 0
    return np.ravel(down * (2 * window - 1) + right)


def seam(side: int, window: int, shift: int) -> np.ndarray:
    """(nW, 1, N, N): 0 where two positions were neighbors before the shift, `FORBIDDEN` where they were not."""
    place = np.arange(side)
    band = (place >= side - window).astype(int) + (place >= side - shift)
    regions = cut((3 * band[:, None] + band[None, :]).reshape(1, side, side, 1), window)[0, :, :, 0]  # (nW, N)
    forbidden = regions[:, None, :] != regions[:, :, None]
    return np.where(forbidden, FORBIDDEN, 0.0).astype(np.float32)[:, None]
