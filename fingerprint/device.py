"""Where large products are computed: by numpy, or by PyTorch on the device that the environment names.

Only products of blocks with signs and frames go there, the bulk of the arithmetic: 16 MB or less at a time. Everything
that is equal to the bit on every machine (digests, facts, samples, the order of neurons by their norms) stays where it
was. Results differ from numpy's as those of two builds of BLAS do: by the rounding of sums of float32.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from fingerprint.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Float32 = NDArray[np.float32]

VARIABLE: Final = "FP_DEVICE"
"""Names the device as PyTorch does: cuda, cuda:1, mps, xpu; cpu, the default, is numpy."""
LEAST: Final = 1 << 16
"""Numbers of the left factor from which a product is worth the way."""
_KEPT: Final = 8
_LONGEST: Final = 80


def product(left: Float32, right: Float32) -> Float32:
    """``left @ right`` in float32, (m, k) times (k, n); ``right`` must not be changed afterwards.

    Raises ``UsageError`` if there is no such device.
    """
    device = None if left.size < LEAST else chosen()
    found: Float32 = left @ right if device is None else device.product(left, right)
    return found


def chosen() -> TorchDevice | None:
    """The device that the environment names, None for numpy; raises ``UsageError`` if it is not there."""
    return _opened(chosen_name())


def chosen_name() -> str:
    """What the environment calls the device; empty for numpy."""
    name = os.environ.get(VARIABLE, "")
    return "" if name == "cpu" else name


@cache
def _opened(name: str) -> TorchDevice | None:
    return TorchDevice(name) if name else None


class TorchDevice:
    """Products on a device of PyTorch, from any thread."""

    def __init__(self, name: str) -> None:
        """Raises ``UsageError`` if PyTorch knows or finds no such device."""
        import torch

        try:
            self._device = torch.device(name)
            torch.ones(1, device=self._device).cpu().item()
        # In these ways PyTorch says that it knows no such device, was built without it, or finds none.
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"no device {name}: {reason[:_LONGEST]}") from error
        self._torch = torch
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, tuple[int, ...], tuple[int, ...]], tuple[Float32, Any]] = OrderedDict()

    def product(self, left: Float32, right: Float32) -> Float32:
        """See ``product``."""
        torch = self._torch
        there = torch.tensor(left, device=self._device)
        with torch.no_grad():
            found: Float32 = torch.matmul(there, self._held(right)).cpu().numpy()
        return found

    def _held(self, right: Float32) -> Any:
        """``right`` on the device; the last few are kept, since blocks of one matrix share it."""
        key = (right.__array_interface__["data"][0], right.shape, right.strides)
        with self._lock:
            if key not in self._kept:
                # The array is kept too, so that its address is that of no other.
                tensor = self._torch.tensor(right, device=self._device)
                self._kept[key] = (right, tensor)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key][1]
