"""Every architecture of timm's ViT, hybrid, DeiT, Swin and Swin v2: its files give its logits, or are refused by name.

Logits and all gradients of the models themselves are compared too.

Files are those that timm writes (`save_for_hf`), with the config.json beside model.safetensors, and without it. The
architectures are made small in widths, depths and images, and keep their other options and the channels of a head. What
is read off full sizes, whose weights would take hours, is compared as arguments.

    python tests/parity/test_timm_names.py --seed 1    # counts of what is loaded, refused and wrong
    python tests/parity/test_timm_names.py --gradients # logits and gradients of every name, instead of distinct ones
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401

from parity_tools import torch

timm = pytest.importorskip("timm", reason="compared with timm's models: pip install --no-deps timm torchvision")

from swin_pairs import sharpen  # noqa: E402
from timm.models import save_for_hf  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

import minivit  # noqa: E402
from minivit import nn  # noqa: E402
from minivit.io.weights import Weights  # noqa: E402
from minivit.models import configs  # noqa: E402
from minivit.models.options import stage_windows  # noqa: E402
from minivit.pretrained import hidden  # noqa: E402
from minivit.pretrained.layouts.microsoft import as_layer_scale  # noqa: E402
from minivit.pretrained.plan import plan_of  # noqa: E402
from minivit.pretrained.recognition import recognize  # noqa: E402
from minivit.sizes import pair  # noqa: E402

MODULES = ("vision_transformer", "vision_transformer_hybrid", "deit", "swin_transformer", "swin_transformer_v2", "beit")
NAMES = [name for module in MODULES for name in timm.list_models(module=module)]
NAMES += [name for name in timm.list_models(module="eva") if "dinov3" in name]
PUBLISHED = dict(configs.published())
FILES = ("with config.json", "weights alone")
CLASSES = 5
SMALL = 128  # channels: such a model stays as it is
ERROR = 1e-7  # of the largest logit; timm keeps the offsets of Swin v2 and lambda of differential attention in float32
PARITY = 1e-9  # of the largest number, where both compute in float64


def full(name: str) -> Any:
    """timm's model of full size, without numbers in its weights."""
    with torch.device("meta"):
        return timm.create_model(name)


