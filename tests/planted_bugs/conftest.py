"""A planted bug must be found, not located: in a model the search for the worst element takes most of the time."""

from __future__ import annotations

import pytest

from minivit import gradcheck


@pytest.fixture(autouse=True)
def search_small_arrays_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradcheck, "_LOCATE", 64)
