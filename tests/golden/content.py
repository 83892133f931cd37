"""What the golden files hold, computed by the public names that the first edition had too.

`make.py` ran it on the first edition (commit 1541888) and stored the results; `tests/test_golden.py` runs it now.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np

import minivit
from minivit import data, optim, parallel

normalize = data.normalize if hasattr(data, "normalize") else data.normalise  # the first edition's name

MODELS: dict[str, Any] = {
    "vit": (minivit.ViT, {"img_size": 12, "patch_size": 4, "in_chans": 2, "embed_dim": 12, "depth": 2, "num_heads": 3}),
    "hybrid": (
        minivit.ViT,
        {"img_size": 18, "patch_size": 1, "in_chans": 2, "embed_dim": 8, "depth": 1, "num_heads": 2}
        | {"resnet_layers": (1, 1), "resnet_width": 4, "resnet_groups": 2},
    ),
    "swin": (
        minivit.Swin,
        {"img_size": (18, 14), "patch_size": 2, "in_chans": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2)}
        | {"window_size": 4, "mlp_ratio": 2.0},
    ),
    "swin_v2": (
        minivit.SwinV2,
        {"img_size": (18, 14), "patch_size": 2, "in_chans": 2, "embed_dim": 8, "depths": (2, 2), "num_heads": (2, 2)}
        | {"window_size": 4, "mlp_ratio": 2.0, "cpb_hidden": 6},
    ),
}
# the same families with the options that the models above leave out; only their gradients are stored
_VIT = {"img_size": (12, 8), "patch_size": 4, "in_chans": 2, "embed_dim": 8, "depth": 2, "num_heads": 2}
_VIT |= {"mlp_ratio": 2.0}
_SWIN = MODELS["swin"][1] | {"embed_dim": 4, "img_size": (10, 14), "mlp_ratio": 1.0}  # a map of 5x7, padded to 8x8
OPTIONS: dict[str, Any] = {
    "vit, mean of patches": (
        minivit.ViT,
        _VIT
        | {"class_token": False, "global_pool": "avg", "pos_embed": "relative", "qkv_bias": False, "gelu": "tanh"}
        | {"patch_norm": True, "representation_size": 6},
    ),
    "vit, distilled": (minivit.ViT, _VIT | {"distilled": True, "pos_embed": "learned_2d"}),
    "swin, masked padding": (minivit.Swin, _SWIN | {"mask_padding": True, "ape": True, "covered": "shift"}),
    "swin, padded after the shift": (minivit.Swin, _SWIN | {"pad_first": False, "gelu": "tanh"}),
    "swin_v2, limited scale": (minivit.SwinV2, _SWIN | {"cpb_hidden": 4}),
}
NOISE = {"drop_rate": 0.2, "pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.2, "drop_path_rate": 0.3}


def model(family: str, dtype: str, noise: bool = False) -> Any:
    """A tiny model whose every parameter is far from where it starts, norms and tables included."""
    kind, options = (MODELS | OPTIONS)[family]
    built = kind(**{**options, "num_classes": 3, **(NOISE if noise else {})}, dtype=dtype, seed=3)
    rng = np.random.default_rng(11)
    for param in built.parameters().values():
        param.data = param.data + 0.2 * rng.standard_normal(param.shape)
    if family == "swin_v2, limited scale":
        built.parameters()["layers.1.blocks.1.attn.logit_scale"].data[-1] = 5.0  # one head above the limit log(100)
    return built


def images(family: str, dtype: str, count: int = 3, seed: int = 5) -> Any:
    """Images (B, C, H, W) of the size that the model is built for."""
    size = (MODELS | OPTIONS)[family][1]["img_size"]
    height, width = (size, size) if isinstance(size, int) else size
    return np.random.default_rng(seed).standard_normal((count, 2, height, width)).astype(dtype)


def gradients(family: str, noise: bool) -> dict[str, Any]:
    """Logits, dx and every parameter's gradient in float64, for a random gradient of the logits."""
    built, x = model(family, "float64", noise), images(family, "float64")
    y, back = built(x, np.random.default_rng(7) if noise else None)
    found = {"logits": y, "dx": back(np.random.default_rng(9).standard_normal(y.shape))}
    return found | {name: param.grad for name, param in built.parameters().items()}


def losses(family: str) -> tuple[list[float], dict[str, float]]:
    """Ten training steps in float32: their losses, and the norm of each parameter after them."""
    built = model(family, "float32", noise=True)
    params = built.parameters()
    options = {"no_decay": optim.no_decay(built), "lr_scale": optim.layer_decay(built, 0.8), "threads": 1}
    opt = optim.AdamW(params, lr=3e-3, weight_decay=0.1, **options)
    step = parallel.DataParallel(built, threads=1, shards=2)
    found = []
    for number in range(10):
        labels = np.random.default_rng(number).integers(0, 3, 6)
        opt.zero_grad()
        x = images(family, "float32", 6, seed=number)
        found.append(step.loss_and_grad(x, labels, np.random.default_rng(100 + number), label_smoothing=0.1))
        optim.clip_grad_norm(params, 1.0)
        opt.step()
    return found, {name: float(np.linalg.norm(param.data)) for name, param in params.items()}


# --- runs: a model that is trained on a MNIST of noise --------------------------------------------------------------

DIGITS = {"img_size": 28, "in_chans": 1, "num_classes": 10}
VIT_RUN = DIGITS | {"patch_size": 7, "embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path_rate": 0.2}
SWIN_RUN = DIGITS | {"patch_size": 4, "embed_dim": 8, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
RECIPE = {"epochs": 3, "batch_size": 16, "held_out": 20}
RECIPES = {"vit": RECIPE | {"degrees": 5.0, "scale": 0.1}, "swin": RECIPE}  # the Swin example only shifts digits
TUNING = {"epochs": 3, "batch_size": 16}
TUNING_SEED = 6  # the first epoch is then the best, so its weights must come from the checkpoint
STOP_AFTER = 5  # steps of the four in each epoch


def write_mnist(folder: Path) -> None:
    """Four IDX files with 84 training and 30 test images of noise whose mean tells the class."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 84), ("t10k", 30)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        pixels = rng.integers(0, 60, (count, 28, 28)) + 15 * labels[:, None, None]
        for what, array in (("images-idx3", pixels.astype(np.uint8)), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{name}-{what}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def logits_of_test_images(trained: Any, folder: Path) -> Any:
    """What a trained model says of the 30 test images, (30, 10)."""
    return trained.predict(normalize(data.load_mnist(folder).test_images[:, None]))
