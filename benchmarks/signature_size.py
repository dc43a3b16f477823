"""Sizes of signature files of large models, from synthetic fingerprints of their shapes.

``python -m benchmarks.signature_size``. Writes one line for each model and one for each section. Exit status 1 if a
signature is larger than it may be, or does not hold all digests.
"""

from __future__ import annotations

import struct
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.synthetic import deepseek_671b, llama_8b
from signatures.signature import decode, encode, sign

if TYPE_CHECKING:
    from fingerprint.records import Fingerprint


def measure(title: str, fingerprint: Fingerprint, limit: int) -> bool:
    """Print the size of the signature and of its sections; whether it is small enough and has all digests."""
    began = time.perf_counter()
    signature = sign(fingerprint)
    signed = time.perf_counter()
    data = encode(signature)
    written = time.perf_counter()
    kept = decode(data).fingerprint
    read = time.perf_counter()
    digests = sum(bool(record.digest) for record in kept.tensors)
    print(
        f"{title}: {fingerprint.elements / 1e9:.1f} billion parameters, {len(fingerprint.tensors)} tensors, "
        f"{len(fingerprint.neurons)} MLPs: {len(data)} bytes of at most {limit}"
    )
    print(f"  signed in {signed - began:.2f} s, written in {written - signed:.2f} s, read in {read - written:.2f} s")
    print(
        f"  kept: {digests} digests, {sum(len(record.casts) for record in kept.tensors)} digests of casts, "
        f"{sum(record.sketch is not None for record in kept.tensors)} sketches, "
        f"{sum(len(record.axes) for record in kept.tensors)} axis samples, {len(kept.neurons)} samples of neurons, "
        f"{len(kept.channels)} of channels, {len(kept.grams)} vectors of layers"
    )
    print(f"  left out, by the header: {dict(signature.left_out) or 'nothing'}")
    for kind, stored, raw in sections(data):
        print(f"  {kind}  {stored:>9} bytes  {stored / len(data):>6.1%}" + ("" if stored == raw else f"  (of {raw})"))
    return len(data) <= limit and digests == sum(bool(record.digest) for record in fingerprint.tensors)


def sections(data: bytes) -> list[tuple[str, int, int]]:
    """Kind, stored and uncompressed bytes of each section."""
    length, count = struct.unpack_from("<II", data, 12)
    entries = [struct.unpack_from("<4sIQQQ32s", data, 64 + length + 64 * number) for number in range(count)]
    return [(entry[0].decode(), entry[3], entry[4]) for entry in entries]


def main() -> int:
    fine = [
        measure("dense (shapes of Llama 3 8B)", llama_8b(), 4_000_000),
        measure("mixture of experts (shapes of DeepSeek V3)", deepseek_671b(), 24_000_000),
    ]
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
