"""Does minivit compute what the projects compute whose weights it reads? One table of logits and of all gradients.

Each row writes a small model with random weights as its project publishes it, names, tables and file format, reads the
file with `minivit.pretrained.from_pretrained`, and compares. Hugging Face's models are those that are installed; the
others are in torch_published.py, written from their sources. Next: results.py.

    python benchmarks/parity_table.py                       # every row; exit code 1 if one fails
    python benchmarks/parity_table.py --source torchvision --json out.json
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# the names that projects publish, and the twins in transformers, are shared with the tests
sys.path[:0] = [str(ROOT / folder) for folder in ("benchmarks", "tests", "tests/tools", "tests/parity")]

import published_names as names  # noqa: E402
import results  # noqa: E402
import safetensors.torch  # noqa: E402
import swin_pairs  # noqa: E402
import torch  # noqa: E402
import torch_published as published  # noqa: E402
import transformers  # noqa: E402
import vit_pairs  # noqa: E402
from parity_tools import timm_arrays, timm_name  # noqa: E402
from torch_published import Numerics  # noqa: E402

import minivit  # noqa: E402
from minivit import Swin, SwinV2, ViT  # noqa: E402
from minivit.pretrained import from_pretrained  # noqa: E402
from minivit.sizes import pair  # noqa: E402

Arrays = dict[str, np.ndarray]
BARS = {
    "logits": {"float32": 1e-5, "float64": 1e-10},  # of the largest logit
    "gradients": {"float32": 1e-5, "float64": 1e-10},  # of the largest gradient element of the whole model
    # of the largest element of each parameter's own gradient, so that no small one hides behind a large one; in float32
    # both sides lose a digit where a gradient is a sum that cancels, as that of one logit_scale for all windows is
    "each": {"float32": 1e-4, "float64": 1e-10},
}
DTYPES = ("float32", "float64")
SEED = 11

# 64 channels for each head: beside a file without config.json, that is all that tells the number of a ViT's heads
VIT: dict[str, Any] = {"img_size": 12, "patch_size": 4, "num_classes": 5, "embed_dim": 128, "depth": 2}
VIT |= {"num_heads": 2, "mlp_ratio": 1.5}
SWIN: dict[str, Any] = {"img_size": 24, "patch_size": 2, "num_classes": 5, "embed_dim": 12, "depths": (2, 2, 2)}
SWIN |= {"num_heads": (2, 3, 4), "window_size": 3, "mlp_ratio": 2.0}  # maps of 12, 6 and, all in one window, 3
WINDOW8 = SWIN | {"img_size": 32, "depths": (2, 2), "num_heads": (2, 3), "window_size": 8}  # v2's usual one
LARGER = SWIN | {"pretrained_window_sizes": (2, 2, 2)}  # v2 trained with smaller windows than it now has
PRE_LOGITS = VIT | {"representation_size": 7}
HYBRID = VIT | {"img_size": 24, "patch_size": 1, "resnet_layers": (1, 2), "resnet_width": 8, "resnet_groups": 8}
SMALL_HEADS = VIT | {"embed_dim": 24, "num_heads": 3}  # where config.json tells their number

EPS_VIT, EPS_SWIN = 1e-6, 1e-5
EXACT, GOOGLE = Numerics(EPS_VIT), Numerics(EPS_VIT, "tanh", resnet_eps="google")
MICROSOFT = Numerics(EPS_SWIN)
TIMM = Numerics(EPS_SWIN, plan=published.shrinking_apart, roll_first=True)
TORCHVISION = Numerics(EPS_SWIN, plan=published.padded_up)
WZMIAOMIAO = Numerics(EPS_SWIN, plan=published.always_shifted)


@dataclass(frozen=True)
class Case:
    """A row, once for each dtype.

    Attributes:
        source: the project.
        model: what the table calls the model.
        kind: the class in minivit.
        arguments: of that class, and of its twin.
        file: the name of the file that is written.
        write: (arrays under our names, model) -> arrays under the project's; None for those of transformers.
        how: how the project computes; None for those of transformers, which are asked.
        wrapped: the key under which the file holds its arrays, "" for none.
        image: height and width of the images, where they are not `img_size`.
        options: of `from_pretrained`.
    """

    source: str
    model: str
    kind: Any
    arguments: dict[str, Any]
    file: str
    write: Callable[[Arrays, Any], Arrays] | None = None
    how: Numerics | None = None
    wrapped: str = ""
    image: tuple[int, int] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.source} {self.model}, {self.file.rpartition('.')[2]}"


def without_masks(arrays: Arrays, model: Any) -> Arrays:
    """WZMIAOMIAO's Swin has Microsoft's names, and computes the masks of the shift in each pass."""
    return {name: array for name, array in names.microsoft(arrays, model).items() if "attn_mask" not in name}


# where the projects differ: images whose maps windows do not divide, or cover on one axis, or exceed, for which only
# torchvision and WZMIAOMIAO need no other table of biases
OTHER_IMAGES = {"padded maps": (28, 28), "long map": (48, 24), "map below window": (16, 16)}


def _huggingface() -> Iterator[Case]:
    deit = SMALL_HEADS | {"norm_eps": 1e-12}  # what the configurations of DeiT say
    models = [
        ("ViT", ViT, SMALL_HEADS, None),
        ("DeiT", ViT, deit, None),  # the hub's plain DeiT is a ViTForImageClassification
        ("DeiT distilled", ViT, deit | {"distilled": True}, None),
        ("Swin", Swin, SWIN, None),
        *((f"Swin, {what}", Swin, SWIN, OTHER_IMAGES[what]) for what in ("padded maps", "long map")),
        ("Swin v2", SwinV2, SWIN, None),
        ("Swin v2, larger window", SwinV2, LARGER, None),
    ]
    for model, kind, arguments, image in models:
        for file in ("model.safetensors", "pytorch_model.bin"):
            yield Case("huggingface", model, kind, arguments, file, image=image)


def _swin(source: str, file: str, write: Any, how: Numerics, images: int) -> list[Case]:
    """A project's Swin, on the images it was made for and on the first `images` of the others."""
    case = Case(source, "Swin", Swin, SWIN, file, write, how)
    others = list(OTHER_IMAGES.items())[:images]
    return [case, *(replace(case, model=f"Swin, {what}", image=image) for what, image in others)]


