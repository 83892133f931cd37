"""Kernels in CUDA C++ on the CPU: the same source text, compiled by g++ and run with every access to memory judged.

`cuda_on_cpu.h` has the language, `cuda_on_cpu.cpp` the scheduler and what it finds. Here is CuPy's way to use them:
`RawModule(code=..., options=...).get_function(name)(grid, block, arguments)`.

With MINIVIT_EMULATOR=address in the environment the compiler's AddressSanitizer judges the accesses instead: it knows
the ends of every array on the heap, in shared memory and on a thread's stack, and nothing of races. Its library must be
loaded before the process begins (LD_PRELOAD).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
HEADER, RUNTIME = HERE / "cuda_on_cpu.h", HERE / "cuda_on_cpu.cpp"
Lengths = tuple[int, ...]
ORDERS = {"upward": 0, "downward": 1, "random": 2, "warp by warp": 3}

_HOOKED = {"": "-fsanitize=thread", "address": "-fsanitize=address"}
checker = os.environ.get("MINIVIT_EMULATOR", "")
order = "upward"  # in which the threads of a block run; a test may set another, and no result may depend on it


class KernelError(AssertionError):
    """What a GPU would not report: a race, an access out of bounds, a barrier that not all threads reach."""


def compiler() -> str | None:
    """The C++ compiler, or None: then no kernel can run here."""
    return shutil.which("g++")


class Parameter(NamedTuple):
    """One parameter of a kernel, as its declaration has it."""

    type: str  # "REAL", "int", ...
    pointer: bool
    const: bool
    name: str

    @property
    def declaration(self) -> str:
        return f"{'const ' if self.const else ''}{self.type}{'*' if self.pointer else ''} {self.name}"


_KERNEL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\([^)]*\)\s*)?(\w+)\s*\(([^)]*)\)\s*\{")
_PARAMETER = re.compile(r"(const\s+)?(unsigned char|long long|\w+)\s*(\*)?\s*(?:__restrict__\s+)?(\w+)$")
_DYNAMIC = re.compile(r"extern __shared__ (\w+) (\w+)\[\];")
_TYPES: dict[str, Any] = {"bool": "?", "int": "i4", "unsigned": "u4", "long long": "i8", "float": "f4", "double": "f8",
                          "unsigned char": "u1", "Float16": "f2", "BFloat16": "bfloat16"}  # fmt: skip


def kernels(code: str) -> dict[str, list[Parameter]]:
    """The kernels that a source declares, with their parameters."""
    found = {}
    for name, parameters in _KERNEL.findall(re.sub(r"//[^\n]*", "", code)):
        found[name] = [_parameter(text.strip()) for text in parameters.split(",")]
    return found


def _parameter(text: str) -> Parameter:
    match = _PARAMETER.match(text)
    if match is None:
        raise ValueError(f"cannot read the parameter {text!r}")
    const, kind, pointer, name = match.groups()
    return Parameter(kind, bool(pointer), bool(const), name)


_COMPILE = ["g++", "-std=c++17", "-O1", "-fPIC", "-fno-gnu-unique", "-fno-exceptions", "-Wall"]


@lru_cache(maxsize=1)
def _runtime() -> Path:
    """The scheduler and the hooks, which all kernels share."""
    # a loop over shared memory must not become a call that AddressSanitizer judges
    command = [*_COMPILE, "-O3", "-fno-tree-loop-distribute-patterns", "-c", str(RUNTIME), "-o"]
    return _built([RUNTIME.read_text(), HEADER.read_text()], lambda folder, built: _run([*command, str(built)]))


@lru_cache(maxsize=1)
def _hooked() -> list[str]:
    """The command that compiles a kernel with a hook at every access."""
    command = [*_COMPILE, _HOOKED[checker], "-ffp-contract=off", "-Wno-unknown-pragmas", "-Wno-unused-function"]
    if checker:
        command.append("-fsanitize-sections=shared_memory")  # else shared arrays stand side by side
    return command


@lru_cache(maxsize=1)
def _header() -> Path:
    """What kernels include: g++ finds the compiled header beside this path, and takes half as long for a kernel."""
    command = [*_hooked(), "-x", "c++-header", str(HEADER), "-o"]
    texts, suffix = [*_hooked(), HEADER.read_text()], ".h.gch"
    built = _built(texts, lambda folder, header: _run([*command, str(header)]), suffix)
    return built.with_name(built.name.removesuffix(".gch"))


@lru_cache(maxsize=256)
def _library(code: str, options: tuple[str, ...]) -> ctypes.CDLL:
    """The kernels compiled together with a function `launch_<name>` for each."""
    wrappers = []
    for name, parameters in kernels(code).items():
        declared = "".join(f", {parameter.declaration}" for parameter in parameters)
        given = ", ".join(parameter.name for parameter in parameters)
        wrappers.append(
            f"""extern "C" __attribute__((no_sanitize("thread"))) const char* launch_{name}(
                const unsigned* grid, const unsigned* block, unsigned dynamic, int order, unsigned seed{declared}) {{
                auto call = [&]() __attribute__((no_sanitize("thread"))) {{ {name}({given}); }};
                return cuda_launch([](void* closure) __attribute__((no_sanitize("thread"))) {{
                    (*static_cast<decltype(call)*>(closure))(); }}, &call, grid, block, dynamic, order, seed);
            }}"""
        )
    plain = code.replace('extern "C" __global__', "__global__")
    plain = _DYNAMIC.sub(r"\1* \2 = static_cast<\1*>(cuda_dynamic_shared());", plain)
    source = "\n".join([f'#include "{_header()}"', '#line 1 "kernel"', plain, *wrappers])
    defines = [option for option in options if option.startswith("-D")]

    def build(folder: Path, library: Path) -> None:
        (folder / "kernel.cpp").write_text(source)
        kernel = folder / "kernel.o"
        _run([*_hooked(), "-Winvalid-pch", *defines, "-c", str(folder / "kernel.cpp"), "-o", str(kernel)])
        _run(["g++", "-shared", "-Wl,-Bsymbolic", str(kernel), str(_runtime()), "-o", str(library)])

    return ctypes.CDLL(str(_built([checker, source, *defines, RUNTIME.read_text(), HEADER.read_text()], build)))


def stand_in_for(name: str) -> Path:
    """A library of ours that has the functions of NVIDIA's library `name` which minivit calls."""
    source = HERE / f"{name}_on_cpu.cpp"
    if not source.exists():
        raise FileNotFoundError(f"{name} has no stand-in here: write {source.name}")
    return _built(
        [source.read_text()],
        lambda folder, library: _run(["g++", "-std=c++17", "-O2", "-fPIC", "-shared", str(source), "-o", str(library)]),
    )


