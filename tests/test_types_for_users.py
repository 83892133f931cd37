"""What a type checker tells the users of an installed package: it finds it, and sees their mistakes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

# each marked line has one mistake
PROGRAM = """
import numpy as np
import minivit
from minivit import functional as F, nn, optim, parallel

model = minivit.ViT(img_size=28, patch_size=7, in_chans=1, num_classes=10, embed_dim=32, depth=2, num_heads=2)
x = np.zeros((2, 1, 28, 28), np.float32)
logits, back = model(x)
reveal_type(logits)
name: str = model.predict(x)  # an array is no text
model("image.png")  # a path is no array
minivit.ViT(img_size="28")  # a size is a number
minivit.ViT(num_classes=10, depht=2)  # a typing error
opt = optim.AdamW([1, 2], lr=1e-3)  # parameters have names
opt.lr = "0.1"  # a rate is a number
count: int = F.layer_norm(x, None, None)  # y and vjp
nn.Linear(8)  # of how many outputs?
F.gelu(x, approximate=True)  # "none" or "tanh"
parallel.DataParallel(model, threads="2")  # a number
minivit.explain.grad_cam(model)  # of which images?
text: str = parallel.DataParallel(model).loss_and_grad(x, np.zeros(2, int))  # a loss is a number
"""


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is in the extra dev")
def test_mypy_finds_the_package_and_the_mistakes_of_a_program(tmp_path: Path) -> None:
    """Outside of the repository, as the package was installed: an editable install must not hide it."""
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path / "cache"), "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert 'Revealed type is "numpy.ndarray' in done.stdout, done.stdout
    found = {int(number) for number in re.findall(r"program\.py:(\d+): error", done.stdout)}
    planted = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if "  # " in line}
    assert len(planted) == 12 and found == planted, done.stdout
