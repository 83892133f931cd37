"""minivit: Vision Transformers in pure NumPy, every backward pass written by hand.

Start with `minivit/protocol.py` (one page), then `minivit/functional/`; docs/ gives the order and the derivations.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minivit import functional, nn, renamed
from minivit.device import to_device, to_numpy
from minivit.fast.dispatch import plain
from minivit.fast.precision import matmul_precision
from minivit.models import Swin, SwinV2, ViT, lora, merge_lora
from minivit.summary import summary
from minivit.version import __version__

renamed.install()

if TYPE_CHECKING:
    from minivit import (  # also by these names, for type checkers
        argument_checks as argument_checks,
        data,
        device as device,
        distributed as distributed,
        draw as draw,
        explain,
        fast as fast,
        fork as fork,
        gradcheck as gradcheck,
        inference as inference,
        io as io,
        lab as lab,
        models as models,
        observe as observe,
        optim,
        parallel,
        pretrained as pretrained,
        programs as programs,
        protocol as protocol,
        publish as publish,
        random as random,
        sizes as sizes,
        sklearn as sklearn,
        strategies as strategies,
        tables as tables,
        train,
        version as version,
    )
    from minivit.gradcheck import GradientError, check_complex_step, check_vjp
    from minivit.inference import Runner, prepare
    from minivit.io.safetensors import CheckpointError
    from minivit.pretrained import (  # type: ignore[no-redef]
        create_model,
        export,
        from_pretrained,
        list_models,
        load,
        load_lora,
        save,
        save_lora,
    )
    from minivit.publish import push_to_hub

# imported at first use: otherwise a third of the time of `import minivit`
_LATER = {
    "minivit.io.safetensors": ("CheckpointError",),
    "minivit.gradcheck": ("GradientError", "check_complex_step", "check_vjp"),
    "minivit.inference": ("Runner", "prepare"),
    "minivit.publish": ("push_to_hub",),
    "minivit.pretrained": (
        *("create_model", "list_models", "export", "from_pretrained"),
        *("load", "load_lora", "save", "save_lora"),
    ),
}
# every module beside this file; `minivit.summary` is the function, and minivit.summary.Row needs an import
_MODULES = (
    "argument_checks", "data", "device", "distributed", "draw", "explain", "fast", "fork", "functional", "gradcheck",
    "inference", "io", "lab", "models", "nn", "observe", "optim", "parallel", "pretrained", "programs", "protocol",
    "publish", "random", "renamed", "sizes", "tables", "train", "version",
)  # fmt: skip
_NEED_MORE = ("sklearn", "strategies")  # not in dir(): without their extras they cannot be imported


def __getattr__(name: str) -> Any:
    if name in (*_MODULES, *_NEED_MORE) or f"minivit.{name}" in renamed.MODULES:
        return import_module(f"minivit.{name}")
    for module, names in _LATER.items():
        if name in names:
            found = getattr(import_module(module), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'minivit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


__all__ = [
    "CheckpointError",
    "GradientError",
    "Runner",
    "Swin",
    "SwinV2",
    "ViT",
    "__version__",
    "check_complex_step",
    "check_vjp",
    "create_model",
    "data",
    "explain",
    "export",
    "from_pretrained",
    "functional",
    "list_models",
    "load",
    "load_lora",
    "lora",
    "matmul_precision",
    "merge_lora",
    "nn",
    "optim",
    "parallel",
    "plain",
    "prepare",
    "push_to_hub",
    "save",
    "save_lora",
    "summary",
    "to_device",
    "to_numpy",
    "train",
]
