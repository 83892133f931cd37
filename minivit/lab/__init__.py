"""The lab: draw a digit, and see how a model reads it, what the backward pass answers, and one step of training.

`readings` computes everything that the page shows, `Lab` answers the page's requests with it, and `server` hands the
page and the answers to a browser on the same machine. `minivit lab` starts it; docs/lab.md describes the page.
"""

from minivit.lab.lab import Lab
from minivit.lab.readings import Reading, read
from minivit.lab.server import Server
from minivit.lab.switches import SWITCHES, available, switched

__all__ = ["SWITCHES", "Lab", "Reading", "Server", "available", "read", "switched"]
