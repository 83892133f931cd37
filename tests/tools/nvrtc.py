"""NVIDIA's compiler for kernels, which needs no GPU: called by ctypes, as the package nvidia-cuda-nvrtc installs it."""

from __future__ import annotations

import ctypes
import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=1)
def _library() -> Any:
    packages = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    found = sorted(packages.glob("*/lib/libnvrtc.so.*"))
    return ctypes.CDLL(str(found[0])) if found else None


def available() -> bool:
    """Whether the package is installed."""
    return _library() is not None


def compile_log(code: str, options: tuple[str, ...]) -> str:
    """What the compiler says of a source, with registers and spills of each kernel.

    Raises:
        ValueError: with the log, if it does not compile.
    """
    library, program = _library(), ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernel.cu", 0, None, None)
    every = [option.encode() for option in (*options, "--ptxas-options=-v", "--ptxas-options=-warn-spills")]
    failed = library.nvrtcCompileProgram(program, len(every), (ctypes.c_char_p * len(every))(*every))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    text = log.value.decode()
    if failed:
        raise ValueError(text)
    return text