def small(name: str, whole: Any) -> Any:
    """The same architecture with few channels, blocks and patches, and the channels that its heads have."""
    embed = whole.patch_embed
    patch = pair(embed.patch_size)[0]
    if not hasattr(whole, "blocks"):
        stages = [stage.blocks[0].attn for stage in whole.layers]
        dim = stages[0].dim // stages[0].num_heads
        sizes = {"embed_dim": dim, "num_heads": tuple(2**i for i in range(len(stages))), "depths": (2,) * len(stages)}
    elif whole.embed_dim <= SMALL:
        sizes = {"img_size": 2 * patch}
    else:
        step = pair(embed.img_size)[0] // embed.grid_size[0] // patch if hasattr(embed, "backbone") else 1
        sizes = {"depth": 2, "img_size": 2 * patch * step}
        if not isinstance(embed.proj, torch.nn.Identity):  # else the tokens are a backbone's channels
            sizes |= {"embed_dim": 2 * (whole.embed_dim // _attention(whole).num_heads), "num_heads": 2}
    return timm.create_model(name, num_classes=CLASSES, **sizes).eval()


def _attention(model: Any) -> Any:
    """The first attention of a ViT; some blocks are one themselves."""
    found = [module for module in model.blocks[0].modules() if hasattr(module, "num_heads")]
    return found[0]


def draw(model: Any, seed: int) -> None:
    """Weights that are far from their start, so that no part of the model is without effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            normal = torch.randn(param.shape, generator=generator)
            if name.endswith("logit_scale"):
                param.copy_(np.log(10) + 0.2 * normal)
            elif "norm" in name and name.endswith("weight"):
                param.copy_(1 + 0.3 * normal)
            elif param.ndim < 2 or "token" in name or "pos_embed" in name:
                param.copy_(0.5 * normal)
            else:
                param.copy_(normal / param[0].numel() ** 0.5)


def small_file(model: Any, folder: Path, seed: int, file: str) -> tuple[str, str]:
    """What becomes of a small model's file: ("equal", ""), ("refused", the message) or ("wrong", how much)."""
    save_for_hf(model, folder, safe_serialization=True)
    if file == "weights alone":
        (folder / "config.json").unlink()
    try:
        found = minivit.from_pretrained(folder, dtype="float64", report=lambda line: None)
    except minivit.CheckpointError as error:
        return "refused", str(error)
    images = np.random.default_rng(seed).standard_normal((2, 3, *pair(model.patch_embed.img_size)))
    with torch.no_grad():
        expected = copy.deepcopy(model).double()(torch.tensor(images)).numpy()
    try:
        logits = found.predict(images)
    except ValueError as error:
        return "wrong", str(error)
    off = np.abs(logits - expected).max() / np.abs(expected).max() if logits.shape == expected.shape else np.inf
    return ("equal", "") if off <= ERROR else ("wrong", f"the logits differ by {off:.1e}")


def full_size(model: Any, name: str, file: str) -> tuple[str, str]:
    """The same for the arguments that are read off the shapes of full size."""
    arrays = {key: np.broadcast_to(np.float32(0), tuple(value.shape)) for key, value in model.state_dict().items()}
    config = {} if file == "weights alone" else {"architecture": name, "num_classes": model.num_classes}
    try:
        arguments = dict(plan_of(recognize(Weights(Path(name), arrays, config=config))).arguments)
    except minivit.CheckpointError as error:
        return "refused", str(error)
    if "depths" in arguments:
        arguments["windows"] = stage_windows(arguments)
    differs = {
        key: (arguments.get(key), value) for key, value in described(model).items() if arguments.get(key) != value
    }
    return ("wrong", f"(found, timm's): {differs}") if differs else ("equal", "")


def described(model: Any) -> dict[str, Any]:
    """timm's model in minivit's arguments: those that no shape shows."""
    if hasattr(model, "blocks"):
        block = model.blocks[0]
        mlp = next((each for name, each in block.named_modules() if name.endswith("mlp")), None)
        norm = next(each for each in block.modules() if hasattr(each, "normalized_shape"))
        found = {
            "num_heads": _attention(model).num_heads,
            "norm_eps": norm.eps,
            "global_pool": model.global_pool,
            "post_norm": type(block).__name__ == "ResPostBlock",
            "block_fn": _BLOCKS[type(block).__name__],
            "mlp_layer": "mlp" if mlp is None else _MLPS[type(mlp).__name__],
            # the block's own, which comes first: differential attention has an RMSNorm within
            "norm_layer": _NORMS[next(n for each in block.modules() if "Norm" in (n := type(each).__name__))],
            "reg_tokens": 0 if getattr(model, "reg_token", None) is None else model.reg_token.shape[1],
            "no_embed_class": getattr(model, "no_embed_class", False) and model.num_prefix_tokens > 0,
            "pool_include_prefix": getattr(model, "pool_include_prefix", False),
            "pos_embed": _positions(model),
        }
        return found | ({"gelu": _gelu(block)} if found["mlp_layer"] == "mlp" else {})
    blocks = [stage.blocks[0] for stage in model.layers]
    return {
        "num_heads": tuple(block.attn.num_heads for block in blocks),
        "gelu": _gelu(blocks[0]),
        "norm_eps": blocks[0].norm1.eps,
        "windows": [tuple(block.window_size) for block in blocks],
    }


def _positions(model: Any) -> str:
    if getattr(model, "rope", None) is not None:
        return "rotary"
    relative = any("relative_position_bias_table" in name for name, _ in model.named_parameters())
    return "relative" if relative else "none" if model.pos_embed is None else "learned_1d"


_BLOCKS = {
    "Block": "block",
    "EvaBlock": "block",
    "ResPostBlock": "block",
    "ParallelThingsBlock": "parallel_things",
    "ParallelScalingBlock": "parallel_scaling",
    "DiffParallelScalingBlock": "diff_parallel_scaling",
}
_MLPS = {"Mlp": "mlp", "SwiGLU": "swiglu", "GluMlp": "swiglu_packed"}
_NORMS = {"LayerNorm": "layernorm", "RmsNorm": "rmsnorm"}


def _gelu(block: Any) -> str:
    """minivit's word for the nonlinearity; its own name where it is another."""
    act = next(each for name, each in block.named_modules() if name.endswith(("mlp.act", "mlp_act")))
    exact = {"GELU": getattr(act, "approximate", "none"), "GELUTanh": "tanh", "QuickGELU": "quick"}
    return exact.get(type(act).__name__, type(act).__name__)


def outcomes(name: str, folder: Path, seed: int) -> dict[str, str]:
    """What becomes of both kinds of file, of a small model and of full size: "equal", "refused", or what is wrong."""
    whole, found = full(name), {}
    model = small(name, whole)
    draw(model, seed)
    for file in FILES:
        inside = folder / file
        inside.mkdir()
        results = [small_file(model, inside, seed, file), full_size(whole, name, file)]
        words = (name, "known source") if file == FILES[0] else WORDS
        wrong = [why for result, why in results if result == "wrong"]
        wrong += [f"refused without a cause: {why}" for _, why in results if why and not any(w in why for w in words)]
        found[file] = "; ".join(wrong) or results[1][0]
    return found


# what a refusal of weights alone names: an argument to say, or a part that minivit's models do not have
WORDS = ("num_heads", "window", "gelu=", "post_norm=", "minivit's models have no such parts", "no_embed_class")
WORDS += ("minivit's only stem", "known source", "names are not the model's", "parameters are missing")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_timms_logits_or_is_refused_by_name(tmp_path: Path, name: str) -> None:
    found = outcomes(name, tmp_path, 0)
    assert set(found.values()) <= {"equal", "refused"}, found
    assert found[FILES[0]] == ("equal" if name in PUBLISHED else "refused")


KNOWN = [name for name in NAMES if name in PUBLISHED]
# options that are small in the tests, or only set initial weights
SIZES = ("img_size", "patch_size", "embed_dim", "depth", "depths", "num_heads", "mlp_ratio", "init_values")


def other_options(name: str) -> str:
    """What remains of an architecture when its sizes are small."""
    options = {key: value for key, value in PUBLISHED[name].items() if key not in SIZES}
    return str([configs.class_of(name), "init_values" in PUBLISHED[name], *sorted(options.items())])


DISTINCT = list({other_options(name): name for name in reversed(KNOWN)}.values())


@pytest.mark.parametrize("name", DISTINCT)
def test_logits_and_all_gradients_are_timms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # timm rounds lambda of differential attention to float32
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    check_logits_and_gradients(name)


def check_logits_and_gradients(name: str) -> None:
    theirs = small(name, full(name))
    draw(theirs, 0)
    theirs = theirs.double()
    for module in theirs.modules():
        if hasattr(module, "relative_coords_table"):  # of Swin v2, likewise
            sharpen(module)
        if hasattr(module, "periods"):  # of rotary positions, likewise
            count = len(module.periods)
            module.periods = module.temperature ** (torch.arange(count, dtype=torch.float64) / count)
            if module.feat_shape is not None:
                module._cache_embed(module.feat_shape)
    ours = minivit.create_model(name, num_classes=CLASSES, dtype="float64", **sizes_of(theirs))
    state = as_layer_scale({key: param.detach().numpy() for key, param in theirs.named_parameters()})
    ours.load_state_dict(state)
    count = 2 if hasattr(theirs, "blocks") else 1  # Swin's images have their full size
    x = np.random.default_rng(0).standard_normal((count, 3, *pair(theirs.patch_embed.img_size)))
    inputs = torch.tensor(x, requires_grad=True)
    logits = theirs(inputs)
    dy = np.random.default_rng(1).standard_normal(tuple(logits.shape))
    logits.backward(torch.tensor(dy))
    y, back = ours(x)
    dx = back(dy)
    assert _off(y, logits) < PARITY and _off(ours.predict(x), logits) < PARITY
    assert _off(dx, inputs.grad) < PARITY
    largest = max(float(param.grad.abs().max()) for param in theirs.parameters() if param.grad is not None)
    for key, param in as_layer_scale(dict(theirs.named_parameters())).items():
        # of a bias of k alone the exact gradient is 0, and both sides have rounding errors
        floor = 1e-6 * largest
        assert _off(ours.parameters()[key].grad, param.grad, floor) < PARITY, key


@pytest.mark.parametrize("name", KNOWN)
def test_names_and_shapes_of_full_size_are_timms(name: str, weightless: None) -> None:
    whole = full(name)
    theirs = as_layer_scale({key: tuple(param.shape) for key, param in whole.named_parameters()})
    ours = minivit.create_model(name, num_classes=whole.num_classes)
    assert {key: param.shape for key, param in ours.parameters().items()} == theirs


@pytest.mark.parametrize("name", DISTINCT)
def test_multiply_adds_are_those_that_pytorch_counts(name: str, weightless: None) -> None:
    whole = full(name)
    images = (1, 3, *pair(whole.patch_embed.img_size))
    with FlopCounterMode(display=False) as counter:
        whole(torch.zeros(images, device="meta"))
    ours = minivit.create_model(name, num_classes=whole.num_classes)
    # ours leaves out the MLP of Swin v2's position bias, which depends on no image
    left_out = 0
    for module in whole.modules():
        if hasattr(module, "relative_coords_table"):
            offsets, weights = module.relative_coords_table.numel() // 2, module.cpb_mlp[0].weight.numel()
            left_out += offsets * (weights + module.cpb_mlp[2].weight.numel())
    assert nn.multiply_adds(ours, images) == counter.get_total_flops() // 2 - left_out


def sizes_of(model: Any) -> dict[str, Any]:
    """The arguments in which a small model of timm's differs from its name's."""
    found = {"img_size": pair(model.patch_embed.img_size)}
    if hasattr(model, "blocks"):
        head = _attention(model)
        return found | {"depth": len(model.blocks), "embed_dim": model.embed_dim, "num_heads": head.num_heads}
    stages = [stage.blocks for stage in model.layers]
    heads = tuple(blocks[0].attn.num_heads for blocks in stages)
    return found | {"embed_dim": model.embed_dim, "depths": tuple(map(len, stages)), "num_heads": heads}


def _off(ours: Any, theirs: Any, floor: float = 0.0) -> float:
    expected = theirs.detach().numpy()
    return float(np.abs(ours - expected).max() / max(np.abs(expected).max(), floor))


def test_a_model_that_computed_otherwise_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden, "published_alike", lambda found: [])
    monkeypatch.setattr(hidden, "_heads", lambda found: 1)
    found = outcomes("vit_tiny_patch16_224", tmp_path, 0)
    assert found[FILES[0]] == "equal" and "the logits differ" in found[FILES[1]] and "num_heads" in found[FILES[1]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and images")
    parser.add_argument("--gradients", action="store_true", help="compare logits and gradients of every name instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.gradients:
        torch.Tensor.float = lambda self: self
        for name in KNOWN:
            check_logits_and_gradients(name)
            print(name, "equal", flush=True)
        return 0
    counts: Counter[tuple[str, str]] = Counter()
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            for file, found in outcomes(name, Path(folder), options.seed).items():
                counts[file, found if found in ("equal", "refused") else "wrong"] += 1
                if found not in ("equal", "refused"):
                    print(f"{name}, {file}: {found}", flush=True)
    for file in FILES:
        print(f"{file}: " + ", ".join(f"{counts[file, each]} {each}" for each in ("equal", "refused", "wrong")))
    return int(any(each == "wrong" for _, each in counts))


if __name__ == "__main__":
    sys.exit(main())
