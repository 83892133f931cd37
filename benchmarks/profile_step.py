"""Where a step's time goes: minivit's functions, layers and optimizer, forward and backward, each by itself.

Nothing in minivit/ changes: while the profile is taken, timed functions stand in for its own, wherever these are bound.

    python benchmarks/profile_step.py                              # the flagship, one thread, one shard
    python benchmarks/profile_step.py --case swin-mnist --clip --json out.json
    python benchmarks/profile_step.py --threads 2                  # as it really runs: sums over the threads

Times are exclusive: what a timed call spends within another timed call counts there and only there. So the rows, with
the last one, "python and the rest", add up to the step.

- `linear 64 to 192`, `layer_norm` and others are functions of `minivit.functional`; "forward" is the call, "backward"
  the call of the back it returned. What runs within a back counts as backward, also a forward pass computed again.
- `nn.*` are layers: what they do besides, such as a block's residual additions. `Parameter.accumulate` adds gradients.
- `AdamW` and `clip_grad_norm` are neither forward nor backward; the loss is both.
- "products" is what the BLAS products of a row take alone, each in its own shape and layout, its operands in the cache
  (`products.py`); "beyond" is the row's time less that: element-wise work, copies, cache misses, and Python's calls.

Timing itself costs about a microsecond for each call; the line below the table says what the step takes without it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import results
from cases import CASES, WARM_UP, Case
from minivit_side import MinivitSide
from products import Product, alone, holding, prepare, recording, spread
from roofline import columns

from minivit import functional as F, nn, optim
from minivit.fast.blas_threads import limit_threads
from minivit.fast.numpy import adamw
from minivit.nn.layer import Layer

FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
REST = "python and the rest"
SMALL = 0.001  # of the step: rows below are printed as one, and stand in the JSON
COLUMNS = ("operation", "calls", "forward", "backward", "total ms", "share", "products", "beyond")
Key = tuple[str, str]  # operation, phase


@dataclass
class _Frame:
    """A timed call that runs now; `inside` are the seconds of the timed calls within it."""

    key: Key
    inside: float = 0.0


@dataclass
class Profile:
    """Calls by operation, exclusive seconds by operation and phase, products by operation.

    Each thread has its own stack of calls; sums are over all threads.
    """

    clock: Callable[[], float] = time.perf_counter
    calls: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[Key, float] = field(default_factory=lambda: defaultdict(float))
    products: defaultdict[str, Counter[Product]] = field(default_factory=lambda: defaultdict(Counter))
    _mine: threading.local = field(default_factory=threading.local)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        """Forget the times, and keep the products."""
        self.calls.clear()
        self.seconds.clear()

    def note(self, product: Product) -> None:
        """This product belongs to the operation that runs in this thread."""
        stack = self._stack()
        with self._lock:
            self.products[stack[-1].key[0] if stack else REST].update([product])

    def timed(self, name: str | Callable[..., str], function: Callable[..., Any], phase: str = FORWARD) -> Any:
        """The function, timed, and so is the back that it returns; `name` may be made from the arguments."""

        def call(*arguments: Any, **named: Any) -> Any:
            operation = name if isinstance(name, str) else name(*arguments, **named)
            result = self._run((operation, phase), function, *arguments, **named)
            if isinstance(result, tuple) and len(result) == 2 and callable(result[1]):
                y, back = result
                return y, self.timed(operation, back, BACKWARD)
            return result

        return call

    def _run(self, key: Key, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        stack = self._stack()
        counts = key[1] != BACKWARD  # a back belongs to the call that returned it
        if stack and key[1] == FORWARD:
            key = key[0], stack[-1].key[1]
        frame = _Frame(key)
        stack.append(frame)
        begin = self.clock()
        try:
            return function(*arguments, **named)
        finally:
            took = self.clock() - begin
            stack.pop()
            if stack:
                stack[-1].inside += took
            with self._lock:
                self.calls[key[0]] += counts
                self.seconds[key] += took - frame.inside

    def _stack(self) -> list[_Frame]:
        stack: list[_Frame] = self._mine.__dict__.setdefault("stack", [])
        return stack


# --- what is timed --------------------------------------------------------------------------------------------------


@contextmanager
def patched(profile: Profile) -> Iterator[None]:
    """A context in which minivit's operations are timed. Build within it what keeps a function, such as a loss."""
    undo: list[tuple[Any, str, Any]] = []

    def put(owner: Any, attribute: str, value: Any) -> None:
        undo.append((owner, attribute, vars(owner)[attribute]))
        setattr(owner, attribute, value)

    try:
        for old, new in _replacements(profile).items():
            for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "minivit"]:
                for attribute in [name for name, value in vars(module).items() if value is old]:
                    put(module, attribute, new)
        put(Layer, "__call__", profile.timed(_layer_name, Layer.__call__))
        put(nn.Parameter, "accumulate", profile.timed("Parameter.accumulate", nn.Parameter.accumulate))
        for name in ("_pieces", "adamw"):  # not `adamw_step`, which waits for the threads in which these run
            put(adamw, name, profile.timed("AdamW", getattr(adamw, name), UPDATE))
        yield
    finally:
        for owner, attribute, value in reversed(undo):
            setattr(owner, attribute, value)


