"""CLIP's image tower, computed in PyTorch from a file under its own names, against the model that minivit makes of it.

The tower is written here as openai/CLIP describes it: nn.MultiheadAttention, a norm before the blocks, QuickGELU or
GELU, and a projection of the class token without a bias.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parity_tools import check_forward, torch

from minivit import export
from minivit.pretrained import from_pretrained

WIDTH, HEADS, LAYERS, PATCH, SIDE, OUT = 16, 4, 3, 4, 12, 7


def quick_gelu(x: Any) -> Any:
    return x * torch.sigmoid(1.702 * x)


class Block(torch.nn.Module):
    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.attn = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        layers = {"c_fc": torch.nn.Linear(WIDTH, 4 * WIDTH), "c_proj": torch.nn.Linear(4 * WIDTH, WIDTH)}
        self.mlp = torch.nn.ModuleDict(layers)
        self.activation = activation

    def forward(self, x: Any) -> Any:
        normed = self.ln_1(x)
        x = x + self.attn(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))


class Tower(torch.nn.Module):
    def __init__(self, activation: Any) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = torch.nn.Parameter(torch.zeros(1 + (SIDE // PATCH) ** 2, WIDTH))
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(WIDTH), torch.nn.LayerNorm(WIDTH)
        self.transformer = torch.nn.ModuleDict(
            {"resblocks": torch.nn.Sequential(*(Block(activation) for _ in range(LAYERS)))}
        )
        self.proj = torch.nn.Parameter(torch.zeros(WIDTH, OUT))

    def forward(self, images: Any) -> Any:  # (B, 3, H, W) -> (B, K)
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(len(patches), 1, -1), patches), dim=1) + self.positional_embedding
        return self.ln_post(self.transformer["resblocks"](self.ln_pre(x))[:, 0]) @ self.proj


def tower(activation: Any) -> Any:
    made = Tower(activation).to(torch.float64)
    rng = np.random.default_rng(2)
    with torch.no_grad():
        for name, param in made.named_parameters():
            gain = "ln_" in name and name.endswith("weight")
            param.copy_(torch.tensor(gain + 0.4 * rng.standard_normal(tuple(param.shape))))
    return made


@pytest.mark.parametrize(("activation", "gelu"), [(quick_gelu, "quick"), (torch.nn.functional.gelu, "none")])
@pytest.mark.parametrize("prefix", ["visual.", "", "module.visual."])
def test_the_tower_in_a_file_is_the_model_here(tmp_path: Path, activation: Any, gelu: str, prefix: str) -> None:
    made = tower(activation)
    arrays = {f"{prefix}{name}": tensor for name, tensor in made.state_dict().items()}
    torch.save(arrays, tmp_path / "file.pt")
    model = from_pretrained(tmp_path / "file.pt", dtype="float64", num_heads=HEADS, gelu=gelu)
    images = np.random.default_rng(3).standard_normal((2, 3, SIDE, SIDE))
    check_forward(model.predict(images), made(torch.tensor(images)))


def test_an_export_loads_into_the_tower(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    made = tower(quick_gelu)
    torch.save(made.state_dict(), tmp_path / "file.pt")
    model = from_pretrained(tmp_path / "file.pt", dtype="float64", num_heads=HEADS, gelu="quick")
    export(model, tmp_path / "x.safetensors", "openclip")
    arrays = load_file(tmp_path / "x.safetensors")
    other = Tower(quick_gelu).to(torch.float64)
    other.load_state_dict({name.removeprefix("visual."): array for name, array in arrays.items()})
    images = np.random.default_rng(3).standard_normal((2, 3, SIDE, SIDE))
    check_forward(model.predict(images), other(torch.tensor(images)))
