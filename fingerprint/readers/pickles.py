"""A pickle read as data: the opcodes build inert descriptions, and nothing is imported, called or executed.

Every opcode up to protocol 5 is known. ``GLOBAL`` and its kin give a ``Global``, a name and no more; ``REDUCE``,
``INST``, ``OBJ``, ``NEWOBJ`` and ``NEWOBJ_EX`` give a ``Call``, the note that the pickle asks for a call; ``BUILD``
notes a state; persistent ids and extension codes are kept as they are. What the descriptions mean is up to the caller,
who knows a closed list of names. Opcodes, memory, line lengths and integers are bounded. Dicts become lists of pairs,
so that nothing hostile is ever hashed. Long strings stay where they are: a ``Blob`` says where, so that a pickle of any
size is read in little memory.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any, Final, NoReturn

from msgspec import Struct, field

from fingerprint.errors import LimitExceededError, MalformedFileError, clipped
from fingerprint.source import MemorySource

if TYPE_CHECKING:
    from collections.abc import Callable

    from fingerprint.source import Source

MAX_OPCODES = 2**21
MAX_MEMORY = 96 << 20
"""Most bytes, by estimate, that what a pickle builds may take."""
MAX_LINE = 4096
"""Most bytes of an argument that is a line of text."""
MAX_INTEGER = 255
"""Most bytes of an integer."""
MAX_INLINE = 1 << 14
"""Most bytes of a string that is taken out of the file."""
_CHUNK = 1 << 16


class Global(Struct, frozen=True):
    """The name of something importable; never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Call(Struct, eq=False):
    """The wish that ``function`` be called; never granted.

    ``state``, ``pairs`` and ``items`` are what the pickle puts into the result afterwards.
    """

    function: Any
    arguments: Any
    keywords: Any = None
    state: Any = None
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)


class Pairs(Struct, eq=False):
    """A dict, in the order of its insertions, duplicates included."""

    pairs: list[tuple[Any, Any]]


class Persistent(Struct, frozen=True, eq=False):
    """A persistent id: what it stands for is kept outside the pickle."""

    key: Any


class Blob(Struct, frozen=True, eq=False):
    """A long string, left in the file: ``length`` bytes at ``offset``, which are text in UTF-8 if ``encoded``."""

    source: Source
    offset: int
    length: int
    encoded: bool


class Pickle(Struct, frozen=True):
    """What a pickle describes: its ``root``, every ``Global`` it names, and the position ``end`` behind it.

    ``persistents`` are all persistent ids, in order; ``memory``: bytes, by estimate, that all this takes.
    """

    root: Any
    globals: tuple[Global, ...]
    end: int
    memory: int
    persistents: tuple[Persistent, ...] = ()


class _Mark:
    """The mark on the stack."""


_MARK: Final = _Mark()
_DECIMAL: Final = re.compile(rb"[+-]?[0-9]{1,614}")
"""An integer in text, of no more digits than ``MAX_INTEGER`` bytes have."""


def read_pickle(data: bytes, path: str, start: int = 0) -> Pickle:
    """The pickle in ``data`` from position ``start`` on. Raises ``InputError``; ``path`` is for messages."""
    return read_pickle_at(MemorySource(data, path), start)


def read_pickle_at(source: Source, start: int = 0) -> Pickle:
    """The pickle at position ``start`` of ``source``. Raises ``InputError``."""
    return _Machine(source, start).run()


