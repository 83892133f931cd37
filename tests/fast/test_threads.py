"""Work shared among threads: who may work for whom, and predictions by all cores."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import nn, parallel
from minivit.fast import threads
from minivit.fast.threads import at_most, in_threads, workers
from minivit.models import model as model_module


def test_a_worker_has_no_workers_of_its_own() -> None:
    with at_most(3):
        assert workers() == 3
        with at_most(2):
            assert workers() == 2
        assert workers() == 3
        # each waits for both to have begun, so that two threads do the work; what they start in turn stays with them
        both = threading.Barrier(2, timeout=10)

        def nested(_: int) -> Any:
            both.wait()
            inner = in_threads(lambda n: threading.get_ident(), range(4), 2)
            return workers(), set(inner) == {threading.get_ident()}

        assert in_threads(nested, [0, 1], 2) == [(1, True), (1, True)]
    assert workers() == threads.usable_cores()


def test_what_holds_in_one_thread_does_not_in_another() -> None:
    with at_most(5):
        found: list[int] = []
        other = threading.Thread(target=lambda: found.append(workers()))
        other.start()
        other.join()
        assert found == [threads.usable_cores()]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_caller_works_too_and_each_item_is_done_once(count: int) -> None:
    begun = threading.Barrier(2, timeout=10)  # passes only if two threads run concurrently
    names: set[int] = set()

    def work(item: int) -> int:
        names.add(threading.get_ident())
        if item < 2:
            begun.wait()
        return 10 * item

    assert in_threads(work, range(count), 2) == [10 * item for item in range(count)]
    assert threading.get_ident() in names and len(names) == 2


def test_the_threads_bear_the_name_of_the_library() -> None:
    threads._pool.cache_clear()
    begun = threading.Barrier(2, timeout=10)

    def name(_: int) -> str:
        begun.wait()
        return threading.current_thread().name

    others = [each for each in in_threads(name, range(2), 2) if each != threading.current_thread().name]
    assert len(others) == 1 and others[0].startswith("minivit")


def test_an_interrupt_while_the_caller_waits_is_raised_after_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, done = threading.Barrier(2, timeout=10), []

    def work(item: int) -> None:
        begun.wait()
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
            done.append(item)

    def interrupted(future: Any, timeout: Any = None) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_threads(work, range(2), 2)
    assert len(done) == 1


def test_an_error_stops_what_has_not_begun_and_is_raised_after_the_rest() -> None:
    begun, done = threading.Barrier(2, timeout=10), []

    def work(item: int) -> None:
        if item < 2:
            begun.wait()
        if item == 0:
            raise KeyError("first")
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(KeyError, match="first"):
        in_threads(work, range(1000), 2)
    assert 1 in done and len(done) < 900
    assert in_threads(lambda item: item, [1, 2], 2) == [1, 2] and workers() == threads.usable_cores()


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_predictions_by_several_threads_are_the_same(batch: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "WORTH_THREADS", 0)
    model: Any = minivit.ViT(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=7)
    if kind == "swin":
        model = minivit.Swin(img_size=32, embed_dim=16, depths=(2, 2), num_heads=(1, 2), window_size=4, num_classes=7)
    x = np.random.default_rng(0).standard_normal((batch, 3, 32, 32), dtype=np.float32)
    with at_most(1):
        expected, features = model.predict(x), model.features(x)
    for count in (2, 3):
        with at_most(count):
            assert np.allclose(model.predict(x), expected, rtol=1e-5, atol=1e-6)
            assert np.allclose(model.predict(x, batch_size=2), expected, rtol=1e-5, atol=1e-6)
            assert np.allclose(model.features(x), features, rtol=1e-5, atol=5e-6)  # as large as 3
            assert np.array_equal(model.predict(x), model.predict(x))  # from run to run
        step = parallel.DataParallel(model, threads=count)
        assert np.allclose(step.predict(x, 2), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("threads", [1, 2])
def test_images_go_through_a_few_at_a_time(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a layer keeps until it is done must not grow with the batch."""
    model = minivit.ViT(img_size=16, patch_size=8, embed_dim=8, depth=1, num_heads=1, num_classes=3)
    x = np.random.default_rng(0).standard_normal((11, 3, 16, 16), dtype=np.float32)
    expected = model.predict(x)
    monkeypatch.setattr(model_module, "_MOST_WORK", 2 * nn.multiply_adds(model, (1, 3, 16, 16)))
    monkeypatch.setattr(model_module, "WORTH_THREADS", 0)
    seen: list[int] = []
    plain = nn.Block.forward
    monkeypatch.setattr(nn.Block, "forward", lambda block, x, rng=None: seen.append(len(x)) or plain(block, x, rng))
    with at_most(threads):
        assert np.allclose(model.predict(x), expected, rtol=1e-5, atol=1e-6)
    assert max(seen) == 2 and sum(seen) == 11


def test_no_images_give_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "WORTH_THREADS", 0)
    model = minivit.ViT(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=1, num_classes=3)
    with at_most(2):
        assert model.predict(np.zeros((0, 3, 8, 8), np.float32)).shape == (0, 3)
        with pytest.raises(ValueError, match="images must be"):
            model.predict(np.zeros((2, 3, 8), np.float32))


def test_predictions_from_within_a_training_thread_do_not_wait_for_each_other() -> None:
    model = minivit.create_model("test_vit")
    x = np.random.default_rng(0).standard_normal((4, 3, 160, 160), dtype=np.float32)
    expected = model.predict(x)
    found = in_threads(lambda n: model.predict(x), range(2), 2)
    assert all(np.allclose(logits, expected, rtol=1e-4, atol=1e-5) for logits in found)
