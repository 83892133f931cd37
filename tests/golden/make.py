"""Write the golden files. It ran once, on the first edition, whose programs it calls:

    git worktree add ../first 1541888
    PYTHONPATH=../first OPENBLAS_NUM_THREADS=1 python tests/golden/make.py

Run it again only to pin a behavior that has changed on purpose.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

import content
import numpy as np

import minivit
from minivit import data

# the first edition's
finetuning, mnist, run, tasks = (
    import_module(f"minivit.training.{name}") for name in ("finetuning", "mnist", "run", "tasks")
)
HERE = Path(__file__).resolve().parent


class Stop(Exception):
    """In the place of a kill."""


def stopped(train: Any, out: Path) -> tuple[list[dict[str, float]], list[list[float]]]:
    """The history of an uninterrupted run and what it returns; its checkpoint after STOP_AFTER steps goes to `out`."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        logits = train(whole, False)
        _, state = run.load_arrays(whole / run.CHECKPOINT)
        log, count = run.Run.log, 0

        def counted(self: Any, *values: Any) -> None:
            nonlocal count
            count += 1
            log(self, *values)
            if count == content.STOP_AFTER:
                self.position, self.step = self.position + 1, self.step + 1
                self.save()
                raise Stop

        run.Run.log = counted
        try:
            train(Path(folder) / "part", False)
        except Stop:
            pass
        finally:
            run.Run.log = log
        shutil.copy(Path(folder) / "part" / run.CHECKPOINT, out)
        return state["history"], logits.tolist()


def main() -> None:
    golden: dict[str, Any] = {"losses": {}, "norms": {}, "histories": {}, "logits": {}, "trained": {}}
    for family in content.MODELS:
        built = content.model(family, "float32")
        minivit.save(built, HERE / f"{family}.safetensors")
        golden["logits"][family] = built.predict(content.images(family, "float32")).tolist()
        golden["losses"][family], golden["norms"][family] = content.losses(family)
    for file, families in (("gradients.npz", content.MODELS), ("options.npz", content.OPTIONS)):
        arrays = {}
        for family in families:
            for noise in (False, True):
                for name, array in content.gradients(family, noise).items():
                    arrays[f"{family}/{'noise' if noise else 'plain'}/{name}"] = array
        np.savez_compressed(HERE / file, **arrays)

    with tempfile.TemporaryDirectory() as folder:
        content.write_mnist(Path(folder))
        for name, kind, options in (("vit", minivit.ViT, content.VIT_RUN), ("swin", minivit.Swin, content.SWIN_RUN)):
            learner = mnist.Learner(kind, name, {"default": mnist.Recipe(options, **content.RECIPES[name])})

            def train(out: Path, resume: bool, learner: Any = learner) -> Any:
                choice = {"epochs": None, "batch_size": None, "lr": None, "preset": "default", "limit": None}
                device = {"device": "cpu", "threads": 1, "seed": 1, "resume": resume}
                mnist.train(learner, argparse.Namespace(data=folder, out=str(out), **choice, **device))
                return content.logits_of_test_images(minivit.from_pretrained(out / "model.safetensors"), Path(folder))

            golden["histories"][name], golden["trained"][name] = stopped(train, HERE / f"run_{name}.safetensors")

        def tune(out: Path, resume: bool) -> Any:
            model = minivit.ViT(**content.VIT_RUN, seed=2)
            task = tasks.mnist_task(data.load_mnist(folder), 60, 1, 20)
            recipe, seed = finetuning.Recipe(**content.TUNING), content.TUNING_SEED
            frozen = {name for name in model.parameters() if name.startswith("patch_embed")}
            finetuning.fine_tune(model, task, recipe, out, frozen=frozen, seed=seed, threads=1, resume=resume)
            return content.logits_of_test_images(model, Path(folder))

        tuned = stopped(tune, HERE / "run_finetune.safetensors")
        golden["histories"]["finetune"], golden["trained"]["finetune"] = tuned
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