def _replacements(profile: Profile) -> dict[Any, Any]:
    """Each function that is timed, and its replacement."""
    functions = {getattr(F, name): name for name in F.__all__ if inspect.isfunction(getattr(F, name))}
    found = {function: profile.timed(name, function) for function, name in functions.items()}
    for function in (F.linear, F.linear_gelu):
        found[function] = profile.timed(partial(_linear_name, functions[function]), function)
    found[optim.clip_grad_norm] = profile.timed("clip_grad_norm", optim.clip_grad_norm, UPDATE)
    return found


def _linear_name(name: str, x: np.ndarray, weight: np.ndarray, *_: Any, **__: Any) -> str:
    return f"{name} {weight.shape[1]} to {weight.shape[0]}"


def _layer_name(layer: Layer, *_: Any, **__: Any) -> str:
    return f"nn.{type(layer).__name__}"


# --- the step -------------------------------------------------------------------------------------------------------


def step(side: MinivitSide, clip: bool) -> None:
    """One step of a side; with `clip` the gradient's norm is held to 1 before the update, as minivit trains."""
    if not clip:
        side.step()
        return
    update = side.optimizer.step

    def clipped_update() -> None:
        optim.clip_grad_norm(side.optimizer.params, 1.0)
        update()

    side.optimizer.step = clipped_update  # type: ignore[method-assign]
    try:
        side.step()
    finally:
        del side.optimizer.step  # the class's comes back


def step_times(side: MinivitSide, steps: int, clip: bool) -> np.ndarray:
    """Seconds (steps,)."""
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        step(side, clip)
        times.append(time.perf_counter() - begin)
    return np.array(times)


def _side(case: Case, variant: str, threads: int) -> MinivitSide:
    """One thread has the whole batch as its one shard; several cut it as minivit does."""
    side = prepare(case, variant, threads)
    side.parallel.shards = 1 if threads == 1 else None
    return side


def take(case: Case, variant: str, threads: int, steps: int, clip: bool) -> dict[str, Any]:
    """The profile of one case: its rows, and what the step takes with and without the timing."""
    profile = Profile()
    with holding(threads):
        bare = _side(case, variant, threads)
        step_times(bare, WARM_UP, clip)
        untimed = step_times(bare, steps, clip)
        del bare
        with patched(profile):
            side = _side(case, variant, threads)
            with recording(side, profile.note):
                step(side, clip)
            step_times(side, WARM_UP, clip)
            profile.clear()
            timed = step_times(side, steps, clip)
    copies, blas = spread(case, threads)
    with limit_threads(blas):
        seconds = alone(sum(profile.products.values(), Counter()))
    products = {
        name: sum(count * seconds[each] for each, count in work.items()) for name, work in profile.products.items()
    }
    return {
        "case": case.name,
        "variant": variant,
        "steps": steps,
        "threads": copies,
        "blas_threads": blas,
        "untimed_ms": 1e3 * float(np.median(untimed)),
        "timed_ms": 1e3 * float(np.median(timed)),
        "rows": rows(profile, products, float(timed.sum()) * copies, steps),
    }


