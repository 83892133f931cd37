"""The package as a whole: what an import costs, what it exports, and rules that every file keeps."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import os
import pkgutil
import subprocess
import symtable
import sys
from pathlib import Path

import pytest

import minivit

PACKAGE = Path(minivit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MODULES = ["minivit", *(info.name for info in pkgutil.walk_packages([str(PACKAGE)], "minivit."))]
# modules that need what is not installed with the package
OPTIONAL = {"minivit.fast.cupy", "minivit.fast.cupy.norm", "minivit.sklearn", "minivit.strategies"}


def run(code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_import_loads_numpy_and_nothing_else():
    loaded = set(run("import sys, minivit; print(*sys.modules)").split())
    assert "numpy" in loaded and "minivit.models.vit" in loaded
    heavy = "cupy torch matplotlib tqdm hypothesis pooch PIL mlxtend scipy pandas sklearn safetensors threadpoolctl"
    assert not loaded & {*heavy.split(), "huggingface_hub"}
    with_numpy = set(run("import sys, numpy; print(*sys.modules)").split())  # some versions load numpy.random
    slow = {"difflib", "html", "numpy.random"}  # which only errors, notebooks and seeds need
    assert not loaded & (slow - with_numpy)


def test_training_and_report_import_alone():
    loaded = set(run("import sys, minivit.train, minivit.train.report; print(*sys.modules)").split())
    assert not loaded & {"matplotlib", "tqdm", "cupy", "torch"}


def test_every_module_is_reachable_once_the_package_is_imported():
    """By its dotted name, and only then imported: `minivit.explain.grad_cam` needs no import of its own."""
    beside = {info.name for info in pkgutil.iter_modules([str(PACKAGE)])} - {"__main__", "summary"}
    assert beside <= {*minivit._MODULES, *minivit._NEED_MORE}
    assert {f"minivit.{name}" for name in minivit._NEED_MORE} <= OPTIONAL
    late = sorted(beside - set(minivit._NEED_MORE))
    code = f"""
import sys, minivit
assert not {{"minivit.explain", "minivit.draw", "minivit.train", "minivit.programs"}} & set(sys.modules)
for name in {late}:
    assert name in dir(minivit), name
    assert getattr(minivit, name) is sys.modules["minivit." + name], name
print(minivit.explain.grad_cam.__name__, minivit.train.fit.__name__, minivit.summary.__name__)
"""
    assert run(code).split() == ["grad_cam", "fit", "summary"]


@pytest.mark.parametrize("name", sorted(set(MODULES) - OPTIONAL))
def test_every_module_imports_and_has_the_names_in_its_all(name):
    module = importlib.import_module(name)
    assert module.__doc__, "no docstring"
    exported = getattr(module, "__all__", [])
    assert len(set(exported)) == len(exported)
    for word in exported:
        assert hasattr(module, word), word


def test_the_version_is_the_packages():
    assert minivit.__version__.count(".") == 2 and all(part.isdigit() for part in minivit.__version__.split(".")[:2])
    config = configparser.ConfigParser()
    if not config.read(PACKAGE.parent / "setup.cfg"):
        pytest.skip("an installed package has no setup.cfg")
    stated = config["metadata"]["version"]
    if stated.startswith("attr:"):
        module, _, attribute = stated.removeprefix("attr:").strip().rpartition(".")
        stated = getattr(importlib.import_module(module), attribute)
    assert stated == minivit.__version__


def test_the_package_says_that_it_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def public_things():
    for name in sorted(set(MODULES) - OPTIONAL):
        module = importlib.import_module(name)
        for word, thing in vars(module).items():
            defined_here = getattr(thing, "__module__", None) == name
            if not word.startswith("_") and defined_here and (inspect.isclass(thing) or inspect.isfunction(thing)):
                yield f"{name}.{word}", thing


def test_every_public_class_and_function_has_a_docstring():
    things = dict(public_things())
    assert len(things) > 80
    # three lines that say less in words than in code
    allowed = {"minivit.nn.init.zeros", "minivit.nn.init.ones"}
    # what check_<name> refuses is said by <name>'s own documentation
    things = {name: thing for name, thing in things.items() if not name.rpartition(".")[2].startswith("check_")}
    bare = [name for name, thing in things.items() if not (thing.__doc__ or "").strip() and name not in allowed]
    assert not bare


# --- rules of the source ---


def calls(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("file", [file for file in TREES if not file.startswith("data/")])
def test_new_arrays_say_their_dtype(file):
    """np.zeros(n) is float64 whatever the model is, and turns a float32 computation into float64 without a word."""
    for call in calls(TREES[file]):
        function = call.func
        if isinstance(function, ast.Attribute) and function.attr in ("zeros", "ones", "empty"):
            named = any(keyword.arg == "dtype" for keyword in call.keywords)
            assert named or len(call.args) > 1, f"{file}:{call.lineno}: {ast.unparse(call)}"
        if isinstance(function, ast.Attribute) and function.attr in ("full", "eye"):
            named = any(keyword.arg == "dtype" for keyword in call.keywords)
            positional = function.attr == "full" and len(call.args) > 2
            assert named or positional, f"{file}:{call.lineno}: {ast.unparse(call)}"


def imported(tree):
    """(module, line) of every import, those inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1
            module = node.module or ""
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.mark.parametrize("file", TREES)
def test_only_two_folders_import_cupy_and_none_imports_torch(file):
    roots = {module.split(".")[0] for module, _ in imported(TREES[file])}
    assert file == "device.py" or file.startswith("fast/cupy/") or "cupy" not in roots
    assert not roots & {"torch", "jax", "tensorflow", "scipy"}