CASES = [
    *_huggingface(),
    Case("timm", "ViT", ViT, VIT, "model.safetensors", names.timm, EXACT),
    Case("timm", "DeiT distilled", ViT, VIT | {"distilled": True}, "model.safetensors", names.timm, EXACT),
    Case("timm", "hybrid", ViT, HYBRID, "model.safetensors", names.timm, EXACT),
    *_swin("timm", "model.safetensors", names.timm, TIMM, 2),
    Case("timm", "Swin v2", SwinV2, WINDOW8, "model.safetensors", names.timm, TIMM, options={"window_size": 8}),
    Case("torchvision", "ViT", ViT, VIT, "vit.pth", names.torchvision_vit, EXACT),
    *_swin("torchvision", "swin.pth", names.torchvision_swin, TORCHVISION, 3),
    Case("torchvision", "Swin v2", SwinV2, WINDOW8, "swin_v2.pth", names.torchvision_swin, TORCHVISION),
    Case("microsoft", "Swin", Swin, SWIN, "swin.pth", names.microsoft, MICROSOFT, "model"),
    Case("microsoft", "Swin v2", SwinV2, SWIN, "swinv2.pth", names.microsoft, MICROSOFT, "model"),
    Case("microsoft", "Swin v2, larger window", SwinV2, LARGER, "swinv2.pth", names.microsoft, MICROSOFT, "model"),
    Case("google", "ViT", ViT, VIT, "vit.npz", names.google, GOOGLE),
    Case("google", "ViT, pre-logits", ViT, PRE_LOGITS, "vit.npz", names.google, GOOGLE),
    Case("google", "hybrid", ViT, HYBRID, "vit.npz", names.google, GOOGLE),
    Case("wzmiaomiao", "ViT", ViT, VIT, "vit.pth", names.timm, EXACT),
    Case("wzmiaomiao", "ViT, pre-logits", ViT, PRE_LOGITS, "vit.pth", names.timm, EXACT),
    *_swin("wzmiaomiao", "swin.pth", without_masks, WZMIAOMIAO, 3),
]


def compare(case: Case, dtype: str, folder: Path) -> results.Row:
    """Write the file, read it, and compare logits and gradients; what does not load has no errors but a reason."""
    template = case.kind(**case.arguments, dtype=dtype)
    rng = np.random.default_rng(SEED)
    images = rng.standard_normal((2, 3, *(case.image or pair(case.arguments["img_size"])))).astype(dtype)
    dlogits = rng.standard_normal((2, case.arguments["num_classes"])).astype(dtype)
    twin = _transformers_twin if case.write is None else _written_twin
    path, logits, gradients = twin(case, template, folder, images, dlogits)
    row: results.Row = {"source": case.source, "model": case.model, "file": path.name, "dtype": dtype}
    row["bars"] = {column: bars[dtype] for column, bars in BARS.items()}
    try:
        model: Any = from_pretrained(path, dtype=dtype, report=lambda line: None, **case.options)
        found, back = model(images)
        back(dlogits)
    except ValueError as fault:
        return row | {"passed": False, "reason": str(fault)}
    ours = {name: param.grad for name, param in model.parameters().items()}
    row["logits"] = distance({"": found}, {"": logits})
    row["gradients"] = distance(ours, gradients)
    row["each"] = max(distance({name: ours.get(name)}, {name: array}) for name, array in gradients.items())
    return row | {"passed": all(row[column] <= bar for column, bar in row["bars"].items())}


