"""What the benchmarks compute on tiny cases is right: products, floors, exclusive times. No speed is tested."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cuda_emulator
import fake_cupy
import numpy as np
import pytest
from lab_tools import build

import minivit
from minivit import functional as F, optim
from minivit.fast.numpy import adamw
from minivit.nn import Layer, Parameter
from minivit.summary import Row, Summary, summary

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import cases
import compare_checkouts
import first_logits
import gpu
import lab_speed
import products
import profile_step
import results
import roofline
import runtime_side
import turns
import vs_runtimes
import worker
import write_tables
from cases import CASES, SWIN, VIT, Case, draw_batch, write_start

VIT_SIZES = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 2,
    "num_classes": 3,
    "embed_dim": 8,
    "depth": 2,
    "num_heads": 2,
}
SWIN_SIZES = {
    "img_size": 16, "patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depths": (2, 2),
    "num_heads": (2, 2), "window_size": 4, "drop_path_rate": 0.0,
}  # fmt: skip
TINY = {
    (kind.name, task): Case(f"tiny-{kind.name}-{task}", kind, task, 5, sizes)
    for kind, sizes in ((VIT, VIT_SIZES), (SWIN, SWIN_SIZES))
    for task in ("train", "infer")
}
VARIANTS = [(case, variant) for case in TINY.values() for variant in case.architecture.variants]
BY_NAME = [f"{case.name}-{variant}" for case, variant in VARIANTS]


def side_of(case, variant="every token", threads=1):
    return products.prepare(case, variant, threads)


# --- products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "variant"), VARIANTS, ids=BY_NAME)
def test_the_products_recorded_are_those_the_summary_counts(case, variant):
    side = side_of(case, variant)
    found = products.products_of(side)
    macs = sum(count * product.macs for product, count in found.items() if not product.is_sum)
    table = summary(side.model, quiet=True)
    assert macs == case.batch * (table.macs if case.task == "infer" else table.macs + table.backward_macs)


@pytest.mark.parametrize("case", [TINY["ViT", "train"], TINY["Swin", "train"]], ids=lambda case: case.name)
def test_recording_changes_no_result_and_leaves_nothing_behind(case):
    recorded, plain = side_of(case), side_of(case)
    with products.recording(recorded, lambda product: None):
        loss, gradients = recorded.step(), {k: np.array(p.grad) for k, p in recorded.model.parameters().items()}
    assert loss == plain.step()
    for name, param in plain.model.parameters().items():
        np.testing.assert_array_equal(gradients[name], param.grad)
        again = recorded.model.parameters()[name]
        assert type(again.data) is np.ndarray and again.grad is None
        np.testing.assert_array_equal(again.data, param.data)  # the step was taken, too


def test_a_product_is_made_again_with_its_shapes_and_strides():
    side, seen = side_of(TINY["ViT", "train"]), []
    param = side.model.parameters()["blocks.0.attn.qkv.weight"]  # (24, 8)
    x = np.ones((5, 4, 2, 8), np.float32).swapaxes(1, 2)  # (5, 2, 4, 8)
    out = np.empty((24, 4, 2, 5), np.float32).T  # (5, 2, 4, 24)
    with pytest.raises(ZeroDivisionError), products.recording(side, seen.append):
        result = np.matmul(x, param.data.T, out=out)
        raise ZeroDivisionError
    assert type(param.data) is np.ndarray and np.shares_memory(result, out)
    np.testing.assert_array_equal(out, np.matmul(x, param.data.T, out=np.empty_like(out)))
    (product,) = seen
    assert product.a == products.Operand((5, 2, 4, 8), (256, 32, 64, 4), "float32")
    assert product.b == products.Operand((8, 24), (4, 32), "float32")
    assert product.out == products.Operand((5, 2, 4, 24), (4, 20, 40, 160), "float32")
    assert product.macs == 5 * 2 * 4 * 8 * 24 and not product.is_sum
    made = product.a.make(np.random.default_rng(0))
    assert (made.shape, made.strides, made.dtype) == (product.a.shape, product.a.strides, np.float32)
    assert len(np.unique(made)) > made.size / 2  # each place has a number of its own
    again = product.ready()()
    assert (again.shape, again.strides) == (product.out.shape, product.out.strides)


def test_sums_written_as_products_are_distinguished():
    ones, matrix, column = (products.Operand.of(np.ones(shape, np.float32)) for shape in ((6,), (6, 4), (4, 1)))
    assert products.Product(ones, matrix).is_sum and products.Product(matrix, column).is_sum
    assert (
        products.Product(matrix, column).macs == 24
        and products.Product(matrix, products.Operand.of(np.ones(4))).macs == 24
    )
    wide = products.Operand.of(np.ones((3, 4, 5)))
    assert products.Product(matrix, wide).macs == 3 * 6 * 4 * 5  # the stack of b counts too


def test_the_time_of_each_product_is_that_of_one_run(monkeypatch):
    small, large = products.Product.square(2), products.Product.square(3)
    runs, now = Counter(), [0.0]

    def ready(product):
        def run():
            runs[product] += 1
            now[0] += 1.0 if product is small else 10.0

        return run

    monkeypatch.setattr(products.Product, "ready", ready)
    monkeypatch.setattr(products.time, "perf_counter", lambda: now[0])
    assert products.alone(Counter({small: 4, large: 2}), rounds=3) == {small: 1.0, large: 10.0}
    assert runs == {small: 1 + 12, large: 1 + 6}


def test_threads_are_spread_as_minivit_spreads_them():
    train, infer = TINY["ViT", "train"], TINY["ViT", "infer"]
    assert products.spread(train, 2) == (2, 1) and products.spread(train, 8) == (5, 1)
    assert products.spread(infer, 5) == (5, 1) and products.spread(infer, 6) == (1, 6)


# --- the roofline ---------------------------------------------------------------------------------------------------

STAGES = [Row("embed", "Tokens", (1,), 100, 7_000, 14_000, 30), Row("head", "Linear", (1,), 900, 5_000, 10_000, 20)]


def test_the_work_of_a_step_by_hand():
    table = Summary(STAGES, published_macs=0)
    train, infer = (roofline.work_of(TINY["ViT", task], table) for task in ("train", "infer"))
    images = 5 * 2 * 8 * 8 * 4
    assert infer == roofline.Work(5 * 12_000, 4 * 1_000 + images)
    # forward and dW of both stages, dx of the head alone
    assert train.macs == 5 * (2 * 12_000 + 5_000)
    # numbers: read 1,000 forward and 900 back, gradients out and in, weights and two moments in and out
    assert train.bytes == 4 * (1_000 + 900 + 2 * 1_000 + 6 * 1_000) + 2 * 5 * 50 + images


def test_best_rates():
    found = roofline.Machine(
        {"1 thread": {8: 1.0, 16: 3.0}, "2 threads": {8: 2.0, 16: 2.5}}, {"reused": 4.0, "fresh": 9.0}
    )
    assert (found.rate, found.bandwidth) == (3e9, 4e9)


def test_a_machine_is_measured_in_every_way(monkeypatch):
    monkeypatch.setattr(roofline, "ENOUGH_MACS", 1e4)
    one, two = roofline.machine(1, (8,), mib=1), roofline.machine(2, (8, 16), mib=1)
    assert list(one.gflops) == ["1 thread"] and len(two.gflops) == 3
    assert all(list(ways) == [8, 16] for ways in two.gflops.values())
    assert all(rate > 0 for found in (one, two) for rate in found.copy.values())


def test_gflops_count_two_operations_for_each_multiply_add_of_each_copy(monkeypatch):
    monkeypatch.setattr(roofline, "alone", lambda work, rounds: dict.fromkeys(work, 1e-3))
    assert roofline._gflops(products.Product.square(100), copies=3, blas=1) == pytest.approx(2 * 1e6 * 3 / 1e-3 / 1e9)


@pytest.mark.parametrize("task", ["train", "infer"])
def test_roofline_prints_and_writes_every_case(task, monkeypatch, tmp_path, capsys):
    case = TINY["Swin", task]
    monkeypatch.setitem(CASES, case.name, case)
    best = roofline.Machine({"1 thread": {8: 1e-6}}, {"reused": 1e9, "fresh": 1.0})  # slower than any step can be
    monkeypatch.setattr(roofline, "machine", lambda threads: best)
    roofline.main(["--case", case.name, "--threads", "2", "--steps", "2", "--json", str(tmp_path / "out.json")])
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert row["roofline_ms"] == row["arithmetic_ms"] == pytest.approx(2 * row["macs"] / 1e3 * 1e3)
    assert row["roofline_share"] == pytest.approx(row["roofline_ms"] / row["median_ms"])
    assert row["products_share"] == pytest.approx(row["products_ms"] / row["median_ms"]) and row["products_ms"] > 0
    assert case.name in capsys.readouterr().out


# --- the profile ----------------------------------------------------------------------------------------------------


def test_times_are_exclusive_and_backs_inherit():
    now = [0.0]
    profile = profile_step.Profile(clock=lambda: now[0])

    def work(seconds):
        now[0] += seconds

    inner = profile.timed("inner", lambda: work(1))

    def forward():
        work(2)
        inner()

        def back():
            work(5)
            inner()
            inner()

        return "y", back

    outer = profile.timed("outer", forward)
    y, back = outer()
    back()
    assert y == "y" and profile.calls == {"outer": 1, "inner": 3}
    assert dict(profile.seconds) == {
        ("outer", "forward"): 2, ("inner", "forward"): 1, ("outer", "backward"): 5, ("inner", "backward"): 2,
    }  # fmt: skip
    table = profile_step.rows(profile, {"outer": 0.25}, total=12.0, steps=2)
    assert [entry["operation"] for entry in table] == ["outer", "inner", profile_step.REST]
    assert [entry["total_ms"] for entry in table] == [3500, 1500, 1000]  # of one step
    assert [entry["calls"] for entry in table] == [0.5, 1.5, 0] and table[0]["products_ms"] == 250
    assert sum(entry["share"] for entry in table) == pytest.approx(1)


def test_an_error_within_is_passed_on_and_the_stack_is_left():
    profile = profile_step.Profile()

    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        profile.timed("fails", fail)()
    profile.note(products.Product.square(2))
    assert list(profile.products) == [profile_step.REST]


def test_patches_are_undone_also_after_an_error():
    watched = [
        (F, "linear"), (Layer, "__call__"), (Parameter, "accumulate"), (optim, "clip_grad_norm"),
        (adamw, "adamw"), (adamw, "_pieces"),
    ]  # fmt: skip
    before = [getattr(owner, name) for owner, name in watched]
    with pytest.raises(ZeroDivisionError), profile_step.patched(profile_step.Profile()):
        assert all(getattr(owner, name) is not old for (owner, name), old in zip(watched, before))
        raise ZeroDivisionError
    assert [getattr(owner, name) for owner, name in watched] == before


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["ViT", "Swin"])
def test_a_profile_has_every_operation_once_and_adds_up(kind, threads):
    case = TINY[kind, "train"]
    taken = profile_step.take(case, "every token", threads, steps=2, clip=True)
    rows = {entry["operation"]: entry for entry in taken["rows"]}
    assert len(rows) == len(taken["rows"])
    blocks = sum(case.model["depths"]) if kind == "Swin" else case.model["depth"]
    expected = {"nn.Mlp": blocks, "nn.Block": blocks, "softmax_cross_entropy": 1}
    if kind == "ViT":
        expected |= {
            "layer_norm": 2 * blocks + 1,
            "linear 8 to 24": blocks,
            "linear_gelu 8 to 32": blocks,
            "linear 32 to 8": blocks,
            "patch_embed": 1,
        }
    assert {name: rows[name]["calls"] for name in expected} == {name: threads * each for name, each in expected.items()}
    assert rows["clip_grad_norm"]["calls"] == 1
    for name in expected:
        assert rows[name]["forward_ms"] > 0 and rows[name]["backward_ms"] > 0
    assert rows["AdamW"]["total_ms"] > 0 == rows["AdamW"]["forward_ms"] == rows["AdamW"]["backward_ms"]
    linear = [entry for name, entry in rows.items() if name.startswith("linear")]
    assert all(entry["products_ms"] > 0 for entry in linear) and rows["softmax_cross_entropy"]["products_ms"] == 0
    assert sum(entry["share"] for entry in rows.values()) == pytest.approx(1)
    # the mean of two steps is their median
    assert sum(entry["total_ms"] for entry in rows.values()) == pytest.approx(threads * taken["timed_ms"])
    if threads == 1:
        assert all(entry["total_ms"] >= 0 for entry in rows.values())


def test_one_thread_has_one_shard():
    taken = profile_step.take(replace(TINY["ViT", "train"], batch=100), "every token", threads=1, steps=1, clip=False)
    assert {entry["operation"]: entry["calls"] for entry in taken["rows"]}["softmax_cross_entropy"] == 1


def test_clipping_is_part_of_the_step_only_when_asked_for(monkeypatch):
    norms = []
    monkeypatch.setattr(optim, "clip_grad_norm", lambda params, norm: norms.append(norm))
    side = side_of(TINY["ViT", "train"])
    for clip in (True, False, True):
        profile_step.step(side, clip)
    assert norms == [1.0, 1.0] and side.optimizer.steps == 3 and "step" not in vars(side.optimizer)


@pytest.mark.parametrize("task", ["train", "infer"])
def test_the_profile_is_printed_and_written(task, monkeypatch, tmp_path, capsys):
    case = TINY["ViT", task]
    monkeypatch.setitem(CASES, case.name, case)
    profile_step.main(["--case", case.name, "--steps", "2", "--every-token", "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    facts = json.loads((tmp_path / "out.json").read_text())
    assert facts["variant"] == "every token" and facts["rows"][-1]["operation"] == profile_step.REST
    assert all(word in printed for word in ("linear 8 to 24", profile_step.REST, "together", "100.0%"))
    if task == "infer":
        with pytest.raises(SystemExit):
            profile_step.main(["--case", case.name, "--clip"])
        assert "leave --clip out" in capsys.readouterr().err


# --- turns ----------------------------------------------------------------------------------------------------------


class Clock:
    """A worker's side whose steps take made-up seconds, and the clock that shows them."""

    def __init__(self, step):
        self.now, self.taken, self.seconds = 0.0, 0, step

    def step(self):
        self.taken += 1
        self.now += self.seconds(self.taken)
        return 0.0

    def check_threads(self):
        pass


