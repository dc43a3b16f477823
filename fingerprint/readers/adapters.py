"""Low-rank adapters as what they add to a base: the product of two factors, scaled, named as the base's tensor.

Formats: PEFT's ``adapter_model.safetensors`` with ``adapter_config.json`` (LoRA, rank-stabilised LoRA, DoRA; linear
layers, convolutions, embeddings), and the pairs that diffusers, kohya's trainers and llama.cpp write. What is added to
the base is ``scale * B A``; the scale is ``alpha / r``, or ``alpha / sqrt(r)`` if rank-stabilised (``LoraLayer`` of
PEFT).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from fingerprint.dtypes import DType, Kind, to_float64
from fingerprint.readers.base import Finding, bounded, some
from fingerprint.tensors import Reshaped, Transposed, element_count, read_rows, renamed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from fingerprint.readers.base import Contents
    from fingerprint.tensors import Array, TensorView

CONFIG = "adapter_config.json"
CLAIMS = "adapter."
"""What the names of its fields begin with among the claims of a checkpoint."""
MAX_PRODUCT: Final = 2**33
"""Most elements of one product: embeddings of 262,144 words and 16,384 channels have half of that."""
MAX_PRODUCTS: Final = 2**38
"""Most elements of all products together: small factors can stand for any number."""
LOW_RANK = DType("LORA", 32, Kind.FLOAT, np.dtype("<f4"))
"""The type of a product: it is made as it is read."""

_PAIR: Final = re.compile(
    r"(?P<module>.{1,4000}?)"
    r"(?:\.lora_(?P<peft>[AB])(?:\.default)?\.weight|\.lora_embedding_(?P<embedding>[AB])(?:\.default)?"
    r"|[._]lora[._](?P<other>down|up)\.weight|\.weight\.lora_(?P<gguf>[ab]))"
)
_ALPHA: Final = re.compile(r"(?P<module>.{1,4000}?)\.alpha")
_MAGNITUDE: Final = re.compile(r"(?P<module>.{1,4000}?)\.lora_magnitude_vector(?:\.default)?(?:\.weight)?")
_LITERAL: Final = re.compile(r"[\w.-]{1,4000}")
_WRAPPED: Final = "base_model.model."
_TILE: Final = 1 << 21
"""Most elements of the second factor that are in memory at a time."""
_BLOCK: Final = 1 << 18


class LowRank(Struct, frozen=True):
    """``scale * up @ down``, computed as it is read.

    ``up`` is ``(rows, rank)``, ``down`` ``(rank, columns)``, ``shape`` ``(rows, ...)`` with ``columns`` elements a row.
    Tiles lie on a grid that depends on the shapes alone, so an element is the same whatever range asks for it.
    """

    name: str
    shape: tuple[int, ...]
    up: TensorView
    down: TensorView
    scale: float

    @property
    def dtype(self) -> DType:
        """float32."""
        return LOW_RANK

    def read(self, start: int, stop: int) -> Array:
        """See ``TensorView.read``."""
        if not 0 <= start <= stop <= element_count(self.shape):
            raise IndexError(f"elements {start} to {stop} of a tensor of {element_count(self.shape)}")
        out = np.empty(stop - start, np.float32)
        if not out.size:
            return out
        rank, width = self.down.shape
        columns = max(1, min(width, _TILE // max(rank, 1)))
        rows = max(1, min(64, _BLOCK // columns))
        top, bottom = start // width // rows * rows, -(-stop // width)
        first, last = (start % width, stop % width or width) if start // width == (stop - 1) // width else (0, width)
        for left in range(first // columns * columns, last, columns):
            right = min(left + columns, width)
            down = self._columns(left, right)
            for row in range(top, bottom, rows):
                up = to_float64(read_rows(self.up, row, min(row + rows, self.shape[0])))
                with np.errstate(over="ignore", invalid="ignore"):
                    tile = ((up @ down) * self.scale).astype(np.float32)
                self._place(out, start, stop, tile, row, left)
        return out

    def _columns(self, left: int, right: int) -> Array:
        rank, width = self.down.shape
        if (left, right) == (0, width):
            return to_float64(read_rows(self.down, 0, rank))
        return np.stack([to_float64(self.down.read(k * width + left, k * width + right)) for k in range(rank)])

    def _place(self, out: Array, start: int, stop: int, tile: Array, row: int, left: int) -> None:
        width = self.down.shape[1]
        for number, values in enumerate(tile):
            begin = (row + number) * width + left
            low, high = max(begin, start), min(begin + values.size, stop)
            if low < high:
                out[low - start : high - start] = values[low - begin : high - begin]


def with_products(contents: Contents) -> Contents:
    """``contents`` with each pair of factors replaced by their product, if there is one; else the same."""
    pairs: dict[str, dict[str, TensorView]] = {}
    for tensor in contents.tensors:
        if (match := _PAIR.fullmatch(tensor.name)) is not None:
            pairs.setdefault(match["module"], {})[_side(match)] = tensor
    if not pairs:
        return contents
    found = _Adapter(contents, pairs)
    return found.contents()


def _side(match: re.Match[str]) -> str:
    """``A`` for the factor that the input meets first, ``B`` for the second; ``eA`` and ``eB`` of embeddings."""
    if match["embedding"]:
        return f"e{match['embedding']}"
    return match["peft"] or {"down": "A", "up": "B", "a": "A", "b": "B"}[match["other"] or match["gguf"]]


class _Adapter:
    """The pairs of factors of a checkpoint while they are put together."""

    def __init__(self, contents: Contents, pairs: dict[str, dict[str, TensorView]]) -> None:
        self.given = contents
        self.pairs = pairs
        self.claims = {
            key.removeprefix(CLAIMS): value for key, value in contents.metadata.items() if key.startswith(CLAIMS)
        }
        self.alphas = {
            match["module"]: tensor
            for tensor in contents.tensors
            if element_count(tensor.shape) == 1 and (match := _ALPHA.fullmatch(tensor.name)) is not None
        }
        self.left = MAX_PRODUCTS
        self.alone: list[str] = []
        self.unscaled: list[str] = []
        self.magnitudes: list[str] = []
        self.ranks: set[int] = set()
        self.used: set[str] = set()

    def contents(self) -> Contents:
        """The products where the first of their factors was, and everything else as it is."""
        products = {module: self._product(module, sides) for module, sides in self.pairs.items()}
        tensors: dict[str, TensorView] = {}
        for tensor in self.given.tensors:
            if tensor.name in self.used:
                module = self._module(tensor.name)
                made = products.get(module)
                if made is None:
                    continue
                view = made
            else:
                if _MAGNITUDE.fullmatch(tensor.name):
                    self.magnitudes.append(tensor.name)
                view = _unwrapped(tensor)
            if view.name in tensors and tensors[view.name] is not view:
                view = renamed(view, f"{view.name}#2") if f"{view.name}#2" not in tensors else tensor
            tensors[view.name] = view
        findings = bounded([*self.given.findings, *self._findings(len([p for p in products.values() if p]))])
        return replace(self.given, tensors=tuple(tensors.values()), findings=findings)

    def _module(self, name: str) -> str:
        match = _PAIR.fullmatch(name) or _ALPHA.fullmatch(name)
        return match["module"] if match is not None else name

    def _product(self, module: str, sides: Mapping[str, TensorView]) -> TensorView | None:
        embedding = "eA" in sides and "eB" in sides
        down, up = (sides.get("eA"), sides.get("eB")) if embedding else (sides.get("A"), sides.get("B"))
        if down is None or up is None or not _fit(down, up) or down.dtype.kind is not Kind.FLOAT:
            self.alone.append(module)
            return None
        rank, columns, rows = down.shape[0], element_count(down.shape[1:]), up.shape[0]
        self.left -= rows * columns
        if rows * columns > MAX_PRODUCT or self.left < 0:
            self.alone.append(module)
            return None
        self.ranks.add(rank)
        self.used |= {down.name, up.name}
        scale = self._scale(module, rank)
        first: TensorView = Reshaped(down, down.name, (rank, columns))
        second: TensorView = Reshaped(up, up.name, (rows, rank))
        name = f"{module.removeprefix(_WRAPPED)}.weight"
        if embedding or (self.claims.get("fan_in_fan_out") == "True" and len(down.shape) == 2):
            turned = Transposed(first, first.name), Transposed(second, second.name)
            return LowRank(name, (columns, rows), *turned, scale)
        return LowRank(name, (rows, *down.shape[1:]), second, first, scale)

    def _scale(self, module: str, rank: int) -> float:
        """What the product is multiplied by; 1 where nothing says."""
        stored = self.alphas.get(module)
        if stored is not None:
            self.used.add(stored.name)
            alpha = float(to_float64(stored.read(0, 1))[0])
        else:
            alpha = self._claimed_alpha(module.removeprefix(_WRAPPED))
        if not math.isfinite(alpha) or not 0 < abs(alpha) < 1e6:
            self.unscaled.append(module)
            return 1.0
        return alpha / (math.sqrt(rank) if self.claims.get("use_rslora") == "True" else rank)

    def _claimed_alpha(self, module: str) -> float:
        text = self.claims.get("lora_alpha", "") or self.claims.get("lora.alpha", "")  # PEFT's, llama.cpp's
        for key, value in self.claims.items():
            pattern = key.removeprefix("alpha_pattern.")
            # Patterns are regular expressions of the suspect's; only those that are plain names are looked at.
            if pattern != key and _LITERAL.fullmatch(pattern) and f".{module}".endswith(f".{pattern}"):
                text = value
        try:
            return float(text[:32])
        except ValueError:
            return math.nan

    def _findings(self, products: int) -> Iterable[Finding]:
        if products:
            ranks = ", ".join(map(str, sorted(self.ranks)[:8]))
            text = (
                f"an adapter: {products} products of two factors, of rank {ranks}, stand for what it adds to its base"
            )
            yield Finding("adapter", text)
        if self.alone:
            text = f"{len(self.alone)} modules have factors that were left as they are: {some(self.alone)}"
            yield Finding("adapter-factors", text)
        if self.unscaled:
            text = f"nothing says by what {len(self.unscaled)} products are multiplied: {some(self.unscaled)}"
            yield Finding("adapter-scale", text)
        if self.magnitudes:
            text = f"{len(self.magnitudes)} magnitudes of DoRA are tensors of their own; products are without them"
            yield Finding("adapter-magnitudes", text)
        patterns = [key for key in self.claims if key.startswith("alpha_pattern.")]
        if odd := [key for key in patterns if not _LITERAL.fullmatch(key.removeprefix("alpha_pattern."))]:
            text = f"{len(odd)} patterns of scales are no plain names and were not used: {some(odd)}"
            yield Finding("adapter-scale", text)


def _fit(down: TensorView, up: TensorView) -> bool:
    """True for ``(rank, columns...)`` and ``(rows, rank)``, the latter maybe with axes of size one behind."""
    return (
        len(down.shape) >= 2
        and len(up.shape) >= 2
        and up.shape[1] == down.shape[0] > 0
        and element_count(up.shape[2:]) == 1
        and element_count(down.shape) > 0
        and up.shape[0] > 0
        and up.dtype.kind is Kind.FLOAT
    )


def _unwrapped(tensor: TensorView) -> TensorView:
    return renamed(tensor, tensor.name[len(_WRAPPED) :]) if tensor.name.startswith(_WRAPPED) else tensor
