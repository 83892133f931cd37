"""What all tests share: hypothesis profiles, and the device that arrays live on.

Profiles: `ci` (200 examples, always the same ones) is the default; `quick` draws 10, for every change; `long` draws
5,000 new ones: `HYPOTHESIS_PROFILE=long pytest tests/test_gradients.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

if "PYTEST_XDIST_WORKER" in os.environ:  # the other workers have the other cores; NumPy reads it when it is imported
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import cuda_emulator
import fake_cupy
import numpy as np
import pytest
from device_tools import Device
from hypothesis import HealthCheck, settings

import minivit
from minivit import nn
from minivit.device import gpu_available

# tests turn warnings into errors, and one may run where the environment chooses a kernel
os.environ.setdefault("MINIVIT_BLAS_WARNING", "0")

_QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("ci", max_examples=200, derandomize=True, **_QUIET)
settings.register_profile("long", max_examples=5000, **_QUIET)
settings.register_profile("quick", max_examples=10, derandomize=True, **_QUIET)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(params=["numpy", "plain", "fake", "cupy"])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    """NumPy, by fast functions and by formulas alone; the strict fake of CuPy; and CuPy itself where a GPU answers."""
    if request.param == "numpy":
        yield Device("numpy", np)
    elif request.param == "plain":
        with minivit.plain():
            yield Device("plain", np)
    elif request.param == "fake":
        if cuda_emulator.compiler() is None:
            pytest.skip("g++ is not installed, and the fake device's kernels need it")
        with fake_cupy.installed() as module:
            yield Device("fake", module)
    else:
        if not gpu_available():
            pytest.skip("no GPU answers here")
        import cupy

        yield Device("cupy", cupy)


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of stride 0, so that the largest model takes no memory; the constructor is the real one."""

    def one_number(*arguments: Any) -> Any:
        shape = next(argument for argument in arguments if isinstance(argument, tuple))
        return np.broadcast_to(np.zeros((), arguments[-1]), shape)

    for name in ("trunc_normal", "normal", "conv_uniform", "zeros", "ones"):
        monkeypatch.setattr(nn.init, name, one_number)