@pytest.mark.parametrize(("seconds", "count", "untimed"), [(0.1, 20, 8), (0.9, 3, 3), (0.1, 2, 2), (1.1, 9, 2)])
def test_a_turn_times_its_steps_after_some_that_are_not_timed(monkeypatch, seconds, count, untimed):
    clock = Clock(lambda number: seconds if number > untimed else seconds + 1e-6 * number)
    monkeypatch.setattr(worker.time, "perf_counter", lambda: clock.now)
    side = worker.Worker("minivit", "small", "every token", "1", "none")
    side.side, side.rested = clock, (-1.0, 0.0)
    monkeypatch.setattr(worker, "_clocks", lambda: (clock.now, 0.0))
    assert side.steps(count)["seconds"] == pytest.approx([seconds] * count, rel=1e-9)
    assert clock.taken == untimed + count


class MadeUpSide:
    """A side that always takes the same time for a step."""

    def __init__(self, seconds, log):
        self.seconds, self.log, self.used = seconds, log, 0.0

    def ask(self, command):
        assert command == "pace"
        return self.seconds

    def turn(self, steps):
        self.log.append((self.seconds, steps))
        return [self.seconds] * steps


@pytest.mark.parametrize(("fast", "steps"), [(0.1, 20), (0.3, 7), (1.5, 3)])
def test_turns_alternate_and_last_two_seconds_on_the_fastest_side(fast, steps):
    log = []
    seconds, _ = turns.take_turns([MadeUpSide(2 * fast, log), MadeUpSide(fast, log)], rounds=3)
    assert log == [(2 * fast, steps), (fast, steps)] * 3 and seconds.shape == (3, 2, steps)
    assert steps * fast >= turns.TURN - 1e-9
    turns.take_turns([MadeUpSide(fast, log)], 1, 5)
    assert log[-1] == (fast, 5)