class _Machine:
    """The stack, the memo, and what is left of the bounds; ``data`` is the piece of the source in hand."""

    def __init__(self, source: Source, start: int) -> None:
        self.source = source
        self.data = b""
        self.base = start
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.globals: dict[Global, None] = {}
        self.persistents: list[Persistent] = []
        self.memory = MAX_MEMORY
        self.stopped = False

    def run(self) -> Pickle:
        for _ in range(MAX_OPCODES):
            if self.position >= len(self.data) and not self.fetch(1):
                self.fail("it ends without STOP")
            step = _STEPS.get(self.data[self.position])
            if step is None:
                self.fail(f"unknown opcode {self.data[self.position]:#04x}")
            self.position += 1
            step(self)
            if self.stopped:
                spent = MAX_MEMORY - self.memory
                return Pickle(self.pop(), tuple(self.globals), self.offset, spent, tuple(self.persistents))
        return self.limit(f"more than {MAX_OPCODES} opcodes")

    # The piece in hand

    @property
    def offset(self) -> int:
        return self.base + self.position

    def fetch(self, size: int) -> bool:
        """Have ``size`` bytes from the position on in hand; False if there are not so many."""
        start = self.offset
        length = min(max(size, _CHUNK), self.source.size - start)
        self.data, self.base, self.position = bytes(self.source.read(start, length)), start, 0
        return length >= size

    # Bounds and errors

    def fail(self, message: str) -> NoReturn:
        raise MalformedFileError(f"pickle: {message}", path=self.source.path, offset=self.offset)

    def limit(self, message: str) -> NoReturn:
        raise LimitExceededError(f"pickle: {message}", path=self.source.path, offset=self.offset)

    def charge(self, size: int) -> None:
        self.memory -= size
        if self.memory < 0:
            self.limit("it would take too much memory")

    # Arguments

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.position and (size > self.left or not self.fetch(size)):
            self.fail("it ends inside an argument")
        start = self.position
        self.position = start + size
        return self.data[start : self.position]

    @property
    def left(self) -> int:
        return self.source.size - self.offset

    def skip(self, size: int) -> None:
        if size > self.left:
            self.fail("it ends inside an argument")
        self.base, self.position, self.data = self.offset + size, 0, b""

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def sized(self, size: int, *, encoded: bool = False) -> Any:
        """A string whose length is given in ``size`` bytes: ``bytes``, or a ``Blob`` if it is long."""
        length = self.number(size)
        if length > MAX_INLINE:
            self.charge(200)
            blob = Blob(self.source, self.offset, length, encoded)
            self.skip(length)
            return blob
        raw = self.take(length)
        # One character beyond the first plane, and each of a string takes four bytes.
        self.charge(len(raw) if raw.isascii() else 4 * len(raw))
        return raw

    def text(self, size: int, encoding: str) -> Any:
        raw = self.sized(size, encoded=encoding == "utf-8")
        return raw if isinstance(raw, Blob) else raw.decode(encoding, "replace")

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position, self.position + MAX_LINE + 1)
        if end < 0:
            self.fetch(MAX_LINE + 1)
            end = self.data.find(b"\n", 0, MAX_LINE + 1)
        if end < 0:
            self.limit(f"a line of text that ends nowhere, or after more than {MAX_LINE} bytes")
        line = self.data[self.position : end]
        self.position = end + 1
        self.charge(4 * len(line))
        return line

    def decimal(self, text: bytes) -> int:
        if _DECIMAL.fullmatch(text) is None:
            self.fail(f"{clipped(repr(text))} is not an integer of a reasonable size")
        return int(text)

    def text_line(self) -> str:
        return self.line().decode("utf-8", "replace")

    # Stack and memo

    def push(self, value: Any) -> None:
        self.memory -= 32
        if self.memory < 0:
            self.limit("it would take too much memory")
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            self.fail("the stack is empty")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            self.fail("the stack is empty")
        return self.stack[-1]

    def marked(self) -> list[Any]:
        """Everything above the topmost mark, which goes too."""
        stack = self.stack
        for index in range(len(stack) - 1, -1, -1):
            if stack[index] is _MARK:
                values = stack[index + 1 :]
                del stack[index:]
                self.charge(8 * len(values))
                return values
        return self.fail("there is no mark")

    def put(self, index: int) -> None:
        if not 0 <= index < 2**32:
            self.fail("a memo index of more than 32 bits, or below 0")
        self.charge(100)
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            self.fail("a memo entry that was never set")
        self.push(self.memo[index])

    # Values

    def name(self, module: str, name: str) -> None:
        found = Global(module, name)
        if found not in self.globals:
            self.charge(200 + len(module) + len(name))
            self.globals[found] = None
        self.push(found)

    def persist(self, key: Any) -> None:
        found = Persistent(key)
        self.charge(64)
        self.persistents.append(found)
        self.push(found)

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            self.fail("STACK_GLOBAL without two strings")
        self.name(module, name)

    def extension(self, size: int) -> None:
        # What an extension code stands for depends on the process that reads it.
        self.name("copyreg", f"extension {self.number(size)}")

    def call(self, function: Any, arguments: Any, keywords: Any = None) -> None:
        self.charge(200)
        self.push(Call(function, arguments, keywords))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        self.call(function, arguments)

    def new_extended(self) -> None:
        keywords, arguments, function = self.pop(), self.pop(), self.pop()
        self.call(function, arguments, keywords)

    def instance(self) -> None:
        module, name = self.text_line(), self.text_line()
        arguments = tuple(self.marked())
        self.name(module, name)
        self.call(self.pop(), arguments)

    def object(self) -> None:
        values = self.marked()
        if not values:
            self.fail("OBJ without a class")
        self.call(values[0], tuple(values[1:]))

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Call):
            self.fail("BUILD of something that is no object")
        # A second state is added to the first, not put in its place, so that it cannot hide anything.
        target.state = state if target.state is None else (target.state, state)

    def append(self, values: list[Any]) -> None:
        target = self.top()
        self.charge(8 * len(values))
        if isinstance(target, list):
            target += values
        elif isinstance(target, Call):
            target.items += values
        else:
            self.fail("items for something that is no list")

    def set_items(self, values: list[Any]) -> None:
        target = self.top()
        if len(values) % 2:
            self.fail("a key without a value")
        self.charge(64 * len(values))
        if not isinstance(target, Pairs | Call):
            self.fail("keys for something that is no dict")
        target.pairs += zip(values[::2], values[1::2], strict=True)

    def set_item(self) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def dictionary(self) -> None:
        values = self.marked()
        self.push(Pairs([]))
        self.set_items(values)

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)))

    def container(self, value: Any) -> None:
        self.charge(64)
        self.push(value)

    def integer_line(self) -> None:
        text = self.line()
        booleans = {b"00": False, b"01": True}
        self.push(booleans[text] if text in booleans else self.decimal(text))

    def float_line(self) -> None:
        text = self.line()
        try:
            self.push(float(text[:64]))
        except ValueError:
            self.fail(f"{clipped(repr(text))} is not a number")

    def signed(self, size: int) -> None:
        length = self.number(size)
        if length > MAX_INTEGER:
            self.limit(f"an integer of {length} bytes")
        self.charge(length)
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def protocol(self) -> None:
        if (version := self.number(1)) > 5:
            self.fail(f"protocol {version}")

    def stop(self) -> None:
        self.stopped = True

    def duplicate(self) -> None:
        self.push(self.top())

    def drop(self) -> None:
        # CPython's POP takes a mark away as well.
        if not self.stack:
            self.fail("the stack is empty")
        self.stack.pop()

    def refuse_buffer(self) -> None:
        self.fail("a buffer outside the pickle")


