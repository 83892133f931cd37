"""Change one thing in minivit at a time, and see whether a test notices: a sample of mutants, drawn by a seed.

    HYPOTHESIS_PROFILE=quick python tests/tools/mutants.py STATE --count 400

STATE is a folder outside the repository. It gets a copy of the tree for each of the `--jobs` processes, in which
everything runs, so the working tree never changes; a record of the lines that each test executes, from one run of the
tests; and a line of results.jsonl for each mutant. A later call continues where an earlier one stopped. A call with new
tests copies and records only the test files that have changed, and `--again` runs the survivors once more. After a
change of minivit itself, take a new STATE. The end prints a table by folder, and the difference that each survivor
makes.

A mutant is one change of mutations.py: another operator, comparison or constant, arguments in another order, a slice
that is longer or shorter by one, a negated condition, a statement or a factor left out. The sample is spread over
files in proportion to their lines, and drawn by line first, so that long lines have no more than others. `--only FILE`
takes every mutant of a file instead.

Each mutant meets the tests that execute its line, those in the folder of the same name before the others, the fastest
first, until one fails. MOST_SECONDS bound both groups: what only slower tests would find counts as a survivor, and
wants a test of its own. A test that takes ten times as long as recorded, and ten seconds more, counts as a failure: a
timeout. A line that no test executes makes a survivor. A survivor that computes the same, or differs in speed, memory
or looks alone, stands in equivalent_mutants.txt with the reason before its changed lines, and does not count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from coverage import CoverageData
from mutant_plugin import RECORD, SELECTION
from mutations import Mutant, lines_around, lines_in_functions, mutants_of

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")
# what computes numbers, or reads, writes and trains; fast/cupy runs on a GPU alone
FOLDERS = ("functional", "fast", "nn", "models", "optim", "parallel", "io", "train")
LEFT_OUT = ("fast/cupy",)
# tests that plant bugs themselves would notice any change of the source, others need what is not here or take long and
# compute nothing new, or compile kernels, whose callers are left out
TESTS_LEFT_OUT = ("benchmarks", "docs", "draw", "lab", "parity", "planted_bugs", "tools", "examples/test_break_it.py")
TESTS_LEFT_OUT += ("fast/test_cuda_kernels.py", "fast/test_kernels_under_address_sanitizer.py", "programs/test_lab.py")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "venv*", "build", "dist", "runs", "_build")
EXTRA_SECONDS = 10.0
MOST_SECONDS = 20.0  # as recorded, of the tests beside a file, and of the others


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("state", type=Path, help="a folder outside the repository")
    parser.add_argument("--count", type=int, default=400, help="mutants of the whole sample")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="how many run at a time")
    parser.add_argument("--only", nargs="+", default=[], metavar="FILE", help="every mutant of these files")
    parser.add_argument("--again", action="store_true", help="run the survivors once more, except equivalent ones")
    args = parser.parse_args(arguments)
    state = State(args.state.resolve(), root, args.jobs)
    state.update()
    chosen = state.all_of(args.only) if args.only else state.sample(args.count, args.seed)

    def run(number: int, mutant: Mutant) -> None:
        known = state.results.get(mutant)
        if known is None or (args.again and outcome(mutant, known) in ("survived", "uncovered")):
            print(f"{number}/{len(chosen)} {mutant.path}:{mutant.line} {state.run(mutant)['outcome']}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, range(1, len(chosen) + 1), chosen))
    print(report([(mutant, state.results[mutant]) for mutant in chosen]))
    return 0


class State:
    """The folder with the copies of the tree, the record of its tests, and the results so far."""

    def __init__(self, folder: Path, root: Path, jobs: int = 1) -> None:
        if folder == root or root in folder.parents:
            raise ValueError(f"{folder} lies in the repository: choose a folder outside it")
        self.folder, self.root = folder.resolve(), root
        self.trees = [self.folder / f"tree{number}" for number in range(jobs)]
        self.tree = self.trees[0]
        self.free: queue.SimpleQueue[Path] = queue.SimpleQueue()  # the copies in which nothing runs
        for tree in self.trees:
            self.free.put(tree)
        self.writing = threading.Lock()
        self.log = folder / "results.jsonl"
        self.sources: dict[str, str] = {}
        self.seconds: dict[str, float] = {}  # of each test that passes
        self.results = dict(self._read_results())

    def _read_results(self) -> Iterator[tuple[Mutant, dict[str, Any]]]:
        """The last result of each mutant."""
        for line in self.log.read_text("utf-8").splitlines() if self.log.exists() else ():
            result = json.loads(line)
            yield Mutant(**result["mutant"]), result

    def source(self, path: str) -> str:
        if path not in self.sources:
            self.sources[path] = (self.tree / path).read_text("utf-8")
        return self.sources[path]

    # --- the copy, and which test executes which line ---

    def update(self) -> None:
        """Copies the tree, or what has changed of its tests, and records those tests."""
        for tree in self.trees:
            tree.mkdir(parents=True, exist_ok=True)
            shutil.copytree(self.root, tree, ignore=NOT_COPIED, dirs_exist_ok=True)
        record, known = self.folder / "record.json", {}
        if record.exists():
            known, self.seconds = json.loads(record.read_text("utf-8"))
        digests = {path: hashlib.sha256((self.tree / path).read_bytes()).hexdigest() for path in self._recorded_files()}
        changed = [path for path, digest in digests.items() if known.get(path) != digest]
        if known and any(path.startswith("minivit/") for path in changed):
            raise ValueError(f"minivit has changed since {self.folder} was made: choose a new folder")
        tests = [path for path in changed if path.startswith("tests/")]
        if tests:
            parts = 4 * len(self.trees)  # so that all copies end at nearly the same time
            with ThreadPoolExecutor(len(self.trees)) as pool:
                for seconds in pool.map(self._record, (tests[number::parts] for number in range(parts))):
                    self.seconds |= seconds
            record.write_text(json.dumps([digests, self.seconds]), "utf-8")
        self.contexts = self._contexts()

    def _recorded_files(self) -> Iterator[str]:
        """The files of minivit, and those of the tests that mutants meet."""
        for path in sorted((*self.tree.glob("minivit/**/*.py"), *self.tree.glob("tests/**/test_*.py"))):
            name = path.relative_to(self.tree).as_posix()
            if not name.removeprefix("tests/").startswith(TESTS_LEFT_OUT):
                yield name

    def _record(self, files: list[str]) -> dict[str, float]:
        """Runs these files in a free copy; the seconds of each test that passes."""
        if not files:
            return {}
        tree = self.free.get()
        database = self.folder / f"coverage.{tree.name}.{time.time_ns()}.db"
        try:
            done = self._pytest(tree, ["-p", "mutant_plugin", *files], {RECORD: str(database)})
        finally:
            self.free.put(tree)
        if done.returncode not in (0, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError(done.stdout + done.stderr)
        seconds: dict[str, float] = json.loads(database.with_suffix(".json").read_text("utf-8"))
        return seconds

    def _contexts(self) -> dict[str, dict[int, set[str]]]:
        """For each file of minivit and each line, the tests that execute it; "" is an import."""
        found: dict[str, dict[int, set[str]]] = {}
        for database in sorted(self.folder.glob("coverage.*.db")):
            data = CoverageData(str(database))
            data.read()
            for path in data.measured_files():
                name = Path(*Path(path).relative_to(self.folder).parts[1:]).as_posix()
                lines = found.setdefault(name, {})
                for line, contexts in data.contexts_by_lineno(path).items():
                    lines.setdefault(line, set()).update(contexts)
        return found

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that execute the line, the fastest first; of a line run on import, those of what it defines."""
        lines, source = self.contexts.get(mutant.path, {}), self.source(mutant.path)
        found: set[str] = set()
        for numbers in lines_around(source, mutant.line):
            found = found - {""} or found.union(*(lines.get(number, ()) for number in numbers))
        tests = found & self.seconds.keys()
        if "" in lines.get(mutant.line, ()) or mutant.line not in lines_in_functions(source):
            # names, signatures, and what other files read
            whole = ("tests/test_",) if tests else ("tests/test_", f"tests/{mutant.path.split('/')[1]}/")
            tests |= {test for test in self.seconds if test.startswith(whole)}
        # these take longer than thousands of others that never leave an argument out, or never read a table
        first = ("tests/test_signatures", "tests/test_arguments")
        return sorted(tests, key=lambda test: (not test.startswith(first), self.seconds[test], test))

    # --- the mutants ---

    def paths(self) -> list[str]:
        package = self.tree / "minivit"
        found = [path for name in FOLDERS for path in [package / name] if path.is_file()]
        found += [path for name in FOLDERS for path in (package / name).rglob("*.py")]
        names = sorted(path.relative_to(package).as_posix() for path in found)
        return [f"minivit/{name}" for name in names if not name.startswith(LEFT_OUT)]

    def all_of(self, paths: list[str]) -> list[Mutant]:
        mutants = [mutant for path in paths for mutant in mutants_of(path, self.source(path))]
        return [mutant for mutant in mutants if mutant.is_another_program(self.source(mutant.path))]

    def sample(self, count: int, seed: int) -> list[Mutant]:
        """Mutants in a random order, so that the first few are a sample as well."""
        lines = {path: self.source(path).count("\n") for path in self.paths()}
        chosen = []
        for path, share in shares(lines, count).items():
            draws = random.Random(f"{seed} {path}")
            chosen += draw(mutants_of(path, self.source(path)), self.source(path), share, draws)
        random.Random(seed).shuffle(chosen)
        return chosen

    def run(self, mutant: Mutant) -> dict[str, Any]:
        """Plants the mutant in a free copy, runs its tests, takes it out again, and writes the result down."""
        began, tests, source = time.perf_counter(), self.tests_of(mutant), self.source(mutant.path)
        found, killer = "uncovered", ""
        if tests:
            tree = self.free.get()
            planted = tree / mutant.path
            try:
                planted.write_text(mutant.applied(source), "utf-8")
                found, killer = self._outcome(tree, mutant.path, tests)
            finally:
                planted.write_text(source, "utf-8")
                self.free.put(tree)
        result = {"mutant": vars(mutant), "outcome": found, "killer": killer, "tests": len(tests)}
        result |= {"seconds": round(time.perf_counter() - began, 1), "diff": mutant.diff(source)}
        with self.writing, self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(result) + "\n")
        self.results[mutant] = result
        return result

    def _outcome(self, tree: Path, path: str, tests: list[str]) -> tuple[str, str]:
        name = path.removesuffix(".py").split("/")[1]
        beside = [test for test in tests if test.startswith((f"tests/{name}/", f"tests/test_{name}.py"))]
        for part in (beside, [test for test in tests if test not in set(beside)]):
            found = self._meet(tree, self._first(part)) if part else ("survived", "")
            if found[0] != "survived":
                break
        return found

    def _first(self, tests: list[str]) -> list[str]:
        """As many as MOST_SECONDS allow, and at least one."""
        ends = list(accumulate(self.seconds[test] for test in tests))
        return [test for test, end in zip(tests, ends) if end <= max(MOST_SECONDS, ends[0])]

    def _meet(self, tree: Path, tests: list[str]) -> tuple[str, str]:
        selection = self.folder / f"{tree.name}.json"
        selection.write_text(json.dumps({test: EXTRA_SECONDS + 10 * self.seconds[test] for test in tests}), "utf-8")
        files = sorted({test.partition("::")[0] for test in tests})
        whole = 60 + 10 * sum(self.seconds[test] for test in tests)
        try:
            done = self._pytest(tree, ["-x", "-p", "mutant_plugin", *files], {SELECTION: str(selection)}, timeout=whole)
        except subprocess.TimeoutExpired:
            return "timeout", ""
        if done.returncode == -signal.SIGALRM:
            return "timeout", ""
        if done.returncode in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            return "survived", ""
        if "while loading conftest" in done.stderr:
            return "killed", "conftest.py"
        if done.returncode in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR):
            raise RuntimeError(done.stdout + done.stderr)
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return "killed", failed[0].split(" - ")[0] if failed else f"exit code {done.returncode}"

    def _pytest(
        self, tree: Path, options: list[str], environment: dict[str, str], timeout: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join((str(tree), str(tree / "tests" / "tools")))
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "--tb=no", *options]
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", **environment}
        return subprocess.run(
            command, cwd=tree, env=environment, timeout=timeout, capture_output=True, text=True, errors="replace"
        )


