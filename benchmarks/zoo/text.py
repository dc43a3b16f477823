"""Text that every machine has which trains: sources of the standard library, and of packages for later families.

Its data sets, and one tokenizer for them all, made from the standard library.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
import sysconfig
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

# Tests are not installed everywhere, and code tables are not language.
_EXCLUDED_PARTS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
)

# Share of the modules in each data set. No two families share a module.
DATASETS: dict[str, float] = {
    "a-pre": 0.25,
    "a-other": 0.18,
    "a-x": 0.06,
    "a-y": 0.06,
    "b-pre": 0.20,
    "b-other": 0.15,
    "b-x": 0.05,
    "b-y": 0.05,
}
# The families whose text is a package that is installed wherever models are trained: torch, what it brings, scipy.
PACKAGES = {"c": "torch", "d": "sympy", "e": "scipy"}
_PACKAGE_SHARES = {"pre": 0.45, "other": 0.35, "x": 0.1, "y": 0.1}
VALIDATION_SHARE = 0.06
VOCABULARY = 1280
# "a-pre" + SMALL is about this much of the text of "a-pre".
SMALL = "-small"
_SMALL_CHARACTERS = 150_000
_BYTES = 256
# An identifier is cut at its capitals and underscores, so that a small vocabulary covers most of it.
_PIECE = re.compile(r"\n *| ?[A-Z]?[a-z]+| ?[A-Z]+| ?\d|_+| +|[^\w\s]+|.", re.DOTALL)


@functools.cache
def modules(package: str | None = None) -> dict[str, str]:
    """Source text of a package's modules by dotted name, sorted by name; tests and code tables left out.

    Without a package, of the standard library's. Raises ModuleNotFoundError if it is not installed.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    if package is not None:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{package} is not installed")
        root = Path(spec.origin).parent
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _EXCLUDED_PARTS.isdisjoint(relative.parts):
            found[".".join(relative.with_suffix("").parts)] = path.read_text("utf-8", errors="replace")
    return dict(sorted(found.items()))


def dataset_of(module: str, shares: Mapping[str, float] = DATASETS) -> str:
    """Return the data set that a module belongs to; depends on its dotted name alone."""
    position = int.from_bytes(hashlib.blake2b(module.encode(), digest_size=8).digest(), "big") / 2**64
    for name, share in shares.items():
        if position < share:
            return name
        position -= share
    return [*shares][-1]


@functools.cache
def text_digest(package: str | None = None) -> str:
    """Return a digest of all the text: models trained on another version's sources are other models."""
    state = hashlib.blake2b(digest_size=8)
    for name, source in modules(package).items():
        state.update(name.encode() + b"\0" + source.encode() + b"\0")
    return state.hexdigest()


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """Frequent pieces of text, with single bytes for all the rest.

    Ids 0 to 255 are bytes; id 256 + i is ``pieces[i]``.
    """

    pieces: tuple[str, ...]

    @property
    def size(self) -> int:
        return _BYTES + len(self.pieces)

    def encode(self, text: str) -> np.ndarray:
        """Return the token ids of a text, int32, shape (tokens,)."""
        known: dict[str, tuple[int, ...]] = {piece: (_BYTES + i,) for i, piece in enumerate(self.pieces)}
        ids: list[int] = []
        for match in _PIECE.finditer(text):
            piece = match.group()
            tokens = known.get(piece)
            if tokens is None:
                tokens = known[piece] = tuple(piece.encode())
            ids.extend(tokens)
        return np.array(ids, dtype=np.int32)

    def decode(self, ids: np.ndarray) -> str:
        """Return the text of token ids, shape (tokens,); the inverse of `encode`."""
        parts = [bytes([i]) if i < _BYTES else self.pieces[i - _BYTES].encode() for i in ids.tolist()]
        return b"".join(parts).decode("utf-8", errors="replace")

    def to_json(self) -> str:
        return json.dumps({"bytes": _BYTES, "pieces": self.pieces, "text": text_digest()}, ensure_ascii=True, indent=0)


@functools.cache
def tokenizer(vocabulary: int = VOCABULARY) -> Tokenizer:
    """Build the tokenizer: the pieces which save most bytes over all text; ties go by the piece itself."""
    counts: Counter[str] = Counter()
    for source in modules().values():
        counts.update(_PIECE.findall(source))
    saved = [(-count * (len(piece.encode()) - 1), piece) for piece, count in counts.items() if len(piece.encode()) > 1]
    return Tokenizer(tuple(piece for _, piece in sorted(saved)[: vocabulary - _BYTES]))


@dataclass(frozen=True, slots=True)
class Tokens:
    """One data set as token ids, int64, shape (tokens,): a part to train on and a part held out."""

    train: np.ndarray
    validation: np.ndarray


@functools.cache
def tokens(dataset: str, vocabulary: int = VOCABULARY) -> Tokens:
    """Encode a data set; the last of its modules, ordered by a hash of the name, are held out."""
    family = dataset.partition("-")[0]
    package = PACKAGES.get(family)
    text = modules(package)
    shares = DATASETS if package is None else {f"{family}-{part}": share for part, share in _PACKAGE_SHARES.items()}
    chosen = [name for name in text if dataset_of(name, shares) == dataset.removesuffix(SMALL)]
    # The order of the alphabet would put whole packages in the held-out part.
    chosen.sort(key=lambda name: hashlib.blake2b(name.encode(), key=b"order", digest_size=8).digest())
    if dataset.endswith(SMALL):
        sizes = np.cumsum([len(text[name]) for name in chosen])
        chosen = chosen[: int(np.searchsorted(sizes, _SMALL_CHARACTERS)) + 1]
    encoder = tokenizer(vocabulary)
    joined = np.concatenate([encoder.encode(text[name]) for name in chosen]).astype(np.int64)
    cut = round(len(joined) * (1 - VALIDATION_SHARE))
    return Tokens(train=joined[:cut], validation=joined[cut:])


@functools.cache
def bigram_loss(dataset: str, vocabulary: int = VOCABULARY) -> float:
    """Return the held-out loss, nats a token, of the best of some bigram models mixed with a unigram model.

    The mixture weight is chosen on the held-out part itself, in the bigram's favour.
    """
    data = tokens(dataset, vocabulary)
    pairs = np.bincount(data.train[:-1] * vocabulary + data.train[1:], minlength=vocabulary**2)
    pairs = pairs.reshape(vocabulary, vocabulary).astype(np.float64)
    unigram = (pairs.sum(0) + 0.5) / (pairs.sum() + 0.5 * vocabulary)
    before, after = data.validation[:-1], data.validation[1:]
    losses = []
    for strength in (1.0, 3.0, 10.0, 30.0, 100.0):
        probability = (pairs[before, after] + strength * unigram[after]) / (pairs[before].sum(1) + strength)
        losses.append(float(-np.log(probability).mean()))
    return min(losses)
