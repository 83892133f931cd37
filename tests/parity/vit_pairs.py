"""A model of minivit and the same model of transformers, with the same random parameters.

Nothing is downloaded: both are built from a configuration.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from parity_tools import timm_arrays, torch

from minivit.models import ViT

transformers = pytest.importorskip(
    "transformers", reason="compared with transformers' models: install the `parity` extra, see CONTRIBUTING.md"
)


def transformers_twin(model: ViT, rng: Any, attention: str = "sdpa", scale: float = 0.4) -> Any:
    """The same ViT (or distilled DeiT) of transformers; draws new parameters for both and copies them over.

    `attention` is "sdpa" unless asked: transformers' "eager" takes the softmax in float32 whatever the model's dtype.
    """
    c = model.config
    distilled = c["distilled"]
    kind = transformers.DeiTConfig if distilled else transformers.ViTConfig
    config = kind(
        image_size=c["img_size"],
        patch_size=c["patch_size"],
        num_channels=c["in_chans"],
        num_labels=c["num_classes"],
        hidden_size=c["embed_dim"],
        num_hidden_layers=c["depth"],
        num_attention_heads=c["num_heads"],
        intermediate_size=int(c["embed_dim"] * c["mlp_ratio"]),
        hidden_act={"none": "gelu", "tanh": "gelu_pytorch_tanh"}[c["gelu"]],
        layer_norm_eps=c["norm_eps"],
        qkv_bias=c["qkv_bias"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
    )
    if distilled:
        twin = transformers.DeiTForImageClassificationWithTeacher(config)
    else:
        twin = transformers.ViTForImageClassification(config)
    twin = twin.to(getattr(torch, c["dtype"]))
    with torch.no_grad():
        for name, param in twin.named_parameters():
            gain = "norm" in name and name.endswith("weight")
            param.copy_(torch.tensor(gain + scale * rng.standard_normal(tuple(param.shape))))
    model.load_state_dict(timm_arrays(dict(twin.named_parameters())))
    return twin


def parameter_error(model: ViT, twin: Any) -> float:
    """The largest difference of two models' parameters, relative to the largest parameter."""
    expected = timm_arrays(dict(twin.named_parameters()))
    largest = max(np.abs(array).max() for array in expected.values())
    params = model.parameters()
    assert params.keys() == expected.keys()
    return float(max(np.abs(param.data - expected[name]).max() for name, param in params.items()) / largest)
