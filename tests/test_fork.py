"""A child that is forked while other threads work: it finds every lock free, and computes the right numbers."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import minivit
from minivit.fast import dispatch
from minivit.parallel import data_parallel

PACKAGE = Path(minivit.__file__).parent
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

PREAMBLE = """
import os, sys, threading, time
import numpy as np
import minivit
from minivit import functional as F
from minivit.fast import blas_threads, dispatch
from minivit.fork import Lock
from minivit.parallel import DataParallel
from minivit.train import CountingLoss

def exit_code(child, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "hangs"

def in_child(check):
    child = os.fork()
    if child == 0:
        code = 4
        try:
            code = 0 if check() else 3
        finally:
            os._exit(code)
    return exit_code(child)

def held(lock):
    entered, leave = threading.Event(), threading.Event()
    def hold():
        with lock:
            entered.set()
            leave.wait(60)
    threading.Thread(target=hold, daemon=True).start()
    assert entered.wait(10)
    return leave
"""


def forks(script: str) -> None:
    """Run a script with the helpers above; it prints what is wrong. Python 3.12 warns of forks among threads."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])}
    environment |= {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"}  # a limit of one thread must show
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PREAMBLE + script],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.split() == ["done"], done.stdout + done.stderr


def test_children_forked_while_another_thread_trains_compute_the_same_gradients() -> None:
    """Half of the time it trains by the formulas alone, which the children do not."""
    forks("""
def grads(step):
    for param in step.model.parameters().values():
        param.grad = None
    loss = step.loss_and_grad(x, y, np.random.default_rng(0))
    return loss, np.concatenate([param.grad.ravel() for param in step.model.parameters().values()])

model = minivit.ViT(img_size=16, patch_size=4, in_chans=3, num_classes=10, embed_dim=32, depth=3, num_heads=4)
x = np.random.default_rng(0).standard_normal((24, 3, 16, 16)).astype("float32")
y = np.arange(24) % 10
shared, own = DataParallel(model, threads=2, loss=CountingLoss()), DataParallel(model, threads=2)
expected = grads(shared)
stop = False

def train():
    while not stop:
        shared.loss_and_grad(x, y, np.random.default_rng(0))
        with minivit.plain():
            shared.loss_and_grad(x, y, np.random.default_rng(0))

def check():
    for step in (shared, own):
        loss, found = grads(step)
        if loss != expected[0] or not np.array_equal(found, expected[1]):
            return False
    return shared.loss.take_correct() >= 0 and dispatch.current_mode() == "auto" and len(model.predict(x)) == 24

thread = threading.Thread(target=train)
thread.start()
for number in range(15):
    time.sleep(0.003 * number)
    code = in_child(check)
    if code != 0:
        print("child", number, code, flush=True)
        break
stop = True
thread.join()
print("done")
""")


def test_a_forked_child_finds_free_what_another_thread_held() -> None:
    forks("""
from minivit import parallel
from minivit.nn import map_norm

loss = CountingLoss()
step = DataParallel(minivit.ViT(8, 4, 1, 3, 8, 1, 2), threads=2, loss=loss)
for lock in (parallel.data_parallel._adding, step._turn, map_norm._turn, loss._lock, dispatch._turn):
    leave = held(lock)
    code = in_child(lambda: F.linear and step.loss_and_grad(np.zeros((4, 1, 8, 8), "float32"), np.arange(4) % 3) > 0
                    and loss.take_correct() >= 0 and (map_norm._turn.__enter__() or True))
    if code != 0:
        print(lock, code)
    leave.set()

# a fork waits for the holders of BLAS's number, but not forever
# what other threads had changed for as long as they work is as it was before: BLAS's threads, and the mode
from threadpoolctl import threadpool_info
def numbers():
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]
with blas_threads.limit_threads(1):
    pass
before, blas_threads._PATIENCE = numbers(), 0.1
limit, use = blas_threads.limit_threads, dispatch.use
for context, other in ((limit(1), limit(2)), (use("plain"), use("auto"))):
    leave = held(context)
    def check():
        same = numbers() == before and dispatch.current_mode() == "auto"
        with other:
            return same and numbers() == before and dispatch.current_mode() == "auto"
    if (code := in_child(check)) != 0:
        print(context, code)
    leave.set()
print("done")
""")


def test_a_thread_that_forks_goes_on_in_what_it_holds_itself() -> None:
    forks("""
lock = Lock()
with lock, blas_threads.limit_threads(1), dispatch.use("plain"):
    child = os.fork()
    inside = lock.is_mine and blas_threads._held[0] == 1 and dispatch.current_mode() == "plain"
outside = not lock.is_mine and blas_threads._held is None and blas_threads._holders == 0
outside = outside and dispatch.current_mode() == "auto"
with lock, blas_threads.limit_threads(2):
    pass
if child == 0:
    os._exit(0 if inside and outside else 3)
print("done" if inside and outside and exit_code(child) == 0 else "wrong")
""")


def test_no_file_has_a_lock_that_a_forked_child_would_inherit_held() -> None:
    """`minivit.fork.Lock` is renewed in a child, and so is blas_threads.py's condition; others would need the same."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            if name in ("RLock", "Condition", "Semaphore", "BoundedSemaphore", "Barrier", "Event"):
                found.append((file.relative_to(PACKAGE).as_posix(), name))
            if isinstance(node, ast.Attribute) and name == "Lock" and ast.unparse(node) == "threading.Lock":
                found.append((file.relative_to(PACKAGE).as_posix(), name))
    assert set(found) == {("fork.py", "Lock"), ("fast/blas_threads.py", "Condition")}


def test_a_child_leaves_the_contexts_of_threads_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_before", [(-1, "auto")])
    monkeypatch.setattr(dispatch, "_mode", "plain")
    dispatch._close_in_child()
    assert dispatch._before == [] and dispatch._mode == "auto"


@pytest.mark.parametrize("mine", [False, True])
def test_a_child_forgets_the_shards_that_another_thread_computed(monkeypatch: pytest.MonkeyPatch, mine: bool) -> None:
    forgotten = []
    step = SimpleNamespace(_turn=SimpleNamespace(is_mine=mine), forget_shards=lambda: forgotten.append(mine))
    monkeypatch.setattr(data_parallel, "_in_use", [step])
    data_parallel._forget_in_child()
    assert forgotten == ([] if mine else [False])
