"""A scikit-learn estimator: a small Vision Transformer that learns classes of images, or of rows of a table.

It is `minivit.train.fit` with scikit-learn's names for arguments. Needs scikit-learn: pip install scikit-learn.

Notation: n samples, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from minivit import data, optim
from minivit.models import ViT
from minivit.parallel import DataParallel
from minivit.parallel.recorded_update import Outcome
from minivit.protocol import Array
from minivit.train.finetuning import Best
from minivit.train.loop import Batches, fit
from minivit.train.metrics import CountingLoss
from minivit.train.totals import MOST_SKIPPED

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import (
        check_array,
        check_consistent_length,
        check_is_fitted,
        check_random_state,
        column_or_1d,
        validate_data,
    )
except ImportError as error:
    raise ImportError(f"minivit.sklearn needs scikit-learn 1.6 or newer ({error}): pip install scikit-learn") from error

__all__ = ["ViTClassifier"]

# The number of shards of a batch on every machine, because it affects the last bits of the result.
_SHARDS = 2
# Positions start at a deviation of 0.5 instead of 0.02, near that of embedded features: a token of one feature or few
# pixels means little without its position. After 15 epochs on the 8x8 digits the accuracy is 96.4% instead of 92.7%.
_POSITIONS = 25.0
_PREDICTED = 256  # samples at a time
_PATCHES = 4  # along each side of an image, the default of patch_size: with 16 tokens a step is fast


class ViTClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """A Vision Transformer with fit, predict, predict_proba and score.

    X is images (n, H, W) or (n, C, H, W), or a table (n, features). A row of a table is read as an image of 1 x
    features pixels with patches of one pixel, so that each feature is a token; with `image_shape` as an image of that
    shape. X is standardized with the mean and the deviation of the training samples: those of each feature of a table,
    those of each channel of images.

    Args:
        patch_size: int or (Ph, Pw); None makes 4 x 4 patches of an image, and one of each feature of a table. Partial
            patches are padded.
        image_shape: (H, W) or (C, H, W), the shape of a row of X where X is a table of pixels; None reads X as it is.
        embed_dim, depth, num_heads, mlp_ratio: the encoder's size, as of `minivit.ViT`.
        dropout: rate of dropout after projections and in the MLPs.
        max_iter: epochs.
        batch_size: samples in a step, at most n.
        learning_rate_init: peak of the learning rate, which rises over the first tenth of the steps and then falls as
            half a cosine.
        weight_decay: of AdamW; not for biases, norms and positions.
        label_smoothing: share of each target that is spread over all classes.
        early_stopping: hold out `validation_fraction` of the samples, stop after `n_iter_no_change` epochs in which
            their accuracy did not rise, and keep the weights of the best epoch. Else all epochs are run.
        validation_fraction: in (0, 1), with early stopping.
        n_iter_no_change: epochs, with early stopping.
        random_state: int, RandomState or None; the same int gives the same weights to the last bit with the same
            NumPy, BLAS and processor.
        n_jobs: threads of training, at most 2; None or -1 is the usable cores.
        verbose: print a line for each epoch.

    Attributes:
        classes_: (K,) the labels, sorted.
        n_features_in_: numbers of a sample: columns of a table, C H W of images.
        image_shape_: (C, H, W) of the model's images.
        mean_, scale_: of the standardization of X, shapes (C, 1, 1) or (1, 1, features).
        model_: the `minivit.ViT`.
        n_iter_: the number of completed epochs.
        history_: for each epoch a dict with loss, accuracy and validation_accuracy (nan without early stopping).
    """

    def __init__(
        self,
        *,
        patch_size: int | tuple[int, int] | None = None,
        image_shape: tuple[int, ...] | None = None,
        embed_dim: int = 64,
        depth: int = 3,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        dropout: float = 0.1,
        max_iter: int = 30,
        batch_size: int = 32,
        learning_rate_init: float = 2e-3,
        weight_decay: float = 0.05,
        label_smoothing: float = 0.1,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: Any = None,
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.patch_size, self.image_shape = patch_size, image_shape
        self.embed_dim, self.depth, self.num_heads, self.mlp_ratio = embed_dim, depth, num_heads, mlp_ratio
        self.dropout = dropout
        self.max_iter, self.batch_size = max_iter, batch_size
        self.learning_rate_init, self.weight_decay = learning_rate_init, weight_decay
        self.label_smoothing = label_smoothing
        self.early_stopping, self.validation_fraction = early_stopping, validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state, self.n_jobs, self.verbose = random_state, n_jobs, verbose

    def fit(self, X: Any, y: Any) -> ViTClassifier:
        """Train on samples X (n, ...) and their labels y (n,), numbers or strings; returns itself.

        Raises:
            ValueError: for invalid X or y, or an argument out of range.
            FloatingPointError: if the loss stays without a finite value.
        """
        self._check_arguments()
        images = self._images(X, reset=True)  # (n, C, H, W)
        y = column_or_1d(y, warn=True)
        check_consistent_length(images, y)
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        kept, held_out = np.arange(len(labels)), np.arange(0)
        if self.early_stopping:
            kept, held_out = data.holdout(labels, self.validation_fraction, seed)
        self._measure(images[kept])
        x = self._standardized(images)
        self.model_ = self._build(seed)
        self._train(x[kept], labels[kept], x[held_out], labels[held_out], seed)
        return self

    def predict(self, X: Any) -> Array:
        """The most probable class of each sample, (n,) of `classes_`."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Array:
        """The probability of each class (n, K), in the order of `classes_`.

        Computed in float64: in float32 the last bits of a row of a matrix product may depend on its number, and so on
        the other samples, where scikit-learn requires the same probabilities in any order.
        """
        check_is_fitted(self)
        x = self._standardized(self._images(X, reset=False), np.float64)
        model = ViT(**{**self.model_.config, "dtype": "float64"})
        model.load_state_dict(self.model_.state_dict())
        return model.predict_proba(x, _PREDICTED)

    def _check_arguments(self) -> None:
        for name in ("max_iter", "batch_size", "n_iter_no_change"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"{name}={value!r} must be an integer of at least 1")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction!r} must lie between 0 and 1")

    # --- from X to the model's input ---

    def _images(self, X: Any, reset: bool) -> Array:
        """X as images (n, C, H, W) of float64; with `reset` their shape is stored, else compared."""
        axes = np.ndim(X) if isinstance(X, list | tuple) else getattr(X, "ndim", 2)
        if axes in (3, 4):
            images = check_array(X, allow_nd=True, dtype=np.float64)
            images = images[:, None] if images.ndim == 3 else images
        else:
            table = validate_data(self, X, reset=reset, dtype=np.float64)
            shape = tuple(self.image_shape or (1, table.shape[1]))
            if len(shape) not in (2, 3) or np.prod(shape) != table.shape[1]:
                raise ValueError(
                    f"image_shape={self.image_shape!r} does not fit rows of {table.shape[1]} numbers: give (H, W) or "
                    "(C, H, W) with that product"
                )
            images = table.reshape(len(table), *((1, *shape) if len(shape) == 2 else shape))
        if reset:
            self.image_shape_, self.n_features_in_ = images.shape[1:], int(np.prod(images.shape[1:]))
        elif images.shape[1:] != self.image_shape_:
            raise ValueError(f"X has samples of shape {images.shape[1:]}, but was fitted with {self.image_shape_}")
        return images

    def _measure(self, images: Array) -> None:
        """The mean and deviation of the samples: of each feature of a table, of each channel of images."""
        axes = (0,) if self.image_shape_[:2] == (1, 1) else (0, 2, 3)
        self.mean_ = images.mean(axis=axes, keepdims=True)[0]
        deviation = images.std(axis=axes, keepdims=True)[0]
        # a constant feature becomes 0; rounding of its mean must not be amplified
        constant = deviation <= 1e-12 * np.abs(self.mean_)
        self.scale_ = np.where(constant, 1.0, deviation)

    def _standardized(self, images: Array, dtype: Any = np.float32) -> Array:
        return ((images - self.mean_) / self.scale_).astype(dtype)

    # --- the model and its training ---

    def _build(self, seed: int) -> ViT:
        channels, height, width = self.image_shape_
        few = (1, 1) if height == 1 else (-(-height // _PATCHES), -(-width // _PATCHES))
        model = ViT(
            img_size=(height, width),
            patch_size=self.patch_size or few,
            partial_patches="pad",
            in_chans=channels,
            num_classes=len(self.classes_),
            embed_dim=self.embed_dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            proj_drop_rate=self.dropout,
            seed=seed,
        )
        positions = model.parameters()["pos_embed"]
        positions.data = positions.data * _POSITIONS
        return model

    def _train(self, x: Array, labels: Array, x_held_out: Array, held_out: Array, seed: int) -> None:
        threads = None if self.n_jobs in (None, -1) else self.n_jobs
        step = DataParallel(self.model_, threads, shards=_SHARDS, loss=CountingLoss())
        params = self.model_.parameters()
        opt = optim.AdamW(
            params, self.learning_rate_init, weight_decay=self.weight_decay, no_decay=optim.no_decay(self.model_)
        )
        size = min(self.batch_size, len(x))
        count = data.num_batches(len(x), size, drop_last=False)
        run, best = _Epochs(self.n_iter_no_change if self.early_stopping else None, self.verbose), None
        if self.early_stopping:
            best = Best(self.model_, "best")

        def batches(epoch: int, start: int) -> Batches:
            order = data.epoch_order(len(x), seed, epoch)
            chosen = (order[position * size : (position + 1) * size] for position in range(start, count))
            return ((x[part], labels[part]) for part in chosen)

        def evaluate() -> float:
            if best is None:
                return float("nan")
            score = float((step.predict(x_held_out, _PREDICTED).argmax(axis=1) == held_out).mean())
            best.offer(score, run.epoch + 1)
            return score

        fit(
            run,
            step,
            opt,
            batches,
            evaluate,
            epochs=self.max_iter,
            batches_per_epoch=count,
            lr=self.learning_rate_init,
            warmup=self.max_iter * count // 10,
            label_smoothing=self.label_smoothing,
            seed=seed,
        )
        if best is not None:
            self.model_.load_state_dict(best.weights)
        self.model_.zero_grad()
        self.n_iter_, self.history_ = run.epoch, run.history


class _Epochs:
    """The run for `minivit.train.fit`, in memory: it counts epochs, and ends when the score no longer rises."""

    def __init__(self, patience: int | None, verbose: bool) -> None:
        self.patience, self.verbose = patience, verbose
        self.epoch = self.position = self.iteration = 0
        self.history: list[dict[str, float]] = []
        self._best, self._best_epoch, self._skipped = -1.0, 0, 0
        self._loss, self._correct, self._images = 0.0, 0, 0

    def epochs(self, total: int) -> Iterator[int]:
        while self.epoch < total and (self.patience is None or self.epoch - self._best_epoch < self.patience):
            yield self.epoch

    def batches(self, batches: Batches, count: int) -> Iterator[tuple[Array, Array]]:
        for batch in batches:
            yield batch
            self.position += 1
            self.iteration += 1

    def log_later(self, found: Outcome, images: int) -> None:
        self.log(float(found.loss), int(found.correct), images, float(found.gradient_norm))

    def log(self, loss: float, correct: int, images: int, gradient_norm: float = 0.0) -> None:
        finite = bool(np.isfinite(loss) and np.isfinite(gradient_norm))
        self._skipped = 0 if finite else self._skipped + 1
        if self._skipped == MOST_SKIPPED:
            raise FloatingPointError(
                f"the loss is {loss} and the gradient's norm {gradient_norm}, and neither was finite in {MOST_SKIPPED} "
                "batches in a row: lower learning_rate_init"
            )
        if finite:
            self._loss, self._correct = self._loss + loss * images, self._correct + correct
            self._images += images

    def end_epoch(self, learning_rate: float, held_out_accuracy: float) -> None:
        self.epoch += 1
        self.position = 0
        count = max(1, self._images)
        row = {"loss": self._loss / count, "accuracy": self._correct / count, "validation_accuracy": held_out_accuracy}
        self.history.append(row)
        if held_out_accuracy > self._best:
            self._best, self._best_epoch = held_out_accuracy, self.epoch
        self._loss, self._correct, self._images = 0.0, 0, 0
        if self.verbose:
            print(f"epoch {self.epoch:3d}  " + "  ".join(f"{name} {value:.4f}" for name, value in row.items()))