def shares(lines: dict[str, int], count: int) -> dict[str, int]:
    """How many mutants each file gets: in proportion to its lines, the largest remainders rounded up."""
    total = sum(lines.values())
    exact = {path: count * number / total for path, number in lines.items()}
    rounded = {path: int(number) for path, number in exact.items()}
    rest = sorted(exact, key=lambda path: (rounded[path] - exact[path], path))[: count - sum(rounded.values())]
    return {path: number + (path in rest) for path, number in rounded.items()}


def draw(mutants: list[Mutant], source: str, count: int, draws: random.Random) -> list[Mutant]:
    """`count` of a file's mutants, from different lines while there are any."""
    lines: dict[int, list[Mutant]] = {}
    for mutant in mutants:
        lines.setdefault(mutant.line, []).append(mutant)
    chosen: list[Mutant] = []
    while lines and len(chosen) < count:
        for line in draws.sample(sorted(lines), len(lines)):
            while lines[line]:
                mutant = lines[line].pop(draws.randrange(len(lines[line])))
                if mutant.is_another_program(source):
                    chosen.append(mutant)
                    break
            if not lines[line]:
                del lines[line]
            if len(chosen) == count:
                break
    return chosen


# --- what is printed ---


def equivalents() -> set[tuple[str, str]]:
    """The files and changed lines of the mutants that are known to be equivalent."""
    paragraphs = [paragraph.split("\n", 1) for paragraph in EQUIVALENT.read_text("utf-8").strip().split("\n\n")]
    return {(head.partition(":")[0], diff) for head, diff in paragraphs}


