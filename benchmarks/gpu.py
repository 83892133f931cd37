"""All that a real GPU can tell, in one command of at most ten minutes: tests, training and inference beside PyTorch.

    python benchmarks/gpu.py --out FOLDER                    # every stage
    python benchmarks/gpu.py --out FOLDER --only train tests
    python benchmarks/gpu.py --out FOLDER --mnist FOLDER     # and the main example, on the four files of MNIST

Needs CuPy, PyTorch and timm; no network. Each stage is a process of its own with a time limit, and its failure stops
none of the others. FOLDER then holds a log of each stage, `gpu.json` and `gpu.md`.

Both sides compute from the same weights, on the same images, and take turns in one process: a turn is several steps in
a row after which the GPU is waited for, and a ratio is that of the medians over the turns. "float32" is without TF32;
"bfloat16" is PyTorch's autocast there, and images in bfloat16 here.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
Result = dict[str, Any]

FLAGSHIP = {
    "img_size": 28,
    "patch_size": 4,
    "in_chans": 1,
    "num_classes": 10,
    "embed_dim": 64,
    "depth": 6,
    "num_heads": 4,
}
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {  # timm's name, what differs from it, batch
    "ViT 28x28, dim 64, depth 6": ("vit_tiny_patch16_224", FLAGSHIP, 128),
    "ViT-S/16": ("vit_small_patch16_224", {}, 64),
    "Swin-T": ("swin_tiny_patch4_window7_224", {}, 64),
}  # fmt: skip
TURNS, STEPS, WARM_UP = 5, 8, 4
COPIED, SIDE = 1 << 28, 8192  # numbers of an array that is copied, and the side of matrices: both fill a card
LOOP, BATCH = 200, 128  # batches of an epoch of the stage `loop`, and their images


# --- measuring -------------------------------------------------------------------------------------------------------


def in_turn(sides: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Milliseconds of a step, for each side and turn."""
    import cupy

    def turn(step: Callable[[], Any], count: int) -> float:
        begin = time.perf_counter()
        for _ in range(count):
            step()
        cupy.cuda.runtime.deviceSynchronize()
        return (time.perf_counter() - begin) / count * 1e3

    for step in sides.values():
        turn(step, WARM_UP)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(TURNS):
        for name, step in sides.items():
            found[name].append(turn(step, STEPS))
    return found


def profile(step: Callable[[], Any]) -> tuple[int, float, list[tuple[str, float]]]:
    """Launches of a step, milliseconds in which the GPU was busy, and the kernels that took most of them."""
    import cupy
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as taken:
        for _ in range(3):
            step()
        cupy.cuda.runtime.deviceSynchronize()
    kernels: dict[str, float] = {}
    events = list(taken.events())
    for event in events:
        kernels[event.name[:60]] = kernels.get(event.name[:60], 0.0) + event.device_time_total / 3e3
    largest = sorted(kernels.items(), key=lambda pair: -pair[1])[:12]
    return round(len(events) / 3), sum(kernels.values()), largest


# --- stages ----------------------------------------------------------------------------------------------------------


