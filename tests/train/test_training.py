"""A run that is interrupted, killed or crashed goes on as if nothing had happened, bit for bit."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import minivit
from minivit import CheckpointError, data, optim
from minivit.io import atomic
from minivit.io.process import this_process
from minivit.io.safetensors import load_arrays, save_arrays
from minivit.parallel import DataParallel
from minivit.train import CHECKPOINT, METRICS, CountingLoss, Run, accuracy, fit, noise_generator
from minivit.train.bar import ProgressBar
from minivit.train.folder import DAMAGED, PREVIOUS, original, refuse_among_classes, save_checkpoint

IMAGES = np.random.default_rng(0).integers(256, size=(20, 8, 8), dtype=np.uint8)
LABELS = np.random.default_rng(1).integers(3, size=20)
EPOCHS, STEPS = 3, 4  # batches of 5
SETTINGS = {"seed": 3, "lr": 0.01, "note": None}


class Stop(Exception):
    """Ends a run in the middle, as a crash would."""


def parts_of(model):
    opt = optim.AdamW(model.parameters(), no_decay=optim.no_decay(model))
    return {"model": model, "optimizer": opt, "average": optim.ModelEma(model, 0.9)}


def train(out, *, resume=False, every=-1.0, hook=None, settings=SETTINGS):
    """A small run with noise, averaged weights and a schedule; `hook(step)` is called after each step."""
    model = minivit.ViT(8, 4, 1, 3, 8, 1, 2, drop_path_rate=0.2, drop_rate=0.2, seed=1)
    parts = parts_of(model)
    loss = CountingLoss()
    step = DataParallel(model, threads=2, loss=loss)
    run = Run(out, settings, parts, resume=resume, every=every, quiet=True)
    for epoch in run.epochs(EPOCHS):
        batches = data.batches(IMAGES, LABELS, 5, seed=3, epoch=epoch, start=run.position)
        for x, y in run.batches(batches, STEPS):
            parts["optimizer"].lr = optim.warmup_cosine(run.iteration, EPOCHS * STEPS, peak=0.01, warmup=2)
            parts["optimizer"].zero_grad()
            value = step.loss_and_grad(x, y, np.random.default_rng((3, 2, run.iteration)))
            parts["optimizer"].step()
            parts["average"].update()
            run.log(value, loss.take_correct(), len(x))
            if hook:
                hook(run.iteration)
        run.end_epoch(parts["optimizer"].lr, held_out_accuracy=0.5)
    return run


def state(run):
    """Everything that must not depend on interruptions."""
    found = {f"{part}/{name}": value for part, owner in run.parts.items() for name, value in owner.state_dict().items()}
    timeless = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in run.history]
    return found, timeless, (run.epoch, run.position, run.iteration)


def assert_same(run, expected):
    arrays, history, place = state(run)
    assert place == expected[2] and arrays.keys() == expected[0].keys()
    for name, value in arrays.items():
        assert np.array_equal(value, expected[0][name]), name
    assert history == expected[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return state(train(tmp_path_factory.mktemp("whole") / "run"))


def stop_at(number):
    def hook(step):
        if step == number:
            raise Stop

    return hook


@pytest.mark.parametrize("number", range(1, EPOCHS * STEPS))
def test_a_crash_at_any_step_changes_nothing(tmp_path, uninterrupted, number):
    with pytest.raises(Stop):
        train(tmp_path / "run", hook=stop_at(number))
    assert_same(train(tmp_path / "run", resume=True), uninterrupted)


# the last step of an epoch leaves a checkpoint after which only the epoch's end is missing
@pytest.mark.parametrize("number", range(1, EPOCHS * STEPS + 1))
def test_an_interrupt_at_any_step_changes_nothing(tmp_path, uninterrupted, number):
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", every=1e9, hook=lambda step: step == number - 1 and signal.raise_signal(signal.SIGINT))
    assert stopped.value.code == 130
    assert_same(train(tmp_path / "run", resume=True, every=1e9), uninterrupted)


def test_many_crashes_change_nothing(tmp_path, uninterrupted):
    rng, resume = np.random.default_rng(0), False
    for _ in range(200):
        budget = [int(rng.integers(1, 4))]

        def hook(step, budget=budget):
            budget[0] -= 1
            if budget[0] < 0:
                raise Stop

        try:
            run = train(tmp_path / "run", resume=resume, hook=hook)
            break
        except Stop:
            resume = True
    assert_same(run, uninterrupted)


def test_resuming_a_finished_run_does_nothing(tmp_path, uninterrupted):
    train(tmp_path / "run")
    steps = []
    assert_same(train(tmp_path / "run", resume=True, hook=steps.append), uninterrupted)
    assert steps == []


def test_metrics_are_written_each_epoch(tmp_path):
    run = train(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert lines[0].split(",") == list(METRICS) and len(lines) == 1 + EPOCHS
    for row, line in zip(run.history, lines[1:]):
        assert [float(cell) for cell in line.split(",")] == list(row.values())
        assert row["images_per_second"] == pytest.approx(20 / row["seconds"])
    assert [row["epoch"] for row in run.history] == [1, 2, 3]


def test_the_mean_over_an_epoch_weighs_images(tmp_path):
    run = Run(tmp_path, {}, {}, quiet=True)
    assert run.loss == run.accuracy == 0
    run.log(1.0, 2, 10)
    run.log(4.0, 5, 5)
    assert run.loss == pytest.approx(2.0) and run.accuracy == pytest.approx(7 / 15)
    run.end_epoch(0.1, 0.9)
    assert run.loss == run.accuracy == 0
    assert run.history[0]["loss"] == pytest.approx(2.0) and run.history[0]["accuracy"] == pytest.approx(7 / 15)


def test_the_seconds_of_an_epoch_are_those_spent_on_its_batches(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    run = Run(tmp_path, {}, {}, quiet=True)
    for _ in run.batches([(None, None)] * 3, 3):
        clock[0] += 2
        run.log(1.0, 1, 4)
    clock[0] += 50  # the evaluation
    run.end_epoch(0.1, 0.9)
    assert run.history[0]["seconds"] == 6 and run.history[0]["images_per_second"] == 2


def test_checkpoints_come_at_their_interval(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    run, saved = Run(tmp_path, {}, {}, every=10, quiet=True), []
    monkeypatch.setattr(run, "save", lambda: (saved.append(run.iteration), setattr(run, "_saved", clock[0])))
    for _ in run.batches([(None, None)] * 12, 12):
        clock[0] += 4
    assert saved == [3, 6, 9, 12]


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Bar:
    """In the place of tqdm's: what a run tells it."""

    def __init__(self, **options):
        self.options, self.texts, self.updates, self.closed = options, [], 0, False
        self.made.append(self)

    def set_postfix_str(self, text, refresh=True):
        assert not refresh  # the update draws it
        self.texts.append(text)

    def update(self, batches):
        assert not self.closed
        self.updates += batches

    def close(self):
        self.closed = True