def distance(ours: Arrays, theirs: Arrays) -> float:
    """The largest difference over the largest element of all; infinite where names or shapes differ."""
    if {name: np.shape(a) for name, a in ours.items()} != {name: a.shape for name, a in theirs.items()}:
        return float("inf")
    largest = max(np.abs(array).max() for array in theirs.values())
    worst = np.max([np.abs(ours[name] - array).max() for name, array in theirs.items()]) / largest  # keeps a NaN
    return float(worst) if np.isfinite(worst) else float("inf")


def _transformers_twin(
    case: Case, model: Any, folder: Path, images: Any, dlogits: Any
) -> tuple[Path, np.ndarray, Arrays]:
    """The model of transformers that is installed, saved by itself."""
    pairs, ours = (vit_pairs, timm_name) if case.kind is ViT else (swin_pairs, swin_pairs.swin_name)
    twin, rng = pairs.transformers_twin(model, np.random.default_rng(SEED)).eval(), np.random.default_rng(SEED)
    with torch.no_grad():
        for name, param in twin.named_parameters():
            param.copy_(torch.tensor(draw(ours(name), tuple(param.shape), rng)))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # a bar of progress
        twin.save_pretrained(folder)
    if case.file.endswith(".bin"):  # which transformers 5 reads and no longer writes
        file = folder / "model.safetensors"
        torch.save(safetensors.torch.load_file(file), folder / case.file)
        file.unlink()
    logits = twin(torch.tensor(images)).logits
    logits.backward(torch.tensor(dlogits))
    translate = timm_arrays if case.kind is ViT else swin_pairs.swin_arrays
    gradients = translate({name: param.grad for name, param in twin.named_parameters()})
    return folder / case.file, logits.detach().numpy(), gradients


def _written_twin(case: Case, model: Any, folder: Path, images: Any, dlogits: Any) -> tuple[Path, np.ndarray, Arrays]:
    """A project that is not installed: its file is written here, and torch_published.py computes what it would."""
    assert case.write and case.how
    rng = np.random.default_rng(SEED)
    arrays = {name: draw(name, param.shape, rng).astype(param.data.dtype) for name, param in model.parameters().items()}
    content = {name: np.array(array, order="C") for name, array in case.write(arrays, model).items()}
    path = folder / case.file
    if path.suffix == ".npz":
        np.savez(path, **content)
    else:
        tensors = {name: torch.from_numpy(array) for name, array in content.items()}
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(tensors, path)
        else:
            torch.save({case.wrapped: tensors} if case.wrapped else tensors, path)
    params = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    forward = published.vit if case.kind is ViT else published.swin
    logits = forward(params, torch.tensor(images), model.config, case.how)
    logits.backward(torch.tensor(dlogits))
    return path, logits.detach().numpy(), {name: param.grad.numpy() for name, param in params.items()}


def draw(name: str, shape: tuple[int, ...], rng: Any) -> np.ndarray:
    """Parameters far from their start, biases too, yet no softmax so sharp that its gradient vanishes."""
    normal = rng.standard_normal(shape)
    if name.endswith("logit_scale"):
        return np.log(10) + 0.2 * normal
    if re.search(r"norm\d?\.(weight|bias)$", name):
        return name.endswith("weight") + 0.3 * normal
    if len(shape) == 1 or "token" in name or "pos" in name:
        return 0.5 * normal
    return 1.2 / np.sqrt(np.prod(shape[1:])) * normal


def table(rows: list[results.Row]) -> str:
    """The rows as text; below them why a file was not read."""
    lines = [("source", "model", "file", "dtype", *BARS, "bar", "")]
    for row in rows:
        errors = [f"{row[column]:.1e}" if column in row else "not read" for column in BARS]
        bar, verdict = f"{row['bars']['logits']:.0e}", "pass" if row["passed"] else "FAIL"
        lines.append((row["source"], row["model"], row["file"], row["dtype"], *errors, bar, verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    reasons = [f"{row['source']} {row['model']}: {row['reason']}" for row in rows if "reason" in row]
    return "\n".join([text[0], "-" * max(map(len, text)), *text[1:], *reasons])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = sorted({case.source for case in CASES})
    parser.add_argument("--source", action="append", choices=sources, help="may be given several times")
    parser.add_argument("--json", type=Path, help="write everything to this file too")
    options = parser.parse_args(arguments)
    rows = []
    for case in CASES:
        for dtype in DTYPES if case.source in (options.source or sources) else ():
            with tempfile.TemporaryDirectory() as folder:
                rows.append(compare(case, dtype, Path(folder)))
    print(table(rows))
    failed = sum(not row["passed"] for row in rows)
    print(f"\n{len(rows) - failed} of {len(rows)} rows within their bar")
    if options.json:
        libraries = {each.__name__: each.__version__ for each in (minivit, np, torch, transformers, safetensors)}
        facts = {"machine": results.machine(), "libraries": libraries, "seed": SEED, "rows": rows}
        options.json.write_text(json.dumps(facts, indent=1))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
