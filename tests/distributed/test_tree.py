"""The order of the sum, by itself and in a step: the same for any division of the shards among ranks."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from blas_tools import blas_threads

import minivit
from minivit import nn, optim
from minivit.distributed import Ranks
from minivit.distributed.segments import Segments
from minivit.distributed.tree import add_up, shards_of, subtrees
from minivit.nn import Parameter
from minivit.parallel import DataParallel
from minivit.train import CountingLoss


def written(count: int, ranks: int) -> str:
    """The sum of the shards as a formula, where each rank first adds the subtrees that it has whole."""

    def leaf(a: int, b: int) -> Any:
        return str(a) if b == a + 1 else None

    def plus(left: str, right: str) -> str:
        return f"({left}+{right})"

    known = {
        span: add_up(*span, leaf, plus)
        for rank in range(ranks)
        for span in subtrees(shards_of(rank, ranks, count), count)
    }
    return add_up(0, count, lambda a, b: known.get((a, b)), plus)


@pytest.mark.parametrize("count", range(1, 18))
def test_the_order_does_not_depend_on_the_ranks(count: int) -> None:
    formulas = {written(count, ranks) for ranks in range(1, count + 3)}
    assert len(formulas) == 1
    numbers = formulas.pop().replace("(", "").replace(")", "").split("+")
    assert numbers == [str(shard) for shard in range(count)]  # each once, from left to right


def test_the_tree_by_hand() -> None:
    assert [written(count, 2) for count in (1, 2, 3)] == ["0", "(0+1)", "((0+1)+2)"]
    assert written(8, 3) == "(((0+1)+(2+3))+((4+5)+(6+7)))"


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_a_rank_sends_one_sum_where_ranks_divide_a_power_of_two(count: int) -> None:
    for ranks in (1, 2, 4, 8, 16):
        if ranks <= count:
            assert {len(subtrees(shards_of(rank, ranks, count), count)) for rank in range(ranks)} == {1}


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 20])
def test_segments_cover_all_parameters_in_order(ranks: int) -> None:
    sizes = [3, 100, 1, 17, 0, 250, 64, 5]
    params = {f"p{index}": Parameter(np.full(size, index, np.float32)) for index, size in enumerate(sizes)}
    segments = Segments(params, ranks)
    assert [index for owned in segments.owned for index in owned] == list(range(len(sizes)))
    for rank, owned in enumerate(segments.owned):
        for index in owned:
            span = segments.spans[index]
            assert segments.bounds[rank] <= span.start and span.stop <= segments.bounds[rank + 1]
    flat = segments.gather()
    for index, param in enumerate(params.values()):
        assert (param.data == index).all() and param.data.size == sizes[index]
        assert not param.size or param.data.base is flat


def tiny(dtype: str = "float32", **options: Any) -> minivit.ViT:
    sizes: Any = {"img_size": 8, "in_chans": 1, "num_classes": 4, "patch_size": 4, "depth": 2, "embed_dim": 16}
    return minivit.ViT(**sizes, num_heads=2, dtype=dtype, seed=1, **options)


def gradients(step: DataParallel, noise: bool, dtype: str = "float32") -> Any:
    random = np.random.default_rng(2)
    x, y = random.standard_normal((11, 1, 8, 8)).astype(dtype), random.integers(0, 4, 11)
    loss = step.loss_and_grad(x, y, np.random.default_rng(3) if noise else None, label_smoothing=0.1)
    return loss, {name: param.grad for name, param in step.model.parameters().items()}


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_up_to_three_shards_are_added_as_data_parallel_adds_them(shards: int) -> None:
    first, second = tiny(drop_rate=0.1), tiny(drop_rate=0.1)
    opt = optim.AdamW(first.parameters())
    loss, found = gradients(Ranks(shards).data_parallel(first, opt, threads=2), noise=True)
    expected_loss, expected = gradients(DataParallel(second, threads=2, shards=shards), noise=True)
    assert loss == expected_loss
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("shards", [2, 5, 8, 30])
def test_shards_give_the_gradient_of_the_whole_batch(shards: int) -> None:
    first, second = tiny("float64"), tiny("float64")
    loss, found = gradients(Ranks(shards).data_parallel(first, optim.AdamW(first.parameters())), False, "float64")
    expected_loss, expected = gradients(DataParallel(second, threads=1, shards=1), False, "float64")
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    largest = max(np.abs(grad).max() for grad in expected.values())
    for name, grad in expected.items():
        assert np.abs(found[name] - grad).max() <= 1e-12 * largest, name


def test_gradients_add_up_and_a_frozen_parameter_gets_none() -> None:
    model = tiny("float64")
    trained = {name: param for name, param in model.parameters().items() if not name.startswith("patch_embed")}
    step = Ranks(4).data_parallel(model, optim.AdamW(trained))
    _, once = gradients(step, False, "float64")
    once = {name: None if grad is None else grad.copy() for name, grad in once.items()}
    _, twice = gradients(step, False, "float64")
    assert all((grad is None) == name.startswith("patch_embed") for name, grad in twice.items())
    assert all(np.array_equal(twice[name], 2 * once[name]) for name in trained)


def test_predictions_are_those_of_the_model() -> None:
    model = tiny("float64")
    step = Ranks(3).data_parallel(model, optim.AdamW(model.parameters()))
    x = np.random.default_rng(4).standard_normal((13, 1, 8, 8))
    np.testing.assert_allclose(step.predict(x, batch_size=5), model.predict(x), rtol=1e-12)
    assert step.predict(x[:0]).shape == (0, 4)


def test_without_shards_nothing_changes() -> None:
    model = tiny()
    opt = optim.AdamW(model.parameters())
    ranks = Ranks()
    assert ranks.optimizer(opt) is opt and type(ranks.data_parallel(model, opt)) is DataParallel
    assert operator.is_(ranks.broadcast(model), model) and ranks.gather(1) == [1] and ranks.most(2, 3) == (2, 3)


def test_what_cannot_be_sharded_is_refused() -> None:
    with pytest.raises(ValueError, match="shards=0 must be at least 1"):
        Ranks(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    with pytest.raises(ValueError, match="BatchNorm"):
        Ranks(2).data_parallel(model, optim.AdamW(model.parameters()))


def test_the_norm_is_computed_on_one_thread_of_blas() -> None:
    """The product of a long gradient with itself has other last bits on two threads."""
    threads = []

    class Recording(Ranks):
        def gather(self, value: Any) -> list[Any]:
            threads.extend(blas_threads())
            return [value]

    param = Parameter(np.ones(3, np.float32))
    param.grad = np.full(3, 2, np.float32)
    with threadpoolctl.threadpool_limits(2, "blas"):
        assert Recording(2).clip_grad_norm({"p": param}, 1.0) == pytest.approx(12**0.5)
    assert set(threads) == {1}
    np.testing.assert_allclose(param.grad, 3**-0.5, rtol=1e-5)


def test_correct_predictions_of_accumulated_batches_add_up() -> None:
    model = tiny()
    step = Ranks(3).data_parallel(model, optim.AdamW(model.parameters()), loss=CountingLoss())
    x = np.random.default_rng(2).standard_normal((11, 1, 8, 8)).astype(np.float32)
    for _ in range(2):
        step.loss_and_grad(x, step.predict(x).argmax(axis=1))
    assert step.loss.take_correct() == 22  # type: ignore[attr-defined]
