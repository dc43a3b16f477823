"""Makes the signature of what is to be registered: measured from weights, or read from a signature file."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cli.console import Console
    from fingerprint.checkpoint import Checkpoint
    from signatures.signature import Signature


def signature_of(path: str, console: Console, depth: str | None) -> Signature:
    """The signature of a checkpoint at ``depth``, or of a signature file, whatever its depth; what was noticed while
    reading becomes warnings. Without ``depth`` everything is read, unless much would have to be fetched.

    Raises ``InputError``, ``SignatureError``, ``UsageError``.
    """
    from cli import options
    from cli.progress import reading
    from cli.text import file_size
    from fingerprint.assemble import measure_checkpoint
    from fingerprint.checkpoint import open_checkpoint
    from fingerprint.quick import quick_look
    from fingerprint.vocabulary import Depth
    from signatures.signature import decode, is_signature, read_signature, signed_bytes

    if is_signature(path):
        return read_signature(path)
    with open_checkpoint(options.located(path)) as checkpoint, reading(console, path) as progress:
        if depth is None:
            _require_meant(checkpoint)
        measure = quick_look if depth == Depth.QUICK else measure_checkpoint
        measured = measure(checkpoint, progress=progress).fingerprint
    if checkpoint.transfer is not None:
        fetched = checkpoint.transfer
        console.note(f"{path}: {file_size(fetched.bytes)} fetched in {fetched.requests:,} requests")
    for _, message in measured.findings:
        console.warning(f"{path}: {message}")
    if not measured.complete:
        console.warning(f"{path}: parts are absent; the signature is that of the rest")
    data = signed_bytes(measured)
    del measured  # that of a very large model takes a hundred megabytes
    return decode(data)


def _require_meant(checkpoint: Checkpoint) -> None:
    """Raise ``UsageError`` where a large checkpoint would be fetched whole and nobody said so."""
    from cli.text import file_size
    from fingerprint.errors import UsageError
    from signatures.suspect import AUTO_WHOLE

    if checkpoint.transfer is not None and checkpoint.bytes > AUTO_WHOLE:
        raise UsageError(
            f"{checkpoint.path}: {file_size(checkpoint.bytes)} would be fetched; say --depth quick for a sample, "
            "or --depth full"
        )
