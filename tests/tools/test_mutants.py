"""The sampler of mutants, on a package of two functions: what it finds, and what it leaves alone."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import mutants
import pytest
from mutations import Mutant, lines_around, mutants_of

AREA = '''"""Areas."""


def area(width: float, height: float) -> float:
    """Width times height."""
    if width < 0:
        raise ValueError(f"width {width * 1}")
    return width * height


def first(values: list[int], count: int) -> list[int]:
    kept: list[int] = []
    while len(kept) < count:
        kept.append(values[len(kept)])
    return kept


def unused(x: int) -> int:
    return -x
'''
TESTS = """from minivit.functional.area import area, first


def test_area():
    assert area(2, 2) == 4


def test_first():
    assert first([5, 6, 7], 2) == [5, 6]
"""
UNIT = """def unit() -> int:
    return -1


UNIT = unit()
"""
UNIT_TESTS = """from minivit.functional.unit import UNIT


def test_unit():
    assert UNIT == -1
"""
CONFTEST = "import minivit.functional.unit\n"
REPORT = """\
| folder | mutants | killed | timeouts | survived | not covered | equivalent | killed of the rest |
|---|---|---|---|---|---|---|---|
| functional | 11 | 7 | 1 | 1 | 1 | 1 | 80.0 % |
| all | 11 | 7 | 1 | 1 | 1 | 1 | 80.0 % |

minivit/functional/area.py:19 (sign, uncovered)
-    return -x
+    return x
minivit/functional/area.py:6 (constant, survived)
-    if width < 0:
+    if width < 1:
"""
SIGN = "-    if width < 0:\n+    if width <= 0:"


def changes(source: str) -> dict[str, str]:
    """What each mutant makes of a line, by that line's new text, and its kind."""
    return {each.applied(source).strip(): each.kind for each in mutants_of("a.py", source)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("y = a + b", {"y = a - b": "operator", "y = a": "operand", "y = b": "operand"}),
        ("y -= x", {"y += x": "operator", "pass": "statement"}),
        ("y = a <= b", {"y = a < b": "comparison"}),
        ("y = a in (b, c)", {"y = a not in (b, c)": "comparison"}),
        ("y = a is None", {"y = a is not None": "comparison"}),
        ("y = -x", {"y = x": "sign"}),
        ("y = a and b", {"y = a or b": "condition"}),
        ("y = a if b else c", {"y = a if (not (b)) else c": "condition"}),
        ("y = x[n:]", {"y = x[:]": "slice", "y = x[n + 1:]": "slice", "y = x[n - 1:]": "slice"}),
        ("y = x[1]", {"y = x[2]": "constant", "y = x[0]": "constant"}),
        ("y = True", {"y = False": "constant"}),
        ("y = 0.5", {"y = 1.0": "constant"}),
        ("f(a, b, k=c)", {"f(b, a, k=c)": "arguments", "f(a, b)": "keyword", "pass": "statement"}),
        ("y = h, w", {"y = w, h": "order"}),
        ("y = x.sum()", {"y = x.mean()": "function"}),
        ("y = max(a, b)", {"y = min(a, b)": "function"}),
        ("self.x = y", {"pass": "statement"}),
        ("ä = 'ß' + b", {"ä = 'ß' - b": "operator", "ä = 'ß'": "operand", "ä = b": "operand"}),
    ],
)
def test_each_kind_of_mutant(source: str, expected: dict[str, str]) -> None:
    assert changes(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        '"""A text of 3 words."""',
        "import a.b",
        "assert x > 3",
        "def f(x: tuple[1, 2]) -> tuple[3, 4]: ...",
        "y = isinstance(x, (a, b))",
        "Pair = tuple[int, str]",
        "__slots__ = (a, b)",
        "y = f'{x + 1}'",
        "y = g(3)  # pragma: no cover",
    ],
)
def test_what_computes_nothing_is_left_alone(source: str) -> None:
    assert changes(source) == {}


def test_the_words_of_an_error_are_left_alone_and_the_error_is_not() -> None:
    assert changes("raise ValueError(a + b)") == {"pass": "statement"}


def test_a_mutant_that_does_not_parse_or_changes_nothing_is_distinguished() -> None:
    assert not Mutant("a.py", 1, "", 0, 1, "(").is_another_program("x = 1")
    assert not Mutant("a.py", 1, "", 0, 1, "(x)").is_another_program("x = 1")
    assert Mutant("a.py", 1, "", 0, 1, "y").is_another_program("x = 1")