def card() -> str:
    """The name of the card, and its driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def machine(out: Path, mnist: Path | None) -> Result:
    """The card, the versions, and what the card can do at most."""
    import cupy
    import timm
    import torch

    from minivit.fast.cupy.products import product

    large = cupy.ones(COPIED, "float32")
    target, a = cupy.empty_like(large), cupy.ones((SIDE, SIDE), "float32")
    times = in_turn({"copy": lambda: cupy.copyto(target, large), "product": lambda: product(a, a)})
    return {
        "card": card(),
        "cuda": cupy.cuda.runtime.runtimeGetVersion(),
        **{library.__name__: library.__version__ for library in (cupy, np, torch, timm)},
        "copy_TB_per_s": 2 * large.nbytes / np.median(times["copy"]) / 1e9,
        "product_TFLOP_per_s": 2 * SIDE**3 / np.median(times["product"]) / 1e9,
    }


def train(out: Path, mnist: Path | None) -> Result:
    """A training step: PyTorch eager and compiled, minivit step by step and captured, in three precisions."""
    found: Result = {}
    for name, case in MODELS.items():
        found[name] = _train(*case)
        print(name, json.dumps(found[name]), flush=True)  # the log has it also if a later model takes too long
    return found


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """PyTorch's products in TF32, or not."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def _train(timm_name: str, options: dict[str, Any], batch: int) -> Result:
    import cupy
    import torch

    import minivit
    from minivit import optim, parallel

    theirs, ours, images, labels = _pair(timm_name, options, batch)
    there, answers = torch.as_tensor(images).cuda(), torch.as_tensor(labels).cuda()
    here, params = cupy.asarray(images), ours.parameters()
    captured, single = parallel.CapturedStep(ours), parallel.DataParallel(ours, threads=1, shards=1)
    torch_opt, opt = torch.optim.AdamW(theirs.parameters(), 1e-4, fused=True), optim.AdamW(params, lr=1e-4)

    theirs.eval()  # no noise: the gradients must agree
    torch.nn.functional.cross_entropy(theirs(there), answers).backward()
    loss = captured.loss_and_grad(here, labels)
    grads = {name: param.grad.get() for name, param in params.items()}
    opt.zero_grad()
    targets = np.eye(logit_count(ours), dtype="float32")[labels]
    same = float(single.loss_and_grad(here, targets)) == float(loss)
    same = same and all(np.array_equal(grads[name], param.grad.get()) for name, param in params.items())
    exact = {name: param.grad.cpu().numpy() for name, param in theirs.named_parameters() if name in grads}
    found: Result = {
        "batch": batch,
        "gradient_difference": max(_largest(grads[name] - exact[name], exact[name]) for name in exact),
        "captured_has_the_same_bits": same,
    }
    half = parallel.CapturedStep(ours, precision="bfloat16")
    opt.zero_grad()
    half.loss_and_grad(here, labels)
    theirs.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        torch.nn.functional.cross_entropy(theirs(there), answers).backward()
    found["bfloat16_error"] = {
        "PyTorch": _median_error({n: p.grad.cpu().numpy() for n, p in theirs.named_parameters() if n in exact}, exact),
        "minivit": _median_error({n: params[n].grad.get() for n in exact}, exact),
    }
    theirs.train()

    def torch_step(model: Any, precision: str) -> Callable[[], None]:
        def step() -> None:
            torch_opt.zero_grad()
            with tf32(precision == "TF32"), torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
                loss = torch.nn.functional.cross_entropy(model(there), answers)
                loss.backward()
            torch_opt.step()

        return step

    def step_by_step() -> None:
        opt.zero_grad()
        single.loss_and_grad(here, labels)
        opt.step()

    def recorded(captured: Any, level: str = "highest") -> Callable[[], None]:
        def step() -> None:
            with minivit.matmul_precision(level):
                captured.update(opt, here, labels)

        return step

    fine, rough = parallel.CapturedStep(ours), parallel.CapturedStep(ours)
    half = parallel.CapturedStep(ours, precision="bfloat16")  # without the graph of gradients alone
    scaled = parallel.CapturedStep(ours, precision="float16")
    sides = {
        "float32: PyTorch eager": torch_step(theirs, "float32"),
        "float32: step by step": step_by_step,
        "float32: captured": recorded(fine),
        "TF32: PyTorch eager": torch_step(theirs, "TF32"),
        "TF32: captured": recorded(rough, "high"),
        "bfloat16: PyTorch eager": torch_step(theirs, "bfloat16"),
        "bfloat16: captured": recorded(half),
        "float16: captured": recorded(scaled),
    }
    found["torch_MB"] = {}
    for precision in ("float32", "bfloat16"):
        torch.cuda.reset_peak_memory_stats()
        sides[f"{precision}: PyTorch eager"]()
        found["torch_MB"][precision] = torch.cuda.max_memory_allocated() / 1e6
    found["ms"] = in_turn(sides)
    found["captured_MB"] = {"float32": fine.memory() / 1e6, "bfloat16": half.memory() / 1e6}
    profiled = ("float32: PyTorch eager", "float32: captured", "bfloat16: PyTorch eager", "bfloat16: captured")
    found["profile"] = {side: profile(sides[side]) for side in profiled}
    print(json.dumps(found), flush=True)  # before the compiler, which takes longest
    for precision in ("float32", "bfloat16"):
        try:
            torch.compiler.reset()
            compiled = torch_step(torch.compile(theirs, mode="reduce-overhead"), precision)
            again = in_turn({"compiled": compiled, "captured": sides[f"{precision}: captured"]})
            found["ms"] |= {
                f"{precision}: PyTorch compiled": again["compiled"],
                f"{precision}: beside it": again["captured"],
            }
        except Exception as error:  # the compiler needs a C compiler, and more
            found[f"compiled, {precision}"] = repr(error)[:300]
    minivit.to_device(ours, "cpu")
    return found