def test_without_tqdm_the_hint_is_printed_once(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(ProgressBar, "hinted", False)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", terminal)
    run = Run(tmp_path, {}, {}, quiet=False)
    for _ in run.epochs(3):
        for _ in run.batches([(None, None)], 1):
            run.log(0.25, 1, 4)
        run.end_epoch(0.1, 0.5)
    assert terminal.getvalue() == "for a progress bar: pip install tqdm\n"


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_on_a_terminal_shows_an_epochs_progress(tmp_path, monkeypatch, quiet):
    made = []
    monkeypatch.setattr(Bar, "made", made, raising=False)
    monkeypatch.setattr("tqdm.tqdm", Bar)
    run = Run(tmp_path, {}, {}, quiet=quiet)
    run.position = 1
    for stderr, bars in ((io.StringIO(), 0), (Terminal(), 0 if quiet else 1)):
        monkeypatch.setattr(sys, "stderr", stderr)
        for _ in run.batches([(None, None)], 3):
            run.log(0.25, 1, 4)
        assert len(made) == bars
    if not quiet:
        bar = made[0]
        position = bar.options["initial"]  # of the batches of both passes, 1 and 2
        assert position == 2 and bar.options["total"] == 3 and bar.options["desc"] == "epoch 1"
        assert bar.options["unit"] == " batches" and not bar.options["leave"]
        assert bar.updates == 1 and bar.closed
        assert len(bar.texts) == 1 and bar.texts[0].startswith("loss 0.250, accuracy 25.0%, ")
        assert bar.texts[0].endswith(" images/s")


# --- the loops ---


@pytest.mark.parametrize("closed", [0, 2])
def test_an_epoch_that_is_not_closed_once_is_an_error(tmp_path, closed):
    run = Run(tmp_path, {}, {}, quiet=True)
    with pytest.raises(RuntimeError, match=r"epoch 1 was not closed: call run.end_epoch once"):
        for _ in run.epochs(3):
            for _ in range(closed):
                run.end_epoch(0.1, 0.5)


def test_fit_needs_a_loss_that_counts(tmp_path):
    model = minivit.ViT(8, 4, 1, 3, 8, 1, 2)
    parts = parts_of(model)
    run = Run(tmp_path, {}, parts, quiet=True)
    with pytest.raises(ValueError, match=r"loss=CountingLoss\(\)"):
        fit(run, DataParallel(model), parts["optimizer"], None, None, epochs=1, batches_per_epoch=1, lr=0.1)


def test_fit_is_the_loop_written_out(tmp_path):
    """It ends with the bits of the loop below, also when it is resumed from a crash in its second epoch."""
    whole = {}
    for name, crash in (("whole", None), ("resumed", 6)):
        for resume in (False, True)[: 1 if crash is None else 2]:
            model = minivit.ViT(8, 4, 1, 3, 8, 1, 2, drop_path_rate=0.2, seed=1)
            parts = parts_of(model)
            step = DataParallel(model, threads=2, loss=CountingLoss())
            run = Run(tmp_path / name, SETTINGS, parts, resume=resume, every=-1.0, quiet=True)

            def batches(epoch, start, run=run, resume=resume, crash=crash):
                for batch in data.batches(IMAGES, LABELS, 5, seed=3, epoch=epoch, start=start):
                    if run.iteration == crash and not resume:
                        raise Stop
                    yield batch

            options = {"lr": 0.01, "warmup": 2, "label_smoothing": 0.1, "seed": 3, "average": parts["average"]}
            arguments = (run, step, parts["optimizer"], batches, lambda: 0.5)
            try:
                fit(*arguments, epochs=EPOCHS, batches_per_epoch=STEPS, **options)
            except Stop:
                assert run.iteration == crash and not resume
        whole[name] = run
    assert_same(whole["resumed"], state(whole["whole"]))

    model = minivit.ViT(8, 4, 1, 3, 8, 1, 2, drop_path_rate=0.2, seed=1)
    parts = parts_of(model)
    opt, step = parts["optimizer"], DataParallel(model, threads=2)
    for number in range(EPOCHS * STEPS):
        x, y = next(data.batches(IMAGES, LABELS, 5, seed=3, epoch=number // STEPS, start=number % STEPS))
        opt.lr = optim.warmup_cosine(number, EPOCHS * STEPS, peak=0.01, warmup=2)
        opt.zero_grad()
        step.loss_and_grad(x, y, noise_generator(3, number), label_smoothing=0.1)
        optim.clip_grad_norm(model.parameters(), 1.0)
        opt.step()
        parts["average"].update()
    for part, owner in parts.items():
        for name, value in owner.state_dict().items():
            assert np.array_equal(value, whole["whole"].parts[part].state_dict()[name]), f"{part}/{name}"


def test_a_checkpoint_of_the_first_version_is_resumed(tmp_path, uninterrupted):
    """Version 0.1 named the optimizer's part "optimizer"."""
    with pytest.raises(Stop):
        train(tmp_path / "run", hook=stop_at(6))
    arrays, content = load_arrays(tmp_path / "run" / CHECKPOINT)
    assert any(name.startswith("optimizer/") for name in arrays)
    content["numbers"] = {name.replace("optimizer/", "optimizer/"): n for name, n in content["numbers"].items()}
    arrays = {name.replace("optimizer/", "optimizer/"): array for name, array in arrays.items()}
    save_arrays(tmp_path / "run" / CHECKPOINT, arrays, {key: content[key] for key in content if "sha" not in key})
    assert_same(train(tmp_path / "run", resume=True), uninterrupted)


def test_a_part_may_have_any_name(tmp_path):
    for name in ("optimizer", "optimizer", "other"):
        model = minivit.ViT(8, 4, 1, 3, 8, 1, 2, seed=1)
        Run(tmp_path / name, {}, {name: model}, quiet=True)
        again = minivit.ViT(8, 4, 1, 3, 8, 1, 2, seed=2)
        Run(tmp_path / name, {}, {name: again}, resume=True, quiet=True)
        assert np.array_equal(again.head.weight.data, model.head.weight.data)


def test_the_seconds_of_a_run_leave_interruptions_out(tmp_path):
    run = train(tmp_path / "run")
    assert run.seconds == sum(row["seconds"] for row in run.history) > 0
    assert train(tmp_path / "run", resume=True).seconds == run.seconds


# --- what is refused ---


@pytest.mark.parametrize("changed", [{"lr": 0.02}, {"seed": 4}, {"note": "new"}])
def test_other_settings_are_refused_by_name(tmp_path, changed):
    train(tmp_path / "run")
    before = (tmp_path / "run" / CHECKPOINT).read_bytes()
    name, value = next(iter(changed.items()))
    with pytest.raises(ValueError, match=f"cannot resume.*{name}={SETTINGS[name]!r}.*{value!r}"):
        train(tmp_path / "run", resume=True, settings={**SETTINGS, **changed})
    assert (tmp_path / "run" / CHECKPOINT).read_bytes() == before


def test_a_missing_setting_is_refused_by_name(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(ValueError, match="cannot resume.*lr=0.01.*None"):
        train(tmp_path / "run", resume=True, settings={"seed": 3})


def test_a_new_setting_is_refused_too(tmp_path):
    train(tmp_path / "run")
    with pytest.raises(ValueError, match="mixup"):
        train(tmp_path / "run", resume=True, settings={**SETTINGS, "mixup": 0.8})


def test_settings_may_be_tuples(tmp_path):
    settings = {**SETTINGS, "betas": (0.9, 0.99)}
    train(tmp_path / "run", settings=settings)
    train(tmp_path / "run", resume=True, settings=settings)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume.*Start without --resume"):
        train(tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_refused(tmp_path):
    train(tmp_path / "run")
    path = tmp_path / "run" / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (tmp_path / "run" / PREVIOUS).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        train(tmp_path / "run", resume=True)


@pytest.mark.parametrize("damage", ["a bit", "cut off", "missing"])
def test_the_previous_checkpoint_stands_in_for_a_damaged_one(tmp_path, uninterrupted, damage, capsys):
    with pytest.raises(Stop):
        train(tmp_path / "run", hook=stop_at(6))
    path = tmp_path / "run" / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content if damage == "a bit" else content[:-40])
    if damage == "missing":
        path.unlink()
    run = Run(tmp_path / "run", SETTINGS, parts_of(minivit.ViT(8, 4, 1, 3, 8, 1, 2)), resume=True)
    said = capsys.readouterr().out
    assert "The previous checkpoint is complete" in said and PREVIOUS in said
    assert run.iteration == load_arrays(path)[1]["step"] < 6
    assert (tmp_path / "run" / DAMAGED).exists() == (damage != "missing"), "nothing is deleted"
    assert_same(train(tmp_path / "run", resume=True), uninterrupted)


@pytest.mark.parametrize("files", [9, 10, 11, 12, 13, 14])
def test_a_full_disk_leaves_a_checkpoint_from_which_the_run_goes_on(tmp_path, uninterrupted, monkeypatch, files):
    fsync, room = os.fsync, [files]

    def full(file):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=f"No space left on device.*({CHECKPOINT}|metrics.csv)"):
            train(tmp_path / "run")
    assert_same(train(tmp_path / "run", resume=True), uninterrupted)


def test_only_files_of_a_run_are_moved(tmp_path, monkeypatch):
    """Data and weights in the folder stay where they are, also where it is the present one."""
    (tmp_path / "out" / "cat").mkdir(parents=True)
    for name in ("cat/1.png", "start.safetensors", "log.txt"):
        (tmp_path / "out" / name).write_text(name)
    monkeypatch.chdir(tmp_path / "out")
    for _ in range(2):
        Run(".", {}, {}, quiet=True)
    assert sorted(os.listdir()) == ["cat", CHECKPOINT, "log.txt", "start.safetensors"]
    assert os.listdir(tmp_path / "out.1") == [CHECKPOINT]
    assert os.listdir("cat") == ["1.png"]


def test_an_input_that_an_earlier_run_left_is_found_where_it_was_moved_to(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "model.safetensors").write_text("earlier")
    assert original(str(out / "model.safetensors"), out) == str(out / "model.safetensors")
    Run(out, {}, {}, quiet=True)
    Run(out, {}, {}, quiet=True, resume=True).save()
    (out / "model.safetensors").write_text("newer")
    assert Path(original(str(out / "model.safetensors"), out)).read_text() == "earlier"
    assert original("elsewhere", out) == "elsewhere"


def test_a_run_among_the_classes_of_its_data_is_refused(tmp_path):
    for out in ("pets/run", "pets/cat", "pets/a/b"):
        with pytest.raises(ValueError, match="among the classes"):
            refuse_among_classes(tmp_path / out, tmp_path / "pets")
    for out in ("pets", "run", "."):
        refuse_among_classes(tmp_path / out, tmp_path / "pets")


def test_an_earlier_run_is_kept(tmp_path, capsys):
    out = tmp_path / "run"
    for number in range(3):
        Run(out, {"number": number}, {}).save()
    names = {"run.1": 0, "run.2": 1, "run": 2}
    assert sorted(os.listdir(tmp_path)) == sorted(names)
    for name, number in names.items():
        assert load_arrays(tmp_path / name / CHECKPOINT)[1]["settings"] == {"number": number}
    assert f"kept the earlier run as {out}.2" in capsys.readouterr().out
    (out / CHECKPOINT).rename(out / "model.safetensors")  # a finished model is a run too
    Run(out, {}, {})
    assert (tmp_path / "run.3" / "model.safetensors").exists()


def test_a_folder_without_a_run_is_used_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    Run(tmp_path, {}, {}, quiet=True)
    assert sorted(os.listdir(tmp_path)) == [CHECKPOINT, "notes.txt"]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_ten_broken_losses_in_a_row_stop_the_run(tmp_path, loss):
    run = Run(tmp_path, {}, {}, quiet=True)
    run.save()
    before = (tmp_path / CHECKPOINT).read_bytes()
    message = (
        f"loss is {loss} .* in epoch 1 after 12 batches, .* 10 batches in a row: lower the learning rate.*debug_nans"
    )
    with pytest.raises(FloatingPointError, match=message):
        for number, _ in enumerate(run.batches([(None, None)] * 20, 20)):
            run.log(1.0 if number == 2 else loss, 1, 1)
    assert run.skipped == 12 and run.loss == 1.0 and run.accuracy == 1.0
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_gradient_that_is_not_finite_is_skipped_and_said(tmp_path, capsys):
    run = Run(tmp_path, {}, {})
    for number, _ in enumerate(run.batches([(None, None)] * 3, 3)):
        run.log(1.0, 1, 1, float("inf") if number == 1 else 0.5)
    run.end_epoch(0.1, 0.5)
    assert "steps skipped (not finite): 1" in capsys.readouterr().out and run.skipped == 0


def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path):
    class Part:
        value = np.zeros(3)

        def state_dict(self):
            return {"weight": self.value}

        def load_state_dict(self, state):
            self.value = state["weight"]

    part = Part()
    run = Run(tmp_path, {}, {"model": part}, quiet=True)
    before = (tmp_path / CHECKPOINT).read_bytes()
    part.value = np.array([0, np.nan, 1])
    with pytest.raises(FloatingPointError, match="model/weight is not finite in epoch 1 .*is unchanged"):
        run.save()
    assert (tmp_path / CHECKPOINT).read_bytes() == before


def test_a_quiet_run_prints_nothing(tmp_path, capsys):
    train(tmp_path / "run")
    train(tmp_path / "run", resume=True)
    train(tmp_path / "run")
    assert capsys.readouterr() == ("", "")


# --- Ctrl-C ---


def test_the_handler_of_interrupts_is_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    train(tmp_path / "run", hook=lambda step: signal.getsignal(signal.SIGINT) != before or pytest.fail("not caught"))
    assert signal.getsignal(signal.SIGINT) == before
    with pytest.raises(SystemExit):
        train(tmp_path / "run", hook=lambda _: signal.raise_signal(signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) == before


def test_a_second_interrupt_does_not_wait(tmp_path):
    def hook(_):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", hook=hook)


def test_a_run_in_another_thread_catches_no_signals(tmp_path):
    import threading

    before, seen = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(
        target=train, args=(tmp_path / "run",), kwargs={"hook": lambda _: seen.append(signal.getsignal(signal.SIGINT))}
    )
    thread.start()
    thread.join()
    assert len(seen) == EPOCHS * STEPS and set(seen) == {before}


SCRIPT = """
import sys, time
from pathlib import Path
import numpy as np
import minivit
from minivit import data, optim, train
from minivit.parallel import DataParallel

folder, out, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
images, labels = data.read_labeled(folder / "images", folder / "labels", 3)
model = minivit.ViT(8, 4, 1, 3, 8, 1, 2, drop_path_rate=0.2, seed=1)
opt = optim.AdamW(model.parameters())
average = optim.ModelEma(model, 0.9)
loss = train.CountingLoss()
step = DataParallel(model, threads=2, loss=loss)
parts = {"model": model, "optimizer": opt, "average": average}
run = train.Run(out, {"seed": 3}, parts, resume="--resume" in sys.argv, every=0.0)
for epoch in run.epochs(3):
    batches = data.batches(images, labels, 10, seed=3, epoch=epoch, start=run.position)
    for x, y in run.batches(batches, 12):
        opt.lr = optim.warmup_cosine(run.iteration, 36, peak=0.01, warmup=2)
        opt.zero_grad()
        value = step.loss_and_grad(x, y, np.random.default_rng((3, 2, run.iteration)))
        opt.step()
        average.update()
        run.log(value, loss.take_correct(), len(x))
        time.sleep(pause)
    run.end_epoch(optim.warmup_cosine(run.iteration - 1, 36, peak=0.01, warmup=2), 0.5)
minivit.save(model, out / "model.safetensors")
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A training script on synthetic IDX files; call it with the folder and more arguments to start it."""
    folder = tmp_path_factory.mktemp("program")
    rng = np.random.default_rng(5)
    data.write_idx(folder / "images", rng.integers(256, size=(120, 8, 8), dtype=np.uint8))
    data.write_idx(folder / "labels", rng.integers(3, size=120).astype(np.uint8))
    (folder / "train.py").write_text(SCRIPT)
    root = str(Path(minivit.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}

    def start(out, *more, pause=0.0):
        return subprocess.Popen(
            [sys.executable, str(folder / "train.py"), str(folder), str(out), str(pause), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )

    return start


@pytest.fixture(scope="module")
def straight(program, tmp_path_factory):
    """Weights and checkpoint of the program when nothing disturbs it."""
    out = tmp_path_factory.mktemp("straight") / "run"
    process = program(out)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    return final(out)


def final(out):
    model, _ = load_arrays(out / "model.safetensors")
    arrays, content = load_arrays(out / CHECKPOINT)
    for row in content["history"]:
        del row["seconds"], row["images_per_second"]
    return {**arrays, **{f"saved {name}": value for name, value in model.items()}}, content["history"]


def assert_final(out, expected):
    arrays, history = final(out)
    assert arrays.keys() == expected[0].keys() and history == expected[1]
    assert all(np.array_equal(value, expected[0][name]) for name, value in arrays.items())


def wait_for(path, process):
    for _ in range(3000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    pytest.fail(f"{path} never came")


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(program, straight, tmp_path):
    out = tmp_path / "run"
    process = program(out, pause=0.05)
    wait_for(out / CHECKPOINT, process)
    while load_arrays(out / CHECKPOINT)[1]["step"] == 0:  # the checkpoint of the start: the loop is still to come
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert "Traceback" not in printed and "stopped in epoch 1" in printed and "continue with" in printed
    command = printed.rstrip().splitlines()[-1]
    assert command.split()[0] == sys.executable and command.endswith(" --resume")
    place = load_arrays(out / CHECKPOINT)[1]
    assert 0 < place["step"] < 36 and not (out / "model.safetensors").exists()
    process = program(out, "--resume")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert f"resumed {out / CHECKPOINT} in epoch {place['epoch'] + 1} after {place['position']} batches" in printed
    assert_final(out, straight)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_that_end_a_program_save_it_too(tmp_path, uninterrupted, number):
    """And twice is as good as once: `timeout` sends them so."""
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("this program was started to ignore the signal, as nohup does")

    def hook(step):
        if step == 5:
            signal.raise_signal(number)
            signal.raise_signal(number)

    with pytest.raises(SystemExit) as stopped:
        train(tmp_path / "run", every=1e9, hook=hook)
    assert stopped.value.code == 128 + number and signal.getsignal(number) == signal.SIG_DFL
    assert load_arrays(tmp_path / "run" / CHECKPOINT)[1]["step"] == 6
    assert_same(train(tmp_path / "run", resume=True, every=1e9), uninterrupted)


def test_what_a_process_that_was_killed_while_it_kept_the_previous_checkpoint_left_is_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        dead = this_process()._replace(start="1")
        patch.setattr(atomic, "this_process", lambda: dead)
        (tmp_path / atomic.temporary_name(PREVIOUS)).write_bytes(b"")
    for step in (1, 2):
        save_checkpoint(tmp_path, {}, {"step": step})
    assert sorted(os.listdir(tmp_path)) == [CHECKPOINT, PREVIOUS]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_kill_9_at_random_moments_loses_nothing(program, straight, tmp_path):
    out, rng = tmp_path / "run", np.random.default_rng(time.time_ns())  # new moments each time, that is the point
    kills = 0
    places = []
    while kills < 6:
        resume = ["--resume"] if (out / CHECKPOINT).exists() else []
        process = program(out, *resume, pause=0.02)
        if not resume:
            wait_for(out / CHECKPOINT, process)
        time.sleep(rng.uniform(0.3, 0.7))  # sometimes while it still imports, sometimes while it writes
        finished = process.poll() is not None
        process.kill()
        process.communicate()  # closes its pipe too
        if finished:
            break
        kills += 1
        places.append(load_arrays(out / CHECKPOINT)[1]["step"])
    assert kills and places == sorted(places)
    process = program(out, "--resume")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    assert_final(out, straight)
    assert not list(out.glob(".*.tmp")), "a killed process's temporary file is still there"
    assert len(os.listdir(tmp_path)) == 1, "a resumed run was taken for a new one"


# --- counting ---


@pytest.mark.parametrize("soft", [False, True])
def test_counting_loss(soft):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((6, 3)), np.array([0, 1, 2, 0, 1, 2])
    targets = np.eye(3)[labels] * 0.7 + 0.1 if soft else labels
    loss = CountingLoss()
    value, back = loss(logits, targets, label_smoothing=0.2)
    expected, back_expected = minivit.functional.softmax_cross_entropy(logits, targets, label_smoothing=0.2)
    assert value == expected and np.array_equal(back(), back_expected())
    loss(logits, targets)
    assert loss.take_correct() == 2 * int((logits.argmax(axis=1) == labels).sum()) > 0
    assert loss.take_correct() == 0


def test_counting_loss_in_threads():
    model = minivit.ViT(8, 4, 1, 3, 8, 1, 2, seed=1)
    x = np.random.default_rng(0).standard_normal((20, 1, 8, 8)).astype("float32")
    loss = CountingLoss()
    DataParallel(model, threads=4, loss=loss).loss_and_grad(x, LABELS)
    assert loss.take_correct() == int((model.predict(x).argmax(axis=1) == LABELS).sum())


@pytest.mark.parametrize("batch_size", [1, 3, 20, 1000])
def test_accuracy(batch_size):
    sizes = []

    def predict(x):
        sizes.append(len(x))
        return np.eye(4)[x.reshape(len(x), -1)[:, 0].astype(int) % 4]

    share, logits = accuracy(predict, IMAGES, LABELS, lambda x: x.astype("float32"), batch_size=batch_size)
    answers = IMAGES[:, 0, 0] % 4
    assert share == (answers == LABELS).mean() and np.array_equal(logits.argmax(axis=1), answers)
    assert max(sizes) <= batch_size and sum(sizes) == 20


def test_settings_and_history_are_plain_json(tmp_path):
    run = train(tmp_path / "run")
    content = load_arrays(tmp_path / "run" / CHECKPOINT)[1]
    assert content["settings"] == SETTINGS and content["history"] == run.history == json.loads(json.dumps(run.history))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    save_arrays(tmp_path / CHECKPOINT, {}, {"model": "ViT"})
    with pytest.raises(CheckpointError, match="checkpoint"):
        train(tmp_path, resume=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch": -1}, {"epoch": "1"}, {"position": None}, {"step": 1.5}, {"within": [1]}, {"within": 3},
        {"history": [[]]}, {"history": [{"epoch": 1}]}, {"numbers": {"model/x": "y"}}, {"numbers": []},
        {"settings": []}, {"settings": None}, {"numbers": {}},
    ],
)  # fmt: skip
def test_a_resumed_run_whose_hash_is_right_and_whose_content_is_not_is_refused(tmp_path, changes):
    model = minivit.ViT(img_size=16, patch_size=8, num_classes=3, embed_dim=8, depth=1, num_heads=1)
    parts = {"model": model, "optimizer": optim.AdamW(model.parameters(), lr=0.1)}
    Run(tmp_path, {"seed": 0}, parts, quiet=True)
    arrays, content = load_arrays(tmp_path / CHECKPOINT)
    save_arrays(tmp_path / CHECKPOINT, arrays, {**content, **changes})
    with pytest.raises(CheckpointError, match=r"checkpoint\.safetensors.*start without --resume"):
        Run(tmp_path, {"seed": 0}, parts, quiet=True, resume=True)
