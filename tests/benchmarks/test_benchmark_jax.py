"""The models and the training step that JAX runs in the benchmarks are minivit's; growth is fitted and written right.

Tiny sizes, and nothing is timed here but made-up seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not (BENCHMARKS / "growth.py").is_file():
    pytest.skip("the benchmarks are not installed with the package", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

import growth  # noqa: E402
import scaling  # noqa: E402
from cases import CASES, HYBRID, SWIN, VIT, Case, Start, draw_batch  # noqa: E402
from minivit_side import MinivitSide, start_of  # noqa: E402
from turns import Side, SideFailed, Variant, environment, make_start  # noqa: E402

needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="compared with JAX: pip install jax")

VIT_SIZES = {
    "img_size": 12, "patch_size": 4, "in_chans": 2, "num_classes": 5, "embed_dim": 8, "depth": 2, "num_heads": 2,
}  # fmt: skip
HYBRID_SIZES = {**VIT_SIZES, "img_size": 30, "patch_size": 1, "resnet_layers": (2, 1)}  # maps of 8x8 and 4x4
SWIN_SIZES = {  # windows of 4 in a map of 8, shifted; then windows that cover a map of 4; then windows that shrink to 2
    "img_size": 16, "patch_size": 2, "in_chans": 1, "num_classes": 3, "embed_dim": 8, "depths": (2, 2, 2),
    "num_heads": (2, 2, 4), "window_size": 4, "drop_path_rate": 0.0,
}  # fmt: skip
TINY = {
    f"{name}-{task}": Case(f"{name}-{task}", kind, task, 5, sizes)
    for name, kind, sizes in (("ViT", VIT, VIT_SIZES), ("hybrid", HYBRID, HYBRID_SIZES), ("Swin", SWIN, SWIN_SIZES))
    for task in ("train", "infer")
}


def start(case: Case) -> Start:
    """Weights far from their start: biases that are not 0, gains that are not 1, attention that is not flat."""
    weights, no_decay = start_of(case)
    rng = np.random.default_rng(3)
    moved = {name: a + 0.3 * rng.standard_normal(a.shape, dtype=np.float32) for name, a in weights.items()}
    return Start(*draw_batch(case), sorted(no_decay), moved)


def sides(name: str, **changed: Any) -> tuple[Any, MinivitSide]:
    from jax_side import JaxSide

    case = replace(TINY[name], **changed)
    return JaxSide(case, start(case), 1, "jit"), MinivitSide(case, start(case), 1, "every token")


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# --- JAX computes what minivit does ---------------------------------------------------------------------------------


@needs_jax
@pytest.mark.parametrize("name", TINY)
def test_gradients_and_logits_agree(name: str) -> None:
    found, expected = (side.outcome() for side in sides(name))
    assert {key: a.shape for key, a in found.items()} == {key: a.shape for key, a in expected.items()}
    largest = max(np.abs(a).max() for a in expected.values())
    bar = 1e-3 if name.startswith("hybrid") else 1e-5  # near a kink of a ReLU rounding decides
    for key, array in expected.items():
        assert np.abs(found[key] - array).max() <= bar * largest, key


@needs_jax
@pytest.mark.parametrize("variant", ["jit", "jit, whole operations"])
@pytest.mark.parametrize("name", ["ViT-train", "Swin-train"])
def test_steps_move_the_weights_alike_and_in_place(name: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import jax
    import jax_side
    import minivit_side

    for module in (jax_side, minivit_side):  # so large that five steps show the decay and the bias corrections
        monkeypatch.setattr(module, "LEARNING_RATE", 0.02)
        monkeypatch.setattr(module, "WEIGHT_DECAY", 0.5)
    monkeypatch.setattr(jax_side, "_compiled", {})
    case = TINY[name]
    begin = start(case)
    ours, theirs = jax_side.JaxSide(case, begin, 1, variant), MinivitSide(case, begin, 1, "every token")
    before = ours.state
    for _ in range(5):
        assert ours.step() == pytest.approx(theirs.step(), rel=2e-3)
    assert all(array.is_deleted() for array in jax.tree.leaves(before)), "the state was copied, not overwritten"
    # a gradient that is 0 but for rounding, such as a key's bias's, becomes a whole step in AdamW: those are left out,
    # and of the others each has a wide bar for its worst element, and all together a narrow one
    apart = [
        difference(np.asarray(ours.state["weights"][key]) - begin.weights[key], param.data - begin.weights[key])
        for key, param in theirs.model.parameters().items()
        if not key.endswith("qkv.bias")
    ]
    assert max(apart) < 2e-2 and np.median(apart) < 1e-4


@needs_jax
def test_what_warms_up_draws_its_own_weights() -> None:
    from jax_side import JaxSide

    case = TINY["Swin-train"]
    images, labels = draw_batch(case)
    assert np.isfinite(JaxSide(case, Start(images, labels), 1, "jit").step())


@needs_jax
def test_compiling_is_done_once_and_apart_from_the_model() -> None:
    import jax_side

    case = replace(TINY["ViT-train"], batch=3)
    begin = start(case)
    jax_side.JaxSide.prepare(case, begin, "jit")
    first = jax_side.compiled(case, begin, "jit")
    assert jax_side.JaxSide(case, begin, 1, "jit").call is first[0]
    assert jax_side.compiled(case, begin, "jit, whole operations") is not first


@needs_jax
def test_a_map_that_windows_do_not_divide_is_refused() -> None:
    with pytest.raises(AssertionError, match="windows of 4 do not divide a map of 10"):
        sides("Swin-infer", model={**SWIN_SIZES, "img_size": 20})


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("used", "fine"), [("1.05", True), ("1.5", False)])
def test_more_cores_than_threads_are_refused(used: str, fine: bool) -> None:
    """The clocks are made up, so that a busy machine does not matter."""
    import worker

    side = worker.Worker("minivit", "small", "every token", "1", "none")
    side.side = argparse.Namespace(check_threads=lambda: None, step=lambda: 0.0)
    times = iter([(10.0, 3.0), (11.0, 3.0 + float(used))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "_clocks", lambda: next(times))
        if fine:
            answer = side.steps(1)
            assert (answer["took"], answer["used"]) == (1.0, pytest.approx(1.05))
        else:
            with pytest.raises(AssertionError, match=r"used 1\.50 cores with 1 threads"):
                side.steps(1)


@needs_jax
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list threads")
def test_the_worker_holds_xla_to_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, path = CASES["small"], tmp_path / "start.npz"
    make_start(case, 1, path)
    for told, fine in ((3, True), (2, False)):
        monkeypatch.setattr(
            "turns.environment", lambda threads, told=told: {**environment(threads), "NPROC": str(told)}
        )
        side = Side(case, Variant("JAX", "jit"), 3, path)
        try:
            assert float(side.ask("build")["compiling"].removesuffix(" s")) > 0
            if fine:
                assert len(side.turn(1)) == 1 and side.cores() > 0
            else:
                with pytest.raises(SideFailed, match="XLA has 2 threads, not 3: set NPROC"):
                    side.turn(1)
        finally:
            side.close()


# --- one comparison from end to end ---------------------------------------------------------------------------------


@needs_jax
@pytest.mark.slow
def test_the_table_has_jax_and_minivit(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(BENCHMARKS / "vs_jax.py"), "--case", "small", "--rounds", "2", "--steps", "1"]
    done = subprocess.run([*command, "--json", str(out)], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    rows = {row["side"]: row for row in json.loads(out.read_text())["rows"]}
    best = next(row for side, row in rows.items() if side.startswith("JAX") and "trial" not in side)
    assert best["difference"] < 1e-3 and "ratio" not in best
    for side in ("minivit: class token only", "minivit: every token"):
        assert rows[side]["ratio"] == pytest.approx(rows[side]["median_ms"] / best["median_ms"])
    assert "compiling, which no step includes: JAX: jit" in done.stdout
    assert "cores used during the turns: JAX" in done.stdout


# --- growth ---------------------------------------------------------------------------------------------------------


def test_exponents_are_those_of_the_powers() -> None:
    amounts = [1, 2, 4, 8]
    noise = np.array([[0.8], [1.0], [1.5]])
    line = scaling.Growth(amounts, [7.0 * n for n in amounts], noise * 0.01 * np.array(amounts) ** 1.5)
    assert line.exponent() == pytest.approx((1.5, 1.5, 1.5))
    assert line.exponent_of_macs() == pytest.approx(1.0)
    assert line.exponents() == "1.50 (1.50 to 1.50) | 1.00"
    assert line.cells(1) == "28.3 (25.5 to 35.4) | 2.8 | 0 | 2.0"
    assert line.median == pytest.approx(10 * np.array(amounts) ** 1.5)
    # what follows the MACs passes through the middle of the medians, in logarithms
    assert np.log(line.as_macs_grow() / line.median).sum() == pytest.approx(0, abs=1e-9)
    assert np.diff(line.as_macs_grow() / line.macs) == pytest.approx(0, abs=1e-9)
    assert line.spread() == pytest.approx(np.stack((line.median * 0.1, line.median * 0.25)))


def test_everything_has_its_turn_in_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(scaling, "ENOUGH", 1e-9)
    monkeypatch.setattr(scaling, "_seconds", lambda run, repeats: run() or len(order))
    seconds, _ = scaling.in_rounds([lambda: order.append("a"), lambda: order.append("b")], 3)
    assert order == list("ab" * 4)  # the first ones are not timed
    assert seconds.tolist() == [[3, 4], [5, 6], [7, 8]]


def test_axes_change_one_thing_each() -> None:
    batch, tokens, depth, threads = growth.axes(1, 3)
    for axis in (batch, tokens, depth, threads):
        assert len(axis.amounts) == len(axis.settings) and axis.amounts == sorted(set(axis.amounts))
    assert [case.batch for case, _ in batch.settings] == batch.amounts
    assert all(case.model == growth.BASE.model for case, _ in batch.settings + threads.settings)
    for (case, _), count in zip(tokens.settings, tokens.amounts):
        assert start_of(case)[0]["pos_embed"].shape[1] == count
    assert [case.model["depth"] for case, _ in depth.settings] == depth.amounts
    assert [count for _, count in threads.settings] == threads.amounts == [1, 2, 3]
    base = batch.macs()[0] / batch.amounts[0]
    assert batch.macs() == [base * n for n in batch.amounts]
    assert threads.macs() == [base * growth.BATCHES[-1] / n for n in threads.amounts]
    assert growth.axes(1, 4)[3].amounts == [1, 2, 4]


def test_the_page_and_the_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "BASE", replace(CASES["small"], model={**VIT_SIZES, "num_heads": 2}))
    monkeypatch.setattr(growth, "BATCHES", (2, 4))
    monkeypatch.setattr(growth, "SIDES", (8, 12))
    monkeypatch.setattr(growth, "DEPTHS", (1, 2))
    monkeypatch.setattr(scaling, "ENOUGH", 1e-9)
    page, figure = tmp_path / "page.md", tmp_path / "growth.svg"
    page.write_text("before\n" + "\nold\n".join(growth.MARKERS) + "\nafter\n")
    monkeypatch.setattr(growth, "PAGE", page)
    monkeypatch.setattr(growth, "FIGURE", figure)
    monkeypatch.setattr(growth, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["growth.py", "--write", "--rounds", "2", "--most-threads", "2"])
    pytest.importorskip("matplotlib", reason="draws: install the `examples` extra")
    growth.main()
    text = page.read_text()
    assert text.startswith(f"before\n{growth.MARKERS[0]}\n") and text.endswith(f"{growth.MARKERS[1]}\nafter\n")
    assert "old" not in text
    for axis in ("batch", "tokens", "depth", "threads"):
        assert f"| {axis} | ms (quartiles)" in text
    assert text.count("\n| 1 | ") == 2 and "\n| 10 | " in text  # depth and threads; 1 + (12 / 4)^2 tokens
    drawn = figure.read_text()
    assert drawn.count("as its multiply-adds") == 4 and " \n" not in drawn


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")
    with pytest.raises(SystemExit, match="has no lines <!-- a --> and <!-- b -->"):
        scaling.write_between(page, ("<!-- a -->", "<!-- b -->"), "text")
    assert page.read_text() == "nothing\n"


def test_a_busy_machine_is_reported() -> None:
    assert "NOT QUIET" in scaling.facts("1", "How.", 0.5)
    assert "NOT QUIET" not in scaling.facts("1", "How.", 0.01)
