"""Hostile archives of checkpoints: tar headers that lie, bombs, names and links that lead elsewhere."""

# One case a line, however long it is.
# ruff: noqa: E501

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib

from tests.hostile.case import GOOD, Case, Expect, file_case

MALFORMED, LIMIT, UNSUPPORTED = "MalformedFileError", "LimitExceededError", "UnsupportedFormatError"


def member(
    name: str, size: int, kind: bytes = b"0", data: bytes = b"", *, raw_size: bytes = b"", link: str = ""
) -> bytes:
    """A member with a right checksum; ``size`` is what its header claims."""
    fields = [name.encode()[:100].ljust(100, b"\0"), b"0000644\0", b"0000000\0", b"0000000\0"]
    fields += [
        raw_size or b"%011o\0" % size,
        b"%011o\0" % 0,
        b" " * 8,
        kind,
        link.encode().ljust(100, b"\0"),
        b"ustar\x0000",
    ]
    block = b"".join(fields).ljust(512, b"\0")
    checksum = b"%06o\0 " % sum(block)
    return block[:148] + checksum + block[156:] + data + bytes(-len(data) % 512)


END = bytes(1024)
TAR = member("m/model.safetensors", len(GOOD), data=GOOD)


def _pax(text: bytes) -> bytes:
    return member("x", len(text), b"x", text)


def _tar(title: str, data: bytes, expect: Expect = Expect.ERROR, detail: str = MALFORMED) -> Case:
    return file_case(f"tar: {title}", "model.tar", data, expect, detail)


def _zip(title: str, entries: dict[str, bytes], expect: Expect, detail: str = "", *, link: str = "") -> Case:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in entries.items():
            file.writestr(name, data)
        if link:
            info = zipfile.ZipInfo("m/link.safetensors")
            info.external_attr = 0o120777 << 16
            file.writestr(info, link)
    return file_case(f"archive: {title}", "model.zip", buffer.getvalue(), expect, detail)


