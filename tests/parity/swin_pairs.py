"""A Swin or Swin v2 of minivit and the same model of transformers, with the same random parameters.

Nothing is downloaded: both are built from a configuration.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from parity_tools import torch

from minivit.models import Swin, SwinV2

transformers = pytest.importorskip(
    "transformers", reason="compared with transformers' models: install the `parity` extra, see CONTRIBUTING.md"
)

# what the names of transformers become, in this order
_NAMES = [
    (r"^swin(v2)?\.", ""),
    (r"^encoder\.", ""),
    (r"^embeddings\.position_embeddings$", "absolute_pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.norm", "patch_embed.norm"),
    # the merging closes a stage there, and opens the next one in timm
    (r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample"),
    (r"attention\.self\.(query|key|value)", lambda found: f"attn.{found[1][0]}_proj"),  # v2, and v1 of transformers 4
    (r"attention\.([qkv]_proj)", r"attn.\1"),
    (r"attention\.(o_proj|output\.dense)", "attn.proj"),
    (r"attention\.(self|relative_position_bias)\.relative_position_bias_table", "attn.relative_position_bias_table"),
    (r"attention\.self\.logit_scale", "attn.logit_scale"),
    (r"attention\.self\.continuous_position_bias_mlp", "attn.cpb_mlp"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(?<=\d)\.output\.dense", ".mlp.fc2"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"^layernorm", "norm"),
    (r"^classifier", "head.fc"),
]


def swin_name(name: str) -> str:
    """The name in minivit of a parameter of transformers' Swin or Swin v2; q, k and v still stand apart."""
    for pattern, new in _NAMES:
        name = re.sub(pattern, new, name)
    return name


def swin_arrays(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Transformers' parameters or gradients as arrays under minivit's names, q, k and v stacked into qkv.

    Version 2 has no bias of k, and keeps those of q and v apart, as `q_bias` and `v_bias`.
    """
    apart = {swin_name(name): array.detach().numpy().copy() for name, array in tensors.items()}
    joined = {name: array for name, array in apart.items() if "_proj." not in name}
    for name in apart:
        if ".q_proj." not in name:
            continue
        parts = [apart.get(name.replace("q_proj", f"{letter}_proj")) for letter in "qkv"]
        if parts[1] is None:
            for letter, part in zip("qv", (parts[0], parts[2])):
                joined[name.replace("q_proj.bias", f"{letter}_bias")] = part
        else:
            joined[name.replace("q_proj", "qkv")] = np.concatenate(parts)
    return joined


def draw(name: str, shape: tuple[int, ...], rng: Any, scale: float, low: bool) -> Any:
    """A random parameter far from its start; `low` makes three layers so weak that a norm behind them meets its eps."""
    normal = rng.standard_normal(shape)
    if name.endswith("logit_scale"):
        return np.log(10) + 0.2 * normal  # factors of 6 to 16: the scores stay far from the -100 of the mask
    if name.endswith("cpb_mlp.2.weight"):
        return 0.1 * normal  # a sum over 512 units, of which the sigmoid should leave something
    if low and re.match(r"patch_embed\.proj|layers\.0\.blocks\.0\.(attn\.proj|mlp\.fc2)", name):
        return 3e-3 * scale * normal
    gain = "norm" in name and name.endswith("weight")
    return gain + scale * normal


def transformers_twin(
    model: Swin,
    rng: Any,
    image_size: tuple[int, int] | None = None,
    attention: str = "sdpa",
    scale: float = 0.4,
    low: bool = False,
) -> Any:
    """The same model of transformers; draws new parameters for both and copies them over.

    `image_size` is what transformers is given instead of the model's `img_size`: only the size of the windows and of
    the position table hang on it. `attention` is v1's "sdpa" unless asked: its "eager" takes the softmax in float32
    whatever the model's dtype. Version 2 has one way of its own.
    """
    c = model.config
    second = isinstance(model, SwinV2)
    options = {
        "image_size": c["img_size"] if image_size is None else image_size,
        "patch_size": c["patch_size"],
        "num_channels": c["in_chans"],
        "num_labels": c["num_classes"],
        "embed_dim": c["embed_dim"],
        "depths": c["depths"],
        "num_heads": c["num_heads"],
        "window_size": c["window_size"],
        "mlp_ratio": c["mlp_ratio"],
        "qkv_bias": c["qkv_bias"],
        "use_absolute_embeddings": c["ape"],
        "hidden_act": {"none": "gelu", "tanh": "gelu_pytorch_tanh"}[c["gelu"]],
        "layer_norm_eps": c["norm_eps"],
        "drop_path_rate": 0.0,
    }
    if second:
        assert c["cpb_hidden"] == 512, "transformers has no other size"
        options["pretrained_window_sizes"] = c["pretrained_window_sizes"]
        twin = transformers.Swinv2ForImageClassification(transformers.Swinv2Config(**options))
    else:
        config = transformers.SwinConfig(**options, attn_implementation=attention)
        twin = transformers.SwinForImageClassification(config)
    if second and c["ape"]:
        # its table has a row for a class token that Swin has not, and then does not fit its own tokens (5.23)
        embeddings = twin.swinv2.embeddings
        embeddings.position_embeddings = torch.nn.Parameter(embeddings.position_embeddings[:, 1:].detach().clone())
    twin = twin.to(getattr(torch, c["dtype"])).eval()
    with torch.no_grad():
        for name, param in twin.named_parameters():
            param.copy_(torch.tensor(draw(swin_name(name), tuple(param.shape), rng, scale, low)))
    for module in twin.modules():
        if hasattr(module, "relative_coords_table"):
            sharpen(module)
    model.load_state_dict(swin_arrays(dict(twin.named_parameters())))
    return twin


def sharpen(attention: Any) -> None:
    """Puts the offsets of a v2 attention, which other projects compute in float32, in the precision of the model."""
    rough = attention.relative_coords_table
    axes = []
    for window, trained in zip(attention.window_size, attention.pretrained_window_size):
        steps = torch.arange(1 - window, window, dtype=torch.float64) * 8 / max((trained or window) - 1, 1)
        axes.append(steps.sign() * (1 + steps.abs()).log2() / 3)
    fine = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[None].to(rough.dtype)
    assert torch.allclose(rough, fine, rtol=0, atol=1e-6)
    attention.relative_coords_table = torch.nn.Buffer(fine, persistent=False)