_STEPS: Final[dict[int, Callable[[_Machine], object]]] = {
    ord("I"): _Machine.integer_line,
    ord("J"): lambda m: m.push(struct.unpack("<i", m.take(4))[0]),
    ord("K"): lambda m: m.push(m.number(1)),
    ord("M"): lambda m: m.push(m.number(2)),
    ord("L"): lambda m: m.push(m.decimal(m.line().removesuffix(b"L"))),
    0x8A: lambda m: m.signed(1),
    0x8B: lambda m: m.signed(4),
    ord("F"): _Machine.float_line,
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),
    0x89: lambda m: m.push(False),
    # Strings of Python 2 are text here; escapes in a quoted one stay as they are.
    ord("S"): lambda m: m.push(m.line().strip(b"\"'").decode("latin-1")),
    ord("T"): lambda m: m.push(m.text(4, "latin-1")),
    ord("U"): lambda m: m.push(m.text(1, "latin-1")),
    ord("B"): lambda m: m.push(m.sized(4)),
    ord("C"): lambda m: m.push(m.sized(1)),
    0x8E: lambda m: m.push(m.sized(8)),
    0x96: lambda m: m.push(m.sized(8)),
    ord("V"): lambda m: m.push(m.line().decode("raw-unicode-escape", "replace")),
    ord("X"): lambda m: m.push(m.text(4, "utf-8")),
    0x8C: lambda m: m.push(m.text(1, "utf-8")),
    0x8D: lambda m: m.push(m.text(8, "utf-8")),
    0x97: _Machine.refuse_buffer,
    0x98: lambda m: m.top(),
    ord("]"): lambda m: m.container([]),
    ord("a"): lambda m: m.append([m.pop()]),
    ord("e"): lambda m: m.append(m.marked()),
    ord("l"): lambda m: m.push(m.marked()),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.marked())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("}"): lambda m: m.container(Pairs([])),
    ord("d"): _Machine.dictionary,
    ord("s"): _Machine.set_item,
    ord("u"): lambda m: m.set_items(m.marked()),
    0x8F: lambda m: m.container([]),
    0x90: lambda m: m.append(m.marked()),
    0x91: lambda m: m.push(tuple(m.marked())),
    ord("0"): _Machine.drop,
    ord("2"): _Machine.duplicate,
    ord("("): lambda m: m.push(_MARK),
    ord("1"): _Machine.marked,
    ord("g"): lambda m: m.get(m.decimal(m.line())),
    ord("h"): lambda m: m.get(m.number(1)),
    ord("j"): lambda m: m.get(m.number(4)),
    ord("p"): lambda m: m.put(m.decimal(m.line())),
    ord("q"): lambda m: m.put(m.number(1)),
    ord("r"): lambda m: m.put(m.number(4)),
    0x94: lambda m: m.put(len(m.memo)),
    0x82: lambda m: m.extension(1),
    0x83: lambda m: m.extension(2),
    0x84: lambda m: m.extension(4),
    ord("c"): lambda m: m.name(m.text_line(), m.text_line()),
    0x93: _Machine.stack_global,
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
    ord("i"): _Machine.instance,
    ord("o"): _Machine.object,
    0x81: _Machine.reduce,
    0x92: _Machine.new_extended,
    0x80: _Machine.protocol,
    0x95: lambda m: m.take(8),
    ord("P"): lambda m: m.persist(m.text_line()),
    ord("Q"): lambda m: m.persist(m.pop()),
    ord("."): _Machine.stop,
}
"""What each opcode does; ``pickletools`` describes them."""
