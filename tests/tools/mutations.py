"""The mutants of a source file: one small change each, as a programmer may make by mistake.

Not changed are strings, types, decorators, imports, assertions, the words of an error, and the order of what is only
looked up: nothing is computed there.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator
from dataclasses import dataclass

# by class of the syntax tree: how it is written, and what is written instead
OPERATORS: dict[type[ast.operator], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
}
COMPARISONS: dict[type[ast.cmpop], tuple[str, str]] = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.In: ("in", "not in"),
    ast.Is: ("is", "is not"),
}
_PAIRS = (
    ("maximum", "minimum"),
    ("max", "min"),
    ("argmax", "argmin"),
    ("sum", "mean"),
    ("zeros", "ones"),
    ("zeros_like", "ones_like"),
    ("any", "all"),
    ("sin", "cos"),
    ("floor", "ceil"),
)
TYPES = {"dict", "list", "set", "tuple", "Callable", "Iterator", "Mapping"}  # dict[str, Array], an alias
SYMMETRIC = {"max", "min", "maximum", "minimum", "multiply", "swapaxes"}  # whose arguments may stand in any order
FUNCTIONS = {name: other for pair in _PAIRS for name, other in (pair, pair[::-1])}


@dataclass(frozen=True)
class Mutant:
    """`text` in place of the bytes from `start` to `stop` of the file at `path`; `line` is where they start."""

    path: str
    line: int
    kind: str
    start: int
    stop: int
    text: str

    def applied(self, source: str) -> str:
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.stop :]).decode()

    def diff(self, source: str) -> str:
        """The changed lines, before and after, without what stands around them."""
        lines = difflib.unified_diff(source.splitlines(), self.applied(source).splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))

    def is_another_program(self, source: str) -> bool:
        """Whether it parses, and to something else than the file itself."""
        try:
            return ast.dump(ast.parse(self.applied(source))) != ast.dump(ast.parse(source))
        except SyntaxError:
            return False


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines; a few may not parse, see `is_another_program`."""
    found = {(each.start, each.stop, each.text): each for each in _Finder(path, source).visit_all(ast.parse(source))}
    return [found[key] for key in sorted(found)]


def lines_around(source: str, line: int) -> Iterator[range]:
    """Where to look for the tests of a line: it, its statement, the function that it opens.

    What runs on import, outside of all functions, may have an effect anywhere in its class or file.
    """
    yield range(line, line + 1)
    around = [each for each in ast.walk(ast.parse(source)) if isinstance(each, ast.stmt) and line in _lines(each)]
    for node in sorted(around, key=lambda node: len(_lines(node))):
        body = getattr(node, "body", None)
        opens = body is not None and line < body[0].lineno
        if body is None or opens:
            yield range(node.lineno, body[0].lineno) if opens else _lines(node)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and line not in lines_in_functions(source):
            yield _lines(node)
    if line not in lines_in_functions(source):
        yield range(1, source.count("\n") + 2)


