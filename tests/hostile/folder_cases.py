"""Hostile folders, indexes of shards, links and paths."""

# One case a line, however long it is.
# ruff: noqa: E501

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from tests.hostile.case import CANARY, GOOD, Case, Expect, entry, safetensors

if TYPE_CHECKING:
    from collections.abc import Callable

MALFORMED, LIMIT, UNSUPPORTED = "MalformedFileError", "LimitExceededError", "UnsupportedFormatError"
NOT_FOUND = "InputNotFoundError"
INDEX = "model.safetensors.index.json"


def _index(weight_map: object, **shards: bytes) -> Callable[[Path], Path]:
    """A folder with an index and shards ``a``, ``b``, … in files ``a.safetensors``, …; gives the folder."""

    def build(folder: Path) -> Path:
        raw = weight_map if isinstance(weight_map, bytes) else json.dumps({"weight_map": weight_map}).encode()
        (folder / INDEX).write_bytes(raw)
        for name, data in shards.items():
            (folder / f"{name}.safetensors").write_bytes(data)
        return folder

    return build


def _names(shard: str) -> Case:
    return Case(f"index: shard {shard!r}", _index({"weight": shard}, a=GOOD), Expect.ERROR, MALFORMED)


def _link(target: str, *, outside: bytes | None = None) -> Callable[[Path], Path]:
    """A folder whose only shard is a link to ``target``; gives the folder, inside the case's one."""

    def build(folder: Path) -> Path:
        inner = folder / "checkpoint"
        inner.mkdir()
        if outside is not None:
            (folder / "outside.safetensors").write_bytes(outside)
        (inner / "model.safetensors").symlink_to(target)
        return inner

    return build


def _beside(name: str, raw: bytes) -> Case:
    """A sound file with a hostile text beside it, which must claim nothing and cost nothing."""

    def build(folder: Path) -> Path:
        (folder / "model.safetensors").write_bytes(GOOD)
        (folder / name).write_bytes(raw)
        return folder

    return Case(f"text beside the weights: {name}, {raw[:24]!r}", build, Expect.FINE)


_LAUGHS = b"a0: &a0 [x, x]\n" + b"".join(
    b"a%d: &a%d [*a%d, *a%d, *a%d]\n" % (n, n, n - 1, n - 1, n - 1) for n in range(1, 60)
)


def _snapshot(blob: str) -> Callable[[Path], Path]:
    """A snapshot in a Hugging Face cache whose file is a link to ``blob``."""

    def build(folder: Path) -> Path:
        snapshot = folder / "models--org--name" / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        other = folder / "models--org--other" / "blobs"
        other.mkdir(parents=True)
        (other / "secret").write_bytes(GOOD)
        (folder / "models--org--name" / "blobs").mkdir()
        (snapshot / "model.safetensors").symlink_to(blob)
        return snapshot

    return build


def _files(**files: bytes) -> Callable[[Path], Path]:
    """A folder with these files; ``__`` stands for a full stop and ``_of_`` for ``-of-``."""

    def build(folder: Path) -> Path:
        for name, data in files.items():
            (folder / name.replace("__", ".").replace("_of_", "-of-").replace("model_", "model-")).write_bytes(data)
        return folder

    return build


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.safetensors")
    return folder / "model.safetensors"


def _pipe_inside(folder: Path) -> Path:
    _pipe(folder)
    return folder


def _pipe_as_shard(folder: Path) -> Path:
    _index({"weight": "a.safetensors", "other": "model.safetensors"}, a=GOOD)(folder)
    _pipe(folder)
    return folder


def _folder_as_shard(folder: Path) -> Path:
    _index({"weight": "a.safetensors", "other": "b.safetensors"}, a=GOOD)(folder)
    (folder / "b.safetensors").mkdir()
    return folder


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(folder)  # the address of a socket is short
        try:
            server.bind("model.safetensors")
        finally:
            os.chdir(here)
    return folder / "model.safetensors"


def _crowd(folder: Path) -> Path:
    for number in range(10_001):
        (folder / str(number)).touch()
    return folder


def _sparse_index(folder: Path) -> Path:
    with (folder / INDEX).open("wb") as file:
        file.write(b'{"weight_map":{')
        file.truncate(200_000_000)
    return folder


