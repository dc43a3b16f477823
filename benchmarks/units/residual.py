"""A small residual network of convolutions with batch norms, as torchvision names and builds them, and its rewrites.

Two stages of two blocks, the second with a shortcut of 1x1. The stream's channels may be put in any order, and be
multiplied by positive numbers, if every kernel that writes or reads them is; so may those inside a block.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Weights = dict[str, Tensor]

WIDTHS = (32, 48)
BLOCKS = (2, 2)
_BLOCK = re.compile(r"(layer\d+\.)(\d+)(\..+)")
_NORM_ENDS = ("weight", "bias", "running_mean", "running_var")


class _Block(nn.Module):
    def __init__(self, into: int, inside: int, out: int, stride: int, *, folded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, inside, 3, stride, 1, bias=folded)
        self.conv2 = nn.Conv2d(inside, out, 3, 1, 1, bias=folded)
        self.bn1, self.bn2 = (nn.Identity() if folded else nn.BatchNorm2d(size) for size in (inside, out))
        self.downsample: nn.Module | None = None
        if into != out:
            norm = [] if folded else [nn.BatchNorm2d(out)]
            self.downsample = nn.Sequential(nn.Conv2d(into, out, 1, stride, bias=folded), *norm)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + (x if self.downsample is None else self.downsample(x)))


class ResidualNetwork(nn.Module):
    """The network; ``inside`` are the channels inside the blocks of each stage."""

    def __init__(self, classes: int, inside: Iterable[Iterable[int]] | None = None, *, folded: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=folded)
        self.bn1 = nn.Identity() if folded else nn.BatchNorm2d(WIDTHS[0])
        into = WIDTHS[0]
        usual = [[width] * count for width, count in zip(WIDTHS, BLOCKS, strict=True)]
        for stage, (width, sizes) in enumerate(zip(WIDTHS, inside or usual, strict=True), 1):
            blocks = []
            for size in sizes:
                blocks.append(_Block(into, size, width, 1 if into == width else 2, folded=folded))
                into = width
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(into, classes)

    @classmethod
    def of(cls, weights: Mapping[str, Tensor]) -> ResidualNetwork:
        """The network that has these weights."""
        inside = [[len(weights[f"{block}.conv1.weight"]) for block in _blocks(weights, stage)] for stage in _stages()]
        made = cls(len(weights["fc.weight"]), inside, folded="bn1.weight" not in weights)
        made.load_state_dict(dict(weights), strict=False)
        return made

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(inputs)))
        for stage in _stages():
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _stages() -> range:
    return range(1, len(WIDTHS) + 1)


def _blocks(weights: Mapping[str, Tensor], stage: int) -> list[str]:
    """Names of a stage's blocks."""
    return [name for number in range(16) if f"{(name := f'layer{stage}.{number}')}.conv1.weight" in weights]


def _norm_behind(kernel: str) -> str:
    return kernel.replace("downsample.0", "downsample.1").replace("conv", "bn")


def _kernels(weights: Mapping[str, Tensor]) -> list[str]:
    return [name.removesuffix(".weight") for name, w in weights.items() if w.ndim == 4]


def on_channels(
    weights: Weights, writers: Iterable[str], readers: Iterable[str], order: Tensor, scales: Tensor
) -> None:
    """Put the channels that some modules write and others read in another order, multiplied by positive numbers."""
    for kernel in writers:
        norm = _norm_behind(kernel)
        weights[f"{kernel}.weight"] = weights[f"{kernel}.weight"][order]
        if f"{norm}.weight" in weights:
            for end in _NORM_ENDS:
                values = weights[f"{norm}.{end}"][order]
                weights[f"{norm}.{end}"] = values * scales if end in {"weight", "bias"} else values
        else:
            weights[f"{kernel}.weight"] = weights[f"{kernel}.weight"] * scales[:, None, None, None]
            weights[f"{kernel}.bias"] = weights[f"{kernel}.bias"][order] * scales
    for name in readers:
        weight = weights[f"{name}.weight"]
        weights[f"{name}.weight"] = weight[:, order] / scales.view(1, -1, *[1] * (weight.ndim - 2))


def spaces(weights: Mapping[str, Tensor]) -> list[tuple[list[str], list[str]]]:
    """For each space of channels the modules that write it, and those that read it: inside the blocks, then the
    streams."""
    found = [([f"{block}.conv1"], [f"{block}.conv2"]) for stage in _stages() for block in _blocks(weights, stage)]
    for stage in _stages():
        blocks = _blocks(weights, stage)
        moved = f"{blocks[0]}.downsample.0"
        has_moved = f"{moved}.weight" in weights
        writers = [f"{block}.conv2" for block in blocks] + [moved if has_moved else "conv1"]
        readers = [f"{block}.conv1" for block in (blocks[1:] if has_moved else blocks)]
        following = f"layer{stage + 1}.0"
        last = [f"{following}.conv1", f"{following}.downsample.0"] if stage < len(WIDTHS) else ["fc"]
        found.append((writers, readers + last))
    return found


def fold(weights: Weights) -> None:
    """Fold every batch norm into the kernel in front of it, which gets a bias."""
    for kernel in _kernels(weights):
        gain, bias, mean, variance = (weights.pop(f"{_norm_behind(kernel)}.{end}") for end in _NORM_ENDS)
        factor = gain / (variance + 1e-5).sqrt()
        weights[f"{kernel}.weight"] = weights[f"{kernel}.weight"] * factor[:, None, None, None]
        weights[f"{kernel}.bias"] = bias - mean * factor


def halve_inside(weights: Weights) -> None:
    """Leave out the half of the channels inside each block whose rows are shortest."""
    for stage in _stages():
        for block in _blocks(weights, stage):
            kernel = weights[f"{block}.conv1.weight"]
            kept = kernel.flatten(1).norm(dim=1).topk(len(kernel) // 2).indices.sort().values
            for name in [f"{block}.conv1.weight", f"{block}.conv1.bias", *(f"{block}.bn1.{end}" for end in _NORM_ENDS)]:
                if name in weights:
                    weights[name] = weights[name][kept]
            weights[f"{block}.conv2.weight"] = weights[f"{block}.conv2.weight"][:, kept]


def without_block(weights: Mapping[str, Tensor]) -> Weights:
    """Without the first block, which reads and writes one stream; the one behind it moves up."""
    out = {}
    for name, w in weights.items():
        part = _BLOCK.match(name)
        if part is None or part[1] != "layer1.":
            out[name] = w.clone()
        elif part[2] != "0":
            out[f"{part[1]}{int(part[2]) - 1}{part[3]}"] = w.clone()
    return out


def random_scales(size: int, random: torch.Generator) -> Tensor:
    """Positive numbers, most of them between a quarter and four."""
    return torch.exp(0.7 * torch.randn(size, generator=random, dtype=torch.float64))
