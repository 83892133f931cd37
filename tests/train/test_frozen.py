"""Classifiers on frozen features: the votes of the nearest neighbors, and the linear probe."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, strategies as st

import minivit
from minivit import functional as F
from minivit.strategies import seeds
from minivit.train import frozen
from minivit.train.frozen import frozen_features, knn_votes, linear_probe

VIT = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 2, "num_heads": 2}


def clusters(count: int, classes: int = 3, width: int = 6, seed: int = 0) -> tuple[Any, Any]:
    """Features (count, width) about one direction for each class, far from mean 0 and variance 1."""
    rng = np.random.default_rng(9)
    centers, scales = rng.standard_normal((classes, width)), 10 ** rng.uniform(-2, 2, width)
    labels = np.arange(count) % classes
    noise = 0.15 * np.random.default_rng(seed).standard_normal((count, width))
    return ((centers[labels] + noise) * scales).astype(np.float32), labels


@given(count=st.integers(1, 12), asked=st.integers(1, 4), data=st.data(), seed=seeds())
def test_the_votes_are_those_of_loops(count: int, asked: int, data: Any, seed: int) -> None:
    k, temperature = data.draw(st.integers(1, count)), data.draw(st.floats(0.05, 2))
    rng = np.random.default_rng(seed)
    features, labels = rng.standard_normal((count, 3)), rng.integers(4, size=count)
    queries = rng.standard_normal((asked, 3))
    votes = knn_votes(queries, features, labels, 4, k=k, temperature=temperature)
    for query, found in zip(queries, votes, strict=True):
        cosines = [float(query @ each / np.linalg.norm(query) / np.linalg.norm(each)) for each in features]
        expected: dict[int, float] = defaultdict(float)
        for index in sorted(range(count), key=lambda index: -cosines[index])[:k]:
            expected[int(labels[index])] += np.exp(cosines[index] / temperature)
        total = sum(expected.values())
        assert np.allclose(found, [expected[c] / total for c in range(4)], rtol=1e-6, atol=1e-9)


def test_blocks_of_queries_and_long_vectors_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    (features, labels), (queries, _) = clusters(30), clusters(11, seed=1)
    whole = knn_votes(queries, features, labels, 3, k=5)
    assert np.allclose(whole.sum(axis=1), 1)
    monkeypatch.setattr(frozen, "_SIMILARITIES", 64)  # two queries at a time
    assert np.allclose(knn_votes(queries, features, labels, 3, k=5), whole, rtol=1e-5)
    assert np.allclose(knn_votes(100 * queries, 0.01 * features, labels, 3, k=5), whole, rtol=1e-4)


def test_a_small_temperature_does_not_overflow() -> None:
    features, labels = clusters(9)
    assert np.array_equal(knn_votes(features, features, labels, 3, k=9, temperature=1e-4).argmax(axis=1), labels)


def test_the_probe_learns_and_takes_the_features_as_they_are() -> None:
    (features, labels), (queries, truth) = clusters(60), clusters(30, seed=1)
    features = np.concatenate([features, np.full((60, 1), 7, np.float32)], axis=1)  # a channel that says nothing
    queries = np.concatenate([queries, np.full((30, 1), 7, np.float32)], axis=1)
    layer = linear_probe(features, labels, 3, epochs=60)
    logits, _ = layer(queries)
    assert layer.dtype == np.float32 and np.isfinite(logits).all()
    assert (logits.argmax(axis=1) == truth).mean() > 0.95
    chance, _ = F.softmax_cross_entropy(np.zeros((30, 3)), truth)
    assert F.softmax_cross_entropy(logits, truth)[0] < 0.3 * chance
    same, _ = linear_probe(features, labels, 3, epochs=60)(queries)
    assert np.array_equal(same, logits), "the seed decides"


def test_weight_decay_shrinks_the_weights_of_the_probe() -> None:
    features, labels = clusters(60)
    plain, decayed = (linear_probe(features, labels, 3, epochs=5, weight_decay=decay) for decay in (0.0, 100.0))
    assert np.linalg.norm(decayed.weight.data) < 0.5 * np.linalg.norm(plain.weight.data)


def test_frozen_features_are_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    model = minivit.ViT(**VIT)
    images = np.random.default_rng(0).standard_normal((7, 1, 8, 8)).astype(np.float32)
    monkeypatch.setattr(frozen, "_PREPARED", 3)
    found = frozen_features(model, 2 * images, lambda batch: batch / 2)
    assert np.allclose(found, model.features(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 0}, "k=0 neighbors of 9 training images: choose 1 to 9"),
        ({"k": 10}, "k=10"),
        ({"temperature": 0.0}, "temperature"),
        ({"queries": np.zeros((2, 5))}, r"queries must be \(m, 6\)"),
        ({"labels": np.zeros(3, int)}, "features must be"),
        ({"labels": np.full(9, 3)}, "labels must be integers of 0 to 2"),
        ({"labels": np.zeros(9)}, "labels must be integers"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    features, labels = clusters(9)
    arguments: dict[str, Any] = {"queries": features, "features": features, "labels": labels, "k": 5} | changes
    with pytest.raises(ValueError, match=message):
        knn_votes(**arguments, num_classes=3)
    if "labels" in changes:
        with pytest.raises(ValueError, match=message):
            linear_probe(features, changes["labels"], 3)
