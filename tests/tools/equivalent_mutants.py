"""Mutants that no test of numbers can kill: what they change, and why nothing wrong comes out.

Each has the file, the changed lines as `mutants.py` prints them, and the reason.
"""

from __future__ import annotations

EQUIVALENT: tuple[tuple[str, str, str], ...] = ()
