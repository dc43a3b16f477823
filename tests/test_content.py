"""Tables that follow from a formula are set aside, in any type and either way round; trained weights never are,
whatever is done to them.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks.zoo.recipes import family
from benchmarks.zoo.store import weights_path
from fingerprint.dtypes import DTYPES, DType
from fingerprint.measure import measure_tensor
from fingerprint.parameters import DEFAULT_PARAMETERS as P
from fingerprint.vocabulary import Content
from tests.quick_zoo import quick_zoo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Array = NDArray[Any]


@dataclass(frozen=True)
class Held:
    """A tensor in memory."""

    values: Array
    dtype: DType
    name: str = "w"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def read(self, start: int, stop: int) -> Array:
        return self.values.reshape(-1)[start:stop]


def content(values: Array, *, narrow: bool = False) -> Content:
    dtype, name = (ml_dtypes.bfloat16, "BF16") if narrow else (np.float32, "F32")
    view = Held(np.ascontiguousarray(values, dtype), DTYPES[name])
    return measure_tensor(view, P, casts=False).content


def mel(bins: int, bands: int, rate: int = 16000) -> Array:
    """Triangles on the mel scale, as torchaudio's ``mel_scale.fb``: (bins, bands)."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    points = 700 * (10 ** (np.linspace(0, top, bands + 2) / 2595) - 1)
    slope = points[None] - np.linspace(0, rate // 2, bins)[:, None]
    rise, fall = -slope[:, :-2] / np.diff(points)[:-1], slope[:, 2:] / np.diff(points)[1:]
    return np.maximum(0, np.minimum(rise, fall))


def bilinear(channels: int, size: int) -> Array:
    """Upsampling kernels of fully convolutional networks: (channels, channels, size, size)."""
    half = (size + 1) // 2
    line = 1 - np.abs(np.arange(size) - (half - 0.5)) / half
    return np.eye(channels)[:, :, None, None] * np.outer(line, line)


def resampling(old: int, new: int, mode: str) -> Array:
    """What interpolation does to images of old x old, as a matrix."""
    images = torch.eye(old * old).reshape(old * old, 1, old, old)
    return torch.nn.functional.interpolate(images, size=(new, new), mode=mode).reshape(old * old, -1).numpy()


def constant_q(bands: int, length: int, lowest: float, rate: int) -> Array:
    quality = 1 / (2 ** (1 / 12) - 1)
    out = np.zeros((bands, 1, length))
    for row, frequency in zip(out, lowest * 2 ** (np.arange(bands) / 12), strict=True):
        size = min(int(quality * rate / frequency), length)
        start = (length - size) // 2
        row[0, start : start + size] = np.hanning(size) * np.cos(2 * np.pi * frequency * np.arange(size) / rate)
    return out


def sinusoids(positions: Array, width: int) -> Array:
    angle = positions.reshape(-1, 1) / 10000 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)


