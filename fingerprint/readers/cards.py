"""What texts beside the weights say about where they come from: a model card's front matter, a recipe of mergekit.

They become claims among the metadata of the checkpoint, under ``card.`` and ``mergekit.``, and nothing else. A text
that cannot be read claims nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from fingerprint.errors import InputError, clipped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from fingerprint.readers.bounded_yaml import Yaml
    from fingerprint.readers.places import Folder

CARD: Final = "README.md"
RECIPE: Final = "mergekit_config.yml"
MAX_CARD: Final = 1 << 18
"""Bytes of a card that are looked at: its front matter, and the text behind it."""
MAX_RECIPE: Final = (1 << 16) + 1
"""Bytes of a recipe that are looked at: one more than are parsed, so that a longer one is seen to be."""
MAX_NAMED: Final = 64
"""Most models that one text is heard to name."""
MAX_NAMED_LENGTH: Final = 256
_FRONT: Final = re.compile(rb"(?:\xef\xbb\xbf)?---[ \t]*\r?\n(.*?)\r?\n(?:---|\.\.\.)[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_SCRATCH: Final = re.compile(r"(?:pre-?)?train(?:ed|ing)\s+(?:[\w*]+\s+){0,2}\*{0,2}from\s+scratch", re.IGNORECASE)
_HEADING: Final = re.compile(r"^#.*$", re.MULTILINE)
_SENTENCE_END: Final = re.compile(r"[.!?](?:\s|\Z)|\n\s*\n|\n[#*|-]|\|")
_AROUND: Final = 120
_MODELS: Final = frozenset({"model", "source_model", "base_model"})


def claims_beside(place: Folder) -> dict[str, str]:
    """The claims of the texts in a folder, by key: ``card.base_model.N``, ``card.base_model_relation``, ``card.name``,
    ``card.from_scratch`` (the sentence that says so), ``mergekit.merge_method``, ``mergekit.base_model``,
    ``mergekit.model.N``; ``card`` and ``mergekit`` name the file where there is one.

    A README without front matter is no card, but it is heard if it says that the model was trained from scratch.
    """
    return _of_card(_start(place, CARD, MAX_CARD)) | _of_recipe(_start(place, RECIPE, MAX_RECIPE))


def _start(place: Folder, name: str, most: int) -> bytes | None:
    try:
        source = place.open(name)
        try:
            return bytes(source.read(0, min(source.size, most)))
        finally:
            source.close()
    except InputError:
        return None


def _of_card(raw: bytes | None) -> dict[str, str]:
    if not raw:
        return {}
    front = _FRONT.match(raw)
    claims = {} if front is None else {"card": CARD} | _of_front_matter(front.group(1))
    text = _HEADING.sub("\n\n", raw[front.end() if front is not None else 0 :].decode("utf-8", "replace"))
    if (said := _SCRATCH.search(text)) is not None:
        claims["card.from_scratch"] = _sentence(text, said)
    return claims


def _of_front_matter(raw: bytes) -> dict[str, str]:
    documents = _documents(raw)
    top = documents[0] if documents else None
    if not isinstance(top, dict):
        return {}
    claims = _numbered("card.base_model", _strings(top.get("base_model")))
    for key, name in (("base_model_relation", "base_model_relation"), ("model_name", "name")):
        value = top.get(key)
        if isinstance(value, str):
            claims[f"card.{name}"] = clipped(value, MAX_NAMED_LENGTH)
    return claims


def _of_recipe(raw: bytes | None) -> dict[str, str]:
    if not raw:
        return {}
    claims = {"mergekit": RECIPE}
    documents = _documents(raw)
    tops = [document for document in documents if isinstance(document, dict)]
    own = {document.get("name") for document in tops}
    found = list(_models(documents))
    bases = [name for key, name in found if key == "base_model" and name not in own]
    claims |= {"mergekit.base_model": clipped(bases[0], MAX_NAMED_LENGTH)} if bases else {}
    claims |= _numbered("mergekit.model", (name for _, name in found if name not in own))
    methods = [method for document in tops if isinstance(method := document.get("merge_method"), str)]
    return claims | ({"mergekit.merge_method": clipped(methods[-1], MAX_NAMED_LENGTH)} if methods else {})


def _documents(raw: bytes) -> list[Yaml]:
    """The documents of a text, none of one that is refused; most checkpoints have none that would ask for a parser."""
    from fingerprint.readers.bounded_yaml import YamlRefusedError, read_yaml

    try:
        return read_yaml(raw)
    except YamlRefusedError:
        return []


def _models(value: Yaml) -> Iterator[tuple[str, str]]:
    """The names of models in a recipe, each with the word that it stands under."""
    items: Iterable[tuple[str, Yaml]] = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = (("", item) for item in value)
    for key, item in items:
        if key in _MODELS and isinstance(item, str):
            yield key, item.partition("+")[0]  # a LoRA may follow a plus
        elif key in _MODELS and isinstance(item, dict) and isinstance(path := _path(item), str):
            yield key, path
        else:
            yield from _models(item)


def _path(item: dict[str, Yaml]) -> Yaml:
    """The path in ``{path: ...}`` or ``{model: {path: ...}}``, mergekit's long form of a name."""
    inner = item.get("model")
    return inner.get("path") if isinstance(inner, dict) else item.get("path", inner)


def _strings(value: Yaml) -> list[str]:
    return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, str)]


def _numbered(key: str, names: Iterable[str]) -> dict[str, str]:
    """Each name once, under the key and a number."""
    kept = list(dict.fromkeys(clipped(name.strip(), MAX_NAMED_LENGTH) for name in names if name.strip()))
    return {f"{key}.{number}": name for number, name in enumerate(kept[:MAX_NAMED])}


def _sentence(text: str, said: re.Match[str]) -> str:
    """The sentence around what was said, shortened."""
    before = text[max(0, said.start() - _AROUND) : said.start()]
    starts = [end.end() for end in _SENTENCE_END.finditer(before)]
    after = text[said.end() : said.end() + _AROUND]
    stop = _SENTENCE_END.search(after)
    sentence = before[starts[-1] if starts else 0 :] + said.group() + after[: stop.start() if stop else None]
    return " ".join(sentence.replace("*", "").split())[: 2 * _AROUND]
