"""What must be the same on all ranks, so that the result's last bits do not depend on which of them computes what."""

from __future__ import annotations

import hashlib
import importlib
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import minivit
from minivit.distributed.messages import Messages
from minivit.fast import dispatch


def environment_facts() -> dict[str, Any]:
    """The code, the libraries and the processor of this rank, in words."""
    return {
        "minivit": f"{minivit.__version__} ({_source_hash()})",
        "NumPy": np.__version__,
        "BLAS": _blas(),
        "MINIVIT_FUNCTIONS": dispatch.current_mode(),
        "processor": platform.machine(),
        **{f"processor's {name}": there for name, there in _instruction_sets().items()},
    }


def check_agreement(ranks: Messages, facts: Mapping[str, Any], title: str) -> None:
    """Compare facts with those of rank 0, on every rank; all refuse together.

    Raises:
        ValueError: names the first fact that differs, both values, the rank and its machine.
    """
    said = ranks.gather((platform.node(), dict(facts)))
    host, expected = said[0]
    for rank, (other, found) in enumerate(said):
        for name in {**expected, **found}:
            if expected.get(name) != found.get(name):
                raise ValueError(
                    f"{title}: {name} is {expected.get(name)!r:.200} on rank 0 (host {host}) and "
                    f"{found.get(name)!r:.200} on rank {rank} (host {other}). Make them equal, and start again"
                )


def _source_hash() -> str:
    digest = hashlib.sha256()
    folder = Path(minivit.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _blas() -> str:
    """Libraries and the kernels that they have chosen for this processor."""
    from threadpoolctl import threadpool_info

    libraries = [info for info in threadpool_info() if info["user_api"] == "blas"]
    words = [f"{i['internal_api']} {i['version']} {i.get('architecture', '')}".strip() for i in libraries]
    return ", ".join(sorted(words)) or "unknown"


def _instruction_sets() -> dict[str, bool]:
    """Those that NumPy looks for, and chooses its loops by."""
    name = "numpy._core" if hasattr(np, "_core") else "numpy.core"  # since NumPy 2, before
    return dict(importlib.import_module(f"{name}._multiarray_umath").__cpu_features__)
