"""How long the live lab takes from a new drawing to the updated page: median and worst, measured in the browser.

    minivit train --out runs/mnist_vit               # a model, where there is none
    python benchmarks/lab_speed.py                   # the served lab
    python benchmarks/lab_speed.py --pyodide FOLDER  # and the one in the browser, and how long it takes to start
    python benchmarks/lab_speed.py --count 20 --json lab.json

Strokes are drawn by mouse events; the page notes the milliseconds from the last change of the drawing to the frame that
shows its reading, with what is shown by default. The server runs on one core with one thread of BLAS. It needs
Chromium and `pip install playwright`; FOLDER is that of `docs/build.py --pyodide`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from turns import environment

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "tests" / "tools")]

import browser_tools  # noqa: E402
import build_lab  # noqa: E402

UNCOUNTED = 5  # drawings until the browser has compiled its code and the server has its buffers
STROKE = 4  # points of one


@contextmanager
def served(weights: Path) -> Iterator[str]:
    """The address of `minivit lab`, on one core."""
    core = [shutil.which("taskset"), "-c", "0"] if shutil.which("taskset") else []
    command = [*core, sys.executable, "-m", "minivit", "lab", "--weights", str(weights), "--no-browser"]
    variables = environment(1) | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


@contextmanager
def hosted(weights: Path, pyodide: Path) -> Iterator[str]:
    """The address of the page that computes in the browser."""
    with tempfile.TemporaryDirectory() as folder:
        build_lab.build(Path(folder), weights, pyodide)
        with browser_tools.hosted(Path(folder)) as address:
            yield f"{address}/lab/index.html"


def measure(browser: Any, address: str, count: int) -> dict[str, Any]:
    """Seconds until the page is ready, and milliseconds of each drawing."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, locale="en")
    began = time.perf_counter()
    page.goto(address)
    page.wait_for_selector("body[data-ready]", timeout=300_000)
    ready = time.perf_counter() - began
    box = page.locator("#pad").bounding_box()
    random = np.random.default_rng(0)
    times = []
    for number in range(UNCOUNTED + count):
        page.click("#clear")
        page.wait_for_selector("body:not([data-busy])")
        points = random.uniform(0.15, 0.85, (STROKE, 2)) * (box["width"], box["height"]) + (box["x"], box["y"])
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=5)
        page.mouse.up()
        page.wait_for_selector("body:not([data-busy])")
        if number >= UNCOUNTED:
            times.append(float(page.evaluate("document.body.dataset.ms")))
    page.close()
    return {"ready_s": ready, "median_ms": median(times), "worst_ms": max(times), "ms": times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path("runs/mnist_vit"), help="folder of the model")
    parser.add_argument("--pyodide", type=Path, metavar="FOLDER", help="measure the lab in the browser too")
    parser.add_argument("--count", type=int, default=100, help="drawings")
    parser.add_argument("--json", type=Path, help="write every time to this file too")
    args = parser.parse_args()
    if not (args.weights / "model.safetensors").exists():
        parser.error(f"no model in {args.weights}: train one by `minivit train --out {args.weights}`")
    labs = {"served": served(args.weights)}
    if args.pyodide:
        labs["in the browser"] = hosted(args.weights, args.pyodide)
    found = {}
    try:
        for browser in browser_tools.chromium():
            for name, lab in labs.items():
                with lab as address:
                    found[name] = measure(browser, address, args.count)
                ready, *drawn = (found[name][key] for key in ("ready_s", "median_ms", "worst_ms"))
                print(f"{name}: ready after {ready:.1f} s; {args.count} drawings, median and worst in ms:", end=" ")
                print(", ".join(f"{each:.1f}" for each in drawn))
    except pytest.skip.Exception as error:  # as a test would, without a browser
        parser.error(str(error))
    print(f"load of the machine: {os.getloadavg()[0]:.1f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
