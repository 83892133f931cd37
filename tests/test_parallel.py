"""Shards of a batch in threads give the gradients of the whole batch, whatever their number, also after errors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import threadpoolctl
from blas_tools import blas_threads

import minivit
from minivit import functional as F, nn
from minivit.fast.threads import usable_cores
from minivit.nn.counting import cost
from minivit.parallel import DataParallel, data_parallel

SIZES = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depth": 2, "num_heads": 2}
NOISE = {"drop_rate": 0.2, "pos_drop_rate": 0.2, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_path_rate": 0.2}


def vit(dtype="float64", seed=0, **options):
    return minivit.ViT(**SIZES, **options, dtype=dtype, seed=seed)


def batch(size=7, dtype="float64", soft=False):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((size, 1, 8, 8)).astype(dtype)
    return x, (rng.dirichlet(np.ones(3), size) if soft else rng.integers(3, size=size))


def gradients(model):
    """The gradients by name; the model's are cleared."""
    found = {name: param.grad for name, param in model.parameters().items()}
    for param in model.parameters().values():
        param.grad = None
    return found


def by_hand(model, x, y, **options):
    """Loss and gradients of the whole batch in one pass, without DataParallel."""
    logits, back = model(x)
    loss, back_loss = F.softmax_cross_entropy(logits, y, **options)
    back(back_loss())
    return float(loss), gradients(model)


def same(found, expected, tolerance):
    return found.keys() == expected.keys() and all(
        np.allclose(found[name], expected[name], rtol=tolerance, atol=tolerance) for name in expected
    )


