"""The CUDA kernels under the compiler's AddressSanitizer, which knows where each array ends.

The hooks of the emulator know only whether an access lies in some array of a launch. Here one that leaves its array is
found although it lands in another, or in another array of shared memory or of a thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import cuda_emulator
import pytest

HERE = Path(__file__).parent
PATHS = (HERE.parents[1], HERE.parent, HERE, HERE.parent / "fake_device", HERE.parent / "tools")

CASES = (  # every kernel, in as few compilations as may be
    "layer_norm, 129 channels",
    "layer_norm, 1100 channels",
    "linear_gelu",
    "embedding",
    "patch_embed",
    "patches",
    "residual",
    "residual, 16 bytes at a time",
    "residual, nothing dropped",
    "cross_entropy, smoothed",
    "cross_entropy, 1100 classes",
    "cross_entropy, soft targets",
    "attention by products, masked",
    "attention of windows by products",
    "attention, past a tile",
    "attention, wide heads",
    "windows",
    "windows to a map",
    "softmax, 33 numbers",
    "softmax, 1100 numbers",
)

PROGRAM = """
import sys
from pathlib import Path
import cuda_emulator, fake_cupy
import numpy as np
import test_cuda_kernels as kernels
from minivit import optim
from minivit.nn import Parameter

assert cuda_emulator.checker == "address"
file, text, planted, *names = sys.argv[1:]
read, launch, launched = Path.read_text, cuda_emulator.Function._launch, set()
def read_text(path, *args, **named):
    found = read(path, *args, **named)
    if file and path.stem == file and path.suffix in (".cu", ".cuh"):
        assert text in found, "the text is no longer in the kernel"
        found = found.replace(text, planted)
    return found
def noted(function, *args):
    launched.add(function.name)
    return launch(function, *args)
Path.read_text, cuda_emulator.Function._launch = read_text, noted
for name in names:
    error = kernels.difference(name, "float32")
    assert error <= kernels.TOLERANCE["float32"], (name, error)
if not file:
    assert kernels.of_all_difference((2049, 40), "float32") <= kernels.TOLERANCE["float32"]
    with fake_cupy.installed() as device:  # the end of a recorded step in float16
        from minivit.fast.cupy.parameters import recorded_update
        params = {str(size): Parameter(device.ones(size, "float32")) for size in (4097, 40)}
        opt, scale = optim.AdamW(params), optim.LossScale()
        scale.move_to(opt.first)
        grads = {name: device.ones(param.shape, "float32") for name, param in params.items()}
        settings = device.asarray(np.array([0.1, 1.0, 1.0]))
        recorded_update(
            opt.first, opt.second, opt.shares(grads, lr=1.0), [], loss=device.ones((), "float32"), correct=None,
            settings=settings, skipped=device.zeros(1), max_norm=1.0, betas=opt.betas, eps=opt.eps,
            every=list(grads.values()), scale=scale,
        )
    sources = kernels.KERNELS.glob("*.cu")
    missing = {name for source in sources for name in cuda_emulator.kernels(read(source))} - launched
    assert not missing, missing
print(len(launched), "kernels")
"""


@cache
def library() -> str | None:
    """The path of AddressSanitizer's library, or None: without it nothing here can run."""
    if cuda_emulator.compiler() is None:
        return None
    named = subprocess.run([cuda_emulator.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
    path = Path(named.stdout.strip())
    return str(path.resolve()) if path.is_absolute() and path.exists() else None


pytestmark = pytest.mark.skipif(library() is None, reason="g++ has no AddressSanitizer here")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The cases in a process of their own, before which the library is loaded."""
    environment = os.environ | {
        "LD_PRELOAD": str(library()),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaves memory behind
        "MINIVIT_EMULATOR": "address",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, PATHS)),
    }
    program = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(program, env=environment, capture_output=True, text=True)


def test_no_kernel_leaves_an_array() -> None:
    done = run("", "", "", *CASES)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0]) > 20


# what a careless hand makes of a kernel: the file, its text, the bug, a case, and what is said of it
BUGS = {
    "a number past the end of an array": (
        "layer_norm", "statistics[3 * number + 2] = scale", "statistics[3 * number + 3] = scale",
        "layer_norm, 31 channels", "heap-buffer-overflow",
    ),
    "an index between two arrays of shared memory": (
        "common", "of_warp[threadIdx.x / 32] = value", "of_warp[32 + threadIdx.x / 32] = value",
        "cross_entropy, 1100 classes", "global-buffer-overflow",
    ),
}  # fmt: skip


@pytest.mark.parametrize("bug", BUGS)
def test_an_access_past_an_array_is_found(bug: str) -> None:
    file, text, planted, name, error = BUGS[bug]
    done = run(file, text, planted, name)
    assert done.returncode != 0 and error in done.stderr, done.stderr[-3000:]