def _largest(difference: np.ndarray, of: np.ndarray) -> float:
    """The largest difference relative to the largest element, 0 where all are 0."""
    return float(np.abs(difference).max() / np.abs(of).max()) if np.abs(of).max() > 0 else 0.0


def _median_error(found: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> float:
    """The median over the parameters of |found - exact| / |exact|, Euclidean norms."""
    return float(np.median([np.linalg.norm(found[n] - exact[n]) / (np.linalg.norm(exact[n]) + 1e-30) for n in exact]))


def loop(out: Path, mnist: Path | None) -> Result:
    """The flagship's training loop on images of 8 bits, which are on the host or on the GPU; images per second."""
    import cupy

    import minivit
    from minivit import data, optim, parallel
    from minivit.train.presets import Preset

    images = np.random.default_rng(0).integers(0, 256, (LOOP * BATCH, 28, 28), dtype=np.uint8)
    labels, found = np.arange(len(images)) % 10, {}
    for name, preset in (("moved", Preset({})), ("rotated, scaled and moved", Preset({}, degrees=10, scale=0.1))):
        for place, given in (("host", images), ("GPU", cupy.asarray(images))):
            model = minivit.to_device(minivit.ViT(**FLAGSHIP, drop_path_rate=0.05, seed=0), "gpu")
            opt, average, step = optim.AdamW(model.parameters()), optim.ModelEma(model), parallel.CapturedStep(model)
            for epoch in (0, 1):  # the first one records
                begin = time.perf_counter()
                for x, y in data.batches(given, labels, BATCH, seed=0, epoch=epoch, augment=preset.augment):
                    rng = np.random.default_rng(epoch)
                    step.update(opt, x, y, rng, max_norm=1.0, average=average, label_smoothing=0.1)
                cupy.cuda.runtime.deviceSynchronize()
                seconds = time.perf_counter() - begin
            found[f"{name}, images on the {place}"] = len(images) / seconds
    return found


def predict(out: Path, mnist: Path | None) -> Result:
    """Logits of a batch, nothing kept, in float32 and bfloat16."""
    import cupy
    import torch

    from minivit.fast.half import activation_dtype

    found: Result = {}
    for name, (timm_name, options, batch) in MODELS.items():
        theirs, ours, images, _ = _pair(timm_name, options, batch)
        theirs.eval()
        there, here = torch.as_tensor(images).cuda(), cupy.asarray(images)
        rounded = here.astype(activation_dtype("bfloat16"))

        def torch_predict(half: bool, theirs: Any = theirs, there: Any = there) -> Any:
            with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=half):
                return theirs(there)

        logits = torch_predict(False).cpu().numpy()
        difference = float(np.abs(ours.predict(here).get() - logits).max() / np.abs(logits).max())
        times = in_turn(
            {
                "float32: PyTorch eager": lambda run=torch_predict: run(False),
                "float32: minivit": lambda ours=ours, here=here: ours.predict(here),
                "bfloat16: PyTorch eager": lambda run=torch_predict: run(True),
                "bfloat16: minivit": lambda ours=ours, rounded=rounded: ours.predict(rounded),
            }
        )
        found[name] = {"batch": batch, "logit_difference": difference, "ms": times}
    return found


def _pair(timm_name: str, options: dict[str, Any], batch: int) -> tuple[Any, Any, np.ndarray, np.ndarray]:
    """timm's model and minivit's with the same weights, both on the GPU, and a batch on the host."""
    import timm
    import torch

    import minivit

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    theirs = timm.create_model(timm_name, **options).cuda()
    ours = minivit.create_model(timm_name, **options)
    names = ours.state_dict()
    ours.load_state_dict({k: v.detach().cpu().numpy() for k, v in theirs.state_dict().items() if k in names})
    minivit.to_device(ours, "gpu")
    rng, side = np.random.default_rng(0), options.get("img_size", 224)
    images = rng.standard_normal((batch, options.get("in_chans", 3), side, side), dtype=np.float32)
    return theirs, ours, images, rng.integers(0, logit_count(ours), batch)


