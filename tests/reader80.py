"""Reads signature files by docs/signature-format.md alone: the standard library and numpy, nothing of this project."""

import hashlib
import json
import struct
import zlib

import numpy as np


def sections(data):
    magic, major, _, length, count, checksum, created, tool = struct.unpack_from("<8sHHIIIq32s", data)
    assert (magic, major) == (b"\x89FPSIG\r\n", 1), "not a signature file of version 1"
    assert zlib.crc32(data[:20] + bytes(4) + data[24 : 64 + length + 64 * count]) == checksum, "damaged header"
    text, found = data[64 : 64 + length], {}
    identity = hashlib.sha256(b"fpsig 1\n" + hashlib.sha256(text).digest())
    for i in range(count):
        kind, flags, at, size, raw, digest = struct.unpack_from("<4sIQQQ32s", data, 64 + length + 64 * i)
        stored = data[at : at + size]
        found[kind.decode()] = zlib.decompressobj().decompress(stored, raw) if flags & 1 else stored
        assert hashlib.sha256(found[kind.decode()]).digest() == digest, "damaged section"
        identity.update(kind + digest)
    head = {"created": created, "tool": tool.rstrip(b"\0").decode(), "identity": f"sha256:{identity.hexdigest()}"}
    return head | json.loads(text), found


class Columns:
    """Takes columns off the front of a section."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def __call__(self, kind, *shape):
        values = np.frombuffer(self.data, kind, int(np.prod(shape)), self.at).reshape(shape)
        self.at += values.nbytes
        return values

    def lists(self):
        return [self("<u4", length) for length in self("<u4", int(self("<u4", 1)[0])).tolist()]

    def rows(self, counts, width, scale, number):
        scales = self(scale, sum(counts)) if scale == "<f4" else 2.0 ** self(scale, sum(counts))
        values = (self(number, sum(counts), width) * scales[:, None]).astype("f4")
        return np.split(values, np.cumsum(counts)[:-1]) if counts else []


def read(data):
    head, found = sections(data)
    n, mlps, words, k = head["tensors"], head["neurons"], head["words"], head["parameters"]
    table, take = {}, Columns(found["NAME"])
    table["names"] = [take("u1", size).tobytes().decode() for size in take("<u4", n).tolist()]
    take = Columns(found["TENS"])
    for key in ("roles", "contents", "dtypes"):
        table[key] = [words[key][word] for word in take("u1", n)]
    for key, kind in (("oriented", "u1"), ("digested", "u1"), ("ranks", "u1"), ("layers", "<i4"), ("experts", "<i4")):
        table[key] = take(kind, n)
    table["shapes"] = [take("<u8", rank).tolist() for rank in table["ranks"]]
    take, cast = Columns(found["DIGS"]), Columns(found.get("CAST", b""))
    table["digests"] = [take("u1", 32 * has).tobytes() for has in table["digested"].tolist()]
    table["casts"] = {w: [cast("u1", 32 * has).tobytes() for has in cast("u1", n).tolist()] for w in words["casts"]}
    take = Columns(found["STAT"])
    table["statistics"] = [take("<f8", 5, n), take("<u8", n), take("u1", n)]
    take = Columns(found.get("SKET", bytes(4)))
    at = take("<u4", int(take("<u4", 1)[0]))
    sketches = dict(zip(at.tolist(), take("<f4", len(at), k["sketch_width"], k["sketch_width"]), strict=True))
    take = Columns(found.get("AXIS", bytes(8)))
    lists, m = take.lists(), int(take("<u4", 1)[0])
    axes = [take(kind, m) for kind in ("<u4", "<u4", "<u8", "u1", "u1")]  # tensor, list, size, axis, dimension
    indices = [lists[i] for i in axes[1]]
    samples = (axes, indices, take.rows([len(one) for one in indices], k["axis_width"], "<i2", "<f2"))
    take = Columns(found.get("NEUR", bytes(4)))
    lists = take.lists()
    mlp = [take("<u4", mlps), take("<u8", mlps), take("<i4", mlps), take("<i4", mlps), take("<i4", mlps, 3)]
    mlp += [take("u1", mlps) for _ in range(3)]  # list, size, layer, expert, tensors, frame, activation, gated
    indices = [lists[i] for i in mlp[0]]
    counts = [(2 + int(gated)) * len(one) for gated, one in zip(mlp[7], indices, strict=True)]
    neurons = (mlp, indices, take.rows(counts, k["frame_width"], "<f4", "i1"))
    return head | json.loads(found["META"]) | table | {"sketches": sketches, "samples": samples, "mlps": neurons}