def test_the_tests_of_a_line_are_looked_for_ever_farther_from_it() -> None:
    around = {line: [list(numbers) for numbers in lines_around(AREA, line)] for line in (1, 4, 7, 8)}
    assert around[8] == [[8], [8]]  # the line, and its statement
    assert around[7] == [[7], [7]]
    assert around[4] == [[4], [4], [4, 5, 6, 7, 8], list(range(1, 21))]  # and the function that it opens, and the file
    assert around[1] == [[1], [1], list(range(1, 21))]


def test_files_share_the_mutants_in_proportion_to_their_lines() -> None:
    assert mutants.shares({"a": 10, "b": 30, "c": 60}, 10) == {"a": 1, "b": 3, "c": 6}
    shares = mutants.shares({"a": 1, "b": 1, "c": 1}, 4)
    assert sum(shares.values()) == 4 and set(shares.values()) == {1, 2}


def test_lines_are_drawn_before_their_mutants() -> None:
    source = "a = 1 + 2 + 3 + 4 + 5 + 6\nb = -1\nc = True\n"
    drawn = mutants.draw(mutants_of("a.py", source), source, 3, random.Random(0))
    assert sorted(mutant.line for mutant in drawn) == [1, 2, 3]
    every = mutants.draw(mutants_of("a.py", source), source, 1000, random.Random(0))
    assert len(set(every)) == len(every) == len(mutants_of("a.py", source))
    assert all(ast.parse(mutant.applied(source)) for mutant in every)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    texts = {"minivit/functional/area.py": AREA, "minivit/functional/unit.py": UNIT}
    texts |= {"tests/functional/test_area.py": TESTS, "tests/test_unit.py": UNIT_TESTS, "tests/conftest.py": CONFTEST}
    texts |= dict.fromkeys(("minivit/__init__.py", "minivit/functional/__init__.py"), "")
    for path in Path(mutants.__file__).parent.glob("*mut*.py"):
        texts[f"tests/tools/{path.name}"] = path.read_text("utf-8")
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


@pytest.mark.slow
def test_survivors_are_reported_and_the_working_tree_stays(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tests multiply 2 by 2 and never call the last function; a loop whose statement is dropped has no end.

    What runs on import alone meets its tests as well.
    """
    monkeypatch.setattr(mutants, "EXTRA_SECONDS", 1.0)
    known = tmp_path / "known.txt"
    known.write_text(f"other.py: of another file\n-a\n+b\n\nminivit/functional/area.py: a width of 0\n{SIGN}\n")
    monkeypatch.setattr(mutants, "EQUIVALENT", known)
    monkeypatch.setattr(
        mutants, "mutants_of", lambda *given: [m for m in mutants_of(*given) if m.line in (2, 6, 8, 14, 19)]
    )
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    arguments = [str(tmp_path / "state"), "--only", "minivit/functional/area.py", "minivit/functional/unit.py"]
    mutants.main(arguments, package)
    assert {path: path.read_bytes() for path in package.rglob("*") if path.is_file()} == before
    printed = capsys.readouterr().out
    progress, table = printed[: printed.index("| folder")], printed[printed.index("| folder") :]
    assert len(progress.splitlines()) == 11
    assert table == REPORT
    mutants.main(arguments, package)
    assert capsys.readouterr().out == table  # everything is known by now


def test_the_state_lies_outside_the_repository(package: Path) -> None:
    with pytest.raises(ValueError, match="choose a folder outside"):
        mutants.State(package / "state", package)


def test_a_changed_package_needs_a_new_folder(package: Path, tmp_path: Path) -> None:
    mutants.State(tmp_path / "state", package).update()
    (package / "minivit/functional/area.py").write_text(AREA + "\n")
    with pytest.raises(ValueError, match="minivit has changed since"):
        mutants.State(tmp_path / "state", package).update()


def test_what_is_listed_as_equivalent_is_a_mutant_of_todays_files() -> None:
    """A line that has changed may have other mutants: delete it from equivalent_mutants.txt and look again."""
    for path, diff in mutants.equivalents():
        source = (mutants.ROOT / path).read_text("utf-8")
        assert diff in {mutant.diff(source) for mutant in mutants_of(path, source)}, (path, diff)
