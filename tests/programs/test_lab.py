"""`minivit lab` as a user starts it: trains what is missing, prints an address, and ends with Ctrl-C."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import minivit
from minivit.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A folder of random images, named as MNIST's files are."""
    rng, folder = np.random.default_rng(0), tmp_path / "digits"
    folder.mkdir()
    for part, count in (("train", 1200), ("t10k", 40)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        head = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head, labels = np.array([0x801, count], dtype=">i4").tobytes(), (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return folder


def ask(address: str, name: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    host, token = re.fullmatch(r"http://(127\.0\.0\.1:\d+)/#(\S+)", address).groups()
    headers = {"Content-Type": "application/json", "X-Lab-Token": token}
    with contextlib.closing(http.client.HTTPConnection(host, timeout=120)) as connection:
        connection.request("POST", f"/api/{name}", json.dumps(request), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def started(tmp_path: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "minivit", "lab", "--no-browser", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)
    line = process.stdout.readline()
    return process, line.removeprefix("the lab is at ").strip()


def ready(address: str) -> list[str]:
    """The lines of progress until the lab is ready."""
    lines: list[str] = []
    for _ in range(600):
        state = ask(address, "state", {})[1]
        assert not state["failure"], state
        lines.append(state["progress"])
        if state["ready"]:
            return lines
        time.sleep(0.1)
    raise AssertionError(lines)


def ended(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    return errors


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_it_trains_a_model_first_and_takes_it_the_next_time(tmp_path, digits):
    options = ["--data", str(digits), "--epochs", "1", "--limit", "150"]
    process, address = started(tmp_path, *options)
    try:
        lines = ready(address)
        assert any("trained first" in line or "training in" in line or "loaded" in line for line in lines)
        assert (tmp_path / "runs" / "mnist_vit" / "model.safetensors").exists()
        about = ask(address, "about", {})[1]
        assert about["kind"] == "ViT" and about["test"]["count"] == 40 and about["labels"] == list("0123456789")
        assert ask(address, "accuracy", {})[1]["count"] == 40
    finally:
        assert "interrupted" in ended(process)
    written = (tmp_path / "runs" / "mnist_vit" / "model.safetensors").stat().st_mtime_ns
    process, address = started(tmp_path, *options)
    try:
        ready(address)
    finally:
        ended(process)
    assert (tmp_path / "runs" / "mnist_vit" / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_weights_of_color_images_are_shown_without_test_images(tmp_path):
    model = minivit.Swin(
        img_size=32, patch_size=4, num_classes=3, embed_dim=12, depths=(2,), num_heads=(3,), window_size=4, seed=0
    )
    minivit.save(model, tmp_path / "model.safetensors")
    process, address = started(tmp_path, "--weights", "model.safetensors")
    try:
        ready(address)
        about = ask(address, "about", {})[1]
        assert about["size"] == [3, 32, 32] and about["test"] is None and about["windows"]
        status, answer = ask(address, "accuracy", {})
        assert status == 400 and "no test images" in answer["error"]
    finally:
        ended(process)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_a_training_that_fails_is_told_in_the_page(tmp_path):
    process, address = started(tmp_path, "--data", "nowhere")
    try:
        for _ in range(300):
            state = ask(address, "state", {})[1]
            if state["failure"]:
                break
            time.sleep(0.1)
        assert "failed" in state["failure"] and "nowhere" in state["failure"]
    finally:
        ended(process)


def test_a_port_that_does_not_exist_is_refused(capsys):
    assert main(["lab", "--no-browser", "--port", "70000"]) == 2
    assert "--port 70000" in capsys.readouterr().err
