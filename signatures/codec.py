"""From a fingerprint to the bytes of a signature file and back: the header and which section holds what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NoReturn

import numpy as np

from fingerprint.comparing.sampled import slice_vectors
from fingerprint.errors import MalformedSignatureError, SignatureVersionError, UsageError, clipped
from fingerprint.parameters import Parameters
from fingerprint.records import ChannelSample, Fingerprint, LayerGram, NeuronSample, TensorRecord
from fingerprint.vocabulary import Content, Frame
from signatures import gauge_sections as gauge
from signatures import sections as parts
from signatures.columns import ColumnReader
from signatures.container import Envelope, Section, canonical_json, identity_of, pack, parse_object, unpack
from signatures.index import GRAM_POSITIONS, unit_vectors

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from fingerprint.readers.bounded_json import Json

KNOWN_KINDS: Final = (
    "NAME",
    "TENS",
    "DIGS",
    "CAST",
    "STAT",
    "SKET",
    "AXIS",
    "NEUR",
    "META",
    "SELF",
    "CHAN",
    "GRAM",
    "SLIC",
)

MAX_SAMPLED_MLPS: Final = 1 << 17
MAX_WIDTH: Final = 4096
MAX_LABELS: Final = 1 << 12
MAX_LABEL: Final = 1 << 12
LEFT_OUT: Final = frozenset({"sketches", "axes", "neurons", "channels"})


def encode_fingerprint(
    fingerprint: Fingerprint,
    *,
    left_out: Mapping[str, int],
    extra: Sequence[Section],
    created: int,
    tool: str,
) -> tuple[bytes, str]:
    """Bytes and identity of the signature of ``fingerprint``.

    ``left_out`` says of how many tensors (MLPs for "neurons") parts were left out by the budget; ``extra`` are
    sections that this program does not know, carried along; ``created`` is in seconds since 1970 (UTC). Float samples
    are quantised. Raises ``UsageError`` if the fingerprint exceeds a bound of the format.
    """
    header, sections = _contents(fingerprint, left_out)
    return pack(header, [*sections, *extra], created=created, tool=tool)


def fingerprint_identity(fingerprint: Fingerprint, *, left_out: Mapping[str, int], extra: Sequence[Section]) -> str:
    """The identity of the same signature, which need not be within the bound on its bytes."""
    header, sections = _contents(fingerprint, left_out)
    return identity_of(header, [*sections, *extra])


def _contents(fingerprint: Fingerprint, left_out: Mapping[str, int]) -> tuple[dict[str, object], list[Section]]:
    """Header and sections of the signature of ``fingerprint``."""
    counts = (len(fingerprint.neurons), len(fingerprint.channels), len(fingerprint.grams))
    if len(fingerprint.tensors) > parts.MAX_TENSORS or max(counts) > MAX_SAMPLED_MLPS:
        raise UsageError(f"a signature holds at most {parts.MAX_TENSORS} tensors and {MAX_SAMPLED_MLPS} sampled MLPs")
    words = parts.Vocabulary.of(fingerprint)
    header: dict[str, object] = {
        "bytes_read": fingerprint.bytes_read,
        "complete": fingerprint.complete,
        "depth": fingerprint.depth,
        "dtypes": dict(fingerprint.dtypes),
        "files": fingerprint.files,
        "format": fingerprint.format,
        "left_out": {name: number for name, number in left_out.items() if number},
        "neurons": len(_shared(fingerprint.neurons)),
        "parameters": fingerprint.parameters.to_mapping(),
        "stored_bytes": fingerprint.stored_bytes,
        "tensors": len(fingerprint.tensors),
        "words": words.to_mapping(),
    }
    return header, _sections(fingerprint, words)


def decode_fingerprint(
    data: bytes | memoryview, *, path: str
) -> tuple[Envelope, Fingerprint, dict[str, int], tuple[Section, ...]]:
    """Inverse of ``encode_fingerprint``: envelope, fingerprint, what was left out, unknown sections.

    Raises ``MalformedSignatureError``, ``SignatureVersionError`` for a version, essential section or word that this
    program does not know, ``IncompatibleParametersError`` for unknown parameters of the method.
    """
    envelope = unpack(data, path=path)
    header = _Header(envelope.header, path)
    known = {section.kind: section.data for section in envelope.sections if section.kind in KNOWN_KINDS}
    extra = tuple(section for section in envelope.sections if section.kind not in KNOWN_KINDS)
    _refuse_essential(extra, path)
    for kind in ("NAME", "TENS", "DIGS", "STAT", "META"):
        if kind not in known:
            raise MalformedSignatureError(f"{path}: section {kind} is absent")
    claims, findings = _labels(known["META"], path)
    fingerprint = Fingerprint(
        parameters=header.parameters(),
        depth=header.text("depth"),
        format=header.text("format"),
        files=header.number("files"),
        stored_bytes=header.number("stored_bytes"),
        bytes_read=header.number("bytes_read"),
        dtypes=header.numbers("dtypes"),
        complete=header.flag("complete"),
        tensors=_tensors(known, header, path),
        neurons=_neurons(known, header, path),
        findings=findings,
        claims=claims,
        channels=_channels(known, header, path),
        grams=_grams(known, header, path),
    )
    header.require_nothing_else()
    return envelope, fingerprint, header.left_out(), extra


def decode_vectors(data: bytes | memoryview, *, path: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What the index holds of a signature: positions (m,) and unit vectors (m, w * w), w being ``index_width``.

    Those at the positions of tensors are corners (w, w) of their sketches; those from ``GRAM_POSITIONS`` on are the
    vectors of layers, in the order of the signature.

    Raises as ``decode_fingerprint``, but looks at the table and the sketches alone.
    """
    envelope = unpack(data, path=path)
    header = _Header(envelope.header, path)
    known = {section.kind: section.data for section in envelope.sections}
    width = header.parameters().index_width
    if "TENS" not in known:
        raise MalformedSignatureError(f"{path}: section TENS is absent")
    rows = parts.read_table(known["TENS"], header.tensors(), header.words(), path)
    found = parts.read_sketches(known["SKET"], len(rows), header.parameters(), path) if "SKET" in known else {}
    corners = {at: found[at][:width, :width] for at in found if rows[at].content is Content.WEIGHTS}
    chosen = {at: corner for at, corner in corners.items() if np.any(corner)}
    for number, gram in enumerate(_grams(known, header, path)):
        if np.any(gram.values):
            chosen[GRAM_POSITIONS + number] = gram.values.reshape(width, width)
    if not chosen:
        return np.zeros(0, np.int64), np.zeros((0, width * width), np.float32)
    return np.array(list(chosen), np.int64), unit_vectors(np.stack(list(chosen.values())))