def test_workers_get_their_checkout_and_openblas_its_own_kernels(monkeypatch, tmp_path):
    for name in turns.HELD_BY:
        monkeypatch.setenv(name, "Haswell")
    found = turns.environment(3, tmp_path)
    assert not found.keys() & set(turns.HELD_BY) and {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} <= set(turns.HELD_BY)
    assert found["PYTHONPATH"].startswith(str(tmp_path)) and found["OPENBLAS_NUM_THREADS"] == "3"


NOTED = """
from pathlib import Path
from minivit import parallel
def _note(word):
    with open(Path(__file__).parent.parent / "noted", "a") as file:
        file.write(word + "\\n")
_plain = parallel.DataParallel.loss_and_grad
def _noted(*args, **options):
    _note("step")
    return _plain(*args, **options)
parallel.DataParallel.loss_and_grad = _noted
_note("import")
"""


@pytest.mark.slow
def test_each_checkout_is_measured_by_its_own_code(monkeypatch, tmp_path, capsys):
    """A copy that notes each import and step."""
    here = Path(turns.HERE).parent
    shutil.copytree(here / "minivit", tmp_path / "minivit", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "minivit" / "__init__.py", "a") as file:
        file.write(NOTED)
    monkeypatch.setattr(turns, "TURN", 0.1)
    monkeypatch.setattr(compare_checkouts, "IMPORTS", 3)
    arguments = [str(here), str(tmp_path), "--case", "small", "--rounds", "2", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["compare_checkouts.py", *arguments])
    compare_checkouts.main()
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.split()[0] == "small").split()
    assert float(row[3]) == pytest.approx(float(row[2]) / float(row[1]), rel=0.05)
    assert 0.5 < float(row[7]) < 2 and float(row[8]) == 0  # memory, and the distance of the gradients
    before, after = (float(word) for word in lines[-2].split() if word.replace(".", "").isdigit())
    assert min(before, after) > 0
    noted = (tmp_path / "noted").read_text().split()
    assert noted.count("import") >= 3 and noted.count("step") >= 2 * turns.LEAST


