"""Work shared among threads: who may work for whom, operations cut into slabs, and predictions by all cores.
Read test_parallel.py next, for training in shards.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import minivit
from minivit import parallel
from minivit.backend import kernels_numpy as kernels
from minivit.backend import threads
from minivit.backend.threads import at_most, in_slabs, in_threads, sharing, workers
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
    with at_most(5), sharing(5):
        found: list[int] = []
        other = threading.Thread(target=lambda: found.append(workers()))
        other.start()
        other.join()
        assert found == [threads.usable_cores()]


@pytest.mark.parametrize("shares", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_slabs_cover_everything_once(shares: int, count: int) -> None:
    seen: list[range] = []
    with sharing(shares):
        in_slabs(lambda part: seen.append(range(part.start, part.stop)), count, threads.WORTH_SHARING)
    assert sorted(n for slab in seen for n in slab) == list(range(count))
    assert all(seen) and len(seen) == min(shares, count)
    assert not seen or max(map(len, seen)) - min(map(len, seen)) <= 1  # each thread has as much to do


def test_little_work_is_not_shared() -> None:
    names: set[int] = set()
    with sharing(2):
        in_slabs(lambda part: names.add(threading.get_ident()), 100, threads.WORTH_SHARING - 1)
    assert names == {threading.get_ident()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kernels_compute_the_same_in_slabs(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((700, 301)).astype(dtype)
    x[3] *= 1e18  # a row that needs care
    scores = 10 * rng.standard_normal((2, 3, 101, 203)).astype(dtype)
    alone = kernels.gelu(x), kernels.normalise_rows(x, 1e-6), _exp(scores)
    with sharing(2):
        shared = kernels.gelu(x), kernels.normalise_rows(x, 1e-6), _exp(scores)
    limit = 1e-6 if dtype == "float32" else 1e-14  # products sum in another order for other sizes
    for ours, theirs in zip(alone, shared):
        for one, other in zip(ours, theirs):
            assert np.allclose(one, other, rtol=limit, atol=limit)


def _exp(scores: Any) -> Any:
    weights = scores.copy()
    return weights, kernels.inplace_exp(weights)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_predictions_by_several_threads_are_the_same(batch: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "_WORTH_THREADS", 0)
    monkeypatch.setattr(threads, "WORTH_SHARING", 0)
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
            assert np.allclose(model.features(x), features, rtol=1e-5, atol=1e-6)
            assert np.array_equal(model.predict(x), model.predict(x))  # from run to run
        step = parallel.DataParallel(model, threads=count)
        assert np.allclose(step.predict(x, 2), expected, rtol=1e-5, atol=1e-6)


def test_no_images_give_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "_WORTH_THREADS", 0)
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
