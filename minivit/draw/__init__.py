"""Figures of the results of `minivit/observe/`, drawn by matplotlib, which no other part of the library needs.

`style.py` has the colors, `figures.py` saves; `attention.py`, `positions.py`, `trace.py` and `windows.py` draw what the
files of the same names in `minivit/observe/` compute.
"""
