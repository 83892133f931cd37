"""Inference alone: a model in the form that computes its logits fastest, made once by `minivit.prepare`.

- `runner.py`   `prepare`, and the runner with `predict`
- `folding.py`  what is computed once, with its identities
- `block.py`    a transformer block as sums over heads and hidden units
- `gelu.py`     GELU in few passes over memory
- `encoder.py`  the blocks of a ViT; `maps.py` the stages of a Swin
- `memory.py`   buffers that are used again
- `known.py`    which layers have these formulas; others run as they are
"""

from minivit.inference.runner import Runner, prepare

__all__ = ["Runner", "prepare"]
