"""Where a test's arrays live: NumPy on the host, the strict fake of CuPy, or CuPy itself.

The `device` fixture in conftest.py hands one out.
"""

from __future__ import annotations

from typing import Any

import fake_cupy
import numpy as np


class Device:
    """Where a test's arrays live: `put` moves them there, `get` brings them back.

    Attributes:
        name: "numpy", "plain" (NumPy, by formulas), "fake" or "cupy".
        module: the arrays' library.
        on_host: whether arrays are NumPy's.
    """

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module, self.on_host = name, module, module is np

    def put(self, x: Any) -> Any:
        if not isinstance(x, np.ndarray):
            return x
        return x if self.module is np else self.module.asarray(x)

    def get(self, x: Any) -> Any:
        return np.asarray(x) if self.module is np else self.module.asnumpy(x)

    def freeze(self, x: Any) -> Any:
        """Make x read-only where the library knows that."""
        if self.module is np:
            x.setflags(write=False)
        elif self.name == "fake":
            fake_cupy.set_readonly(x)
        return x