def plane(height: int, width: int, channels: int) -> Array:
    """Two-dimensional sinusoidal positions of masked autoencoders: (height x width, channels)."""
    y, x = np.mgrid[:height, :width]
    return np.concatenate([sinusoids(x, channels // 2), sinusoids(y, channels // 2)], axis=1)


def code_book(*levels: int) -> Array:
    """Finite scalar quantisation: every combination of levels, one a row."""
    return np.array(list(itertools.product(*(np.linspace(-1, 1, n) for n in levels))))


def hippo(size: int, *, legendre: bool) -> Array:
    n = np.arange(size)
    root = np.sqrt(np.outer(2 * n + 1, 2 * n + 1))
    if legendre:
        return -root * np.where(n[:, None] < n, (-1.0) ** (n[:, None] - n), 1)
    return -np.tril(root, -1) - np.diag(n + 1.0)


def window_offsets(size: int) -> Array:
    """Log-spaced relative coordinates of Swin: (2 size - 1, 2 size - 1, 2)."""
    line = np.arange(1.0 - size, size) / (size - 1) * 8
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1)
    return np.sign(grid) * np.log2(np.abs(grid) + 1) / 3


def anchors(cells: int, shapes: int) -> Array:
    """Boxes around the cells of a feature map: (cells x cells x shapes, 4)."""
    y, x = np.mgrid[:cells, :cells] * 16.0
    half = np.array([[w, h] for w in (16, 32, 64) for h in (16, 32, 64)])[:shapes] / 2
    boxes = np.concatenate([-half, half], axis=1)
    return (np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4) + boxes).reshape(-1, 4)


def gaussians(distances: int, centres: int, steepness: float) -> Array:
    d, c = np.linspace(0, 10, distances), np.linspace(0, 10, centres)
    return np.exp(-steepness * (d[:, None] - c) ** 2)


def band_passes(filters: int, taps: int) -> Array:
    """Filters of SincNet, spaced on the mel scale."""
    top = 2595 * np.log10(1 + 7900 / 700)
    edges = 700 * (10 ** (np.linspace(50, top, filters + 1) / 2595) - 1) / 16000
    low = 2 * edges[:, None] * np.sinc(2 * edges[:, None] * (np.arange(taps) - taps // 2))
    return (low[1:] - low[:-1])[:, None] * np.hamming(taps)


def fourier(size: int, window: int) -> Array:
    angle = 2 * np.pi * np.outer(np.arange(size // 2 + 1), np.arange(size)) / size
    weight = np.pad(np.hanning(window), (size - window) // 2)
    return np.concatenate([np.cos(angle) * weight, -np.sin(angle) * weight])


def slopes(heads: int, length: int) -> Array:
    """Linear biases of attention: (heads, length, length)."""
    n = np.arange(length)
    return 2.0 ** (-8 * (np.arange(heads) + 1) / heads)[:, None, None] * -np.abs(n[:, None] - n)


def chebyshev(orders: int, points: int) -> Array:
    return np.cos(np.outer(np.arange(orders), np.arccos(np.linspace(-1, 1, points))))


def legendre(orders: int, points: int) -> Array:
    return np.polynomial.legendre.legvander(np.linspace(-1, 1, points), orders - 1).T


def identity(out: int, into: int, *, stride: int = 1, kernel: int = 1) -> Array:
    """Of a linear layer or inside a convolution, as ``torch.nn.init.dirac_`` makes it."""
    made = np.zeros((out, into, kernel, kernel))
    for i in range(min(out, into // stride)):
        made[i, i * stride, kernel // 2, kernel // 2] = 1
    return made.reshape(out, into) if kernel == 1 else made


def signs(size: int) -> Array:
    """Hadamard's matrix by Sylvester."""
    made = np.ones((1, 1))
    while len(made) < size:
        made = np.kron([[1, 1], [1, -1]], made)
    return made


TABLES: dict[str, Callable[[], Array]] = {
    **{f"mel {n} {m}": lambda n=n, m=m: mel(n, m) for n, m in ((513, 128), (201, 80), (257, 64), (129, 40))},
    **{f"bilinear {c} {k}": lambda c=c, k=k: bilinear(c, k) for c, k in ((21, 4), (64, 4), (32, 8), (16, 16))},
    "bicubic 14 24": lambda: resampling(14, 24, "bicubic"),
    "bicubic 24 14": lambda: resampling(24, 14, "bicubic"),
    "bilinear 7 14": lambda: resampling(7, 14, "bilinear"),
    "constant-q 84": lambda: constant_q(84, 16384, 32.7, 22050),
    "constant-q 48": lambda: constant_q(48, 8192, 65.0, 16000),
    **{f"plane {h} {c}": lambda h=h, c=c: plane(h, h, c) for h, c in ((14, 128), (16, 192), (7, 64), (32, 96))},
    "sinusoids": lambda: sinusoids(np.arange(512), 256),
    "codes 8555": lambda: code_book(8, 5, 5, 5),
    "codes 75555": lambda: code_book(7, 5, 5, 5, 5),
    **{f"hippo {n}": lambda n=n: hippo(n, legendre=False) for n in (64, 256)},
    "hippo legt": lambda: hippo(64, legendre=True),
    "swin 12": lambda: window_offsets(12),
    "swin 24": lambda: window_offsets(24),
    "swin list": lambda: window_offsets(16).reshape(-1, 2),
    "anchors 40": lambda: anchors(40, 1),
    "anchors 20 9": lambda: anchors(20, 9),
    "schnet": lambda: gaussians(100, 300, 100.0),
    "gaussians": lambda: gaussians(200, 50, 10.0),
    "chebyshev": lambda: chebyshev(32, 128),
    "legendre 32": lambda: legendre(32, 128),
    "legendre 16": lambda: legendre(16, 64),
    "slopes": lambda: slopes(8, 64),
    "fourier 256": lambda: fourier(256, 256),
    "fourier 400": lambda: fourier(512, 400),
    "sinc": lambda: band_passes(80, 251),
    "windows": lambda: np.stack([np.kaiser(256, beta) for beta in np.linspace(2, 14, 16)]),
    "powers": lambda: np.vander(np.linspace(-1, 1, 64), 20),
    "causal": lambda: np.where(np.tri(64) > 0, 0.0, -1e9),
    "blocks": lambda: np.kron(np.array([[0, 1, 2], [1, 2, 0], [2, 0, 1]]), np.ones((20, 20))),
    "hadamard": lambda: signs(128),
    "identity": lambda: identity(256, 64),
}


def orientations(table: Array) -> Iterator[tuple[str, Array]]:
    flat = table.reshape(len(table), -1)
    yield "as stored", table
    yield "transposed", flat.T


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_set_aside_in_any_type_and_either_way_round(name: str) -> None:
    for way, table in orientations(TABLES[name]()):
        assert content(table) is Content.ANALYTIC, way
        assert content(table, narrow=True) is Content.ANALYTIC, way


STARTS: dict[str, Callable[[], Array]] = {
    "rectangle": lambda: identity(256, 64),
    "other rectangle": lambda: identity(64, 256),
    "strided": lambda: identity(64, 256, stride=4),
    "convolution": lambda: identity(64, 64, kernel=3),
    "widening convolution": lambda: identity(128, 64, kernel=3),
    "narrowing convolution": lambda: identity(64, 128, kernel=3),
    "tiled": lambda: np.tile(np.eye(64), (4, 1)),
    "repeated": lambda: np.repeat(np.eye(64), 4, axis=0),
    "mel": lambda: mel(201, 80),
    "large mel": lambda: mel(513, 128),
    "band": lambda: np.exp(-(((np.arange(96)[:, None] - np.arange(128) * 0.75) / 4) ** 2)),
}


@pytest.mark.parametrize("name", STARTS)
def test_a_pattern_under_noise_is_set_aside(name: str) -> None:
    start = STARTS[name]()
    for seed in range(3):
        noise = 0.02 * np.random.default_rng(seed).normal(size=start.shape)
        for way, table in orientations(start + noise):
            assert content(table) is Content.ANALYTIC, way


@pytest.mark.parametrize("deviation", [0.02, 0.1])
def test_the_noise_beside_a_square_identity_is_weights(deviation: float) -> None:
    noise = deviation * np.random.default_rng(0).normal(size=(96, 96))
    assert content(np.eye(96) + noise) is Content.WEIGHTS


def test_what_rows_have_in_common_hides_no_weights_beside_it() -> None:
    start = np.log(np.arange(1.0, 17))  # of state spaces; the sketch takes it out
    assert content(start + 0.1 * np.random.default_rng(0).normal(size=(256, 16))) is Content.WEIGHTS
    scaled = np.linspace(0.5, 2, 256)[:, None] * np.log(np.arange(1.0, 33))
    assert content(scaled) is Content.ANALYTIC


def grid(values: Array, bits: int, size: int = 32) -> Array:
    """Rounded to a grid in groups of ``size`` along the rows, where they are long enough."""
    size = size if values.shape[1] % size == 0 else values.shape[1]
    groups = values.reshape(-1, size)
    most = 2 ** (bits - 1) - 1
    step = np.abs(groups).max(axis=1, keepdims=True) / most
    return (np.round(groups / step) * step).reshape(values.shape)


def ternary(values: Array) -> Array:
    scale = np.abs(values).mean()
    return np.clip(np.round(values / scale), -1, 1) * scale


def pruned(values: Array, share: float) -> Array:
    return np.where(np.abs(values) > np.quantile(np.abs(values), share), values, 0)


def apart(values: Array) -> Array:
    """With zeros between the halves of every row."""
    left, right = np.array_split(values, 2, axis=1)
    return np.concatenate([left, np.zeros((len(values), 900)), right], axis=1)


TREATMENTS: dict[str, Callable[[Array], Array]] = {
    "as it is": lambda w: w,
    "transposed": lambda w: w.T,
    **{f"{bits} bits": lambda w, bits=bits: grid(w, bits) for bits in (2, 3, 4, 8)},
    "8 bits, one scale": lambda w: grid(w.reshape(1, -1), 8, w.size).reshape(w.shape),
    "ternary": ternary,
    "binary": lambda w: np.where(w >= 0, 1, -1) * np.abs(w).mean(),
    **{f"pruned {share}": lambda w, share=share: pruned(w, share) for share in (0.5, 0.8, 0.9, 0.95)},
    "ternary, pruned": lambda w: ternary(pruned(w, 0.8)),
    "noisy": lambda w: w + w.std() * np.random.default_rng(0).normal(size=w.shape),
    "padded": lambda w: np.pad(w, ((0, len(w)), (0, 3 * w.shape[1]))),
    "padded far": lambda w: np.pad(w, ((0, 0), (9 * w.shape[1], 0))),
    "padded in the middle": apart,
    "padded, ternary": lambda w: np.pad(ternary(w), ((0, 2 * len(w)), (0, 2 * w.shape[1]))),
    "tiled twice": lambda w: np.tile(w, (2, 1)),
    "tiled eight times": lambda w: np.tile(w, (8, 1)),
    "tiled in columns": lambda w: np.tile(w, (1, 3)),
    "heads repeated": lambda w: np.repeat(w.reshape(-1, 8, w.shape[1]), 6, axis=0).reshape(-1, w.shape[1]),
    "beside a second": lambda w: np.kron(np.eye(2), w),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Array]:
    """Every matrix of two small trained models, of two kinds."""
    wanted = ["quick-a-llama-48-A", "quick-a-gpt2-48-A"]
    folder = quick_zoo(tmp_path_factory, family("a", quick=True), wanted)
    return {
        f"{model}:{name}": value
        for model in wanted
        for name, value in load_file(weights_path(folder, model)).items()
        if value.ndim == 2
    }


@pytest.mark.parametrize("treatment", TREATMENTS)
def test_trained_weights_are_weights_whatever_is_done_to_them(trained: dict[str, Array], treatment: str) -> None:
    treated = {name: TREATMENTS[treatment](weights) for name, weights in trained.items()}
    assert len(treated) > 30
    assert {name for name, weights in treated.items() if content(weights) is not Content.WEIGHTS} == set()


@pytest.mark.parametrize("heavy", [False, True])
def test_random_weights_of_any_shape_are_weights(heavy: bool) -> None:
    rng = np.random.default_rng(5)
    shapes = [(2, 512), (3, 1000), (8, 128), (16, 64), (32, 32), (64, 16), (500, 4), (64, 64, 3, 3), (7, 4096)]
    for shape in shapes:
        values = rng.normal(size=shape) ** (3 if heavy else 1)
        assert content(values) is Content.WEIGHTS, shape