def logit_count(model: Any) -> int:
    """K, the classes."""
    return int(model.num_classes)


def tests(out: Path, mnist: Path | None) -> Result:
    """Every promise of the table, and training, on CuPy itself."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "8", "-o", "filterwarnings=default", "-k", "cupy", "tests"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"HYPOTHESIS_PROFILE": "quick"}, capture_output=True, text=True
    )
    lines = done.stdout.strip().splitlines()
    print(done.stdout[-6000:])
    return {
        "summary": lines[-1] if lines else done.stderr[-300:],
        "failed": [x for x in lines if x.startswith("FAILED")],
    }


def sanitizer(out: Path, mnist: Path | None) -> Result:
    """NVIDIA's memcheck and racecheck over a step of a small Swin, which runs every kernel."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return {"skipped": "compute-sanitizer is not installed"}
    found = {}
    for check in ("memcheck", "racecheck"):
        command = [tool, "--tool", check, "--error-exitcode", "9", sys.executable, __file__, "--stage", "small_step"]
        done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
        print(done.stdout[-3000:], done.stderr[-3000:])
        lines = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
        found[check] = lines[-1] if lines else f"exit {done.returncode}: {done.stdout[-200:]}"
    return found


def small_step(out: Path, mnist: Path | None) -> Result:
    """What the sanitizer watches."""
    import minivit
    from minivit import nn, optim, parallel
    from minivit.fast.cupy import attention

    model = minivit.Swin(
        img_size=6,
        patch_size=1,
        in_chans=1,
        num_classes=3,
        embed_dim=8,
        depths=(2,),
        num_heads=(2,),
        window_size=3,
        attn_drop_rate=0.1,
        drop_path_rate=0.1,
    )
    minivit.to_device(model, "gpu")
    rng, params = np.random.default_rng(0), model.parameters()
    images = minivit.to_device(rng.standard_normal((3, 1, 6, 6), dtype=np.float32), "gpu")
    average, step = optim.ModelEma(model), parallel.DataParallel(model, threads=1, shards=1)
    half = parallel.CapturedStep(model, precision="float16")  # whose scale is adapted by the GPU
    few_scores = attention._FEW_SCORES
    for noise, attention._FEW_SCORES in ((None, few_scores), (None, 0), (rng, 0)):
        # attention in tiles, by products, and with weights that are dropped
        step.loss_and_grad(images, np.array([0, 1, 2]), noise, label_smoothing=0.1)
    optim.clip_grad_norm(params, 1e-3)
    opt = optim.AdamW(params, 1e-3)
    opt.step()
    average.update()
    parallel.CapturedStep(model).update(opt, images, np.array([0, 1, 2]), max_norm=1e-3, average=average)
    half.update(opt, images, np.array([0, 1, 2]), rng)
    wide = nn.LayerNorm(800)  # a row that no warp keeps in its registers
    minivit.to_device(wide, "gpu")
    rows, back = wide(minivit.to_device(np.ones((3, 800), np.float32), "gpu"))
    back(rows)
    return {"parameters": len(params)}


