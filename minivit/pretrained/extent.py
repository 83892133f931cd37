"""The size of a described model, checked before it is built: a file of 300 bytes must not describe a billion blocks.

Notation: D channels, N patches, Mh x Mw a window.
"""

from __future__ import annotations

from math import isfinite, prod
from typing import Any

from minivit.io.budget import MAX_TABLES
from minivit.models.options import patch_grid, stage_windows
from minivit.protocol import Array
from minivit.sizes import pair


def check_types(config: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Refuse values of another type than the class's defaults.

    Raises:
        ValueError: naming the first of them.
    """
    for name, value in config.items():
        default = defaults.get(name)
        if isinstance(default, bool):
            fits = isinstance(value, bool) or (name, value) == ("qkv_bias", "qv")
        elif isinstance(default, float):
            fits = type(value) in (int, float) and (isfinite(value) or name == "mask_value")
        elif isinstance(default, str):
            fits = isinstance(value, str)
        elif isinstance(default, int):
            fits = all(type(each) is int for each in _flat(value))
        else:
            fits = True
        if not fits:
            raise ValueError(f"{name}={value!r:.60} makes no sense there: save the model again")


def _flat(value: Any) -> list[Any]:
    """The numbers of a size, or of sizes for each stage."""
    if not isinstance(value, list | tuple):
        return [value]
    return [each for part in value for each in (part if isinstance(part, list | tuple) else (part,))]


def check_extent(config: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Refuse a model that is much larger than its file.

    Args:
        config: all arguments of the model.
        arrays: of the file. Tables of positions and windows may be computed, and so be larger.

    Raises:
        ValueError: naming the numbers of elements needed and present.
    """
    layers = _layers(config)
    if sum(layers) > len(arrays):
        raise ValueError(f"{len(arrays)} arrays cannot make {sum(layers)} blocks: check where it came from")
    needed, there = _numbers(config), sum(array.size for array in arrays.values())
    if needed > there + MAX_TABLES:
        raise ValueError(f"it holds {there:,} numbers, and its description needs {needed:,}: check where it came from")


def _layers(config: dict[str, Any]) -> list[int]:
    """The number of blocks of each stage, including those of a convolutional stem."""
    depths = config["depths"] if "depths" in config else [config["depth"]]
    return [max(1, depth) for depth in (*depths, *(config.get("resnet_layers") or ()))]


def _numbers(config: dict[str, Any]) -> int:
    """The number of elements in the largest arrays of a model; norms and biases are ignored."""
    width, classes = config["embed_dim"], config["num_classes"]
    grid = prod(patch_grid(config))  # N
    count = width * (grid + config["in_chans"] * prod(pair(config["patch_size"])))
    if "depths" in config:
        for stage, (depth, window) in enumerate(zip(config["depths"], stage_windows(config))):
            channels = width * 2**stage
            block = _block(channels, config) + prod(window) ** 2 + channels * config.get("cpb_hidden", 0)
            count += depth * block
        width *= 2 ** (len(config["depths"]) - 1)
    else:
        count += config["depth"] * _block(width, config)
        count += config["depth"] * grid**2 if config["pos_embed"] == "relative" else 0
        stages = len(config["resnet_layers"] or ())
        count += 4 * (config["resnet_width"] * 2 ** max(0, stages - 1)) ** 2 if stages else 0
        width = config["representation_size"] or width
        count += width * config["embed_dim"]
    return count + width * classes


def _block(width: int, config: dict[str, Any]) -> int:
    """Queries, keys, values and projection (D, D), and the MLP; the second layer of a packed gate reads half."""
    hidden = int(width * config["mlp_ratio"])
    read = hidden // 2 if config.get("mlp_layer") == "swiglu_packed" else hidden
    return 4 * width**2 + width * (hidden + read)