def lines_in_functions(source: str) -> set[int]:
    """The lines that do not run on import."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    return {line for node in functions for line in range(node.body[0].lineno, _lines(node).stop)}


def _lines(node: ast.stmt) -> range:
    return range(node.lineno, (node.end_lineno or node.lineno) + 1)


class _Finder:
    def __init__(self, path: str, source: str) -> None:
        self.path, self.data = path, source.encode()
        self.starts = [0]  # of the lines, in bytes, as the syntax tree counts
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line.encode()))
        self.excluded = {number for number, line in enumerate(source.splitlines(), 1) if "pragma: no cover" in line}

    def span(self, node: ast.AST) -> tuple[int, int]:
        start = self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        stop = self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return start, stop

    def text(self, node: ast.AST) -> str:
        start, stop = self.span(node)
        return self.data[start:stop].decode()

    def put(self, kind: str, start: int, stop: int, text: str) -> Mutant:
        line = next(number for number, first in enumerate(self.starts) if first > start)
        return Mutant(self.path, line, kind, start, stop, text)

    def replace(self, kind: str, node: ast.AST, text: str) -> Mutant:
        return self.put(kind, *self.span(node), text)

    def swap(self, kind: str, left: ast.AST, right: ast.AST) -> Iterator[Mutant]:
        (start, middle), (other, stop) = self.span(left), self.span(right)
        between = self.data[middle:other].decode()
        yield self.put(kind, start, stop, self.text(right) + between + self.text(left))

    def symbol(self, kind: str, left: ast.AST, right: ast.AST, old: str, new: str) -> Iterator[Mutant]:
        """Another operator between two operands."""
        start, stop = self.span(left)[1], self.span(right)[0]
        at = self.data[start:stop].find(old.encode())
        if at >= 0:
            yield self.put(kind, start + at, start + at + len(old), new)

    def visit_all(self, node: ast.AST) -> Iterator[Mutant]:
        if getattr(node, "lineno", None) in self.excluded or _is_left_out(node):
            return
        yield from getattr(self, "visit_" + type(node).__name__, self.nothing)(node)
        if isinstance(node, ast.stmt):
            yield from self.dropped(node)
        for child in _children(node):
            yield from self.visit_all(child)

    def nothing(self, node: ast.AST) -> Iterator[Mutant]:
        yield from ()

    def dropped(self, node: ast.stmt) -> Iterator[Mutant]:
        """A statement that only has an effect; without an assignment to a name, the next line would fail."""
        stores = isinstance(node, ast.Assign) and isinstance(node.targets[0], (ast.Attribute, ast.Subscript))
        if stores or isinstance(node, (ast.Expr, ast.AugAssign, ast.Raise, ast.Continue, ast.Break, ast.Delete)):
            yield self.replace("statement", node, "pass")

    def visit_BinOp(self, node: ast.BinOp) -> Iterator[Mutant]:
        if type(node.op) in OPERATORS:
            yield from self.symbol("operator", node.left, node.right, *OPERATORS[type(node.op)])
            yield self.replace("operand", node, self.text(node.left))
            if not isinstance(node.op, ast.Pow):
                yield self.replace("operand", node, self.text(node.right))

    def visit_AugAssign(self, node: ast.AugAssign) -> Iterator[Mutant]:
        if type(node.op) in OPERATORS:
            old, new = OPERATORS[type(node.op)]
            yield from self.symbol("operator", node.target, node.value, old + "=", new + "=")

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Iterator[Mutant]:
        yield self.replace("sign", node, self.text(node.operand))

    def visit_Compare(self, node: ast.Compare) -> Iterator[Mutant]:
        for left, operator, right in zip((node.left, *node.comparators), node.ops, node.comparators):
            if type(operator) in COMPARISONS:
                yield from self.symbol("comparison", left, right, *COMPARISONS[type(operator)])

    def visit_BoolOp(self, node: ast.BoolOp) -> Iterator[Mutant]:
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        for left, right in zip(node.values, node.values[1:]):
            yield from self.symbol("condition", left, right, old, new)

    def condition(self, node: ast.If | ast.While | ast.IfExp) -> Iterator[Mutant]:
        yield self.replace("condition", node.test, f"(not ({self.text(node.test)}))")

    visit_If = visit_While = visit_IfExp = condition

    def visit_comprehension(self, node: ast.comprehension) -> Iterator[Mutant]:
        for test in node.ifs:
            yield self.replace("condition", test, f"(not ({self.text(test)}))")

    def visit_Constant(self, node: ast.Constant) -> Iterator[Mutant]:
        value = node.value
        if isinstance(value, bool):
            yield self.replace("constant", node, str(not value))
        elif isinstance(value, int):
            for other in {value + 1, max(value - 1, 0)}:
                yield self.replace("constant", node, str(other))
        elif isinstance(value, float):
            yield self.replace("constant", node, repr(2 * value if value else 1.0))

    def visit_Slice(self, node: ast.Slice) -> Iterator[Mutant]:
        for bound in (node.lower, node.upper):
            if bound is not None:
                yield self.replace("slice", bound, "")
                if not isinstance(bound, ast.Constant):
                    yield self.replace("slice", bound, f"{self.text(bound)} + 1")
                    yield self.replace("slice", bound, f"{self.text(bound)} - 1")

    def visit_Call(self, node: ast.Call) -> Iterator[Mutant]:
        if not any(isinstance(each, ast.Starred) for each in node.args) and _name(node.func) not in SYMMETRIC:
            for left, right in zip(node.args, node.args[1:]):
                yield from self.swap("arguments", left, right)
        for keyword in node.keywords:
            if keyword.arg is not None:
                start, stop = self.span(keyword)
                start = len(self.data[:start].rstrip())
                yield self.put("keyword", start - (self.data[start - 1 : start] == b","), stop, "")

    def visit_Tuple(self, node: ast.Tuple) -> Iterator[Mutant]:
        if isinstance(node.ctx, ast.Load) and not any(isinstance(each, ast.Starred) for each in node.elts):
            for left, right in zip(node.elts, node.elts[1:]):
                yield from self.swap("order", left, right)

    def visit_Attribute(self, node: ast.Attribute) -> Iterator[Mutant]:
        if node.attr in FUNCTIONS:
            stop = self.span(node)[1]
            yield self.put("function", stop - len(node.attr), stop, FUNCTIONS[node.attr])

    def visit_Name(self, node: ast.Name) -> Iterator[Mutant]:
        if node.id in ("max", "min", "any", "all"):
            yield self.replace("function", node, FUNCTIONS[node.id])


def _is_left_out(node: ast.AST) -> bool:
    if isinstance(node, (ast.Assert, ast.Import, ast.ImportFrom, ast.JoinedStr)):
        return True
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.Call) and _name(node.func) == "isinstance":
        return True
    if isinstance(node, ast.Subscript) and _name(node.value) in TYPES:
        return True
    if isinstance(node, ast.Assign) and _name(node.targets[0]) in ("__all__", "__slots__"):
        return True
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _children(node: ast.AST) -> Iterator[ast.AST]:
    left_out = {"annotation", "returns", "decorator_list"}
    if isinstance(node, ast.Compare) and isinstance(node.ops[0], (ast.In, ast.NotIn)):
        left_out |= {"comparators"}
    if isinstance(node, ast.Raise):
        left_out |= {"exc", "cause"}
    for name, value in ast.iter_fields(node):
        if name not in left_out:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield child