def example(out: Path, mnist: Path | None) -> Result:
    """The main example, three epochs."""
    if mnist is None:
        return {"skipped": "no --mnist folder"}
    program = [sys.executable, str(ROOT / "examples" / "train_mnist_vit.py"), "--device", "gpu", "--epochs", "3"]
    begin = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # the library need not be installed
    done = subprocess.run(
        [*program, "--data", str(mnist), "--out", str(out / "mnist")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    print(done.stdout[-3000:], done.stderr[-3000:])
    return {"seconds": time.perf_counter() - begin, "last_line": done.stdout.strip().splitlines()[-1:]}


# with its limit in seconds: all together at most ten minutes, less a second each to start and stop
STAGES: dict[str, tuple[Callable[[Path, Path | None], Result], int]] = {
    "machine": (machine, 35), "train": (train, 215), "predict": (predict, 50), "loop": (loop, 25),
    "tests": (tests, 140), "sanitizer": (sanitizer, 60), "example": (example, 65),
}  # fmt: skip
INNER = {"small_step": (small_step, 60)}  # what a stage starts in a process of its own


# --- the report ------------------------------------------------------------------------------------------------------


def report(found: dict[str, Result]) -> str:
    """The results as Markdown."""
    lines = []
    about = found.get("machine", {})
    if "card" in about:
        versions = ", ".join(f"{name} {about[name]}" for name in ("cupy", "numpy", "torch", "timm") if name in about)
        lines += [
            f"{about['card']}; CUDA runtime {about['cuda']}, {versions}.", "",
            f"Copying reaches {about['copy_TB_per_s']:.2f} TB/s, products {about['product_TFLOP_per_s']:.1f} TFLOP/s.",
            "",
        ]  # fmt: skip
    for stage in ("train", "predict"):
        rows = [(name, side, times) for name, case in found.get(stage, {}).items() if isinstance(case, dict)
                for side, times in case.get("ms", {}).items()]  # fmt: skip
        if rows:
            lines += [f"| {stage} | side | median ms | turns, ms |", "|---|---|---|---|"]
            lines += [
                f"| {name} | {side} | {np.median(times):.2f} | {min(times):.2f} to {max(times):.2f} |"
                for name, side, times in rows
            ]
            lines.append("")
    for name, case in found.get("train", {}).items():
        if isinstance(case, dict) and "ms" in case:
            lines.append(_facts(name, case))
    for stage in ("loop", "tests", "sanitizer", "example"):
        if stage in found:
            lines.append(f"- {stage}: {json.dumps(found[stage])}")
    lines += [f"- {stage} failed: {case['error']}" for stage, case in found.items() if "error" in case]
    return "\n".join(lines) + "\n"


def _facts(name: str, case: Result) -> str:
    """What a case of the training stage has beside its times."""
    bits = "has" if case["captured_has_the_same_bits"] else "has NOT"
    taken = case["profile"].items()
    launches = "; ".join(f"{side}: {count} launches, busy {busy:.2f} ms" for side, (count, busy, _) in taken)
    memory = "; ".join(
        f"{precision}: PyTorch {case['torch_MB'][precision]:.0f} MB, captured {case['captured_MB'][precision]:.0f}"
        for precision in case["captured_MB"]
    )
    errors = ", ".join(f"{side} {error:.3f}" for side, error in case["bfloat16_error"].items())
    return (
        f"- {name}: gradients differ by {case['gradient_difference']:.1e}; captured {bits} the bits of step by step; "
        f"error of the gradients in bfloat16: {errors}; {launches}; memory: {memory}."
    )


def run_stage(name: str, out: Path, mnist: Path | None) -> Result:
    """One stage in a process of its own, within its limit."""
    result = out / f"{name}.json"
    result.unlink(missing_ok=True)
    command = [
        sys.executable,
        __file__,
        "--stage",
        name,
        "--out",
        str(out),
        *(["--mnist", str(mnist)] if mnist else []),
    ]
    begin, limit = time.perf_counter(), STAGES[name][1]
    with open(out / f"{name}.log", "w") as log:
        stage = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: Any = stage.wait(limit)
        except subprocess.TimeoutExpired:
            code = f"stopped after {limit} s"
        finally:  # what it started goes too: it would take the GPU from the next stage
            with suppress(ProcessLookupError):
                os.killpg(stage.pid, signal.SIGKILL)
            stage.wait()
    print(f"{name}: {time.perf_counter() - begin:.0f} s, {'done' if code == 0 else code}", flush=True)
    if result.exists():
        return json.loads(result.read_text())
    lines = (out / f"{name}.log").read_text(errors="replace").strip().splitlines()
    return {"error": f"{code}; {name}.log ends with: {lines[-1][:200] if lines else 'nothing'}"}


def main() -> None:
    """Run the stages, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs, gpu.json and gpu.md")
    parser.add_argument("--mnist", type=Path, help="folder with the four files of MNIST, for the main example")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), help="these stages alone")
    parser.add_argument("--stage", choices=[*STAGES, *INNER], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.stage:
        sys.path.insert(0, str(ROOT))
        found = (STAGES | INNER)[args.stage][0](args.out, args.mnist)
        (args.out / f"{args.stage}.json").write_text(json.dumps(found))
        return
    chosen = args.only or list(STAGES)
    results = {name: run_stage(name, args.out, args.mnist) for name in chosen}
    (args.out / "gpu.json").write_text(json.dumps(results, indent=1))
    text = report(results)
    (args.out / "gpu.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
