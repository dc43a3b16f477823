"""Makes text that strangers wrote safe to show, and numbers easy to read."""

from __future__ import annotations

import math
import os
from typing import Any, Final

_NAMED_POWERS: Final = ((12, "trillion"), (9, "billion"), (6, "million"), (3, "thousand"))
_SHORT: Final = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    r"""``text`` on one line, with everything that could move a cursor, colour or reorder text escaped.

    Control characters, line breaks, directional overrides and unassigned characters become ``\n``, ``\x1b``,
    ``\u202e``; bytes of a file name that are not UTF-8 become ``\xff``.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that was not UTF-8, as Python keeps it in file names
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def unicode_only(text: str) -> str:
    r"""``text`` without lone surrogates, so that every JSON parser takes it: undecodable bytes become ``\xff``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_escaped(one) if 0xD800 <= ord(one) <= 0xDFFF else one for one in text)
    return text


def clipped_middle(text: str, width: int) -> str:
    """``text`` in at most ``width`` characters: the middle is left out, since both ends of a path tell something."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path for messages."""
    return printable(os.fspath(path))


def counted(number: int, singular: str, plural: str | None = None) -> str:
    """``1 tensor``, ``2 tensors``, ``12,000 tensors``."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def magnitude(number: int) -> str:
    """A count in three significant digits: ``950``, ``22.7 M``, ``1.5 G``."""
    for power, unit in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{_three(number / 10**power)} {unit}"
    return str(number)


def file_size(number: int) -> str:
    """Bytes in decimal units, as download pages and disks count them: ``90.9 MB``."""
    return f"{number} B" if number < 1000 else f"{magnitude(number)}B"


def _three(value: float) -> str:
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """``0.3 s``, ``42 s``, ``3 min 12 s``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def probability(log10_p: float) -> str:
    """A p-value as a power of ten: ``10^-312.4``, and plainly where it is large: ``0.02``."""
    if log10_p > -2:
        return f"{10**log10_p:.2g}"
    return f"10^{log10_p:.1f}" if log10_p > -100 else f"10^{log10_p:.0f}"


def odds(log10_p: float) -> str:
    """A p-value in words: ``about 1 in 2 million``."""
    if log10_p <= -15:
        return "less than one in a thousand trillion"
    power = -log10_p
    if power < math.log10(2):
        return "more than 1 in 2"
    for exponent, name in _NAMED_POWERS:
        if power >= exponent:
            value = 10 ** (power - exponent)
            return f"about 1 in {value:.0f} {name}" if value < 999.5 else "about 1 in 1,000 " + name
    return f"about 1 in {10**power:.0f}"


def percent(share: float) -> str:
    """A share: ``100%`` and ``0%`` only where it is so, else with as many digits as say that it is not."""
    if share >= 1:
        return "100%"
    if share <= 0:
        return "0%"
    if share > 0.995:
        return ">99%"
    return "<1%" if share < 0.005 else f"{100 * share:.0f}%"


def ranges(numbers: list[int]) -> str:
    """Numbers with runs joined: ``0-3, 7``."""
    parts: list[str] = []
    for start, end in runs(numbers):
        parts.append(str(start) if start == end else f"{start}-{end}")
    return ", ".join(parts)


def runs(numbers: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def finite(value: Any) -> Any:
    """A tree of lists, tuples and mappings ready for strict JSON: valid Unicode, and None for what is not finite."""
    if isinstance(value, str):
        return unicode_only(str(value))
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {unicode_only(str(key)): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return value
