"""Static checks that the library only uses names which CuPy has, from a stored list of its names.

They find on a machine without a GPU what would be an AttributeError on one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "minivit"
SOURCES = sorted(PACKAGE.rglob("*.py"))
NAMES = {
    line
    for line in (HERE / "cupy_api.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
}
# What the list says of the attributes of: submodules, classes and ufuncs. An attribute of anything
# else (the bits of a dtype, say) is not CuPy's to have.
LISTED = {name.rpartition(".")[0] for name in NAMES} - {""}


def imported(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Line, full name, and the local name for it (empty if none is bound), of each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}", ""


def chain(node: ast.AST) -> tuple[str, ...]:
    """("xp", "add", "at") for the expression `xp.add.at`; empty if no plain name is at its root.

    `array_module(x)` is an array module, so it counts as `xp`.
    """
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "array_module":
        return ("xp",)
    if isinstance(node, ast.Attribute) and (root := chain(node.value)):
        return (*root, node.attr)
    return ()


def missing_names(source: str) -> list[tuple[int, str]]:
    """Line and name of each attribute of an array module that CuPy lacks, in order of lines."""
    tree = ast.parse(source)
    modules = {"xp": ""}  # local name -> what its attributes are called in the list
    missing = set()
    for line, full, local in imported(tree):
        if full.partition(".")[0] not in ("cupy", "cupyx"):
            continue
        listed = full.removeprefix("cupy.")
        if local and full in ("cupy", "cupyx"):
            modules[local] = "" if full == "cupy" else "cupyx."
        elif local != "cupyx" and full != "cupy" and listed not in NAMES:
            missing.add((line, full))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        root, *parts = chain(node) or ("",)
        if root not in modules or not parts:
            continue
        name = modules[root] + ".".join(parts)
        judged = len(parts) == 1 or name.rpartition(".")[0] in LISTED
        if judged and name not in NAMES | LISTED:
            missing.add((node.lineno, f"{root}.{'.'.join(parts)}"))
    return sorted(missing)


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_every_name_exists_in_cupy(path):
    missing = missing_names(path.read_text(encoding="utf-8"))
    assert not missing, "CuPy has no such name: " + ", ".join(
        f"{relative(path)}:{line}: {name}" for line, name in missing
    )


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_only_two_folders_import_cupy(path):
    if path == PACKAGE / "device.py" or (PACKAGE / "fast" / "cupy") in path.parents:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [
        f"{relative(path)}:{line}: {full}"
        for line, full, _ in imported(tree)
        if full.partition(".")[0] in ("cupy", "cupyx")
    ]
    assert not found, "only minivit/device.py and minivit/fast/cupy/ may import CuPy: " + ", ".join(found)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("with xp.errstate():\n    pass", [(1, "xp.errstate")]),
        ("y = 1\nxp.add.reduceat2(x)", [(2, "xp.add.reduceat2")]),
        ("xp.multiply.at(a, i, b)", [(1, "xp.multiply.at")]),
        ("xp.linalg.nor(x)", [(1, "xp.linalg.nor")]),
        ("import cupy\ncupy.block(x)", [(2, "cupy.block")]),
        ("import cupy as cp\ncp.geomspace(1, 2)", [(2, "cp.geomspace")]),
        ("import cupyx\ncupyx.nothing(x)", [(2, "cupyx.nothing")]),
        ("from cupy import seterr", [(1, "cupy.seterr")]),
        ("from cupyx.scipy.special import erg", [(1, "cupyx.scipy.special.erg")]),
        ("array_module(x).block(x)", [(1, "xp.block")]),
        ("array_module(x).exp(x)", []),
        ("import cupy.nothing", [(1, "cupy.nothing")]),
        ("xp.add.at(a, i, xp.linalg.norm(xp.exp(x)))\nxp.finfo(x.dtype).max", []),
        ("from cupyx.scipy.special import erf\nimport cupy\ncupy.float32.itemsize", []),
        ("import cupyx.scipy.special\ncupyx.scipy.special.erf(x)", []),
        ("import cupy.cuda\ncupy.cuda.runtime.getDeviceCount()", []),
        ("cupy = None\ncupy.errstate, np.errstate, self.xp.errstate", []),
    ],
)
def test_missing_names_finds_them(source, expected):
    assert missing_names(source) == expected


def test_the_fake_has_no_name_that_cupy_lacks():
    import fake_cupy

    for name, module in fake_cupy.make_modules().items():
        prefix = "" if name == "cupy" else name.removeprefix("cupy.") + "."
        if name.startswith("cuda"):
            continue  # not CuPy's: it comes with it
        public = {prefix + key for key in vars(module) if not key.startswith("_")}
        assert public - {"cupyx.scipy"} <= NAMES
