"""Hostile pickles in otherwise good PyTorch files: every way known to make an unpickler, or a scanner of one, slip."""

# One case a line, however long it is.
# ruff: noqa: E501

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.hostile.archives import (
    TENSOR,
    archive,
    call,
    integer,
    name,
    sizes,
    state_dict,
    storage,
    tensor,
    text,
    tuple_of,
)
from tests.hostile.case import CANARY, Case, Expect, file_case

if TYPE_CHECKING:
    from pathlib import Path

MALFORMED, LIMIT = "MalformedFileError", "LimitExceededError"
UNKNOWN = "unknown-global"

Payload = Callable[[bytes, bytes], bytes]
"""Opcodes that push something; given are the shell command and the Python statement that leave the canary."""


def _live(title: str, payload: Payload, *, live: bool = True) -> Case:
    """A payload as a value beside a good tensor, first in the dict: it would run before anything can go wrong."""

    def build(folder: Path) -> Path:
        canary = folder / CANARY
        opcodes = payload(text(f"touch '{canary}'"), text(f"open({str(canary)!r}, 'w').close()"))
        path = folder / "model.pt"
        path.write_bytes(archive(state_dict(("evil", opcodes), ("weight", TENSOR))))
        return path

    return Case(f"pickle: {title}", build, Expect.FINDING, UNKNOWN, live)


def _whole(title: str, wrap: Callable[[bytes], bytes], expect: Expect, detail: str = "", *, live: bool = True) -> Case:
    """A whole pickle made by ``wrap`` of opcodes that call ``os.system``."""

    def build(folder: Path) -> Path:
        path = folder / "model.pt"
        path.write_bytes(archive(wrap(call("os", "system", text(f"touch '{folder / CANARY}'")))))
        return path

    return Case(f"pickle: {title}", build, expect, detail, live)