def test_a_folder_without_minivit_is_no_checkout(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["compare_checkouts.py", str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit):
        compare_checkouts.main()
    assert "holds no minivit" in capsys.readouterr().err


# --- the tables of the pages ----------------------------------------------------------------------------------------


def test_the_pages_have_the_ratios_of_measured_json():
    measured = json.loads(write_tables.MEASURED.read_text(encoding="utf-8"))
    assert write_tables.dumped(measured) == write_tables.MEASURED.read_text(encoding="utf-8")
    assert {entry["case"] for entry in measured["entries"]} <= set(write_tables.MODELS) == set(CASES)
    for page, name, text in write_tables.pages(measured):
        begin, end = write_tables.markers(name)
        found = page.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip()
        assert found == text, f"{page.name} is older than measured.json: python benchmarks/write_tables.py"


def test_what_a_comparison_wrote_becomes_entries_of_the_tables(tmp_path):
    rounds = {"rounds_ms": [10.0, 10.0, 10.0], "median_ms": 10.0, "case": "vit-s16"}
    mine = {**rounds, "side": "minivit: class token only", "ratio": 0.5, "ratio_quartiles": [0.4, 0.6]}
    mine |= {"over": {"PyTorch: bfloat16 plain": {"ratio": 1.5, "quartiles": [1.4, 1.6]}}, "peak_ratio": 0.75}
    every = {**rounds, "side": "minivit: every token", "ratio": 0.7, "ratio_quartiles": [0.6, 0.8]}
    rows = [{**rounds, "side": "PyTorch: sdpa (trial)"}, {**rounds, "side": "PyTorch: compile plain"}, mine, every]
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"rows": rows, "quietness": {"vit-s16": {"other_programs_cores": 0.01}}}))
    (entry,) = write_tables.entries_of(path, "xeon")
    assert entry["best"] == "compile plain" and entry["memory"] == 0.75 and entry["others"] == 0.01
    ratios = {name: entry[name] for name in ("PyTorch", "every token", "bfloat16")}
    assert ratios == {"PyTorch": [0.5, 0.4, 0.6], "every token": [0.7, 0.6, 0.8], "bfloat16": [1.5, 1.4, 1.6]}

    measured = {"processors": {"xeon": {"name": "Xeon", "text": "t"}}, "entries": [{**entry, "PyTorch": [9.0]}]}
    write_tables.add(measured, [entry])  # replaces the older one
    line = (
        "| `vit-s16` | Xeon | compile plain | 0.50 (0.40 to 0.60) | 0.70 (0.60 to 0.80) | 1.50 (1.40 to 1.60) | 0.75 |"
    )
    assert write_tables.training(measured).splitlines()[2:] == [line]
    with pytest.raises(SystemExit, match="no processor 'abacus'"):
        write_tables.add(measured, [{**entry, "processor": "abacus"}])


