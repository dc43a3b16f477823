"""What a checkpoint says about where it comes from: claims, read out of its metadata, which decide nothing.

Sources: the front matter of a model card, a recipe of mergekit, ``config.json`` and ``adapter_config.json``, the
metadata of GGUF (``general.*``, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) and of safetensors.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from fingerprint.errors import clipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MAX_CLAIMS: Final = 64
"""Most claims of one checkpoint that are heard."""
MAX_VALUE: Final = 256
_HOST: Final = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co|modelscope\.cn/models)/+", re.IGNORECASE)
_NONE: Final = frozenset({"", "none", "null", "n/a", "scratch", "from scratch"})


class ClaimKind(StrEnum):
    """What is claimed: descent from a model (``BASE``), a name of its own (``NAME``), training without a base
    (``SCRATCH``)."""

    BASE = "base"
    NAME = "name"
    SCRATCH = "from-scratch"


class Claim(Struct, frozen=True):
    """One claim: its ``kind``; the ``value`` as claimed; the ``source``, a file and the field in it.

    ``name`` is the model that the value names, as ``org/model`` or ``model`` (empty for ``SCRATCH``); ``relation`` how
    the weights are said to be made from it, empty where that is not said; ``part`` the component of a composite
    checkpoint that the claim is about, empty for the whole.
    """

    kind: ClaimKind
    value: str
    source: str
    name: str = ""
    relation: str = ""
    part: str = ""


class Claims(Struct, frozen=True):
    """What is claimed of a checkpoint.

    ``architectures`` and ``quantisation`` are what its configs say that it is; ``described`` tells whether there is
    anything that would name a base if there was one: a model card, a recipe, GGUF's general metadata.
    """

    claims: tuple[Claim, ...] = ()
    architectures: tuple[str, ...] = ()
    quantisation: str = ""
    described: bool = False


class _Field(Struct, frozen=True):
    """How the keys of the metadata that ``pattern`` matches (behind a component's name, if any) make claims."""

    pattern: re.Pattern[str]
    kind: ClaimKind
    source: str
    relation: str = ""


_FIELDS: Final = tuple(
    _Field(re.compile(pattern), kind, source, relation)
    for pattern, kind, source, relation in (
        (r"card\.base_model\.\d+", ClaimKind.BASE, "README.md: base_model", ""),
        (r"card\.name", ClaimKind.NAME, "README.md: model_name", ""),
        (r"card\.from_scratch", ClaimKind.SCRATCH, "README.md", ""),
        (r"mergekit\.(?:model\.\d+|base_model)", ClaimKind.BASE, "mergekit_config.yml", "merge"),
        (r"config\._name_or_path", ClaimKind.BASE, "config.json: _name_or_path", ""),
        (r"adapter\.base_model_name_or_path", ClaimKind.BASE, "adapter_config.json", "adapter"),
        (r"general\.source\.(?:huggingface\.repository|repo_url|url)", ClaimKind.BASE, "GGUF: general.source", ""),
        (r"general\.name", ClaimKind.NAME, "GGUF: general.name", ""),
        (r"base_model", ClaimKind.BASE, "metadata: base_model", ""),
        (r"ss_sd_model_name", ClaimKind.BASE, "metadata: ss_sd_model_name", "adapter"),
        (r"modelspec\.merged_from", ClaimKind.BASE, "metadata: modelspec.merged_from", "merge"),
        (r"modelspec\.title", ClaimKind.NAME, "metadata: modelspec.title", ""),
    )
)
_KEY: Final = re.compile(
    r"(?:(?P<part>.+?)\.)??(?P<key>(?:card|mergekit|config|adapter|general|modelspec)\..+|base_model|ss_sd_model_name)"
)
_GGUF_BASE: Final = re.compile(r"general\.base_model\.(\d{1,4})\.(name|organization|repo_url|url|doi|version)")
_DESCRIBING: Final = ("card", "mergekit")


def read_claims(metadata: Mapping[str, str]) -> Claims:
    """The claims among the metadata of a checkpoint, at most ``MAX_CLAIMS``, in the order of their sources.

    Values are shortened to 256 characters. A model that one source names twice is claimed once. Raises nothing: what
    makes no sense claims nothing.
    """
    found = dict.fromkeys((*_plain(metadata), *_of_gguf(metadata)))
    kinds = list(ClaimKind)
    ordered = sorted(found, key=lambda claim: kinds.index(claim.kind))
    once = {(claim.kind, claim.name.casefold(), claim.part, claim.source): claim for claim in reversed(ordered)}
    kept = [claim for claim in ordered if once[claim.kind, claim.name.casefold(), claim.part, claim.source] is claim]
    return Claims(
        claims=tuple(kept[:MAX_CLAIMS]),
        architectures=tuple(
            clipped(value, MAX_VALUE) for key, value in sorted(metadata.items()) if _ends(key, "config.architectures.")
        )[:8],
        quantisation=clipped(
            metadata.get("config.quantization_config.quant_method") or metadata.get("quant_method", ""), MAX_VALUE
        ),
        described=any(key in _DESCRIBING or key.startswith("general.") for key in metadata),
    )


def _ends(key: str, before_number: str) -> bool:
    head, _, number = key.rpartition(".")
    return number.isdigit() and (head + ".").endswith(before_number)


def _plain(metadata: Mapping[str, str]) -> Iterator[Claim]:
    for key, value in metadata.items():
        words = _KEY.fullmatch(key)
        if words is None:
            continue
        field = next((one for one in _FIELDS if one.pattern.fullmatch(words["key"])), None)
        if field is None:
            continue
        part = words["part"] or ""
        beside = f"{part}.card.base_model_relation" if part else "card.base_model_relation"
        said = metadata.get(beside, "") if words["key"].startswith("card.") else field.relation
        if field.kind is ClaimKind.SCRATCH:
            yield Claim(field.kind, clipped(value, MAX_VALUE), field.source, part=part)
        elif name := model_name(value):
            yield Claim(field.kind, clipped(value, MAX_VALUE), field.source, name, clipped(said, MAX_VALUE), part)


def _of_gguf(metadata: Mapping[str, str]) -> Iterator[Claim]:
    """Claims of ``general.base_model.N.*``: of one model, its address names it best, then organisation and name."""
    bases: dict[int, dict[str, str]] = {}
    for key, value in metadata.items():
        if (match := _GGUF_BASE.fullmatch(key)) is not None:
            bases.setdefault(int(match[1]), {})[match[2]] = value
    for number, fields in sorted(bases.items()):
        address = fields.get("repo_url") or fields.get("url", "")
        organisation, called = fields.get("organization", "").strip(), fields.get("name", "").strip()
        spelt = f"{organisation}/{called}" if organisation and called else called
        value = address if _HOST.match(address) else spelt or address
        if name := model_name(value):
            source = f"GGUF: general.base_model.{number}"
            yield Claim(ClaimKind.BASE, clipped(value, MAX_VALUE), source, name)


def model_name(value: str) -> str:
    """The model that a claimed value names, ``org/model`` or ``model``: of an address or a path what names the model.

    Empty where it names none ("none", "from scratch").
    """
    text = value.strip()
    if text.casefold() in _NONE:
        return ""
    hosted = _HOST.match(text)
    if hosted is not None:
        words = [word for word in text[hosted.end() :].split("?")[0].split("/") if word][:2]
    elif "://" in text:
        words = [word for word in text.split("?")[0].split("/") if word][-1:]
    else:
        words = _of_path(text)
    name = "/".join(words).partition("@")[0].strip()
    return clipped(name, MAX_VALUE)


def _of_path(text: str) -> list[str]:
    """A name of one or two words as it is; of a path on somebody's disk what it calls the model."""
    words = [word for word in re.split(r"[/\\]+", text) if word not in {"", ".", "..", "~"}]
    cached = next((word for word in words if word.startswith("models--")), None)
    if cached is not None:
        return cached.removeprefix("models--").split("--", 1)
    is_path = text.startswith(("/", ".", "~", "\\")) or re.match(r"[A-Za-z]:[/\\]", text) or len(words) > 2
    return words[-1:] if is_path else words


def comparable(name: str) -> str:
    """A name as names are compared: without regard to case, and to blanks, underscores and hyphens."""
    return re.sub(r"[\s_-]+", "-", name.casefold()).strip("-")


def model_first(name: str) -> str:
    """``comparable``, the last part first ("base-7b/org"): names that may mean one model are neighbours in this order.

    A registry's database keeps it of every name: what changes it, or ``comparable``, is a new version of the database.
    """
    return "/".join(reversed(comparable(name).split("/")))


def names_same(claimed: str, registered: str) -> bool:
    """Whether both may name one model: equal as ``comparable``, and one of them may do without its organisation."""
    ours, theirs = comparable(claimed).split("/"), comparable(registered).split("/")
    if not ours[-1] or ours[-1] != theirs[-1]:
        return False
    return len(ours) == 1 or len(theirs) == 1 or ours == theirs
