"""Mutants that no test of numbers can kill: what they change, and why nothing wrong comes out.

Each has the file, the changed lines as `mutants.py` prints them, and the reason.
"""

from __future__ import annotations

EQUIVALENT: tuple[tuple[str, str, str], ...] = (
    (
        "minivit/models/model.py",
        "-        if len(x) < threads:  # the products use all cores by themselves\n"
        "+        if len(x) <= threads:  # the products use all cores by themselves",
        "as many images as threads take either way to the same numbers",
    ),
    (
        "minivit/models/model.py",
        "-    return parts[0] if len(parts) == 1 else array_module(x).concatenate(parts)\n"
        "+    return parts[0] if len(parts) == 0 else array_module(x).concatenate(parts)",
        "a single part is copied",
    ),
    (
        "minivit/train/report.py",
        '-            style = {"ha": "center", "va": "center", "fontsize": 8, "color": "white" if dark else "black"}\n'
        '+            style = {"ha": "center", "va": "center", "fontsize": 9, "color": "white" if dark else "black"}',
        "letters of another size",
    ),
    (
        "minivit/models/swin.py",
        "-        norms = [LayerNorm(dim, o.norm_eps, zero=self.post_norm, dtype=o.dtype) for _ in range(2)]\n"
        "+        norms = [LayerNorm(dim, o.norm_eps, zero=self.post_norm, dtype=o.dtype) for _ in range(3)]",
        "a third norm that no block gets, and that draws nothing",
    ),
    (
        "minivit/optim/optimizers.py",
        "-_PIECE = 1 << 18  # elements: a megabyte of float32; smaller ones cost more in calls, larger ones miss the cache\n"
        "+_PIECE = 1 << 19  # elements: a megabyte of float32; smaller ones cost more in calls, larger ones miss the cache",
        "each element is updated by itself, so pieces of another size differ in speed alone",
    ),
    (
        "minivit/nn/parameter.py",
        "-    def accumulate(self, grad: Array, fresh: bool = False) -> None:\n"
        "+    def accumulate(self, grad: Array, fresh: bool = True) -> None:",
        "some rows of a parameter never take the array itself, so they do not read the argument",
    ),
    (
        "minivit/models/options.py",
        '-    for name in ("drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):\n'
        '+    for name in ("pos_drop_rate", "drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"):',
        "of several wrong rates another is named first",
    ),
)