def test_the_readme_has_the_range_over_the_processors():
    entries = [
        {"case": "swin-t", "PyTorch": [0.7, 0.6, 0.8], "best": "plain", "bfloat16": [1.5]},
        {"case": "swin-t", "PyTorch": [0.9], "best": "plain"},
    ]
    words = {"train": "training", "infer": "inference", "to": "to"}
    found = write_tables.readme({"processors": {}, "entries": entries}, ("model",), words).splitlines()[2:]
    assert found == ["| Swin-T, 224 pixels, batch 4, training | 0.70 to 0.90 | 1.50 | | |"]


# --- from a new process to its first logits -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ViT", "Swin"])
def test_the_first_logits_are_those_of_the_file(kind, tmp_path):
    case, start = TINY[kind, "infer"], tmp_path / "start.npz"
    model = getattr(minivit, kind)(**case.model, seed=0)
    images, _ = draw_batch(case)
    write_start(start, model.state_dict(), [], case)
    minivit.save(model, start.with_suffix(".safetensors"))
    for side in ("minivit", "minivit: prepared"):
        assert first_logits.first_logits(side, case, start, 1) == pytest.approx(model.predict(images).sum(), rel=1e-5)


def test_first_logits_take_turns_and_the_first_runs_are_not_counted(monkeypatch, capsys):
    sides, found = [], {"minivit": (0.5, 2**20), "PyTorch": (2.0, 2**30)}
    monkeypatch.setattr(first_logits, "SIDES", {"minivit": ("numpy",), "PyTorch": ("numpy", "no-such-package")})
    monkeypatch.setattr(first_logits, "write_files", lambda *_: None)

    def run(side, *_):
        sides.append(side)
        return found[side] if len(sides) > 2 else (99.0, 0)

    monkeypatch.setattr(first_logits, "run", run)
    monkeypatch.setattr(sys, "argv", ["first_logits.py", "--case", "swin-t-b1", "--rounds", "2"])
    first_logits.main()
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert sides == 3 * ["minivit", "PyTorch"]
    assert [line[:4] for line in lines] == [
        ["`swin-t-b1`", "minivit", "0.50 (0.50 to 0.50)", "1"],
        ["`swin-t-b1`", "PyTorch", "2.00 (2.00 to 2.00)", "1024"],
    ]
    assert int(lines[0][4]) >= int(lines[1][4]) > 5  # megabytes, minivit's with its own folder


