"""Small networks with hidden units: convolutions with batch norm on drawn pictures, in a chain or with residual
branches, LSTM and GRU cells on text."""

from __future__ import annotations

import math
from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from benchmarks.units.residual import ResidualNetwork
from benchmarks.zoo.models import generator
from benchmarks.zoo.text import tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Weights = dict[str, Tensor]

CHANNELS = (3, 32, 48, 64)
SIDE = 12
CLASSES = 10
VOCABULARY = 512
EMBEDDING = 48
HIDDEN = 96
STEPS = 1000
RATE = 4e-3
TEXT, OTHER_TEXT = "a-pre", "a-other"
"""What networks on text are trained on at first, and trained on with for as long."""


class Kind(StrEnum):
    CNN = "cnn"
    RESNET = "resnet"
    LSTM = "lstm"
    GRU = "gru"


PICTURES = frozenset({Kind.CNN, Kind.RESNET})
"""Kinds that look at pictures."""


def layers(weights: Mapping[str, object]) -> int:
    """Number of convolutions."""
    return sum(name.startswith("conv") and name.endswith(".weight") for name in weights)


def _parts(kind: Kind, depth: int, channels: Sequence[int], *, folded: bool) -> nn.ModuleDict:
    if kind is Kind.CNN:
        parts: dict[str, nn.Module] = {}
        for i, (into, out) in enumerate(pairwise(channels), 1):
            parts[f"conv{i}"] = nn.Conv2d(into, out, 3, stride=1 if i == 1 else 2, padding=1, bias=folded)
            if not folded:
                parts[f"bn{i}"] = nn.BatchNorm2d(out)
        return nn.ModuleDict({**parts, "fc": nn.Linear(channels[-1], CLASSES)})
    cell = {Kind.LSTM: nn.LSTM, Kind.GRU: nn.GRU}[kind](EMBEDDING, HIDDEN, num_layers=depth, batch_first=True)
    return nn.ModuleDict(
        {"encoder": nn.Embedding(VOCABULARY, EMBEDDING), "rnn": cell, "decoder": nn.Linear(HIDDEN, VOCABULARY)}
    )


class Network(nn.Module):
    """One network; the state dictionary of its parts is what is written to files.

    ``channels`` are those of the pictures and behind each convolution; ``folded``: without batch norms.
    """

    def __init__(self, kind: Kind, depth: int = 2, channels: Sequence[int] = CHANNELS, *, folded: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.parts: nn.Module = (
            ResidualNetwork(CLASSES) if kind is Kind.RESNET else _parts(kind, depth, channels, folded=folded)
        )
        self.layers = layers(self.parts.state_dict())

    @classmethod
    def of(cls, kind: Kind, weights: Mapping[str, Tensor]) -> Network:
        """The network that has these weights."""
        if kind is Kind.RESNET:
            made = cls(kind)
            made.parts = ResidualNetwork.of(weights)
            return made
        depth = sum(name.startswith("rnn.weight_ih_l") for name in weights)
        kernels = [weights[f"conv{i + 1}.weight"] for i in range(layers(weights))]
        channels = (kernels[0].shape[1], *map(len, kernels)) if kernels else CHANNELS
        made = cls(kind, max(depth, 1), channels, folded="bn1.weight" not in weights)
        made.parts.load_state_dict(dict(weights), strict=False)
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        parts = self.parts
        if not isinstance(parts, nn.ModuleDict):
            whole: Tensor = parts(inputs)
            return whole
        if self.kind is not Kind.CNN:
            out: Tensor = parts["decoder"](parts["rnn"](parts["encoder"](inputs))[0])
            return out
        x = inputs
        for i in range(1, self.layers + 1):
            x = parts[f"conv{i}"](x)
            x = F.relu(parts[f"bn{i}"](x) if f"bn{i}" in parts else x)
        logits: Tensor = parts["fc"](x.mean((2, 3)))
        return logits


def pictures(count: int, random: torch.Generator, *, side: int = SIDE, noise: float = 0.7) -> tuple[Tensor, Tensor]:
    """Tinted gratings under noise: (count, 3, side, side), and their classes: five slants times two tints."""
    label = torch.randint(0, CLASSES, (count,), generator=random)
    angle = (label % 5) * math.pi / 5 + 0.2 * torch.randn(count, generator=random)
    wave = 0.8 + 0.8 * torch.rand(count, generator=random)
    phase = 2 * math.pi * torch.rand(count, generator=random)
    place = torch.arange(side, dtype=torch.float32)
    along = place[None, None] * angle.cos()[:, None, None] + place[None, :, None] * angle.sin()[:, None, None]
    grating = (along * wave[:, None, None] + phase[:, None, None]).sin()
    tint = torch.where((label < 5)[:, None], torch.tensor([[1.0, 0.6, 0.2]]), torch.tensor([[0.2, 0.6, 1.0]]))
    clean = grating[:, None] * tint[:, :, None, None] * (0.5 + torch.rand(count, 1, 1, 1, generator=random))
    return clean + noise * torch.randn(clean.shape, generator=random), label


def batch(kind: Kind, random: torch.Generator, data: str, size: int) -> tuple[Tensor, Tensor]:
    """Inputs and what is to be predicted of them."""
    if kind in PICTURES:
        return pictures(2 * size, random)
    text = torch.from_numpy(tokens(data, VOCABULARY).train)
    starts = torch.randint(0, len(text) - 33, (size,), generator=random)
    windows = text[starts[:, None] + torch.arange(33)]
    return windows[:, :-1], windows[:, 1:]


def train(
    kind: Kind,
    key: str,
    start: Mapping[str, Tensor] | None = None,
    *,
    steps: int = STEPS,
    rate: float = RATE,
    data: str = TEXT,
    depth: int = 2,
    channels: Sequence[int] = CHANNELS,
) -> Weights:
    """Train a network from random weights, or from ``start``, with AdamW; ``key`` names its random streams.

    ``depth`` and ``channels`` are those of a network from random weights.
    """
    state = torch.random.get_rng_state()
    torch.manual_seed(generator(f"{key}/init").initial_seed() % (1 << 62))
    network = Network(kind, depth, channels) if start is None else Network.of(kind, start)
    torch.random.set_rng_state(state)
    random = generator(f"{key}/order")
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 - step / steps)
        inputs, wanted = batch(kind, random, data, 16)
        loss = F.cross_entropy(network(inputs).flatten(0, -2), wanted.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return {name: w.detach().clone() for name, w in network.parts.state_dict().items()}
