"""The version, where both the package and its build read it. Start reading in `protocol.py`."""

__version__ = "0.1.0"