def _built(texts: list[str], build: Callable[[Path, Path], None], suffix: str = ".so") -> Path:
    """The file that `build(folder, file)` makes of the texts; kept for the next program that wants the same."""
    folder = Path(tempfile.gettempdir()) / f"minivit-kernels-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    file = folder / f"{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:32]}{suffix}"
    if not file.exists():
        with tempfile.TemporaryDirectory(dir=folder) as build_folder:
            unfinished = Path(build_folder) / f"unfinished{suffix}"
            build(Path(build_folder), unfinished)
            os.replace(unfinished, file)
    return file


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or "warning" in done.stderr:
        raise KernelError(done.stderr)


class Function:
    """A kernel, called as CuPy calls it."""

    def __init__(self, library: ctypes.CDLL, name: str, parameters: list[Parameter], defined: Any) -> None:
        self._library, self._parameters, self.name, self._defined = library, parameters, name, defined
        self.max_dynamic_shared_size_bytes = 48 * 1024
        self.run: Callable[[Callable[[], None]], None] = lambda work: work()  # may count and record launches
        self.at_address: Callable[[int], Any] = lambda address: None  # the memory of the array that begins there
        self._entry: Any = getattr(library, f"launch_{name}")
        self._entry.restype = ctypes.c_char_p

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], shared_mem: int = 0
    ) -> None:
        if len(args) != len(self._parameters):
            raise KernelError(f"{self.name} takes {len(self._parameters)} arguments, got {len(args)}")
        if shared_mem > self.max_dynamic_shared_size_bytes:
            raise KernelError(f"{self.name}: the function may not have {shared_mem} bytes of dynamic shared memory")
        self.run(lambda: self._launch(grid, block, args, shared_mem))

    def _launch(self, grid: Lengths, block: Lengths, args: tuple[Any, ...], shared_mem: int) -> None:
        sizes = [(ctypes.c_uint * 3)(*lengths, *(1,) * (3 - len(lengths))) for lengths in (grid, block)]
        passed = [self._pass(parameter, value) for parameter, value in zip(self._parameters, args)]
        settings = (ctypes.c_uint(shared_mem), ctypes.c_int(ORDERS[order]), ctypes.c_uint(1))
        error = self._entry(*sizes, *settings, *passed)
        if error is not None:
            raise KernelError(f"{self.name}: {error.decode()}")

    def _pass(self, parameter: Parameter, value: Any) -> Any:
        """One argument; CuPy would pass a wrong type's bytes as they are."""
        dtype = np.dtype(_TYPES[self._defined.get(parameter.type, parameter.type)])
        where = f"{self.name}: argument {parameter.name}"
        if not parameter.pointer:
            if not isinstance(value, np.generic) or value.dtype != dtype:
                raise KernelError(f"{where} must be a NumPy scalar of dtype {dtype}, got {type(value).__name__}")
            return ctypes.c_bool(bool(value)) if dtype.kind == "b" else np.ctypeslib.as_ctypes(np.asarray(value))
        if isinstance(value, np.intp) and value == 0:
            return ctypes.c_void_p(None)
        host = getattr(value, "_host", None)
        if host is None:
            raise KernelError(f"{where} must be a device array, got {type(value).__name__}")
        if host.dtype != dtype:
            raise KernelError(f"{where} must have dtype {dtype}, got {host.dtype}")
        if not parameter.const and not host.flags.writeable:
            raise KernelError(f"{where} is read-only")
        if parameter.name == "addresses":  # a table of them: those that are an array's may be reached through it
            for found in filter(lambda each: each is not None, map(self.at_address, host.reshape(-1).tolist())):
                self._register(found, writable=found.flags.writeable)
        return self._register(host, writable=not parameter.const)

    def _register(self, host: Any, writable: bool) -> Any:
        """Let the next launch touch an array; returns its address."""
        low = ctypes.c_void_p(host.__array_interface__["data"][0])
        if host.size:
            size, item = ctypes.c_size_t(_extent(host)), ctypes.c_size_t(host.itemsize)
            self._library.cuda_register(low, size, item, int(writable))
        return low


def _extent(host: Any) -> int:
    """Bytes from the first element to the end of the last; strides are not negative in what kernels are given."""
    return sum((length - 1) * stride for length, stride in zip(host.shape, host.strides)) + host.itemsize


class RawModule:
    """CuPy's class of this name: CUDA source, compiled when the first function is taken."""

    def __init__(self, *, code: str, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        if backend != "nvrtc":
            raise ValueError(f"backend={backend!r} is not emulated")
        self.code, self.options = code, tuple(options)

    def get_function(self, name: str) -> Function:
        found = kernels(self.code)
        if name not in found:
            raise KernelError(f"the source has no kernel {name}: it has {', '.join(found)}")
        defined = dict(option[2:].split("=") for option in self.options if option.startswith("-D"))
        return Function(_library(self.code, self.options), name, found[name], defined)
