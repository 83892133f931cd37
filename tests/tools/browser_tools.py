"""Chromium for the tests of pages: started by Playwright, without any way to another host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = os.environ.get("MINIVIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def chromium() -> Iterator[Any]:
    """The browser, for a fixture to yield; skips, and says what is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright axe-playwright-python")
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium, or MINIVIT_CHROMIUM with its path")
    with api.sync_playwright() as playwright:
        yield (browser := playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS))
        browser.close()
