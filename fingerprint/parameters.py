"""The parameters of the method: one frozen, versioned object that is stored in every signature."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import asdict, fields

from fingerprint.errors import IncompatibleParametersError

if TYPE_CHECKING:
    from collections.abc import Mapping


class Parameters(Struct, frozen=True):
    """What two fingerprints must share to be comparable.

    ``seed`` keys the generator of signs and of hashed samples; ``sketch_width`` is k of the tensor sketch (k x k
    numbers), ``index_width`` that of its corner which is searched by vector; ``axis_samples`` slices are kept of each
    axis, ``axis_width`` numbers each; ``frame_width`` is the number of directions of a frame, ``neuron_samples`` the
    neurons kept of each MLP in the fixed frame, ``gauge_samples`` in a frame that moves with the residual stream;
    ``digest_block`` is the number of elements under one block digest; ``minimum_elements`` the size below which a
    matrix gets no sketch.
    """

    version: int = 2
    seed: int = 0x77656967687470
    sketch_width: int = 32
    index_width: int = 16
    axis_samples: int = 64
    axis_width: int = 16
    frame_width: int = 64
    neuron_samples: int = 128
    gauge_samples: int = 96
    digest_block: int = 65536
    minimum_elements: int = 1024

    def to_mapping(self) -> dict[str, int]:
        """Names and values, as stored in a signature."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Parameters:
        """Inverse of ``to_mapping``; raises ``IncompatibleParametersError`` on unknown, absent or ill-typed values."""
        names = {field.name for field in fields(cls)}
        if set(values) != names or not all(type(value) is int for value in values.values()):
            raise IncompatibleParametersError("the parameters of the method are not ones that this program knows")
        return cls(**values)

    def require_equal(self, other: Parameters) -> None:
        """Raise ``IncompatibleParametersError`` if ``other`` differs: such fingerprints are never compared."""
        if self != other:
            raise IncompatibleParametersError(
                f"made with different parameters of the method: {self.to_mapping()} and {other.to_mapping()}; "
                "make the fingerprint again from the weights"
            )


DEFAULT_PARAMETERS = Parameters()
