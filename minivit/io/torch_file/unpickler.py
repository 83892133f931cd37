"""A reader of pickles that cannot run code: it implements only the opcodes that build data.

Python's Unpickler, even with another `find_class`, calls methods of the built objects by name, lets one opcode allocate
gigabytes for its memo, and follows extension codes. Here the file's size bounds memory and time.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, NoReturn

from minivit.io.text import quoted
from minivit.io.torch_file.bounds import DAMAGED, Source, Unreadable, check
from minivit.io.torch_file.globals import PLAIN, Attributes, Named, NumpyArray, NumpyType, check_keys
from minivit.io.torch_file.tensors import TORCH

MAX_OPCODES = 500_000  # a tensor takes about 35, so a ViT-g with the state of its optimizer takes 70,000
MAX_TEXT = 1 << 26  # bytes of all text together: 64 MiB
MAX_INT = 128  # bytes of an integer; the longest that torch writes has 10
MAX_ARGUMENTS = 16
COPIES = 4  # bytes copied for each byte read, and items for each opcode: what programs write stays below 2

ADMITTED = {**PLAIN, **TORCH}
_REMEDY = "If you trust it, load it with PyTorch and save only its tensors: torch.save(model.state_dict(), path)"
# their names in Python 2, which pickle protocol 2 keeps
_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_NAMES = {"builtins.long": "builtins.int", "builtins.unicode": "builtins.str"}

_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
_EMPTY: dict[bytes, Callable[[], Any]] = {b")": tuple, b"]": list, b"}": dict, b"\x8f": set}
_NUMBERS = {b"K": "<B", b"M": "<H", b"J": "<i", b"G": ">d"}
_LONGS = {b"\x8a": "<B", b"\x8b": "<i"}
_TEXTS = {b"\x8c": "<B", b"X": "<I", b"\x8d": "<Q"}
_OLD_TEXTS = {b"U": "<B", b"T": "<i"}
_BYTES = {b"C": "<B", b"B": "<I", b"\x8e": "<Q", b"\x96": "<Q"}
_PUTS = {b"q": "<B", b"r": "<I"}
_GETS = {b"h": "<B", b"j": "<I"}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_REFUSED = {
    b"\x82": "an extension code",
    b"\x83": "an extension code",
    b"\x84": "an extension code",
    b"\x92": "a class with keyword arguments",
    b"\x97": "a buffer outside the file",
    b"\x98": "a buffer outside the file",
    b"P": "an object outside the file, by a line of text",
    b"o": "an instance of a class, as Python 2 wrote it",
    **dict.fromkeys([b"0", b"2", b"F", b"L", b"S", b"V", b"d", b"g", b"l", b"p"], "pickle protocol 0 or 1"),
}


class Unpickler:
    """Reads one pickle. `persistent(identity)` returns objects outside it: PyTorch's storages.

    The result still holds Tensor, Storage, Named, Attributes and NumPy placeholders.
    """

    def __init__(self, source: Source, persistent: Callable[[Any], Any]) -> None:
        self._source, self._persistent = source, persistent
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []  # the stacks below each MARK
        self._memo: dict[int, Any] = {}
        self._opcodes = self._text = self._bytes_copied = self._items_copied = 0
        self._start = source.position

    def load(self) -> Any:
        """The object; afterwards the source is positioned after it."""
        source, start = self._source, self._start
        try:
            while (code := source.take(1)) != b".":
                self._opcodes += 1
                if self._opcodes > MAX_OPCODES:
                    raise Unreadable(f"holds more than {MAX_OPCODES} steps of plain data. {_REMEDY}")
                handler = _HANDLERS.get(code)
                if handler is None:
                    self._unknown(code)
                handler(self, code)
            (result,) = self._stack
            check(not self._marked, f"has an unfinished pickle at byte {start}: {DAMAGED}")
        # raised for a damaged pickle: too few objects on the stack, no such memo, or objects of the wrong type
        except (LookupError, TypeError, ValueError, OverflowError, struct.error) as error:
            raise Unreadable(
                f"makes no sense before byte {source.position} ({type(error).__name__} in its pickle): {DAMAGED}"
            ) from None
        return result

    # --- opcodes, each named as in the module pickletools ---

    def _proto(self, code: bytes) -> None:
        version = self._unpack("<B")
        check(2 <= version <= 5, f"has pickle protocol {version}, expected 2 to 5: save it again")

    def _frame(self, code: bytes) -> None:
        self._source.take(8)  # the length of the following frame, for readers that prefetch it

    def _constant(self, code: bytes) -> None:
        self._stack.append(_CONSTANTS[code])

    def _empty(self, code: bytes) -> None:
        self._stack.append(_EMPTY[code]())

    def _number(self, code: bytes) -> None:
        self._stack.append(self._unpack(_NUMBERS[code]))

    def _long(self, code: bytes) -> None:
        size = self._unpack(_LONGS[code])
        check(0 <= size <= MAX_INT, f"holds an integer of {size} bytes, expected at most {MAX_INT}: {DAMAGED}")
        self._stack.append(int.from_bytes(self._source.take(size), "little", signed=True))

    def _int(self, code: bytes) -> None:
        """INT, by which Python 2 wrote integers of more than 32 bits."""
        line = self._source.line()
        check(re.fullmatch(rb"-?[0-9]{1,256}", line), f"holds text that is not an integer: {DAMAGED}")
        self._stack.append({b"00": False, b"01": True}.get(line, int(line)))

    def _string(self, code: bytes) -> None:
        self._stack.append(str(self._characters(_TEXTS[code]), "utf-8", "surrogatepass"))

    def _old_string(self, code: bytes) -> None:
        """BINSTRING, in which Python 2 wrote both text and bytes."""
        data = self._characters(_OLD_TEXTS[code])
        try:
            self._stack.append(str(data, "utf-8"))
        except UnicodeDecodeError:
            self._stack.append(data)

    def _byte_string(self, code: bytes) -> None:
        data = self._source.take(self._unpack(_BYTES[code]))
        if code == b"\x96":
            self._copy(data)
        self._stack.append(bytearray(data) if code == b"\x96" else data)

    def _mark(self, code: bytes) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop_mark(self, code: bytes) -> None:
        self._since_mark()

    def _tuple(self, code: bytes) -> None:
        items = tuple(self._since_mark())  # which changes the stack
        self._stack.append(items)

    def _short_tuple(self, code: bytes) -> None:
        count = _TUPLES[code]
        items = tuple(self._stack[-count:])
        check(len(items) == count, f"ends a tuple before it has begun: {DAMAGED}")
        self._stack[-count:] = [items]

    def _append(self, code: bytes) -> None:
        item = self._stack.pop()
        self._top(list).append(item)

    def _appends(self, code: bytes) -> None:
        items = self._since_mark()
        self._top(list).extend(items)

    def _add_items(self, code: bytes) -> None:
        items = self._since_mark()
        check_keys(items)
        self._top(set).update(items)

    def _frozen_set(self, code: bytes) -> None:
        items = self._since_mark()
        check_keys(items)
        self._stack.append(frozenset(items))

    def _set_item(self, code: bytes) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_all([key, value])

    def _set_items(self, code: bytes) -> None:
        self._set_all(self._since_mark())

    def _put(self, code: bytes) -> None:
        self._memo[self._unpack(_PUTS[code])] = self._stack[-1]

    def _memoize(self, code: bytes) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, code: bytes) -> None:
        self._stack.append(self._memo[self._unpack(_GETS[code])])

    def _global(self, code: bytes) -> None:
        self._stack.append(_find(str(self._source.line(), "utf-8"), str(self._source.line(), "utf-8")))

    def _stack_global(self, code: bytes) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        check(type(name) is str and type(module) is str, f"names {quoted(name)} as a class: {DAMAGED}")
        self._stack.append(_find(module, name))

    def _inst(self, code: bytes) -> None:
        named = _find(str(self._source.line(), "utf-8"), str(self._source.line(), "utf-8"))
        raise Unreadable(f"has an instance of {named.name} as Python 2 wrote it: it was refused. {_REMEDY}")

    def _reduce(self, code: bytes) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        check(type(args) is tuple and len(args) <= MAX_ARGUMENTS, f"calls something with no arguments: {DAMAGED}")
        if not isinstance(function, Named) or function.make is None:
            what = function.name if isinstance(function, Named) else quoted(function)
            raise Unreadable(f"calls {what}, which is not a function: it was refused. {_REMEDY}")
        self._copy(*args)
        self._stack.append(function.make(*args))

    def _new_object(self, code: bytes) -> None:
        args, cls = self._stack.pop(), self._stack.pop()
        if not isinstance(cls, Named) or cls.new is None or type(args) is not tuple or args:
            what = cls.name if isinstance(cls, Named) else quoted(cls)
            raise Unreadable(f"makes an instance of {what}: it was refused. {_REMEDY}")
        self._stack.append(cls.new())

    def _build(self, code: bytes) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if type(target) is dict:
            return  # attributes of a dict: the versions in `_metadata`, or whether a CfgNode is frozen
        if not isinstance(target, (Attributes, NumpyType, NumpyArray)):
            raise Unreadable(f"sets attributes of {quoted(target)}: it was refused. {_REMEDY}")
        self._copy(state, *(state if type(state) is tuple and len(state) <= MAX_ARGUMENTS else ()))
        target.build(state)

    def _persistent_object(self, code: bytes) -> None:
        self._stack.append(self._persistent(self._stack.pop()))

    # --- common parts ---

    def _unpack(self, form: str) -> Any:
        return struct.unpack(form, self._source.take(struct.calcsize(form)))[0]

    def _characters(self, form: str) -> bytes:
        size = self._unpack(form)
        self._text += max(size, 0)
        check(self._text <= MAX_TEXT, f"claims to hold more than {MAX_TEXT} bytes of text. {_REMEDY}")
        return self._source.take(size)

    def _since_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _top(self, kind: type) -> Any:
        target = self._stack[-1]
        check(type(target) is kind, f"adds to {quoted(target)} as if it were a {kind.__name__}: {DAMAGED}")
        return target

    def _set_all(self, items: list[Any]) -> None:
        target = self._stack[-1]
        check(type(target) in (dict, Attributes), f"adds to {quoted(target)} as if it were a dict: {DAMAGED}")
        check(len(items) % 2 == 0, f"holds a key without a value: {DAMAGED}")
        check_keys(items[::2])
        target.update(zip(items[::2], items[1::2]))

    def _copy(self, *values: Any) -> None:
        """Count items before they are copied: three bytes of a pickle can request a copy of all previous ones."""
        self._bytes_copied += sum(len(value) for value in values if type(value) in (str, bytes, bytearray))
        self._items_copied += sum(len(value) for value in values if type(value) in (tuple, list, dict))
        too_many = self._items_copied > COPIES * self._opcodes
        if too_many or self._bytes_copied > COPIES * (self._source.position - self._start):
            raise Unreadable(f"requests copies of copies, which no program writes: it was refused. {_REMEDY}")

    def _unknown(self, code: bytes) -> NoReturn:
        what = _REFUSED.get(code)
        where = f"at byte {self._source.position - 1}"
        if what is None:
            raise Unreadable(f"makes no sense {where}: {code.hex()} is no opcode: {DAMAGED}")
        raise Unreadable(f"uses {what} {where}: it was refused, and nothing in it was run. {_REMEDY}")


def _find(module: str, name: str) -> Named:
    module = _MODULES.get(module, module)
    if module.startswith("numpy.core."):  # its name before NumPy 2
        module = module.replace("numpy.core.", "numpy._core.", 1)
    found = ADMITTED.get(_NAMES.get(f"{module}.{name}", f"{module}.{name}"))
    if found is None:
        raise Unreadable(
            f"names {quoted(f'{module}.{name}')[1:-1]}, which is neither a tensor nor plain data: the file was "
            f"refused, and nothing in it was run. {_REMEDY}"
        )
    return found


_HANDLERS: dict[bytes, Callable[[Unpickler, bytes], None]] = {
    **dict.fromkeys(_CONSTANTS, Unpickler._constant),
    **dict.fromkeys(_EMPTY, Unpickler._empty),
    **dict.fromkeys(_NUMBERS, Unpickler._number),
    **dict.fromkeys(_LONGS, Unpickler._long),
    **dict.fromkeys(_TEXTS, Unpickler._string),
    **dict.fromkeys(_OLD_TEXTS, Unpickler._old_string),
    **dict.fromkeys(_BYTES, Unpickler._byte_string),
    **dict.fromkeys(_PUTS, Unpickler._put),
    **dict.fromkeys(_GETS, Unpickler._get),
    **dict.fromkeys(_TUPLES, Unpickler._short_tuple),
    b"\x80": Unpickler._proto,
    b"\x95": Unpickler._frame,
    b"I": Unpickler._int,
    b"(": Unpickler._mark,
    b"1": Unpickler._pop_mark,
    b"t": Unpickler._tuple,
    b"a": Unpickler._append,
    b"e": Unpickler._appends,
    b"\x90": Unpickler._add_items,
    b"\x91": Unpickler._frozen_set,
    b"s": Unpickler._set_item,
    b"u": Unpickler._set_items,
    b"\x94": Unpickler._memoize,
    b"c": Unpickler._global,
    b"\x93": Unpickler._stack_global,
    b"i": Unpickler._inst,
    b"R": Unpickler._reduce,
    b"\x81": Unpickler._new_object,
    b"b": Unpickler._build,
    b"Q": Unpickler._persistent_object,
}
