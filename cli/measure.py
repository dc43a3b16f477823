"""Makes the signature of what is to be registered: measured from weights, or read from a signature file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli.console import Console
    from signatures.keyed import Key
    from signatures.signature import Signature


def signature_of(path: str, console: Console, depth: str, key: Key | None = None, *, less: bool = False) -> Signature:
    """The signature of a checkpoint at ``depth``, or of a signature file, whatever its depth; what was noticed while
    reading becomes warnings. With a ``key`` there is a second sketch under it; ``less`` discloses less.

    Raises ``InputError``, ``SignatureError``, ``UsageError``.
    """
    from cli.progress import reading
    from fingerprint.assemble import measure_checkpoint
    from fingerprint.checkpoint import open_checkpoint
    from fingerprint.errors import UsageError
    from fingerprint.quick import quick_look
    from fingerprint.vocabulary import Depth
    from signatures.budget import DEFAULT_LIMIT
    from signatures.disclosure import disclose_less
    from signatures.keyed import KEYED_BYTES, keyed_fingerprint, keyed_section, with_section
    from signatures.signature import decode, is_signature, read_signature, signed_bytes

    if is_signature(path):
        signature = read_signature(path)
        if key is not None:
            keyed_fingerprint(signature, key, path)  # refuses one without a sketch under this key
        if less:
            raise UsageError(f"{path}: --disclose less is for weights; a signature is registered as it is")
        return signature
    with open_checkpoint(path) as checkpoint, reading(console, path) as progress:
        measure = quick_look if depth == Depth.QUICK else measure_checkpoint
        measured = measure(checkpoint, progress=progress).fingerprint
    for _, message in measured.findings:
        console.warning(f"{path}: {message}")
    if not measured.complete:
        console.warning(f"{path}: parts are absent; the signature is that of the rest")
    if less:
        measured = disclose_less(measured)
    data = signed_bytes(measured, limit=DEFAULT_LIMIT if key is None else DEFAULT_LIMIT - 2 * KEYED_BYTES)
    del measured  # that of a very large model takes a hundred megabytes
    if key is None:
        return decode(data)
    with open_checkpoint(path) as checkpoint, reading(console, path) as progress:
        return with_section(decode(data), keyed_section(checkpoint, key, progress))