def _two_indexes(folder: Path) -> Path:
    for name in ("model", "other"):
        (folder / f"{name}.safetensors.index.json").write_text('{"weight_map":{"weight":"a.safetensors"}}')
    (folder / "a.safetensors").write_bytes(GOOD)
    return folder


def _hostile_config(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(GOOD)
    (folder / "config.json").write_bytes(b'{"a":' * 100_000)
    return folder


def _endless_config(folder: Path) -> Path:
    (folder / "model.safetensors").write_bytes(GOOD)
    (folder / "config.json").symlink_to("/dev/zero")
    return folder


OTHER = safetensors({"other": entry()}, bytes(16))

FOLDER_CASES: tuple[Case, ...] = (
    _beside("README.md", b"---\n" + _LAUGHS + b"base_model: *a59\n---\n"),
    _beside("README.md", b"---\nbase_model: " + b"[" * 60_000 + b"\n---\n"),
    _beside("README.md", b"---\n" * 100_000),
    _beside("README.md", b"---\nbase_model: !!python/object/apply:os.system ['touch " + CANARY.encode() + b"']\n---\n"),
    _beside("mergekit_config.yml", b"models:\n" + b"- model: a/b\n" * 500_000),
    _beside("mergekit_config.yml", b"\xff\xfe" + b"\0" * 10_000),
    _beside("config.json", b'{"_name_or_path": "' + b"a" * 70_000 + b'"}'),
    Case("path: nothing there", lambda folder: folder / "absent", Expect.ERROR, NOT_FOUND),
    Case("path: a NUL in it", lambda folder: folder / "a\0b", Expect.ERROR, "InputError"),
    Case("path: too long", lambda folder: folder / ("a" * 5_000), Expect.ERROR, "InputError"),
    Case("path: below a file", lambda folder: Path("/dev/null/model.safetensors"), Expect.ERROR, NOT_FOUND),
    Case("path: a pipe", _pipe, Expect.ERROR, UNSUPPORTED),
    Case("path: a socket", _socket, Expect.ERROR, UNSUPPORTED),
    Case("path: an endless device", lambda folder: Path("/dev/zero"), Expect.ERROR, UNSUPPORTED),
    Case("path: an empty device", lambda folder: Path("/dev/null"), Expect.ERROR, UNSUPPORTED),
    Case("folder: empty", lambda folder: folder, Expect.ERROR, UNSUPPORTED),
    Case("folder: no checkpoint", _files(README__md=b"# hello"), Expect.ERROR, UNSUPPORTED),
    Case("folder: 10,001 files", _crowd, Expect.ERROR, LIMIT),
    Case("folder: a pipe named as a checkpoint", _pipe_inside, Expect.ERROR, UNSUPPORTED),
    Case("folder: one file of two is cut off", _files(a__safetensors=GOOD, b__safetensors=OTHER[:-1]), Expect.PARTIAL, "truncated"),
    Case("folder: one file of two is cut off in its header", _files(a__safetensors=GOOD, b__safetensors=OTHER[:20]), Expect.PARTIAL, "unreadable-file"),
    Case("folder: the only file is cut off", _files(a__safetensors=GOOD[:-1]), Expect.PARTIAL, "truncated"),
    Case("folder: the only file is cut off in its header", _files(a__safetensors=GOOD[:20]), Expect.ERROR, MALFORMED),
    Case("folder: one name in two files", _files(a__safetensors=GOOD, b__safetensors=GOOD), Expect.PARTIAL, "duplicate-tensor"),
    Case("folder: a numbered shard is absent", _files(model_00001_of_00003__safetensors=GOOD, model_00003_of_00003__safetensors=OTHER), Expect.PARTIAL, "absent-shard"),
    Case("folder: the first of 99,999 shards", _files(model_00001_of_99999__safetensors=GOOD), Expect.PARTIAL, "absent-shard"),
    Case("folder: a config that nests 100,000 deep", _hostile_config, Expect.FINE),
    Case("folder: a config that never ends", _endless_config, Expect.FINE),
    Case("link: to an absolute path", _link("/etc/passwd"), Expect.ERROR, "InputError"),
    Case("link: to a device", _link("/dev/zero"), Expect.ERROR, "InputError"),
    Case("link: to a checkpoint outside", _link("../outside.safetensors", outside=GOOD), Expect.ERROR, "InputError"),
    Case("link: to a folder whose name goes on", _link("../checkpoint-2/model.safetensors"), Expect.ERROR, NOT_FOUND),
    Case("link: to itself", _link("model.safetensors"), Expect.ERROR, "InputError"),
    Case("link: to nothing", _link("nothing"), Expect.ERROR, NOT_FOUND),
    Case("cache: a blob of another repository", _snapshot("../../../models--org--other/blobs/secret"), Expect.ERROR, "InputError"),
    Case("cache: a blob that is absent", _snapshot("../../blobs/absent"), Expect.ERROR, NOT_FOUND),
    *map(_names, ("../a.safetensors", "/etc/passwd", "..\\a.safetensors", "C:a.safetensors", "sub/a.safetensors", "a.safetensors\0", ".", "..", "", "a" * 300)),
    Case("index: a shard that is no string", _index({"weight": 3}, a=GOOD), Expect.ERROR, MALFORMED),
    Case("index: weight_map is a list", _index(["weight"], a=GOOD), Expect.ERROR, MALFORMED),
    Case("index: no weight_map", _index(b'{"metadata":{}}', a=GOOD), Expect.ERROR, MALFORMED),
    Case("index: empty weight_map", _index({}, a=GOOD), Expect.ERROR, MALFORMED),
    Case("index: a name twice", _index(b'{"weight_map":{"w":"a.safetensors","w":"b.safetensors"}}', a=GOOD), Expect.ERROR, MALFORMED),
    Case("index: cut off", _index(b'{"weight_map":{"w":"a.safe', a=GOOD), Expect.ERROR, MALFORMED),
    Case("index: nests 100,000 deep", _index(b'{"metadata":' + b'{"a":' * 100_000, a=GOOD), Expect.ERROR, LIMIT),
    Case("index: 10 MB of empty lists", _index(b'{"metadata":[' + b"[]," * 3_000_000 + b"[]]}", a=GOOD), Expect.ERROR, LIMIT),
    Case("index: 200 MB, sparse", _sparse_index, Expect.ERROR, LIMIT),
    Case("index: two of them", _two_indexes, Expect.ERROR, "InputError"),
    Case("index: no shard is there", _index({"weight": "x.safetensors"}), Expect.ERROR, "InputError"),
    Case("index: a shard is absent", _index({"weight": "a.safetensors", "other": "b.safetensors"}, a=GOOD), Expect.PARTIAL, "absent-shard"),
    Case("index: a shard is cut off", _index({"weight": "a.safetensors", "other": "b.safetensors"}, a=GOOD, b=OTHER[:-1]), Expect.PARTIAL, "truncated"),
    Case("index: a shard is cut off in its header", _index({"weight": "a.safetensors", "other": "b.safetensors"}, a=GOOD, b=OTHER[:20]), Expect.PARTIAL, "unreadable-file"),
    Case("index: a shard is a folder", _folder_as_shard, Expect.PARTIAL, "absent-shard"),
    Case("index: a shard is a pipe", _pipe_as_shard, Expect.PARTIAL, "absent-shard"),
    Case("index: a tensor is in no shard", _index({"weight": "a.safetensors", "other": "a.safetensors"}, a=GOOD), Expect.PARTIAL, "absent-tensor"),
    Case("index: a tensor that it does not name", _index({"weight": "a.safetensors", "x": "b.safetensors"}, a=GOOD, b=safetensors({"x": entry(), "other": entry(begin=16, end=32)}, bytes(32))), Expect.FINDING, "unlisted-tensor"),
    Case("index: a tensor in another shard", _index({"weight": "b.safetensors", "other": "a.safetensors"}, a=GOOD, b=OTHER), Expect.FINDING, "misplaced-tensor"),
    Case("index: a tensor in two shards", _index({"weight": "a.safetensors", "other": "b.safetensors"}, a=GOOD, b=safetensors({"weight": entry(), "other": entry(begin=16, end=32)}, bytes(32))), Expect.FINDING, "duplicate-tensor"),
    Case("index: a file that it does not name", _index({"weight": "a.safetensors"}, a=GOOD, b=OTHER), Expect.FINDING, "unlisted-file"),
)  # fmt: skip
"""Every way to lie about which files belong together and where they are."""