@pytest.fixture
def two_blas_threads():
    """BLAS on two threads, so that a test can see whether the number comes back."""
    with threadpoolctl.threadpool_limits(2, "blas"):
        if set(blas_threads()) != {2}:
            pytest.skip("this BLAS cannot be set to two threads")
        yield


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("threads, shards", [(1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (2, 4), (4, 4), (3, 7), (2, 20)])
def test_shards_equal_the_whole_batch(threads, shards, soft):
    model = vit()
    x, y = batch(soft=soft)
    loss, expected = by_hand(model, x, y, label_smoothing=0.1)
    step = DataParallel(model, threads=threads, shards=shards)
    for _ in range(2):  # the second time with replicas that have been used
        assert step.loss_and_grad(x, y, label_smoothing=0.1) == pytest.approx(loss, rel=1e-12)
        assert same(gradients(model), expected, 1e-12)


def test_batches_of_every_size():
    model = vit()
    step = DataParallel(model, threads=2, shards=3)
    for size in (1, 2, 3, 4, 8):  # smaller than the shards, as many, more
        x, y = batch(size)
        loss, expected = by_hand(model, x, y)
        assert step.loss_and_grad(x, y) == pytest.approx(loss, rel=1e-12)
        assert same(gradients(model), expected, 1e-12)


def test_float32():
    model = vit("float32")
    x, y = batch(dtype="float32")
    loss, expected = by_hand(model, x, y)
    assert DataParallel(model, threads=2).loss_and_grad(x, y) == pytest.approx(loss, rel=1e-5)
    found = gradients(model)
    assert {grad.dtype for grad in found.values()} == {np.dtype("float32")}
    assert same(found, expected, 1e-5)


def test_noise_repeats_bit_for_bit():
    x, y = batch(dtype="float32")
    runs = {}
    for label, threads, shards, seed in [
        ("a", 2, 3, 5),
        ("b", 2, 3, 5),
        ("c", 1, 3, 5),
        ("seed", 2, 3, 6),
        ("d", 2, 2, 5),
    ]:
        model = vit("float32", **NOISE)
        step = DataParallel(model, threads=threads, shards=shards)
        losses = [step.loss_and_grad(x, y, np.random.default_rng((seed, turn))) for turn in range(3)]
        runs[label] = losses, gradients(model)
    for label in "bc":  # c: the number of threads does not matter, only that of shards
        assert runs["a"][0] == runs[label][0]
        assert all(np.array_equal(grad, runs[label][1][name]) for name, grad in runs["a"][1].items())
    assert runs["a"][0] != runs["seed"][0] and runs["a"][0] != runs["d"][0]


def test_each_shard_has_noise_of_its_own():
    model = vit(**NOISE)
    seen = []

    def loss(logits, labels):
        seen.append(logits.copy())
        return F.softmax_cross_entropy(logits, labels)

    x, y = batch(1)
    DataParallel(model, threads=1, shards=2, loss=loss).loss_and_grad(
        np.repeat(x, 2, 0), np.repeat(y, 2), np.random.default_rng(0)
    )
    assert not np.array_equal(seen[0], seen[1])


def test_gradients_are_added_to_what_is_there():
    model = vit()
    x, y = batch()
    _, expected = by_hand(model, x, y)
    step = DataParallel(model, threads=2)
    for param in model.parameters().values():
        param.grad = np.ones(param.shape)
    step.loss_and_grad(x, y, dloss=0.5)
    assert same(gradients(model), {name: 1 + 0.5 * grad for name, grad in expected.items()}, 1e-12)


def test_weights_that_change_are_seen():
    model = vit()
    x, y = batch()
    step = DataParallel(model, threads=2)
    step.loss_and_grad(x, y)
    gradients(model)
    for change in (lambda: model.load_state_dict(vit(seed=1).state_dict()), lambda: model.move_to(lambda a: a * 2)):
        change()
        loss, expected = by_hand(model, x, y)
        assert step.loss_and_grad(x, y) == pytest.approx(loss, rel=1e-12)
        assert same(gradients(model), expected, 1e-12)


class Planned(RuntimeError):
    """The error that the tests raise."""


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_a_shard_leaves_everything_as_it_was(two_blas_threads, failing, where):
    model = vit()
    x, _ = batch(6)
    y = np.repeat(np.arange(3), 2)  # shard number = label
    armed = True

    def loss(logits, labels):
        value, back = F.softmax_cross_entropy(logits, labels)
        if not armed or labels[0] != failing:
            return value, back
        if where == "forward":
            raise Planned(f"shard {failing}")

        def broken(dloss):
            raise Planned(f"shard {failing}")

        return value, broken

    step = DataParallel(model, threads=2, shards=3, loss=loss)
    for param in model.parameters().values():
        param.grad = np.full(param.shape, 3.0)
    weights = model.state_dict()
    with pytest.raises(Planned, match=f"shard {failing}"):
        step.loss_and_grad(x, y)
    assert blas_threads() == [2] * len(blas_threads())
    assert all((grad == 3).all() for grad in gradients(model).values())
    assert all(np.array_equal(weights[name], value) for name, value in model.state_dict().items())
    armed = False
    loss_value, expected = by_hand(model, x, y)
    assert step.loss_and_grad(x, y) == pytest.approx(loss_value, rel=1e-12)
    assert same(gradients(model), expected, 1e-12)


def test_blas_works_on_one_thread_meanwhile_and_gets_its_number_back(two_blas_threads):
    model, during = vit(), []

    def loss(logits, labels):
        during.extend(blas_threads())
        return F.softmax_cross_entropy(logits, labels)

    DataParallel(model, threads=2, loss=loss).loss_and_grad(*batch())
    assert set(during) == {1}
    assert set(blas_threads()) == {2}


def test_one_thread_holds_blas_to_one_too(two_blas_threads):
    """Otherwise the same shards would give other bits than two threads."""
    during = []

    def loss(logits, labels):
        during.extend(blas_threads())
        return F.softmax_cross_entropy(logits, labels)

    DataParallel(vit(), threads=1, shards=2, loss=loss).loss_and_grad(*batch())
    assert set(during) == {1} and set(blas_threads()) == {2}


def test_the_same_shards_give_the_same_bits_whatever_the_threads(two_blas_threads):
    options = {"img_size": 28, "patch_size": 4, "in_chans": 1, "embed_dim": 64, "depth": 2, "num_heads": 4}
    x = np.random.default_rng(0).standard_normal((64, 1, 28, 28), dtype=np.float32)
    found = []
    for threads in (1, 2, 3):
        model = minivit.ViT(**options, num_classes=10)
        DataParallel(model, threads=threads, shards=2).loss_and_grad(x, np.arange(64) % 10)
        found.append(gradients(model))
    for other in found[1:]:
        assert all(np.array_equal(found[0][name], other[name]) for name in other)


def test_two_threads_that_share_one_object_give_both_gradients():
    model, (x, y) = vit(), batch(16)
    step = DataParallel(model, threads=2, shards=2)
    expected = by_hand(model, x, y)
    for param in model.parameters().values():
        param.grad = None
    for shared in ((step, step), (step, DataParallel(model, threads=1, shards=3))):  # one object, or one model
        start = threading.Barrier(2)

        def work(each, start=start):
            start.wait(10)
            for _ in range(10):
                each.loss_and_grad(x, y)

        threads = [threading.Thread(target=work, args=(each,)) for each in shared]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert same({name: grad / 20 for name, grad in gradients(model).items()}, expected[1], 1e-12)
        for param in model.parameters().values():
            param.grad = None


def test_two_models_train_in_two_threads_at_once():
    models = [vit(seed=seed) for seed in (1, 2)]
    x, y = batch(16)
    expected = [by_hand(model, x, y) for model in models]
    steps = [DataParallel(model, threads=2, shards=4) for model in models]
    start, errors = threading.Barrier(2), []

    def work(place):
        try:
            start.wait(10)
            for _ in range(15):
                assert steps[place].loss_and_grad(x, y) == pytest.approx(expected[place][0], rel=1e-12)
                assert same(gradients(models[place]), expected[place][1], 1e-12)
        except Exception as error:  # pytest sees no exception of another thread
            errors.append(error)

    workers = [threading.Thread(target=work, args=(place,)) for place in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not errors, errors


OVERLAP = """
import threading
import numpy as np
import threadpoolctl
from minivit import functional as F, nn
from minivit.parallel import DataParallel, data_parallel

def blas_threads():
    return [info["num_threads"] for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]

before = blas_threads()
events = {name: threading.Event() for name in ("first in", "second in", "first done")}

def meet(name, wait_for):
    def loss(y, target):
        events[name].set()
        events[wait_for].wait(1)  # in vain where the runs take turns, which is right too
        return F.mean_squared_error(y, target)
    return DataParallel(nn.Linear(3, 3, dtype="float64", seed=0), threads=2, loss=loss)

x = np.ones((4, 3))
first, second = meet("first in", "second in"), meet("second in", "first done")
workers = [
    threading.Thread(target=lambda: (first.loss_and_grad(x, x), events["first done"].set())),
    threading.Thread(target=lambda: second.loss_and_grad(x, x)),
]
workers[0].start()
assert events["first in"].wait(10)  # the first one holds BLAS before the second one asks
workers[1].start()
for worker in workers:
    worker.join(30)
assert events["first done"].is_set()
print(before, blas_threads())
"""


def test_two_runs_that_overlap_give_blas_its_number_back():
    # in a process of its own: a number that is lost stays lost, and would change what later tests see
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", OVERLAP], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.strip().replace("] [", "]|[").split("|")
    assert before == after


@pytest.mark.parametrize("threads", [1, 2])
def test_predict_equals_the_model(threads):
    model = vit(**NOISE)
    x, _ = batch(11)
    step = DataParallel(model, threads=threads)
    for size in (1, 3, 4, 11, 256):
        assert np.allclose(step.predict(x, batch_size=size), model.predict(x), rtol=0, atol=1e-12)


def test_predict_with_batch_size_0_is_refused():
    with pytest.raises(ValueError, match="batch_size.*0"):
        DataParallel(vit(), threads=2).predict(batch()[0], batch_size=0)


def test_a_layer_with_a_loss_of_its_own():
    layer = nn.Linear(3, 2, dtype="float64", seed=0)
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    loss = DataParallel(layer, threads=2, loss=F.mean_squared_error).loss_and_grad(x, target)
    difference = layer(x)[0] - target
    assert loss == pytest.approx((difference**2).mean(), rel=1e-12)
    assert np.allclose(layer.weight.grad, 2 * difference.T @ x / 10, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "cores, setting, expected",
    [(4, "2", 2), (4, "9", 4), (4, "", 4), (4, "0", 4), (4, "-1", 4), (4, "many", 4), (1, "3", 1)],
)
def test_usable_cores(monkeypatch, cores, setting, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert usable_cores() == expected
    assert DataParallel(nn.Linear(1, 1, seed=0)).threads == expected


def test_usable_cores_where_the_system_has_no_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert usable_cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


# the flagship, the smallest of the benchmarks, and one whose gradients weigh more than its activations
FLAGSHIP = {"patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4}
SMALL = {"patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}
HEAVY = {"patch_size": 14, "embed_dim": 512, "depth": 2, "num_heads": 4}


@pytest.mark.parametrize(
    "size, images, shards",
    [(FLAGSHIP, 128, 4), (FLAGSHIP, 1, 2), (FLAGSHIP, 256, 8), (SMALL, 100, 2), (SMALL, 1000, 4), (HEAVY, 200, 2)],
)
def test_a_batch_is_cut_further_where_that_saves_memory_and_leaves_enough_to_do(size, images, shards):
    model = minivit.ViT(img_size=28, in_chans=1, num_classes=10, **size)
    x = np.zeros((images, 1, 28, 28), np.float32)
    assert DataParallel(model, threads=2)._shards_for(x) == shards
    assert DataParallel(model, threads=2, shards=3)._shards_for(x) == 3


@pytest.mark.parametrize("threads, images", [(2, 3000), (3, 3000), (2, 12000)])
def test_where_all_shards_have_enough_to_do_their_number_takes_least_memory(threads, images, monkeypatch):
    monkeypatch.setattr(data_parallel, "_WORTH_A_SHARD", 1)
    model = minivit.ViT(img_size=28, in_chans=1, num_classes=10, **SMALL)
    x = np.broadcast_to(np.float32(0), (images, 1, 28, 28))
    kept, gradients = cost(model, x.shape, every_token=True).kept, sum(p.size for p in model.parameters().values())
    memory = {n: threads / n * kept + n * gradients for n in range(threads, images, threads)}
    best = min(memory, key=memory.get)
    assert best > 20 * threads  # so that a slip in the formula shows
    assert best - threads <= DataParallel(model, threads=threads)._shards_for(x) <= best


def test_shards_are_planned_without_a_forward_pass(monkeypatch):
    seen = []
    plain = minivit.ViT.forward
    monkeypatch.setattr(minivit.ViT, "forward", lambda model, x, rng=None: seen.append(len(x)) or plain(model, x, rng))
    monkeypatch.setattr(data_parallel, "_WORTH_A_SHARD", 1)
    model, (x, y) = vit(), batch(200)
    DataParallel(model, threads=2).loss_and_grad(x, y)
    assert len(seen) > 2 and sum(seen) == 200


def test_a_model_of_unknown_cost_is_cut_for_the_threads():
    class Halved(nn.Layer):
        def forward(self, x, rng=None):
            return 0.5 * x, lambda dy: 0.5 * dy

    model, (x, y) = vit(), batch()
    model.norm = Halved()
    assert DataParallel(model, threads=3)._shards_for(x) == 3
    assert np.isfinite(DataParallel(model, threads=2).loss_and_grad(x, y))
    assert np.allclose(model.predict(x), model(x)[0])


def test_replicas_are_added_when_a_larger_batch_comes(monkeypatch):
    model, (x, y) = vit(), batch()
    step = DataParallel(model, threads=2)
    assert len(step.replicas) == 2
    monkeypatch.setattr(data_parallel, "_WORTH_A_SHARD", 1)
    many = np.concatenate([x] * (1 + 200 // len(x))), np.concatenate([y] * (1 + 200 // len(y)))
    loss = step.loss_and_grad(*many)
    assert len(step.replicas) > 2
    grads = {name: param.grad for name, param in model.parameters().items()}
    for param in model.parameters().values():
        param.grad = None
    assert step.loss_and_grad(x, y) == pytest.approx(loss, rel=1e-4)
    for name, param in model.parameters().items():
        assert np.allclose(param.grad, grads[name], rtol=1e-3, atol=1e-6)