def _real_tar(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(GOOD)
            file.addfile(info, io.BytesIO(GOOD))
    return buffer.getvalue()


def _quine() -> bytes:
    """gzip in gzip in gzip."""
    data = GOOD
    for _ in range(20):
        data = gzip.compress(data)
    return data


CONTAINER_CASES: tuple[Case, ...] = (
    _tar("size of 2**63", member("m/model.safetensors", 0, raw_size=b"\x80" + bytes(3) + b"\x80" + bytes(7)) + END),
    _tar("negative size", member("m/model.safetensors", 0, raw_size=b"\xff" * 12) + END),
    _tar("size that is no number", member("m/model.safetensors", 0, raw_size=b"abc".ljust(12, b"\0")) + END),
    _tar("member of 4 GB", member("m/model.safetensors", 2**32, data=GOOD) + END, Expect.PARTIAL, "truncated"),
    _tar("garbage between members", TAR + b"x" * 512 + TAR + END),
    _tar("no end", TAR, Expect.PARTIAL, "truncated"),
    _tar("cut off in the member", TAR[: 512 + len(GOOD) - 1], Expect.PARTIAL, "truncated"),
    _tar("name of a gigabyte", member("x", 2**30, b"L") + TAR + END, detail=LIMIT),
    _tar("pax header of a gigabyte", member("x", 2**30, b"x") + TAR + END, detail=LIMIT),
    _tar("pax record of a negative length", _pax(b"-5 path=a\n") + TAR + END),
    _tar("pax record of length 0", _pax(b"0 path=a\n") + TAR + END),
    _tar("pax record longer than its header", _pax(b"99999 path=a\n") + TAR + END),
    _tar("pax size behind the end", _pax(b"23 size=99999999999999\n") + TAR + END, Expect.PARTIAL, "truncated"),
    _tar("half a million members", b"".join([member("a", 0)] * 131_073) + END, detail=LIMIT),
    _tar("names that lead upwards", TAR + member("../../../evil.safetensors", len(GOOD), data=GOOD) + END, Expect.FINDING, "odd-member-name"),
    _tar("names from the root", TAR + member("/etc/evil.safetensors", len(GOOD), data=GOOD) + END, Expect.FINDING, "odd-member-name"),
    _tar("link out of the archive", TAR + member("m/a.safetensors", 0, b"2", link="/etc/passwd") + END, Expect.FINDING, "archive-link"),
    _tar("link to itself", TAR + member("m/a.safetensors", 0, b"2", link="a.safetensors") + END, Expect.FINDING, "archive-link"),
    _tar("hard link to nothing", TAR + member("m/a.safetensors", 0, b"1", link="nothing") + END, Expect.FINDING, "archive-link"),
    _tar("two links to each other", TAR + member("m/a.safetensors", 0, b"2", link="b") + member("m/b", 0, b"2", link="a.safetensors") + END, Expect.FINDING, "archive-link"),
    _tar("a device", TAR + member("m/b.safetensors", 0, b"3") + END, Expect.FINE, ""),
    _tar("sparse member", TAR + member("m/b.safetensors", 0, b"S") + END, Expect.PARTIAL, "sparse-member"),
    _tar("one name twice", TAR + TAR + END, Expect.FINE, ""),
    _tar("nothing in it", member("README", 0) + END, detail=UNSUPPORTED),
    _tar("a hundred components", _real_tar(*(f"m/{n}/model.safetensors" for n in range(100))), detail=LIMIT),
    _zip("names that lead upwards", {"m/model.safetensors": GOOD, "../../evil.safetensors": GOOD}, Expect.FINDING, "odd-member-name"),
    _zip("names with backslashes", {"m/model.safetensors": GOOD, "..\\..\\evil.safetensors": GOOD}, Expect.FINDING, "odd-member-name"),
    _zip("a link", {"m/model.safetensors": GOOD}, Expect.FINDING, "archive-link", link="/etc/passwd"),
    _zip("nothing but a folder", {"m/": b""}, Expect.ERROR, UNSUPPORTED),
    _zip("damaged checkpoint in it", {"m/model.safetensors": GOOD[:20]}, Expect.ERROR, MALFORMED),
    _zip("checkpoint in it that was cut off", {"m/model.safetensors": GOOD[:-1]}, Expect.PARTIAL, "truncated"),
    file_case("gzip: twenty times", "model.gz", _quine, Expect.ERROR, LIMIT),
    file_case("gzip: 100 MB of zeros", "model.gz", lambda: gzip.compress(bytes(100_000_000)), Expect.ERROR, LIMIT),
    file_case("gzip: head alone", "model.gz", gzip.compress(GOOD)[:10], Expect.ERROR, MALFORMED),
    file_case("gzip: cut off", "model.gz", gzip.compress(bytes(range(16)) + GOOD)[:-10], Expect.ERROR, UNSUPPORTED),
    file_case("gzip: damaged", "model.gz", gzip.compress(GOOD)[:10] + b"\xff" * 100, Expect.ERROR, MALFORMED),
    file_case("gzip: of nothing", "model.gz", gzip.compress(b""), Expect.ERROR, MALFORMED),
    file_case("gzip: wrong checksum", "model.gz", gzip.compress(GOOD)[:-8] + bytes(8), Expect.ERROR, MALFORMED),
    file_case("zlib: not gzip", "model.gz", zlib.compress(GOOD), Expect.ERROR, UNSUPPORTED),
    file_case("bzip2: head alone", "model.bz2", b"BZh9", Expect.ERROR, MALFORMED),
    file_case("xz: damaged", "model.xz", b"\xfd7zXZ\x00" + b"\xff" * 50, Expect.ERROR, MALFORMED),
    file_case("zstd: damaged", "model.zst", b"\x28\xb5\x2f\xfd" + b"\xff" * 50, Expect.ERROR, MALFORMED),
)  # fmt: skip
"""What an archive claims about names, sizes and links, none of which may lead anywhere."""
