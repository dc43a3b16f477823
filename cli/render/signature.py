"""How ``fp show`` shows a model: its record, and what its signature holds."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Self

from msgspec import Struct

from cli.render.layout import EachText, fields, table
from cli.render.models import model_object, moment
from cli.render.view import View
from cli.text import counted, file_size, magnitude, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cli.console import Look
    from signatures.records import ModelRecord
    from signatures.signature import Signature

SHOWN_SCHEMA: Final = "fp.show/1"
_MANY: Final = 12


class Shown(Struct, frozen=True):
    """A model of the registry and its signature; ``bytes`` is the size of the signature file."""

    record: ModelRecord
    signature: Signature
    bytes: int

    @classmethod
    def of(cls, record: ModelRecord, signature: Signature) -> Self:
        """Takes the signature's size from its bytes."""
        from signatures.signature import encode

        return cls(record, signature, len(encode(signature)))


def _object(shown: Shown) -> Mapping[str, Any]:
    from signatures.keyed import key_identity

    signature, held = shown.signature, shown.signature.fingerprint
    return {
        "schema": SHOWN_SCHEMA,
        **model_object(shown.record),
        "signature": {
            "identity": signature.identity,
            "created": moment(signature.created),
            "tool": signature.tool,
            "bytes": shown.bytes,
            "left_out": dict(signature.left_out),
            "method": held.parameters.to_mapping(),
            "held": _held(shown),
            "key": key_identity(signature),
        },
        "checkpoint": {
            "format": held.format,
            "files": held.files,
            "bytes": held.stored_bytes,
            "complete": held.complete,
            "dtypes": dict(held.dtypes),
            "roles": _roles(shown),
            "contents": dict(Counter(str(tensor.content) for tensor in held.tensors)),
            "layers": _layers(shown),
            "findings": [{"code": code, "message": message} for code, message in held.findings],
            "claims": dict(held.claims),
        },
    }


def _held(shown: Shown) -> dict[str, int]:
    """How many of each part the signature holds."""
    held = shown.signature.fingerprint
    return {
        "digests": sum(bool(tensor.digest) for tensor in held.tensors),
        "cast_digests": sum(len(tensor.casts) for tensor in held.tensors),
        "sketches": sum(tensor.sketch is not None for tensor in held.tensors),
        "axis_samples": sum(len(tensor.axes) for tensor in held.tensors),
        "neuron_samples": len(held.neurons),
    }


def _roles(shown: Shown) -> dict[str, int]:
    return dict(Counter(str(tensor.role) for tensor in shown.signature.fingerprint.tensors).most_common())


def _layers(shown: Shown) -> int:
    return len({tensor.layer for tensor in shown.signature.fingerprint.tensors if tensor.layer is not None})


def _rows(shown: Shown) -> Iterable[Mapping[str, Any]]:
    """One row a tensor of the signature."""
    for position, tensor in enumerate(shown.signature.fingerprint.tensors):
        yield {
            "model": shown.record.name,
            "position": position,
            "tensor": tensor.name,
            "role": tensor.role.value,
            "layer": tensor.layer,
            "expert": tensor.expert,
            "shape": "x".join(map(str, tensor.shape)),
            "dtype": tensor.dtype,
            "content": tensor.content.value,
            "mean": tensor.statistics.mean,
            "deviation": tensor.statistics.deviation,
            "sketched": tensor.sketch is not None,
            "digest": tensor.digest.hex(),
        }


_COLUMNS: Final = (
    "model", "position", "tensor", "role", "layer", "expert", "shape", "dtype", "content", "mean", "deviation",
    "sketched", "digest",
)  # fmt: skip


def _text(shown: Shown, look: Look) -> str:
    record, signature, held = shown.record, shown.signature, shown.signature.fingerprint
    lines = [look.styled(printable(record.name), bold=True)]
    for entry in record.registrations:
        said = [
            ("Alias" if entry.name != record.name else "", entry.name if entry.name != record.name else ""),
            ("Owner", entry.owner or ""),
            ("License", entry.license or ""),
            ("Revision", entry.revision or ""),
            ("Base", entry.base or ""),
            ("Registered", moment(entry.registered) + ("" if entry.origin == "local" else f", from {entry.origin}")),
            ("Claimed", "" if entry.claimed is None else f"{moment(entry.claimed)} by its origin"),
            ("Note", entry.note or ""),
        ]
        lines += fields(said, look)
    from signatures.keyed import key_identity

    lines.append("")
    parts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in _held(shown).items() if number)
    left = ", ".join(f"{number:,} {name}" for name, number in signature.left_out.items())
    source = [held.format, counted(held.files, "file"), file_size(held.stored_bytes), "+".join(held.dtypes)]
    layers = [counted(number, "layer")] if (number := _layers(shown)) else []
    lines += fields(
        [
            ("Weights", f"{magnitude(record.parameters)} parameters in {counted(record.tensors, 'tensor')}"),
            ("", "; ".join([*layers, ", ".join(source)])),
            ("Not whole", "" if held.complete else "parts of the checkpoint were absent when it was measured"),
            ("Signature", f"{signature.identity}"),
            ("", f"{file_size(shown.bytes)}, made {moment(signature.created)} by {signature.tool}, depth {held.depth}"),
            ("Holds", parts),
            ("Secret key", "" if (key := key_identity(signature)) is None else f"a sealed sketch under key {key}"),
            ("Left out", left and f"samples of {left}, to keep the file small"),
            *(("Finding", message) for _, message in held.findings),
        ],
        look,
    )
    claims = sorted(held.claims.items())
    shown_claims = claims if look.details else claims[:_MANY]
    lines += fields([("Claims", f"{key} = {value[:200]}") for key, value in shown_claims], look)
    if len(shown_claims) < len(claims):
        lines += fields([("", f"{len(claims) - len(shown_claims)} more with -v")], look)
    lines.append("")
    counts = _roles(shown)
    lines += table(["Role", "tensors"], [[role, f"{n:,}"] for role, n in counts.items()], look, right=(1,), indent=2)
    return "\n".join(lines) + "\n"


SHOWN_VIEW: Final = View(_object, _COLUMNS, _rows, lambda look: EachText(_text, look))
