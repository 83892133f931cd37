"""The scikit-learn estimator: it keeps scikit-learn's contract, learns, stops early, and repeats bit for bit."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")

from sklearn.base import clone  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

from minivit.sklearn import ViTClassifier  # noqa: E402

SMALL: dict[str, Any] = {"embed_dim": 16, "depth": 1, "num_heads": 2, "random_state": 0}
FAST: dict[str, Any] = {
    **SMALL,
    "max_iter": 8,
    "batch_size": 8,
    "learning_rate_init": 1e-2,
}
CHECKED = FAST | {"batch_size": 32, "learning_rate_init": 2e-2}  # scikit-learn's checks fit 200 models


def stripes(count: int = 60, side: int = 8, channels: int | None = None, seed: int = 0) -> tuple[Any, Any]:
    """Images of 0 to 255, each brighter in its left, right, or lower half, and the names of these."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 100, (count, *([channels] if channels else []), side, side))
    for number, label in enumerate(labels):
        part = [
            (..., slice(0, side // 2)),
            (..., slice(side // 2, side)),
            (..., slice(side // 2, side), slice(0, side)),
        ]
        images[number][part[label]] += 150
    return images.astype(np.uint8), np.array(["left", "right", "low"])[labels]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # scikit-learn's checks warn of what they skip
def test_scikit_learns_own_checks_pass() -> None:
    results = check_estimator(ViTClassifier(**CHECKED), on_skip=None, on_fail=None)
    failed = {each["check_name"]: each["exception"] for each in results if each["status"] == "failed"}
    assert not failed
    assert len(results) > 40 and sum(each["status"] == "passed" for each in results) > 40


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks_pass_with_early_stopping() -> None:
    model = ViTClassifier(**CHECKED, early_stopping=True, validation_fraction=0.2)
    names = ("check_classifiers_train", "check_fit_idempotent", "check_estimators_pickle", "check_n_features_in")
    from sklearn.utils import estimator_checks

    for name in names:
        getattr(estimator_checks, name)("ViTClassifier", clone(model))


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_images_of_0_to_255_are_learned(channels: int | None) -> None:
    X, y = stripes(channels=channels)
    model = ViTClassifier(**{**FAST, "max_iter": 20}).fit(X, y)
    assert model.classes_.tolist() == ["left", "low", "right"]
    assert model.n_features_in_ == (channels or 1) * 64 and model.image_shape_ == (channels or 1, 8, 8)
    test, names = stripes(seed=1, channels=channels)
    assert model.score(test, names) == 1.0
    probabilities = model.predict_proba(test)
    assert probabilities.shape == (60, 3) and np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert np.array_equal(model.classes_[probabilities.argmax(axis=1)], model.predict(test))
    assert model.mean_.shape == model.scale_.shape == (channels or 1, 1, 1)


def test_a_table_of_pixels_with_its_shape_is_those_images() -> None:
    X, y = stripes()
    images = ViTClassifier(**SMALL, max_iter=2).fit(X, y)
    table = ViTClassifier(**SMALL, max_iter=2, image_shape=(8, 8)).fit(X.reshape(60, 64), y)
    assert np.array_equal(images.predict_proba(X), table.predict_proba(X.reshape(60, 64)))
    assert table.n_features_in_ == 64 and table.image_shape_ == (1, 8, 8)
    with pytest.raises(ValueError, match=r"image_shape=\(8, 9\) does not fit rows of 64 numbers"):
        ViTClassifier(**SMALL, image_shape=(8, 9)).fit(X.reshape(60, 64), y)


def test_each_feature_of_a_table_is_a_token_and_has_its_own_scale() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 4)) * [1, 1e6, 1e-6, 0] + [0, 1e6, 0, 7]
    y = X[:, 1] / 1e6 + X[:, 2] * 1e6 > 1
    model = ViTClassifier(**SMALL, max_iter=30).fit(X, y)
    assert model.score(X, y) > 0.9
    x = ((X - model.mean_[0]) / model.scale_[0]).astype(np.float32)[:, None, None]
    assert model.model_.forward_features(x.reshape(200, 1, 1, 4)).shape == (200, 5, 16)
    assert np.allclose(model.scale_[0, 0], X.std(axis=0) + [0, 0, 0, 1]) and np.isfinite(model.predict_proba(X)).all()


@pytest.mark.parametrize("early_stopping", [False, True])
def test_the_same_seed_gives_the_same_bits_with_any_number_of_threads(early_stopping: bool) -> None:
    X, y = stripes()
    found = [
        ViTClassifier(**{**SMALL, "random_state": seed}, max_iter=3, early_stopping=early_stopping, n_jobs=jobs).fit(
            X, y
        )
        for seed, jobs in ((1, 1), (1, 2), (2, 2))
    ]
    states = [model.model_.state_dict() for model in found]
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    assert not np.array_equal(states[0]["head.weight"], states[2]["head.weight"])
    assert not any(param.grad is not None for param in found[0].model_.parameters().values())


def test_early_stopping_keeps_the_best_epochs_weights() -> None:
    """Noise cannot be learned, so the held-out accuracy is best in some early epoch, and training soon stops."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((80, 8, 8)), rng.integers(0, 2, 80)
    options = {**FAST, "early_stopping": True, "validation_fraction": 0.25, "n_iter_no_change": 4, "max_iter": 60}
    model = ViTClassifier(**options).fit(X, y)
    scores = [row["validation_accuracy"] for row in model.history_]
    best = scores.index(max(scores))  # the first epoch that reached it: patience counts from there
    assert model.n_iter_ == len(scores) == best + 1 + 4 < 60
    from minivit import data

    seed = int(np.random.RandomState(0).randint(2**31 - 1))
    _, held_out = data.holdout(y, 0.25, seed)
    assert model.score(X[held_out], y[held_out]) == max(scores)
    assert max(scores) > scores[-1], "or the last epoch's weights would do as well"


def test_without_early_stopping_every_epoch_is_run_on_every_sample() -> None:
    X, y = stripes(50)
    model = ViTClassifier(**SMALL, max_iter=4, batch_size=16).fit(X, y)
    assert model.n_iter_ == 4 == len(model.history_) and np.isnan(model.history_[0]["validation_accuracy"])


def test_a_fitted_model_is_pickled_and_cloned() -> None:
    X, y = stripes()
    model = ViTClassifier(**SMALL, max_iter=2).fit(X, y)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), model.predict_proba(X))
    with pytest.raises(NotFittedError):
        clone(model).predict(X)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_iter": 0}, "max_iter=0 must be an integer"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be an integer"),
        ({"validation_fraction": 1.0}, "validation_fraction=1.0 must lie between"),
        ({"num_heads": 3}, "divisible by num_heads=3"),
        ({"n_jobs": 0}, "threads=0"),
    ],
)
def test_bad_arguments_are_refused_when_fitting(options: dict[str, Any], says: str) -> None:
    X, y = stripes()
    with pytest.raises(ValueError, match=says):
        ViTClassifier(**{**SMALL, **options}).fit(X, y)


def test_images_of_another_shape_are_refused() -> None:
    X, y = stripes()
    model = ViTClassifier(**SMALL, max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match=r"samples of shape \(1, 6, 6\), but was fitted with \(1, 8, 8\)"):
        model.predict(X[:, :6, :6])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of overflow, in the threads
@pytest.mark.filterwarnings("ignore:.*no parameter has a gradient")
def test_a_loss_that_stays_infinite_stops_the_training() -> None:
    X, y = stripes(500)
    with pytest.raises(FloatingPointError, match="lower learning_rate_init"):
        ViTClassifier(**SMALL, learning_rate_init=1e30, weight_decay=0.0).fit(X, y)


@pytest.mark.slow
def test_digits_are_learned_in_a_third_of_the_default_epochs() -> None:
    """95 % of a quarter of the 8x8 digits, never seen in training."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    train, test = order[450:], order[:450]
    model = ViTClassifier(random_state=0, max_iter=10).fit(digits.images[train], digits.target[train])
    assert model.score(digits.images[test], digits.target[test]) >= 0.95


def test_without_scikit_learn_the_extra_is_named() -> None:
    code = """
import sys
sys.modules["sklearn"] = None
import minivit
try:
    minivit.sklearn
except ImportError as error:
    assert "pip install scikit-learn" in str(error), error
else:
    raise AssertionError("imported")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_module_does_not_shadow_scikit_learn() -> None:
    import sklearn

    import minivit

    assert minivit.sklearn.ViTClassifier is ViTClassifier and "load_digits" in dir(sklearn.datasets)