def decode_slices(data: bytes | memoryview, *, path: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What the index of slices holds of a signature: positions (m,) and unit vectors; see ``slice_vectors``.

    Raises as ``decode_fingerprint``, but looks at the table and the samples of axes alone.
    """
    envelope = unpack(data, path=path)
    header = _Header(envelope.header, path)
    known = {section.kind: section.data for section in envelope.sections}
    parameters = header.parameters()
    if "TENS" not in known:
        raise MalformedSignatureError(f"{path}: section TENS is absent")
    words = header.words()
    rows = parts.read_table(known["TENS"], header.tensors(), words, path)
    axes = parts.read_axes(known["AXIS"], len(rows), words["axes"], parameters, path) if "AXIS" in known else {}
    return slice_vectors({at: found for at, found in axes.items() if rows[at].content is Content.WEIGHTS}, parameters)


def _sections(fingerprint: Fingerprint, words: parts.Vocabulary) -> list[Section]:
    tensors, parameters = fingerprint.tensors, fingerprint.parameters
    labels = {
        "claims": {_label(name): _label(text) for name, text in fingerprint.claims.items()},
        "findings": [[_label(code), _label(text)] for code, text in fingerprint.findings],
    }
    if len(fingerprint.claims) + len(fingerprint.findings) > MAX_LABELS:
        raise UsageError(f"a signature holds at most {MAX_LABELS} claims and findings")
    found = [
        Section("NAME", parts.names_section(tensors)),
        Section("TENS", parts.table_section(tensors, words)),
        Section("DIGS", parts.digests_section(tensors)),
        Section("STAT", parts.statistics_section(tensors)),
        Section("META", canonical_json(labels)),
    ]
    if words.casts.words:
        found.append(Section("CAST", parts.casts_section(tensors, words)))
    if any(record.sketch is not None for record in tensors):
        found.append(Section("SKET", parts.sketches_section(tensors, parameters)))
    if any(record.axes for record in tensors):
        found.append(Section("AXIS", parts.axes_section(tensors, words, parameters)))
    if any(sample.digest for record in tensors for sample in record.axes):
        found.append(Section("SLIC", parts.slices_section(tensors, words)))
    shared, own = _shared(fingerprint.neurons), _own(fingerprint.neurons)
    if shared:
        found.append(Section("NEUR", parts.neurons_section(shared, words, parameters.frame_width)))
    if own:
        found.append(Section("SELF", gauge.own_section(own, words)))
    if fingerprint.channels:
        found.append(Section("CHAN", gauge.channels_section(fingerprint.channels, words, parameters)))
    if fingerprint.grams:
        found.append(Section("GRAM", gauge.grams_section(fingerprint.grams, words, parameters)))
    return found


def _shared(neurons: Sequence[NeuronSample]) -> list[NeuronSample]:
    """Samples in frames that all MLPs share; those in frames of their own have another width."""
    return [sample for sample in neurons if sample.frame != Frame.SELF]


def _own(neurons: Sequence[NeuronSample]) -> list[NeuronSample]:
    return [sample for sample in neurons if sample.frame == Frame.SELF]


def _refuse_essential(extra: Sequence[Section], path: str) -> None:
    """Raise ``SignatureVersionError`` if an unknown section is one that must be understood."""
    for section in extra:
        if section.essential:
            raise SignatureVersionError(
                f"{path}: the file has an essential section {section.kind} that this program does not know; "
                "use a newer release of weightprint"
            )


def _tensors(known: Mapping[str, bytes], header: _Header, path: str) -> tuple[TensorRecord, ...]:
    count, words, parameters = header.tensors(), header.words(), header.parameters()
    rows = parts.read_table(known["TENS"], count, words, path)
    names = parts.read_names(known["NAME"], count, path)
    digests = parts.read_digests(known["DIGS"], rows, path)
    statistics = parts.read_statistics(known["STAT"], count, path)
    casts = parts.read_casts(known["CAST"], count, words["casts"], path) if "CAST" in known else [{} for _ in rows]
    sketches = parts.read_sketches(known["SKET"], count, parameters, path) if "SKET" in known else {}
    axes = parts.read_axes(known["AXIS"], count, words["axes"], parameters, path) if "AXIS" in known else {}
    if "SLIC" in known:
        axes = parts.with_slice_digests(known["SLIC"], axes, words["casts"], path)
    return tuple(
        TensorRecord(
            name=names[position],
            role=row.role,
            layer=row.layer,
            expert=row.expert,
            shape=row.shape,
            oriented=row.oriented,
            dtype=row.dtype,
            content=row.content,
            digest=digests[position],
            casts=casts[position],
            statistics=statistics[position],
            sketch=sketches.get(position),
            axes=axes.get(position, ()),
        )
        for position, row in enumerate(rows)
    )


def _neurons(known: Mapping[str, bytes], header: _Header, path: str) -> tuple[NeuronSample, ...]:
    number = header.number("neurons")
    if (number > 0) != ("NEUR" in known):
        raise MalformedSignatureError(f"{path}: section NEUR and the number of sampled MLPs contradict each other")
    found: tuple[NeuronSample, ...] = ()
    if number:
        reader = ColumnReader(known["NEUR"], path=path, kind="NEUR")
        counts = (number, header.tensors())
        found = parts.read_neurons(reader, counts, header.words(), header.parameters().frame_width)
        reader.end()
    own = gauge.read_own(known["SELF"], header.tensors(), header.words(), path) if "SELF" in known else ()
    if any(sample.frame == Frame.SELF for sample in found) or any(sample.frame != Frame.SELF for sample in own):
        raise MalformedSignatureError(f"{path}: neurons are in a section of other frames than theirs")
    return found + own


def _channels(known: Mapping[str, bytes], header: _Header, path: str) -> tuple[ChannelSample, ...]:
    if "CHAN" not in known:
        return ()
    return gauge.read_channels(known["CHAN"], header.tensors(), header.words(), header.parameters(), path)


def _grams(known: Mapping[str, bytes], header: _Header, path: str) -> tuple[LayerGram, ...]:
    if "GRAM" not in known:
        return ()
    return gauge.read_grams(known["GRAM"], header.tensors(), header.words(), header.parameters(), path)


def _labels(data: bytes, path: str) -> tuple[dict[str, str], tuple[tuple[str, str], ...]]:
    labels = parse_object(data, path=path, what="section META")
    claims, findings = labels.get("claims"), labels.get("findings")
    if not isinstance(claims, dict) or not isinstance(findings, list) or len(labels) != 2:
        raise MalformedSignatureError(f"{path}: section META does not hold claims and findings")
    texts = {name: text for name, text in claims.items() if isinstance(text, str)}
    pairs = [(pair[0], pair[1]) for pair in findings if isinstance(pair, list) and len(pair) == 2]
    found = tuple((code, text) for code, text in pairs if isinstance(code, str) and isinstance(text, str))
    if len(texts) != len(claims) or len(found) != len(findings) or len(texts) + len(found) > MAX_LABELS:
        raise MalformedSignatureError(f"{path}: section META holds something else than texts, or too many")
    return texts, found


def _label(text: str) -> str:
    """``text`` as META holds it: cut to a bound, and without what UTF-8 cannot hold."""
    return clipped(text.encode("utf-8", "backslashreplace").decode(), MAX_LABEL)


class _Header:
    """Typed, bounded access to the members of a header."""

    def __init__(self, values: dict[str, Json], path: str) -> None:
        self._values = values
        self._path = path
        self._parameters: Parameters | None = None
        self._known = {"left_out", "neurons", "parameters", "tensors", "words"}

    def number(self, name: str, limit: int = 1 << 63) -> int:
        self._known.add(name)
        return self._natural(self._values.get(name), name, limit)

    def text(self, name: str) -> str:
        self._known.add(name)
        value = self._values.get(name)
        if not isinstance(value, str) or len(value) > 1024:
            self._fail(name)
        return value

    def flag(self, name: str) -> bool:
        self._known.add(name)
        value = self._values.get(name)
        if not isinstance(value, bool):
            self._fail(name)
        return value

    def numbers(self, name: str) -> dict[str, int]:
        self._known.add(name)
        value = self._values.get(name)
        if not isinstance(value, dict):
            self._fail(name)
        return {key: self._natural(number, name, 1 << 63) for key, number in value.items()}

    def left_out(self) -> dict[str, int]:
        found = self.numbers("left_out")
        if not set(found) <= LEFT_OUT:
            self._fail("left_out")
        return found

    def tensors(self) -> int:
        return self.number("tensors", parts.MAX_TENSORS + 1)

    def words(self) -> dict[str, list[str]]:
        value = self._values.get("words")
        if not isinstance(value, dict) or set(value) != set(parts.VOCABULARY_LISTS):
            self._fail("words")
        return {name: self._list_of_texts(words) for name, words in value.items()}

    def parameters(self) -> Parameters:
        if self._parameters is None:
            value = self._values.get("parameters")
            if not isinstance(value, dict):
                self._fail("parameters")
            found = Parameters.from_mapping(value)
            widths = (found.sketch_width, found.index_width, found.axis_width, found.frame_width)
            if not all(0 < width <= MAX_WIDTH for width in widths) or found.index_width > found.sketch_width:
                self._fail("parameters")
            self._parameters = found
        return self._parameters

    def require_nothing_else(self) -> None:
        if set(self._values) != self._known:
            raise MalformedSignatureError(f"{self._path}: the header has members that the format does not know")

    def _list_of_texts(self, words: Json) -> list[str]:
        if not isinstance(words, list) or len(words) > 255:
            self._fail("words")
        found = [word for word in words if isinstance(word, str) and len(word) <= 1024]
        if len(found) != len(words) or sorted(set(found)) != found:
            self._fail("words")
        return found

    def _natural(self, value: Json, name: str, limit: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < limit:
            self._fail(name)
        return value

    def _fail(self, name: str) -> NoReturn:
        raise MalformedSignatureError(f"{self._path}: the header's {name!r} is absent or not what the format allows")