def _stack_global(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def _error(title: str, pickle: bytes | Callable[[], bytes], detail: str = MALFORMED) -> Case:
    def data() -> bytes:
        return archive(pickle if isinstance(pickle, bytes) else pickle())

    return file_case(f"pickle: {title}", "model.pt", data, Expect.ERROR, detail)


def _inside(title: str, value: bytes, expect: Expect, detail: str = "") -> Case:
    data = archive(state_dict(("evil", value), ("weight", TENSOR)))
    return file_case(f"pickle: {title}", "model.pt", data, expect, detail)


def _laughs() -> bytes:
    # Each list holds the one before twice: 2**60 ways lead to the first.
    layers = b"".join(b"]q" + bytes([n]) + b"(h" + bytes([n - 1]) + b"h" + bytes([n - 1]) + b"e" for n in range(1, 61))
    return b"\x80\x02]q\x00" + TENSOR + b"a" + layers + b"."


def _protocol_4(opcodes: bytes) -> bytes:
    return b"\x80\x04\x95" + struct.pack("<Q", len(opcodes)) + opcodes


_DOTTED = b"\x80\x04"
"""A second PROTO, in the middle: from protocol 4 on, names may have dots."""

_REDUCED: tuple[tuple[str, Payload], ...] = (
    ("os.system", lambda shell, _: call("os", "system", shell)),
    ("posix.system", lambda shell, _: call("posix", "system", shell)),
    ("subprocess.getoutput", lambda shell, _: call("subprocess", "getoutput", shell)),
    ("subprocess.Popen", lambda shell, _: call("subprocess", "Popen", shell, integer(-1), *[b"N"] * 5, b"\x88", b"\x88")),
    ("builtins.eval", lambda _, code: call("builtins", "eval", code)),
    ("builtins.exec", lambda _, code: call("builtins", "exec", code)),
    ("Python 2's __builtin__.eval", lambda _, code: call("__builtin__", "eval", code)),
    ("timeit.timeit", lambda _, code: call("timeit", "timeit", code, text("pass"), name("timeit", "default_timer"), integer(1))),
    ("cProfile.run", lambda _, code: call("cProfile", "run", code)),
    ("bdb.Bdb().run", lambda _, code: _DOTTED + call("bdb", "Bdb.run", call("bdb", "Bdb"), code)),
    ("code.InteractiveInterpreter().runsource", lambda _, code: _DOTTED + call("code", "InteractiveInterpreter.runsource", call("code", "InteractiveInterpreter"), code)),
    ("runpy._run_code", lambda _, code: call("runpy", "_run_code", call("builtins", "compile", code, text("x"), text("exec")), b"}")),
    ("pty.spawn", lambda shell, _: call("pty", "spawn", tuple_of(text("/bin/sh"), text("-c"), shell))),
    ("a list through builtins.map", lambda shell, _: call("builtins", "list", call("builtins", "map", name("os", "system"), tuple_of(shell)))),
    ("functools.partial", lambda shell, _: call("functools", "partial", name("os", "system"), shell) + b")R"),
    ("operator.methodcaller", lambda shell, _: call("operator", "methodcaller", text("system"), shell) + tuple_of(call("importlib", "import_module", text("os"))) + b"R"),
    ("builtins.getattr", lambda shell, _: call("builtins", "getattr", call("importlib", "import_module", text("os")), text("system")) + tuple_of(shell) + b"R"),
    ("reduces nested five deep", lambda shell, _: call("builtins", "max", call("builtins", "abs", call("builtins", "abs", call("builtins", "abs", call("os", "system", shell)))), integer(1))),
    ("_pickle.loads of another pickle", lambda shell, _: call("_pickle", "loads", _bytes(b"\x80\x02" + call("os", "system", shell) + b"."))),
    ("pkgutil.resolve_name", lambda shell, _: call("pkgutil", "resolve_name", text("os:system")) + tuple_of(shell) + b"R"),
    ("_operator.methodcaller", lambda shell, _: call("_operator", "methodcaller", text("system"), shell) + tuple_of(call("importlib", "import_module", text("os"))) + b"R"),
    ("profile.run", lambda _, code: call("profile", "run", code)),
)  # fmt: skip


def _bytes(raw: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(raw)) + raw


_LIVE: tuple[Case, ...] = (
    *(_live(f"REDUCE of {title}", payload) for title, payload in _REDUCED),
    _live("STACK_GLOBAL of os.system", lambda shell, _: _stack_global("os", "system") + tuple_of(shell) + b"R"),
    _live("STACK_GLOBAL of a dotted name", lambda shell, _: _DOTTED + _stack_global("shutil", "os.system") + tuple_of(shell) + b"R"),
    _live("STACK_GLOBAL from the memo", lambda shell, _: text("system") + b"r\xff\xff\x00\x000" + text("os") + b"j\xff\xff\x00\x00\x93" + tuple_of(shell) + b"R"),
    _live("INST", lambda shell, _: b"(" + shell + b"ios\nsystem\n"),
    _live("OBJ", lambda shell, _: b"(" + name("subprocess", "Popen") + shell + integer(-1) + b"NNNNN\x88\x88o"),
    _live("NEWOBJ", lambda shell, _: b"(" + call("builtins", "type", text("T"), tuple_of(), b"}" + text("__new__") + name("os", "system") + b"s") + b"0" + call("os", "system", shell) + b"1N"),
    _live("NEWOBJ_EX", lambda shell, _: name("subprocess", "Popen") + b")}" + text("args") + shell + b"s" + text("shell") + b"\x88s\x92", live=False),
    _live("BUILD with a __setstate__ of its own", lambda shell, _: call("types", "SimpleNamespace") + b"}" + text("__setstate__") + name("os", "system") + b"sb" + shell + b"b"),
    _live("memo written over", lambda shell, _: text("fine") + b"r\xf0\xff\x00\x000" + name("os", "system") + b"r\xf0\xff\x00\x000j\xf0\xff\x00\x00" + tuple_of(shell) + b"R"),
    _live("memo of MEMOIZE and of numbers mixed", lambda shell, _: text("os") + b"r\xf0\xff\x00\x000" + text("system") + b"r\xf1\xff\x00\x000" + text("torch._utils") + b"\x940" + text("_rebuild_tensor_v2") + b"\x940j\xf0\xff\x00\x00j\xf1\xff\x00\x00\x93" + tuple_of(shell) + b"R"),
    _live("call behind a FLOAT, which a scanner did not know", lambda shell, _: b"F1.0\n0" + call("os", "system", shell)),
    _live("call behind a BYTEARRAY8, which a scanner did not know", lambda shell, _: b"\x96" + struct.pack("<Q", 3) + b"abc0" + call("os", "system", shell)),
    _live("call whose result is thrown away", lambda shell, _: call("os", "system", shell) + b"0N"),
    _live("call below a POP_MARK", lambda shell, _: b"(" + call("os", "system", shell) + b"1N"),
    _live("call as a key", lambda shell, _: b"}" + call("os", "system", shell) + b"Ns"),
    _live("call in a persistent id", lambda shell, _: call("os", "system", shell) + b"0" + storage(), live=True),
    _live("call as a hook of a tensor", lambda shell, _: tensor(hooks=call("os", "system", shell)), live=False),
    _live("call as the state of an OrderedDict", lambda shell, _: call("collections", "OrderedDict") + b"}" + text("_metadata") + call("os", "system", shell) + b"sb"),
    _live("extension code", lambda shell, _: b"\x82\x01" + tuple_of(shell) + b"R", live=False),
    _live("extension code of four bytes", lambda shell, _: b"\x84\x01\x02\x03\x04" + tuple_of(shell) + b"R", live=False),
    _live("pip.main", lambda *_: call("pip", "main", b"]" + text("install") + b"a" + text("nothing") + b"a"), live=False),
    _live("torch.hub.load", lambda *_: call("torch.hub", "load", text("org/name"), text("model")), live=False),
    _live("torch.load", lambda *_: call("torch.serialization", "load", text("other.pt")), live=False),
    _live("torch.storage._load_from_bytes", lambda *_: call("torch.storage", "_load_from_bytes", _bytes(b"x")), live=False),
    _live("torch.utils.collect_env.run", lambda shell, _: call("torch.utils.collect_env", "run", shell), live=False),
    _live("a forbidden name behind torch.", lambda shell, _: call("torch", "serialization.os.system", shell), live=False),
    _live("numpy's test runner", lambda *_: call("numpy.testing._private.utils", "runstring", text("x"), b"}"), live=False),
    _live("a rebuilding function of another module", lambda *_: call("evil", "_rebuild_tensor_v2", storage(), integer(0), sizes(2, 2), sizes(2, 1)), live=False),
    _live("_rebuild_from_type_v2 around os.system", lambda shell, _: call("torch._tensor", "_rebuild_from_type_v2", name("os", "system"), name("torch", "Tensor"), tuple_of(shell), b"}"), live=False),
)  # fmt: skip

_OVERLOOKED = (
    "_interpreters.create", "_io.FileIO", "_posixsubprocess.fork_exec", "_xxsubinterpreters.run_string",
    "asyncio.unix_events._UnixSubprocessTransport._start", "atexit.register", "codeop.compile_command", "ctypes.CDLL",
    "distutils.file_util.write_file", "doctest.debug_script", "ensurepip._run_pip", "idlelib.pyshell.ModifiedInterpreter.runcommand",
    "imp.load_source", "lib2to3.pgen2.grammar.Grammar.loads", "linecache.getline", "marshal.loads", "numpy.f2py.crackfortran._eval_length",
    "numpy.f2py.crackfortran.getlincoef", "pdb.run", "pipes.Template", "pydoc.pipepager", "requests.get", "site.addpackage",
    "ssl.get_server_certificate", "torch._dynamo.guards.GuardBuilder.get", "torch._inductor.codecache.compile_file",
    "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression", "torch.jit.unsupported_tensor_ops.execWrapper",
    "torch.utils._config_module.ConfigModule.load_config", "torch.utils.bottleneck.__main__.run_cprofile",
    "torch.utils.data.datapipes.utils.decoder.basichandlers", "trace.Trace.run", "types.CodeType", "urllib.request.urlopen", "venv.create",
)  # fmt: skip
"""Names that published bypasses of picklescan, fickling and modelscan went through, up to August 2026."""


def _overlooked(full: str) -> Case:
    """A call of a name that a scanner did not know."""
    module, _, attribute = full.rpartition(".")
    return _live(f"{full}, once overlooked by a scanner", lambda shell, _: call(module, attribute, shell), live=False)


_LIVE = (*_LIVE, *map(_overlooked, _OVERLOOKED))
# The storage in a persistent id stays unread, and so does a tensor that os.system is to make.
_LIVE = tuple(
    Case(c.name, c.build, Expect.PARTIAL, UNKNOWN, c.live)
    if any(part in c.name for part in ("persistent id", "another module", "_rebuild_from_type_v2"))
    else c
    for c in _LIVE
)

PICKLE_CASES: tuple[Case, ...] = (
    *_LIVE,
    _whole("nothing but a call", lambda evil: b"\x80\x02" + evil + b".", Expect.FINDING, UNKNOWN),
    _whole("call before a good dict", lambda evil: b"\x80\x02" + evil + b"0}" + text("weight") + TENSOR + b"s.", Expect.FINDING, UNKNOWN),
    _whole("call, and no STOP behind it", lambda evil: b"\x80\x02" + evil, Expect.ERROR, MALFORMED),
    _whole("call, and an opcode that is none", lambda evil: b"\x80\x02" + evil + b"\xff.", Expect.ERROR, MALFORMED),
    _whole("call, and a broken argument", lambda evil: b"\x80\x02" + evil + b"I1_000\n.", Expect.ERROR, MALFORMED),
    _whole("call behind the STOP", lambda evil: state_dict(("weight", TENSOR)) + b"\x80\x02" + evil + b".", Expect.FINDING, "trailing-bytes", live=False),
    _whole("frame of a false length", lambda evil: b"\x80\x04\x95" + struct.pack("<Q", 2) + evil + b".", Expect.FINDING, UNKNOWN, live=False),
    _whole("protocol 4 in a frame", lambda evil: _protocol_4(evil + b"."), Expect.FINDING, UNKNOWN),
    _error("no bytes", b"\n"),
    _error("STOP alone", b"."),
    _error("empty stack", b"\x80\x02R."),
    _error("REDUCE across a mark", b"\x80\x02" + name("os", "system") + b"()R."),
    _error("no mark", b"\x80\x02NNt."),
    _error("memo that was never set", b"\x80\x02h\x07."),
    _error("protocol 77", b"\x80\x4dN."),
    _error("text in place of an argument", b"\x80\x02X\xff\xff\xff\x7fabc."),
    _error("bytes of 2**63", b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b"abc."),
    _error("bytearray of 2**40", b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc."),
    _error("integer of 2 GB", b"\x80\x02\x8b\xff\xff\xff\x7f" + bytes(100) + b".", LIMIT),
    _error("integer of a million digits", lambda: b"\x80\x02L" + b"9" * 1_000_000 + b"L\n.", LIMIT),
    _error("integer of a thousand digits", b"\x80\x02I" + b"9" * 1_000 + b"\n."),
    _error("STACK_GLOBAL without strings", b"\x80\x04K\x01K\x02\x93."),
    _error("items for a tuple", b"\x80\x02)Na."),
    _error("a key without a value", b"\x80\x02}(Nu."),
    _error("BUILD of a number", b"\x80\x02K\x01}b."),
    _error("buffer outside the pickle", b"\x80\x05\x97."),
    _error("two million opcodes", lambda: b"\x80\x02" + b"N0" * 2_000_000 + b"N.", LIMIT),
    _error("two million lists", lambda: b"\x80\x02" + b"]" * 2_000_000 + b".", LIMIT),
    _error("three million marks", lambda: b"\x80\x02" + b"(" * 3_000_000 + b".", LIMIT),
    _error("a million memo entries", lambda: b"\x80\x02N" + b"".join(b"r" + struct.pack("<I", n) for n in range(1_500_000)) + b".", LIMIT),
    _error("strings of 60 MB from the memo in names", lambda: b"\x80\x02}" + text("k" * 4_000) + b"q\x01}h\x01}h\x01" + TENSOR + b"sss.", LIMIT),
    _error("lists nested 100,000 deep", lambda: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", LIMIT),
    _error("tuples nested 100,000 deep around a tensor", lambda: b"\x80\x02" + TENSOR + b"\x85" * 100_000 + b".", LIMIT),
    _error("a million names of one tensor", lambda: b"\x80\x02](" + TENSOR + b"q\x01" + b"h\x01" * 900_000 + b"e.", LIMIT),
    _error("storage that is absent", state_dict(("weight", tensor(store=storage(text("7")))))),
    _error("storage whose key is a path", state_dict(("weight", tensor(store=storage(text("../../etc/passwd")))))),
    _error("storage that claims more than it has", state_dict(("weight", tensor(store=storage(count=integer(1_000)))))),
    _error("storage that claims 2**62", state_dict(("weight", tensor(store=storage(count=integer(2**62)))))),
    _error("offset behind the storage", state_dict(("weight", tensor(offset=integer(1))))),
    _error("offset of 2**62", state_dict(("weight", tensor(offset=integer(2**62))))),
    _error("shape larger than the storage", state_dict(("weight", tensor(shape=sizes(4, 4), strides=sizes(4, 1))))),
    _error("strides that leave the storage", state_dict(("weight", tensor(strides=sizes(100, 1))))),
    _error("shape that overflows", state_dict(("weight", tensor(shape=sizes(2**32, 2**32), strides=sizes(0, 0))))),
    _error("fewer strides than sizes", state_dict(("weight", tensor(strides=sizes(1))))),
    _error("a hundred axes", state_dict(("weight", tensor(shape=sizes(*[1] * 100), strides=sizes(*[1] * 100)))), LIMIT),
    _inside("2**60 ways to one tensor", _laughs()[2:-1], Expect.FINE),
    _inside("a list that holds itself", b"]q\x05h\x05a", Expect.FINE),
    _inside("a dict that holds itself", b"}q\x05" + text("self") + b"h\x05s", Expect.FINE),
    _inside("keys that all hash alike", b"}(" + b"".join(integer(n * (2**61 - 1)) + b"N" for n in range(5_000)) + b"u", Expect.FINE),
    _inside("keys that cannot be hashed", b"}]Ns", Expect.FINE),
    _inside("a billion elements from one", tensor(shape=sizes(10**9), strides=sizes(0)), Expect.PARTIAL, "unread-tensor"),
    _inside("negative stride", tensor(strides=sizes(-2, 1)), Expect.PARTIAL, "unread-tensor"),
    _inside("shape of strings", tensor(shape=tuple_of(text("2"), text("2"))), Expect.PARTIAL, "unread-tensor"),
    _inside("storage of an unknown kind", tensor(store=storage(kind=name("torch", "EvilStorage"))), Expect.PARTIAL, "unread-tensor"),
    _inside("storage that is no storage", tensor(store=text("0")), Expect.PARTIAL, "unread-tensor"),
    _inside("parameters around parameters", b"".join([name("torch._utils", "_rebuild_parameter") + b"("] * 50) + TENSOR + b"\x88NtR" * 50, Expect.PARTIAL, "unread-tensor"),
)  # fmt: skip
"""Payloads, structures that do not end, and tensors that reach where they must not."""
