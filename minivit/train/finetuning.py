"""Fine-tuning: training a pretrained model on few images of another task, with small changes to its lower layers.

A `Recipe` has the hyperparameters; `fine_tune` trains, in a run that can be resumed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minivit import data, optim
from minivit.device import to_device, to_numpy
from minivit.distributed import Ranks
from minivit.models import Model
from minivit.models.lora import has_lora, head_names as head_names, lora_layers
from minivit.nn.layer import Layer
from minivit.nn.parameter import Buffer
from minivit.protocol import Array, Back, Rng, compose, inference
from minivit.tables import aligned
from minivit.train.loop import Batches, fit
from minivit.train.metrics import CountingLoss, accuracy
from minivit.train.run import Run, fingerprint
from minivit.train.tasks import Part, Task

_EVALUATED = 256  # images prepared at a time in an evaluation: 150 MB of 224 x 224 pixels

# The peak learning rate times the model's width: 2e-3, the rate of the digits' models, at width 64. The best rate falls
# as the width grows (Yang et al. 2022, "Tensor Programs V"), here to 1.7e-4 for ViT-B and 1.3e-4 for ViT-L, where MAE's
# recipe has 1.0e-4 and 2.0e-4 for batches of 50.
LR_TIMES_WIDTH = 0.128


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of fine-tuning: the recipe of BEiT and MAE, for a few thousand images.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step; small, so that an epoch of a thousand images has enough steps.
        lr: the peak learning rate, of the head; None is `usual_lr(model)`.
        layer_decay: the factor of the learning rate from one layer to the one below, so that the general features of
            the lower layers change least; see `optim.layer_decay`. 0.75 is MAE's for ViT-L; 1 from
            scratch.
        weight_decay: as in training from scratch.
        warmup: the share of the steps in which the learning rate rises: the new head is random at first, and its
            gradients would damage the pretrained features.
        label_smoothing: as in training from scratch: few images are soon memorized, and nothing else then
            bounds the logits.
        keep: "best" keeps the weights of the epoch with the best held-out accuracy, "last" those of the last epoch.
    """

    epochs: int = 40
    batch_size: int = 50
    lr: float | None = None
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    keep: str = "best"

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs={self.epochs}, batch_size={self.batch_size}: choose at least 1")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise ValueError(f"lr={self.lr}: choose a finite number above 0")


class Best:
    """A copy of the weights after the best epoch so far, saved in the run's checkpoint.

    Of two epochs with equal accuracy the later one is kept: its learning rate was lower.
    """

    def __init__(self, model: Model, keep: str) -> None:
        if keep not in ("best", "last"):
            raise ValueError(f"keep={keep!r}: choose 'best' or 'last'")
        self.model, self.keep = model, keep
        self.score, self.epoch = -1.0, 0
        self.weights = model.state_dict()

    def __repr__(self) -> str:
        return f"Best({type(self.model).__name__}, keep={self.keep!r}, epoch={self.epoch}, score={self.score:.4g})"

    def offer(self, score: float, epoch: int) -> None:
        """Copy the model's current weights if their score is at least as good, or if `keep` is "last"."""
        if score >= self.score or self.keep == "last":
            self.score, self.epoch, self.weights = score, epoch, self.model.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "epoch": self.epoch, **self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.epoch = state["score"], state["epoch"]
        self.weights = {name: state[name] for name in self.weights}


class PartlyFrozen(Layer):
    """A model whose lowest stages are frozen: they run as in inference, keep nothing, and get no gradient.

    With a frozen body a step costs a third of a full step. `back` stops at the lowest trained stage, and returns the
    gradient of its input.
    """

    def __init__(self, model: Model, frozen: Collection[str]) -> None:
        self.model, self.num_classes = model, model.num_classes
        learning = {id(param) for name, param in model.parameters().items() if name not in frozen}
        stages = [stage for _, stage in model.leaves()]
        learns = [any(id(param) in learning for param in stage.parameters().values()) for stage in stages]
        if not any(learns):
            raise ValueError("all parameters are frozen, so there is nothing to learn: freeze fewer")
        self.frozen_stages = learns.index(True)

    def forward(self, x: Array, rng: Rng = None) -> tuple[Array, Back]:
        stages = [stage for _, stage in self.model.leaves()]
        with inference():
            for stage in stages[: self.frozen_stages]:
                x, _ = stage(x)
        return compose(x, *stages[self.frozen_stages :], rng=rng)

    def predict(self, x: Array, batch_size: int | None = None) -> Array:
        """The model's logits."""
        return self.model.predict(x, batch_size)

    def named_state(self, prefix: str) -> Iterator[tuple[str, Buffer]]:
        return self.model.named_state(prefix)


class Outcome(NamedTuple):
    """The epoch whose weights the model has, its accuracies (None without test images), and the seconds taken.

    `run` is the run; its folder is locked as long as it exists.
    """

    epoch: int
    held_out: float
    test: float | None
    seconds: float
    run: Run