def outcome(mutant: Mutant, result: dict[str, Any]) -> str:
    alive = result["outcome"] in ("survived", "uncovered")
    return "equivalent" if alive and (mutant.path, result["diff"]) in equivalents() else result["outcome"]


def report(rows: Iterable[tuple[Mutant, dict[str, Any]]]) -> str:
    """A table by folder, and the survivors that are not known to be equivalent."""
    counts: dict[str, Counter[str]] = {}
    alive = []
    for mutant, result in rows:
        what = outcome(mutant, result)
        if what in ("survived", "uncovered"):
            alive.append(f"{mutant.path}:{mutant.line} ({mutant.kind}, {what})\n{result['diff']}")
        for name in (mutant.path.split("/")[1], "all"):
            counts.setdefault(name, Counter())[what] += 1
    lines = ["| folder | mutants | killed | timeouts | survived | not covered | equivalent | killed of the rest |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for name in sorted(counts, key=lambda name: (name == "all", name)):
        count = counts[name]
        caught, rest = count["killed"] + count["timeout"], count.total() - count["equivalent"]
        numbers = [count.total(), *(count[key] for key in ("killed", "timeout", "survived", "uncovered", "equivalent"))]
        share = f"{100 * caught / rest:.1f} %" if rest else "-"
        lines.append(f"| {name} | {' | '.join(map(str, numbers))} | {share} |")
    return "\n".join([*lines, "", *sorted(alive)])


if __name__ == "__main__":
    sys.exit(main())
