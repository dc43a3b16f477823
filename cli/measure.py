"""Makes the signature of what is to be registered: measured from weights, or read from a signature file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from cli.console import Console
    from fingerprint.checkpoint import Checkpoint
    from signatures.keyed import Key
    from signatures.signature import Signature


class Measuring(Struct, frozen=True):
    """How to measure what is to be registered.

    Without ``depth`` everything is read, unless much would have to be fetched. With a ``key`` there is a second sketch
    under it; ``less`` discloses less.
    """

    depth: str | None = None
    key: Key | None = None
    less: bool = False


def signature_of(path: str, console: Console, how: Measuring) -> Signature:
    """The signature of a checkpoint, or of a signature file, whatever its depth; what was noticed while reading becomes
    warnings.

    Raises ``InputError``, ``SignatureError``, ``UsageError``.
    """
    from cli import options
    from cli.progress import reading
    from cli.text import file_size
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
        if how.key is not None:
            keyed_fingerprint(signature, how.key, path)  # refuses one without a sketch under this key
        if how.less:
            raise UsageError(f"{path}: --disclose less is for weights; a signature is registered as it is")
        return signature
    with open_checkpoint(options.located(path)) as checkpoint, reading(console, path) as progress:
        if how.depth is None or (how.depth == Depth.QUICK and how.key is not None):
            _require_meant(checkpoint, key=how.key is not None)
        measure = quick_look if how.depth == Depth.QUICK else measure_checkpoint
        measured = measure(checkpoint, progress=progress).fingerprint
    transfers = [checkpoint.transfer]
    for _, message in measured.findings:
        console.warning(f"{path}: {message}")
    if not measured.complete:
        console.warning(f"{path}: parts are absent; the signature is that of the rest")
    if how.less:
        measured = disclose_less(measured)
    data = signed_bytes(measured, limit=DEFAULT_LIMIT if how.key is None else DEFAULT_LIMIT - 2 * KEYED_BYTES)
    del measured  # that of a very large model takes a hundred megabytes
    signature = decode(data)
    if how.key is not None:
        with open_checkpoint(options.located(path)) as checkpoint, reading(console, path) as progress:
            signature = with_section(signature, keyed_section(checkpoint, how.key, signature, progress))
        transfers.append(checkpoint.transfer)
    fetched = [one for one in transfers if one is not None]
    if fetched:
        size, requests = file_size(sum(one.bytes for one in fetched)), sum(one.requests for one in fetched)
        console.note(f"{path}: {size} fetched in {requests:,} requests")
    return signature


def _require_meant(checkpoint: Checkpoint, *, key: bool) -> None:
    """Raise ``UsageError`` where a large checkpoint would be fetched whole and nobody said so, as a ``key`` has it."""
    from cli.text import file_size
    from fingerprint.errors import UsageError
    from signatures.suspect import AUTO_WHOLE

    if checkpoint.transfer is not None and checkpoint.bytes > AUTO_WHOLE:
        choice = "--depth full, or leave out --key" if key else "--depth quick for a sample, or --depth full"
        raise UsageError(f"{checkpoint.path}: {file_size(checkpoint.bytes)} would be fetched; say {choice}")