def test_recomputed_blocks_give_the_same_step():
    plain, again = side_of(TINY["ViT", "train"]), products.prepare(TINY["ViT", "train"], "recompute", 1)
    assert sum(type(block).__name__ == "Recompute" for block in again.model.blocks) == len(again.model.blocks) - 1
    for name, gradient in products.prepare(TINY["ViT", "train"], "class token only", 1).outcome().items():
        np.testing.assert_array_equal(again.outcome()[name], gradient)
    assert plain.step() == pytest.approx(again.step(), rel=1e-5)


def test_the_gpu_report_has_what_succeeded_and_names_what_failed(tmp_path):
    case = {
        "batch": 1, "ms": {"PyTorch eager": [1.0, 2.0, 9.0], "captured": [1.5]}, "gradient_difference": 1e-6,
        "captured_has_the_same_bits": False, "torch_MB": {"float32": 1.0}, "captured_MB": {"float32": 3.0},
        "profile": {"captured": [3, 1.5, []]}, "bfloat16_error": {"minivit": 0.01},
    }  # fmt: skip
    text = gpu.report({"train": {"A": case}, "predict": {"error": "bad"}, "tests": {"summary": "7 passed"}})
    for part in ("| A | PyTorch eager | 2.00 | 1.00 to 9.00 |", "has NOT the bits", "predict failed: bad", "7 passed"):
        assert part in text


def test_a_stage_that_fails_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(gpu.STAGES, "machine", (gpu.machine, 60))
    found = gpu.run_stage("machine", tmp_path, None)  # no GPU, or no CuPy
    assert "error" in found or "card" in found
    assert (tmp_path / "machine.log").exists()
    assert gpu.run_stage("example", tmp_path, None) == {"skipped": "no --mnist folder"}


