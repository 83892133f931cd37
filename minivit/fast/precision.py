"""How exactly a GPU multiplies float32 matrices, in PyTorch's words."""

from __future__ import annotations

LEVELS = ("highest", "high", "medium")

_level = "highest"  # of the process: gradients are computed in other threads than their loss


class matmul_precision:
    """Set how exactly a GPU multiplies float32 matrices, from now on or for a `with` block.

        minivit.matmul_precision("high")          # for the rest of the program
        with minivit.matmul_precision("high"):    # for these lines; the level from before comes back
            ...

    The words are those of `torch.set_float32_matmul_precision`. Sums are float32 at every level. NumPy's products, and
    those of float64, are always exact to their dtype. The level holds for the whole process.

    Args:
        level: "highest", float32 throughout, the default; "high", factors rounded to TF32, 10 bits after the leading
            one instead of 23, which tensor cores multiply several times as fast; "medium", factors rounded to
            bfloat16, 7 bits.

    Raises:
        ValueError: for another level.

    Source: NVIDIA, cuBLAS, cublasComputeType_t; PyTorch, torch.set_float32_matmul_precision.
    """

    def __init__(self, level: str) -> None:
        global _level
        if level not in LEVELS:
            raise ValueError(f"matmul_precision={level!r}: choose one of {', '.join(map(repr, LEVELS))}")
        self._before, _level = _level, level

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        global _level
        _level = self._before


def current_precision() -> str:
    """ "highest", "high" or "medium"."""
    return _level
