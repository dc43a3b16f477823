"""A YAML reader for hostile text: size, nesting and number of values are bounded, and aliases are refused.

PyYAML's parser gives events, from which values are built here; nothing is constructed from tags, and a scalar is a
string, whatever it looks like. Without aliases, what is built is never larger than what was written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

Yaml = None | str | list["Yaml"] | dict[str, "Yaml"]

MAX_YAML: Final = 1 << 16
"""Most bytes of a text that is parsed."""
MAX_YAML_DEPTH: Final = 16
MAX_YAML_VALUES: Final = 1 << 12
MAX_DOCUMENTS: Final = 32
_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})


class YamlRefusedError(Exception):
    """A text that is no YAML, or goes beyond the bounds; the reason is for people."""


def read_yaml(raw: bytes) -> list[Yaml]:
    """The documents of a text, with strings (or None, for an empty or null plain scalar) as their leaves.

    A key that is no string is left out with its value; of a repeated key the last value counts. Raises
    ``YamlRefusedError``.
    """
    if len(raw) > MAX_YAML:
        raise YamlRefusedError(f"{len(raw)} bytes of YAML; {MAX_YAML} are read")
    try:
        return _documents(yaml.parse(raw.decode("utf-8-sig"), Loader=yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise YamlRefusedError(f"no YAML: {str(error).splitlines()[0][:200]}") from error


class _Open:
    """A list or a mapping whose end has not come yet; ``key`` waits for its value."""

    def __init__(self, value: list[Yaml] | dict[str, Yaml]) -> None:
        self.value = value
        self.key: Yaml = None
        self.has_key = False

    def add(self, value: Yaml) -> None:
        """Takes the next item, or the next key or value."""
        if isinstance(self.value, list):
            self.value.append(value)
        elif not self.has_key:
            self.key, self.has_key = value, True
        else:
            if isinstance(self.key, str):
                self.value[self.key] = value
            self.has_key = False


def _documents(events: Iterator[yaml.Event]) -> list[Yaml]:
    found: list[Yaml] = []
    stack: list[_Open] = []
    values = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise YamlRefusedError("aliases are not followed")
        made: Yaml
        if isinstance(event, yaml.ScalarEvent):
            made = None if event.style is None and event.value in _NULLS else str(event.value)
        elif isinstance(event, yaml.SequenceStartEvent | yaml.MappingStartEvent):
            stack.append(_Open([] if isinstance(event, yaml.SequenceStartEvent) else {}))
            if len(stack) > MAX_YAML_DEPTH:
                raise YamlRefusedError(f"values nested deeper than {MAX_YAML_DEPTH} levels")
            continue
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            made = stack.pop().value
        else:
            continue
        values += 1
        if values > MAX_YAML_VALUES:
            raise YamlRefusedError(f"more than {MAX_YAML_VALUES} values")
        if stack:
            stack[-1].add(made)
        else:
            found.append(made)
            if len(found) > MAX_DOCUMENTS:
                raise YamlRefusedError(f"more than {MAX_DOCUMENTS} documents")
    return found