def fine_tune(
    model: Model,
    task: Task,
    recipe: Recipe,
    out: str | Path,
    *,
    frozen: Collection[str] = (),
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
    resume: bool = False,
    quiet: bool = False,
    ranks: Ranks | None = None,
) -> Outcome:
    """Train a model on a task, in place.

    Args:
        model: its number of classes must be the task's.
        task: the images.
        recipe: the hyperparameters.
        out: the folder of the run: checkpoint.safetensors, metrics.csv.
        frozen: names of parameters that are not trained. For a model with updates of low rank (`minivit.lora`), all
            but those that `lora` returned.
        seed: of the order of the images, and of noise.
        threads: see `DataParallel`.
        device: "cpu" or "gpu".
        precision: of activations on a GPU; see `CapturedStep`.
        resume: continue from the checkpoint in `out`.
        quiet: print nothing.
        ranks: the processes that share the work, each of which makes this call.

    Raises:
        ValueError: a wrong number of classes, no epochs, or no parameters to train.
        CheckpointError: see `Run`.
    """
    if model.num_classes != len(task.classes):
        raise ValueError(
            f"the model has {model.num_classes} classes and the task {len(task.classes)}: build it with "
            f"num_classes={len(task.classes)}"
        )
    if recipe.epochs < 1:
        raise ValueError(f"epochs={recipe.epochs}: choose at least 1")
    count = data.num_batches(len(task.learn.labels), recipe.batch_size)
    learner = PartlyFrozen(model, frozen)
    to_device(model, device)
    ranks = Ranks() if ranks is None else ranks
    opt = ranks.optimizer(optimizer(model, recipe, frozen, threads))
    step = ranks.data_parallel(learner, opt, threads, CountingLoss(), precision)
    lr = opt.lr
    best = Best(model, recipe.keep)
    settings = {
        **asdict(recipe),
        "lr": lr,
        "frozen": sorted(frozen),
        "seed": seed,
        "data": task.fingerprint,
        "weights": fingerprint(*(to_numpy(array) for array in best.weights.values())),
    }
    if precision != "float32":
        settings["precision"] = precision
    if has_lora(model):  # ranks and targets show in the shapes, alpha does not
        settings["lora_alpha"] = sorted({getattr(owner, name).alpha for owner, name in lora_layers(model)})
    parts = {"model": model, "optimizer": opt, "best": best, **step.saved_parts()}
    run = Run(out, settings, parts, resume=resume, every=60, quiet=quiet, ranks=ranks)

    def score_of(part: Part) -> float:
        return accuracy(step.predict, *part, task.prepare, device, batch_size=_EVALUATED)[0]

    def batches(epoch: int, start: int) -> Batches:
        return task.batches(recipe.batch_size, seed=seed, epoch=epoch, start=start)

    def evaluate() -> float:
        score = score_of(task.held_out)
        best.offer(score, run.epoch + 1)
        return score

    begin = time.perf_counter()
    fit(
        run,
        step,
        opt,
        batches,
        evaluate,
        epochs=recipe.epochs,
        batches_per_epoch=count,
        lr=lr,
        warmup=int(recipe.warmup * recipe.epochs * count),
        label_smoothing=recipe.label_smoothing,
        seed=seed,
        device=device,
        ranks=ranks,
    )
    model.load_state_dict(best.weights)
    test = None if task.test is None else score_of(task.test)
    return Outcome(best.epoch, best.score, test, time.perf_counter() - begin, run)


def optimizer(model: Model, recipe: Recipe, frozen: Collection[str], threads: int | None = None) -> optim.AdamW:
    """AdamW for the parameters that are not frozen, each layer with its own learning rate."""
    trained = {name: param for name, param in model.parameters().items() if name not in frozen}
    factors = optim.layer_decay(model, recipe.layer_decay)
    return optim.AdamW(
        trained,
        usual_lr(model) if recipe.lr is None else recipe.lr,
        weight_decay=recipe.weight_decay,
        no_decay=optim.no_decay(model) & trained.keys(),
        lr_scale={name: factor for name, factor in factors.items() if name in trained},
        threads=threads,
    )


def usual_lr(model: Model) -> float:
    """The peak learning rate for a model of this width and batches of about 50; see `LR_TIMES_WIDTH`."""
    params = model.parameters()
    return LR_TIMES_WIDTH / max(params[name].shape[1] for name in head_names(model) if len(params[name].shape) == 2)


def overview(model: Model, recipe: Recipe, frozen: Collection[str]) -> str:
    """A table of the stages of a model: parameters, trained parameters, and the factor of their learning rate."""
    factors = optim.layer_decay(model, recipe.layer_decay)
    groups: dict[str, list[str]] = {}
    weights, params = model.state(), model.parameters()  # the weights beside updates of low rank are no parameters
    for name in weights:
        match = re.match(r"(layers\.\d+\.)?(blocks\.\d+|\w+)", name)
        groups.setdefault(match[0] if match else name, []).append(name)
    rows = [("stage", "parameters", "trained", "lr factor")]
    for group, names in groups.items():
        trained = [name for name in names if name in params and name not in frozen]
        count = [sum(weights[name].size for name in several) for several in (names, trained)]
        factor = f"{factors[trained[0]]:.3g}" if trained else "frozen"
        rows.append((group, f"{count[0]:,}", f"{count[1]:,}", factor))
    return "\n".join(aligned(rows, left=(0,)))