FLOORS = [
    {"protocol", "argument_checks", "version", "renamed", "sizes", "tables", "fork"},
    {"device"},
    {"random"},
    {"io"},
    {"fast"},  # the choice, threads, BLAS, memory
    {"functional"},
    {"fast.numpy", "fast.cupy"},  # the replacements stand on the formulas; the choice loads them at the first call
    {"nn"},
    {"models"},
    {"inference", "optim", "data", "gradcheck", "summary", "strategies", "observe"},
    {"parallel"},
    {"draw", "explain", "pretrained", "distributed"},
    {"train"},
    {"sklearn", "publish", "lab"},
    {"programs"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}


def room_of(module):
    """The name in FLOORS that a module belongs to; None for a name of the package itself, such as minivit.plain."""
    parts = module.split(".")[1:3]
    return next((name for name in (".".join(parts), *parts[:1]) if name in FLOOR), None)


def module_of(file):
    return "minivit." + file.removesuffix(".py").replace("/", ".")


def wrong_imports(file, tree):
    """What a file imports from its own floor or one above, but not from its own package."""
    room = room_of(module_of(file))
    for module, line in imported(tree):
        other = room_of(module) if module.split(".")[0] == "minivit" else None
        if other not in (None, room) and FLOOR[other] >= FLOOR[room]:
            yield f"{file}:{line} imports {module}"


def private_imports(file, tree):
    """What a file imports from another package by a private name."""
    for module, line in imported(tree):
        name = module.rpartition(".")[2]
        if (
            name.startswith("_")
            and not name.startswith("__")
            and room_of(module) not in (None, room_of(module_of(file)))
        ):
            yield f"{file}:{line} imports {module}"


@pytest.mark.parametrize("file", [file for file in TREES if file != "__init__.py"])
def test_a_floor_stands_only_on_those_below(file):
    assert not list(wrong_imports(file, TREES[file]))
    assert not list(private_imports(file, TREES[file]))


@pytest.mark.parametrize("file", [file for file in TREES if not file.startswith(("fast/numpy/", "fast/cupy/"))])
def test_only_the_choice_knows_the_replacements(file):
    modules = {module for module, _ in imported(TREES[file]) if module.split(".")[0] == "minivit"}
    used = {  # what replaces no formula: a recorded step, and messages between GPUs
        "parallel/captured_step.py": "minivit.fast.cupy.capture",
        "parallel/recorded_update.py": "minivit.fast.cupy.parameters",
        "distributed/gpus.py": "minivit.fast.cupy.nccl",
    }.get(file)
    if used is not None:  # `from minivit.fast.cupy import nccl` imports the package, and the module in it
        modules = {module for module in modules if not module.startswith(used) and module != "minivit.fast.cupy"}
    if file.startswith("inference/"):  # a form of the network for the CPU alone, which works in place
        modules = {module for module in modules if not module.startswith("minivit.fast.numpy")}
    assert not {room_of(module) for module in modules} & {"fast.numpy", "fast.cupy"}


def test_these_rules_can_fail():
    for file, source in (
        ("functional/norm.py", "from minivit.fast.numpy import norm"),
        ("functional/norm.py", "from minivit.nn.basic import Linear"),
        ("fast/blocks.py", "from minivit import functional as F"),
        ("fast/cupy/norm.py", "import minivit.fast.numpy.norm"),
        ("nn/basic.py", "def f():\n    from minivit.models import ViT"),
        ("parallel/data_parallel.py", "from minivit.distributed import Ranks"),
    ):
        assert list(wrong_imports(file, ast.parse(source))), source
    assert list(private_imports("nn/basic.py", ast.parse("from minivit.functional.windows import _cut")))
    for file, source in (
        ("fast/numpy/norm.py", "from minivit.functional.norm import by_channel"),
        ("fast/numpy/norm.py", "from minivit.fast.dispatch import Replacement"),
        ("functional/norm.py", "from minivit.functional.linear import _rows\nfrom minivit import plain"),
    ):
        assert not [*wrong_imports(file, ast.parse(source)), *private_imports(file, ast.parse(source))], source


def test_every_file_has_a_floor():
    assert {room_of(module_of(file)) for file in TREES if file != "__init__.py"} == set(FLOOR)


def bindings(function, name):
    """Lines of a function's own body (not of functions inside it) on which a name is bound."""
    found, stack = [], list(function.body)
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if node.name == name:
                found.append(node.lineno)
            continue
        if isinstance(node, (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            continue  # scopes of their own
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, (ast.Store, ast.Del)):
            found.append(node.lineno)
        stack.extend(ast.iter_child_nodes(node))
    return found


def inner_functions(function):
    """(function or lambda directly inside, the loops around it)."""
    stack = [(node, ()) for node in function.body]
    while stack:
        node, loops = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            yield node, loops
            continue
        inside = (*loops, node) if isinstance(node, (ast.For, ast.While)) else loops
        stack.extend((child, inside) for child in ast.iter_child_nodes(node))


def is_way_back(node):
    if isinstance(node, ast.Lambda):
        return True
    decorated = any(isinstance(d, ast.Name) and d.id == "once" for d in node.decorator_list)
    return decorated or node.name.startswith(("back", "vjp"))


def free_names(source, file):
    """(first line, name) of every function -> the names it takes from the functions around it."""
    found, stack = {}, [symtable.symtable(source, file, "exec")]
    while stack:
        table = stack.pop()
        if table.get_type() == "function":
            found.setdefault((table.get_lineno(), table.get_name()), set()).update(table.get_frees())
        stack.extend(table.get_children())
    return found


def rebound_captures(source, file="code"):
    """A closure sees a name's last value, not the one at its definition: what it captures must not change after."""
    tree, free, problems, ways_back = ast.parse(source), free_names(source, file), [], 0
    for outer in ast.walk(tree):
        if not isinstance(outer, ast.FunctionDef):
            continue
        for inner, loops in inner_functions(outer):
            if not is_way_back(inner):
                continue
            ways_back += 1
            # with decorators, symtable gives the first decorator's line on Python 3.8 and later's def line: try both
            lines = {inner.lineno, *(d.lineno for d in getattr(inner, "decorator_list", []))}
            name = getattr(inner, "name", "lambda")
            captured = set().union(*(free.get((line, name), set()) for line in lines))
            for word in captured:
                late = [line for line in bindings(outer, word) if line > inner.end_lineno]
                around = [
                    line for line in bindings(outer, word) if any(x.lineno <= line <= x.end_lineno for x in loops)
                ]
                if late or (around and isinstance(inner, ast.FunctionDef)):
                    problems.append(f"{file}:{inner.lineno}: {word} is bound again on lines {late + around}")
    return problems, ways_back


@pytest.mark.parametrize("file", TREES)
def test_what_a_way_back_captures_is_never_bound_again(file):
    problems, _ = rebound_captures((PACKAGE / file).read_text(encoding="utf-8"), file)
    assert not problems


def test_that_rule_can_fail():
    source = """
def forward(x):
    y = x * 2

    @once
    def back(dy):
        return dy * x

    {}
    return y, back
"""
    for line in ("x = 3", "x += 1", "(x, z) = 1, 2", "for x in y: pass", "z = (x := 4)", "with y as x: pass"):
        assert rebound_captures(source.format(line))[0], line
    for line in ("z = 3", "y = 4", "z = [x for x in y]"):
        assert rebound_captures(source.format(line)) == ([], 1), line


def test_the_rule_sees_the_ways_back():
    total = sum(rebound_captures(path.read_text(encoding="utf-8"))[1] for path in FILES)
    assert total > 40
