"""The lab: draw a digit, and see how a model reads it, what the backward pass answers, and one step of training.

`recorded` runs a model and keeps every tensor, `readings` computes what else the page shows, and `Lab` answers the
page's requests. `server` hands page and answers to a browser on the same machine; `browser` runs the lab inside of the
browser. `minivit lab` starts it; docs/lab.md describes the page.
"""

from minivit.lab.lab import Lab
from minivit.lab.recorded import Reading, read
from minivit.lab.switches import SWITCHES, available, switched

__all__ = ["SWITCHES", "Lab", "Reading", "available", "read", "switched"]