def rows(profile: Profile, products: dict[str, float], total: float, steps: int) -> list[dict[str, Any]]:
    """Rows of one step in milliseconds, the longest first; at the end what no row has, so that they make the step.

    Args:
        products: seconds of the BLAS products of one step, by operation.
        total: seconds of all steps, summed over the threads.
        steps: how many the profile has seen.
    """
    table = []
    for name, calls in profile.calls.items():
        each = {phase: profile.seconds.get((name, phase), 0.0) for phase in (FORWARD, BACKWARD, UPDATE)}
        table.append((name, calls, each[FORWARD], each[BACKWARD], sum(each.values())))
    table.sort(key=lambda entry: -entry[-1])
    table.append((REST, 0, 0.0, 0.0, total - sum(entry[-1] for entry in table)))
    return [
        {
            "operation": name,
            "calls": calls / steps,
            "forward_ms": 1e3 * forward / steps,
            "backward_ms": 1e3 * backward / steps,
            "total_ms": 1e3 * both / steps,
            "share": both / total,
            "products_ms": 1e3 * products.get(name, 0.0),
        }
        for name, calls, forward, backward, both in table
    ]


# --- what is printed ------------------------------------------------------------------------------------------------


def text(taken: dict[str, Any]) -> str:
    """The table, and how the step without timing compares."""
    *table, rest = taken["rows"]
    small = [entry for entry in table if entry["share"] < SMALL]
    shown = [entry for entry in table if entry["share"] >= SMALL]
    if small:
        shown.append(_sum(f"{len(small)} rows below {SMALL:.1%}", small))
    lines = [COLUMNS, *map(_cells, [*shown, rest, _sum("together", taken["rows"])])]
    threads = f", summed over {taken['threads']} threads" if taken["threads"] > 1 else ""
    return (
        f"{taken['case']} ({taken['variant']}), milliseconds of one step, mean of {taken['steps']}{threads}\n\n"
        f"{columns(lines)}\n\n"
        f"Median step: {taken['untimed_ms']:.2f} ms, {taken['timed_ms']:.2f} ms while its operations are timed."
    )


def _sum(name: str, entries: list[dict[str, Any]]) -> dict[str, Any]:
    sums = {key: sum(entry[key] for entry in entries) for key in entries[0] if key != "operation"}
    return {**sums, "operation": name, "calls": 0}


def _cells(entry: dict[str, Any]) -> tuple[str, ...]:
    products = entry["products_ms"]
    return (
        entry["operation"],
        f"{entry['calls']:g}" if entry["calls"] else "",
        *(f"{entry[key]:.2f}" if entry[key] else "" for key in ("forward_ms", "backward_ms")),
        f"{entry['total_ms']:.2f}",
        f"{entry['share']:.1%}",
        *((f"{products:.2f}", f"{entry['total_ms'] - products:.2f}") if products else ("", "")),
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", default="flagship", choices=sorted(CASES))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="one has one shard; rows are summed over more")
    parser.add_argument("--clip", action="store_true", help="clip the gradient's norm too, as minivit's training does")
    parser.add_argument("--every-token", action="store_true", help="a ViT that computes what its head does not read")
    parser.add_argument("--json", type=Path, help="write everything to this file too")
    options = parser.parse_args(arguments)
    if options.clip and CASES[options.case].task == "infer":
        parser.error(f"--clip: {options.case} is inference, which has no gradient: leave --clip out")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    case = CASES[options.case]
    variant = "every token" if options.every_token else next(iter(case.architecture.variants))
    about = results.machine()
    taken = take(case, variant, options.threads, options.steps, options.clip)
    print(f"{about['processor']}, {about['cores']} cores, NumPy {np.__version__}, float32", text(taken), sep="\n")
    if options.json:
        options.json.write_text(json.dumps({"machine": about, **taken}, indent=1))


if __name__ == "__main__":
    main()