def test_a_stage_past_its_limit_is_stopped_with_what_it_started(tmp_path, monkeypatch):
    script = tmp_path / "stage.py"
    script.write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(gpu, "__file__", str(script))
    monkeypatch.setitem(gpu.STAGES, "predict", (gpu.predict, 3))
    found = gpu.run_stage("predict", tmp_path, None)
    number = (tmp_path / "predict.log").read_text().strip()  # of the child
    assert found == {"error": f"stopped after 3 s; predict.log ends with: {number}"}
    child = Path("/proc") / number / "stat"
    patience = time.monotonic() + 10  # a killed process is gone when the system has come to it
    while child.exists() and child.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < patience, "the stage's own child lives on"
        time.sleep(0.05)


def test_the_stages_on_a_gpu_take_ten_minutes_at_most():
    assert sum(limit for _, limit in gpu.STAGES.values()) + len(gpu.STAGES) <= 600


def test_the_loop_on_a_gpu_runs_on_the_fake_device(tmp_path, monkeypatch):
    if cuda_emulator.compiler() is None:
        pytest.skip("g++ is not installed: it compiles the kernels")
    small = gpu.FLAGSHIP | {"patch_size": 14, "embed_dim": 8, "depth": 1, "num_heads": 2}
    for name, value in (("FLAGSHIP", small), ("LOOP", 2), ("BATCH", 4)):
        monkeypatch.setattr(gpu, name, value)
    with fake_cupy.installed():
        found = gpu.loop(tmp_path, None)
    assert len(found) == 4 and all(rate > 0 for rate in found.values())
    assert '"moved, images on the GPU"' in gpu.report({"loop": found})


def test_the_sanitizer_watches_every_kernel(tmp_path, monkeypatch):
    if cuda_emulator.compiler() is None:
        pytest.skip("g++ is not installed: it compiles the kernels")
    launched = set()
    launch = cuda_emulator.Function._launch

    def noted(function, *args):
        launched.add(function.name)
        return launch(function, *args)

    monkeypatch.setattr(cuda_emulator.Function, "_launch", noted)
    with fake_cupy.installed():
        assert gpu.small_step(tmp_path, None)["parameters"] > 20
    folder = Path(gpu.ROOT) / "minivit" / "fast" / "cupy" / "kernels"
    every = {name for file in folder.glob("*.cu") for name in cuda_emulator.kernels(file.read_text())}
    assert every - launched == set()


def test_a_runtime_does_not_train_and_needs_its_file(tmp_path):
    start = cases.Start(*cases.draw_batch(CASES["small"]), path=tmp_path / "start.npz")
    with pytest.raises(ValueError, match="small trains"):
        runtime_side.RuntimeSide("ONNX Runtime", CASES["small"], start, 1, "default")
    assert runtime_side.onnx_path(tmp_path / "start.npz") == tmp_path / "start.onnx"


def test_minivit_is_compared_with_each_runtime():
    mine, rival = (results.row("c", side, np.array([[t], [2 * t]]), 0.0) for side, t in (("minivit", 3.0), ("it", 2.0)))
    comparison = object.__new__(vs_runtimes.WithRuntimes)
    comparison.case, comparison.notes = CASES["swin-t-b1"], []
    comparison.compare_with(mine, rival)
    assert comparison.notes == ["swin-t-b1, minivit over it: 1.50 (1.50 to 1.50)"]
    assert mine["over"]["it"]["ratio"] == pytest.approx(1.5)


def test_the_lab_needs_a_model(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["lab_speed.py", "--weights", str(tmp_path)])
    with pytest.raises(SystemExit):
        lab_speed.main()
    assert f"minivit train --out {tmp_path}" in capsys.readouterr().err


@pytest.mark.slow
def test_drawings_are_measured_in_a_browser(monkeypatch, tmp_path, capsys):
    """Skipped without Chromium: the program itself says so."""
    minivit.save(build("vit"), tmp_path / "model.safetensors")
    arguments = ["--weights", str(tmp_path), "--count", "2", "--json", str(tmp_path / "lab.json")]
    monkeypatch.setattr(sys, "argv", ["lab_speed.py", *arguments])
    try:
        lab_speed.main()
    except SystemExit:
        pytest.skip(capsys.readouterr().err.splitlines()[-1])
    assert "2 drawings, median and worst in ms: " in capsys.readouterr().out
    assert len(json.loads((tmp_path / "lab.json").read_text())["served"]["ms"]) == 2
