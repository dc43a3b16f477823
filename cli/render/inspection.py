"""How ``fp inspect`` shows what the readers see of a checkpoint or signature."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from msgspec.structs import asdict

from cli.render.layout import EachText, fields, table
from cli.render.view import View
from cli.text import counted, file_size, magnitude, percent, printable, ranges
from fingerprint.claims import ClaimKind, read_claims

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cli.console import Look
    from fingerprint.checkpoint import Checkpoint
    from fingerprint.claims import Claim
    from fingerprint.records import Fingerprint

INSPECT_SCHEMA: Final = "fp.inspect/1"
_MANY: Final = 8
_INTEGERS: Final = ("I", "U", "BOOL")


class InspectedTensor(Struct, frozen=True):
    """A canonical tensor: as stored, or a part of a stored one that was split; ``dtype`` is the stored type."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    role: str
    layer: int | None
    expert: int | None
    oriented: bool


class Inspection(Struct, frozen=True):
    """What is known of a checkpoint without reading its weights.

    ``kind`` is checkpoint or signature; ``quantisation`` describes what names and types show of it, empty if nothing;
    ``stored_tensors`` are counted before splitting (None for a signature, which does not say).
    """

    path: str
    kind: str
    format: str
    files: tuple[tuple[str, int], ...]
    bytes: int
    complete: bool
    dtypes: Mapping[str, int]
    parameters: int
    stored_tensors: int | None
    tensors: tuple[InspectedTensor, ...]
    family: str | None
    width: int | None
    mlps: int
    quantisation: str
    findings: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    claims: Mapping[str, str]

    @property
    def provenance(self) -> tuple[Claim, ...]:
        """What the claims say about where the weights come from."""
        return read_claims(self.claims).claims

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers."""
        return sorted({one.layer for one in self.tensors if one.layer is not None})

    @property
    def experts(self) -> int:
        """Number of experts of a layer."""
        return len({one.expert for one in self.tensors if one.expert is not None})


def of_checkpoint(path: str, checkpoint: Checkpoint) -> Inspection:
    """Lay a checkpoint out; reads no weights."""
    from fingerprint.canonical import lay_out

    layout = lay_out(checkpoint.tensors, checkpoint.metadata)
    return Inspection(
        path=path,
        kind="checkpoint",
        format=checkpoint.format,
        files=tuple((file.path, file.bytes) for file in checkpoint.files),
        bytes=checkpoint.bytes,
        complete=checkpoint.complete,
        dtypes=checkpoint.dtypes,
        parameters=checkpoint.parameters,
        stored_tensors=len(checkpoint.tensors),
        tensors=tuple(
            InspectedTensor(
                one.name,
                one.view.dtype.name,
                tuple(one.view.shape),
                one.role.value,
                one.layer,
                one.expert,
                one.oriented,
            )
            for one in layout.tensors
        ),
        family=layout.family,
        width=layout.width,
        mlps=len(layout.mlps),
        quantisation=_quantisation(checkpoint.dtypes, checkpoint.metadata),
        findings=tuple((finding.code, finding.message) for finding in checkpoint.findings),
        notes=layout.notes,
        claims=dict(checkpoint.metadata),
    )


def of_fingerprint(path: str, held: Fingerprint) -> Inspection:
    """What a signature says about the checkpoint that it was made from."""
    return Inspection(
        path=path,
        kind="signature",
        format=held.format,
        files=(),
        bytes=held.stored_bytes,
        complete=held.complete,
        dtypes=dict(held.dtypes),
        parameters=held.elements,
        stored_tensors=None,
        tensors=tuple(
            InspectedTensor(one.name, one.dtype, one.shape, one.role.value, one.layer, one.expert, one.oriented)
            for one in held.tensors
        ),
        family=None,
        width=None,
        mlps=len(held.neurons),
        quantisation=_quantisation(held.dtypes, held.claims),
        findings=held.findings,
        notes=(),
        claims=dict(held.claims),
    )


def _quantisation(dtypes: Mapping[str, int], claims: Mapping[str, str]) -> str:
    """What number types show, and what is claimed beside the weights."""
    from fingerprint.dtypes import DTYPES
    from fingerprint.readers.adapters import LOW_RANK

    # Quantised layouts, which are dequantised while reading, have names of their own; products of factors have too.
    narrow = [name for name in dtypes if name not in DTYPES or name.startswith(("F8", "F6", "F4"))]
    narrow = [name for name in narrow if name != LOW_RANK.name]
    total = sum(dtypes.values()) or 1
    packed = sum(number for name, number in dtypes.items() if name in DTYPES and name.startswith(_INTEGERS))
    parts = []
    if narrow:
        parts.append(f"stored as {', '.join(narrow)}")
    if packed / total > 0.5:
        parts.append(f"{percent(packed / total)} of the elements are integers")
    claimed = claims.get("config.quantization_config.quant_method") or claims.get("quant_method")
    if claimed:
        parts.append(f"claimed: {claimed[:80]}")
    return "; ".join(parts)


def inspection_view(*, tensors: bool) -> View[Inspection]:
    """How inspections are shown, with or without all tensors; rows of a table are always tensors."""

    def to_object(found: Inspection) -> Mapping[str, Any]:
        return _object(found, tensors=tensors)

    def show(found: Inspection, look: Look) -> str:
        return _text(found, look, tensors=tensors)

    return View(to_object, _COLUMNS, _rows, lambda look: EachText(show, look))


def _object(found: Inspection, *, tensors: bool) -> Mapping[str, Any]:
    whole: dict[str, Any] = {
        "schema": INSPECT_SCHEMA,
        "path": found.path,
        "kind": found.kind,
        "format": found.format,
        "files": [{"path": path, "bytes": size} for path, size in found.files],
        "bytes": found.bytes,
        "complete": found.complete,
        "dtypes": dict(found.dtypes),
        "quantisation": found.quantisation or None,
        "parameters": found.parameters,
        "stored_tensors": found.stored_tensors,
        "canonical_tensors": len(found.tensors),
        "family": found.family,
        "width": found.width,
        "layers": len(found.layers),
        "experts": found.experts,
        "mlps": found.mlps,
        "roles": dict(Counter(one.role for one in found.tensors).most_common()),
        "findings": [{"code": code, "message": message} for code, message in found.findings],
        "notes": list(found.notes),
        "provenance": [asdict(claim) for claim in found.provenance],
        "claims": dict(found.claims),
    }
    if tensors:
        whole["tensors"] = [
            {
                "name": one.name,
                "dtype": one.dtype,
                "shape": list(one.shape),
                "role": one.role,
                "layer": one.layer,
                "expert": one.expert,
                "oriented": one.oriented,
            }
            for one in found.tensors
        ]
    return whole


_COLUMNS: Final = ("path", "tensor", "dtype", "shape", "elements", "role", "layer", "expert", "oriented")


def _rows(found: Inspection) -> Iterable[Mapping[str, Any]]:
    if not found.tensors:
        return [{"path": found.path}]
    return [
        {
            "path": found.path,
            "tensor": one.name,
            "dtype": one.dtype,
            "shape": "x".join(map(str, one.shape)),
            "elements": math.prod(one.shape),
            "role": one.role,
            "layer": one.layer,
            "expert": one.expert,
            "oriented": one.oriented,
        }
        for one in found.tensors
    ]


def _text(found: Inspection, look: Look, *, tensors: bool) -> str:
    head = found.format if found.kind == "checkpoint" else f"signature of a {found.format} checkpoint"
    lines = [look.styled(printable(found.path), bold=True)]
    lines += fields(
        [
            ("Format", f"{head}, {_files(found)}{file_size(found.bytes)}"),
            ("Not whole", "" if found.complete else "parts are absent or cannot be read: see the findings"),
            ("Tensors", _tensor_counts(found)),
            ("Types", ", ".join(f"{name} {magnitude(number)}" for name, number in found.dtypes.items())),
            ("Quantised", found.quantisation or "no, as far as names, types and claims show"),
            ("Layout", _layout(found)),
        ],
        look,
    )
    lines += _some([("Finding", message) for _, message in found.findings], look)
    lines += _some([("Note", note) for note in found.notes], look)
    lines += _some([("Says of itself", _said(claim)) for claim in found.provenance], look)
    lines += _some([("Claim", f"{key} = {value[:200]}") for key, value in sorted(found.claims.items())], look)
    lines.append("")
    lines += _tensor_table(found, look) if tensors else _role_table(found, look)
    return "\n".join(lines) + "\n"


def _said(claim: Claim) -> str:
    about = f"{claim.part}: " if claim.part else ""
    lead = {ClaimKind.BASE: "its base is", ClaimKind.NAME: "it is", ClaimKind.SCRATCH: "it says"}[claim.kind]
    how = f", {claim.relation}" if claim.relation else ""
    return f'{about}{lead} "{claim.value}" ({claim.source}{how})'


def _files(found: Inspection) -> str:
    return f"{counted(len(found.files), 'file')}, " if found.files else ""


def _tensor_counts(found: Inspection) -> str:
    text = f"{magnitude(found.parameters)} parameters in "
    if found.stored_tensors is None or found.stored_tensors == len(found.tensors):
        return text + counted(len(found.tensors), "tensor")
    return f"{text}{counted(found.stored_tensors, 'stored tensor')}, {len(found.tensors):,} after splitting"


def _layout(found: Inspection) -> str:
    parts = []
    if found.kind == "checkpoint":
        parts.append(f"names as in {found.family}" if found.family else "names not known: roles from shapes")
    numbered = f"{counted(len(found.layers), 'layer')} ({ranges(found.layers)})"
    parts.append(numbered if found.layers else "no layers that are numbered")
    if found.experts:
        parts.append(counted(found.experts, "expert"))
    if found.width:
        parts.append(f"width {found.width:,}")
    parts.append(f"{counted(found.mlps, 'MLP')} recognised")
    return "; ".join(parts)


def _some(pairs: list[tuple[str, str]], look: Look) -> list[str]:
    if look.details or len(pairs) <= _MANY:
        return fields(pairs, look)
    return fields([*pairs[:_MANY], (pairs[0][0], f"{len(pairs) - _MANY} more with -v")], look)


def _role_table(found: Inspection, look: Look) -> list[str]:
    rows = []
    for role, number in Counter(one.role for one in found.tensors).most_common():
        members = [one for one in found.tensors if one.role == role]
        elements = sum(math.prod(one.shape) for one in members)
        shapes = Counter(_shape(one.shape) for one in members)
        listed = ", ".join(shape for shape, _ in shapes.most_common(2)) + (", …" if len(shapes) > 2 else "")
        rows.append([role, f"{number:,}", magnitude(elements), listed])
    return table(["Role", "tensors", "elements", "shapes"], rows, look, right=(1, 2), indent=2)


def _tensor_table(found: Inspection, look: Look) -> list[str]:
    rows = [
        [
            one.name,
            _shape(one.shape),
            one.dtype,
            one.role + ("" if one.oriented or len(one.shape) < 2 else "?"),
            "" if one.layer is None else str(one.layer),
            "" if one.expert is None else str(one.expert),
        ]
        for one in found.tensors
    ]
    header = ["Tensor", "shape", "type", "role", "layer", "expert"]
    if not found.experts:
        header, rows = header[:-1], [row[:-1] for row in rows]
    return table(header, rows, look, right=(4, 5), whole=(0,), indent=2)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) if shape else "scalar"
