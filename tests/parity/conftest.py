"""Keeps PyTorch to one thread, so that the parity tests repeat to the last bit and leave the other cores alone.

The helpers that the tests import are in `parity_tools.py`.
"""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
